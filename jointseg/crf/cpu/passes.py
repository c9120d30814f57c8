"""One pass over the pixels: messages are read, the next values made, and written. Compiled; a call is one thread's share.

Not here: what is done to the tables between passes (tables.py), where rows lie (layout.py), the order of it all (program.py).
"""

# P pixels, V rows a pixel reads and writes, K kernels, S of them separable, C channels padded to whole vectors

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.compiled import compiled, inner
from jointseg.crf.cpu.team import wait

READ, SOFTMAX, SOFTMAX_BACKWARD = 0, 1, 2
"""What becomes of the messages a pixel has read: nothing; the next q; the gradient by the logits before."""

TILE = 32
"""Pixels that go through a pass's steps together: their rows stay in the innermost cache, and a step's pixels overlap."""
AHEAD = 4
"""How many pixels ahead rows of large tables are asked for: they come from the outer caches."""


@inner
def _copy(source: NDArray[Any], at: int, target: NDArray[Any], to: int, count: int, eights: Any) -> None:
    """Numbers [at, at + count) to [to, ...), whole vectors. Not by slices: their error messages take seconds to compile."""
    for i in range(0, count, simd.LANES * len(eights)):
        simd.store(target, to + i, simd.load(source, at + i, eights))


@inner
def _add(source: NDArray[Any], at: int, target: NDArray[Any], to: int, count: int, eights: Any) -> None:
    """Numbers [at, at + count) added to [to, ...), whole vectors."""
    for i in range(0, count, simd.LANES * len(eights)):
        simd.store(target, to + i, simd.add(simd.load(source, at + i, eights), simd.load(target, to + i, eights)))


@inner
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


@inner
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


@inner
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


@inner
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


@inner
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


@inner
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


@inner
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


@inner
def _clear(structure: Any, write: tuple[NDArray[Any], NDArray[Any]], team: Any, C: int) -> None:
    """This thread's share of what will be written becomes 0: a part of the rows, and all of its own slabs."""
    t, T, total = team.thread, team.num_threads, structure.num_rows
    write[0][total * t // T * C : total * (t + 1) // T * C] = 0
    begins_TS = structure.bands.slab_begin_TS
    if begins_TS.shape[1] > 0:
        last = begins_TS[t + 1, 0] * C if t + 1 < T else len(write[1])
        write[1][begins_TS[t, 0] * C : last] = 0


@compiled
def pixel_pass(
    mode: int,
    structure: Any,
    values: Any,
    team: Any,
    phase: int,
    flip: bool,
    norms: tuple[NDArray[Any], NDArray[Any]],
    does: tuple[bool, bool, bool, bool, bool],
    given: NDArray[Any],
    q: NDArray[Any],
    out: NDArray[Any],
    rows: Any,
) -> int:
    """Read each pixel's messages, make of them what `mode` says, and write that to the tables the next messages come from.

    With m = sum over the kernels of scale * read_norm * (what is read):
    - READ: value = m where reading, else `given`; `out` gets it where storing;
    - SOFTMAX: logits = given + m; value = softmax(logits). `out` gets the logits where storing;
    - SOFTMAX_BACKWARD: value = q * (m - <q, m>), and `out` has value added where storing.
    What is written is write_norm * value; `q` gets the value where keeping (READ, SOFTMAX).

    `structure` is a layout.Structure, `values` a program.Values (what is written lies in `other`, or in `table` where `flip`),
    `norms` are read_norm and write_norm (P, K), `does`: reading, writing, keeping, storing, and whether write_norm is 1
    everywhere. The rest is flat, rows of C numbers. Returns the barriers so far, `phase` of them before.
    """
    C = simd.LANES * len(rows[0]) * len(rows[1])
    reading, writing, keeping, storing, plain = does
    read, write = (values.other, values.table) if flip else (values.table, values.other)
    if writing:
        _clear(structure, (write, values.slabs), team, C)
        phase = wait(team.arrivals, phase, team.num_threads)
    bands, runs_I4, W = structure.bands, structure.runs_I4, structure.W
    S = len(bands.kernel)
    blended_SN = np.empty((S, bands.widest * C), given.dtype)
    line, tile = np.empty(W * C, given.dtype), np.empty(TILE * C, given.dtype)
    for y in range(structure.lines_T2[team.thread, 0], structure.lines_T2[team.thread, 1]):
        if reading:
            for s in range(S):
                begin, pitch = (bands.read_begin[s] + bands.read_y_start[s, y] * bands.cols[s]) * C, bands.cols[s] * C
                _blend_coarse_rows(values.coarse, begin, pitch, bands.read_y[s, y], blended_SN[s], rows)
        for left in range(0, W, TILE):
            right = min(left + TILE, W)
            here, begin_here, size = (y * W + left, y * W + right), (y * W + left) * C, (right - left) * C
            if mode == SOFTMAX or not reading:
                _copy(given, begin_here, tile, 0, size, rows[0])
            else:
                tile[:] = 0
            if reading:
                for i in range(len(runs_I4)):
                    scale = values.scale_K[runs_I4[i, 0]]
                    _read_rows(read, structure.offsets_PV, structure.weights_PV, runs_I4[i], scale, norms[0], here, tile, rows)
                for s in range(S):
                    kernel = bands.kernel[s]
                    _read_band(
                        blended_SN[s], bands.read_x_start[s], bands.read_x[s], (left, right), values.scale_K[kernel],
                        norms[0], kernel, y * W, tile, rows,
                    )  # fmt: skip
            if storing and mode != SOFTMAX_BACKWARD:
                _copy(tile, 0, out, begin_here, size, rows[0])
            if mode == SOFTMAX:
                _softmax(tile, right - left, line, left * C, rows)
            elif mode == SOFTMAX_BACKWARD:
                _softmax_backward(tile, right - left, q, begin_here, line, left * C, rows)
                if storing:
                    _add(line, left * C, out, begin_here, size, rows[0])
            else:
                _copy(tile, 0, line, left * C, size, rows[0])
            if keeping:
                _copy(line, left * C, q, begin_here, size, rows[0])
            if writing:
                for i in range(len(runs_I4)):
                    _write_rows(
                        write, structure.offsets_PV, structure.weights_PV, runs_I4[i], norms[1], here, line, left * C, rows
                    )
        if writing:
            for s in range(S):
                down = bands.write_y_start[s, y] - bands.slab_TS2[team.thread, s, 0]
                begin = (bands.slab_begin_TS[team.thread, s] + down * bands.cols[s]) * C
                _write_band(
                    line, plain, norms[1], bands.kernel[s], y * W, bands.write_x_start[s], bands.write_x[s],
                    values.slabs, begin, bands.cols[s] * C, bands.write_y[s, y], rows,
                )  # fmt: skip
    return phase
