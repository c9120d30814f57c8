"""A pass's steps for separable kernels: coarse points read and written by a part of an image row. Compiled.

Not here: the pass (passes.py), the bands (bands.py). Two rows or two columns go at a time: what both need is loaded once.
"""

# A separable kernels, C channels padded to whole vectors

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.compiled import inner


class TwoRows(NamedTuple):
    """A thread's own memory for two rows of the image: the coarse points of each, (A, 2, widest * C)."""

    read: NDArray[Any]
    written: NDArray[Any]


@inner
def blend_bands(structure: Any, values: Any, a: int, y: int, lines: Any, rows: Any) -> None:
    """Sum over y what image rows `y` and the next read for kernel `a` of the separable ones."""
    C = simd.LANES * len(rows[0]) * len(rows[1])
    coarse, bands = structure.coarse, structure.bands
    begin, pitch = (coarse.read_begin[a] + bands.read_y.start[a, y] * coarse.cols[a]) * C, coarse.cols[a] * C
    weights_T2 = bands.read_y.weights[a, y, : bands.read_y.taps[a]]
    _blend_lines(values.coarse, begin, pitch, weights_T2, lines.read[a, 0], lines.read[a, 1], rows)


@inner
def read_bands(
    structure: Any, values: Any, a: int, y: int, second: int, columns: tuple[int, int], norm_PK: NDArray[Any],
    lines: Any, tile: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add to `tile`: scale * norm * what these columns of image row `y`, the first or `second` of two, read."""
    kernel, bands = structure.coarse.kernel[a], structure.bands
    _read_columns(
        lines.read[a, second], bands.read_x.start[a], bands.read_x.weights[a], bands.read_x.taps[a], columns,
        values.scale_K[kernel], norm_PK, kernel, y * structure.W, tile, rows,
    )  # fmt: skip


@inner
def gather_bands(
    structure: Any, a: int, y: int, second: int, columns: tuple[int, int], begin: int, plain: bool, norm_PK: NDArray[Any],
    lines: Any, tile: NDArray[Any], rows: Any,
) -> Any:  # fmt: skip
    """Sum over x what these columns of image row `y` write, norm * the values in `tile`. Columns come from left to right.

    `begin` is 0 where a row begins, then what the call before returned.
    """
    coarse, bands = structure.coarse, structure.bands
    pairs = (coarse.cols[a] + 1) // 2
    return _gather_columns(
        tile, plain, norm_PK, coarse.kernel[a], y * structure.W, columns, bands.write_x.start[a, :pairs],
        bands.write_x.weights[a], bands.write_x.taps[a], begin, lines.written[a, second], rows,
    )  # fmt: skip


@inner
def scatter_bands(structure: Any, values: Any, thread: int, a: int, y: int, lines: Any, rows: Any) -> None:
    """Add what image rows `y` and the next wrote to the thread's slab."""
    C = simd.LANES * len(rows[0]) * len(rows[1])
    coarse, bands = structure.coarse, structure.bands
    down = bands.write_y.start[a, y] - coarse.slab_TS2[thread, a, 0]
    begin, pitch = (coarse.slab_begin_TS[thread, a] + down * coarse.cols[a]) * C, coarse.cols[a] * C
    weights_T2 = bands.write_y.weights[a, y, : bands.write_y.taps[a]]
    _scatter_lines(lines.written[a, 0], lines.written[a, 1], weights_T2, values.slabs, begin, pitch, rows)


@inner
def _blend_lines(
    table: NDArray[Any], begin: int, pitch: int, weights_T2: NDArray[Any], first: NDArray[Any], second: NDArray[Any], rows: Any
) -> None:
    """Set each target to its weighted sum of successive coarse lines of `pitch` numbers, from `begin` on."""
    eights = rows[0]
    for at in range(0, pitch, simd.LANES * len(eights)):
        sum_0 = simd.splat(0.0, simd.load(table, begin + at, eights))
        sum_1 = sum_0
        for i in range(len(weights_T2)):
            row = simd.load(table, begin + i * pitch + at, eights)
            sum_0 = simd.fma(simd.item(weights_T2, 2 * i), row, sum_0)
            sum_1 = simd.fma(simd.item(weights_T2, 2 * i + 1), row, sum_1)
        simd.store(first, at, sum_0)
        simd.store(second, at, sum_1)


@inner
def _read_columns(
    line: NDArray[Any], starts: NDArray[np.int64], weights_NT2: NDArray[Any], taps: int, columns: tuple[int, int],
    factor: float, norm_PK: NDArray[Any], kernel: int, first: int, tile: NDArray[Any], rows: Any,
) -> None:  # fmt: skip
    """Add to `tile`: factor * norm * the weighted sum of points of `line`, for these columns of the row from pixel `first` on.

    The first column is an even one.
    """
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    K, pitch = norm_PK.shape[1], 2 * weights_NT2.shape[1]
    for x in range(columns[0], columns[1], 2):
        two = x + 1 < columns[1]
        weight_0 = simd.item(norm_PK, (first + x) * K + kernel) * factor
        weight_1 = simd.item(norm_PK, (first + x + 1) * K + kernel) * factor if two else weight_0
        base, weights_at = simd.item(starts, x // 2) * C, x // 2 * pitch
        for c in range(0, C, step):
            sum_0 = simd.splat(0.0, simd.load(line, c, eights))
            sum_1 = sum_0
            for i in range(taps):
                row = simd.load(line, base + i * C + c, eights)
                sum_0 = simd.fma(simd.item(weights_NT2, weights_at + 2 * i), row, sum_0)
                sum_1 = simd.fma(simd.item(weights_NT2, weights_at + 2 * i + 1), row, sum_1)
            at = (x - columns[0]) * C + c
            simd.store(tile, at, simd.fma(weight_0, sum_0, simd.load(tile, at, eights)))
            if two:
                simd.store(tile, at + C, simd.fma(weight_1, sum_1, simd.load(tile, at + C, eights)))


@inner
def _gather_columns(
    tile: NDArray[Any], plain: bool, norm_PK: NDArray[Any], kernel: int, first: int, columns: tuple[int, int],
    starts: NDArray[np.int64], weights_NT2: NDArray[Any], taps: int, begin: int, line: NDArray[Any], rows: Any,
) -> int:  # fmt: skip
    """Sum into `line`, or set there where these columns are the first to, norm * values of the row from pixel `first` on.

    Looks at pairs of points from number `begin` on; returns the first that the next columns can concern.
    """
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    K, pitch = norm_PK.shape[1], 2 * weights_NT2.shape[1]
    left, right = columns
    for n in range(begin, len(starts)):
        x, to = simd.item(starts, n), 2 * n * C
        if x + taps <= left:
            begin = n + 1
            continue
        if x >= right:
            break
        for c in range(0, C, step):
            sum_0 = simd.splat(0.0, simd.load(tile, c, eights))
            sum_1 = sum_0
            if x < left:
                sum_0, sum_1 = simd.load(line, to + c, eights), simd.load(line, to + C + c, eights)
            for i in range(max(left - x, 0), min(taps, right - x)):
                row = simd.load(tile, (x + i - left) * C + c, eights)
                if not plain:
                    row = simd.multiply(row, simd.splat(simd.item(norm_PK, (first + x + i) * K + kernel), row))
                sum_0 = simd.fma(simd.item(weights_NT2, n * pitch + 2 * i), row, sum_0)
                sum_1 = simd.fma(simd.item(weights_NT2, n * pitch + 2 * i + 1), row, sum_1)
            simd.store(line, to + c, sum_0)
            simd.store(line, to + C + c, sum_1)
    return begin


@inner
def _scatter_lines(
    first: NDArray[Any], second: NDArray[Any], weights_T2: NDArray[Any], table: NDArray[Any], begin: int, pitch: int, rows: Any
) -> None:
    """Add two lines of coarse points to those of `pitch` numbers from `begin` on, each with its own weight for each."""
    eights = rows[0]
    for at in range(0, pitch, simd.LANES * len(eights)):
        row_0, row_1 = simd.load(first, at, eights), simd.load(second, at, eights)
        for i in range(len(weights_T2)):
            to = begin + i * pitch + at
            total = simd.fma(simd.item(weights_T2, 2 * i), row_0, simd.load(table, to, eights))
            simd.store(table, to, simd.fma(simd.item(weights_T2, 2 * i + 1), row_1, total))
