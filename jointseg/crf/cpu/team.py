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
    """Call work(thread, arrivals) on `num_threads` threads, this one among them; returns when none works any more.

    So it does where it raises, too: what `work` writes to may be another call's afterwards.

    Args:
        work: a call of compiled code that gives up Python's lock and raises nothing once it runs.
        num_threads: at least 1.

    Raises:
        BaseException: what `work` raised, or what ended this thread's part: no more threads to be had, Ctrl-C.
    """
    arrivals = np.zeros(1, np.int64)
    failures: list[BaseException] = []
    begun: list[int] = []
    ended: list[int] = []
    lock, wake = threading.Lock(), threading.Semaphore(0)
    called_off = False

    def guarded(thread: int) -> None:
        with lock:
            if called_off:
                return
            begun.append(thread)
        try:
            work(thread, arrivals)
        except BaseException as failure:  # handed to the caller below
            failures.append(failure)
            arrivals[0] = _ABORTED  # nobody waits for this thread
        finally:
            ended.append(thread)
            wake.release()

    others = [threading.Thread(target=guarded, args=(n,), name=f"crf-{n}", daemon=True) for n in range(1, num_threads)]
    try:
        for other in others:
            other.start()
        work(0, arrivals)
    except BaseException as failure:
        failures.append(failure)
        arrivals[0] = _ABORTED
        with lock:
            called_off = True
    expected = len(begun) if called_off else len(others)
    while len(ended) < expected:
        try:
            wake.acquire(timeout=0.1)  # a wake-up that Ctrl-C takes away is not missed
        except BaseException as failure:
            failures.append(failure)
    if failures:
        raise failures[0]
    for other in others:
        other.join()
