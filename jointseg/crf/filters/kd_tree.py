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
from torch import Tensor


@triton.jit
def _in_order(bits):
    """The bits of floats as whole numbers in their order, and back: those of negative ones are turned over."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _sorted_tile(points, before, places, order, nodes, extents, boxes, F: tl.constexpr, T: tl.constexpr, LAST: tl.constexpr):
    """The order of a tile's points, by where they were in the one before. LAST: its box, (2, F), the least and the greatest of
    each feature over its pixels, +inf and -inf where it has none. Else its node's box, as `_in_order` has it, takes it in.
    """
    tile = tl.program_id(0).to(tl.int64)
    slot = tile * T + tl.arange(0, T)
    place = tl.load(before + tl.load(places + slot))
    tl.store(order + slot, place)
    for f in tl.static_range(F):
        value = tl.load(points + place * F + f)
        least = tl.min(value, 0)
        greatest = tl.max(tl.where(value == float("inf"), -float("inf"), value), 0)
        if LAST:
            tl.store(boxes + (tile * 2 + 0) * F + f, least)
            tl.store(boxes + (tile * 2 + 1) * F + f, greatest)
        else:
            low = extents + tl.load(nodes + tile) * 2 * F + f
            high = low + F
            least = _in_order(least.to(tl.int32, bitcast=True))
            greatest = _in_order(greatest.to(tl.int32, bitcast=True))
            # Most tiles widen nothing: what is there, even as it was a while ago, spares them from waiting for each other.
            tl.atomic_min(low, least, mask=least < tl.load(low), sem="relaxed")
            tl.atomic_max(high, greatest, mask=greatest > tl.load(high), sem="relaxed")


@triton.jit
def _node_keys(points, order, nodes, extents, keys, F: tl.constexpr, T: tl.constexpr):
    """Keys that are in order by node, then by the value of the feature in which the node's pixels lie farthest apart."""
    tile = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, T)
    node = tl.load(nodes + tile)
    best = -float("inf")
    widest = 0
    for f in tl.static_range(F):
        low = _in_order(tl.load(extents + node * 2 * F + f)).to(tl.float32, bitcast=True)
        high = _in_order(tl.load(extents + (node * 2 + 1) * F + f)).to(tl.float32, bitcast=True)
        widest = tl.where(high - low > best, f, widest)
        best = tl.maximum(high - low, best)
    value = tl.load(points + tl.load(order + tile * T + t) * F + widest)
    tl.store(keys + tile * T + t, (node.to(tl.int64) << 32) + _in_order(value.to(tl.int32, bitcast=True)))


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
    nodes_LG, num_nodes = _levels(G // num_images, num_images, points_SF.device)
    extents_N2F = torch.empty(num_nodes, 2, F, dtype=torch.int32, device=points_SF.device)
    extents_N2F[:, 0], extents_N2F[:, 1] = 0x7F800000, -0x7F800001  # +inf and -inf, as `_in_order` has them
    shared = {"F": F, "T": T, "num_warps": 4, "enable_fp_fusion": True}
    with torch.cuda.device_of(points_SF):
        for nodes_G in nodes_LG:
            _sorted_tile[(G,)](points_SF, before_S, places_S, order_S, nodes_G, extents_N2F, boxes_G2F, LAST=False, **shared)
            _node_keys[(G,)](points_SF, order_S, nodes_G, extents_N2F, keys_S, **shared)
            places_S = keys_S.sort(stable=True).indices
            before_S, order_S = order_S, before_S
        _sorted_tile[(G,)](points_SF, before_S, places_S, order_S, None, extents_N2F, boxes_G2F, LAST=True, **shared)
    return order_S.view(G, T).sort(1).values.flatten(), boxes_G2F


@lru_cache(maxsize=8)
def _levels(num_tiles: int, num_images: int, device: torch.device) -> tuple[list[Tensor], int]:
    """For each level of the tree, from its root, the node of each tile (G,), int32, counted through all levels; and how many
    nodes there are.
    """
    levels, num_nodes = [], 0
    sizes = [num_tiles] * num_images
    for _ in range((num_tiles - 1).bit_length()):
        levels.append(num_nodes + np.arange(len(sizes)).repeat(sizes))
        num_nodes += len(sizes)
        sizes = [half for size in sizes for half in ((size + 1) // 2, size // 2) if half]
    return [torch.from_numpy(node_G.astype(np.int32)).to(device) for node_G in levels], num_nodes
