"""Products in Triton for two filters: with a narrow kernel along rows and columns, and with what writes and what reads a grid.

Not here: the filters they are for (matrices.py). It needs triton: import it when needed. No kernel adds atomically: a sum has
one order.
"""

# B images, C channels, P = H * W pixels, G cells of a grid, V corners of a cell, I items of a cell's pixels

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, attr-defined"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointseg.crf.filters.cell_items import CellItems

_LINES, _OUTPUTS, _INPUTS = 128, 32, 16
"""Rows or columns that a program blurs at once, places of them that it writes, and places that it reads at once."""


@triton.jit
def _blur(
    values, bands, factors, out, num_lines, W, length, C, reach, num_chunks,
    ALONG_X: tl.constexpr, WIDE: tl.constexpr, SCALED: tl.constexpr, ADDED: tl.constexpr,
    LINES: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Some places of some rows, or columns, of all channels: the values around them times a band, the same for each block.

    Three products in tf32 make one in float32, but for the last bit or two. Of columns, WIDE: at least LINES a channel; SCALED:
    times the pixel's factor; ADDED: added to what is there.
    """
    first, own = tl.program_id(0) * LINES, tl.arange(0, LINES)
    line = tl.minimum(own, num_lines - 1 - first)
    k, n = tl.arange(0, INPUTS), tl.arange(0, OUTPUTS)
    start = tl.program_id(1) * OUTPUTS - reach
    if ALONG_X:
        step = 1
        values += first.to(tl.int64) * W
        out += first.to(tl.int64) * W
        place, along, to, there = (line * W)[:, None], k[None, :], n[None, :], (first + own < num_lines)[:, None]
    else:
        step, channel = W, first // W
        x = first - channel * W + line
        later = (x >= W).to(tl.int32) if WIDE else x // W
        x -= later * W
        image = channel // C
        values += channel.to(tl.int64) * W * length
        out += channel.to(tl.int64) * W * length
        factors += image.to(tl.int64) * W * length
        # So that a warp reads along x. It is not so past a channel's side or the last line: harmless, as each value is read by
        # itself, from a place that is a multiple of nothing known.
        place = tl.max_contiguous(later * (W * length) + x, 16)[None, :]
        factor_place = tl.max_contiguous(((channel + later) // C - image) * (W * length) + x, 16)[None, :]
        along, to, there = k[:, None], n[:, None], (first + own < num_lines)[None, :]
    band = bands + k[:, None] * OUTPUTS + n[None, :]
    smalls = num_chunks * INPUTS * OUTPUTS
    total = tl.zeros((LINES, OUTPUTS), tl.float32)
    for i in range(tl.maximum(-start, 0) // INPUTS, tl.minimum(num_chunks, tl.cdiv(length - start, INPUTS))):
        at = start + i * INPUTS + along
        value = tl.load(values + (place + at * step), mask=(at >= 0) & (at < length), other=0.0)
        big = tl.load(band + i * INPUTS * OUTPUTS)
        small = tl.load(band + (smalls + i * INPUTS * OUTPUTS))
        if not ALONG_X:
            value = tl.trans(value)
        value_big = (value.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
        total = tl.dot(value - value_big, big, total, input_precision="tf32")
        total = tl.dot(value_big, small, total, input_precision="tf32")
        total = tl.dot(value_big, big, total, input_precision="tf32")
    to += start + reach
    inside, target = there & (to < length), out + (place + to * step)
    if not ALONG_X:
        total = tl.trans(total)
    if SCALED:
        total *= tl.load(factors + (factor_place + to * step), mask=inside, other=0.0)
    if ADDED:
        total += tl.load(target, mask=inside, other=0.0)
    tl.store(target, total, mask=inside)


def band_of(taps: Tensor) -> Tensor:
    """(2, places, places of a block): what each place around a block gives to each place of it, by taps 0, 1, ... of a kernel
    that is symmetric; first to tf32's precision, then what that leaves of it.
    """
    reach = -(-(len(taps) - 1) // (_INPUTS // 2)) * (_INPUTS // 2)
    places, own = torch.arange(-reach, _OUTPUTS + reach, device=taps.device), torch.arange(_OUTPUTS, device=taps.device)
    distances = (places[:, None] - own).abs()
    band = torch.where(distances < len(taps), taps[distances.clamp(max=len(taps) - 1)], 0.0)
    big = ((band.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.stack([big, band - big])


def blur_into(
    out_BCHW: Tensor, values_BCHW: Tensor, band_X: Tensor, band_Y: Tensor, factors_BP: Tensor | None, *, added: bool
) -> None:
    """Filter along rows by one band, then along columns by another (`band_of`); contiguous, float32.

    With factors of the pixels, times those; `added`: to what `out_BCHW` holds. A value that is no number spoils its row and
    column for a block around it.
    """
    B, C, H, W = values_BCHW.shape
    assert values_BCHW.is_contiguous() and out_BCHW.is_contiguous() and values_BCHW.dtype == torch.float32
    rows_BCHW = torch.empty_like(values_BCHW)
    sides = (
        (values_BCHW, band_X, None, rows_BCHW, B * C * H, W, False),
        (rows_BCHW, band_Y, factors_BP, out_BCHW, B * C * W, H, added),
    )
    with torch.cuda.device_of(values_BCHW):
        for source, band, factors, target, num_lines, length, into in sides:
            _blur[(triton.cdiv(num_lines, _LINES), triton.cdiv(length, _OUTPUTS))](
                source, band, band if factors is None else factors, target, num_lines, W, length, C,
                (band.shape[1] - _OUTPUTS) // 2, band.shape[1] // _INPUTS, ALONG_X=source is values_BCHW, WIDE=W >= _LINES,
                SCALED=factors is not None, ADDED=into, LINES=_LINES, OUTPUTS=_OUTPUTS, INPUTS=_INPUTS,
                num_warps=8, num_stages=3, enable_fp_fusion=True,
            )  # fmt: skip


@triton.jit
def _splat(
    values, weights, order, bounds, out, stride_c, stride_p,
    C: tl.constexpr, V: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """out[item, v, c]: the sum over an item's pixels, in their order, of what each gives to the v-th corner of its cell."""
    item = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    v = tl.arange(0, BLOCK_V)
    stop = tl.load(bounds + item + 1)
    total = tl.zeros((BLOCK_C, BLOCK_V), tl.float32)
    for start in range(tl.load(bounds + item), stop, PIXELS):
        n = start + tl.arange(0, PIXELS)
        pixel = tl.load(order + n, mask=n < stop, other=-1).to(tl.int64)
        pixel = tl.max_contiguous(pixel, 2)  # many are, so that a warp reads pixels, not channels; one at a time in any case
        source = values + c.to(tl.int64)[:, None] * stride_c + pixel[None, :] * stride_p
        value = tl.load(source, mask=(c[:, None] < C) & (pixel[None, :] >= 0), other=0.0)
        weight = tl.load(weights + pixel[:, None] * V + v[None, :], mask=(pixel[:, None] >= 0) & (v[None, :] < V), other=0.0)
        total = tl.dot(value, weight, total, input_precision="tf32x3")
    target = out + item.to(tl.int64) * V * C + v[None, :] * C + c[:, None]
    tl.store(target, total, mask=(c[:, None] < C) & (v[None, :] < V))


@triton.jit
def _gather_corners(
    parts, first_items, offsets, grid, num_cells,
    C: tl.constexpr, V: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grid[g, c]: the sum of what the items of the cells give to g that have it as a corner."""
    g = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    v = tl.arange(0, V)
    cell = g[:, None] - tl.load(offsets + v)[None, :]
    there = (cell >= 0) & (g[:, None] < num_cells)
    first = tl.load(first_items + cell, mask=there, other=0)
    count = tl.load(first_items + cell + 1, mask=there, other=0) - first
    total = tl.zeros((CELLS, V, BLOCK_C), tl.float32)
    for i in range(0, tl.max(tl.max(count, 1), 0)):
        part = (first + i).to(tl.int64) * V + v[None, :]
        inside = (count > i)[:, :, None] & (c[None, None, :] < C)
        total += tl.load(parts + part[:, :, None] * C + c[None, None, :], mask=inside, other=0.0)
    inside = (g[:, None] < num_cells) & (c[None, :] < C)
    tl.store(grid + g.to(tl.int64)[:, None] * C + c[None, :], tl.sum(total, 1), mask=inside)


def splat(values_CP: Tensor, weights_PV: Tensor, items: CellItems) -> Tensor:
    """(G, C): each cell's sum over the pixels that have it as a corner. Values float32, of any strides."""
    (C, _), V = values_CP.shape, weights_PV.shape[1]
    num_items, num_cells, block_c = len(items.bounds) - 1, len(items.first_items) - 1, min(64, triton.next_power_of_2(C))
    parts_IVC, grid_GC = weights_PV.new_empty(num_items, V, C), weights_PV.new_empty(num_cells, C)
    with torch.cuda.device_of(values_CP):
        if num_items:
            sums_c = max(16, block_c)
            _splat[(num_items, triton.cdiv(C, sums_c))](
                values_CP, weights_PV, items.order_P, items.bounds, parts_IVC, *values_CP.stride(),
                C=C, V=V, PIXELS=32, BLOCK_C=sums_c, BLOCK_V=16, num_warps=4, num_stages=2, enable_fp_fusion=True,
            )  # fmt: skip
        _gather_corners[(triton.cdiv(num_cells, 8), triton.cdiv(C, block_c))](
            parts_IVC, items.first_items, items.offsets_V, grid_GC, num_cells,
            C=C, V=V, CELLS=8, BLOCK_C=block_c, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return grid_GC


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
