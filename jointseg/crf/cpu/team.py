"""Threads that work on one array together: a barrier for compiled code, and who takes what.

Not here: numba's own parallel loops. Their threads are one pool for the process, which breaks under several Python threads
(workqueue) or after a fork (OpenMP); these live for one call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.atomics import add_atomically, pause, read_atomically
from jointseg.crf.cpu.compiled import compiled

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
    gate, wake = threading.Lock(), threading.Lock()
    wake.acquire()
    called_off = False

    def guarded(thread: int) -> None:
        with gate:
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
            with suppress(RuntimeError):  # it has been released already
                wake.release()

    others = [threading.Thread(target=guarded, args=(n,), name=f"crf-{n}", daemon=True) for n in range(1, num_threads)]
    tried = False
    while True:
        try:
            if not tried:
                tried = True
                for other in others:
                    other.start()
                work(0, arrivals)
                expected = len(others)
            else:
                arrivals[0] = _ABORTED
                with gate:
                    called_off = True
                expected = len(begun)
            while len(ended) < expected:
                wake.acquire(timeout=0.1)  # not for ever: Ctrl-C may take a wake-up away
            break
        except BaseException as failure:
            failures.append(failure)
    if failures:
        raise next(filter(None, map(_interruption, failures)), failures[0])
    for other in others:
        other.join()


def _interruption(failure: BaseException | None) -> KeyboardInterrupt | None:
    """Ctrl-C, where it is behind a failure: it may strike in the middle of a library's own tidying up."""
    while failure is not None and not isinstance(failure, KeyboardInterrupt):
        failure = failure.__context__
    return failure
