"""The step between two passes, as one thread does it, compiled with its barriers; and what the threads of a call share.

Not here: the passes (passes.py), the order of the steps (engine.py). A step is long, because threads wait for Python's lock at
each of its ends.
"""

# P pixels, K kernels, C channels padded to whole vectors, T threads

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import tables
from jointseg.crf.cpu.compiled import compiled
from jointseg.crf.cpu.layout import LINES
from jointseg.crf.cpu.team import wait


class Values(NamedTuple):
    """The tables of one call, flat, and what rows are multiplied by."""

    table: NDArray[Any]
    other: NDArray[Any]
    """Rows: one is read while the other is written."""
    coarse: NDArray[Any]
    slabs: NDArray[Any]
    """The coarse kernels' points: what is read, and what the threads write of it."""
    scale_K: NDArray[Any]
    matrices_KCC: NDArray[Any]
    """Rows of kernel k become `scale_K[k]` times `matrices_KCC[k]`^T row; no matrices: (0, C, C)."""


class Team(NamedTuple):
    """Who one thread is."""

    thread: int
    num_threads: int
    arrivals: NDArray[np.int64]


@compiled
def settle(structure: Any, values: Any, team: Any, phase: int, flip: bool, rows: Any, does: tuple[bool, bool, bool]) -> int:
    """Make of what was written what can be read: gather it, blur it, mix it, each where `does` says so, in that order. Returns
    the barriers so far.
    """
    table = values.table if flip else values.other
    t, T = team.thread, team.num_threads
    gathering, blurring, mixing = does
    if gathering:
        phase = wait(team.arrivals, phase, T)
        tables.gather_shared(table, structure.pairs, structure.pairs_T2[t], rows)
        tables.gather_slabs(values.coarse, values.slabs, structure.coarse, t, T, rows)
        phase = wait(team.arrivals, phase, T)
    if blurring:
        blurs_N9 = structure.blurs_N9
        for n in range(len(blurs_N9)):
            if n > 0 and blurs_N9[n, 0] > blurs_N9[n - 1, 0]:
                phase = wait(team.arrivals, phase, T)
            if blurs_N9[n, 1] == LINES:
                tables.blur_chains(table, blurs_N9[n], structure.chains, structure.lines_NT2[n, t], rows)
            else:
                tables.blur_axis(values.coarse, blurs_N9[n], structure.taps, structure.lines_NT2[n, t], rows)
        phase = wait(team.arrivals, phase, T)
    if mixing:
        if len(values.matrices_KCC) > 0:
            for i in range(len(structure.rows_I3)):
                begin, count, k = structure.rows_I3[i]
                tables.mix_rows(table, values.matrices_KCC[k], begin + count * t // T, begin + count * (t + 1) // T, rows)
            begins = structure.coarse.read_begin
            for s in range(len(structure.coarse.kernel)):
                begin, count, k = begins[s], begins[s + 1] - begins[s], structure.coarse.kernel[s]
                first, last = begin + count * t // T, begin + count * (t + 1) // T
                tables.mix_rows(values.coarse, values.matrices_KCC[k], first, last, rows)
            phase = wait(team.arrivals, phase, T)
        tables.scatter_shared(table, structure.pairs, structure.pairs_T2[t], rows)
        phase = wait(team.arrivals, phase, T)
    return phase


@compiled
def outer_products(structure: Any, left: Any, right: Any, team: Any, phase: int, flip: bool, sums_KCC: Any, rows: Any) -> Any:
    """Add, kernel by kernel, the sum over rows of a row of `left` x the same of `right`: this thread's share of it."""
    t, T = team.thread, team.num_threads
    table = left.table if flip else left.other
    for i in range(len(structure.rows_I3)):
        begin, count, k = structure.rows_I3[i]
        first, last = begin + count * t // T, begin + count * (t + 1) // T
        tables.outer_product(table, right.other, first, last, sums_KCC[k], rows)
    begins = structure.coarse.read_begin
    for s in range(len(structure.coarse.kernel)):
        begin, count = begins[s], begins[s + 1] - begins[s]
        first, last = begin + count * t // T, begin + count * (t + 1) // T
        tables.outer_product(left.coarse, right.coarse, first, last, sums_KCC[structure.coarse.kernel[s]], rows)
    return wait(team.arrivals, phase, T)
