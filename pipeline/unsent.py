"""Files that MLflow's store did not take: noted in the run's folder, and offered again. A run is worth more than its tracking.

Not here: how a file goes to MLflow (tracking.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jointseg.whole import write_atomically
from pipeline.log_lines import Line
from pipeline.run_store import few_retries, shown

UNSENT = "unsent"
"""Of a run's folder: a JSON file for each file that MLflow is still to have."""
REFUSALS = 2
"""In a row, after which no more are offered for now: each takes seconds where a server does not answer."""
NAMED = 5
"""As many in the line about them."""
NOT_TRIED = "not tried, after one that was refused"


@dataclass
class Unsent:
    """What the MLflow runs of one folder lack. Several processes may add to it, and send it."""

    folder: Path
    upload: Callable[[Line], None]
    """Sends one file: `run`, `name`, and `path` and `into` or `text`. Raises what it likes."""
    say: Callable[[str], None] = lambda _: None
    """Called with a line for people when one is refused."""
    refused: bool = field(default=False, init=False)
    """Whether one was: the next are not tried before `offer`."""

    def send(self, file: Line) -> None:
        """Send a file now; note it where it is refused, or one before it was.

        Raises:
            DiskError: it cannot be noted either.
        """
        key = json.dumps([file["run"], file["name"], file.get("into")])
        note = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        why = NOT_TRIED if self.refused else self._refusal(file)
        if why is None:
            note.unlink(missing_ok=True)
            return
        write_atomically(note, json.dumps({**file, "why": why}))
        if not self.refused:
            self.refused = True
            self.say(f"MLflow does not take {_called(file)}, which stays in the folder; the run goes on: {why}")

    def offer(self) -> None:
        """Send what was refused or not tried, until it is refused again. What is no longer there is forgotten."""
        refusals = 0
        for note in _oldest_first(self.folder):
            file = _read(note)
            if file is None:
                continue
            if "text" not in file and not Path(file["path"]).exists():
                note.unlink(missing_ok=True)
                continue
            why = self._refusal(file)
            if why is None:
                note.unlink(missing_ok=True)
                refusals, self.refused = 0, False
                continue
            write_atomically(note, json.dumps({**file, "why": why}))  # another time the others come before it
            refusals, self.refused = refusals + 1, True
            if refusals == REFUSALS:
                return

    def _refusal(self, file: Line) -> str | None:
        """Send a file; why it was not taken, None where it was. Stores of files fail in ways of their own."""
        try:
            with few_retries(seconds=None):
                self.upload(file)
        except Exception as error:
            return shown(error)
        return None


def left_over(out: Path) -> str | None:
    """In a line, which files MLflow lacks of the runs of a folder, why, and how they get there; None where it lacks none."""
    files = [file for note in _oldest_first(out / UNSENT) if (file := _read(note)) is not None]
    if not files:
        return None
    named = sorted({_called(file) for file in files})
    listed = ", ".join(named[:NAMED]) + (" and others" if len(named) > NAMED else "")
    why = next((file["why"] for file in files if file["why"] != NOT_TRIED), NOT_TRIED)
    files_are = "1 file or folder is" if len(files) == 1 else f"{len(files)} files or folders are"
    return f"{files_are} not in MLflow yet, only in {out} ({listed}): {why}; the same command sends them"


def _oldest_first(folder: Path) -> list[Path]:
    times = {}
    for note in folder.glob("*.json"):
        with suppress(FileNotFoundError):  # another process has sent it meanwhile
            times[note] = note.stat().st_mtime_ns
    return sorted(times, key=lambda note: (times[note], note.name))


def _read(note: Path) -> Line | None:
    """What is noted; None where another process has sent it meanwhile."""
    try:
        file: Line = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return file


def _called(file: Line) -> str:
    return "/".join(Path(file["path"]).parts[-2:]) if "path" in file else str(file["name"])
