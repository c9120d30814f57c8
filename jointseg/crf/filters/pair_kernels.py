"""The Triton kernels that say which pairs of tiles count, and their launches: how near two tiles are, what a pair weighs, where
rows of pairs are cut.

Not here: what is made of it (tile_pairs.py), the sums over the pairs (block_sparse_kernels.py). It needs triton: import it when
needed.
"""

# G tiles of T pixels (of all images), F kernel features, E pairs of tiles

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, attr-defined"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointseg.crf.filters.exponents import exponents, factor_of
from jointseg.crf.filters.tile_pairs import TilePairs
from jointseg.crf.filters.tiles import SHIFT, Tiles

SHARES_STAGES, SHARES_WARPS = 2, 4


@triton.jit
def _near_tiles(low, high, limits, out, first, G, SURE: tl.constexpr, F: tl.constexpr, N: tl.constexpr):
    """0 where a pair of tiles weighs at most both its limits, 1 where more, 2 where more than SURE, by the boxes' distance."""
    row = tl.program_id(0)
    col = tl.program_id(1) * N + tl.arange(0, N)
    inside = col < G
    exponent = tl.zeros((N,), tl.float32)
    for f in tl.static_range(F):
        below = tl.load(low + (first + row) * F + f) - tl.load(high + col * F + f, mask=inside, other=0.0)
        above = tl.load(low + col * F + f, mask=inside, other=0.0) - tl.load(high + (first + row) * F + f)
        gap = tl.maximum(tl.maximum(below, above), 0.0)
        exponent = tl.fma(gap, gap * -1.0, exponent)
    weight = tl.exp2(exponent)
    limit = tl.minimum(tl.load(limits + first + row), tl.load(limits + col, mask=inside, other=1.0))
    level = (weight > limit).to(tl.int8) + (weight > SURE).to(tl.int8)
    tl.store(out + row.to(tl.int64) * G + col, level, mask=inside)


@triton.jit(do_not_specialize=["num_pairs"])
def _shares(
    features, scales, columns, items, out, num_pairs,
    F: tl.constexpr, T: tl.constexpr, K: tl.constexpr, SHIFT: tl.constexpr, UNSHIFT: tl.constexpr,
):  # fmt: skip
    """For each pair of tiles the most that a pixel of the first hears from the second, times that pixel's scale; behind them
    all, what one of the second hears from the first, by the same weights.
    """
    item = items + tl.program_id(0) * 4
    row = tl.load(item).to(tl.int64)
    t = tl.arange(0, T)
    mine = factor_of(features, row, F, T, K)
    own = tl.load(scales + row * T + t) * UNSHIFT
    for e in range(tl.load(item + 1), tl.load(item + 2)):
        col = tl.load(columns + e).to(tl.int64)
        weights = tl.exp2(exponents(mine, features, col, F, T, K, SHIFT))
        other = tl.load(scales + col * T + t) * UNSHIFT
        one = tl.arange(0, 1)  # in two dimensions: of a maximum in one Triton makes no code for Blackwell
        tl.store(out + e + one, tl.max((tl.sum(weights, 1) * own)[None, :], 1))
        tl.store(out + num_pairs + e + one, tl.max((tl.sum(weights, 0) * other)[None, :], 1))


@triton.jit(do_not_specialize=["num_tiles", "length"])
def _cut(begins, slots, items, num_tiles, length):
    """The pieces of one row of tiles, as `TilePairs.items_I4` has them. Where rows were cut at each multiple of the length, a
    row had one piece and as many more as there are such within it: that many slots suffice for equal pieces, and the last of
    them may be left over.
    """
    row = tl.program_id(0)
    begin = tl.load(begins + row).to(tl.int32)
    stop = tl.load(begins + row + 1).to(tl.int32)
    each = tl.cdiv(stop - begin, tl.maximum(tl.cdiv(stop - begin, length), 1))
    first_slot = begin // length
    for piece in range(0, stop // length - first_slot + 1):
        item = items + (row + first_slot + piece) * 4
        tl.store(item, row)
        tl.store(item + 1, tl.minimum(begin + piece * each, stop))
        tl.store(item + 2, tl.minimum(begin + (piece + 1) * each, stop))
        tl.store(item + 3, tl.where(piece == 0, -1, first_slot + piece - 1))
    tl.store(slots + row, first_slot)
    tl.store(slots + row + 1, stop // length, mask=row == num_tiles - 1)


def near_tiles(low_GF: Tensor, high_GF: Tensor, limits_G: Tensor, rows: slice, *, sure: float) -> Tensor:
    """(R, G), int8, of one image's tiles: by how far their boxes are apart, 0 where a pair can weigh no more than both limits,
    1 where it can weigh more than one of them, 2 where it can weigh more than that and than `sure`.
    """
    G, F = low_GF.shape
    first, stop, _ = rows.indices(G)
    level_RG = torch.empty(stop - first, G, dtype=torch.int8, device=low_GF.device)
    with torch.cuda.device_of(level_RG):
        _near_tiles[(stop - first, triton.cdiv(G, 512))](
            low_GF, high_GF, limits_G, level_RG, first, G, SURE=sure, F=F, N=512, num_warps=4, enable_fp_fusion=True
        )
    return level_RG


def largest_shares(tiles: Tiles, pairs: TilePairs, scales_GT: Tensor, *, precision: str) -> Tensor:
    """(2, E): for each pair the most that a pixel hears from the other tile, sum_p' k(p, p'), times the pixel's scale; of the
    tile that hears, then of the one that is heard.
    """
    num_pairs, shape, shift = len(pairs.columns_E), tiles.kernel_shape, SHIFT if precision == "float16" else 0.0
    out_2E = scales_GT.new_empty(2, num_pairs)
    if num_pairs:
        with torch.cuda.device_of(out_2E):
            _shares[(len(pairs.items_I4),)](
                tiles.compared_GRT, scales_GT, pairs.columns_E, pairs.items_I4, out_2E, num_pairs,
                **shape, SHIFT=shift, UNSHIFT=2.0**-shift, num_warps=SHARES_WARPS if shape["K"] else max(4, shape["T"] // 16),
                num_stages=SHARES_STAGES, enable_fp_fusion=True,
            )  # fmt: skip
    return out_2E


def cut(begin_G: Tensor, num_pairs: int, length: int) -> tuple[Tensor, Tensor]:
    """(I, 4), (G + 1,), int32: the work items of rows of tiles whose pairs begin as given, of G + 1, in the order of the pairs;
    and where the rows' partial sums begin. A row without pairs has an item too, and so has a slot that no row needs.
    """
    num_tiles, num_slots = len(begin_G) - 1, num_pairs // length
    items_I4 = torch.empty(num_tiles + num_slots, 4, dtype=torch.int32, device=begin_G.device)
    slots_G = torch.empty(num_tiles + 1, dtype=torch.int32, device=begin_G.device)
    with torch.cuda.device_of(items_I4):
        _cut[(num_tiles,)](begin_G, slots_G, items_I4, num_tiles, length, num_warps=1, enable_fp_fusion=True)
    return items_I4, slots_G
