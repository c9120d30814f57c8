"""Kernels that pixels read and write through a coarse table of their own, line by line: separable ones and grids.

Not here: what is done with them (band_steps.py, cell_steps.py, tables.py), lattices (layout.py).
"""

# S coarse kernels, of them A separable and G grids, T threads, H x W pixels, P = H * W

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.parts import Band, Grid, Separable

Array = NDArray[Any]


class Coarse(NamedTuple):
    """Where the kernels' points lie: one kernel behind the other, rows of C numbers, line by line."""

    kernel: NDArray[np.int64]
    cols: NDArray[np.int64]
    """(S,): points of a line."""
    read_begin: NDArray[np.int64]
    """(S + 1,): where each kernel's points begin in the table that all read."""
    slab_TS2: NDArray[np.int64]
    """Lines that each thread writes."""
    slab_begin_TS: NDArray[np.int64]
    """Where they begin in the table that is written."""
    num_read: int
    num_written: int
    """Points of the two tables, and one, so that there is a first."""


class Pairs(NamedTuple):
    """Bands of A matrices, two rows at a time: what both read is loaded once."""

    start: NDArray[np.int64]
    """(A, n): first column of rows i and i + 1, for each i or each other."""
    weights: Array
    """(A, n, taps, 2)."""
    taps: NDArray[np.int64]
    """(A,): how many of the taps are this matrix's."""


class Bands(NamedTuple):
    """The separable kernels, the first A of the coarse ones."""

    widest: int
    """Points of the longest line, and one."""
    read_x: Pairs
    """By each other image column."""
    read_y: Pairs
    """By image row."""
    write_x: Pairs
    """By each other coarse column: what of the image row it gathers."""
    write_y: Pairs
    """By image row."""


class Cells(NamedTuple):
    """The grids, the last G of the coarse ones: the cell of each pixel along each axis, and how far into it."""

    depth: NDArray[np.int64]
    """(G,): points along the last axis."""
    deepest: int
    x_cell: NDArray[np.int64]
    x_above: Array
    y_cell: NDArray[np.int64]
    y_above: Array
    """(G, W) and (G, H)."""
    d_cell: NDArray[np.int32]
    d_above: Array
    """(P, G)."""


def lay_out_cells(grids: Sequence[tuple[int, Grid]], size: tuple[int, int], dtype: np.dtype[Any]) -> Cells:
    """Where pixels lie in these grids, for both directions."""
    H, W = size
    depths = [part.shape[2] for _, part in grids]
    return Cells(
        np.array(depths, np.int64), max(depths, default=0),
        *_axis([part.x_place for _, part in grids], W, dtype),
        *_axis([part.y_place for _, part in grids], H, dtype),
        _beside([part.d_cell for _, part in grids], H * W, np.int32),
        _beside([part.d_above for _, part in grids], H * W, dtype),
    )  # fmt: skip


def lay_out_coarse(
    separable: Sequence[tuple[int, Separable]], grids: Sequence[tuple[int, Grid]], cells: Cells,
    lines_T2: NDArray[np.int64], dtype: np.dtype[Any],
) -> tuple[Coarse, Bands]:  # fmt: skip
    """Tables and bands of these kernels, each with its number, for threads that have these image rows."""
    read_x, write_x = (
        _pairs(found, 2, dtype)
        for found in ([part.read_x for _, part in separable], [part.write_x.transposed() for _, part in separable])
    )
    read_y, write_y = (
        _pairs(found, 1, dtype) for found in ([part.read_y for _, part in separable], [part.write_y for _, part in separable])
    )
    widest = max((part.read_x.num_columns for _, part in separable), default=0) + 1
    bands = Bands(widest, read_x, read_y, write_x, write_y)
    shapes = [(part.read_y.num_columns, part.read_x.num_columns) for _, part in separable]
    shapes += [(part.shape[0], part.shape[1] * part.shape[2]) for _, part in grids]
    firsts = [*write_y.start, *cells.y_cell]
    reaches = [*write_y.taps, *[2] * len(grids)]
    T, S = len(lines_T2), len(shapes)
    slab_TS2, slab_begin_TS = np.zeros((T, S, 2), np.int64), np.zeros((T, S), np.int64)
    at = 0
    for thread, (first, last) in enumerate(lines_T2):
        for s, (_, columns) in enumerate(shapes):
            mine = firsts[s][first:last]
            slab_TS2[thread, s] = mine.min(), mine.max() + reaches[s]
            slab_begin_TS[thread, s] = at
            at += int(slab_TS2[thread, s, 1] - slab_TS2[thread, s, 0]) * columns
    cols = np.array([columns for _, columns in shapes], np.int64)
    read_begin = np.cumsum([0, *(lines * columns for lines, columns in shapes)])
    kernels = np.array([k for k, _ in [*separable, *grids]], np.int64)
    return Coarse(kernels, cols, read_begin, slab_TS2, slab_begin_TS, int(read_begin[-1]) + 1, at + 1), bands


def _pairs(bands: list[Band], every: int, dtype: np.dtype[Any]) -> Pairs:
    """Rows i and i + 1 of each band, for each `every`-th i; behind the last row there is one of zeros."""
    n = max((-(-len(band.start) // every) for band in bands), default=0)
    both = [_paired(band, every) for band in bands]
    taps = max((weights.shape[1] for _, weights in both), default=1)
    start, weights = np.zeros((len(bands), n), np.int64), np.zeros((len(bands), n, taps, 2), dtype)
    for a, (start_n, weights_nT2) in enumerate(both):
        start[a, : len(start_n)] = start_n
        weights[a, : len(start_n), : weights_nT2.shape[1]] = weights_nT2
    return Pairs(start, weights, np.array([of_one.shape[1] for _, of_one in both], np.int64))


def _paired(band: Band, every: int) -> tuple[NDArray[np.int64], Array]:
    n, taps = band.weights.shape
    first = np.append(band.start, band.start[-1])
    lower, upper = np.minimum(first[:-1], first[1:])[::every], np.maximum(first[:-1], first[1:])[::every]
    width = min(int((upper - lower).max()) + taps, band.num_columns)
    start = np.minimum(lower, band.num_columns - width)
    weights = np.zeros((len(start), width, 2), band.weights.dtype)
    for which in range(2):
        rows = np.arange(which, n, every)
        columns = (band.start[rows] - start[: len(rows)])[:, None] + np.arange(taps)
        weights[np.arange(len(rows))[:, None], columns, which] = band.weights[rows]
    return start, weights


def _axis(places: list[NDArray[np.float64]], n: int, dtype: np.dtype[Any]) -> tuple[NDArray[np.int64], Array]:
    cells = np.array(places).reshape(len(places), n).astype(np.int64)
    return cells, (np.array(places).reshape(len(places), n) - cells).astype(dtype)


def _beside(columns: list[Array], P: int, dtype: Any) -> Array:
    """(P, G), without a copy where there is one."""
    if len(columns) == 1:
        return columns[0].reshape(P, 1).astype(dtype, copy=False)
    return np.ascontiguousarray(np.array(columns, dtype).reshape(len(columns), P).T)
