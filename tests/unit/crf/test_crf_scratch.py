"""Memory that calls of the CRF lend each other."""

import os
import threading
from importlib import reload

import numpy as np
import pytest

from jointseg.crf.cpu import scratch
from jointseg.crf.cpu.scratch import borrowed


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(scratch, "_free", [])


def kept() -> int:
    return sum(raw.nbytes for raw in scratch._free)


def test_arrays_in_use_never_overlap_whoever_asks():
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(200):
            with borrowed(1000, 3000, dtype=np.float32) as (first, second):
                first[:], second[:] = number, -number
                if not ((first == number).all() and (second == -number).all()):
                    wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(1, 5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_next_call_gets_the_same_memory_at_a_cache_line(dtype):
    with borrowed(1000, dtype=dtype) as (array,):
        address = array.ctypes.data
        assert address % 64 == 0
        assert array.shape == (1000,) and array.dtype == dtype
    with borrowed(900, dtype=dtype) as (array,):
        assert array.ctypes.data == address
    with borrowed(100, dtype=dtype) as (array,):
        assert array.ctypes.data != address  # much smaller: that would keep large memory busy


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(scratch, "KEPT_BYTES", 10_000)
    with borrowed(1000, 1000, 1000, dtype=np.float32):
        pass
    assert 0 < kept() <= 10_000


def test_what_is_kept_can_be_released():
    with borrowed(1000, dtype=np.float32):
        pass
    scratch.release()
    assert kept() == 0


def test_it_is_imported_where_processes_cannot_fork(monkeypatch):
    """Windows has no `os.register_at_fork`."""
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    reload(scratch)


def test_memory_comes_back_from_a_call_that_failed():
    with pytest.raises(RuntimeError), borrowed(1000, dtype=np.float32):
        raise RuntimeError
    assert kept() >= 4000
