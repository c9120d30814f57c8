"""Laws of the unaries on disk: whose row is whose, which are taken and which refused. Not here: what the network says."""

from __future__ import annotations

import errno
import json
import os
import socket
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jointseg.checkpoint import Checkpoint, digest, final_digest, save_checkpoint, save_final
from jointseg.errors import DiskError, InputError
from jointseg.evaluation import compute_unaries
from pipeline.study.unaries import ARRAYS, UnaryCache, cached_unaries, on_this_node, row_of, subset_labels
from tests.checkpoints import untrained_final


@pytest.fixture
def kept(tmp_path, small):
    """Unaries on disk as they are described, of a stage that has finished."""
    save_checkpoint(tmp_path / "last", Checkpoint("stage2", 1, small, {"weight": torch.zeros(1)}, {}, []))
    save_final(tmp_path / "final", tmp_path / "last")
    folder = tmp_path / "unaries"
    folder.mkdir()
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", np.zeros(3))
    digests = {name: digest(folder / f"{name}.npy") for name in ARRAYS}
    stamp = {"checkpoint": final_digest(tmp_path / "final"), "frames": [1, 2], "logits": "n h w C", "sha256": digests}
    (folder / "unaries.json").write_text(json.dumps(stamp))
    return folder, stamp


def unaries_of(folder, config):
    final = folder.parent / "final"
    return cached_unaries(config, folder.parent, final, folder, frames=(1, 2), progress=lambda _: None, say=print)


@pytest.mark.usefixtures("last_share_first")
def test_a_frames_unaries_are_in_its_own_row_in_whatever_order_shares_come(rooms, small, tmp_path):
    model, done = untrained_final("stage2", small, tmp_path / "final"), []
    folder, frames = tmp_path / "unaries", rooms.train
    cache = cached_unaries(small, rooms.path, tmp_path / "final", folder, frames=frames, progress=done.append, say=print)
    for row, number in enumerate(frames):
        expected = compute_unaries(model, rooms.frame(number), small, device=torch.device("cpu"))
        for own, other in zip(row_of(cache.arrays(), row), expected, strict=True):
            assert torch.equal(own, other)
    assert done == [1, 2, 3]


@pytest.mark.usefixtures("last_share_first")
def test_unaries_that_the_disk_has_no_room_for_are_refused_before_any_is_computed(rooms, small, tmp_path, monkeypatch):
    untrained_final("stage2", small, tmp_path / "final")
    folder, frames, done, free = tmp_path / "unaries", rooms.train, [], [0]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))

    def computed():
        cached_unaries(small, rooms.path, tmp_path / "final", folder, frames=frames, progress=done.append, say=print)

    with pytest.raises(InputError, match=r"unaries: needs 0\.\d\d GB of disk and 0\.00 GB are free at "):
        computed()
    assert (done, folder.exists()) == ([], False)
    monkeypatch.setattr("pipeline.study.unaries.check_space", lambda path, *, needed: free.append(needed))
    computed()
    headers = 128 * len(ARRAYS)
    assert sum((folder / f"{name}.npy").stat().st_size for name in ARRAYS) == free[1] + headers


@pytest.mark.usefixtures("last_share_first")
def test_a_disk_that_is_full_when_unaries_are_to_be_kept_is_named_and_leaves_nothing(rooms, small, tmp_path, monkeypatch):
    untrained_final("stage2", small, tmp_path / "final")
    monkeypatch.setattr("jointseg.mapped.fallocate", full)
    folder = tmp_path / "unaries"
    with pytest.raises(DiskError, match=rf"^{folder}: cannot be written: No space left on device$"):
        cached_unaries(small, rooms.path, tmp_path / "final", folder, frames=rooms.train, progress=lambda _: None, say=print)
    assert [path.name for path in tmp_path.iterdir() if "unaries" in path.name] == []


def full(descriptor, num_bytes):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_labels_of_frames_that_are_not_to_train_on_are_refused(rooms):
    with pytest.raises(InputError, match=rf"validation frames \[{rooms.test[0]}\] are not in its train split"):
        subset_labels(rooms.path, (rooms.train[0], rooms.test[0]))


def test_unaries_of_this_checkpoint_and_these_frames_are_taken(kept, small):
    assert unaries_of(kept[0], small) == UnaryCache(kept[0], (1, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": "0" * 64}, r"unaries of checkpoint 000000000000, but stage 2's is [0-9a-f]{12}; remove .* to compute"),
        ({"frames": [1, 3]}, "unaries of 2 other frames than the 2 asked for"),
        (
            {"views": {"scales": [1.0], "mirror": True}},
            "unaries of 2 views .input × 1, each mirrored too. of each picture, but evaluation asks for one view; remove",
        ),
        ({"logits": None}, "unaries as an earlier version laid them out; remove .* to compute them again"),
        ({"views": 3}, "unaries.json: damaged"),
        ({"views": {"scales": "x"}}, "unaries.json: damaged"),
        ({"sha256": {}}, "image.npy: missing or altered since it was written"),
        ({"sha256": 4}, "unaries.json: damaged"),
    ],
)
def test_unaries_of_anything_else_are_refused(kept, small, change, said):
    folder, stamp = kept
    (folder / "unaries.json").write_text(json.dumps({**stamp, **change}))
    with pytest.raises(InputError, match=said):
        unaries_of(folder, small)


# A node's own copy


def test_where_no_folder_of_the_node_is_named_the_run_s_own_are_read(kept):
    cache = UnaryCache(kept[0], (1, 2))
    assert on_this_node(cache, None) is cache


def test_a_node_has_one_copy_which_all_its_processes_read(kept, tmp_path):
    cache, node = UnaryCache(kept[0], (1, 2)), tmp_path / "deep" / "node"
    with get_context("fork").Pool(4) as processes:
        found = processes.starmap(on_this_node, [(cache, node)] * 8)
    assert len(set(found)) == 1
    assert [path.name for path in node.iterdir() if path.is_dir()] == [found[0].folder.name]
    assert {name: own.tolist() for name, own in found[0].arrays().items()} == dict.fromkeys(ARRAYS, [0.0] * 3)
    made = found[0].folder.stat().st_ino
    assert on_this_node(cache, node).folder.stat().st_ino == made


def test_other_unaries_have_another_copy(kept, tmp_path):
    cache = UnaryCache(kept[0], (1, 2))
    first = on_this_node(cache, tmp_path / "node")
    np.save(kept[0] / "depth.npy", np.ones(3))
    stamp = {**kept[1], "sha256": {**kept[1]["sha256"], "depth": digest(kept[0] / "depth.npy")}}
    (kept[0] / "unaries.json").write_text(json.dumps(stamp))
    second = on_this_node(cache, tmp_path / "node")
    assert (first.arrays()["depth"].sum(), second.arrays()["depth"].sum()) == (0, 3)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 40)])
def test_a_copy_that_lost_something_is_made_again(kept, tmp_path, harm):
    cache = UnaryCache(kept[0], (1, 2))
    harm(on_this_node(cache, tmp_path / "node").folder / "image.npy")
    assert on_this_node(cache, tmp_path / "node").arrays()["image"].tolist() == [0.0] * 3


def test_unaries_altered_since_they_were_written_are_not_copied(kept, tmp_path):
    np.save(kept[0] / "depth.npy", np.ones(3))
    with pytest.raises(DiskError, match=r"search.node_folder: .*depth.npy: altered since it was written, or on its way here"):
        on_this_node(UnaryCache(kept[0], (1, 2)), tmp_path / "node")
    assert not [path for path in (tmp_path / "node").iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_is_said_in_one_line(kept, tmp_path):
    (tmp_path / "file").touch()
    said = r"search\.node_folder: .*/file/node: no copy of the unaries can be made here: .*Not a directory"
    with pytest.raises(DiskError, match=said):
        on_this_node(UnaryCache(kept[0], (1, 2)), tmp_path / "file" / "node")


@pytest.mark.parametrize("node", [None, "node"])
def test_a_node_that_does_not_see_the_runs_folder_is_named(tmp_path, node):
    cache = UnaryCache(tmp_path / "elsewhere", (1, 2))
    said = rf"^{cache.folder}: .*/elsewhere/\S+ is not there on node {socket.gethostname()}; --out must lie where all"
    with pytest.raises(InputError, match=said):
        on_this_node(cache, node and tmp_path / node).arrays()
