"""The prepared store: a folder of frames copied once into plain .npy arrays that many processes map at the same time.

Not here: how such folders are read (source.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from jointseg.data.files import is_file_to_read, unreadable
from jointseg.data.frame import FRAME_HEIGHT, FRAME_WIDTH, Frame
from jointseg.data.source import FolderReport, FrameSource, FrameTally, Progress, open_source
from jointseg.errors import InputError, one_line
from jointseg.labels import NUM_CLASSES, VOID
from jointseg.whole import appearing_whole, check_space

FORMAT = 1
"""Version of the layout; raised when a store written before could be misread."""

INDEX_FILE = "store.json"
# The arrays, which are also the fields of a Frame: the shape of one frame, and what it holds.
_ARRAYS: dict[str, tuple[tuple[int, ...], str]] = {
    "image": ((FRAME_HEIGHT, FRAME_WIDTH, 3), "|u1"),
    "labels": ((FRAME_HEIGHT, FRAME_WIDTH), "|u1"),
    "raw_depth": ((FRAME_HEIGHT, FRAME_WIDTH), "<f4"),
    "filled_depth": ((FRAME_HEIGHT, FRAME_WIDTH), "<f4"),
}
_BYTES_PER_FRAME = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in _ARRAYS.values())
_BYTES_BESIDE_FRAMES = 2**20  # headers and store.json, with room to spare


# What numpy's reader of .npy files raises of damaged ones.
_NPY_ERRORS = (ValueError, EOFError, SyntaxError, TokenError, OverflowError)

Numbers = Annotated[tuple[int, ...], Field(min_length=1)]


@dataclasses.dataclass(frozen=True)
class _Index:
    """What store.json holds beside its format; see Store."""

    source: str
    digest: str
    report: FolderReport
    train: Numbers
    test: Numbers
    scene_types: tuple[str, ...] | None = None  # a store made before there were any has none


class Store:
    """A prepared store, open for reading. Pickles as its path, so that each process maps the files itself."""

    def __init__(self, path: Path, index: _Index, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.path = path
        self.source = index.source
        """Name of the folder it was made from."""
        self.train = index.train
        """1-based numbers of the train frames, ascending."""
        self.test = index.test
        """1-based numbers of the test frames, ascending."""
        self.digest = index.digest
        """SHA-256 of all frames and both splits, in hexadecimal."""
        self.info = index.report
        """What the frames hold."""
        self.scene_types = index.scene_types
        """The scene type of each frame, in the order of their numbers; None where they are not known."""
        self._arrays = arrays

    @property
    def num_frames(self) -> int:
        """Frames in the store, train and test."""
        return self.info.num_frames

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a store and check its files' kinds and sizes; no pixel is read.

        Raises:
            InputError: it is no store, of another format, or one of its files is missing or damaged or may not be read.
        """
        index = _read_index(path / INDEX_FILE)
        return cls(path, index, {name: _map(path, name, index.report.num_frames) for name in _ARRAYS})

    def __reduce__(self) -> tuple[Callable[[Path], Store], tuple[Path]]:
        return type(self).open, (self.path,)

    def frame(self, number: int) -> Frame:
        """The frame with this 1-based number, its arrays copied from disk.

        Raises:
            InputError: there is no such frame, or a label in it is none.
        """
        frame = self._as_stored(number)
        self._refuse_other_labels(frame.labels, number)
        return frame

    def labels(self, number: int) -> NDArray[np.uint8]:
        """The labels of a frame alone, (480, 640), 0..39 or VOID, copied from disk.

        Raises:
            InputError: there is no such frame, or a label in it is none.
        """
        labels = np.array(self._arrays["labels"][self._row(number)])
        self._refuse_other_labels(labels, number)
        return labels

    def _as_stored(self, number: int) -> Frame:
        row = self._row(number)
        return Frame(number=number, **{name: np.array(array[row]) for name, array in self._arrays.items()})

    def _refuse_other_labels(self, labels: NDArray[np.uint8], number: int) -> None:
        from_one = labels + np.uint8(1)  # VOID becomes 0
        if from_one.max() > NUM_CLASSES:
            wrong = labels[from_one > NUM_CLASSES][0]
            raise InputError(
                f"{self.path / 'labels.npy'}: frame {number} has a label {wrong}; allowed: 0..{NUM_CLASSES - 1} or {VOID}; "
                "see what jointseg data check says of the store"
            )

    def _row(self, number: int) -> int:
        if not 1 <= number <= self.num_frames:
            raise InputError(f"{self.path}: no frame {number}; allowed: 1..{self.num_frames}")
        return number - 1

    def verify(self, *, progress: Progress | None = None) -> None:
        """Read every frame again and compare with the digest.

        Raises:
            InputError: the contents are not those that were written.
        """
        digest = hashlib.sha256()
        for number in range(1, self.num_frames + 1):
            _add_frame(digest, self._as_stored(number))
            if progress is not None:
                progress(number, self.num_frames)
        _add_splits(digest, self.train, self.test)
        if digest.hexdigest() != self.digest:
            raise InputError(f"{self.path}: its contents were changed after it was made: their digest is not {self.digest}")


def is_store(path: Path) -> bool:
    """Whether there is a prepared store at `path`; InputError where it may not be read."""
    return is_file_to_read(path / INDEX_FILE)


def prepare(folder: Path, store: Path, *, progress: Progress | None = None) -> Store:
    """Copy a folder of frames into a new store in one pass that also checks every pixel.

    The store appears whole, by one rename, or not at all; what an interrupted attempt left is cleared by the next.

    Raises:
        InputError: the folder is wrong (see source.open_source), the store exists already or is being made by another
            process, or the disk has too little room.
    """
    with open_source(folder) as source:
        check_space(store, needed=source.num_frames * _BYTES_PER_FRAME + _BYTES_BESIDE_FRAMES)
        with appearing_whole(store) as partial:
            index = _write_arrays(source, partial, progress)
            described = {"format": FORMAT, **dataclasses.asdict(index)}
            (partial / INDEX_FILE).write_text(json.dumps(described, indent=1) + "\n")
    return Store.open(store)


def _write_arrays(source: FrameSource, folder: Path, progress: Progress | None) -> _Index:
    """Append frame after frame to each array (a writable map would count as memory in use); return the index."""
    tally, digest = FrameTally(), hashlib.sha256()
    with contextlib.ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name, (shape, dtype) in _ARRAYS.items():
            files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
            header = {"descr": dtype, "fortran_order": False, "shape": (source.num_frames, *shape)}
            np.lib.format.write_array_header_1_0(files[name], header)
        for number in range(1, source.num_frames + 1):
            frame = source.read(number)
            tally.add(frame)
            _add_frame(digest, frame)
            for name, file in files.items():
                file.write(memoryview(getattr(frame, name)))
            if progress is not None:
                progress(number, source.num_frames)
    _add_splits(digest, source.train, source.test)
    name = os.fsencode(source.path.absolute().name).decode(errors="replace")  # a name need not be UTF-8; JSON must be
    return _Index(name, digest.hexdigest(), tally.report(source), source.train, source.test, source.scene_types)


def _add_frame(digest: hashlib._Hash, frame: Frame) -> None:
    for name in _ARRAYS:
        digest.update(memoryview(getattr(frame, name)))


def _add_splits(digest: hashlib._Hash, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    digest.update(json.dumps({"train": train, "test": test}).encode())


def _read_index(path: Path) -> _Index:
    if not is_file_to_read(path):
        raise InputError(f"{path.parent}: not a prepared store: no {INDEX_FILE} in it")
    try:
        text = path.read_text()
        found = json.loads(text)
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    written = found.get("format") if isinstance(found, dict) else None
    if written != FORMAT:
        raise InputError(f"{path}: format is {written!r}; allowed: {FORMAT}; prepare the store again")
    try:
        index = TypeAdapter(_Index).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: damaged: {_first_problem(error)}; prepare the store again") from None
    if index.scene_types is not None and len(index.scene_types) != index.report.num_frames:
        problem = f"scene_types: {len(index.scene_types)} for {index.report.num_frames} frames"
        raise InputError(f"{path}: damaged: {problem}; prepare the store again")
    everyone, num_frames = index.train + index.test, index.report.num_frames
    if len(set(everyone)) < len(everyone) or not 1 <= min(everyone) <= max(everyone) <= num_frames:
        raise InputError(
            f"{path}: damaged: train and test are not of frames 1..{num_frames}, none twice; prepare the store again"
        )
    return index


def _first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in our words."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{where} is missing"
    allowed = first["msg"].removeprefix("Input should be ").removeprefix("a valid ").removeprefix("Tuple should have ")
    return f"{where} is {first['input']!r:.60}; allowed: {allowed}"


def _map(folder: Path, name: str, num_frames: int) -> NDArray[Any]:
    """One array, mapped read-only, of exactly the kind, shape and file size it should have."""
    path = folder / f"{name}.npy"
    shape, dtype = _ARRAYS[name]
    if not is_file_to_read(path):
        raise InputError(f"{path}: missing; prepare the store again")
    size = path.stat().st_size
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise unreadable(path, error) from None
    except _NPY_ERRORS as error:
        problem = one_line(error)
        raise InputError(f"{path}: cut short or damaged, {size} bytes: {problem}; prepare the store again") from None
    if array.shape != (num_frames, *shape) or array.dtype != dtype:
        raise InputError(f"{path}: holds {array.dtype} {array.shape}; allowed: {np.dtype(dtype)} {(num_frames, *shape)}")
    if size != array.offset + array.nbytes:
        raise InputError(f"{path}: is {size} bytes; allowed: {array.offset + array.nbytes}; prepare the store again")
    return array
