"""Threads that work on one array together: a barrier for compiled code, and who takes what.

Not here: numba's own parallel loops. Their threads are one pool for the process, which breaks under several Python threads
(workqueue) or after a fork (OpenMP); these live for one call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.compiled import compiled
from jointseg.crf.cpu.simd import add_atomically, pause, read_atomically

_SPINS = 4000
_ABORTED = 2**60


@compiled
def wait(arrivals: NDArray[np.int64], phase: int, num_threads: int) -> int:
    """Return when all threads are here. `phase` counts the barriers so far; its successor is returned."""
    phase += 1
    if num_threads > 1:
        add_atomically(arrivals, 1)
        spins = 0
        while read_atomically(arrivals) < phase * num_threads:
            spins += 1
            if spins > _SPINS:
                pause()
    return phase


def share(total: int, thread: int, num_threads: int) -> tuple[int, int]:
    """The thread's part of `total` things: start and stop, in order, sizes within one."""
    return total * thread // num_threads, total * (thread + 1) // num_threads


def pixels_of(thread: int, num_threads: int, size: tuple[int, int]) -> tuple[int, int]:
    """The thread's pixels: whole rows of the image."""
    H, W = size
    start, stop = share(H, thread, num_threads)
    return start * W, stop * W


def run_team(work: Callable[[int, NDArray[np.int64]], None], num_threads: int) -> None:
    """Call work(thread, arrivals) on `num_threads` threads, this one among them; returns when all are done.

    `work` must be a call of compiled code that gives up Python's lock and raises nothing once it runs.
    """
    arrivals = np.zeros(1, np.int64)
    failures: list[BaseException] = []

    def guarded(thread: int) -> None:
        try:
            work(thread, arrivals)
        except BaseException as failure:  # handed to the caller below
            failures.append(failure)
            arrivals[0] = _ABORTED  # nobody waits for this thread

    others: list[threading.Thread] = []
    try:
        for thread in range(1, num_threads):
            other = threading.Thread(target=guarded, args=(thread,), name=f"crf-{thread}")
            other.start()
            others.append(other)
    except RuntimeError as failure:  # no more threads to be had
        failures.append(failure)
        arrivals[0] = _ABORTED
    guarded(0)
    for other in others:
        other.join()
    if failures:
        raise failures[0]
