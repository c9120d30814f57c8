"""What a kernel's structure is to the engine, whichever algorithm made it.

Not here: how it is made (lattice.py, grid.py, bands.py).
"""

# P pixels, V rows a pixel reads and writes, n x T bands

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.compiled import compiled


@dataclass(frozen=True, eq=False)
class Lines:
    """One axis of a lattice: lines of neighbours, as lattice.chains lists them; blurred by 1/2, 1, 1/2."""

    chain: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class GridAxis:
    """One axis of a dense grid of rows: (outer, length, inner), and the taps of its convolution, the middle one first."""

    shape: tuple[int, int, int]
    taps: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Lattice:
    """A kernel as K = S B S^T: pixels spread over V rows of a table (S^T), the table is blurred (B), pixels read it (S)."""

    offsets_PV: NDArray[np.int32]
    weights_PV: NDArray[Any]
    num_rows: int
    blurs: tuple[Lines, ...]
    """Applied in this order; each is symmetric, so the transpose applies them in reverse."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A kernel as K = S B S^T over a dense grid (y, x, depth) that a pixel reads and writes linearly, its own transpose.

    A pixel's cell along an axis is the whole part of its place there; it reads the points on both sides of the rest.
    """

    shape: tuple[int, int, int]
    y_place: NDArray[np.float64]
    x_place: NDArray[np.float64]
    """(H,) and (W,)."""
    d_cell: NDArray[np.int32]
    d_above: NDArray[Any]
    """(P,)."""
    blurs: tuple[GridAxis, ...]


@dataclass(frozen=True, eq=False)
class Band:
    """A matrix (n, m) of which each row has T numbers from column `start` on, beyond which it is 0."""

    start: NDArray[np.int64]
    weights: NDArray[Any]
    num_columns: int

    def transposed(self) -> Band:
        """The same matrix by its columns."""
        n, T = self.weights.shape
        rows, columns = np.repeat(np.arange(n), T), (self.start[:, None] + np.arange(T)).ravel()
        used = self.weights.ravel() != 0
        rows, columns, values = rows[used], columns[used], self.weights.ravel()[used]
        first = np.full(self.num_columns, n, np.int64)
        last = np.full(self.num_columns, -1, np.int64)
        np.minimum.at(first, columns, rows)
        np.maximum.at(last, columns, rows)
        width = max(int((last - first).max()) + 1, 1)
        start = np.minimum(first, max(n - width, 0))
        weights = np.zeros((self.num_columns, min(width, n)), self.weights.dtype)
        weights[columns, rows - start[columns]] = values
        return Band(start, weights, n)


@dataclass(frozen=True, eq=False)
class Separable:
    """A kernel as (Ry Wy^T) x (Rx Wx^T): rows and columns are each read and written through a coarse axis."""

    read_x: Band
    write_x: Band
    read_y: Band
    write_y: Band

    def transposed(self) -> Separable:
        """Reads where this writes."""
        return Separable(self.write_x, self.read_x, self.write_y, self.read_y)


Part = Lattice | Grid | Separable


@compiled
def renumber(offsets_PV: NDArray[np.int32], row_of: NDArray[np.int32], start: int, stop: int) -> None:
    """Replace row numbers r of pixels [start, stop) by row_of[r]."""
    for p in range(start, stop):
        for v in range(offsets_PV.shape[1]):
            offsets_PV[p, v] = row_of[offsets_PV[p, v]]
