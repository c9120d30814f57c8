"""Two products in Triton: with a narrow kernel along rows and columns, and with the few entries a row of what reads a grid.

Not here: the filters they are for (matrices.py). It needs triton: import it when needed.
"""

# B images, C channels, P = H * W pixels, G cells of a grid, V corners of a cell

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS = 512
"""Pixels that a program takes at once."""


@triton.jit
def _blur(
    values, taps, factors, out, num_pixels, W, stride, length, radius, C,
    ALONG_X: tl.constexpr, SCALED: tl.constexpr, ADDED: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """out[p] = sum_d taps[|d|] values[p + d stride], |d| <= radius, within the image's side of that `length`, of one channel.
    SCALED: times the pixel's factor; ADDED: added to what is there.
    """
    channel = tl.program_id(1).to(tl.int64)
    if ALONG_X:
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        there, along = pixel < num_pixels, pixel % W
    else:  # 32 columns of several rows, so that what is loaded serves several of them
        i, across = tl.arange(0, PIXELS), tl.cdiv(W, 32)
        x, along = tl.program_id(0) % across * 32 + i % 32, tl.program_id(0) // across * (PIXELS // 32) + i // 32
        pixel, there = along * W + x, (x < W) & (along < length)
    values += channel * num_pixels
    total = tl.load(taps) * tl.load(values + pixel, mask=there, other=0.0)
    for d in range(1, radius + 1):
        before = tl.load(values + pixel - d * stride, mask=there & (along >= d), other=0.0)
        after = tl.load(values + pixel + d * stride, mask=there & (along + d < length), other=0.0)
        total += tl.load(taps + d) * (before + after)
    if SCALED:
        total *= tl.load(factors + channel // C * num_pixels + pixel, mask=there, other=0.0)
    target = out + channel * num_pixels + pixel
    if ADDED:
        total += tl.load(target, mask=there, other=0.0)
    tl.store(target, total, mask=there)


def blur_into(
    out_BCHW: Tensor, values_BCHW: Tensor, taps_X: Tensor, taps_Y: Tensor, factors_BP: Tensor | None, *, added: bool
) -> None:
    """Filter along rows by taps 0, 1, ... of a symmetric kernel, then along columns by others; contiguous, float32.

    With factors of the pixels, times those; `added`: to what `out_BCHW` holds.
    """
    B, C, H, W = values_BCHW.shape
    assert values_BCHW.is_contiguous() and out_BCHW.is_contiguous() and values_BCHW.dtype == torch.float32
    rows_BCHW = torch.empty_like(values_BCHW)
    grid = (triton.cdiv(H * W, _PIXELS), B * C)
    with torch.cuda.device_of(values_BCHW):
        _blur[grid](
            values_BCHW, taps_X, taps_X, rows_BCHW, H * W, W, 1, W, len(taps_X) - 1, C,
            ALONG_X=True, SCALED=False, ADDED=False, PIXELS=_PIXELS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        _blur[triton.cdiv(W, 32) * triton.cdiv(H, _PIXELS // 32), B * C](
            rows_BCHW, taps_Y, taps_Y if factors_BP is None else factors_BP, out_BCHW, H * W, W, W, H, len(taps_Y) - 1, C,
            ALONG_X=False, SCALED=factors_BP is not None, ADDED=added, PIXELS=_PIXELS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


@triton.jit
def _read(
    grid, corners, weights, factors, out, P,
    C: tl.constexpr, V: tl.constexpr, SCALED: tl.constexpr, ADDED: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[c, p] = sum_v weights[p, v] grid[corners[p, v], c], for some pixels and channels. SCALED: times the pixel's factor;
    ADDED: added to what is there.
    """
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = pixel < P
    total = tl.zeros((PIXELS, BLOCK_C), tl.float32)
    for v in tl.static_range(V):
        corner = tl.load(corners + pixel * V + v, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights + pixel * V + v, mask=there, other=0.0)
        total += weight[:, None] * tl.load(grid + corner[:, None] * C + c[None, :], mask=c[None, :] < C, other=0.0)
    if SCALED:
        total *= tl.load(factors + pixel, mask=there, other=0.0)[:, None]
    target = out + c.to(tl.int64)[:, None] * P + pixel[None, :]
    sums, inside = tl.trans(total), (c[:, None] < C) & there[None, :]
    if ADDED:
        sums += tl.load(target, mask=inside, other=0.0)
    tl.store(target, sums, mask=inside)


def read_grid(
    out_CP: Tensor, grid_GC: Tensor, corners_PV: Tensor, weights_PV: Tensor, factors_P: Tensor | None, *, added: bool
) -> None:
    """Each pixel's sum over its corners; all contiguous and float32, corners int64.

    With factors of the pixels, times those; `added`: to what `out_CP` holds.
    """
    (P, V), C = corners_PV.shape, grid_GC.shape[1]
    with torch.cuda.device_of(grid_GC):
        block_c = min(64, triton.next_power_of_2(C))
        _read[(triton.cdiv(P, 32), triton.cdiv(C, block_c))](
            grid_GC, corners_PV, weights_PV, weights_PV if factors_P is None else factors_P, out_CP, P,
            C=C, V=V, SCALED=factors_P is not None, ADDED=added, PIXELS=32, BLOCK_C=block_c, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
