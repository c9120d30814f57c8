"""What is done to tables of rows between passes: shared, blurred, mixed. Compiled; a call is one thread's share.

Not here: the passes over the pixels (passes.py).
"""

# C channels padded to whole vectors

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.compiled import inner

AHEAD = 12
"""How many rows of a line ahead the next are asked for."""
ROWS_A_SUM = 512
"""So many products are added up before they join the others: one sum of millions would lose their last digits."""


@inner
def gather_slabs(target: NDArray[Any], slabs: NDArray[Any], coarse: Any, thread: int, num_threads: int, rows: Any) -> None:
    """Coarse points = the sum of what each thread wrote of them, for this thread's share of each kernel's lines."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for s in range(len(coarse.kernel)):
        lines = (coarse.read_begin[s + 1] - coarse.read_begin[s]) // coarse.cols[s]
        pitch = coarse.cols[s] * C
        for line in range(lines * thread // num_threads, lines * (thread + 1) // num_threads):
            base = coarse.read_begin[s] * C + line * pitch
            for at in range(0, pitch, step):
                total = simd.splat(0.0, simd.load(target, base + at, eights))
                for other in range(num_threads):
                    if coarse.slab_TS2[other, s, 0] <= line < coarse.slab_TS2[other, s, 1]:
                        there = coarse.slab_begin_TS[other, s] * C + (line - coarse.slab_TS2[other, s, 0]) * pitch
                        total = simd.add(total, simd.load(slabs, there + at, eights))
                simd.store(target, base + at, total)


@inner
def gather_shared(table: NDArray[Any], pairs: NDArray[np.int32], span: NDArray[np.int64], rows: Any) -> None:
    """Add to rows what other threads wrote for them: pairs (owner, other), owner by owner; `span` keeps owners whole."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for i in range(span[0], span[1]):
        for c in range(0, C, step):
            at = pairs[i, 0] * C + c
            mine = simd.load(table, at, eights)
            simd.store(table, at, simd.add(mine, simd.load(table, pairs[i, 1] * C + c, eights)))


@inner
def scatter_shared(table: NDArray[Any], pairs: NDArray[np.int32], span: NDArray[np.int64], rows: Any) -> None:
    """The way back: rows that other threads read are copies of their owners'."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for i in range(span[0], span[1]):
        for c in range(0, C, step):
            simd.store(table, pairs[i, 1] * C + c, simd.load(table, pairs[i, 0] * C + c, eights))


@inner
def blur_chains(
    table: NDArray[Any], blur_9: NDArray[np.int64], chains: NDArray[np.int32], lines: NDArray[np.int64], rows: Any
) -> None:
    """Along lines of neighbours, in place: v_i <- v_i + (v_{i-1} + v_{i+1}) / 2.

    `blur_9`: a row of `Structure.blurs_N9`; `lines`: from where to where in its part of `chains`, lines whole.
    """
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    first_row, start, stop = blur_9[2], blur_9[3] + lines[0], blur_9[3] + lines[1]
    for c in range(0, C, step):
        i = start
        while i < stop:
            current_at = (first_row + ~simd.item(chains, i)) * C + c  # a line begins
            current = simd.load(table, current_at, eights)
            previous = simd.splat(0.0, current)
            i += 1
            while i < stop and simd.item(chains, i) >= 0:
                if i + AHEAD < stop:
                    ahead = simd.item(chains, i + AHEAD)
                    simd.prefetch(table, (first_row + (ahead ^ (ahead >> 31))) * C + c, eights)
                following_at = (first_row + simd.item(chains, i)) * C + c
                following = simd.load(table, following_at, eights)
                simd.store(table, current_at, simd.fma(0.5, simd.add(previous, following), current))
                previous, current, current_at = current, following, following_at
                i += 1
            simd.store(table, current_at, simd.fma(0.5, previous, current))


@inner
def blur_axis(
    table: NDArray[Any], blur_9: NDArray[np.int64], all_taps: NDArray[Any], lines: NDArray[np.int64], rows: Any
) -> None:
    """Convolve some lines of a dense grid of rows (outer, length, inner) along the middle, in place; 0 outside.

    `blur_9`: a row of `Structure.blurs_N9`. Taps are the middle one and those to one side of it.
    """
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    first_row, length, inner = blur_9[2], blur_9[5], blur_9[6]
    taps = all_taps[blur_9[7] : blur_9[8]]
    line = np.empty(length * step, table.dtype)
    radius = len(taps) - 1
    for index in range(lines[0], lines[1]):
        base = (first_row + index // inner * length * inner + index % inner) * C
        for c in range(0, C, step):
            busy = False
            for i in range(length):
                row = simd.load(table, base + i * inner * C + c, eights)
                simd.store(line, i * step, row)
                busy = busy or simd.any_nonzero(row)
            if not busy:
                continue
            for i in range(length):
                row = simd.load(line, i * step, eights)
                total = simd.multiply(row, simd.splat(taps[0], row))
                for r in range(1, radius + 1):
                    if i >= r:
                        total = simd.fma(taps[r], simd.load(line, (i - r) * step, eights), total)
                    if i + r < length:
                        total = simd.fma(taps[r], simd.load(line, (i + r) * step, eights), total)
                simd.store(table, base + i * inner * C + c, total)


@inner
def mix_rows(table: NDArray[Any], matrix_CC: NDArray[Any], start: int, stop: int, rows: Any) -> None:
    """Rows [start, stop): r <- A r, with `matrix_CC` = A transposed, so that its rows are A's columns."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    mixed = np.empty(C, table.dtype)
    flat = matrix_CC.reshape(-1)
    for row in range(start, stop):
        for c in range(0, C, step):
            total = simd.splat(0.0, simd.load(table, row * C + c, eights))
            for d in range(C):
                total = simd.fma(table[row * C + d], simd.load(flat, d * C + c, eights), total)
            simd.store(mixed, c, total)
        for c in range(0, C, step):
            simd.store(table, row * C + c, simd.load(mixed, c, eights))


@inner
def outer_product(left: NDArray[Any], right: NDArray[Any], start: int, stop: int, sum_CC: NDArray[Any], rows: Any) -> None:
    """sum_CC += the sum over rows [start, stop) of left (row) x right (row)."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    flat, part = sum_CC.reshape(-1), np.empty(C * C, sum_CC.dtype)
    for first in range(start, stop, ROWS_A_SUM):
        part[:] = 0
        for row in range(first, min(first + ROWS_A_SUM, stop)):
            for c in range(0, C, step):
                values = simd.load(right, row * C + c, eights)
                for d in range(C):
                    at = d * C + c
                    simd.store(part, at, simd.fma(left[row * C + d], values, simd.load(part, at, eights)))
        for at in range(C * C):
            flat[at] += part[at]
