"""Data on the command line: what is refused in one line and before anything is made, what is made and said.

Not here: what a folder of NYU's must hold (tests/unit/test_nyu.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jointseg.data.source import check
from jointseg.data.store import Store
from jointseg.labels import CLASS_NAMES


def test_data_that_is_no_folder_is_named(mistake, tmp_path):
    assert mistake("run", "--out", "x", "--data", "nowhere") == "--data: nowhere is not a folder"
    (tmp_path / "file").touch()
    assert mistake("run", "--out", "x", "--data", "file") == "--data: file is not a folder"


def test_a_folder_without_the_files_is_named_before_anything_is_made(mistake, tmp_path):
    (tmp_path / "empty").mkdir()
    message = mistake("run", "--out", "x", "--data", "empty")
    needed = "needed: nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat; or, for pictures, train.txt and test.txt"
    assert message == f"{tmp_path / 'empty'}: holds no frames; {needed}"
    assert not (tmp_path / "x").exists()


def test_a_source_named_by_its_setting_is_looked_at_too(mistake, tmp_path):
    assert mistake("run", "--out", "x", "--set", "data.source=nowhere").startswith(f"{tmp_path / 'nowhere'}: no such folder")


@pytest.mark.parametrize("data", [[], ["--data"]], ids=["rooms", "real"])
def test_more_validation_frames_than_frames_are_refused_before_anything_is_made(mistake, tmp_path, small_nyu, data):
    words = [*data, small_nyu] if data else ["--set", "data.rooms_train=4"]
    message = mistake("run", "--out", "x", *words, "--set", "data.validation_frames=4", "--set", "search.folds=2")
    assert message.startswith("data.validation_frames: 4 is not allowed; allowed: up to 3 of the 4 train frames")
    assert ("data.rooms_train" in message) == (not data)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read (No such file or directory); allowed: a .caffemodel; "),
        (b"<!DOCTYPE html>", "is no file of weights, it begins with b'<!DOCTYP'; allowed: a .caffemodel; "),
        (b"\x0a\x03VGG\xa2\x06\xff\x7flayer", "not a .caffemodel, or a damaged one: field 100 is 16383 bytes long, but "),
    ],
)
def test_starting_weights_that_cannot_be_read_are_refused_before_anything_is_made(mistake, tmp_path, content, reason):
    if content is not None:
        (tmp_path / "vgg").write_bytes(content)
    message = mistake("run", "--out", "x", "--set", "network.weights=vgg")
    assert message.startswith(f"network.weights: {tmp_path / 'vgg'}: {reason}")
    assert not (tmp_path / "x").exists()


def test_layers_that_would_stay_random_are_refused_before_anything_is_made(mistake, tmp_path):
    message = mistake("run", "--preset", "small", "--out", "x")
    assert message.startswith(
        "network.weights: none is given, and network.frozen_until keeps layers up to conv4_3 as they begin"
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["check", "prepare"])
def test_a_folder_that_is_not_nyus_is_refused(mistake, tmp_path, command):
    out = ["--out", "store"] if command == "prepare" else []
    assert mistake("data", command, "nowhere", *out).startswith("nowhere: no such folder; needed: nyu_depth_v2_labeled.mat")
    (tmp_path / "nyu").mkdir()
    for name in ("nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"):
        (tmp_path / "nyu" / name).write_text("not HDF5")
    assert mistake("data", command, "nyu", *out).startswith("nyu/nyu_depth_v2_labeled.mat: cannot be opened: not an HDF5")


def test_data_is_checked_and_prepared(jointseg, mistake, small_nyu, tmp_path):
    code, out, err = jointseg("data", "check", small_nyu)
    assert (code, err) == (0, "")
    assert "6: 4 train, 2 test" in out
    code, out, _ = jointseg("data", "prepare", small_nyu, "--out", "store")
    assert code == 0
    assert "6 frames" in out
    assert mistake("data", "prepare", small_nyu, "--out", "store").startswith("store: exists already")
    code, out, _ = jointseg("data", "check", "store")
    assert (code, out) == (0, f"store: 6 frames as they were written, digest {Store.open(Path('store')).digest}\n")
    with Path("store/labels.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    assert mistake("data", "check", "store").startswith("store: its contents were changed after it was made")


def test_the_commonest_classes_of_a_folder_are_named(jointseg, small_nyu):
    pixels = check(small_nyu, progress=lambda *_, **__: None).class_pixels
    common = sorted(range(40), key=lambda label: -pixels[label])[:3]
    assert f"most common: {', '.join(CLASS_NAMES[label] for label in common)}" in jointseg("data", "check", small_nyu)[1]


def test_a_name_with_colons_is_printed_as_it_is(mistake):
    assert mistake("reproduce", "mlflow:abc", "--out", "x:abc:y") == "x:abc:y/mlflow.db: not found; x:abc:y has no MLflow store"
    assert mistake("reproduce", "mlflow:abc").startswith("mlflow:abc: in which store? ")


def test_rooms_are_never_written_over(mistake, small_nyu):
    message = mistake("data", "rooms", "--out", small_nyu, "--frames", "2")
    assert message.startswith(str(small_nyu))
    assert "already" in message


def test_more_rooms_than_there_are_numbers_for_are_refused(mistake, monkeypatch, tmp_path):
    monkeypatch.setattr("jointseg.data.rooms._rendered", None)
    message = mistake("data", "rooms", "--out", "rooms", "--frames", "65536")
    assert message == "49152 train and 16384 test rooms are 65536; allowed together: up to 65535"
    message = mistake("run", "--out", "run", "--set", "data.rooms_train=65530", "--set", "data.rooms_test=6")
    assert message == "65530 train and 6 test rooms are 65536; allowed together: up to 65535"
    assert list(tmp_path.iterdir()) == []


def test_rooms_are_written_where_asked(jointseg, tmp_path):
    code, out, _ = jointseg("data", "rooms", "--out", "rooms", "--frames", "2")
    assert (code, out) == (0, "rooms: 1 train and 1 test rooms\n")
    assert sorted(path.name for path in (tmp_path / "rooms").iterdir()) == [
        "classMapping40.mat", "nyu_depth_v2_labeled.mat", "splits.mat",
    ]  # fmt: skip
