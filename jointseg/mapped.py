"""Files that have their room on the disk before they are written: new arrays, mapped, for one. Not here: folders (whole.py)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_NOT_POSSIBLE_HERE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A .npy file of zeros, mapped for writing, that has its room on the disk from the start.

    A file with holes would take its room as they are written to, and a disk that is full by then ends the process by a signal
    (SIGBUS), without a word. Where the file system cannot set room aside, it is such a file.

    Raises:
        OSError: the disk has too little room, or cannot be written.
    """
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    set_room_aside(path, path.stat().st_size)
    return array


def set_room_aside(path: Path, num_bytes: int) -> None:
    """Have the first `num_bytes` of a file take their room on the disk, where its file system can set some aside.

    Raises:
        OSError: the disk has too little room, or cannot be written.
    """
    with path.open("r+b") as file:
        try:
            fallocate(file.fileno(), num_bytes)
        except OSError as error:
            if error.errno not in _NOT_POSSIBLE_HERE:
                raise


def fallocate(descriptor: int, num_bytes: int) -> None:
    """Linux's own. Where a file system has none, as NFS before 4.2, `os.posix_fallocate` reads and writes each block.

    Raises:
        OSError: the disk has too little room, or there is no such call here.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None or ctypes.sizeof(ctypes.c_long) < 8:  # not on macOS; sizes of 32 bits are too few
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while call(descriptor, 0, ctypes.c_long(0), ctypes.c_long(num_bytes)) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
