"""What a user names on disk: whether it is there, and may be read. Not here: what is in it (source.py, store.py)."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from jointseg.errors import InputError


def is_folder(path: Path) -> bool:
    """Whether there is a folder at `path`, or where a link there leads.

    Raises:
        InputError: a folder on the way to it may not be read, or the disk fails.
    """
    return _is(stat.S_ISDIR, path)


def no_folder(path: Path) -> str:
    """What is wrong with a path that is no folder."""
    return "a file, not a folder" if path.exists() else "no such folder"


def is_file_to_read(path: Path) -> bool:
    """Whether there is a file at `path`, or where a link there leads, that may be read.

    Raises:
        InputError: it, or a folder on the way to it, may not be read, or the disk fails.
    """
    if not _is(stat.S_ISREG, path):
        return False
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from None
    return True


def unreadable(path: Path, error: OSError) -> InputError:
    """What to raise where the system does not give what is in `path`."""
    return InputError(f"{path}: cannot be read: {error.strerror or error}")


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    """`Path.is_file` and `Path.is_dir` say False, or raise, where one may not look."""
    try:
        return kind(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from None
