"""The reader of NYU Depth v2's own folder: nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat.

Not here: the memory-mapped copy that training reads from (store.py).
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from jointseg.data.files import is_file_to_read, is_folder, no_folder
from jointseg.data.frame import FRAME_HEIGHT, FRAME_WIDTH, Frame, valid_depth
from jointseg.data.scenes import read_scene_types
from jointseg.errors import InputError, one_line
from jointseg.labels import NUM_NYU_CLASSES, class_table

FRAMES_FILE = "nyu_depth_v2_labeled.mat"
SPLITS_FILE = "splits.mat"
MAPPING_FILE = "classMapping40.mat"
FILES = FRAMES_FILE, SPLITS_FILE, MAPPING_FILE
_NYU_MAP_SHA256 = "9c75cdc1ff39748751966fe8d8493b1d2ca3acda9ec861b2f70f52221d65a7bd"  # of mapClass, 894 bytes

# MATLAB stores columns first: a frame as h5py sees it is the transpose of the picture.
_LAYOUT: dict[str, tuple[tuple[int, ...], str]] = {
    "images": ((3, FRAME_WIDTH, FRAME_HEIGHT), "uint8"),
    "labels": ((FRAME_WIDTH, FRAME_HEIGHT), "uint16"),
    "rawDepths": ((FRAME_WIDTH, FRAME_HEIGHT), "float32"),
    "depths": ((FRAME_WIDTH, FRAME_HEIGHT), "float32"),
}
_LARGEST_CHUNK_CACHE = 256 * 2**20  # bytes, for each dataset
# What a damaged file makes h5py and scipy raise; scipy's reader runs into variables it never set.
_H5PY_ERRORS = (OSError, RuntimeError, KeyError, ValueError)
_SCIPY_ERRORS = (
    OSError, MatReadError, zlib.error, struct.error, ValueError, TypeError, LookupError, ArithmeticError,
    AttributeError, NameError, NotImplementedError, MemoryError,
)  # fmt: skip


class NyuFolder:
    """An open NYU folder: which frames there are, and any one of them; pixels stay on disk until asked for."""

    def __init__(self, folder: Path, mat: h5py.File) -> None:
        self._mat = mat
        self.path = folder
        self._datasets = _open_datasets(folder / FRAMES_FILE, mat)
        self.num_frames = len(self._datasets["images"])
        self._table = _read_mapping(folder / MAPPING_FILE)
        self.real = hashlib.sha256((self._table[1:] + 1).tobytes()).hexdigest() == _NYU_MAP_SHA256
        """Whether classes are mapped by NYU's own classMapping40.mat, as only its own frames are."""
        self.train, self.test = _read_splits(folder / SPLITS_FILE, self.num_frames)
        self.scene_types = read_scene_types(mat, self.num_frames)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder and check all but the pixels.

        Raises:
            InputError: a file is missing or damaged or may not be read, a dataset is missing or not in NYU's layout, or the
                splits or the class mapping are not what they should be.
        """
        for name in FILES:
            if not is_file_to_read(folder / name):
                problem = f"no {name} in it" if is_folder(folder) else no_folder(folder)
                raise InputError(f"{folder}: {problem}; needed: {FRAMES_FILE}, {SPLITS_FILE} and {MAPPING_FILE}")
        path = folder / FRAMES_FILE
        try:
            mat = h5py.File(path, "r")
        except OSError as error:
            problem = one_line(error) if error.errno or h5py.is_hdf5(path) else "not an HDF5 (MATLAB 7.3) file"
            raise InputError(f"{path}: cannot be opened: {problem}") from None
        try:
            return cls(folder, mat)
        except BaseException:
            mat.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._mat.close()

    def read(self, number: int) -> Frame:
        """The frame with this 1-based number, its labels mapped to 0..39 and VOID.

        Raises:
            InputError: there is no such frame, it cannot be read, a label is above 894, or a depth is not finite or
                below 0; the message says which frame and pixel.
        """
        if not 1 <= number <= self.num_frames:
            raise InputError(f"{self.path / FRAMES_FILE}: no frame {number}; allowed: 1..{self.num_frames}")
        labels = self._pixels("labels", number)
        if labels.max() > NUM_NYU_CLASSES:
            raise self._wrong_pixel("labels", number, labels, labels > NUM_NYU_CLASSES, f"0..{NUM_NYU_CLASSES}")
        return Frame(
            number=number,
            image=self._pixels("images", number),
            labels=self._table[labels],
            raw_depth=self._depth("rawDepths", number),
            filled_depth=self._depth("depths", number),
        )

    def _depth(self, name: str, number: int) -> NDArray[Any]:
        depth = self._pixels(name, number)
        known = valid_depth(depth)
        if not known.all():
            wrong = ~(known | (depth == 0))
            if wrong.any():
                raise self._wrong_pixel(name, number, depth, wrong, "metres, finite, 0 = missing")
        return depth

    def _pixels(self, name: str, number: int) -> NDArray[Any]:
        try:
            stored: NDArray[Any] = self._datasets[name][number - 1]
        except _H5PY_ERRORS as error:
            raise InputError(f"{self.path / FRAMES_FILE}: {name}, frame {number}: unreadable: {one_line(error)}") from None
        return np.ascontiguousarray(stored.T)

    def _wrong_pixel(self, name: str, number: int, values: NDArray[Any], wrong: NDArray[np.bool_], allowed: str) -> InputError:
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        where = f"{self.path / FRAMES_FILE}: {name}, frame {number}, row {row}, column {column}"
        count = int(wrong.sum())
        others = f" (and {count - 1} more pixels of this frame)" if count > 1 else ""
        return InputError(f"{where}: {values[row, column].item()}; allowed: {allowed}{others}")


def _open_datasets(path: Path, mat: h5py.File) -> dict[str, h5py.Dataset]:
    """The four datasets, each in NYU's layout, and all of as many frames."""
    datasets: dict[str, h5py.Dataset] = {}
    for name, (frame_shape, dtype) in _LAYOUT.items():
        try:
            dataset = mat.get(name)
            shape, kind = (dataset.shape, dataset.dtype) if isinstance(dataset, h5py.Dataset) else (None, None)
        except (*_H5PY_ERRORS, TypeError) as error:  # TypeError: of kinds that numpy has not
            raise InputError(f"{path}: {name}: unreadable: {one_line(error)}") from None
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"{path}: no dataset {name}; needed: {', '.join(_LAYOUT)}")
        if shape is None or len(shape) != len(frame_shape) + 1 or shape[1:] != frame_shape:
            allowed = ", ".join(map(str, ("frames", *frame_shape)))
            has = "is empty, without a shape" if shape is None else f"has shape {shape}"
            raise InputError(f"{path}: {name} {has}; allowed: ({allowed}), as MATLAB stores it")
        if kind != dtype:
            raise InputError(f"{path}: {name} holds {kind}; allowed: {dtype}")
        dataset = None  # closed, as one that is open keeps its cache
        datasets[name] = _with_row_of_chunks_cached(mat, name)
    counts = {name: len(dataset) for name, dataset in datasets.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{path}: the datasets hold different numbers of frames: {counts}")
    if not counts["images"]:
        raise InputError(f"{path}: holds no frames")
    return datasets


def _with_row_of_chunks_cached(mat: h5py.File, name: str) -> h5py.Dataset:
    """Open a dataset so that frames read in order unpack each chunk once; MATLAB may pack dozens of frames into one."""
    dataset = mat[name]
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    if dataset.chunks is not None and dataset.chunks[0] > 1:
        tiles = [-(-size // chunk) for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)]
        row = math.prod(tiles) * math.prod(dataset.chunks) * dataset.dtype.itemsize
        access.set_chunk_cache(100 * math.prod(tiles) + 1, min(row, _LARGEST_CHUNK_CACHE), 1.0)
    del dataset
    return h5py.Dataset(h5py.h5d.open(mat.id, name.encode(), access))


def _read_mapping(path: Path) -> NDArray[np.uint8]:
    try:
        return class_table(_read_small_mat(path, ["mapClass"])[0])
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _read_splits(path: Path, num_frames: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The 1-based numbers of the train and the test frames, ascending, with no frame twice."""
    names = ["trainNdxs", "testNdxs"]
    splits: list[tuple[int, ...]] = []
    for name, given in zip(names, _read_small_mat(path, names), strict=True):
        values = given.ravel()
        if not values.size:
            raise InputError(f"{path}: {name} is empty")
        wrong = values[~np.isin(values, np.arange(1, num_frames + 1))]
        if wrong.size:
            raise InputError(f"{path}: {name} has frame {wrong[0].item()}; allowed: whole numbers 1..{num_frames}")
        numbers, counts = np.unique(values.astype(np.int64), return_counts=True)
        if counts.max() > 1:
            raise InputError(f"{path}: {name} has frame {numbers[counts.argmax()]} more than once")
        splits.append(tuple(numbers.tolist()))
    train, test = splits
    both = sorted({*train} & {*test})
    if both:
        raise InputError(f"{path}: frame {both[0]} is in both trainNdxs and testNdxs ({len(both)} such)")
    return train, test


def _read_small_mat(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """Named numeric variables of a small .mat file, of MATLAB 5 or 7.3."""
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as mat:
                sets = {name: mat[name] for name in names if isinstance(mat.get(name), h5py.Dataset)}
                found = {name: np.empty(0) if own.shape is None else np.asarray(own) for name, own in sets.items()}
        else:
            found = loadmat(path, appendmat=False, variable_names=names)
    except _SCIPY_ERRORS as error:
        raise InputError(f"{path}: not a MATLAB file that can be read: {one_line(error)}") from None
    for name in names:
        if name not in found:
            raise InputError(f"{path}: no variable {name}; needed: {', '.join(names)}")
        if not isinstance(found[name], np.ndarray) or found[name].dtype.kind not in "uif":
            raise InputError(f"{path}: {name} does not hold plain numbers")
    return [found[name] for name in names]
