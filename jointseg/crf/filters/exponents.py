"""How far the pixels of two tiles are apart, as the binary logarithm of the kernel between them, in Triton.

Not here: what is summed by it (block_sparse_kernels.py). It needs triton: import it when needed.

Features are in units of sqrt(2 ln 2) bandwidths, so that a weight is 2^-|f - g|^2. Distances are sums of squared differences
in float32, or, where features are small enough and the tolerance allows, -|f|^2 - |g|^2 + 2 f.g as one product of matrices,
of numbers in two or three float16 parts, which leaves to the ordinary units little but the exponential.
"""

# B images, G tiles of T pixels (of all images), F kernel features

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointseg.crf.filters.tiles import EXPANDED_UP_TO, SHIFT, Tiles


@triton.jit
def factor_of(features, tile, F: tl.constexpr, T: tl.constexpr, K: tl.constexpr):
    """What `exponents` takes of the tile that hears: pointers (T,) to its first feature; K > 0: its factor (T, K)."""
    if K == 0:
        factor = features + tile * F * T + tl.arange(0, T)
    else:
        factor = tl.trans(tl.load(features + tile * 2 * K * T + tl.arange(0, K)[:, None] * T + tl.arange(0, T)[None, :]))
    return factor


@triton.jit
def exponents(mine, features, tile, F: tl.constexpr, T: tl.constexpr, K: tl.constexpr, SHIFT: tl.constexpr):
    """(T, T): the binary logarithm of the kernel between the pixels of two tiles, and SHIFT more than that."""
    if K == 0:
        theirs = features + tile * F * T + tl.arange(0, T)
        exponent = tl.full((T, T), SHIFT, tl.float32)
        for f in tl.static_range(F):
            difference = tl.load(mine + f * T)[:, None] - tl.load(theirs + f * T)[None, :]
            exponent = tl.fma(difference, difference * -1.0, exponent)  # times -1 is free, unlike 0 - x
    else:
        theirs = features + (tile * 2 + 1) * K * T + tl.arange(0, K)[:, None] * T + tl.arange(0, T)[None, :]
        exponent = tl.dot(mine, tl.load(theirs))
    return exponent


@triton.jit
def _factors(
    features, middles, pixels, far, out, tiles_per_image,
    F: tl.constexpr, T: tl.constexpr, K: tl.constexpr, SHIFT: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Two factors (K, T) of a tile, in float16, whose product with another tile's is SHIFT - |f - g|^2: sqrt(2) f from a middle
    as a number and its rest, each times each, and SHIFT/2 - |f|^2 in three parts, times 1. Terms that are each other's when the
    tiles change places stand among the same four, which are added at once. far: where |f|^2 is above FAR.
    """
    tile = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, T)
    there = tl.load(pixels + tile * T + t) >= 0
    left = out + tile * 2 * K * T + t
    right = left + K * T
    square = tl.zeros((T,), tl.float32)
    rounded = tl.zeros((T,), tl.float32)
    for f in tl.static_range(F):
        value = tl.load(features + (tile * F + f) * T + t) - tl.load(middles + tile // tiles_per_image * F + f)
        value = tl.where(there, value * 1.4142135623730951, 0.0)
        high = value.to(tl.float16)
        low = (value - high.to(tl.float32)).to(tl.float16)
        square += value * value
        both = high.to(tl.float32) + low.to(tl.float32)
        rounded += both * both
        for i in tl.static_range(4):
            tl.store(left + (4 * f + i) * T, high if i < 2 else low)
            tl.store(right + (4 * f + i) * T, high if i % 2 == 0 else low)
    tl.store(far + tile, tl.max(tl.where(square <= 2 * FAR, 0, 1), 0))
    rest = tl.where(there, 0.5 * (SHIFT - rounded), -32768.0)
    for i in tl.static_range(3):
        part = rest.to(tl.float16)
        rest -= part.to(tl.float32)
        one = tl.full((T,), 1.0, tl.float16)
        tl.store(left + (4 * F + 2 * i) * T, part)
        tl.store(left + (4 * F + 2 * i + 1) * T, one)
        tl.store(right + (4 * F + 2 * i) * T, one)
        tl.store(right + (4 * F + 2 * i + 1) * T, part)
    for k in tl.static_range(4 * F + 6, K):
        tl.store(left + k * T, tl.zeros((T,), tl.float16))
        tl.store(right + k * T, tl.zeros((T,), tl.float16))


def factors(tiles: Tiles, middle_BF: Tensor) -> tuple[Tensor, Tensor]:
    """(G, 2 K, T), float16: SHIFT - |f - g|^2 as a product of matrices, a factor (K, T) for each side; and (G,), int32: above 0
    where some |f|^2 is more than `EXPANDED_UP_TO`, and the product too coarse. Distances are from the image's middle.
    """
    G, F, T = tiles.features_GFT.shape
    K = max(16, triton.next_power_of_2(4 * F + 6))
    out_GRT = torch.empty(G, 2 * K, T, dtype=torch.float16, device=middle_BF.device)
    far_G = torch.empty(G, dtype=torch.int32, device=middle_BF.device)
    with torch.cuda.device_of(middle_BF):
        _factors[(G,)](
            tiles.features_GFT, middle_BF, tiles.pixels_GT, far_G, out_GRT, G // len(middle_BF),
            F=F, T=T, K=K, SHIFT=SHIFT, FAR=EXPANDED_UP_TO, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out_GRT, far_G
