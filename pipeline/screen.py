"""Where a run tells how far it is. Not here: a terminal (terminal.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Screen(Protocol):
    """Lines and progress bars."""

    def say(self, text: str) -> None:
        """Print one line."""

    def bar(self, title: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        """A progress bar; call what it gives with the number done, and a note if there is one."""
