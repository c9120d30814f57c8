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
_inner = numba.njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

READ, SOFTMAX, SOFTMAX_BACKWARD = 0, 1, 2
"""What becomes of the messages a pixel has read: nothing; the next q; the gradient by the logits before."""

TILE = 32
"""Pixels that go through a pass's steps together: their rows stay in the innermost cache, and a step's pixels overlap."""
AHEAD = 4
"""How many pixels ahead rows of large tables are asked for: they come from the outer caches."""


@_jit
def clear(table: NDArray[Any], start: int, stop: int) -> None:
    """Numbers [start, stop) of a table become 0."""
    table[start:stop] = 0


@_inner
def _copy(source: NDArray[Any], at: int, target: NDArray[Any], to: int, count: int, eights: Any) -> None:
    """Numbers [at, at + count) to [to, ...), whole vectors. Not by slices: their error messages take seconds to compile."""
    for i in range(0, count, simd.LANES * len(eights)):
        simd.store(target, to + i, simd.load(source, at + i, eights))


@_inner
def _add(source: NDArray[Any], at: int, target: NDArray[Any], to: int, count: int, eights: Any) -> None:
    """Numbers [at, at + count) added to [to, ...), whole vectors."""
    for i in range(0, count, simd.LANES * len(eights)):
        simd.store(target, to + i, simd.add(simd.load(source, at + i, eights), simd.load(target, to + i, eights)))


@_inner
def _read_rows(
    table: NDArray[Any], offsets_PV: NDArray[np.int32], weights_PV: NDArray[Any], run: NDArray[np.int64], factor: float,
    norm_PK: NDArray[Any], span: tuple[int, int], target: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add to `target`: factor * norm * the weighted sum of the rows each pixel of `span` reads for one kernel."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    kernel, first, last, far = run
    for p in range(span[0], span[1]):
        weight = norm_PK[p, kernel] * factor
        if far and p + AHEAD < len(offsets_PV):
            for v in range(first, last):
                simd.prefetch(table, offsets_PV[p + AHEAD, v] * C, eights)
        for c in range(0, C, step):
            row = simd.load(table, offsets_PV[p, first] * C + c, eights)
            message = simd.multiply(row, simd.splat(weights_PV[p, first], row))
            for v in range(first + 1, last):
                message = simd.fma(weights_PV[p, v], simd.load(table, offsets_PV[p, v] * C + c, eights), message)
            at = (p - span[0]) * C + c
            simd.store(target, at, simd.fma(weight, message, simd.load(target, at, eights)))


@_inner
def _write_rows(
    table: NDArray[Any], offsets_PV: NDArray[np.int32], weights_PV: NDArray[Any], run: NDArray[np.int64],
    norm_PK: NDArray[Any], span: tuple[int, int], values: NDArray[Any], begin: int, rows: Any,
) -> None:  # fmt: skip
    """Add norm * weight * value of each pixel of `span` to its rows for one kernel; the values lie from `begin` on."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    kernel, first, last, far = run
    for p in range(span[0], span[1]):
        if far and p + AHEAD < len(offsets_PV):
            for v in range(first, last):
                simd.prefetch(table, offsets_PV[p + AHEAD, v] * C, eights)
        for c in range(0, C, step):
            value = simd.load(values, begin + (p - span[0]) * C + c, eights)
            value = simd.multiply(value, simd.splat(norm_PK[p, kernel], value))
            for v in range(first, last):
                at = offsets_PV[p, v] * C + c
                simd.store(table, at, simd.fma(weights_PV[p, v], value, simd.load(table, at, eights)))


@_inner
def _blend_coarse_rows(
    table: NDArray[Any], begin: int, pitch: int, weights_T: NDArray[Any], target: NDArray[Any], rows: Any
) -> None:
    """Set `target` to the weighted sum of successive coarse rows, `pitch` numbers apart, the first at `begin`."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    for at in range(0, pitch, step):
        row = simd.load(table, begin + at, eights)
        total = simd.multiply(row, simd.splat(weights_T[0], row))
        for i in range(1, len(weights_T)):
            total = simd.fma(weights_T[i], simd.load(table, begin + i * pitch + at, eights), total)
        simd.store(target, at, total)


@_inner
def _read_band(
    blended: NDArray[Any], starts: NDArray[np.int64], weights_WT: NDArray[Any], columns: tuple[int, int], factor: float,
    norm_PK: NDArray[Any], kernel: int, first: int, target: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add to `target`: factor * norm * the weighted sum of coarse columns, for columns of the row from pixel `first` on."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for x in range(columns[0], columns[1]):
        weight = norm_PK[first + x, kernel] * factor
        for c in range(0, C, step):
            base = starts[x] * C + c
            row = simd.load(blended, base, eights)
            message = simd.multiply(row, simd.splat(weights_WT[x, 0], row))
            for i in range(1, weights_WT.shape[1]):
                message = simd.fma(weights_WT[x, i], simd.load(blended, base + i * C, eights), message)
            at = (x - columns[0]) * C + c
            simd.store(target, at, simd.fma(weight, message, simd.load(target, at, eights)))


@_inner
def _write_band(
    values: NDArray[Any], plain: bool, norm_PK: NDArray[Any], kernel: int, first: int, starts: NDArray[np.int64],
    weights_XT: NDArray[Any], table: NDArray[Any], begin: int, pitch: int, weights_T: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add an image row's norm * values to the coarse rows from `begin` on: along x first, then once for each y."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for X in range(pitch // C):
        for c in range(0, C, step):
            total = simd.splat(0.0, simd.load(values, c, eights))
            for i in range(weights_XT.shape[1]):
                x = starts[X] + i
                weight = weights_XT[X, i] if plain else weights_XT[X, i] * norm_PK[first + x, kernel]
                total = simd.fma(weight, simd.load(values, x * C + c, eights), total)
            for i in range(len(weights_T)):
                at = begin + i * pitch + X * C + c
                simd.store(table, at, simd.fma(weights_T[i], total, simd.load(table, at, eights)))


@_inner
def _softmax(logits: NDArray[Any], count: int, values: NDArray[Any], begin: int, rows: Any) -> None:
    """The softmax of `count` rows, written from `begin` on."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for pixel in range(count):
        base = pixel * C
        greatest = simd.load(logits, base, eights)
        for c in range(step, C, step):
            greatest = simd.maximum(greatest, simd.load(logits, base + c, eights))
        peak = simd.splat(simd.largest(greatest), greatest)
        partial = simd.splat(0.0, greatest)
        for c in range(0, C, step):
            power = simd.exp(simd.subtract(simd.load(logits, base + c, eights), peak))
            partial = simd.add(partial, power)
            simd.store(values, begin + base + c, power)
        inverse = simd.splat(1 / simd.total(partial), partial)
        for c in range(0, C, step):
            simd.store(values, begin + base + c, simd.multiply(simd.load(values, begin + base + c, eights), inverse))


@_inner
def _softmax_backward(
    grads: NDArray[Any], count: int, q: NDArray[Any], at: int, values: NDArray[Any], begin: int, rows: Any
) -> None:
    """The softmax's derivative q * (g - <q, g>) of `count` rows of g, written from `begin` on; q lies from `at` on."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for pixel in range(count):
        base = pixel * C
        partial = simd.splat(0.0, simd.load(grads, base, eights))
        for c in range(0, C, step):
            product = simd.multiply(simd.load(q, at + base + c, eights), simd.load(grads, base + c, eights))
            partial = simd.add(partial, product)
        mean = simd.splat(simd.total(partial), partial)
        for c in range(0, C, step):
            row = simd.subtract(simd.load(grads, base + c, eights), mean)
            simd.store(values, begin + base + c, simd.multiply(simd.load(q, at + base + c, eights), row))


@_jit
def pixel_pass(
    mode: int,
    rows: Any,
    span: tuple[int, int],
    W: int,
    offsets_PV: NDArray[np.int32],
    weights_PV: NDArray[Any],
    runs_I4: NDArray[np.int64],
    read_norm_PK: NDArray[Any],
    write_norm_PK: NDArray[Any],
    scale_K: NDArray[Any],
    read_table: NDArray[Any],
    write_table: NDArray[Any],
    reading: bool,
    writing: bool,
    plain: bool,
    bands: Any,
    given: NDArray[Any],
    q: NDArray[Any],
    out: NDArray[Any],
    keeping: bool,
    storing: bool,
) -> None:
    """Read each pixel's messages, make of them what `mode` says, and write that to the table the next messages come from.

    With m = sum over the kernels of scale * read_norm * (what is read):
    - READ: value = m where reading, else `given`; `out` gets it where storing;
    - SOFTMAX: logits = given + m; value = softmax(logits). `out` gets the logits where storing;
    - SOFTMAX_BACKWARD: value = q * (m - <q, m>), and `out` has value added where storing.
    What is written is write_norm * value (`plain`: all of write_norm is 1); `q` gets the value where keeping (READ, SOFTMAX).

    `runs_I4`: kernel, first and last + 1 of its V, whether its table is large. `bands`: the separable kernels (see bands.py);
    their tables lie one behind the other. `given`, `q`, `out` and tables are flat, rows of C numbers.
    """
    C = simd.LANES * len(rows[0]) * len(rows[1])
    (
        band_kernels, read_x_start, read_x, read_y_start, read_y, write_x_start, write_x, write_y_start, write_y,
        coarse_cols, read_begin, write_begin, band_read, band_write,
    ) = bands  # fmt: skip
    S = len(band_kernels)
    widest = 1
    for s in range(S):
        widest = max(widest, coarse_cols[s])
    blended_SN = np.empty((S, widest * C), given.dtype)
    values, tile = np.empty(W * C, given.dtype), np.empty(TILE * C, given.dtype)
    for y in range(span[0] // W, span[1] // W):
        if reading:
            for s in range(S):
                begin, pitch = (read_begin[s] + read_y_start[s, y] * coarse_cols[s]) * C, coarse_cols[s] * C
                _blend_coarse_rows(band_read, begin, pitch, read_y[s, y], blended_SN[s], rows)
        for left in range(0, W, TILE):
            right = min(left + TILE, W)
            here, count = (y * W + left, y * W + right), right - left
            begin_here = here[0] * C
            if mode == SOFTMAX or not reading:
                _copy(given, begin_here, tile, 0, count * C, rows[0])
            else:
                tile[:] = 0
            if reading:
                for i in range(len(runs_I4)):
                    scale = scale_K[runs_I4[i, 0]]
                    _read_rows(read_table, offsets_PV, weights_PV, runs_I4[i], scale, read_norm_PK, here, tile, rows)
                for s in range(S):
                    kernel = band_kernels[s]
                    _read_band(
                        blended_SN[s], read_x_start[s], read_x[s], (left, right), scale_K[kernel],
                        read_norm_PK, kernel, y * W, tile, rows,
                    )  # fmt: skip
            if storing and mode != SOFTMAX_BACKWARD:
                _copy(tile, 0, out, begin_here, count * C, rows[0])
            if mode == SOFTMAX:
                _softmax(tile, count, values, left * C, rows)
            elif mode == SOFTMAX_BACKWARD:
                _softmax_backward(tile, count, q, begin_here, values, left * C, rows)
                if storing:
                    _add(values, left * C, out, begin_here, count * C, rows[0])
            else:
                _copy(tile, 0, values, left * C, count * C, rows[0])
            if keeping:
                _copy(values, left * C, q, begin_here, count * C, rows[0])
            if writing:
                for i in range(len(runs_I4)):
                    _write_rows(write_table, offsets_PV, weights_PV, runs_I4[i], write_norm_PK, here, values, left * C, rows)
        if writing:
            for s in range(S):
                begin, pitch = (write_begin[s] + write_y_start[s, y] * coarse_cols[s]) * C, coarse_cols[s] * C
                _write_band(
                    values, plain, write_norm_PK, band_kernels[s], y * W, write_x_start[s], write_x[s],
                    band_write, begin, pitch, write_y[s, y], rows,
                )  # fmt: skip


@_jit
def gather_shared(table: NDArray[Any], pairs: NDArray[np.int32], start: int, stop: int, rows: Any) -> None:
    """Add to rows what other threads wrote for them: pairs (owner, other), owner by owner. [start, stop) keeps owners whole."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for i in range(start, stop):
        for c in range(0, C, step):
            at = pairs[i, 0] * C + c
            mine = simd.load(table, at, eights)
            simd.store(table, at, simd.add(mine, simd.load(table, pairs[i, 1] * C + c, eights)))


@_jit
def scatter_shared(table: NDArray[Any], pairs: NDArray[np.int32], start: int, stop: int, rows: Any) -> None:
    """The way back: rows that other threads read are copies of their owners'."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for i in range(start, stop):
        for c in range(0, C, step):
            simd.store(table, pairs[i, 1] * C + c, simd.load(table, pairs[i, 0] * C + c, eights))


@_jit
def blur_chains(table: NDArray[Any], chain: NDArray[np.int32], start: int, stop: int, rows: Any) -> None:
    """v_i <- v_i + (v_{i-1} + v_{i+1}) / 2 along lines of neighbours, in place. [start, stop) keeps lines whole."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
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
    rows: Any,
) -> None:
    """Convolve lines [start, stop) of a dense grid of rows (outer, length, inner) along the middle, in place; 0 outside.

    `taps`: the middle one and those to one side of it.
    """
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
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


@_jit
def outer_product(left: NDArray[Any], right: NDArray[Any], start: int, stop: int, sum_CC: NDArray[Any], rows: Any) -> None:
    """sum_CC += the sum over rows [start, stop) of left (row) x right (row)."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    flat = sum_CC.reshape(-1)
    for row in range(start, stop):
        for c in range(0, C, step):
            values = simd.load(right, row * C + c, eights)
            for d in range(C):
                at = d * C + c
                simd.store(flat, at, simd.fma(left[row * C + d], values, simd.load(flat, at, eights)))
