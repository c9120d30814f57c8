"""The Triton kernels that sum over pairs of tiles, and their launches: each works on tiles of pixels that are near each other.

Not here: how far two tiles' pixels are apart (exponents.py), which pixels make a tile (kd_tree.py), which pairs of tiles count
(tile_pairs.py, pair_kernels.py). It needs triton: import it when needed.

Weights times values go through the tensor cores, and so do exponents (exponents.py) where they are products. No kernel adds
atomically: a sum has one order.

What was tried and left out (docs/crf.md has the measurement it is beside; ms an application at 513 x 513 on an H200, 1.96 as
it is): a quarter or a half of the exponentials as polynomials, 1.83 and 2.07; 32 + 16 channels in place of 64, 1.90; four
warps, 2.32; three tiles ahead, 1.95; tiles in parts of 32 or 64 pixels, so that three programs fit instead of two, 1.13 to
1.22 against 1.13 (385 x 513 pixels).
"""

# B images, C channels, P pixels, G tiles of T pixels (of all images), F kernel features, E pairs of tiles, I work items

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, attr-defined"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointseg.crf.filters.exponents import exponents, factor_of
from jointseg.crf.filters.tile_pairs import TilePairs
from jointseg.crf.filters.tiles import SHIFT, Tiles

MAX_CHANNELS = {"float16": 64, "tf32x3": 32}
"""Channels that one launch carries, by precision. In tf32x3 twice as many on Hopper, whose tensor cores read one operand from
shared memory."""
APPLY_STAGES = {"float16": 2, "tf32x3": 3}
"""Tiles that a program loads ahead, and one."""
APPLY_WARPS = {"float16": 8, "tf32x3": 4}


@triton.jit
def _magnitude(peaks):
    """The powers of two just below, as the bits of a float: at most 2^125, whose inverse is a normal number too; 1 for what is
    smaller than 2^-125, or no number.
    """
    bits = peaks.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.where((bits > 0x00800000) & (bits < 0x7F800000), tl.minimum(bits, 0x7E000000), 0x3F800000)


@triton.jit
def _gather(
    values, peaks, pixels, out, stride_b, stride_c, stride_p, tiles_per_image, C,
    HALF: tl.constexpr, ROUND: tl.constexpr, T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Values in tile order, (G, C, T); 0 where there is no pixel. HALF: as float16, over their channel's magnitude.
    ROUND: to the nearest tf32, as the tensor cores cut.
    """
    tile = tl.program_id(0).to(tl.int64)
    image = tile // tiles_per_image
    t = tl.arange(0, T)
    c = tl.arange(0, BLOCK_C)
    pixel = tl.load(pixels + tile * T + t)
    source = values + image * stride_b + c.to(tl.int64)[:, None] * stride_c + pixel.to(tl.int64)[None, :] * stride_p
    value = tl.load(source, mask=(c[:, None] < C) & (pixel[None, :] >= 0), other=0.0)
    if HALF:
        inverse = 0x7F000000 - _magnitude(tl.load(peaks + image * C + c, mask=c < C, other=1.0))
        value = value * inverse.to(tl.float32, bitcast=True)[:, None]
    if ROUND:
        bits = value.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        value = tl.where((bits & 0x7F800000) == 0x7F800000, value, rounded)  # a nan stays one
    tl.store(out + tile * C * T + c[:, None] * T + t[None, :], value.to(out.dtype.element_ty), mask=c[:, None] < C)


@triton.jit
def _apply(
    features, values, columns, items, out, partials, C,
    F: tl.constexpr, T: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr, HALF: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """One work item: the sum over its columns' tiles of weights times values, (T, C); 2^SHIFT times as large."""
    item = items + tl.program_id(0) * 4
    row = tl.load(item).to(tl.int64)
    first = tl.load(item + 1)
    stop = tl.load(item + 2)
    slot = tl.load(item + 3).to(tl.int64)
    t = tl.arange(0, T)
    c = tl.arange(0, BLOCK_C)
    place = c[:, None] * T + t[None, :]
    inside = c[:, None] < C
    mine = factor_of(features, row, F, T, K)
    sums = tl.zeros((T, BLOCK_C), tl.float32)
    for e in range(first, stop):
        col = tl.load(columns + e).to(tl.int64)
        value = tl.load(values + col * C * T + place, mask=inside, other=0.0)
        weights = tl.exp2(exponents(mine, features, col, F, T, K, SHIFT))
        if HALF:
            sums = tl.dot(weights.to(tl.float16), tl.trans(value), sums)
        else:
            sums = tl.dot(weights, tl.trans(value), sums, input_precision="tf32x3")
    if slot < 0:
        tl.store(out + row * C * T + place, tl.trans(sums), mask=inside)
    else:
        tl.store(partials + slot * C * T + place, tl.trans(sums), mask=inside)


@triton.jit
def _scatter(
    sums, partials, slots, peaks, pixels, factors, out, stride_b, stride_c, num_pixels, tiles_per_image, C,
    HALF: tl.constexpr, UNSHIFT: tl.constexpr, SCALED: tl.constexpr, ADDED: tl.constexpr,
    T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add a tile's partial sums, in their order, and put the total where its pixels are. HALF: times UNSHIFT and the magnitude;
    SCALED: times the pixel's factor; ADDED: added to what is there.
    """
    tile = tl.program_id(0).to(tl.int64)
    image = tile // tiles_per_image
    t = tl.arange(0, T)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    place = c[:, None] * T + t[None, :]
    pixel = tl.load(pixels + tile * T + t)
    inside = (c[:, None] < C) & (pixel[None, :] >= 0)
    total = tl.load(sums + tile * C * T + place, mask=inside, other=0.0)
    first = tl.load(slots + tile)
    partial = partials + first.to(tl.int64) * C * T + place
    for _ in range(first, tl.load(slots + tile + 1)):
        total += tl.load(partial, mask=inside, other=0.0)
        partial += C * T
    if HALF:
        magnitude = _magnitude(tl.load(peaks + image * C + c, mask=c < C, other=1.0))
        total = total * UNSHIFT * magnitude.to(tl.float32, bitcast=True)[:, None]
    if SCALED:
        total *= tl.load(factors + image * num_pixels + pixel, mask=pixel >= 0, other=0.0)[None, :]
    target = out + image * stride_b + c.to(tl.int64)[:, None] * stride_c + pixel[None, :]
    if ADDED:
        total += tl.load(target, mask=inside, other=0.0)
    tl.store(target, total, mask=inside)


@triton.jit
def _moments(
    features, left, right, columns, items, out, C,
    F: tl.constexpr, BLOCK_F: tl.constexpr, T: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One work item: for each feature f the sum of k (y . v) (f - g)^2 over its pairs of pixels."""
    item = items + tl.program_id(0) * 4
    row = tl.load(item).to(tl.int64)
    t = tl.arange(0, T)
    c = tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_F)
    place = c[:, None] * T + t[None, :]
    inside = c[:, None] < C
    y = tl.trans(tl.load(left + row * C * T + place, mask=inside, other=0.0))
    mine = features + row * F * T + t
    sums = tl.zeros((T, BLOCK_F), tl.float32)
    for e in range(tl.load(item + 1), tl.load(item + 2)):
        col = tl.load(columns + e).to(tl.int64)
        v = tl.load(right + col * C * T + place, mask=inside, other=0.0)
        theirs = features + col * F * T + t
        product = tl.exp2(exponents(mine, features, col, F, T, 0, 0.0)) * tl.dot(y, v, input_precision=PRECISION)
        for f in tl.static_range(F):
            difference = tl.load(mine + f * T)[:, None] - tl.load(theirs + f * T)[None, :]
            moment = tl.sum(product * difference * difference, 1)
            sums += tl.where(n[None, :] == f, moment[:, None], 0.0)
    tl.store(out + tl.program_id(0) * BLOCK_F + n, tl.sum(sums, 0))


def apply_pairs(
    tiles: Tiles,
    pairs: TilePairs,
    values_BCP: Tensor,
    *,
    precision: str,
    out_BCP: Tensor | None = None,
    factors_BP: Tensor | None = None,
    added: bool = False,
) -> Tensor:
    """K v over the given pairs, (B, C, P); 0 where no tile has the pixel. Values float32, of any strides.

    With factors of the pixels, times those; into `out_BCP` where that is given, and `added` to what it holds. Works in rounds
    of some channels (`MAX_CHANNELS`), with (1.5 or 2 G + slots) T channels values of memory beside the result.
    """
    B, C, P = values_BCP.shape
    at_once, half = _channels_at_once(precision, values_BCP.device), precision == "float16"
    G, _, T = tiles.features_GFT.shape
    if out_BCP is None:
        out_BCP = torch.zeros(values_BCP.shape, dtype=torch.float32, device=values_BCP.device)
    elif not added and (tiles.valid_BP is not None or not len(pairs.items_I4)):
        out_BCP.zero_()  # else every pixel is written
    if not len(pairs.items_I4):
        return out_BCP
    factors = tiles.features_GFT if factors_BP is None else factors_BP.contiguous()
    for start in range(0, C, at_once):
        target_BCP, given_BCP = out_BCP[:, start : start + at_once], values_BCP[:, start : start + at_once]
        num_channels = target_BCP.shape[1]
        peaks_BC = _peaks(given_BCP, tiles.valid_BP) if half else tiles.features_GFT
        sorted_GCT = _in_tile_order(tiles, given_BCP, peaks_BC, half=half)
        sums_GCT = torch.empty(sorted_GCT.shape, dtype=torch.float32, device=sorted_GCT.device)
        partials_SCT = sums_GCT.new_empty(max(pairs.num_slots, 1), num_channels, T)
        with torch.cuda.device_of(sorted_GCT):
            _apply[(len(pairs.items_I4),)](
                tiles.compared_GRT, sorted_GCT, pairs.columns_E, pairs.items_I4, sums_GCT, partials_SCT, num_channels,
                **tiles.kernel_shape, BLOCK_C=_block(num_channels), HALF=half, SHIFT=SHIFT if half else 0.0,
                num_warps=APPLY_WARPS[precision], num_stages=APPLY_STAGES[precision], enable_fp_fusion=True,
            )  # fmt: skip
            _scatter[(G, triton.cdiv(num_channels, 16))](
                sums_GCT, partials_SCT, pairs.slots_G, peaks_BC, tiles.pixels_GT, factors, target_BCP,
                target_BCP.stride(0), target_BCP.stride(1), P, G // B, num_channels,
                HALF=half, UNSHIFT=2.0**-SHIFT, SCALED=factors_BP is not None, ADDED=added, T=T, BLOCK_C=16,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return out_BCP


def has_room_for_another(num_channels: int, precision: str, device: torch.device) -> bool:
    """Whether one channel more takes no longer: it goes where there is padding."""
    return num_channels < min(_block(num_channels), _channels_at_once(precision, device))


def _peaks(values_BCP: Tensor, valid_BP: Tensor | None) -> Tensor:
    """(B, C): the largest |value| of each channel over the pixels that take part."""
    heard_BCP = values_BCP if valid_BP is None else values_BCP.masked_fill(~valid_BP[:, None], 0.0)
    peaks_BC: Tensor = torch.linalg.vector_norm(heard_BCP, torch.inf, dim=2)
    return peaks_BC


def moments_of_pairs(tiles: Tiles, pairs: TilePairs, y_BCP: Tensor, v_BCP: Tensor, *, precision: str) -> Tensor:
    """(I, F): for each work item and feature f the sum of k (y . v) (f - g)^2, in the features' units."""
    _, F, T = tiles.features_GFT.shape
    out_IF = torch.zeros(len(pairs.items_I4), F, dtype=torch.float64, device=y_BCP.device)
    at_once, half = _channels_at_once("tf32x3", y_BCP.device) * 64 // max(T, 64), precision == "float16"
    for start in range(0, y_BCP.shape[1] if len(out_IF) else 0, at_once):
        channels = slice(start, start + at_once)
        left_GCT, right_GCT = (_in_tile_order(tiles, values[:, channels], None, half=half) for values in (y_BCP, v_BCP))
        num_channels = left_GCT.shape[1]
        part_IF = left_GCT.new_empty(len(out_IF), 1 << (F - 1).bit_length())
        with torch.cuda.device_of(left_GCT):
            _moments[(len(out_IF),)](
                tiles.features_GFT, left_GCT, right_GCT, pairs.columns_E, pairs.items_I4, part_IF, num_channels,
                F=F, BLOCK_F=part_IF.shape[1], T=T, BLOCK_C=_block(num_channels), PRECISION="tf32" if half else "tf32x3",
                num_warps=max(4, T // 16), num_stages=2, enable_fp_fusion=True,
            )  # fmt: skip
        out_IF += part_IF[:, :F]
    return out_IF


def _in_tile_order(tiles: Tiles, values_BCP: Tensor, peaks_BC: Tensor | None, *, half: bool) -> Tensor:
    """(G, C, T): float16, over the magnitude of its channel's peak; without peaks float32, where `half` rounded to tf32."""
    G, _, T = tiles.features_GFT.shape
    B, C, _ = values_BCP.shape
    scaled = half and peaks_BC is not None
    out_GCT = torch.empty(G, C, T, dtype=torch.float16 if scaled else torch.float32, device=values_BCP.device)
    with torch.cuda.device_of(out_GCT):
        _gather[(G,)](
            values_BCP, values_BCP if peaks_BC is None else peaks_BC, tiles.pixels_GT, out_GCT, *values_BCP.stride(), G // B, C,
            HALF=scaled, ROUND=half and not scaled, T=T, BLOCK_C=_block(C), num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out_GCT


def _channels_at_once(precision: str, device: torch.device) -> int:
    return MAX_CHANNELS[precision] * (2 if precision != "float16" and is_hopper(device) else 1)


def tile_size(precision: str, device: torch.device) -> int:
    """Pixels of a tile: on Hopper twice as many hear what is loaded once. Elsewhere 128 was not measured."""
    return 128 if precision == "float16" and is_hopper(device) else 64


def is_hopper(device: torch.device) -> bool:
    """Whether it is a GPU of compute capability 9."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _block(num_channels: int) -> int:
    """The least that tl.dot takes is 16, and it wants a power of two."""
    return max(16, 1 << (num_channels - 1).bit_length())
