"""Which pixels lie in which cell of a grid, cut into items of work: what a GPU's writing of a grid goes by. In torch alone.

Not here: the sums over them (matrix_kernels.py).
"""

# P pixels, G cells of a grid, V corners of a cell, I items of a cell's pixels

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_AT_ONCE = 128
"""Pixels of an item, at most."""


@dataclass(frozen=True, eq=False)
class CellItems:
    """The pixels of an image by the cell of a grid they lie in, those of a cell in items of at most so many (int32)."""

    order_P: Tensor
    """Pixels by cell, and within a cell in their order; last those that take no part."""
    bounds: Tensor
    """(I + 1,) Where in that order each item starts, and where the last one ends."""
    first_items: Tensor
    """(G + 1,) The first item of each cell, and the number of items."""
    offsets_V: Tensor
    """How far a cell's corners are from its lowest."""

    @classmethod
    def of(cls, corners_PV: Tensor, num_cells: int, valid_P: Tensor | None) -> CellItems:
        """Of pixels whose cells' corners these are, lowest first."""
        cells_P = corners_PV[:, 0] if valid_P is None else torch.where(valid_P, corners_PV[:, 0], num_cells)
        sorted_P, order_P = cells_P.sort(stable=True)
        cells = torch.arange(num_cells + 1, device=cells_P.device)
        starts = torch.searchsorted(sorted_P, cells)
        first_items = torch.zeros_like(starts)
        first_items[1:] = (starts.diff() + _AT_ONCE - 1).div(_AT_ONCE, rounding_mode="floor").cumsum(0)
        items = torch.arange(int(first_items[-1]), device=cells_P.device)
        cell_of = torch.searchsorted(first_items, items, right=True) - 1
        bounds = starts[cell_of] + (items - first_items[cell_of]) * _AT_ONCE
        return cls(
            order_P=order_P.to(torch.int32), bounds=torch.cat([bounds, starts[-1:]]).to(torch.int32),
            first_items=first_items.to(torch.int32), offsets_V=(corners_PV[0] - corners_PV[0, 0]).to(torch.int32),
        )  # fmt: skip
