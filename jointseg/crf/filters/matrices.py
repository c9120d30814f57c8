"""The separable filter and the bilateral grid as products of matrices: for GPUs. In torch alone but for narrow bands.

Not here: the same two on CPUs (structured.py), where mean field runs over their structure in one pass.
"""

# B images, C channels, P pixels (H*W, row-major), F kernel features, G cells of a grid, V = 2^F corners of a cell

from __future__ import annotations

import math
import warnings
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from jointseg.crf.cpu.grid import blur_taps, num_points
from jointseg.crf.filters.features import Features
from jointseg.crf.filters.summed import add_scaled
from jointseg.needs import missing_for_triton

_REACH = 6.0
"""Bandwidths after which a Gaussian over positions is taken for 0: it is 1.5e-8."""


class SeparableMatrices:
    """K = Ky x Kx: exact but for rounding, and on CUDA for what is farther than six of few bandwidths. Any device, float32 or
    float64.
    """

    def __init__(self, features: Features, *, sigma: tuple[float, float]) -> None:
        """Take positions alone; `sigma` are the bandwidths of x and y in pixels."""
        values_BPF = features.values_BPF
        self._size, self._valid_BP = features.size, features.valid_BP
        H, W = features.size
        B, P, _ = values_BPF.shape
        radii = [math.ceil(_REACH * each) for each in sigma]
        self._by_taps = _takes_kernels(values_BPF) and 4 * radii[0] < W and 4 * radii[1] < H
        if self._by_taps:
            self._taps = [_gaussian(radius + 1, each, values_BPF)[0] for radius, each in zip(radii, sigma, strict=True)]
        else:
            self._across_WW, self._down_HH = _gaussian(W, sigma[0], values_BPF), _gaussian(H, sigma[1], values_BPF)
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
        _kernels().blur_into(out_BCP.view(shape), masked_BCHW, *self._taps, factors, added=added)


class GridMatrices:
    """K = S B S^T: S reads a cell's corners linearly, B blurs along each axis of the grid. Any device, float32 or float64."""

    def __init__(self, features: Features, *, cells_per_sigma: float) -> None:
        """Lay a grid of `cells_per_sigma` cells to a bandwidth over the features of each image."""
        self._valid_BP = features.valid_BP
        B, P, _ = features.values_BPF.shape
        valid_BP = features.valid_BP if features.valid_BP is not None else torch.ones(B, P, dtype=torch.bool)
        images = zip(features.values_BPF.detach(), valid_BP.to(features.values_BPF.device), strict=True)
        self._images = [_Grid(values_PF, valid_P, cells_per_sigma) for values_PF, valid_P in images]
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
        masked_BCP = _masked(values_BCP, self._valid_BP)
        for b, grid in enumerate(self._images):
            factors_P = None if factors_BP is None else factors_BP[b].contiguous()
            grid.filter_into(out_BCP[b], masked_BCP[b], factors_P, added=added)


class _Grid:
    """The grid of one image."""

    def __init__(self, values_PF: Tensor, valid_P: Tensor, cells: float) -> None:
        taken = values_PF[valid_P] if bool(valid_P.any()) else values_PF[:1]
        low_F, high_F = taken.aminmax(dim=0)
        values_PF = torch.where(valid_P[:, None], values_PF, low_F)  # others lie in the grid too; their values are masked
        self.shape = [num_points(extent) for extent in ((high_F.double() - low_F) * cells).tolist()]
        places_PF = (values_PF - low_F) * cells
        floors_PF = places_PF.floor().minimum(low_F.new_tensor(self.shape) - 2)  # a place may be rounded up to the last point
        above_PF = places_PF - floors_PF
        P, F = values_PF.shape
        corners_PV = torch.zeros(P, 1, dtype=torch.int64, device=values_PF.device)
        weights_PV = torch.ones(P, 1, dtype=values_PF.dtype, device=values_PF.device)
        for i in range(F):
            stride = math.prod(self.shape[i + 1 :])
            first_PV = corners_PV + floors_PF[:, i : i + 1].long() * stride
            corners_PV = torch.cat([first_PV, first_PV + stride], 1)
            weights_PV = torch.cat([weights_PV * (1 - above_PF[:, i : i + 1]), weights_PV * above_PF[:, i : i + 1]], 1)
        self._reading = corners_PV, weights_PV
        self._read_PG = None if _takes_kernels(values_PF) else _rows(corners_PV, weights_PV, math.prod(self.shape))
        self._write_GP = _columns(corners_PV, weights_PV, math.prod(self.shape))
        self._blurs = [_band(length, cells, values_PF) for length in self.shape]

    def filter_into(self, out_CP: Tensor, values_CP: Tensor, factors_P: Tensor | None, *, added: bool) -> None:
        grid = (self._write_GP @ values_CP.T).reshape(*self.shape, -1)
        for axis, blur_LL in enumerate(self._blurs):
            grid = torch.tensordot(blur_LL, grid, dims=([1], [axis])).movedim(0, axis)
        grid_GC = grid.flatten(0, -2)
        if self._read_PG is None:
            _kernels().read_grid(out_CP, grid_GC.contiguous(), *self._reading, factors_P, added=added)
        else:
            read_CP = (self._read_PG @ grid_GC).T
            if factors_P is None:
                out_CP.copy_(read_CP)
            else:
                add_scaled(out_CP, read_CP, factors_P, first=not added)


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
    order = corners_PV.flatten().argsort(stable=True)
    counts = torch.bincount(corners_PV.flatten(), minlength=num_cells)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return _sparse(starts, order // V, weights_PV.flatten()[order], (num_cells, P))


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are implicitly)")
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


def _band(length: int, cells: float, like: Tensor) -> Tensor:
    kept = torch.from_numpy(blur_taps(cells, length, "float64")).to(like)
    taps = torch.nn.functional.pad(kept, (0, length - len(kept)))
    places = torch.arange(length, device=like.device)
    return taps[(places[:, None] - places).abs()]


def _gaussian(length: int, sigma: float, like: Tensor) -> Tensor:
    places = torch.arange(length, dtype=torch.float64, device=like.device) / sigma
    return torch.exp(-0.5 * (places[:, None] - places).square()).to(like)


def _takes_kernels(values: Tensor) -> bool:
    return values.device.type == "cuda" and values.dtype == torch.float32 and missing_for_triton() is None


def _kernels() -> ModuleType:
    """Imported when needed: it needs triton."""
    return import_module("jointseg.crf.filters.matrix_kernels")


def _masked(values_BCP: Tensor, valid_BP: Tensor | None) -> Tensor:
    return values_BCP if valid_BP is None else values_BCP * valid_BP[:, None]


def _row_sums(gaussian: SeparableMatrices | GridMatrices, ones_B1P: Tensor, valid_BP: Tensor | None) -> Tensor:
    sums_BP = gaussian.apply(ones_B1P)[:, 0]
    return sums_BP if valid_BP is None else sums_BP + (~valid_BP).to(sums_BP.dtype)
