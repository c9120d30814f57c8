"""One pass over the pixels: messages are read, the next values made, and written. Compiled; a call is one thread's share.

Not here: the tables between passes (tables.py), where rows lie (layout.py, coarse.py), the order of it all (program.py).
"""

# P pixels, V rows a pixel reads and writes, K kernels, C channels padded to whole vectors

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.band_steps import TwoRows, blend_bands, gather_bands, read_bands, scatter_bands
from jointseg.crf.cpu.cell_steps import Column, read_cells, write_cells
from jointseg.crf.cpu.compiled import compiled, inner
from jointseg.crf.cpu.team import wait

READ, SOFTMAX, SOFTMAX_BACKWARD = 0, 1, 2
"""What becomes of the messages a pixel has read: nothing; the next q; the gradient by the logits before."""

TILE = 640
"""Columns of an image row that go through a pass's steps together, an even number. A whole row is fastest while a core's own
caches hold it."""
AHEAD = 4
"""How many pixels ahead rows of large tables are asked for: they come from the outer caches."""


@inner
def _copy(source: NDArray[Any], at: int, target: NDArray[Any], to: int, count: int, eights: Any) -> None:
    """Numbers [at, at + count) to [to, ...), whole vectors. Not by slices: their error messages take seconds to compile."""
    for i in range(0, count, simd.LANES * len(eights)):
        simd.store(target, to + i, simd.load(source, at + i, eights))


@inner
def _add(tile: NDArray[Any], target: NDArray[Any], to: int, count: int, eights: Any) -> None:
    """The first `count` numbers of the tile added to [to, ...), whole vectors."""
    for i in range(0, count, simd.LANES * len(eights)):
        simd.store(target, to + i, simd.add(simd.load(tile, i, eights), simd.load(target, to + i, eights)))


@inner
def _read_rows(
    structure: Any, values: Any, table: NDArray[Any], i: int, begin: int, count: int, norm_PK: NDArray[Any],
    tile: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add to `tile`: scale * norm * the weighted sum of the rows that `count` pixels from `begin` on read, for lattice `i`."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    kernel, first, last, far = structure.runs_I4[i]
    offsets_PV, weights_PV, factor = structure.offsets_PV, structure.weights_PV, values.scale_K[kernel]
    P, V = offsets_PV.shape
    K = norm_PK.shape[1]
    for p in range(begin, begin + count):
        weight = simd.item(norm_PK, p * K + kernel) * factor
        if far and p + AHEAD < P:
            for at in range((p + AHEAD) * V + first, (p + AHEAD) * V + last):
                simd.prefetch(table, simd.item(offsets_PV, at) * C, eights)
        for c in range(0, C, step):
            message = simd.splat(0.0, simd.load(tile, c, eights))
            for at in range(p * V + first, p * V + last):
                row = simd.load(table, simd.item(offsets_PV, at) * C + c, eights)
                message = simd.fma(simd.item(weights_PV, at), row, message)
            to = (p - begin) * C + c
            simd.store(tile, to, simd.fma(weight, message, simd.load(tile, to, eights)))


@inner
def _write_rows(
    structure: Any, table: NDArray[Any], i: int, begin: int, count: int, norm_PK: NDArray[Any], tile: NDArray[Any], rows: Any
) -> None:
    """Add norm * weight * value of `count` pixels from `begin` on, which `tile` holds, to their rows of lattice `i`."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    kernel, first, last, far = structure.runs_I4[i]
    offsets_PV, weights_PV = structure.offsets_PV, structure.weights_PV
    P, V = offsets_PV.shape
    K = norm_PK.shape[1]
    for p in range(begin, begin + count):
        if far and p + AHEAD < P:
            for at in range((p + AHEAD) * V + first, (p + AHEAD) * V + last):
                simd.prefetch(table, simd.item(offsets_PV, at) * C, eights)
        for c in range(0, C, step):
            value = simd.load(tile, (p - begin) * C + c, eights)
            value = simd.multiply(value, simd.splat(simd.item(norm_PK, p * K + kernel), value))
            for at in range(p * V + first, p * V + last):
                to = simd.item(offsets_PV, at) * C + c
                simd.store(table, to, simd.fma(simd.item(weights_PV, at), value, simd.load(table, to, eights)))


@inner
def _softmax(tile: NDArray[Any], count: int, rows: Any) -> None:
    """The softmax of `count` rows in their place."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for base in range(0, count * C, C):
        greatest = simd.load(tile, base, eights)
        for c in range(step, C, step):
            greatest = simd.maximum(greatest, simd.load(tile, base + c, eights))
        peak = simd.splat(simd.largest(greatest), greatest)
        partial = simd.splat(0.0, greatest)
        for c in range(0, C, step):
            power = simd.exp(simd.subtract(simd.load(tile, base + c, eights), peak))
            partial = simd.add(partial, power)
            simd.store(tile, base + c, power)
        inverse = simd.splat(1 / simd.total(partial), partial)
        for c in range(0, C, step):
            simd.store(tile, base + c, simd.multiply(simd.load(tile, base + c, eights), inverse))


@inner
def _softmax_backward(tile: NDArray[Any], count: int, q: NDArray[Any], at: int, rows: Any) -> None:
    """The softmax's derivative q * (g - <q, g>) of `count` rows of g in their place; q lies from `at` on."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for base in range(0, count * C, C):
        partial = simd.splat(0.0, simd.load(tile, base, eights))
        for c in range(0, C, step):
            product = simd.multiply(simd.load(q, at + base + c, eights), simd.load(tile, base + c, eights))
            partial = simd.add(partial, product)
        mean = simd.splat(simd.total(partial), partial)
        for c in range(0, C, step):
            row = simd.subtract(simd.load(tile, base + c, eights), mean)
            simd.store(tile, base + c, simd.multiply(simd.load(q, at + base + c, eights), row))


@inner
def _clear(structure: Any, write: tuple[NDArray[Any], NDArray[Any]], team: Any, C: int) -> None:
    """This thread's share of what will be written becomes 0: a part of the rows, and all of its own slabs."""
    t, T, total = team.thread, team.num_threads, structure.num_rows
    write[0][total * t // T * C : total * (t + 1) // T * C] = 0
    begins_TS = structure.coarse.slab_begin_TS
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
    W, A, G = structure.W, len(structure.bands.read_x.start), len(structure.cells.depth)
    line_A2N, deepest = (A, 2, structure.bands.widest * C), structure.cells.deepest
    lines = TwoRows(np.empty(line_A2N, given.dtype), np.empty(line_A2N, given.dtype))
    column = Column(np.empty(2 * deepest * C, given.dtype), np.zeros(deepest + 1, np.int64), np.empty(deepest, np.int64))
    tile, gathered_A = np.empty(TILE * C, given.dtype), np.empty(A, np.int64)
    first_y, last_y = structure.lines_T2[team.thread]
    for y in range(first_y, last_y):
        second = (y - first_y) % 2
        if reading and second == 0:
            for a in range(A):
                blend_bands(structure, values, a, y, lines, rows)
        gathered_A[:] = 0
        for left in range(0, W, TILE):
            columns = (left, min(left + TILE, W))
            first, count = y * W + left, columns[1] - left
            if mode == SOFTMAX or not reading:
                _copy(given, first * C, tile, 0, count * C, rows[0])
            else:
                tile[:] = 0
            if reading:
                for i in range(len(structure.runs_I4)):
                    _read_rows(structure, values, read, i, first, count, norms[0], tile, rows)
                for a in range(A):
                    read_bands(structure, values, a, y, second, columns, norms[0], lines, tile, rows)
                for g in range(G):
                    read_cells(structure, values, g, y, columns, norms[0], column, tile, rows)
            if storing and mode != SOFTMAX_BACKWARD:
                _copy(tile, 0, out, first * C, count * C, rows[0])
            if mode == SOFTMAX:
                _softmax(tile, count, rows)
            elif mode == SOFTMAX_BACKWARD:
                _softmax_backward(tile, count, q, first * C, rows)
                if storing:
                    _add(tile, out, first * C, count * C, rows[0])
            if keeping:
                _copy(tile, 0, q, first * C, count * C, rows[0])
            if writing:
                for i in range(len(structure.runs_I4)):
                    _write_rows(structure, write, i, first, count, norms[1], tile, rows)
                for a in range(A):
                    gathered_A[a] = gather_bands(
                        structure, a, y, second, columns, gathered_A[a], plain, norms[1], lines, tile, rows
                    )
                for g in range(G):
                    write_cells(structure, values, team, g, y, columns, plain, norms[1], column, tile, rows)
        if writing and (second == 1 or y + 1 == last_y):
            for a in range(A):
                if second == 0:
                    lines.written[a, 1] = 0  # there is no other row
                scatter_bands(structure, values, team.thread, a, y - second, lines, rows)
    return phase
