"""Synthetic rooms in NYU Depth v2's own layout on disk: nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat.

Not here: what is in a room and how it is drawn (synthetic/), how such files are read (nyu.py).
"""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from jointseg.data.nyu import FRAMES_FILE, MAPPING_FILE, SPLITS_FILE
from jointseg.data.synthetic.fine_classes import FINE_NAMES, MAP_CLASS
from jointseg.data.synthetic.light import picture
from jointseg.data.synthetic.ray_cast import HEIGHT, SHELL, WIDTH, Floats, cast, patches
from jointseg.data.synthetic.room_plan import plan_room, room_kind, shell_label
from jointseg.data.synthetic.sensor import sensed_depth, unlabelled, white_border, widen
from jointseg.errors import InputError
from jointseg.hardware import usable_cpus
from jointseg.labels import CLASS_NAMES
from jointseg.mapped import set_room_aside
from jointseg.whole import appearing_whole, check_space

MAT_HEADER = b"MATLAB 7.3 MAT-file, synthetic rooms in the layout of NYU Depth v2".ljust(124) + b"\x00\x02IM"
USERBLOCK = 512
MOST_ROOMS = int(np.iinfo(np.uint16).max)
"""splits.mat numbers frames in 16 bits, as NYU's own does."""
_BYTES_PER_ROOM = HEIGHT * WIDTH * (3 + 2 + 1 + 4 + 4) + 2**12  # the arrays of a Room, and its texts
_BYTES_BESIDE_ROOMS = 2**20


@dataclass(frozen=True)
class Room:
    """One frame, as NYU Depth v2 has it.

    Attributes:
        image: (480, 640, 3) uint8, RGB; its border is white.
        labels: (480, 640) uint16, fine classes 1..894, 0 = unlabelled.
        instances: (480, 640) uint8, counts the things of each fine class from 1; 0 = unlabelled.
        depth: (480, 640) float32, true z-depth in metres, no holes.
        raw_depth: (480, 640) float32, what the sensor measured, metres, 0 = missing.
        scene_type: NYU's name of the kind of room.
        tilt: roll, yaw, pitch of the camera and its tilt from the level, radians.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint16]
    instances: NDArray[np.uint8]
    depth: Floats
    raw_depth: Floats
    scene_type: str
    tilt: tuple[float, float, float, float]


def render_room(seed: int, index: int) -> Room:
    """The room with this number. The same (seed, index) gives the same room, whatever else is rendered."""
    rng = np.random.default_rng([seed, index])
    kind = room_kind(seed, index)
    plan = plan_room(rng, kind=kind)
    solids = [part.solid for part in plan.parts]
    hits = cast(solids, plan.camera, room=plan.room)
    image = picture(plan, patches(hits, solids, plan.camera, room=plan.room), rng)

    label_of_part = np.array([shell_label(face) for face in range(len(SHELL))] + [part.label for part in plan.parts], np.uint16)
    thing_of_part = np.array([-1 - face for face in range(len(SHELL))] + [part.thing for part in plan.parts], np.int32)
    glossy_of_part = np.array([False] * len(SHELL) + [part.paint.look.glossy for part in plan.parts])
    labels, things = label_of_part[hits.part], thing_of_part[hits.part]
    instances = _count_instances(label_of_part, thing_of_part)[hits.part]

    raw_depth = sensed_depth(hits.depth, glossy=glossy_of_part[hits.part], rng=rng)
    border = white_border(rng)
    void = unlabelled(labels, things, rng) | widen(border, 2)
    labels[void] = 0
    instances[void] = 0
    image[border] = 255
    roll, yaw, pitch = plan.tilt
    tilt = (roll, yaw, pitch, float(np.hypot(roll, pitch)))
    return Room(image, labels, instances, hits.depth, raw_depth, kind, tilt)


def _count_instances(labels: NDArray[np.uint16], things: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Numbers the things of each fine class from 1, part by part; 0 where the part is unlabelled."""
    seen: dict[int, dict[int, int]] = {}
    numbers = np.zeros(len(labels), np.uint8)
    for part, (label, thing) in enumerate(zip(labels.tolist(), things.tolist(), strict=True)):
        of_label = seen.setdefault(label, {})
        numbers[part] = of_label.setdefault(thing, len(of_label) + 1) if label else 0
    return numbers


def processes_to_render() -> int:
    """One for each CPU that may be used, up to 8: what a machine is asked for where nobody says more."""
    return min(usable_cpus(), 8)


def refuse_too_many(num_train: int, num_test: int) -> None:
    """Raise InputError where there would be more than `MOST_ROOMS` rooms."""
    together = num_train + num_test
    if together > MOST_ROOMS:
        raise InputError(f"{num_train} train and {num_test} test rooms are {together}; allowed together: up to {MOST_ROOMS}")


def train_numbers(num_train: int, num_test: int, seed: int) -> tuple[int, ...]:
    """1-based numbers of the frames that `write_rooms` puts in the train split, ascending."""
    numbers = np.random.default_rng([seed, num_train, num_test]).permutation(num_train + num_test) + 1
    return tuple(np.sort(numbers[:num_train]).tolist())


def write_rooms(
    out: Path,
    *,
    num_train: int,
    num_test: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
    num_processes: int = 1,
) -> None:
    """Renders rooms and writes them to `out` as the three files of NYU Depth v2 and its NYUv2-40 task.

    `out` appears whole, by one rename, or not at all; what a killed call left is cleared by the next.
    Frame i is `render_room(seed, i)`; train and test frames are interleaved, drawn by `seed`. A frame takes 4.3 MB.

    Args:
        out: folder to make; one that is empty is taken too.
        num_train: frames of the train split.
        num_test: frames of the test split; with those, `MOST_ROOMS` at most.
        seed: of the rooms and of the split.
        progress: called with the number of frames written so far, after each.
        num_processes: processes that render.

    Raises:
        InputError: a number is out of range, `out` is a file or holds anything, the disk has too little room, or a process
            that renders was killed.
    """
    for name, value, least in (
        ("num_train", num_train, 1),
        ("num_test", num_test, 1),
        ("seed", seed, 0),
        ("num_processes", num_processes, 1),
    ):
        if value < least:
            raise InputError(f"{name} is {value}; allowed: {least} or more")
    refuse_too_many(num_train, num_test)
    num_rooms = num_train + num_test
    check_space(out, needed=_bytes_of(num_rooms))
    with appearing_whole(out) as folder:
        with _rendered(seed, num_rooms, num_processes) as rooms:
            _write_frames(folder / FRAMES_FILE, rooms, num_rooms, progress or (lambda _: None))
        _write_splits(folder / SPLITS_FILE, num_train, num_test, seed)
        _write_mapping(folder / MAPPING_FILE)


def _bytes_of(num_rooms: int) -> int:
    """Of the three files, at most."""
    return num_rooms * _BYTES_PER_ROOM + _BYTES_BESIDE_ROOMS


@contextmanager
def _rendered(seed: int, num_rooms: int, num_processes: int) -> Iterator[Iterator[Room]]:
    """The rooms in order; no process outlives the block, however it ends."""
    if num_processes == 1:
        yield (render_room(seed, index) for index in range(num_rooms))
        return
    pool = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        # Ctrl-C is for this process alone: those that it starts inherit what it blocks. They finish what they have begun.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            begun = deque(pool.submit(render_room, seed, index) for index in range(min(num_processes + 1, num_rooms)))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield _finished(begun, (pool.submit(render_room, seed, index) for index in range(len(begun), num_rooms)))
    except BrokenProcessPool:
        raise InputError(
            f"lost one of the {num_processes} processes that render rooms, as where the machine has too little memory; the "
            "same command begins again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(begun: deque[Future[Room]], more: Iterator[Future[Room]]) -> Iterator[Room]:
    """Rooms in order; one more is begun for each that is finished."""
    while begun:
        room = begun.popleft().result()
        begun.extend(islice(more, 1))
        yield room


def _write_frames(path: Path, rooms: Iterator[Room], num_rooms: int, progress: Callable[[int], None]) -> None:
    """The labelled dataset: HDF5 behind a MATLAB 7.3 header, every array transposed as MATLAB stores it."""
    width_height = (WIDTH, HEIGHT)
    texts: dict[str, list[str]] = {name: [] for name in ("scenes", "sceneTypes", "rawRgbFilenames", "rawDepthFilenames")}
    _begin(path, num_rooms)
    with h5py.File(path, "r+") as mat:
        images = _array(mat, "images", (num_rooms, 3, *width_height), "u1")
        depths = _array(mat, "depths", (num_rooms, *width_height), "f4")
        raw_depths = _array(mat, "rawDepths", (num_rooms, *width_height), "f4")
        labels = _array(mat, "labels", (num_rooms, *width_height), "u2")
        instances = _array(mat, "instances", (num_rooms, *width_height), "u1")
        tilts = mat.create_dataset("accelData", (4, num_rooms), "f4")
        tilts.attrs["MATLAB_class"] = np.bytes_("single")
        for row, room in enumerate(rooms):
            images[row] = room.image.transpose(2, 1, 0)
            depths[row], raw_depths[row] = room.depth.T, room.raw_depth.T
            labels[row], instances[row] = room.labels.T, room.instances.T
            tilts[:, row] = room.tilt
            scene = f"{room.scene_type}_{row + 1:04d}"
            texts["scenes"].append(scene)
            texts["sceneTypes"].append(room.scene_type)
            texts["rawRgbFilenames"].append(f"{scene}/r-{row + 1}.ppm")
            texts["rawDepthFilenames"].append(f"{scene}/d-{row + 1}.pgm")
            progress(row + 1)
        _write_cells(mat, "names", list(FINE_NAMES))
        for name, values in texts.items():
            _write_cells(mat, name, values)
    with path.open("r+b") as file:
        file.write(MAT_HEADER)


def _begin(path: Path, num_rooms: int) -> None:
    """An HDF5 file without anything, with room for all: HDF5 ends the process by a signal where what it holds finds none."""
    empty = io.BytesIO()
    h5py.File(empty, "w", userblock_size=USERBLOCK).close()
    path.write_bytes(empty.getvalue())
    set_room_aside(path, _bytes_of(num_rooms))


def _array(mat: Any, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    dataset = mat.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]))
    dataset.attrs["MATLAB_class"] = np.bytes_({"u1": "uint8", "u2": "uint16", "f4": "single"}[dtype])
    return dataset


def _write_cells(mat: Any, name: str, texts: list[str]) -> None:
    """A MATLAB cell of texts: (1, n) references to (k, 1) character codes."""
    cells = mat.create_dataset(name, (1, len(texts)), h5py.ref_dtype)
    cells.attrs["MATLAB_class"] = np.bytes_("cell")
    for i, text in enumerate(texts):
        codes = mat.create_dataset(f"#refs#/{name}{i}", data=np.array([[ord(c)] for c in text], np.uint16))
        codes.attrs["MATLAB_class"] = np.bytes_("char")
        codes.attrs["MATLAB_int_decode"] = np.int32(2)
        cells[0, i] = codes.ref


def _write_splits(path: Path, num_train: int, num_test: int, seed: int) -> None:
    train = train_numbers(num_train, num_test, seed)
    test = sorted({*range(1, num_train + num_test + 1)} - {*train})
    savemat(path, {"trainNdxs": np.array(train, np.uint16)[:, None], "testNdxs": np.array(test, np.uint16)[:, None]})


def _write_mapping(path: Path) -> None:
    def cells(names: tuple[str, ...]) -> NDArray[np.object_]:
        return np.array([[*names]], object)

    savemat(path, {"mapClass": MAP_CLASS[None], "className": cells(CLASS_NAMES), "allClassName": cells(FINE_NAMES)})
