"""The filters on CPUs that build a structure per image: permutohedral lattice, bilateral grid, separable.

Not here: their compiled code (cpu/), the sums over all pairs (exact.py), several kernels in one pass (cpu/fused.py).
"""

# B images, C channels, P pixels (H*W, row-major), F kernel features

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointseg.crf.cpu.abreast import each_image
from jointseg.crf.cpu.bands import separable
from jointseg.crf.cpu.engine import Engine
from jointseg.crf.cpu.fused import as_rows, empty_like
from jointseg.crf.cpu.grid import build_grid
from jointseg.crf.cpu.lattice import build_lattice
from jointseg.crf.cpu.parts import Part
from jointseg.crf.cpu.simplex import key_bits, scale_factors
from jointseg.crf.cpu.transpose import from_rows
from jointseg.crf.filters.features import Features
from jointseg.crf.filters.matrices import GridMatrices, SeparableMatrices, first_places
from jointseg.errors import InputError, OutOfRangeError

GRID_TOLERANCE = 5e-3
"""Default of the bilateral grid; what it gives at so many cells to a bandwidth was measured on rooms (docs/crf.md)."""
PIXELS_PER_THREAD = 8192
_MAX_GRID_ROWS = 2**18
_MAX_GRID_FEATURES = 3
_MAX_LATTICE_FEATURES = 16
_WIDE, _OF_WIDE, _OF_TWO_PIXELS, _OF_MORE_PIXELS, _OF_DEPTH = 9.99, 1.2, 0.8, 1.25, 1.1
"""A position's bandwidth that is wide: 10 pixels, also where rounded. By what `cells_per_sigma` is multiplied there; below, at
least, for cells of two pixels; for wider ones; and for depth. Measured on rooms, of classes and of patches."""
_NO_DISTANCE = 1e-4
"""In bandwidths: a kernel of pixels that are so near each other is 1 to float32's last digit."""


class StructuredFilter:
    """A filter whose structure serves any values, weights and both directions. CPU; float32 or float64."""

    def __init__(self, name: str, features: Features, build: Callable[[NDArray[Any], NDArray[np.bool_]], Part]) -> None:
        """Build each image's structure.

        Args:
            name: for messages.
            features: what pixels are compared by.
            build: makes the structure of one image from features (P, F) and valid (P,).
        """
        if features.values_BPF.device.type != "cpu":
            device = features.values_BPF.device
            raise InputError(f"filter {name!r} runs on the CPU, but features are on {device}; use 'block_sparse' or 'exact'")
        self.name, self.size = name, features.size
        self.num_threads = threads_for(features)
        values_BPF = features.values_BPF.detach().numpy()
        self.dtype = values_BPF.dtype
        everywhere = np.ones(values_BPF.shape[:2], np.bool_)
        self.valid_BP = everywhere if features.valid_BP is None else features.valid_BP.contiguous().numpy()
        self.parts = each_image(
            lambda i: build(values_BPF[i], self.valid_BP[i]), len(values_BPF), threads_each=self.num_threads
        )

    def serves(self, features: Features) -> bool:
        """Whether it is for images of their size, number and dtype, which compiled code goes by."""
        values_BPF = features.values_BPF
        same_images = (self.size, len(self.parts)) == (features.size, len(values_BPF))
        return same_images and values_BPF.device.type == "cpu" and bool(self.dtype == _name_of(values_BPF.dtype))

    @classmethod
    def joined(cls, name: str, parts: Sequence[tuple[list[int], StructuredFilter]]) -> Self:
        """One filter of several over the images of a batch.

        Args:
            name: for messages.
            parts: the places of images in the batch and the filter over them, in that order; every image once.
        """
        whole, first = cls.__new__(cls), parts[0][1]
        whole.name, whole.size, whole.num_threads, whole.dtype = name, first.size, first.num_threads, first.dtype
        by_place = {place: (gaussian, i) for places, gaussian in parts for i, place in enumerate(places)}
        ordered = [by_place[place] for place in sorted(by_place)]
        whole.parts = [gaussian.parts[i] for gaussian, i in ordered]
        whole.valid_BP = np.stack([gaussian.valid_BP[i] for gaussian, i in ordered])
        return whole

    @cached_property
    def _engines(self) -> list[Engine]:
        return each_image(
            lambda i: Engine([self.parts[i]], [self.valid_BP[i]], self.size, self.num_threads, self.dtype),
            len(self.parts),
            threads_each=self.num_threads,
        )

    @cached_property
    def row_sums(self) -> Tensor:
        """(B, P): K 1, and 1 where a pixel is not valid."""
        with torch.inference_mode(False):  # kept, also for calls that learn
            return torch.from_numpy(np.stack([engine.row_sums_PK[:, 0] for engine in self._engines]))

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v. Values (B, C, P) of the features' dtype; not recorded by autograd."""
        return self._apply(values_BCP, transposed=False)

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, the exact transpose of `apply`: the lattice's axes are blurred in reverse."""
        return self._apply(values_BCP, transposed=True)

    @torch.no_grad()
    def _apply(self, values_BCP: Tensor, *, transposed: bool) -> Tensor:
        (B, P), shape, dtype = self.valid_BP.shape, tuple(values_BCP.shape), _name_of(values_BCP.dtype)
        if len(shape) != 3 or (shape[0], shape[2]) != (B, P) or dtype != self.dtype or values_BCP.device.type != "cpu":
            given, allowed = f"{shape} {dtype} on {values_BCP.device}", f"({B}, C, {P}) {self.dtype} on cpu"
            raise InputError(f"filter {self.name!r}: values are {given}; allowed: {allowed}")
        out_BCP = empty_like(values_BCP)
        images = list(zip(self._engines, values_BCP, out_BCP, strict=True))

        def filtered(i: int) -> None:
            engine, values_CP, out_CP = images[i]
            with as_rows(values_CP, 0.0, engine.num_threads) as rows_PC:
                from_rows(engine.filter(rows_PC, transposed=transposed), out_CP.numpy(), engine.num_threads)

        each_image(filtered, B, threads_each=self.num_threads)
        return out_BCP


def _name_of(dtype: torch.dtype) -> str:
    """As numpy calls it."""
    return str(dtype).removeprefix("torch.")


def threads_for(features: Features) -> int:
    """As many as torch may use, but no more than have a share of pixels that is worth waiting for each other."""
    H, W = features.size
    return max(1, min(torch.get_num_threads(), H * W // PIXELS_PER_THREAD))


def permutohedral(features: Features) -> StructuredFilter:
    """The permutohedral lattice (Adams et al. 2010) as Kraehenbuehl & Koltun (2011) use it, in any number of features up to 16.

    Nobody states its error: against the exact sum a message is off by 4-8 % on rooms. It is the same lattice as pydensecrf's.

    Raises:
        InputError: more than 16 features, or features so large (tiny bandwidths) that vertices cannot be numbered.
    """
    features = _compared(features)
    F = features.values_BPF.shape[2]
    if F > _MAX_LATTICE_FEATURES:
        raise InputError(f"filter 'permutohedral': {F} features; allowed: up to {_MAX_LATTICE_FEATURES}")
    reach, allowed = max(_lattice_reach(features)), _lattice_range(F)
    if allowed <= reach < math.inf:
        features = _centred(features)
        reach = max(_lattice_reach(features))
    if reach >= allowed:
        raise OutOfRangeError(
            f"filter 'permutohedral': features reach {reach:.3g} lattice steps; allowed: up to {allowed:.3g}; "
            "use larger bandwidths or 'exact'"
        )
    build = partial(build_lattice, size=features.size, num_threads=threads_for(features))
    return StructuredFilter("permutohedral", features, build)


def lattice_fits(features: Features) -> list[bool]:
    """Of each image, whether `permutohedral` takes its features; also infinite ones, which no filter does: it refuses them."""
    features = _compared(features)
    F = features.values_BPF.shape[2]
    if F > _MAX_LATTICE_FEATURES:
        return [False] * len(features.values_BPF)
    low_BF, high_BF = features.ranges
    return [not _lattice_range(F) <= reach < math.inf for reach in _lattice_steps(high_BF / 2 - low_BF / 2)]


def _compared(features: Features) -> Features:
    """Without positions whose bandwidth is so far above the image's size that they tell nothing: a feature costs accuracy."""
    without = features.values_BPF[..., 2:]
    if without.shape[2] == 0 or any(extent > _NO_DISTANCE for extents in features.extents for extent in extents[:2]):
        return features
    return Features(values_BPF=without, size=features.size, valid_BP=features.valid_BP)


def _centred(features: Features) -> Features:
    """Around 0, which changes no distance: where they lie far from it, as coordinates on a map do."""
    low_BF, high_BF = features.ranges
    middle_B1F = (low_BF / 2 + high_BF / 2)[:, None]
    return Features(values_BPF=features.values_BPF - middle_B1F, size=features.size, valid_BP=features.valid_BP)


def _lattice_reach(features: Features) -> list[float]:
    """Of each image, how many steps of the lattice its features reach from the origin."""
    low_BF, high_BF = features.ranges
    return _lattice_steps(torch.maximum(-low_BF, high_BF))


def _lattice_steps(largest_BF: Tensor) -> list[float]:
    F = largest_BF.shape[1]
    steps_B: list[float] = (largest_BF.cpu().double().numpy() @ scale_factors(F, np.float64) * (F + 1)).tolist()
    return steps_B


def _lattice_range(num_features: int) -> float:
    """How many steps from the origin a vertex can be numbered."""
    return float(2 ** (key_bits(num_features) - 1))


def bilateral_grid(features: Features, *, tolerance: float = GRID_TOLERANCE) -> StructuredFilter | GridMatrices:
    """A dense grid over feature space, linear to write and to read (Paris & Durand 2006).

    Args:
        features: up to 3, spanning at most 2^18 cells.
        tolerance: of a message, relative, on the mean over pixels; 0.002 to 0.01.

    Raises:
        InputError: more features or cells, or a tolerance it cannot give.
    """
    if not 2e-3 <= tolerance <= 1e-2:
        raise InputError(f"filter 'bilateral_grid': tolerance is {tolerance:g}; allowed: 0.002..0.01; below that use 'exact'")
    cells = grid_cells(features, tolerance)
    F, rows = features.values_BPF.shape[2], max(grid_rows(features, cells))
    if F > _MAX_GRID_FEATURES or rows > _MAX_GRID_ROWS:
        other = "permutohedral" if features.values_BPF.device.type == "cpu" else "block_sparse"
        raise OutOfRangeError(
            f"filter 'bilateral_grid': {F} features over {rows:.3g} cells; allowed: {_MAX_GRID_FEATURES} over {_MAX_GRID_ROWS};"
            f" use larger bandwidths, {other!r} or 'exact'"
        )
    if features.values_BPF.device.type != "cpu":
        return GridMatrices(features, cells_per_sigma=cells)
    build = partial(build_grid, size=features.size, cells_per_sigma=cells, num_threads=threads_for(features))
    return StructuredFilter("bilateral_grid", features, build)


def cells_per_sigma(tolerance: float) -> float:
    """Cells to a bandwidth: linear interpolation's error falls with their square; where they are wide, with their cube."""
    finer = GRID_TOLERANCE / tolerance
    return 2.0 * (math.sqrt(finer) if finer > 1 else math.cbrt(finer))


def grid_cells(features: Features, tolerance: float = GRID_TOLERANCE) -> list[float]:
    """Cells to a bandwidth of each feature: by `cells_per_sigma`, and by how many pixels a position's bandwidth has.

    Pixels on points are blurred less than those between them, unless a cell has one pixel or two (`first_place`): it has where
    that is enough cells, and elsewhere cells are narrower. Depth may come in steps, of which the same is true.
    """
    cells, (H, W) = cells_per_sigma(tolerance), features.size
    sigmas = [(n - 1) / reach if reach > 0 else math.inf for reach, n in zip(features.across_first, (W, H), strict=False)]
    num_others = features.values_BPF.shape[2] - len(sigmas)
    return [*(_cells_of_position(sigma, cells) for sigma in sigmas), *[_OF_DEPTH * cells] * num_others]


def _cells_of_position(sigma: float, cells: float) -> float:
    """Of a bandwidth in pixels."""
    if sigma >= _WIDE or sigma <= 0:
        return _OF_WIDE * cells
    if sigma < 2 * _OF_TWO_PIXELS * cells:
        return sigma
    return min(sigma / 2, _OF_MORE_PIXELS * cells)


def grid_rows(features: Features, cells: Sequence[float]) -> list[float]:
    """Cells of each image's grid of so many to a bandwidth of each feature."""
    first = first_places(features, cells)

    def points(place: float) -> float:
        return math.floor(place) + 2 if math.isfinite(place) else math.inf  # inputs need not have been checked

    return [
        math.prod(points(extent * each + place) for extent, each, place in zip(extents, cells, first, strict=True))
        for extents in features.extents
    ]


def grid_fits(features: Features) -> list[bool]:
    """Of each image, whether `bilateral_grid` takes its features at its default tolerance."""
    if features.values_BPF.shape[2] > _MAX_GRID_FEATURES:
        return [False] * len(features.values_BPF)
    return [rows <= _MAX_GRID_ROWS for rows in grid_rows(features, grid_cells(features))]


def separable_filter(features: Features) -> StructuredFilter | SeparableMatrices:
    """Positions alone: a Gaussian along rows, then along columns. Messages are within 1e-4 of the exact ones.

    Raises:
        InputError: the features are not x and y of the pixel grid over their bandwidths.
    """
    sigma = _bandwidths_of_positions(features)
    if sigma is None:
        raise InputError("filter 'separable': features are not the pixels' x and y; allowed: positions alone")
    values_BPF = features.values_BPF
    if values_BPF.device.type != "cpu":
        return SeparableMatrices(features, sigma=sigma)
    part = separable(features.size, sigma, values_BPF.numpy().dtype)
    return StructuredFilter("separable", features, lambda _f, _v: part)


def _bandwidths_of_positions(features: Features) -> tuple[float, float] | None:
    """Those of x and y, in pixels; None where the features are not the pixel grid's over any. Waits for the device, once."""
    (H, W), values_BPF = features.size, features.values_BPF
    if values_BPF.shape[2] != 2:
        return None
    first_2, ends = values_BPF[0, 0], (values_BPF[0, W - 1, 0], values_BPF[0, W * (H - 1), 1])
    # Of one pixel alone any bandwidth is true.
    reaches = [end - first if n > 1 else end.new_ones(()) for end, first, n in zip(ends, first_2, (W, H), strict=True)]
    steps = max(W - 1, 1), max(H - 1, 1)
    y_H, x_W = (torch.arange(length, device=values_BPF.device) for length in (H, W))
    y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
    expected_P2 = torch.stack([n_HW * (reach / n) for n_HW, reach, n in zip((x_HW, y_HW), reaches, steps, strict=True)], -1)
    expected_P2 = expected_P2.view(-1, 2)
    off = (values_BPF - values_BPF[:, :1] - expected_P2).abs().amax()
    *reached, most_off, farthest = torch.stack([*reaches, off, expected_P2.amax()]).tolist()
    if not (reached[0] > 0 and reached[1] > 0) or most_off > 1e-4 * (1 + farthest):
        return None
    return 1 / (reached[0] / steps[0]), 1 / (reached[1] / steps[1])
