"""A run's screen on a terminal: lines and progress bars. Not here: what is said (the phases), the commands (cli.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Terminal:
    """Progress bars and lines on a terminal; lines alone where output is not one."""

    def __init__(self) -> None:
        # :abc: and [abc] in a path are its letters.
        self.console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar; call what it gives with the number done, the new total if it changed, and a note."""
        columns = (
            TextColumn("{task.description:>15}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=total, note="")

            def update(done: int, total: int | None = None, *, note: str = "") -> None:
                progress.update(task, completed=done, total=total, note=note)

            yield update
