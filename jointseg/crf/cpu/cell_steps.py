"""A pass's steps for grids: pixels of an image row that lie in one cell of the grid's x share what they read and write of it.

Not here: the pass (passes.py), the grid (grid.py). Along such a run of pixels only depth changes: points are summed over y
once, as a column of (depth, two sides in x), and pixels read and write that.
"""

# C channels padded to whole vectors, D points along depth

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.compiled import inner


class Column(NamedTuple):
    """A thread's own memory for the run it is at."""

    points: NDArray[Any]
    """(D, 2, C), flat."""
    stamps: NDArray[np.int64]
    """(D,): the last run for which this depth's points were set; one more: runs so far."""
    used: NDArray[np.int64]
    """(D,): depths set in this run."""


@inner
def read_cells(
    structure: Any, values: Any, g: int, y: int, columns: tuple[int, int], norm_PK: NDArray[Any], column: Any,
    tile: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add to `tile`: scale * norm * what these columns of image row `y` read of grid `g`."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    cells, s, grid = structure.cells, len(structure.bands.read_x.start) + g, values.coarse
    kernel, first = structure.coarse.kernel[s], y * structure.W
    K, G, D, factor = norm_PK.shape[1], cells.d_cell.shape[1], cells.depth[g], values.scale_K[kernel]
    pitch = structure.coarse.cols[s] * C
    line = structure.coarse.read_begin[s] * C + cells.y_cell[g, y] * pitch
    one = cells.y_above.dtype.type(1)
    y_above = cells.y_above[g, y]
    run, cell = column.stamps[-1], -1
    for x in range(columns[0], columns[1]):
        if cells.x_cell[g, x] != cell:
            cell = cells.x_cell[g, x]
            run += 1
        p = first + x
        d = np.int64(simd.item(cells.d_cell, p * G + g))
        for depth in range(d, d + 2):
            if column.stamps[depth] == run:
                continue
            column.stamps[depth] = run
            for side in range(2):
                at, to = line + ((cell + side) * D + depth) * C, (2 * depth + side) * C
                for c in range(0, C, step):
                    row = simd.load(grid, at + c, eights)
                    row = simd.multiply(row, simd.splat(one - y_above, row))
                    simd.store(column.points, to + c, simd.fma(y_above, simd.load(grid, at + pitch + c, eights), row))
        weight = simd.item(norm_PK, p * K + kernel) * factor
        above, right = simd.item(cells.d_above, p * G + g), cells.x_above[g, x]
        left_weight, right_weight = weight * (one - right), weight * right
        for c in range(0, C, step):
            at, to = 2 * d * C + c, (x - columns[0]) * C + c
            total = simd.load(tile, to, eights)
            total = simd.fma(left_weight * (one - above), simd.load(column.points, at, eights), total)
            total = simd.fma(right_weight * (one - above), simd.load(column.points, at + C, eights), total)
            total = simd.fma(left_weight * above, simd.load(column.points, at + 2 * C, eights), total)
            simd.store(tile, to, simd.fma(right_weight * above, simd.load(column.points, at + 3 * C, eights), total))
    column.stamps[-1] = run


@inner
def _flush(
    slabs: NDArray[Any], line: int, pitch: int, cell: int, D: int, y_above: Any, column: Any, count: int, rows: Any
) -> None:
    """Add a run's points to the two lines of the grid."""
    y_below = type(y_above)(1) - y_above
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    for i in range(count):
        depth = column.used[i]
        for side in range(2):
            at, to = (2 * depth + side) * C, line + ((cell + side) * D + depth) * C
            for c in range(0, C, step):
                row = simd.load(column.points, at + c, eights)
                simd.store(slabs, to + c, simd.fma(y_below, row, simd.load(slabs, to + c, eights)))
                simd.store(slabs, to + pitch + c, simd.fma(y_above, row, simd.load(slabs, to + pitch + c, eights)))


@inner
def write_cells(
    structure: Any, values: Any, team: Any, g: int, y: int, columns: tuple[int, int], plain: bool, norm_PK: NDArray[Any],
    column: Any, tile: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add norm * the values in `tile` of these columns of image row `y` to grid `g`, to the thread's slab of it."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    coarse, cells, s = structure.coarse, structure.cells, len(structure.bands.read_x.start) + g
    kernel, first = coarse.kernel[s], y * structure.W
    K, G, D = norm_PK.shape[1], cells.d_cell.shape[1], cells.depth[g]
    pitch = coarse.cols[s] * C
    line = coarse.slab_begin_TS[team.thread, s] * C + (cells.y_cell[g, y] - coarse.slab_TS2[team.thread, s, 0]) * pitch
    one = cells.y_above.dtype.type(1)
    y_above = cells.y_above[g, y]
    run, cell, count = column.stamps[-1], -1, 0
    for x in range(columns[0], columns[1]):
        if cells.x_cell[g, x] != cell:
            _flush(values.slabs, line, pitch, cell, D, y_above, column, count, rows)
            cell, count = cells.x_cell[g, x], 0
            run += 1
        p = first + x
        d = np.int64(simd.item(cells.d_cell, p * G + g))
        for depth in range(d, d + 2):
            if column.stamps[depth] == run:
                continue
            column.stamps[depth] = run
            column.used[count] = depth
            count += 1
            for c in range(0, 2 * C, step):
                simd.store(column.points, 2 * depth * C + c, simd.splat(0.0, simd.load(tile, 0, eights)))
        weight = one if plain else simd.item(norm_PK, p * K + kernel)
        above, right = simd.item(cells.d_above, p * G + g), cells.x_above[g, x]
        left_weight, right_weight = weight * (one - right), weight * right
        for c in range(0, C, step):
            at = 2 * d * C + c
            row = simd.load(tile, (x - columns[0]) * C + c, eights)
            points = column.points
            simd.store(points, at, simd.fma(left_weight * (one - above), row, simd.load(points, at, eights)))
            simd.store(points, at + C, simd.fma(right_weight * (one - above), row, simd.load(points, at + C, eights)))
            simd.store(points, at + 2 * C, simd.fma(left_weight * above, row, simd.load(points, at + 2 * C, eights)))
            simd.store(points, at + 3 * C, simd.fma(right_weight * above, row, simd.load(points, at + 3 * C, eights)))
    _flush(values.slabs, line, pitch, cell, D, y_above, column, count, rows)
    column.stamps[-1] = run
