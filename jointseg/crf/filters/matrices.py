"""The separable filter and the bilateral grid as products of matrices: for GPUs. In torch alone where there is no Triton.

Not here: the same two on CPUs (structured.py), where mean field runs over their structure in one pass.
"""

# B images, C channels, P pixels (H*W, row-major), F kernel features, G cells of a grid, V = 2^F corners of a cell

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from jointseg.crf.cpu.grid import ANYWHERE, blur_taps, first_place, interpolation_variance, num_points
from jointseg.crf.filters.cell_items import CellItems
from jointseg.crf.filters.features import Features
from jointseg.crf.filters.summed import add_scaled
from jointseg.needs import has_triton

_REACH = 5.0
"""Bandwidths after which a Gaussian over positions is taken for 0: it is 4e-6, and what lies beyond 6e-7 of the whole."""


class SeparableMatrices:
    """K = Ky x Kx: exact but for rounding. Any device, float32 or float64.

    On CUDA, where the image is many bandwidths wide and high, without what is farther than five: 6e-7 of a message each way.
    """

    def __init__(self, features: Features, *, sigma: tuple[float, float]) -> None:
        """Take positions alone; `sigma` are the bandwidths of x and y in pixels."""
        values_BPF = features.values_BPF
        self._size, self._valid_BP = features.size, features.valid_BP
        H, W = features.size
        B, P, _ = values_BPF.shape
        kind = values_BPF.dtype, values_BPF.device
        radii = [math.ceil(_REACH * each) for each in sigma]
        self._by_taps = _takes_kernels(values_BPF) and 4 * radii[0] < W and 4 * radii[1] < H
        if self._by_taps:
            taps = [_gaussian(radius + 1, each, *kind)[0] for radius, each in zip(radii, sigma, strict=True)]
            self._bands = [_kernels().band_of(each) for each in taps]
        else:
            self._across_WW, self._down_HH = _gaussian(W, sigma[0], *kind), _gaussian(H, sigma[1], *kind)
        self.row_sums = _row_sums(self, values_BPF.new_ones(B, 1, P), features.valid_BP)

    @torch.no_grad()
    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v. Values (B, C, P); not recorded by autograd."""
        if self._by_taps:
            out_BCP = torch.empty_like(values_BCP, memory_format=torch.contiguous_format)
            self._blur_into(out_BCP, values_BCP, None, added=False)
            return _masked(out_BCP, self._valid_BP)
        masked_BCP = _masked(values_BCP, self._valid_BP)
        filtered_BCHW = self._down_HH @ masked_BCP.reshape(*masked_BCP.shape[:2], *self._size) @ self._across_WW
        return _masked(filtered_BCHW.flatten(2), self._valid_BP)

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, which is K v."""
        return self.apply(values_BCP)

    @torch.no_grad()
    def add_to(self, total_BCP: Tensor, values_BCP: Tensor, factors_BP: Tensor, *, first: bool) -> None:
        """Add factors * K v to a contiguous total, or, `first`, put it there."""
        if self._by_taps:
            factors_BP = factors_BP if self._valid_BP is None else factors_BP * self._valid_BP
            self._blur_into(total_BCP, values_BCP, factors_BP, added=not first)
        else:
            add_scaled(total_BCP, self.apply(values_BCP), factors_BP, first=first)

    def _blur_into(self, out_BCP: Tensor, values_BCP: Tensor, factors_BP: Tensor | None, *, added: bool) -> None:
        shape = (*values_BCP.shape[:2], *self._size)
        masked_BCHW = _masked(values_BCP, self._valid_BP).contiguous().view(shape)
        factors = None if factors_BP is None else factors_BP.contiguous()
        _kernels().blur_into(out_BCP.view(shape), masked_BCHW, *self._bands, factors, added=added)


class GridMatrices:
    """K = S B S^T: S reads a cell's corners linearly, B blurs along each axis of the grid. Any device, float32 or float64."""

    def __init__(self, features: Features, *, cells_per_sigma: float | Sequence[float]) -> None:
        """Lay a grid of `cells_per_sigma` cells to a bandwidth, of all features or of each, over those of each image."""
        self._valid_BP, (low_BF, _) = features.valid_BP, features.ranges
        B, P, _ = features.values_BPF.shape
        values_BPF = features.values_BPF.detach()
        if features.valid_BP is not None:  # others lie in the grid too; their values are masked
            values_BPF = torch.where(features.valid_BP[..., None], values_BPF, low_BF[:, None])
        (H, W), F = features.size, values_BPF.shape[2]
        cells_F = [cells_per_sigma] * F if isinstance(cells_per_sigma, int | float) else list(cells_per_sigma)
        places = first_places(features, cells_F)
        reaches = zip(features.across_first, cells_F, places, (W, H), strict=False)
        along = [np.linspace(0, reach * cells, n) + place for reach, cells, place, n in reaches]
        interpolated = [*map(interpolation_variance, along), *[ANYWHERE] * (F - 2)]
        valid = [None] * B if features.valid_BP is None else features.valid_BP
        images = zip(values_BPF, low_BF, features.extents, valid, strict=True)
        self._images = [_Grid(*image, cells=cells_F, first=places, interpolated=interpolated) for image in images]
        self.row_sums = _row_sums(self, features.values_BPF.new_ones(B, 1, P), features.valid_BP)

    @torch.no_grad()
    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v. Values (B, C, P); not recorded by autograd."""
        out_BCP = torch.empty_like(values_BCP, memory_format=torch.contiguous_format)
        ones_BP = None if self._valid_BP is None else self._valid_BP.to(values_BCP.dtype)
        self._filter_into(out_BCP, values_BCP, ones_BP, added=False)
        return out_BCP

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, which is K v: the axes' blurs commute."""
        return self.apply(values_BCP)

    @torch.no_grad()
    def add_to(self, total_BCP: Tensor, values_BCP: Tensor, factors_BP: Tensor, *, first: bool) -> None:
        """Add factors * K v to a contiguous total, or, `first`, put it there."""
        factors_BP = factors_BP if self._valid_BP is None else factors_BP * self._valid_BP
        self._filter_into(total_BCP, values_BCP, factors_BP, added=not first)

    def _filter_into(self, out_BCP: Tensor, values_BCP: Tensor, factors_BP: Tensor | None, *, added: bool) -> None:
        for b, grid in enumerate(self._images):
            factors_P = None if factors_BP is None else factors_BP[b].contiguous()
            grid.filter_into(out_BCP[b], values_BCP[b], factors_P, added=added)


class _Grid:
    """The grid of one image."""

    def __init__(
        self,
        values_PF: Tensor,
        low_F: Tensor,
        extents: list[float],
        valid_P: Tensor | None,
        *,
        cells: Sequence[float],
        first: Sequence[float],
        interpolated: list[float],
    ) -> None:
        self.shape = [num_points(extent * c + place) for extent, c, place in zip(extents, cells, first, strict=True)]
        F, strides = len(self.shape), [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        offsets = [sum(stride for i, stride in enumerate(strides) if v >> i & 1) for v in range(2**F)]
        last = [length - 2 for length in self.shape]
        numbers = torch.tensor([*cells, *first, *last, *strides, *offsets], dtype=torch.float64).to(values_PF.device)  # at once
        cells_F, first_F, last_F = numbers[: 3 * F].to(low_F.dtype).view(3, F)
        strides_F, offsets_V = numbers[3 * F : 4 * F].long(), numbers[4 * F :].long()
        places_PF = (values_PF - low_F) * cells_F + first_F
        floors_PF = places_PF.floor().minimum(last_F)  # a place may be rounded up to the last point
        corners_PV = (floors_PF.long() * strides_F).sum(1, keepdim=True) + offsets_V
        above_PF = places_PF - floors_PF
        sides_PF2 = torch.stack([1 - above_PF, above_PF], 2)
        weights_PV = sides_PF2[:, 0]
        for i in range(1, F):
            weights_PV = (sides_PF2[:, i, :, None] * weights_PV[:, None]).flatten(1)
        self._corners_PV, self._weights_PV, self._valid_P = corners_PV, weights_PV.contiguous(), valid_P
        num_cells, by_kernels = math.prod(self.shape), _takes_kernels(values_PF)
        if by_kernels:
            self._items = CellItems.of(corners_PV, num_cells, valid_P)
        else:
            self._read_PG = _rows(corners_PV, weights_PV, num_cells)
            self._write_GP = _columns(corners_PV, weights_PV, num_cells)
        self._by_kernels = by_kernels
        axes = zip(self.shape, cells, interpolated, strict=True)
        self._blurs = [_band(*axis, values_PF.dtype, values_PF.device) for axis in axes]

    def filter_into(self, out_CP: Tensor, values_CP: Tensor, factors_P: Tensor | None, *, added: bool) -> None:
        if self._by_kernels:
            grid_GC = _kernels().splat(values_CP, self._weights_PV, self._items)
        else:
            grid_GC = self._write_GP @ _masked(values_CP, self._valid_P).T
        grid = grid_GC.reshape(*self.shape, -1)
        for axis, blur_LL in enumerate(self._blurs):
            grid = torch.tensordot(blur_LL, grid, dims=([1], [axis])).movedim(0, axis)
        grid_GC = grid.flatten(0, -2)
        if self._by_kernels:
            _kernels().read_grid(out_CP, grid_GC.contiguous(), self._corners_PV, self._weights_PV, factors_P, added=added)
        else:
            read_CP = (self._read_PG @ grid_GC).T
            if factors_P is None:
                out_CP.copy_(read_CP)
            else:
                add_scaled(out_CP, read_CP, factors_P, first=not added)


def first_places(features: Features, cells_F: Sequence[float]) -> list[float]:
    """`first_place` along each axis of a grid of so many cells to a bandwidth: 0 of what is no position."""
    F, (H, W) = len(cells_F), features.size
    axes = zip(features.across_first, cells_F, [W, H, *[0] * F][:F], strict=True)
    return [first_place(reach * cells / (n - 1)) if n > 1 else 0.0 for reach, cells, n in axes]


def _rows(corners_PV: Tensor, weights_PV: Tensor, num_cells: int) -> Tensor:
    """Sparse (P, G): each pixel's weights at its corners."""
    P, V = corners_PV.shape
    starts = torch.arange(0, P * V + 1, V, device=corners_PV.device)
    order_PV = corners_PV.argsort(1)
    columns, values = corners_PV.gather(1, order_PV).flatten(), weights_PV.gather(1, order_PV).flatten()
    return _sparse(starts, columns, values, (P, num_cells))


def _columns(corners_PV: Tensor, weights_PV: Tensor, num_cells: int) -> Tensor:
    """Its transpose (G, P), by its own rows: so that sums have one order. On CUDA that is as far as cuSPARSE keeps it."""
    P, V = corners_PV.shape
    sorted_N, order = corners_PV.flatten().sort(stable=True)
    starts = torch.searchsorted(sorted_N, torch.arange(num_cells + 1, device=sorted_N.device))
    return _sparse(starts, order // V, weights_PV.flatten()[order], (num_cells, P))


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are implicitly)")
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


@lru_cache(maxsize=6)
def _band(length: int, cells: float, interpolated: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    kept = blur_taps(cells, length, "float64", interpolated=interpolated)
    places = np.arange(length)
    taps = np.pad(kept, (0, length - len(kept)))
    return torch.from_numpy(taps[np.abs(places[:, None] - places)]).to(dtype).to(device)


@lru_cache(maxsize=4)
def _gaussian(length: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    places = torch.arange(length, dtype=torch.float64, device=device) / sigma
    return torch.exp(-0.5 * (places[:, None] - places).square()).to(dtype)


def _takes_kernels(values: Tensor) -> bool:
    return values.device.type == "cuda" and values.dtype == torch.float32 and has_triton()


def _kernels() -> ModuleType:
    """Imported when needed: it needs triton."""
    return import_module("jointseg.crf.filters.matrix_kernels")


def _masked(values: Tensor, valid: Tensor | None) -> Tensor:
    """Values (..., C, P), 0 where not valid (..., P)."""
    return values if valid is None else values.masked_fill(~valid[..., None, :], 0)  # a NaN times 0 is one


def _row_sums(gaussian: SeparableMatrices | GridMatrices, ones_B1P: Tensor, valid_BP: Tensor | None) -> Tensor:
    sums_BP = gaussian.apply(ones_B1P)[:, 0]
    return sums_BP if valid_BP is None else sums_BP + (~valid_BP).to(sums_BP.dtype)
