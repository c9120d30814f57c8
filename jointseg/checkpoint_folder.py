"""The checkpoints of a stage in its folder: each appears whole, the newest good one is gone on from, old ones are removed.

Not here: what is in one, and how damage is found (checkpoint.py), when one is due (training.py).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from jointseg.checkpoint import DamagedCheckpointError, check_checkpoint
from jointseg.config import Config

_NAME = re.compile(r"step_(\d{8,})")
_HIDDEN = re.compile(r"\.step_\d{8,}\.(partial|old|lock)")


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from, and what was wrong with each newer one, newest first."""

    path: Path
    step: int
    refused: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people: the step, and which checkpoints were refused and why."""
        return "; ".join([f"goes on from step {self.step}", *(f"refused: {reason}" for reason in self.refused)])


@dataclass(frozen=True)
class CheckpointFolder:
    """The folders `step_00000500` and so on in `path`. One process at a time writes there."""

    path: Path

    def of(self, step: int) -> Path:
        """The checkpoint of `step`, whether there is one or not."""
        return self.path / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """The steps of the checkpoints there, in order. One that was not written to its end is none."""
        names = [path.name for path in self.path.iterdir() if path.is_dir()] if self.path.is_dir() else []
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def newest(self, *, config: Config, stage: str) -> Found | None:
        """The newest checkpoint that is not damaged; None where the stage has none at all, so that it begins at step 0.

        Raises:
            DamagedCheckpointError: every one is damaged; the message names the file in each.
            InputError: the newest good one is of another stage or config, or one that is newer may not be read.
        """
        refused: list[str] = []
        for step in reversed(self.steps()):
            try:
                check_checkpoint(self.of(step), config=config, stage=stage)
            except DamagedCheckpointError as error:
                refused.append(str(error))
            else:
                return Found(self.of(step), step, tuple(refused))
        if refused:
            remedy = f"put a good one back, or remove them all to begin {stage} again"
            raise DamagedCheckpointError(f"{self.path}: no checkpoint is good: {'; '.join(refused)}; {remedy}")
        return None

    def write(self, step: int, save: Callable[[Path], None], *, keep: int) -> None:
        """Let `save` write the checkpoint of `step`; once it is whole, remove all but the `keep` newest.

        Those of later steps go too: had they been good, the stage would have gone on from them. Unfinished ones of
        processes that were killed are cleared away.

        Raises:
            InputError: it cannot be written; those that were there are left.
        """
        save(self.of(step))
        kept = [there for there in self.steps() if there <= step][-keep:]
        self._clear()
        for there in self.steps():
            if there not in kept:  # out of sight by one rename, so that a kill leaves no part of it among the others
                self.of(there).rename(self.path / f".{self.of(there).name}.old")
        self._clear()

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if _HIDDEN.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class CheckpointWriter:
    """Writes a stage's checkpoints one after another, in a thread where training is to go on meanwhile.

    A context: at its end the last one is whole on the disk, or its error raised.
    """

    def __init__(self, folder: CheckpointFolder, *, keep: int, in_background: bool) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if in_background else None
        self._pending: Future[None] | None = None

    def write(self, step: int, save: Callable[[Path], None]) -> None:
        """Write the checkpoint of `step` with `save`, after the one before it.

        In the background `save` is called after this returns, from another thread: it must hold a copy of the state
        (`Checkpoint.snapshot`).

        Raises:
            InputError: this one cannot be written, or the one before it could not be.
        """
        if self._thread is None:
            self._folder.write(step, save, keep=self._keep)
            return
        self._wait()
        self._pending = self._thread.submit(self._folder.write, step, save, keep=self._keep)

    def check(self) -> None:
        """Raise what writing in the background has failed on, if it has."""
        if self._pending is not None and self._pending.done():
            self._wait()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if error is None:
            self._wait()
