"""Laws of the reader of NYU's folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from jointseg.data.frame import valid_depth
from jointseg.data.nyu import NyuFolder
from jointseg.data.source import check
from jointseg.errors import InputError
from jointseg.labels import VOID

MAT = "nyu_depth_v2_labeled.mat"
Damage = Callable[[Path], object]


@pytest.fixture
def folder(small_nyu: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `small_nyu` to be damaged."""
    copy = tmp_path / "nyu"
    yield shutil.copytree(small_nyu, copy)
    shutil.rmtree(copy)


def test_valid_depth_is_finite_and_above_zero_for_arrays_and_tensors() -> None:
    depth = np.array([0.0, -1.0, np.nan, np.inf, -np.inf, 1e-3, 9.9], np.float32)
    expected = [False] * 5 + [True] * 2
    assert valid_depth(depth).tolist() == expected
    assert valid_depth(torch.from_numpy(depth)).tolist() == expected


def test_a_frame_is_the_stored_one_upright(small_nyu: Path) -> None:
    with h5py.File(small_nyu / MAT) as mat, NyuFolder.open(small_nyu) as nyu:
        frame = nyu.read(3)
        np.testing.assert_array_equal(frame.image, mat["images"][2].transpose(2, 1, 0))
        np.testing.assert_array_equal(frame.raw_depth, mat["rawDepths"][2].T)
        np.testing.assert_array_equal(frame.filled_depth, mat["depths"][2].T)
        stored = mat["labels"][2].T.astype(int)
        np.testing.assert_array_equal(frame.labels, np.where(stored == 0, VOID, (stored - 1) % 40))
        assert (frame.number, nyu.train, nyu.test) == (3, (1, 2, 4, 6), (3, 5))


def test_the_report_counts_every_pixel(small_nyu: Path) -> None:
    done: list[tuple[int, int]] = []
    report = check(small_nyu, progress=lambda *step: done.append(step))
    with h5py.File(small_nyu / MAT) as mat:
        labels, raw, filled = mat["labels"][:].astype(int), mat["rawDepths"][:], mat["depths"][:]
    assert report.class_pixels == tuple(np.bincount((labels[labels > 0] - 1) % 40, minlength=40))
    assert report.void_share == pytest.approx((labels == 0).mean())
    assert report.hole_share == pytest.approx((raw == 0).mean())
    assert (report.min_depth, report.max_depth) == (filled.min(), filled.max())
    assert (report.num_frames, report.num_train, report.num_test) == (6, 4, 2)
    assert report.classes_present == tuple(range(40))
    assert done == [(i, 6) for i in range(1, 7)]


def test_a_missing_depth_is_not_the_nearest(folder: Path) -> None:
    pixel("depths", (0, 0, 0), 0.0)(folder)
    with h5py.File(folder / MAT) as mat:
        filled = mat["depths"][:]
    assert check(folder).min_depth == filled[filled > 0].min()


def test_without_any_depth_the_nearest_and_the_farthest_are_0(folder: Path) -> None:
    replace("depths", np.zeros_like, chunks=(1, 640, 480), compression="gzip")(folder)
    report = check(folder)
    assert (report.min_depth, report.max_depth) == (0.0, 0.0)


def test_frames_are_nyus_own_by_its_class_mapping(folder: Path, shared: Path) -> None:
    with NyuFolder.open(folder) as nyu:
        assert not nyu.real
    shutil.copy(shared / "nyuv2" / "classMapping40.mat", folder)
    with NyuFolder.open(folder) as nyu:
        assert nyu.real


def test_chunks_of_many_frames_read_the_same(folder: Path) -> None:
    before = check(folder)
    replace("images", lambda old: old, chunks=(4, 1, 40, 40), compression="gzip", compression_opts=1)(folder)
    replace("depths", lambda old: old, chunks=(6, 40, 40), compression="gzip", compression_opts=1)(folder)
    assert check(folder) == before


def test_splits_may_be_matlab_7_3(folder: Path) -> None:
    (folder / "splits.mat").unlink()
    with h5py.File(folder / "splits.mat", "w") as mat:
        mat["trainNdxs"], mat["testNdxs"] = np.array([[6.0, 1.0]]), np.array([[2.0]])
    with NyuFolder.open(folder) as nyu:
        assert (nyu.train, nyu.test) == ((1, 6), (2,))


# Damages: each takes the folder and spoils one thing.


def replace(name: str, change: Callable[[np.ndarray], np.ndarray], **storage: object) -> Damage:
    def damage(folder: Path) -> None:
        with h5py.File(folder / MAT, "r+") as mat:
            changed = change(mat[name][:])
            del mat[name]
            mat.create_dataset(name, data=changed, **storage)

    return damage


def pixel(name: str, where: tuple[int, ...], value: float) -> Damage:
    def damage(folder: Path) -> None:
        with h5py.File(folder / MAT, "r+") as mat:
            mat[name][where] = value

    return damage


def without(name: str) -> Damage:
    def damage(folder: Path) -> None:
        with h5py.File(folder / MAT, "r+") as mat:
            del mat[name]

    return damage


def empty(name: str) -> Damage:
    def damage(folder: Path) -> None:
        with h5py.File(folder / MAT, "r+") as mat:
            dtype = mat[name].dtype
            del mat[name]
            mat[name] = h5py.Empty(dtype)

    return damage


def times(name: str) -> Damage:
    def damage(folder: Path) -> None:
        with h5py.File(folder / MAT, "r+") as mat:
            shape = mat[name].shape
            del mat[name]
            h5py.h5d.create(mat.id, name.encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple(shape))

    return damage


def cut(name: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def unreadable_chunk(name: str, frame: int) -> Damage:
    def damage(folder: Path) -> None:
        with h5py.File(folder / MAT) as mat:
            offset = mat[name].id.get_chunk_info(frame - 1).byte_offset
        with (folder / MAT).open("r+b") as file:
            file.seek(offset)  # byte offsets include the user block
            file.write(b"\xff" * 64)

    return damage


def splits(**changed: object) -> Damage:
    given = {"trainNdxs": [1, 2, 4, 6], "testNdxs": [3, 5]} | changed
    return lambda folder: savemat(folder / "splits.mat", {name: value for name, value in given.items() if value is not None})


def empty_splits(folder: Path) -> None:
    (folder / "splits.mat").unlink()
    with h5py.File(folder / "splits.mat", "w") as mat:
        mat["trainNdxs"], mat["testNdxs"] = h5py.Empty("f8"), [3.0]


def mapping(values: object) -> Damage:
    return lambda folder: savemat(folder / "classMapping40.mat", {"mapClass": values})


DAMAGES: list[tuple[Damage, str]] = [
    (lambda folder: (folder / MAT).unlink(), f"no {MAT} in it"),
    (lambda folder: (folder / "splits.mat").unlink(), "no splits.mat in it"),
    (lambda folder: (folder / "classMapping40.mat").unlink(), "no classMapping40.mat in it"),
    (lambda folder: (folder / MAT).write_text("<html>404</html>"), f"{MAT}: cannot be opened: not an HDF5"),
    (lambda folder: (folder / MAT).write_bytes(b""), "not an HDF5"),
    (cut(MAT, 0.6), f"{MAT}: cannot be opened: .*truncated"),
    (unreadable_chunk("depths", 4), "depths, frame 4: unreadable"),
    (unreadable_chunk("images", 2), "images, frame 2: unreadable"),
    *((without(name), f"no dataset {name};") for name in ("images", "labels", "rawDepths", "depths")),
    (replace("images", lambda old: old[:, 0]), r"images has shape \(6, 640, 480\); allowed: \(frames, 3, 640, 480\)"),
    (replace("images", lambda old: old.transpose(0, 1, 3, 2)), r"images has shape \(6, 3, 480, 640\)"),
    (replace("labels", lambda old: old[:, :320]), "labels has shape"),
    (replace("rawDepths", lambda old: old[:, :, None]), "rawDepths has shape"),
    (replace("depths", lambda old: old.transpose(0, 2, 1)), "depths has shape"),
    (replace("images", lambda old: old.astype(np.uint16)), "images holds uint16; allowed: uint8"),
    (replace("labels", lambda old: old.astype(np.uint8)), "labels holds uint8; allowed: uint16"),
    (replace("rawDepths", lambda old: (old * 1000).astype(np.uint16)), "rawDepths holds uint16; allowed: float32"),
    (replace("depths", lambda old: old.astype(np.float64)), "depths holds float64; allowed: float32"),
    (empty("images"), r"images is empty, without a shape; allowed: \(frames, 3, 640, 480\)"),
    (empty("depths"), r"depths is empty, without a shape; allowed: \(frames, 640, 480\)"),
    (times("labels"), "labels: unreadable: No NumPy equivalent"),
    (replace("images", lambda old: old[:5]), "different numbers of frames: .*'images': 5"),
    (replace("rawDepths", lambda old: old[:4]), "different numbers of frames: .*'rawDepths': 4"),
    (pixel("labels", (1, 10, 20), 895), r"labels, frame 2, row 20, column 10: 895; allowed: 0\.\.894"),
    (pixel("depths", (0, 0, 479), np.nan), "depths, frame 1, row 479, column 0: nan; allowed: metres, finite"),
    (pixel("depths", (5, 639, 0), np.inf), "depths, frame 6, row 0, column 639: inf"),
    (pixel("rawDepths", (2, 3, 4), -0.5), r"rawDepths, frame 3, row 4, column 3: -0\.5"),
    (splits(trainNdxs=[0, 1]), r"trainNdxs has frame 0; allowed: whole numbers 1\.\.6"),
    (splits(testNdxs=[7]), "testNdxs has frame 7"),
    (splits(testNdxs=[2.5]), r"testNdxs has frame 2\.5"),
    (splits(trainNdxs=[1, 2, 2]), "trainNdxs has frame 2 more than once"),
    (splits(trainNdxs=[1, 3]), "frame 3 is in both"),
    (splits(testNdxs=[]), "testNdxs is empty"),
    (empty_splits, "splits.mat: trainNdxs is empty"),
    (splits(testNdxs=None), "no variable testNdxs"),
    (splits(testNdxs="three"), "testNdxs does not hold plain numbers"),
    (lambda folder: (folder / "splits.mat").write_text("not MATLAB " * 40), "splits.mat: not a MATLAB file"),
    *((cut("splits.mat", keep), "splits.mat: (not a MATLAB file|no variable)") for keep in (0, 0.2, 0.5, 0.9)),
    (mapping(np.ones(40)), "classMapping40.mat: mapClass has 40 entries"),
    (mapping(np.r_[np.ones(893), 41]), r"classMapping40.mat: mapClass, entry 894: 41\.0; allowed: whole numbers 1\.\.40"),
    (mapping(np.zeros(894)), "classMapping40.mat: mapClass, entry 1: 0"),
    (lambda folder: savemat(folder / "classMapping40.mat", {"other": 1}), "classMapping40.mat: no variable mapClass"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message[:40] for _, message in DAMAGES])
def test_damage_is_an_input_error_of_one_line(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        check(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_and_a_missing_frame_are_input_errors(small_nyu: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        check(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match=r"photo\.jpg: a file, not a folder; needed: "):
        check(tmp_path / "photo.jpg")
    with NyuFolder.open(small_nyu) as nyu:
        for number in (0, 7):
            with pytest.raises(InputError, match=f"no frame {number}; allowed: 1..6"):
                nyu.read(number)


def test_the_official_splits_are_795_and_654(shared: Path, tmp_path: Path) -> None:
    for name in ("splits.mat", "classMapping40.mat"):
        shutil.copy(shared / "nyuv2" / name, tmp_path)
    with h5py.File(tmp_path / MAT, "w") as mat:  # chunks never written take no room
        mat.create_dataset("images", (1449, 3, 640, 480), "u1", chunks=(1, 3, 640, 480))
        for name, dtype in {"labels": "u2", "depths": "f4", "rawDepths": "f4"}.items():
            mat.create_dataset(name, (1449, 640, 480), dtype, chunks=(1, 640, 480))
    with NyuFolder.open(tmp_path) as nyu:
        assert (len(nyu.train), len(nyu.test)) == (795, 654)
        assert sorted(nyu.train + nyu.test) == list(range(1, 1450))
        assert (nyu.read(1449).labels == VOID).all()


def test_real_frames_come_back_as_they_were(shared: Path, tmp_path: Path) -> None:
    source = shared / "nyuv2"
    shutil.copy(source / "classMapping40.mat", tmp_path)
    command = [sys.executable, str(source / "build_mat.py"), "--out", str(tmp_path), "--train", "3", "--test", "2"]
    subprocess.run(command, check=True, capture_output=True)
    official = loadmat(source / "splits.mat")
    chosen = sorted([*official["trainNdxs"].ravel()[:3], *official["testNdxs"].ravel()[:2]])
    with NyuFolder.open(tmp_path) as nyu:
        assert (len(nyu.train), len(nyu.test)) == (3, 2)
        for number, original in enumerate((int(n) for n in chosen), start=1):
            frame = nyu.read(number)
            rgb, depth, labels = (
                np.asarray(Image.open(source / kind / f"{original:04d}.{suffix}"))
                for kind, suffix in (("rgb", "jpg"), ("depth", "png"), ("labels40", "png"))
            )
            np.testing.assert_array_equal(frame.image, rgb)
            np.testing.assert_array_equal(frame.filled_depth, (depth.astype(np.float32) + 0.5) / 25.5)
            np.testing.assert_array_equal(frame.labels, np.where(labels == 0, VOID, labels.astype(int) - 1))
