"""Which pairs of tiles the block-sparse filter sums over, and how they are shared out to programs.

Not here: the tiles (tiles.py), the kernels that weigh and sum (block_sparse_kernels.py).
"""

# B images, P pixels, G tiles of T pixels (of all images), E pairs of tiles, D doubtful ones, I work items

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from jointseg.crf.filters.tiles import Tiles

_SURE = 0.1
"""Pairs of tiles whose boxes allow a weight above this are kept unmeasured: nearly all of them matter."""
_UNMEASURED = 1 / 16
"""The part of the tolerance that may be lost by pairs that are skipped unmeasured, for the distance of their boxes."""
_FIXED_POINT = 36
"""Shares are added up as integers, of 2^-36: whatever the order, such a sum is the same, and so is what is kept."""
_MAX_PAIRS_AT_ONCE = 2**26
"""Boxes compared in one go: a byte each."""
_MAX_SLOTS = 2**13
"""Partial sums per application, about; each is T C floats."""


@dataclass(frozen=True, kw_only=True)
class TilePairs:
    """For each tile the tiles that it hears, cut into work items of bounded length, the longest first."""

    columns_E: Tensor
    """int32: the tile that is heard, ordered by the tile that hears."""
    items_I4: Tensor
    """int32: the tile that hears, the first and the last + 1 of its pairs, and where the sum goes: -1 to the output, else to
    the partial sum of this number."""
    slots_G: Tensor
    """int32, of G + 1: where each tile's partial sums begin."""
    num_slots: int


def choose_pairs(tiles: Tiles, tolerance: float, *, precision: str, pairs_per_item: int) -> tuple[Tensor, Tensor]:
    """(E,), (E,): the pairs of tiles to sum over, ordered by the first; no row loses more than `tolerance` of its sum.

    Unmeasured, a pair is skipped where its boxes allow no weight above a limit of each that, were every pixel of the image
    skipped at that weight, would cost its rows 1/16 of the tolerance; row sums over the sure pairs bound what is left from
    below. Then each tile skips the lightest of the pairs that were measured, as many as the rest of the tolerance pays for.
    """
    G, T = tiles.pixels_GT.shape
    rows_E, columns_E, _ = _near_pairs(tiles, torch.full_like(tiles.low_GF[:, 0], _SURE))
    sums_BP = row_sums_over(tiles, cut_into_items(rows_E, columns_E, G, pairs_per_item), precision)
    sums_GT = tiles.in_tile_order(sums_BP, filling=torch.inf)
    rows_E, columns_E, sure_E = _near_pairs(tiles, sums_GT.amin(1) * (tolerance * _UNMEASURED * tiles.num_images / (G * T)))
    doubtful_D = (~sure_E).nonzero().squeeze(1)
    rows_D, columns_D = rows_E[doubtful_D], columns_E[doubtful_D]
    doubtful = cut_into_items(rows_D, columns_D, G, pairs_per_item)
    shares_D = kernels().largest_shares(tiles, doubtful, sums_GT.reciprocal(), precision=precision)
    sure_E[doubtful_D] = _both_ways(_heaviest(shares_D, rows_D, tolerance * (1 - _UNMEASURED)), columns_D)
    kept = sure_E.nonzero().squeeze(1)
    return rows_E[kept], columns_E[kept]


def _near_pairs(tiles: Tiles, limits_G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(E,) three times: the pairs of one image that can weigh more than a limit of either tile, and which are sure."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    num_tiles = len(limits_G) // tiles.num_images
    rows_at_once = max(_MAX_PAIRS_AT_ONCE // num_tiles, 1)
    for first in range(0, len(limits_G), num_tiles):
        own = slice(first, first + num_tiles)
        for start in range(0, num_tiles, rows_at_once):
            level_RG = kernels().near_tiles(
                tiles.low_GF[own], tiles.high_GF[own], limits_G[own], slice(start, start + rows_at_once), sure=_SURE
            )
            row_E, column_E = level_RG.nonzero(as_tuple=True)
            sure_E = level_RG[row_E, column_E] == 2
            found.append((row_E + (start + first), column_E + first, sure_E) if start + first else (row_E, column_E, sure_E))
    if len(found) == 1:
        return found[0]
    rows, columns, sure = zip(*found, strict=True)
    return torch.cat(rows), torch.cat(columns), torch.cat(sure)


def _heaviest(shares_E: Tensor, rows_E: Tensor, budget: float) -> Tensor:
    """(E,), bool: all of a row's pairs but the lightest, as many as together stay within the budget. Rows are in order."""
    keep_E = torch.ones_like(rows_E, dtype=torch.bool)
    if len(rows_E):
        unit = 2**_FIXED_POINT
        share_E = (shares_E.double() * unit).ceil().clamp(max=unit).long()
        key_E, order_E = (rows_E * (2 * unit) + share_E).sort(stable=True)  # by row, then by share
        share_E = key_E % (2 * unit)
        before_E = share_E.cumsum(0) - share_E
        total_E = before_E - before_E[torch.searchsorted(rows_E, rows_E)] + share_E
        keep_E[order_E] = total_E > int(budget * unit)
    return keep_E


def _both_ways(keep_E: Tensor, columns_E: Tensor) -> Tensor:
    """Keep a pair where either tile does. All pairs are there both ways: ordered by column, they are their transposes."""
    return keep_E | keep_E[columns_E.sort(stable=True).indices]


def cut_into_items(rows_E: Tensor, columns_E: Tensor, num_tiles: int, pairs_per_item: int) -> TilePairs:
    """Cut each row of tiles into equal pieces, so that no program has much more to do than another.

    On the host: it is a dozen small steps, each of which costs a launch on a GPU.
    """
    tile_G = torch.arange(num_tiles + 1, device=rows_E.device)
    begin_G = torch.searchsorted(rows_E, tile_G).cpu().numpy()
    count_G = np.diff(begin_G)
    length = max(pairs_per_item, -(-len(rows_E) // _MAX_SLOTS))
    pieces_G = -(-count_G // length)
    row_I = np.arange(num_tiles).repeat(pieces_G)
    slots_G = np.concatenate([[0], (pieces_G - 1).clip(min=0).cumsum()])
    piece_I = np.arange(len(row_I)) - np.searchsorted(row_I, row_I)
    each_I = -(-count_G[row_I] // pieces_G[row_I])
    first_I = begin_G[row_I] + piece_I * each_I
    stop_I = np.minimum(first_I + each_I, begin_G[row_I + 1])
    slot_I = np.where(piece_I == 0, -1, slots_G[row_I] + piece_I - 1)
    # By eighths of the length only: neighbours, which hear the same tiles, then still run at about the same time.
    longest_first_I = np.argsort(-((stop_I - first_I) * 8 // length), kind="stable")
    items_I4 = np.stack([row_I, first_I, stop_I, slot_I], 1)[longest_first_I]
    numbers = torch.from_numpy(np.concatenate([items_I4.ravel(), slots_G]).astype(np.int32)).to(rows_E.device)
    return TilePairs(
        columns_E=columns_E.int(),
        items_I4=numbers[: items_I4.size].view(-1, 4),
        slots_G=numbers[items_I4.size :],
        num_slots=int(slots_G[-1]),
    )


def row_sums_over(tiles: Tiles, pairs: TilePairs, precision: str) -> Tensor:
    """(B, P): K 1; 0 where a pixel is not valid."""
    ones_BCP = tiles.features_GFT.new_ones(1).expand(tiles.num_images, 1, tiles.num_pixels)
    sums_BCP: Tensor = kernels().apply_pairs(tiles, pairs, ones_BCP, precision=precision)
    return sums_BCP[:, 0]


def kernels() -> ModuleType:
    """The kernels, imported when needed: they need triton."""
    return import_module("jointseg.crf.filters.block_sparse_kernels")
