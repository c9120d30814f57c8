"""Two products in Triton: with a band matrix along an axis, and with the few entries a row of what reads a grid.

Not here: the filters they are for (matrices.py). It needs triton: import it when needed.
"""

# C channels, P pixels, G cells of a grid, V corners of a cell

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

_LINES, _PLACES, _STEP = 64, 64, 32
"""Lines, places along them, and terms of a sum that a program takes at once."""


@triton.jit
def _product(
    values, matrix, out, num_lines, lines_inside, stride_outside, stride_inside, stride_along, length, radius,
    LINES: tl.constexpr, PLACES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out[line, i] = sum_j values[line, j] matrix[j, i], over |i - j| <= radius, for some lines and places."""
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    begin = tl.program_id(1) * PLACES
    place = begin + tl.arange(0, PLACES)
    start = line // lines_inside * stride_outside + line % lines_inside * stride_inside
    there = line < num_lines
    stop = tl.minimum(begin + PLACES + radius, length)
    total = tl.zeros((LINES, PLACES), tl.float32)
    for first in range(tl.maximum(begin - radius, 0), stop, STEP):
        heard = first + tl.arange(0, STEP)
        source = values + start[:, None] + heard.to(tl.int64)[None, :] * stride_along
        value = tl.load(source, mask=there[:, None] & (heard[None, :] < stop), other=0.0)
        within = (heard[:, None] < stop) & (place[None, :] < length)
        weight = tl.load(matrix + heard[:, None] * length + place[None, :], mask=within, other=0.0)
        total = tl.dot(value, weight, total, input_precision="tf32x3")
    target = out + start[:, None] + place.to(tl.int64)[None, :] * stride_along
    tl.store(target, total, mask=there[:, None] & (place[None, :] < length))


def along(values_NHW: Tensor, matrix_LL: Tensor, *, axis: int, radius: int) -> Tensor:
    """`values @ matrix` along the given axis (1 or 2), for a symmetric matrix that is 0 beyond `radius` from its diagonal.

    Values (N, H, W), contiguous, float32. To about 1e-6 of their largest.
    """
    N, H, W = values_NHW.shape
    assert values_NHW.is_contiguous() and values_NHW.dtype == torch.float32, (values_NHW.stride(), values_NHW.dtype)
    inside, stride_inside, stride_along, length = (H, W, 1, W) if axis == 2 else (W, 1, W, H)
    out_NHW = torch.empty_like(values_NHW)
    grid = (triton.cdiv(N * inside, _LINES), triton.cdiv(length, _PLACES))
    with torch.cuda.device_of(values_NHW):
        _product[grid](
            values_NHW, matrix_LL, out_NHW, N * inside, inside, H * W, stride_inside, stride_along, length, radius,
            LINES=_LINES, PLACES=_PLACES, STEP=_STEP, num_warps=4, num_stages=2,
        )  # fmt: skip
    return out_NHW


@triton.jit
def _read(grid, corners, weights, out, P, C, V: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[c, p] = sum_v weights[p, v] grid[corners[p, v], c], for some pixels and channels."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = pixel < P
    total = tl.zeros((PIXELS, BLOCK_C), tl.float32)
    for v in tl.static_range(V):
        corner = tl.load(corners + pixel * V + v, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights + pixel * V + v, mask=there, other=0.0)
        total += weight[:, None] * tl.load(grid + corner[:, None] * C + c[None, :], mask=c[None, :] < C, other=0.0)
    target = out + c.to(tl.int64)[:, None] * P + pixel[None, :]
    tl.store(target, tl.trans(total), mask=(c[:, None] < C) & there[None, :])


def read_grid(grid_GC: Tensor, corners_PV: Tensor, weights_PV: Tensor, out_CP: Tensor) -> None:
    """Fill `out_CP` with each pixel's sum over its corners; all contiguous and float32, corners int64."""
    (P, V), C = corners_PV.shape, grid_GC.shape[1]
    with torch.cuda.device_of(grid_GC):
        _read[(triton.cdiv(P, 32), triton.cdiv(C, 64))](
            grid_GC, corners_PV, weights_PV, out_CP, P, C, V=V, PIXELS=32, BLOCK_C=64, num_warps=4
        )
