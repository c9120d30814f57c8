"""Pixels in tiles that are compact in feature space, as the block-sparse filter takes them.

Not here: the tree that sorts them (kd_tree.py), which pairs of tiles count (tile_pairs.py), distances (exponents.py).
"""

# B images, P pixels, G tiles of T pixels (of all images), F kernel features, S = G T

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor

from jointseg.crf.filters.features import SCALE, Features

EXPANDED_UP_TO = 4096.0
"""The most that |f|^2 may be where 2^-|f - g|^2 is computed from |f|^2, |g|^2 and f.g. Tensor cores cut what they add to about
2^-24 of such a sum's largest term, here up to 2^13, at each step: a weight is off by some 1e-3 at most, row sums by less."""
_EXPANDED_FEATURES = 16
"""The most features that this is done with: factors of more take a program's memory, and add up more roundings."""
SHIFT = 14.0
"""Weights in float16 are 2^14 times as large, so that those from 2^-38 on are numbers there, not from 2^-24."""
_FAR = 1e18


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
    """What distances are computed from: `features_GFT`, or the factors of a product, in float16 (`with_squares`)."""
    num_images: int
    num_pixels: int
    """P, of one image."""
    valid_BP: Tensor | None = None
    """The pixels that are in tiles; None: all."""

    @property
    def kernel_shape(self) -> dict[str, int]:
        """F and T, and K, the rows of a factor in `compared_GRT`: 0 where it is no product (exponents.py)."""
        _, F, T = self.features_GFT.shape
        product = self.compared_GRT.dtype == torch.float16
        return {"F": F, "T": T, "K": self.compared_GRT.shape[1] // 2 if product else 0}

    def in_tile_order(self, values_BP: Tensor, *, filling: float) -> Tensor:
        """(G, T): one channel sorted as the pixels are, with `filling` where there is none."""
        pixels_BS = self.pixels_GT.view(self.num_images, -1)
        sorted_BS = values_BP.gather(1, pixels_BS.clamp(min=0).long())
        return torch.where(pixels_BS < 0, filling, sorted_BS).view(self.pixels_GT.shape)


def sort_into_tiles(features: Features, tile_size: int) -> Tiles:
    """Each image's valid pixels in the tiles of a kd-tree (`kd_order`).

    All images get the number of tiles that the fullest needs; a tile is full unless no pixel is left.
    """
    B, P, F = features.values_BPF.shape
    pixels_GT = _valid_pixels_first(features, tile_size)
    G, T = pixels_GT.shape
    place_GT = pixels_GT + P * (torch.arange(G, device=pixels_GT.device) // (G // B))[:, None]
    points_GTF = features.values_BPF.detach().reshape(B * P, F)[place_GT.clamp(min=0)] * SCALE
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
    """Tiles whose `compared_GRT` are the factors of a product that is SHIFT - |f - g|^2, the exponent: tensor cores make it. As
    they were where an image's features reach too far for that, or are too many.
    """
    if tiles.features_GFT.shape[1] > _EXPANDED_FEATURES:
        return tiles
    low_BF, high_BF = (box_GF.view(tiles.num_images, -1, box_GF.shape[1]) for box_GF in (tiles.low_GF, tiles.high_GF))
    middle_BF = (low_BF.amin(1) + high_BF.amax(1)) / 2
    compared_GRT, far_G = import_module("jointseg.crf.filters.exponents").factors(tiles, middle_BF)
    return tiles if far_G.any() else replace(tiles, compared_GRT=compared_GRT)


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
