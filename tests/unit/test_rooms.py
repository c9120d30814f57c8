"""Laws of the synthetic rooms: what a frame is like, and what the files hold. Not here: the reader of such files."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from jointseg.data.nyu import NyuFolder
from jointseg.data.rooms import MOST_ROOMS, Room, _write_splits, render_room, train_numbers, write_rooms
from jointseg.data.synthetic.fine_classes import FINE_NAMES, MAP_CLASS, fine_label
from jointseg.data.synthetic.furniture import FURNITURE
from jointseg.data.synthetic.looks import LOOKS
from jointseg.data.synthetic.ray_cast import Camera, Solid, cast, pixel_rays
from jointseg.data.synthetic.recipes import RECIPES
from jointseg.data.synthetic.sensor import projector_shadow, widen
from jointseg.data.synthetic.textures import FRONT_TEXTURES, TEXTURES
from jointseg.errors import InputError
from jointseg.labels import CLASS_NAMES, VOID, class_table


@pytest.fixture(scope="module")
def rooms() -> list[Room]:
    return [render_room(0, index) for index in range(24)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "nyu"
    write_rooms(out, num_train=2, num_test=1, seed=4)
    return out


def test_a_room_depends_on_its_seed_and_number_alone(rooms: list[Room]) -> None:
    again = render_room(0, 5)
    for name in ("image", "labels", "instances", "depth", "raw_depth"):
        assert np.array_equal(getattr(again, name), getattr(rooms[5], name))
    assert not np.array_equal(render_room(1, 5).depth, again.depth)


def test_a_room_has_the_shapes_and_types_it_says(rooms: list[Room]) -> None:
    room = rooms[0]
    assert (room.image.shape, room.image.dtype) == ((480, 640, 3), np.uint8)
    for name, dtype in (("labels", "u2"), ("instances", "u1"), ("depth", "f4"), ("raw_depth", "f4")):
        assert (getattr(room, name).shape, getattr(room, name).dtype) == ((480, 640), np.dtype(dtype))
    assert room.scene_type in RECIPES


def test_24_rooms_show_most_classes_and_wall_most_of_all(rooms: list[Room]) -> None:
    table = class_table(MAP_CLASS)
    counts = sum(np.bincount(table[room.labels].ravel(), minlength=256) for room in rooms)
    assert (counts[:40] > 0).sum() >= 30
    assert CLASS_NAMES[int(counts[:40].argmax())] == "wall"
    assert 0.05 < counts[VOID] / counts.sum() < 0.17


def test_every_class_has_something_that_shows_it() -> None:
    labels = {name for thing in FURNITURE.values() for name in thing.labels}
    labels |= {block.label for thing in FURNITURE.values() for block in thing.blocks}
    classes = {CLASS_NAMES[MAP_CLASS[fine_label(name) - 1] - 1] for name in labels - {""}} | {"wall", "floor", "ceiling"}
    assert classes == set(CLASS_NAMES)


def test_tables_name_only_what_exists() -> None:
    for thing in FURNITURE.values():
        assert {block.slot for block in thing.blocks} <= set(thing.looks)
        assert {look for looks in thing.looks.values() for look in looks} <= set(LOOKS)
    for recipe in RECIPES.values():
        assert {step.what for step in recipe.steps} | {step.of for step in recipe.steps} <= {*FURNITURE, ""}
        assert {*recipe.walls, *recipe.floors} <= set(LOOKS)
    assert {look.texture for look in LOOKS.values()} <= {*TEXTURES, *FRONT_TEXTURES}


def test_fine_labels_are_not_the_classes_themselves() -> None:
    assert (MAP_CLASS[:40] == np.arange(1, 41)).sum() < 5
    assert len(set(FINE_NAMES)) == len(FINE_NAMES) == 894


def test_instances_number_labelled_things_from_one(rooms: list[Room]) -> None:
    for room in rooms[:6]:
        assert np.array_equal(room.labels == 0, room.instances == 0)


def test_the_border_is_white_and_void_and_unmeasured(rooms: list[Room]) -> None:
    for room in rooms:
        for turned in (0, 1, 2, 3):
            assert (np.rot90(room.image, turned)[:5] == 255).all()
            assert (np.rot90(room.labels, turned)[:7] == 0).all()
            assert (np.rot90(room.raw_depth, turned)[:4] == 0).all()


def test_a_box_is_seen_at_the_depth_of_its_front() -> None:
    camera = Camera.looking(np.array([2, 1, 1.2], np.float32), yaw=0.0, pitch=0.0, roll=0.0)
    box = Solid(np.array([2, 3, 1.2], np.float32), np.full(3, 0.5, np.float32), np.eye(3, dtype=np.float32))
    hits = cast([box], camera, room=np.array([4, 6, 2.5], np.float32))
    centre = (slice(230, 270), slice(310, 340))
    assert hits.depth[centre] == pytest.approx(1.5)
    assert (hits.part[centre] == 6).all()
    assert hits.depth[250, 0] > 1.5  # past the box


def test_wall_pixels_lie_on_at_most_four_planes(rooms: list[Room]) -> None:
    columns, rows = pixel_rays()
    depth = rooms[5].depth.astype(np.float64)
    points = np.stack([columns * depth, rows[:, None] * depth, depth], -1)
    normals = np.cross(points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    left = normals[~widen(rooms[5].labels != fine_label("wall"), 3)[1:-1, 1:-1]]
    num_wall = len(left)
    assert num_wall > 10_000
    for _ in range(4):
        left = left[np.abs(left @ np.median(left[:200], axis=0)) < 0.99] if len(left) else left
    assert len(left) < 0.01 * num_wall


def test_depth_has_no_holes_and_stays_within_a_room(rooms: list[Room]) -> None:
    depths = np.stack([room.depth for room in rooms])
    assert np.isfinite(depths).all()
    assert depths.min() > 0.4
    assert depths.max() < 11
    assert 1.8 < np.median(depths) < 3.5


def test_measured_depth_is_the_true_one_within_a_step_that_grows_with_its_square(rooms: list[Room]) -> None:
    for room in rooms:
        measured = room.raw_depth > 0
        error = np.abs(room.raw_depth - room.depth)[measured] / room.depth[measured] ** 2
        assert np.percentile(error, 99) < 0.008
        assert 0.0005 < error.mean() < 0.003


def test_holes_lie_where_depth_jumps_or_surfaces_shine(rooms: list[Room]) -> None:
    share = {True: [0, 0], False: [0, 0]}
    shiny = [fine_label(name) for name in ("window", "mirror", "television")]
    for room in rooms:
        inside = (slice(20, -20), slice(20, -20))
        missing = (room.raw_depth == 0)[inside]
        jump = np.abs(np.diff(room.depth, axis=1, prepend=room.depth[:, :1])) > 0.1 * room.depth
        cause = (widen(jump, 1) | np.isin(room.labels, shiny) | projector_shadow(room.depth))[inside]
        for where in (True, False):
            share[where][0] += int(missing[cause == where].sum())
            share[where][1] += int((cause == where).sum())
    assert share[True][0] / share[True][1] > 0.6
    assert share[False][0] / share[False][1] < 0.1


def test_the_projector_shadow_is_a_band_on_one_side_as_wide_as_the_disparity() -> None:
    depth = np.full((480, 640), 3.0, np.float32)
    depth[:, 300:400] = 1.5
    shadow = projector_shadow(depth)
    width = 518.86 * 0.075 * (1 / 1.5 - 1 / 3.0)
    assert shadow.sum(1) == pytest.approx(width, abs=1.5)
    assert shadow[:, 400:416].any()
    assert not shadow[:, :400].any()


def test_arrays_are_on_disk_as_nyu_has_them(written: Path) -> None:
    with h5py.File(written / "nyu_depth_v2_labeled.mat") as mat:
        layout = {name: (mat[name].shape, mat[name].dtype.str) for name in mat if name != "#refs#"}
        assert layout == {
            "images": ((3, 3, 640, 480), "|u1"),
            "depths": ((3, 640, 480), "<f4"),
            "rawDepths": ((3, 640, 480), "<f4"),
            "labels": ((3, 640, 480), "<u2"),
            "instances": ((3, 640, 480), "|u1"),
            "accelData": ((4, 3), "<f4"),
            "names": ((1, 894), "|O"),
            **dict.fromkeys(("scenes", "sceneTypes", "rawRgbFilenames", "rawDepthFilenames"), ((1, 3), "|O")),
        }
        room = render_room(4, 2)
        assert np.array_equal(mat["images"][2].transpose(2, 1, 0), room.image)
        assert np.array_equal(mat["labels"][2].T, room.labels)
        assert np.array_equal(mat["instances"][2].T, room.instances)
        assert np.array_equal(mat["depths"][2].T, room.depth)
        assert np.array_equal(mat["rawDepths"][2].T, room.raw_depth)
        assert mat["images"].chunks == (1, 3, 640, 480)
        assert mat["images"].compression is None


def test_texts_are_references_to_character_codes(written: Path) -> None:
    with h5py.File(written / "nyu_depth_v2_labeled.mat") as mat:

        def texts(name: str) -> list[str]:
            return ["".join(chr(c) for c in mat[reference][:, 0]) for reference in mat[name][0]]

        assert tuple(texts("names")) == FINE_NAMES
        assert texts("sceneTypes") == [render_room(4, i).scene_type for i in range(3)]
        assert all(scene.startswith(kind) for scene, kind in zip(texts("scenes"), texts("sceneTypes"), strict=True))
        assert texts("rawDepthFilenames")[0].endswith("/d-1.pgm")


def test_the_frames_begin_with_a_matlab_header(written: Path) -> None:
    header = (written / "nyu_depth_v2_labeled.mat").read_bytes()[:128]
    assert header.startswith(b"MATLAB 7.3 MAT-file")
    assert header[124:] == b"\x00\x02IM"


def test_splits_number_every_frame_once_from_one(written: Path) -> None:
    splits = loadmat(written / "splits.mat")
    train, test = splits["trainNdxs"], splits["testNdxs"]
    assert (train.shape, test.shape, train.dtype) == ((2, 1), (1, 1), np.uint16)
    assert sorted([*train.ravel(), *test.ravel()]) == [1, 2, 3]
    assert tuple(train.ravel()) == train_numbers(2, 1, 4)


def test_the_mapping_is_stored_as_the_real_one_is(written: Path, shared: Path) -> None:
    ours, real = loadmat(written / "classMapping40.mat"), loadmat(shared / "nyuv2" / "classMapping40.mat")
    for name in ("mapClass", "className", "allClassName"):
        assert (ours[name].shape, ours[name].dtype) == (real[name].shape, real[name].dtype)
    assert [str(c[0]) for c in ours["className"][0]] == [str(c[0]) for c in real["className"][0]]
    assert [str(c[0]) for c in ours["allClassName"][0]] == list(FINE_NAMES)


def test_a_killed_write_is_no_folder_and_is_cleared_by_the_next(tmp_path: Path) -> None:
    def killed(done: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    out, sizes = tmp_path / "nyu", {"num_train": 1, "num_test": 1, "seed": 0}
    attempt = multiprocessing.get_context("fork").Process(target=write_rooms, args=(out,), kwargs={**sizes, "progress": killed})
    attempt.start()
    attempt.join()
    assert attempt.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert list(tmp_path.iterdir()), "the attempt was killed before it wrote anything"
    write_rooms(out, **sizes)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, num_processes: int) -> None:
    def interrupt(done: int) -> None:
        assert done == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rooms(tmp_path / "nyu", num_train=2, num_test=2, seed=0, progress=interrupt, num_processes=num_processes)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_frames_and_processes_change_nothing(tmp_path: Path, written: Path) -> None:
    done: list[int] = []
    write_rooms(tmp_path / "nyu", num_train=2, num_test=1, seed=4, progress=done.append, num_processes=2)
    assert done == [1, 2, 3]
    name = "nyu_depth_v2_labeled.mat"
    with h5py.File(tmp_path / "nyu" / name) as ours, h5py.File(written / name) as other:
        assert np.array_equal(ours["images"][:], other["images"][:])


@pytest.mark.parametrize("wrong", [{"num_train": 0}, {"num_test": 0}, {"seed": -1}, {"num_processes": 0}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        write_rooms(tmp_path / "nyu", **{"num_train": 1, "num_test": 1, "seed": 0, **wrong})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("train", "test"), [(65535, 1), (1, 65535)])
def test_more_rooms_than_splits_can_number_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, test: int
) -> None:
    monkeypatch.setattr("jointseg.data.rooms._rendered", None)
    said = rf"^{train} train and {test} test rooms are 65536; allowed together: up to 65535$"
    with pytest.raises(InputError, match=said):
        write_rooms(tmp_path / "nyu", num_train=train, num_test=test, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_last_frame_that_splits_can_number_is_numbered(tmp_path: Path) -> None:
    _write_splits(tmp_path / "splits.mat", MOST_ROOMS - 1, 1, 0)
    splits = loadmat(tmp_path / "splits.mat")
    assert sorted([*splits["trainNdxs"].ravel(), *splits["testNdxs"].ravel()]) == list(range(1, MOST_ROOMS + 1))


def test_rooms_that_the_disk_has_no_room_for_are_refused_before_any_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3 * 4_300_800))
    monkeypatch.setattr("jointseg.data.rooms._rendered", None)
    with pytest.raises(InputError, match=r"nyu: needs 0\.01 GB of disk and 0\.01 GB are free at "):
        write_rooms(tmp_path / "nyu", num_train=2, num_test=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_what_rooms_are_said_to_need_they_take(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class AskedError(Exception):
        pass

    def ask(path: Path, *, needed: int) -> None:
        raise AskedError(needed)

    monkeypatch.setattr("jointseg.data.rooms.check_space", ask)
    with pytest.raises(AskedError) as asked:
        write_rooms(tmp_path / "nyu", num_train=2, num_test=1, seed=4)
    taken = sum(path.stat().st_size for path in written.iterdir())
    assert 0.8 * asked.value.args[0] < taken < asked.value.args[0]


def test_a_folder_that_holds_frames_is_refused_and_kept(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    with pytest.raises(InputError, match=r"exists already and holds classMapping40\.mat"):
        write_rooms(written, num_train=1, num_test=1, seed=0)
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before


def test_an_empty_folder_is_filled_with_what_nyus_reader_opens(tmp_path: Path) -> None:
    (tmp_path / "nyu").mkdir()
    write_rooms(tmp_path / "nyu", num_train=1, num_test=1, seed=0)
    with NyuFolder.open(tmp_path / "nyu") as nyu:
        assert (len(nyu.train), len(nyu.test)) == (1, 1)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nyu").touch()
    with pytest.raises(InputError, match="is a file"):
        write_rooms(tmp_path / "nyu", num_train=1, num_test=1, seed=0)
