"""The kd-tree that sorts pixels into tiles which are compact in feature space, in Triton.

Not here: what becomes of the tiles (tiles.py). It needs triton: import it when needed.
"""

# G tiles of T pixels (of all images), S = G T, F kernel features

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, attr-defined"
# ruff: noqa: PLR0917  # kernels take no keywords

from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor


@triton.jit
def _tile_boxes(points, before, places, order, boxes, F: tl.constexpr, T: tl.constexpr):
    """The order, by where its points were in the one before; and (G, 2, F), the least and the greatest of each feature over a
    tile's pixels: +inf and -inf where it has none.
    """
    tile = tl.program_id(0).to(tl.int64)
    slot = tile * T + tl.arange(0, T)
    place = tl.load(before + tl.load(places + slot))
    tl.store(order + slot, place)
    for f in tl.static_range(F):
        value = tl.load(points + place * F + f)
        tl.store(boxes + (tile * 2 + 0) * F + f, tl.min(value, 0))
        tl.store(boxes + (tile * 2 + 1) * F + f, tl.max(tl.where(value == float("inf"), -float("inf"), value), 0))


@triton.jit
def _widest_features(boxes, firsts, widest, F: tl.constexpr, N: tl.constexpr):
    """Of each node of the kd-tree, a range of tiles, the feature in which its pixels lie farthest apart."""
    node = tl.program_id(0)
    stop = tl.load(firsts + node + 1)
    best = -float("inf")
    feature = 0
    for f in tl.static_range(F):
        low = tl.full((N,), float("inf"), tl.float32)
        high = tl.full((N,), -float("inf"), tl.float32)
        for start in range(tl.load(firsts + node), stop, N):
            tile = (start + tl.arange(0, N)).to(tl.int64)
            low = tl.minimum(low, tl.load(boxes + (tile * 2 + 0) * F + f, mask=tile < stop, other=float("inf")))
            high = tl.maximum(high, tl.load(boxes + (tile * 2 + 1) * F + f, mask=tile < stop, other=-float("inf")))
        extent = tl.max(high, 0) - tl.min(low, 0)
        feature = tl.where(extent > best, f, feature)
        best = tl.maximum(extent, best)
    tl.store(widest + node, feature)


@triton.jit
def _node_keys(points, order, nodes, widest, keys, F: tl.constexpr, T: tl.constexpr):
    """Keys that are in order by node, then by the value of its widest feature: as bits floats are in order, once those of the
    negative ones are turned over.
    """
    tile = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, T)
    node = tl.load(nodes + tile)
    value = tl.load(points + tl.load(order + tile * T + t) * F + tl.load(widest + node))
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    tl.store(keys + tile * T + t, (node.to(tl.int64) << 32) + bits)


def kd_order(points_SF: Tensor, tile_size: int, num_images: int) -> tuple[Tensor, Tensor]:
    """(S,), (G, 2, F): the order of the points, S = G T of all images, that makes tiles of a kd-tree, and the tiles' boxes.

    A node of several tiles is halved across its widest feature, until each is one. Every node is a range of tiles, so a level
    is one sort of all pixels, by node and by the value of its widest feature. Within a tile points keep their order, so that
    neighbours in memory are read and written together.
    """
    (S, F), T = points_SF.shape, tile_size
    G = S // T
    before_S = places_S = torch.arange(S, device=points_SF.device)
    order_S, keys_S = torch.empty_like(before_S), torch.empty_like(before_S)
    boxes_G2F = points_SF.new_empty(G, 2, F)
    widest = torch.empty(G, dtype=torch.int32, device=points_SF.device)
    shared = {"F": F, "T": T, "num_warps": 4, "enable_fp_fusion": True}
    with torch.cuda.device_of(points_SF):
        for firsts, nodes_G in _levels(G // num_images, num_images, points_SF.device):
            _tile_boxes[(G,)](points_SF, before_S, places_S, order_S, boxes_G2F, **shared)
            _widest_features[(len(firsts) - 1,)](boxes_G2F, firsts, widest, N=256, F=F, num_warps=4, enable_fp_fusion=True)
            _node_keys[(G,)](points_SF, order_S, nodes_G, widest, keys_S, **shared)
            places_S = keys_S.sort(stable=True).indices
            before_S, order_S = order_S, before_S
        _tile_boxes[(G,)](points_SF, before_S, places_S, order_S, boxes_G2F, **shared)
    return order_S.view(G, T).sort(1).values.flatten(), boxes_G2F


@lru_cache(maxsize=8)
def _levels(num_tiles: int, num_images: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each level of the tree, from its root, the first tile of each node, then G; and the node of each tile. int32."""
    levels = []
    nodes = [(image * num_tiles, num_tiles) for image in range(num_images)]
    for _ in range((num_tiles - 1).bit_length()):
        firsts = [first for first, _ in nodes] + [num_images * num_tiles]
        node_G = np.repeat(np.arange(len(nodes)), [size for _, size in nodes])
        levels.append((_int32(firsts, device), _int32(node_G, device)))
        halves = [((first, (size + 1) // 2), (first + (size + 1) // 2, size // 2)) for first, size in nodes]
        nodes = [half for both in halves for half in both if half[1]]
    return levels


def _int32(numbers: list[int] | NDArray[np.intp], device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(numbers, np.int32)).to(device)
