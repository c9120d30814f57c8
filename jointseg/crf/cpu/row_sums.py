"""K 1 of each kernel, one number a pixel: what messages are divided by. Compiled, for a team of threads.

Not here: filtering of rows of channels (engine.py), which would give the same at several times the cost.
"""

# P pixels, V rows a pixel reads and writes, K kernels, I of them lattices, G of them grids

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.compiled import compiled, inner
from jointseg.crf.cpu.layout import LINES
from jointseg.crf.cpu.parts import Band, Separable
from jointseg.crf.cpu.team import wait


@inner
def _blur_chains(table: NDArray[Any], first_row: int, chains: NDArray[np.int32], start: int, stop: int) -> None:
    """tables.blur_chains, of numbers."""
    half = table.dtype.type(0.5)
    i = start
    while i < stop:
        at = first_row + ~chains[i]  # a line begins
        previous, current = table.dtype.type(0), table[at]
        i += 1
        while i < stop and chains[i] >= 0:
            following_at = first_row + chains[i]
            following = table[following_at]
            table[at] = current + half * (previous + following)
            previous, current, at = current, following, following_at
            i += 1
        table[at] = current + half * previous


@inner
def _blur_axis(table: NDArray[Any], blur_9: NDArray[np.int64], taps: NDArray[Any], start: int, stop: int) -> None:
    """tables.blur_axis, of numbers."""
    first_row, length, inner = blur_9[2], blur_9[5], blur_9[6]
    line = np.empty(length, table.dtype)
    for index in range(start, stop):
        base = first_row + index // inner * length * inner + index % inner
        busy = False
        for i in range(length):
            line[i] = table[base + i * inner]
            busy = busy or line[i] != 0
        if not busy:
            continue
        for i in range(length):
            total = taps[blur_9[7]] * line[i]
            for r in range(1, blur_9[8] - blur_9[7]):
                if i >= r:
                    total += taps[blur_9[7] + r] * line[i - r]
                if i + r < length:
                    total += taps[blur_9[7] + r] * line[i + r]
            table[base + i * inner] = total


@inner
def _write(structure: Any, mask_PK: NDArray[Any], table: NDArray[Any], start: int, stop: int) -> None:
    """Add each pixel's weights to its rows, in kernels where it takes part."""
    offsets_PV, weights_PV, runs_I4 = structure.offsets_PV, structure.weights_PV, structure.runs_I4
    for i in range(len(runs_I4)):
        k, first, last = runs_I4[i, 0], np.uint64(runs_I4[i, 1]), np.uint64(runs_I4[i, 2])
        for p in range(np.uint64(start), np.uint64(stop)):  # unsigned numbers: numba counts negative ones from the end
            if mask_PK[p, k] != 0:
                for v in range(first, last):
                    table[np.uint64(offsets_PV[p, v])] += weights_PV[p, v]


@inner
def _read(structure: Any, mask_PK: NDArray[Any], table: NDArray[Any], sums_PK: NDArray[Any], start: int, stop: int) -> None:
    """The weighted sums of each pixel's rows; 0 in kernels where it takes no part."""
    offsets_PV, weights_PV, runs_I4 = structure.offsets_PV, structure.weights_PV, structure.runs_I4
    for i in range(len(runs_I4)):
        k, first, last = runs_I4[i, 0], np.uint64(runs_I4[i, 1]), np.uint64(runs_I4[i, 2])
        for p in range(np.uint64(start), np.uint64(stop)):
            total = table.dtype.type(0)
            if mask_PK[p, k] != 0:
                for v in range(first, last):
                    total += weights_PV[p, v] * table[np.uint64(offsets_PV[p, v])]
            sums_PK[p, k] = total


@inner
def _corners(cells: Any, g: int, y: int, x: int, p: int, cols: int, weights_4: NDArray[Any]) -> Any:
    """Weights of the first of each two points along depth that a pixel reads, in order of y and x; returns where they begin."""
    one = weights_4.dtype.type(1)
    down, right = cells.y_above[g, y], cells.x_above[g, x]
    weights_4[0], weights_4[1] = (one - down) * (one - right), (one - down) * right
    weights_4[2], weights_4[3] = down * (one - right), down * right
    return cells.y_cell[g, y] * cols + cells.x_cell[g, x] * cells.depth[g] + cells.d_cell[p, g]


@inner
def _write_cells(structure: Any, mask_PK: NDArray[Any], thread: int, slabs: NDArray[Any]) -> None:
    """Add each pixel's weights to its cell's points in the thread's slab, in grids where it takes part."""
    coarse, cells, W = structure.coarse, structure.cells, structure.W
    weights_4 = np.empty(4, slabs.dtype)
    for g in range(len(cells.depth)):
        s = len(structure.bands.read_x.start) + g
        k, D, cols = coarse.kernel[s], cells.depth[g], coarse.cols[s]
        begin = coarse.slab_begin_TS[thread, s] - coarse.slab_TS2[thread, s, 0] * cols
        for y in range(structure.lines_T2[thread, 0], structure.lines_T2[thread, 1]):
            for x in range(W):
                p = y * W + x
                if mask_PK[p, k] == 0:
                    continue
                at, above = begin + _corners(cells, g, y, x, p, cols, weights_4), cells.d_above[p, g]
                for corner in range(4):
                    to = np.uint64(at + (corner >> 1) * cols + (corner & 1) * D)
                    upper = weights_4[corner] * above
                    slabs[to] += weights_4[corner] - upper
                    slabs[to + np.uint64(1)] += upper


@inner
def _read_cells(structure: Any, mask_PK: NDArray[Any], thread: int, points: NDArray[Any], sums_PK: NDArray[Any]) -> None:
    """The weighted sums of each pixel's cell's points; 0 in grids where it takes no part."""
    coarse, cells, W = structure.coarse, structure.cells, structure.W
    weights_4 = np.empty(4, points.dtype)
    for g in range(len(cells.depth)):
        s = len(structure.bands.read_x.start) + g
        k, D, cols = coarse.kernel[s], cells.depth[g], coarse.cols[s]
        for y in range(structure.lines_T2[thread, 0], structure.lines_T2[thread, 1]):
            for x in range(W):
                p, total = y * W + x, points.dtype.type(0)
                if mask_PK[p, k] != 0:
                    at, above = coarse.read_begin[s] + _corners(cells, g, y, x, p, cols, weights_4), cells.d_above[p, g]
                    for corner in range(4):
                        to = np.uint64(at + (corner >> 1) * cols + (corner & 1) * D)
                        total += weights_4[corner] * (points[to] + above * (points[to + np.uint64(1)] - points[to]))
                sums_PK[p, k] = total


@inner
def _gather(coarse: Any, thread: int, num_threads: int, slabs: NDArray[Any], points: NDArray[Any]) -> None:
    """tables.gather_slabs, of numbers, all of them: points were 0."""
    for s in range(len(coarse.kernel)):
        cols = coarse.cols[s]
        lines = (coarse.read_begin[s + 1] - coarse.read_begin[s]) // cols
        for other in range(num_threads):
            first, last = coarse.slab_TS2[other, s]
            here = (max(first, lines * thread // num_threads), min(last, lines * (thread + 1) // num_threads))
            for line in range(here[0], here[1]):
                to, at = coarse.read_begin[s] + line * cols, coarse.slab_begin_TS[other, s] + (line - first) * cols
                for i in range(cols):
                    points[to + i] += slabs[at + i]


@compiled
def lattice_and_grid_sums(
    structure: Any, mask_PK: NDArray[Any], team: Any, table: NDArray[Any], points: NDArray[Any], slabs: NDArray[Any],
    sums_PK: NDArray[Any],
) -> None:  # fmt: skip
    """Write K 1 of the lattices and grids to `sums_PK`, 0 where `mask_PK` is 0.

    `structure` is a layout.Structure, `team` a program.Team. The tables are zeros: one a row of the structure, and one a point
    of its coarse kernels, as they are read and as they are written.
    """
    pairs, blurs_N9, t, T = structure.pairs, structure.blurs_N9, team.thread, team.num_threads
    begin, end = structure.lines_T2[t, 0] * structure.W, structure.lines_T2[t, 1] * structure.W
    first, last = structure.pairs_T2[t]
    _write(structure, mask_PK, table, begin, end)
    _write_cells(structure, mask_PK, t, slabs)
    phase = wait(team.arrivals, 0, T)
    for i in range(first, last):
        table[pairs[i, 0]] += table[pairs[i, 1]]
    _gather(structure.coarse, t, T, slabs, points)
    phase = wait(team.arrivals, phase, T)
    for n in range(len(blurs_N9)):
        if n > 0 and blurs_N9[n, 0] > blurs_N9[n - 1, 0]:
            phase = wait(team.arrivals, phase, T)
        start, stop = structure.lines_NT2[n, t]
        if blurs_N9[n, 1] == LINES:
            at = blurs_N9[n, 3]
            _blur_chains(table, blurs_N9[n, 2], structure.chains, at + start, at + stop)
        else:
            _blur_axis(points, blurs_N9[n], structure.taps, start, stop)
    phase = wait(team.arrivals, phase, T)
    for i in range(first, last):
        table[pairs[i, 1]] = table[pairs[i, 0]]
    wait(team.arrivals, phase, T)
    _read(structure, mask_PK, table, sums_PK, begin, end)
    _read_cells(structure, mask_PK, t, points, sums_PK)


def separable_sums(part: Separable, valid_P: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float64]:
    """(P,): K 1 of a separable kernel, 0 where a pixel is not valid."""
    H, W = size
    if valid_P.all():
        sums_1W, sums_1H = (
            _times(_times(np.ones((1, n)), write.transposed()), read)
            for n, write, read in ((W, part.write_x, part.read_x), (H, part.write_y, part.read_y))
        )
        return (sums_1H.T * sums_1W).ravel()
    valid_HW = valid_P.reshape(H, W)
    along_x = _times(_times(valid_HW.astype(np.float64), part.write_x.transposed()), part.read_x)
    along_y = _times(_times(along_x.T, part.write_y.transposed()), part.read_y)
    return (along_y.T * valid_HW).ravel()


def _times(values: NDArray[np.float64], band: Band) -> NDArray[np.float64]:
    """Values (any, m) times the transpose of the band (n, m)."""
    total = np.zeros((len(values), len(band.start)))
    for tap in range(band.weights.shape[1]):
        total += band.weights[:, tap] * values[:, band.start + tap]
    return total
