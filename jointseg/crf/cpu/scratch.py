"""Memory that a call needs for its length, kept for the next call: new pages cost as much as an iteration of mean field.

Not here: what lasts longer than a call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT_BYTES = 2**28
"""What a process keeps between calls, at most."""

_lock = threading.Lock()
_free: list[NDArray[np.uint8]] = []
"""The last given back comes last."""


def _in_a_forked_child() -> None:
    """Begin anew: the thread that had the lock, or was changing the list, is not there."""
    global _lock, _free
    _lock, _free = threading.Lock(), []


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_a_forked_child)


@contextmanager
def borrowed(*counts: int, dtype: Any) -> Iterator[list[NDArray[Any]]]:
    """Arrays of so many numbers, not set, that begin at a cache line. They are another call's once the block ends."""
    itemsize = np.dtype(dtype).itemsize
    taken = [_take(count * itemsize + 64) for count in counts]
    try:
        yield [_aligned(raw, count, dtype) for raw, count in zip(taken, counts, strict=True)]
    finally:
        _give_back(taken)


def release() -> None:
    """Give back what is kept."""
    with _lock:
        _free.clear()


def _take(size: int) -> NDArray[np.uint8]:
    with _lock:
        fitting = [i for i, raw in enumerate(_free) if size <= raw.nbytes <= 2 * size]
        if fitting:
            return _free.pop(min(fitting, key=lambda i: _free[i].nbytes))
    return np.empty(size, np.uint8)


def _give_back(taken: list[NDArray[np.uint8]]) -> None:
    with _lock:
        _free.extend(taken)
        while sum(raw.nbytes for raw in _free) > KEPT_BYTES:
            _free.pop(0)


def _aligned(raw: NDArray[np.uint8], count: int, dtype: Any) -> NDArray[Any]:
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + count * np.dtype(dtype).itemsize].view(dtype)
