"""Files and folders that appear whole or not at all: written under a hidden name beside their own, and renamed at the end;
locks between processes; and whether a disk has room.

Not here: what is written into them (data/store.py, data/rooms.py, checkpoint.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jointseg.errors import DiskError, InputError

# Full, over quota, too large, failing, read-only.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_OTHERS_FIRST = {errno.EEXIST, errno.ENOTEMPTY}
_TRIES = 10
"""To lock a file that its holders remove as they end."""


@contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Name `path` in what a full, failing or read-only disk does to the block: a failed `write` does not say of which file.

    Raises:
        DiskError: in place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise DiskError(f"{path}: cannot be written: {os.strerror(error.errno)}") from None


@contextmanager
def replacing_whole(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write, which becomes `path` at the end of the block, on the disk too: a reader sees the old
    one or the new one, never a part. Nothing is left of it where the block raises.

    Args:
        path: the file; its folder is made where it is missing.

    Raises:
        DiskError: the disk is full, failing or read-only; what was there is left.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part, after a power cut too.

    Raises:
        DiskError: the disk is full, failing or read-only; what was there is left.
    """
    with replacing_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def appearing_whole(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which becomes `folder` at the end of the block, on the disk too.

    Nothing is left where the block raises. What a killed process left is cleared by the next that makes the same folder; one
    killed while it replaces leaves the old folder, none, or the new one, never a part.

    Args:
        folder: the folder to make; its parents are made where they are missing.
        replace: whether a `folder` that is there already gives way. An empty one always does.

    Raises:
        InputError: `folder` is a file, or holds something and is not to be replaced; another process is making it; it
            cannot be made; or the disk is full.
    """
    target = folder.resolve()  # through links, so that the rename stays on one disk
    partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    _refuse_occupied(folder, replace=replace)
    with _alone(folder):
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        try:
            with disk_errors_named(folder):
                partial.mkdir()
                yield partial
                for path in (*partial.rglob("*"), partial):
                    sync(path)
                if replace and target.exists():
                    target.rename(old)
                try:
                    partial.rename(target)
                except OSError:
                    if old.exists():
                        old.rename(target)
                    raise
                sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            if error.errno not in _OTHERS_FIRST:
                raise
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _refuse_occupied(folder: Path, *, replace: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; allowed: a folder, or a path where one can be made")
    held = sorted(path.name for path in folder.iterdir()) if folder.exists() and not replace else []
    if held:
        raise InputError(f"{folder}: exists already and holds {held[0]}; remove it to make it again, or name another")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse to begin while another process makes the same folder."""
    path, busy = folder.resolve(), "another process is making it"
    path = path.with_name(f".{path.name}.lock")
    for _ in range(_TRIES):
        with locked(path, of=folder, busy=busy) as lock:
            try:
                ours = os.path.samestat(os.fstat(lock), path.stat())
            except FileNotFoundError:
                ours = False
            if not ours:  # its last holder has removed it since it was opened
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
    raise InputError(f"{folder}: {busy}")


@contextmanager
def locked(path: Path, *, of: Path, busy: str) -> Iterator[int]:
    """Hold a lock, which goes with the process that holds it, on the file `path`; what is yielded is its descriptor.

    Args:
        path: made where it is missing, and its folder; it stays.
        of: what is locked.
        busy: what the holder does.

    Raises:
        InputError: another process holds it, or it cannot be made; the message names `of`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")  # for writing, without which NFS does not lock
    except OSError as error:
        raise InputError(f"{of}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{of}: {busy}") from None
        except OSError as error:
            raise InputError(f"{of}: cannot be locked: {error.strerror}") from None
        yield lock.fileno()


def check_space(path: Path, *, needed: int) -> None:
    """See that the disk on which `path` is to be made has `needed` bytes free.

    Raises:
        InputError: it has not, and the message holds both sizes; or a folder on the way may not be searched.
    """
    try:
        for existing in path.resolve().parents:  # where a link leads
            with suppress(FileNotFoundError, NotADirectoryError):
                free = shutil.disk_usage(existing).free
                break
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from None
    if free < needed:
        raise InputError(f"{path}: needs {needed / 1e9:.2f} GB of disk and {free / 1e9:.2f} GB are free at {existing}")


def sync(path: Path) -> None:
    """Have a file, or what a folder lists, on the disk: a rename must not get there before what is renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
