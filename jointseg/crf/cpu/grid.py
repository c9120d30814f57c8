"""The bilateral grid (Paris & Durand 2006; Chen, Paris & Durand 2007): dense over feature space, read and written linearly.

Not here: its application (passes.py).
"""

# P = H * W pixels, F features

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.compiled import compiled
from jointseg.crf.cpu.parts import Grid, GridAxis
from jointseg.crf.cpu.team import run_team, share

_RADIUS = 3.5
_LEAST_VARIANCE = 1 / 16
"""In wide cells interpolation alone may blur more than a bandwidth."""
_NEXT_IS_FAR = 0.1
"""Cells to a bandwidth at which the next point gets 2e-22."""
ANYWHERE = 1 / 3
"""`interpolation_variance` of pixels that lie anywhere between points."""
_SAME_STEP = 1e-4


def num_points(extent: float) -> int:
    """Points along an axis of so many cells: one on each side of whatever lies on it."""
    return int(extent) + 2


def first_place(step: float) -> float:
    """Where the first pixel lies, in cells from the first point, where pixels are `step` cells apart.

    Half of that where a whole number of pixels, but one, make a cell. Reading and writing blur a pixel by how far it lies from
    a point, in which pixels are then as alike as they can be: of two, each is a quarter away, and the taps make up for it all.
    """
    pixels = round(1 / step) if step > _SAME_STEP else 0
    return step / 2 if pixels > 1 and abs(pixels * step - 1) < _SAME_STEP else 0.0


def interpolation_variance(place: NDArray[np.float64]) -> float:
    """What linear writing and reading blur by themselves, in cells squared, on the mean over pixels at these places.

    Each of the two blurs by a (1 - a) at a place a above a point: by 1/6 where pixels lie anywhere, by nothing where they lie
    on points, as they do where a bandwidth is as many pixels as cells.
    """
    above = place % 1
    return 2 * float(np.mean(above * (1 - above)))


def blur_taps(cells_per_sigma: float, length: int, dtype: Any, *, interpolated: float) -> NDArray[Any]:
    """Taps, middle first, for the variance that interpolation leaves."""
    least = min(_LEAST_VARIANCE, max(cells_per_sigma, _NEXT_IS_FAR) ** 2)
    variance = max(cells_per_sigma**2 - interpolated, least)
    radius = min(math.ceil(_RADIUS * cells_per_sigma), length - 1)
    return np.exp(-np.square(np.arange(radius + 1)) / (2 * variance)).astype(dtype)


@compiled
def _cells(
    values_PF: NDArray[Any], valid_P: NDArray[np.bool_], low: float, cells: float, last: int,
    cell_P: NDArray[np.int32], above_P: NDArray[Any], start: int, stop: int,
) -> None:  # fmt: skip
    for p in range(start, stop):
        cell_P[p] = 0
        above_P[p] = 0
        if valid_P[p]:
            place = (values_PF[p, 2] - low) * cells
            cell_P[p] = min(int(place), last)
            above_P[p] = place - cell_P[p]


@compiled
def _bounds(values_PF: NDArray[Any], valid_P: NDArray[np.bool_]) -> tuple[float, float]:
    """The least and the greatest of the third feature over valid pixels; zeros where there are none."""
    low, high = np.inf, -np.inf
    for p in range(len(values_PF)):
        if valid_P[p]:
            low, high = min(low, values_PF[p, 2]), max(high, values_PF[p, 2])
    return (low, high) if low <= high else (0.0, 0.0)


def _places(along_N: NDArray[Any], cells: float) -> NDArray[np.float64]:
    """Of pixels along a row or a column, in cells."""
    place_N: NDArray[np.float64] = cells * (along_N - along_N[0]).astype(np.float64)
    place_N += first_place(place_N[-1] / max(len(place_N) - 1, 1))
    return place_N


def build_grid(
    features_PF: NDArray[Any],
    valid_P: NDArray[np.bool_],
    *,
    size: tuple[int, int],
    cells_per_sigma: Sequence[float],
    num_threads: int,
) -> Grid:
    """The grid over positions and up to one more feature, in units of the bandwidths.

    Args:
        features_PF: x, y of the pixel grid, then the feature.
        valid_P: which pixels take part; where the others lie does not matter.
        size: H, W.
        cells_per_sigma: cells to a bandwidth, of each feature.
        num_threads: to build it with.
    """
    (P, F), W, dtype = features_PF.shape, size[1], features_PF.dtype
    x_cells, y_cells, *rest = cells_per_sigma
    d_cells = rest[0] if rest else 1.0
    y_place, x_place = _places(features_PF[::W, 1], y_cells), _places(features_PF[:W, 0], x_cells)
    low, high = _bounds(features_PF, valid_P) if F > 2 else (0.0, 0.0)
    shape = num_points(y_place[-1]), num_points(x_place[-1]), num_points(d_cells * (high - low))
    cell_P, above_P = np.zeros(P, np.int32), np.zeros(P, dtype)

    def work(thread: int, arrivals: NDArray[np.int64]) -> None:
        _cells(features_PF, valid_P, low, d_cells, shape[2] - 2, cell_P, above_P, *share(P, thread, num_threads))

    if F > 2:
        run_team(work, num_threads)
    interpolated = interpolation_variance(y_place), interpolation_variance(x_place), ANYWHERE
    blurs = tuple(
        GridAxis(
            (math.prod(shape[:i]), shape[i], math.prod(shape[i + 1 :])),
            blur_taps(cells, shape[i], dtype, interpolated=interpolated[i]),
        )
        for i, cells in enumerate((y_cells, x_cells, d_cells))
    )
    return Grid(shape, y_place, x_place, cell_P, above_P, blurs)
