"""One pass over the pixels, and what is done to tables of rows between passes. Compiled; each call is one thread's share.

Not here: where rows lie (lattice.py, grid.py, bands.py), which passes make an inference or a derivative (engine.py).
"""

# P pixels, V rows a pixel reads and writes, K kernels, S of them separable, C channels padded to whole vectors

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")

READ, SOFTMAX, SOFTMAX_BACKWARD = 0, 1, 2
"""What becomes of the messages a pixel has read: nothing; the next q; the gradient by the logits before."""

AHEAD = 3
"""How many pixels ahead their rows are asked for: they come from the outer caches."""


@_jit
def clear(table: NDArray[Any], start: int, stop: int) -> None:
    """Numbers [start, stop) of a table become 0."""
    table[start:stop] = 0


@_jit
def pixel_pass(
    mode: int,
    eights: Any,
    span: tuple[int, int],
    W: int,
    offsets_PV: NDArray[np.int32],
    weights_PV: NDArray[Any],
    runs_I3: NDArray[np.int64],
    read_norm_PK: NDArray[Any],
    write_norm_PK: NDArray[Any],
    scale_K: NDArray[Any],
    read_table: NDArray[Any],
    write_table: NDArray[Any],
    reading: bool,
    writing: bool,
    bands: Any,
    given: NDArray[Any],
    q: NDArray[Any],
    out: NDArray[Any],
    C: int,
    far: int,
    keeping: bool,
    storing: bool,
) -> None:
    """Read each pixel's messages, make of them what `mode` says, and write that to the table the next messages come from.

    With m = sum over the kernels of scale * read_norm * (what is read):
    - READ: value = m where reading, else `given`;
    - SOFTMAX: logits = given + m; value = softmax(logits). `out` gets the logits where storing;
    - SOFTMAX_BACKWARD: value = q * (m - <q, m>), and `out` has value added where storing.
    `runs_I3`: kernel, first and last + 1 of its V; the rows of the first `far` of all V are asked for ahead.
    What is written is write_norm * value; `q` gets the value where keeping (READ, SOFTMAX).

    `given`, `q`, `out` and tables are flat, rows of C numbers: a view taken inside the loop would count references there.
    `bands`: the separable kernels (see bands.py), rows of the image at a time; their tables lie one behind the other.
    """
    step = 8 * len(eights)
    (
        band_kernels, read_x_start, read_x, read_y_start, read_y, write_x_start, write_x, write_y_start, write_y,
        coarse_cols, read_begin, write_begin, band_read, band_write,
    ) = bands  # fmt: skip
    S = len(band_kernels)
    widest = 0
    for s in range(S):
        widest = max(widest, coarse_cols[s])
    blended = np.zeros(S * widest * C, given.dtype)
    values = np.empty((W if S else 1) * C, given.dtype)
    line = np.empty(C, given.dtype)
    for first in range(span[0], span[1], W):
        y = first // W
        if reading:
            for s in range(S):
                target = s * widest * C
                pitch = coarse_cols[s] * C
                base = (read_begin[s] + read_y_start[s, y] * coarse_cols[s]) * C
                for at in range(0, pitch, step):
                    row = simd.load(band_read, base + at, eights)
                    total = simd.multiply(row, simd.splat(read_y[s, y, 0], row))
                    for i in range(1, read_y.shape[2]):
                        total = simd.fma(read_y[s, y, i], simd.load(band_read, base + i * pitch + at, eights), total)
                    simd.store(blended, target + at, total)
        for x in range(W):
            p = first + x
            here = x * C if S else 0
            if p + AHEAD < span[1]:
                for v in range(far):
                    at = offsets_PV[p + AHEAD, v] * C
                    if reading:
                        simd.prefetch(read_table, at, eights)
                    if writing:
                        simd.prefetch(write_table, at, eights)
            for c in range(0, C, step):
                total = simd.load(given, p * C + c, eights)
                if mode == SOFTMAX_BACKWARD or (mode == READ and reading):
                    total = simd.splat(0.0, total)
                if reading:
                    for i in range(len(runs_I3)):
                        kernel = runs_I3[i, 0]
                        row = simd.load(read_table, offsets_PV[p, runs_I3[i, 1]] * C + c, eights)
                        message = simd.multiply(row, simd.splat(weights_PV[p, runs_I3[i, 1]], row))
                        for v in range(runs_I3[i, 1] + 1, runs_I3[i, 2]):
                            row = simd.load(read_table, offsets_PV[p, v] * C + c, eights)
                            message = simd.fma(weights_PV[p, v], row, message)
                        total = simd.fma(scale_K[kernel] * read_norm_PK[p, kernel], message, total)
                    for s in range(S):
                        kernel = band_kernels[s]
                        base = (s * widest + read_x_start[s, x]) * C + c
                        row = simd.load(blended, base, eights)
                        message = simd.multiply(row, simd.splat(read_x[s, x, 0], row))
                        for i in range(1, read_x.shape[2]):
                            message = simd.fma(read_x[s, x, i], simd.load(blended, base + i * C, eights), message)
                        total = simd.fma(scale_K[kernel] * read_norm_PK[p, kernel], message, total)
                simd.store(line, c, total)
            first_row = simd.load(line, 0, eights)
            if mode == SOFTMAX:
                top = first_row
                for c in range(step, C, step):
                    top = simd.maximum(top, simd.load(line, c, eights))
                peak = simd.splat(simd.largest(top), top)
                partial = simd.splat(0.0, top)
                for c in range(0, C, step):
                    power = simd.exp(simd.subtract(simd.load(line, c, eights), peak))
                    partial = simd.add(partial, power)
                    simd.store(values, here + c, power)
                inverse = simd.splat(1 / simd.total(partial), partial)
                for c in range(0, C, step):
                    simd.store(values, here + c, simd.multiply(simd.load(values, here + c, eights), inverse))
                if storing:
                    for c in range(0, C, step):
                        simd.store(out, p * C + c, simd.load(line, c, eights))
            elif mode == SOFTMAX_BACKWARD:
                partial = simd.splat(0.0, first_row)
                for c in range(0, C, step):
                    partial = simd.add(partial, simd.multiply(simd.load(q, p * C + c, eights), simd.load(line, c, eights)))
                mean = simd.splat(simd.total(partial), partial)
                for c in range(0, C, step):
                    row = simd.subtract(simd.load(line, c, eights), mean)
                    row = simd.multiply(simd.load(q, p * C + c, eights), row)
                    simd.store(values, here + c, row)
                    if storing:
                        simd.store(out, p * C + c, simd.add(row, simd.load(out, p * C + c, eights)))
            else:
                for c in range(0, C, step):
                    row = simd.load(line, c, eights)
                    simd.store(values, here + c, row)
                    if storing:
                        simd.store(out, p * C + c, row)
            if keeping:
                for c in range(0, C, step):
                    simd.store(q, p * C + c, simd.load(values, here + c, eights))
            if writing:
                for c in range(0, C, step):
                    value = simd.load(values, here + c, eights)
                    for i in range(len(runs_I3)):
                        scaled = simd.multiply(value, simd.splat(write_norm_PK[p, runs_I3[i, 0]], value))
                        for v in range(runs_I3[i, 1], runs_I3[i, 2]):
                            at = offsets_PV[p, v] * C + c
                            row = simd.fma(weights_PV[p, v], scaled, simd.load(write_table, at, eights))
                            simd.store(write_table, at, row)
        if writing:
            for s in range(S):
                kernel = band_kernels[s]
                for X in range(coarse_cols[s]):
                    for c in range(0, C, step):
                        total = simd.splat(0.0, simd.load(values, c, eights))
                        start = write_x_start[s, X]
                        for i in range(write_x.shape[2]):
                            weight = write_x[s, X, i]
                            if weight != 0:
                                weight *= write_norm_PK[first + start + i, kernel]
                                total = simd.fma(weight, simd.load(values, (start + i) * C + c, eights), total)
                        for i in range(write_y.shape[2]):
                            weight = write_y[s, y, i]
                            if weight != 0:
                                at = (write_begin[s] + (write_y_start[s, y] + i) * coarse_cols[s] + X) * C + c
                                simd.store(band_write, at, simd.fma(weight, total, simd.load(band_write, at, eights)))


@_jit
def gather_shared(table: NDArray[Any], pairs: NDArray[np.int32], start: int, stop: int, C: int, step: int, eights: Any) -> None:
    """Add to rows what other threads wrote for them: pairs (owner, other), owner by owner. [start, stop) keeps owners whole."""
    for i in range(start, stop):
        for c in range(0, C, step):
            at = pairs[i, 0] * C + c
            mine = simd.load(table, at, eights)
            simd.store(table, at, simd.add(mine, simd.load(table, pairs[i, 1] * C + c, eights)))


@_jit
def scatter_shared(
    table: NDArray[Any], pairs: NDArray[np.int32], start: int, stop: int, C: int, step: int, eights: Any
) -> None:
    """The way back: rows that other threads read are copies of their owners'."""
    for i in range(start, stop):
        for c in range(0, C, step):
            simd.store(table, pairs[i, 1] * C + c, simd.load(table, pairs[i, 0] * C + c, eights))


@_jit
def blur_chains(table: NDArray[Any], chain: NDArray[np.int32], start: int, stop: int, C: int, step: int, eights: Any) -> None:
    """v_i <- v_i + (v_{i-1} + v_{i+1}) / 2 along lines of neighbours, in place. [start, stop) keeps lines whole."""
    for c in range(0, C, step):
        i = start
        while i < stop:
            current_at = (~chain[i]) * C + c  # a line begins
            current = simd.load(table, current_at, eights)
            previous = simd.splat(0.0, current)
            i += 1
            while i < stop and chain[i] >= 0:
                if i + 4 < stop:
                    ahead = chain[i + 4]
                    simd.prefetch(table, (ahead if ahead >= 0 else ~ahead) * C + c, eights)
                following_at = chain[i] * C + c
                following = simd.load(table, following_at, eights)
                simd.store(table, current_at, simd.fma(0.5, simd.add(previous, following), current))
                previous, current, current_at = current, following, following_at
                i += 1
            simd.store(table, current_at, simd.fma(0.5, previous, current))


@_jit
def blur_axis(
    table: NDArray[Any],
    first_row: int,
    shape: tuple[int, int, int],
    taps: NDArray[Any],
    start: int,
    stop: int,
    C: int,
    step: int,
    eights: Any,
) -> None:
    """Convolve lines [start, stop) of a dense grid of rows (outer, length, inner) along the middle, in place; 0 outside.

    `taps`: the middle one and those to one side of it.
    """
    _, length, inner = shape
    line = np.empty(length * step, table.dtype)
    radius = len(taps) - 1
    for index in range(start, stop):
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


@_jit
def mix_rows(table: NDArray[Any], matrix_CC: NDArray[Any], start: int, stop: int, C: int, step: int, eights: Any) -> None:
    """Rows [start, stop): r <- A r, with `matrix_CC` = A transposed, so that its rows are A's columns."""
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


@_jit
def outer_product(
    left: NDArray[Any], right: NDArray[Any], start: int, stop: int, sum_CC: NDArray[Any], C: int, step: int, eights: Any
) -> None:
    """sum_CC += the sum over rows [start, stop) of left (row) x right (row)."""
    flat = sum_CC.reshape(-1)
    for row in range(start, stop):
        for c in range(0, C, step):
            values = simd.load(right, row * C + c, eights)
            for d in range(C):
                at = d * C + c
                simd.store(flat, at, simd.fma(left[row * C + d], values, simd.load(flat, at, eights)))
