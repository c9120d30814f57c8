"""Where a store's frames come from: NYU's own folder, or one of pictures; and a check of every frame in it.

Not here: how either is read (nyu.py, frame_folder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from jointseg.data.files import is_file_to_read, is_folder, no_folder
from jointseg.data.frame import Frame, valid_depth
from jointseg.data.frame_folder import TEST_FILE, TRAIN_FILE, FrameFolder
from jointseg.data.nyu import FILES, FRAMES_FILE, NyuFolder
from jointseg.errors import InputError
from jointseg.labels import NUM_CLASSES, VOID

Progress = Callable[[int, int], None]
"""Called after each frame with the frames done and the frames in all."""


class FrameSource(Protocol):
    """Frames that can be read one at a time, and how they are split."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def num_frames(self) -> int:
        """How many there are; they are numbered from 1."""

    @property
    def train(self) -> tuple[int, ...]:
        """1-based numbers of the train frames, ascending."""

    @property
    def test(self) -> tuple[int, ...]:
        """1-based numbers of the test frames, ascending."""

    @property
    def scene_types(self) -> tuple[str, ...] | None:
        """The scene type of each frame, in the order of their numbers; None where they are not known."""

    @property
    def real(self) -> bool:
        """Whether they are NYU Depth v2's own."""

    def read(self, number: int) -> Frame:
        """The frame with this 1-based number; InputError where it cannot be had."""


@contextmanager
def open_source(folder: Path) -> Iterator[FrameSource]:
    """The frames of a folder of either kind. With NYU's frames and with lists it is NYU's; without frames, what the lists say.

    Raises:
        InputError: it is neither, or it is damaged or may not be read (NyuFolder.open, FrameFolder).
    """
    there = {name for name in (*FILES, TRAIN_FILE, TEST_FILE) if is_file_to_read(folder / name)}
    if there & {TRAIN_FILE, TEST_FILE} and FRAMES_FILE not in there:  # copies of NYU's frames may lie beside its splits.mat
        yield FrameFolder(folder)
    elif there:
        with NyuFolder.open(folder) as nyu:
            yield nyu
    else:
        problem = "holds no frames" if is_folder(folder) else no_folder(folder)
        raise InputError(f"{folder}: {problem}; needed: {', '.join(FILES)}; or, for pictures, {TRAIN_FILE} and {TEST_FILE}")


@dataclass(frozen=True)
class FolderReport:
    """What a whole set of frames holds."""

    num_frames: int
    num_train: int
    num_test: int
    real: bool
    """Whether these are NYU's own frames, going by their class mapping or split."""
    class_pixels: tuple[int, ...]
    """Pixels of each of the 40 classes, over all frames."""
    void_share: float
    """Share of pixels without a class."""
    min_depth: float
    """Nearest valid depth, filled in, metres; 0 where there is none."""
    max_depth: float
    """Farthest valid depth, filled in, metres; 0 where there is none."""
    hole_share: float
    """Share of pixels without a raw depth."""

    @property
    def classes_present(self) -> tuple[int, ...]:
        """The classes 0..39 with at least one pixel."""
        return tuple(c for c, count in enumerate(self.class_pixels) if count)


class FrameTally:
    """Sums over frames, taken while they pass by, from which a FolderReport is made."""

    def __init__(self) -> None:
        self._labels = np.zeros(256, np.int64)
        self._num_frames = self._raw_valid = self._pixels = 0
        self._min_depth, self._max_depth = np.inf, 0.0

    def add(self, frame: Frame) -> None:
        """Count one frame."""
        self._num_frames += 1
        self._pixels += frame.labels.size
        self._labels += np.bincount(frame.labels.ravel(), minlength=256)
        self._raw_valid += int(np.count_nonzero(valid_depth(frame.raw_depth)))
        depth = frame.filled_depth
        self._min_depth = min(self._min_depth, float(depth.min(where=valid_depth(depth), initial=np.inf)))
        self._max_depth = max(self._max_depth, float(depth.max()))

    def report(self, source: FrameSource) -> FolderReport:
        """The sums so far over frames of `source`. At least one frame must have been added."""
        assert self._num_frames
        return FolderReport(
            num_frames=self._num_frames,
            num_train=len(source.train),
            num_test=len(source.test),
            real=source.real,
            class_pixels=tuple(self._labels[:NUM_CLASSES].tolist()),
            void_share=float(self._labels[VOID] / self._pixels),
            min_depth=self._min_depth if self._max_depth else 0.0,
            max_depth=self._max_depth,
            hole_share=1 - self._raw_valid / self._pixels,
        )


def check(folder: Path, *, progress: Progress | None = None) -> FolderReport:
    """Read every frame of a folder once, and say what it holds.

    Raises:
        InputError: anything at all is wrong with it; see open_source.
    """
    tally = FrameTally()
    with open_source(folder) as source:
        for number in range(1, source.num_frames + 1):
            tally.add(source.read(number))
            if progress is not None:
                progress(number, source.num_frames)
        return tally.report(source)
