"""The Gaussian filter as a block-sparse sum on a GPU: exact but for pairs of far pixels that hardly weigh, which it skips.

Not here: the tree that sorts pixels (kd_tree.py) and the kernels that sum (block_sparse_kernels.py), both in Triton.
"""

# B images, C channels, P pixels, G tiles of T pixels (of all images), F kernel features, E pairs of tiles, I work items

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from jointseg.crf.filters.features import Features
from jointseg.errors import InputError
from jointseg.needs import missing_for_triton

_SURE = 0.1
"""Pairs of tiles whose boxes allow a weight above this are kept unmeasured: nearly all of them matter."""
_UNMEASURED = 1 / 16
"""The part of the tolerance that may be lost by pairs that are skipped unmeasured, for the distance of their boxes."""
_HALF_FROM = 1e-3
_EXPANDED_UP_TO = 4096.0
"""The most that |f|^2 may be where 2^-|f - g|^2 is computed from |f|^2, |g|^2 and f.g, in F + 2 roundings of up to 2^-12 each:
weights are off by 1e-3 at most with five features, row sums by less."""
SHIFT = 14.0
"""Weights in float16 are 2^14 times as large, so that those from 2^-38 on are numbers there, not from 2^-24."""
_FIXED_POINT = 36
"""Shares are added up as integers, of 2^-36: whatever the order, such a sum is the same, and so is what is kept."""
_MAX_PAIRS_AT_ONCE = 2**26
"""Boxes compared in one go: a byte each."""
_MAX_SLOTS = 2**13
"""Partial sums per application, about; each is T C floats."""
_FAR = 1e18
_SCALE = math.sqrt(0.5 * math.log2(math.e))
"""exp(-d^2/2) = 2^-(s d)^2."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Pixels sorted into tiles that are compact in feature space; each image has G / B consecutive ones."""

    features_GFT: Tensor
    """In units of sqrt(2 ln 2) bandwidths; where there is no pixel, far from all, so that its weights are 0."""
    pixels_GT: Tensor
    """int32: the pixel's place in its image; -1 where there is none."""
    low_GF: Tensor
    """The tile's box; low is +inf and high -inf where it has no pixel."""
    high_GF: Tensor
    compared_GRT: Tensor
    """What distances are computed from: `features_GFT`, or the expanded form of it (`with_squares`)."""
    num_images: int
    num_pixels: int
    """P, of one image."""
    valid_BP: Tensor | None = None
    """The pixels that are in tiles; None: all."""

    def in_tile_order(self, values_BP: Tensor, *, filling: float) -> Tensor:
        """(G, T): one channel sorted as the pixels are, with `filling` where there is none."""
        pixels_BS = self.pixels_GT.view(self.num_images, -1)
        sorted_BS = values_BP.gather(1, pixels_BS.clamp(min=0).long())
        return torch.where(pixels_BS < 0, filling, sorted_BS).view(self.pixels_GT.shape)


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


class BlockSparseFilter:
    """(K v)_p = sum_p' exp(-|f_p - f_p'|^2 / 2) v_p' over the pairs of tiles that matter, in float32.

    Pixels are sorted into tiles by a kd-tree, and a pair of tiles is skipped where, over all that is skipped, no pixel of
    either loses more than `tolerance` of its row sum. That is a bound, not an estimate: the distance of their boxes settles
    most pairs; what the doubtful ones weigh is computed once, here, and the lightest go. K is symmetric: if one of a pair
    needs the other, each keeps the other.

    Accuracy: |error of (K v)_p| <= (tolerance + rounding) max|v| (K 1)_p, max|v| of the channel. From a tolerance of 1e-3 up,
    products are in float16 and rounding is < 1e-3. Below it, products are of three tf32 terms, at more than twice the time, and
    rounding is ~1e-6. The same input gives the same bits.
    """

    def __init__(
        self, features: Features, *, tolerance: float = 1e-3, tile_size: int | None = None, pairs_per_item: int = 256
    ) -> None:
        """Sort and choose; features are treated as constants.

        Args:
            features: float32, on a CUDA device (or on a CPU where the environment has TRITON_INTERPRET=1: for tests, slow).
            tolerance: the most that a row may lose, as a part of its row sum; from 1e-6 to 1e-1.
            tile_size: pixels per tile: 16, 32, 64 or 128; None: 128 on Hopper from a tolerance of 1e-3 up, else 64.
            pairs_per_item: the most tiles that one program sums over, except where that takes too many partial sums.

        Raises:
            InputError: a tolerance out of range, no triton or no C compiler for it, features not in float32, or a device that
                triton does not compile for.
        """
        _check(features.values_BPF, tolerance)
        self._precision = "float16" if tolerance >= _HALF_FROM else "tf32x3"
        if tile_size is None:
            tile_size = _kernels().tile_size(self._precision, features.values_BPF.device)
        assert tile_size in {16, 32, 64, 128}, tile_size
        with torch.no_grad():
            self._tiles = sort_into_tiles(features, tile_size)
            if self._precision == "float16":
                self._tiles = with_squares(self._tiles)
            rows_E, columns_E = choose_pairs(self._tiles, tolerance, precision=self._precision, pairs_per_item=pairs_per_item)
            self._pairs = cut_into_items(rows_E, columns_E, len(self._tiles.pixels_GT), pairs_per_item)
            self._row_sums: Tensor | None = None

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v, for any number of channels; 0 where a pixel is not valid. Values float32; not recorded by autograd."""
        self._check_values(values_BCP)
        values_BCP = values_BCP.detach()
        C, device = values_BCP.shape[1], values_BCP.device
        alone = self.has_row_sums or not _kernels().has_room_for_another(C, self._precision, device)
        if not alone:
            values_BCP = torch.cat([values_BCP, values_BCP.new_ones(1).expand_as(values_BCP[:, :1])], 1)
        result_BCP: Tensor = _kernels().apply_pairs(self._tiles, self._pairs, values_BCP, precision=self._precision)
        if alone:
            return result_BCP
        self._row_sums = self._of_valid(result_BCP[:, C])
        return result_BCP[:, :C].contiguous()

    @property
    def row_sums(self) -> Tensor:
        """(B, P): K 1 over the valid pixels; 1 where a pixel is not valid.

        Computed when first asked for, or by the first application as one channel more, where its kernel has room for one: that
        costs a copy of the values and of the result, and no sum.
        """
        if self._row_sums is None:
            self._row_sums = self._of_valid(_row_sums(self._tiles, self._pairs, self._precision))
        return self._row_sums

    @property
    def has_row_sums(self) -> bool:
        """Whether they are computed yet."""
        return self._row_sums is not None

    def _of_valid(self, sums_BP: Tensor) -> Tensor:
        valid_BP = self._tiles.valid_BP
        with torch.inference_mode(False):  # later calls may record gradients
            return sums_BP.clone() if valid_BP is None else torch.where(valid_BP, sums_BP, 1.0)

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, which is K v: pairs are kept both ways, and a weight is the same number both ways, bit for bit."""
        return self.apply(values_BCP)

    @torch.no_grad()
    def add_to(self, total_BCP: Tensor, values_BCP: Tensor, factors_BP: Tensor, *, first: bool) -> None:
        """Add factors * K v to a total, or, `first`, put it there."""
        self._check_values(values_BCP)
        _kernels().apply_pairs(
            self._tiles, self._pairs, values_BCP,
            precision=self._precision, out_BCP=total_BCP, factors_BP=factors_BP, added=not first,
        )  # fmt: skip

    def bandwidth_gradient(self, y_BCP: Tensor, v_BCP: Tensor) -> Tensor:
        """(B, F): d <y, K v> / d log of each feature's bandwidth, sum_pp' (y_p . v_p') k(p, p') (f_p - f_p')^2.

        Over the pairs of tiles that `apply` sums over, with its rounding. Values float32; not recorded by autograd.
        """
        self._check_values(y_BCP)
        self._check_values(v_BCP)
        with torch.no_grad():
            moments_IF = _kernels().moments_of_pairs(self._tiles, self._pairs, y_BCP, v_BCP, precision=self._precision)
            B = self._tiles.num_images
            image_I = self._pairs.items_I4[:, 0] // (len(self._tiles.pixels_GT) // B)
            of_image_BI = image_I == torch.arange(B, device=image_I.device)[:, None]
            moments_BF: Tensor = of_image_BI.to(moments_IF.dtype) @ moments_IF
            return (moments_BF / _SCALE**2).float()

    def _check_values(self, values_BCP: Tensor) -> None:
        B, _, P = values_BCP.shape
        assert (self._tiles.num_images, self._tiles.num_pixels) == (B, P), values_BCP.shape
        assert values_BCP.dtype == torch.float32 and values_BCP.device == self._tiles.low_GF.device


def sort_into_tiles(features: Features, tile_size: int) -> Tiles:
    """Each image's valid pixels in the tiles of a kd-tree (`kd_order`).

    All images get the number of tiles that the fullest needs; a tile is full unless no pixel is left.
    """
    B, P, F = features.values_BPF.shape
    pixels_GT = _valid_pixels_first(features, tile_size)
    G, T = pixels_GT.shape
    place_GT = pixels_GT + P * (torch.arange(G, device=pixels_GT.device) // (G // B))[:, None]
    points_GTF = features.values_BPF.detach().reshape(B * P, F)[place_GT.clamp(min=0)] * _SCALE
    points_SF = points_GTF.masked_fill((pixels_GT < 0)[:, :, None], torch.inf).view(-1, F)
    order_S, boxes_G2F = import_module("jointseg.crf.filters.kd_tree").kd_order(points_SF, T, B)
    points_GTF, pixels_GT = points_SF[order_S].view(G, T, F), pixels_GT.view(-1)[order_S].view(G, T)
    low_GF, high_GF = boxes_G2F.unbind(1)
    features_GFT = points_GTF.masked_fill((pixels_GT < 0)[:, :, None], _FAR).mT.contiguous()
    return Tiles(
        features_GFT=features_GFT, pixels_GT=pixels_GT.int(), low_GF=low_GF.contiguous(), high_GF=high_GF.contiguous(),
        compared_GRT=features_GFT, num_images=B, num_pixels=P, valid_BP=features.valid_BP,
    )  # fmt: skip


def with_squares(tiles: Tiles) -> Tiles:
    """Tiles whose `compared_GRT` is sqrt(2) f, from the middle of the image's features, and behind it SHIFT/2 - |f|^2: the
    exponent SHIFT - |f - g|^2 is then a product and two terms. As they were where features reach too far for that in float32.
    """
    B, (G, F, _) = tiles.num_images, tiles.features_GFT.shape
    low_BF, high_BF = tiles.low_GF.view(B, -1, F).amin(1), tiles.high_GF.view(B, -1, F).amax(1)
    middle_GF = ((low_BF + high_BF) / 2).repeat_interleave(G // B, 0)
    none_G1T = (tiles.pixels_GT < 0)[:, None]
    centred_GFT = (math.sqrt(2) * (tiles.features_GFT - middle_GF[:, :, None])).masked_fill(none_G1T, 0.0)
    halves_G1T = -0.5 * centred_GFT.square().sum(1, keepdim=True)
    if not bool(halves_G1T.amin() >= -_EXPANDED_UP_TO):
        return tiles
    return replace(tiles, compared_GRT=torch.cat([centred_GFT, (halves_G1T + SHIFT / 2).masked_fill(none_G1T, -_FAR)], 1))


def _valid_pixels_first(features: Features, tile_size: int) -> Tensor:
    """(G, T): each image's valid pixels, then -1, in as many tiles as the fullest image needs."""
    B, P, _ = features.values_BPF.shape
    device, valid_BP = features.values_BPF.device, features.valid_BP
    if valid_BP is None:
        place_S = torch.arange(math.ceil(P / tile_size) * tile_size, device=device)
        return place_S.masked_fill(place_S >= P, -1).repeat(B).view(-1, tile_size)
    count_B1 = valid_BP.sum(1, keepdim=True)
    num_places = max(math.ceil(int(count_B1.max()) / tile_size), 1) * tile_size
    first_BP = valid_BP.byte().sort(dim=1, descending=True, stable=True).indices[:, :num_places]
    pixels_BS = first_BP.new_full((B, num_places), -1)
    place_P = torch.arange(first_BP.shape[1], device=first_BP.device)
    pixels_BS[:, : first_BP.shape[1]] = torch.where(place_P < count_B1, first_BP, -1)
    return pixels_BS.view(-1, tile_size)


def choose_pairs(tiles: Tiles, tolerance: float, *, precision: str, pairs_per_item: int) -> tuple[Tensor, Tensor]:
    """(E,), (E,): the pairs of tiles to sum over, ordered by the first; no row loses more than `tolerance` of its sum.

    Unmeasured, a pair is skipped where its boxes allow no weight above a limit of each that, were every pixel of the image
    skipped at that weight, would cost its rows 1/16 of the tolerance; row sums over the sure pairs bound what is left from
    below. Then each tile skips the lightest of the pairs that were measured, as many as the rest of the tolerance pays for.
    """
    G, T = tiles.pixels_GT.shape
    rows_E, columns_E, _ = _near_pairs(tiles, torch.full_like(tiles.low_GF[:, 0], _SURE))
    sums_BP = _row_sums(tiles, cut_into_items(rows_E, columns_E, G, pairs_per_item), precision)
    sums_GT = tiles.in_tile_order(sums_BP, filling=torch.inf)
    rows_E, columns_E, sure_E = _near_pairs(tiles, sums_GT.amin(1) * (tolerance * _UNMEASURED * tiles.num_images / (G * T)))
    doubtful_D = (~sure_E).nonzero().squeeze(1)
    rows_D, columns_D = rows_E[doubtful_D], columns_E[doubtful_D]
    doubtful = cut_into_items(rows_D, columns_D, G, pairs_per_item)
    shares_D = _kernels().largest_shares(tiles, doubtful, sums_GT.reciprocal(), precision=precision)
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
            level_RG = _kernels().near_tiles(
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


def _row_sums(tiles: Tiles, pairs: TilePairs, precision: str) -> Tensor:
    """(B, P): K 1; 0 where a pixel is not valid."""
    ones_BCP = tiles.features_GFT.new_ones(1).expand(tiles.num_images, 1, tiles.num_pixels)
    sums_BCP: Tensor = _kernels().apply_pairs(tiles, pairs, ones_BCP, precision=precision)
    return sums_BCP[:, 0]


def _kernels() -> ModuleType:
    """Imported when needed: it needs triton."""
    return import_module("jointseg.crf.filters.block_sparse_kernels")


def _check(features_BPF: Tensor, tolerance: float) -> None:
    if not 1e-6 <= tolerance <= 1e-1:
        raise InputError(f"tolerance of filter 'block_sparse' is {tolerance:g}; allowed: 1e-6 to 1e-1")
    if features_BPF.dtype != torch.float32:
        raise InputError(f"filter 'block_sparse' computes in float32, but the features are {features_BPF.dtype}; use 'exact'")
    missing = missing_for_triton()
    if missing:
        raise InputError(f"filter 'block_sparse' needs {missing}, which is not installed; use 'exact'")
    if features_BPF.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(
            f"filter 'block_sparse' needs a CUDA device, but the features are on {features_BPF.device}; use 'exact'"
        )
