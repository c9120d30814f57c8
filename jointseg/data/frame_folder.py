"""The reader of frames kept as pictures: one's own, or copies of NYU's as other repositories have them.

    rgb/NAME.jpg or .png     640 × 480, 8 bits a channel
    labels40/NAME.png        8 bits: 0 = unlabelled, 1..40 = the NYUv2-40 classes in their order
    depth/NAME.png           16 bits: millimetres, 0 = missing
    raw_depth/NAME.png       the same before its holes were filled; where there is no such folder, depth/ is both
    train.txt, test.txt      a NAME a line

Not here: how pictures are read (pictures.py), the memory-mapped copy that training reads from (store.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jointseg.data.files import is_file_to_read, is_folder, unreadable
from jointseg.data.frame import FRAME_HEIGHT, FRAME_SIZE, FRAME_WIDTH, Frame
from jointseg.data.pictures import read_classes, read_depth, read_picture
from jointseg.errors import InputError
from jointseg.labels import NUM_CLASSES, VOID

TRAIN_FILE, TEST_FILE = "train.txt", "test.txt"
RGB, LABELS, DEPTH, RAW_DEPTH = "rgb", "labels40", "depth", "raw_depth"
_RGB_KINDS = (".jpg", ".jpeg", ".png")
_LONGEST = 255  # bytes in a file's name
_NYU_TRAIN_SHA256 = "f98fd6217a429fc247917b51644c67fb9e2612d49f36ed1cb58c5fe2adecdeff"  # of NYU's train numbers as JSON

_Value = TypeVar("_Value", bound=np.generic)

_CLASSES = np.full(256, VOID, np.uint8)  # the classes 0..39 of the numbers in the files
_CLASSES[1 : NUM_CLASSES + 1] = np.arange(NUM_CLASSES)


class FrameFolder:
    """A folder of frames as pictures; see the top of this file for what lies in it. Nothing is held open."""

    def __init__(self, folder: Path) -> None:
        """List a folder's frames; no picture is read.

        Raises:
            InputError: a list is missing, empty, not text, or names what is no file's name, a frame twice or one of the other
                list; or a frame has not all its pictures; or a folder may not be read; or the sensor's depth is in `depth_raw`.
        """
        self.path = folder
        train, test = _read_names(folder / TRAIN_FILE), _read_names(folder / TEST_FILE)
        both = sorted({*train} & {*test}, key=_natural)
        if both:
            raise InputError(f"{folder}: frame {both[0]} is in both {TRAIN_FILE} and {TEST_FILE} ({len(both)} such)")
        self.names = tuple(sorted(train + test, key=_natural))
        """Of the frames, in the order of their numbers; digits count as numbers, so that 9 comes before 10."""
        numbers = {name: number for number, name in enumerate(self.names, start=1)}
        self.num_frames = len(self.names)
        self.train, self.test = (tuple(sorted(numbers[name] for name in names)) for names in (train, test))
        self.real = hashlib.sha256(json.dumps(self.train).encode()).hexdigest() == _NYU_TRAIN_SHA256
        """Whether these are NYU's own frames, going by which numbers are trained on."""
        self.scene_types = None
        raw = RAW_DEPTH if is_folder(folder / RAW_DEPTH) else DEPTH
        if raw == DEPTH and is_folder(folder / "depth_raw"):  # ESANet's name for it
            raise InputError(f"{folder}: has a folder depth_raw; the sensor's depth belongs in {RAW_DEPTH}: rename it")
        kinds = {RGB: _RGB_KINDS, LABELS: (".png",), DEPTH: (".png",), raw: (".png",)}
        found = {part: _find(folder / part, self.names, endings) for part, endings in kinds.items()}
        self._rgb, self._labels, self._depth, self._raw = (found[part] for part in (RGB, LABELS, DEPTH, raw))

    def read(self, number: int) -> Frame:
        """The frame with this 1-based number.

        Raises:
            InputError: there is no such frame, one of its pictures cannot be read or is not 640 × 480 pixels of its kind, or a
                class is above 40; the message says which.
        """
        if not 1 <= number <= self.num_frames:
            raise InputError(f"{self.path}: no frame {number}; allowed: 1..{self.num_frames}")
        row = number - 1
        depth = _of_frame_size(self._depth[row], read_depth)
        return Frame(
            number=number,
            image=_of_frame_size(self._rgb[row], read_picture),
            labels=_known_classes(self._labels[row]),
            raw_depth=depth.copy() if self._raw is self._depth else _of_frame_size(self._raw[row], read_depth),
            filled_depth=depth,
        )


def _natural(name: str) -> tuple[list[str | int], str]:
    """A key to sort names by, in which runs of digits are numbers; at odd places always, so that any two names compare."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split("([0-9]+)", name))], name


def _read_names(path: Path) -> list[str]:
    """The names in a list, a line each, blank lines left out."""
    if not is_file_to_read(path):
        raise InputError(f"{path}: missing; needed: a list of frames, a name a line, in both {TRAIN_FILE} and {TEST_FILE}")
    try:
        names = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    names = [name for name in map(str.strip, names) if name]
    if not names:
        raise InputError(f"{path}: names no frame")
    wrong = [name for name in names if "/" in name or len(name) > _LONGEST]
    if wrong:
        raise InputError(f"{path}: names {wrong[0][:_LONGEST]}; allowed: names of files in {RGB}, without their ending")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: names {twice[0]} more than once")
    return names


def _find(folder: Path, names: tuple[str, ...], endings: tuple[str, ...]) -> list[Path]:
    """The picture of each name in a folder; its ending may be in capitals, as cameras write it."""
    try:
        # In one go: asking for each is slow where the folder is far away. Small letters come last, and count.
        there = {path.stem + path.suffix.lower(): path.name for path in sorted(folder.iterdir())}
    except FileNotFoundError:
        raise InputError(f"{folder.parent}: no folder {folder.name} in it; needed: {RGB}, {LABELS} and {DEPTH}") from None
    except OSError as error:
        raise unreadable(folder, error) from None
    files = []
    for name in names:
        file = next((there[name + ending] for ending in endings if name + ending in there), None)
        if file is None:
            raise InputError(f"{folder}: no picture of frame {name}; needed: {' or '.join(name + end for end in endings)}")
        files.append(folder / file)
    return files


def _of_frame_size(path: Path, read: Callable[[Path], NDArray[_Value]]) -> NDArray[_Value]:
    pixels = read(path)
    height, width = pixels.shape[:2]
    if (height, width) != FRAME_SIZE:
        raise InputError(f"{path}: is {width} × {height} pixels; allowed: {FRAME_WIDTH} × {FRAME_HEIGHT}")
    return np.ascontiguousarray(pixels)


def _known_classes(path: Path) -> NDArray[np.uint8]:
    numbers = _of_frame_size(path, read_classes)
    wrong = numbers > NUM_CLASSES
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{path}: row {row}, column {column}: {numbers[row, column]}; allowed: 1..{NUM_CLASSES}, 0 = unlabelled "
            f"({int(wrong.sum())} such pixels)"
        )
    return _CLASSES[numbers]
