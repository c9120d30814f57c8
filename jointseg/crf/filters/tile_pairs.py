"""Which pairs of tiles the block-sparse filter sums over, and how they are shared out to programs.

Not here: the tiles (tiles.py), the kernels that weigh them (pair_kernels.py) and sum (block_sparse_kernels.py).
"""

# B images, P pixels, G tiles of T pixels (of all images), E pairs of tiles, D doubtful ones, I work items

from __future__ import annotations

from dataclasses import dataclass, replace
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
_MAX_LEVELS_AT_ONCE = 2**27
"""Boxes compared in one go: a byte each, and another while pairs are picked out."""
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
    Such a limit is at most 1/16 of the tolerance, and that at most 1/10: pairs that are sure are above it.
    """
    G, T = tiles.pixels_GT.shape
    sure_2E = _pairs_at(tiles, torch.full_like(tiles.low_GF[:, 0], _SURE), level=2)
    sure = cut_into_items(sure_2E[0], sure_2E[1], G, pairs_per_item, longest_first=False)
    sums_BP = row_sums_over(tiles, sure, precision)
    sums_GT = tiles.in_tile_order(sums_BP, filling=torch.inf)
    limits_G = sums_GT.amin(1) * (tolerance * _UNMEASURED * tiles.num_images / (G * T))
    doubtful_2D = _pairs_at(tiles, limits_G, level=1)
    doubtful = cut_into_items(doubtful_2D[0], doubtful_2D[1], G, pairs_per_item, longest_first=False)
    shares_2D = _choosing().largest_shares(tiles, doubtful, sums_GT.reciprocal(), precision=precision)
    keep_2D = _heaviest(shares_2D.flatten(), doubtful_2D.flatten(), tolerance * (1 - _UNMEASURED)).view_as(shares_2D)
    kept_2D = doubtful_2D[:, keep_2D.any(0)]  # where either tile keeps a pair, both do
    rows_E, columns_E = torch.cat([sure_2E, kept_2D, kept_2D.flip(0)], 1)
    key_E = (rows_E * G + columns_E).sort().values
    return key_E // G, key_E % G


def _pairs_at(tiles: Tiles, limits_G: Tensor, *, level: int) -> Tensor:
    """(2, E): the pairs of one image's tiles that `near_tiles` gives this level, by the first; of level 1 each pair once, the
    lower number first. Waits for the device.
    """
    found: list[Tensor] = []
    num_tiles = len(limits_G) // tiles.num_images
    rows_at_once = max(_MAX_LEVELS_AT_ONCE // num_tiles, 1)
    for first in range(0, len(limits_G), num_tiles):
        own = slice(first, first + num_tiles)
        for start in range(0, num_tiles, rows_at_once):
            level_RG = _choosing().near_tiles(
                tiles.low_GF[own], tiles.high_GF[own], limits_G[own], slice(start, start + rows_at_once), sure=_SURE
            )
            chosen_RG = level_RG == level
            pair_E2 = (chosen_RG.triu_(start) if level == 1 else chosen_RG).nonzero()
            found.append(pair_E2.T + pair_E2.new_tensor([[first + start], [first]]) if first + start else pair_E2.T)
    return torch.cat(found, 1) if len(found) > 1 else found[0]


def _heaviest(shares_E: Tensor, rows_E: Tensor, budget: float) -> Tensor:
    """(E,), bool: all of a row's pairs but the lightest, as many as together stay within the budget."""
    unit = 2**_FIXED_POINT
    share_E = (shares_E.double() * unit).ceil().clamp(max=unit).long()
    key_E, order_E = (rows_E * (2 * unit) + share_E).sort(stable=True)  # by row, then by share
    share_E = key_E % (2 * unit)
    total_E = share_E.cumsum(0)
    first_E = torch.searchsorted(key_E, key_E - share_E)
    keep_E = torch.empty_like(rows_E, dtype=torch.bool)
    keep_E[order_E] = total_E - (total_E - share_E)[first_E] > int(budget * unit)
    return keep_E


def cut_into_items(
    rows_E: Tensor, columns_E: Tensor, num_tiles: int, pairs_per_item: int, *, longest_first: bool = True
) -> TilePairs:
    """Cut each row of tiles into equal pieces, so that no program has much more to do than another.

    Args:
        rows_E: the tile that hears, in order.
        columns_E: the tile that is heard.
        num_tiles: G.
        pairs_per_item: the most, except where that takes too many partial sums.
        longest_first: see to it that programs end at about the same time, and to no more partial sums than needed; it waits
            for the device. Else items are in the order of their pairs, and some may have none.
    """
    E = len(rows_E)
    length = max(pairs_per_item, -(-E // _MAX_SLOTS))
    begin_G = torch.searchsorted(rows_E, torch.arange(num_tiles + 1, device=rows_E.device))
    items_I4, slots_G = _choosing().cut(begin_G, E, length)
    pairs = TilePairs(columns_E=columns_E.int(), items_I4=items_I4, slots_G=slots_G, num_slots=E // length)
    return _longest_first(pairs, length) if longest_first else pairs


def _longest_first(pairs: TilePairs, length: int) -> TilePairs:
    """Without items that have no pairs, and their slots."""
    item_I4 = pairs.items_I4.cpu().numpy()
    item_I4 = item_I4[item_I4[:, 2] > item_I4[:, 1]]
    rows_S = item_I4[item_I4[:, 3] >= 0, 0]
    item_I4[item_I4[:, 3] >= 0, 3] = np.arange(len(rows_S))
    slot_G = np.bincount(rows_S + 1, minlength=len(pairs.slots_G)).cumsum()
    # By eighths of the length only: neighbours, which hear the same tiles, then still run at about the same time.
    eighths_I = (item_I4[:, 2] - item_I4[:, 1]) * 8 // length
    item_I4 = item_I4[np.argsort(-eighths_I.astype(np.int8), kind="stable")]
    numbers = torch.from_numpy(np.concatenate([item_I4.ravel(), slot_G.astype(np.int32)])).to(pairs.items_I4.device)
    items_I4, slots_G = numbers[: item_I4.size].view(-1, 4), numbers[item_I4.size :]
    return replace(pairs, items_I4=items_I4, slots_G=slots_G, num_slots=len(rows_S))


def row_sums_over(tiles: Tiles, pairs: TilePairs, precision: str) -> Tensor:
    """(B, P): K 1; 0 where a pixel is not valid."""
    ones_BCP = tiles.features_GFT.new_ones(1).expand(tiles.num_images, 1, tiles.num_pixels)
    sums_BCP: Tensor = kernels().apply_pairs(tiles, pairs, ones_BCP, precision=precision)
    return sums_BCP[:, 0]


def kernels() -> ModuleType:
    """The kernels, imported when needed: they need triton."""
    return import_module("jointseg.crf.filters.block_sparse_kernels")


def _choosing() -> ModuleType:
    return import_module("jointseg.crf.filters.pair_kernels")
