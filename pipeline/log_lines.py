"""Logs of one JSON line a report: written where the work is (a worker, a scheduler), followed from the driver.

Not here: what the lines say (worker.py, study/trial.py), where they are logged to in the end (tracking.py).
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jointseg.data.files import is_file_to_read
from jointseg.errors import InputError
from jointseg.whole import disk_errors_named

Line = dict[str, Any]


def append_line(path: Path, line: Line) -> None:
    """Add one line to a log; what a killed process left of its last line is ended first.

    Raises:
        InputError: the disk is full.
    """
    with disk_errors_named(path), path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


class GrowingLog:
    """A log that is read again and again while it grows; each of its lines is parsed once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._lines = path, 0, list[Line]()

    def lines(self) -> list[Line]:
        """All there are by now; none where there is no such file. Half a line, of a process that was killed, is left out.

        Raises:
            InputError: it may not be read.
        """
        if not is_file_to_read(self._path):
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            for text in file:
                try:
                    self._lines.append(json.loads(text))
                except ValueError:
                    if not text.endswith(b"\n"):  # it is being written, or was when its writer ended
                        break
                self._read += len(text)
        return self._lines


def read_lines(path: Path) -> list[Line]:
    """The lines of a log, as `GrowingLog.lines`."""
    return GrowingLog(path).lines()


def in_step_order(reports: Iterable[Line]) -> list[Line]:
    """The reports of a stage. A stage that was resumed repeats some steps: the first stands."""
    rows: dict[float, Line] = {}
    for row in reports:
        rows.setdefault(row["step"], row)
    return [rows[step] for step in sorted(rows)]


@contextmanager
def following(
    read: Callable[[], list[Line]],
    tell: Callable[[Line], None],
    *,
    every: float = 0.5,
    patience: float = 240.0,
    trouble: Callable[[Exception], None] | None = None,
) -> Iterator[None]:
    """Call `tell` with each new line that `read` gives, from a thread, until the block ends and the last is told.

    Where a line cannot be told (an InputError, an OSError) it is told again at the next look: a server may come back. After the
    block there are looks for as long as `patience`, and then what goes wrong is raised; after one that ended badly one look,
    and no error. Any other error is a mistake of ours: it ends the telling, and is raised after the block.

    Args:
        read: gives all lines there are.
        tell: called with one.
        every: seconds between looks.
        patience: seconds.
        trouble: called with what goes wrong, once until telling goes well again.
    """
    ended, well = threading.Event(), threading.Event()

    def follow() -> None:
        told, since = 0, math.inf
        while True:
            last_look = ended.wait(every)
            try:
                for line in read()[told:]:
                    tell(line)
                    told, since = told + 1, math.inf
            except Exception as error:
                now = time.monotonic()
                if since == math.inf and trouble is not None:
                    trouble(error)
                if not isinstance(error, InputError | OSError):
                    raise
                since = min(since, now)
                if last_look and (not well.is_set() or now - since >= patience):
                    raise
                time.sleep(every if last_look else 0)
            else:
                if last_look:
                    return

    with ThreadPoolExecutor(1, thread_name_prefix="log") as threads:
        follower = threads.submit(follow)
        try:
            yield
            well.set()
            ended.set()
            follower.result()  # what went wrong in telling goes wrong here
        finally:  # of an interruption too
            well.clear()
            ended.set()
