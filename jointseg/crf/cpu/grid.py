"""The bilateral grid (Paris & Durand 2006; Chen, Paris & Durand 2007): dense over feature space, read and written linearly.

Not here: its application (passes.py).
"""

# P pixels, F features, V = 2^F corners of a cell

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.compiled import compiled
from jointseg.crf.cpu.parts import GridAxis, Interpolated
from jointseg.crf.cpu.team import run_team, share

_RADIUS = 3.5


def grid_shape(low_F: NDArray[Any], high_F: NDArray[Any], cells_per_sigma: float) -> tuple[int, ...]:
    """Points along each axis of the grid over features between these bounds."""
    return tuple(int(extent) + 2 for extent in (high_F.astype(np.float64) - low_F) * cells_per_sigma)


def blur_taps(cells_per_sigma: float, length: int, dtype: Any) -> NDArray[Any]:
    """Taps, middle first. Linear reading and writing blur by themselves: a variance of 1/6 cell each, on the mean."""
    variance = cells_per_sigma**2 - 1 / 3
    radius = min(math.ceil(_RADIUS * cells_per_sigma), length - 1)
    return np.exp(-np.square(np.arange(radius + 1)) / (2 * variance)).astype(dtype)


@compiled
def _corners(
    features_PF: NDArray[Any], valid_P: NDArray[np.bool_], low_F: NDArray[Any], cells: float, strides_F: NDArray[np.int64],
    offsets_PV: NDArray[np.int32], weights_PV: NDArray[Any], start: int, stop: int,
) -> None:  # fmt: skip
    F = features_PF.shape[1]
    for p in range(start, stop):
        if not valid_P[p]:
            offsets_PV[p] = 0
            weights_PV[p] = 0
            continue
        offsets_PV[p, 0] = 0
        weights_PV[p, 0] = 1
        for i in range(F):
            place = (features_PF[p, i] - low_F[i]) * cells
            floor = int(place)
            above = place - floor
            for v in range(1 << i):
                base = offsets_PV[p, v] + floor * strides_F[i]
                weight = weights_PV[p, v]
                offsets_PV[p, v] = base
                weights_PV[p, v] = weight * (1 - above)
                offsets_PV[p, v + (1 << i)] = base + strides_F[i]
                weights_PV[p, v + (1 << i)] = weight * above


@compiled
def _bounds(features_PF: NDArray[Any], valid_P: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The least and the greatest of each feature over valid pixels; zeros where there are none."""
    P, F = features_PF.shape
    low_F, high_F = np.zeros(F, features_PF.dtype), np.zeros(F, features_PF.dtype)
    found = False
    for p in range(P):
        if valid_P[p]:
            for i in range(F):
                value = features_PF[p, i]
                low_F[i] = min(low_F[i], value) if found else value
                high_F[i] = max(high_F[i], value) if found else value
            found = True
    return low_F, high_F


def build_grid(
    features_PF: NDArray[Any], valid_P: NDArray[np.bool_], *, cells_per_sigma: float, num_threads: int = 1
) -> Interpolated:
    """The grid over these features, in units of the bandwidths, with `cells_per_sigma` cells to a bandwidth."""
    P, F = features_PF.shape
    low_F, high_F = _bounds(features_PF, valid_P)
    shape = grid_shape(low_F, high_F, cells_per_sigma)
    strides_F = np.array([math.prod(shape[i + 1 :]) for i in range(F)], np.int64)
    offsets_PV = np.empty((P, 2**F), np.int32)
    weights_PV = np.empty((P, 2**F), features_PF.dtype)

    def work(thread: int, arrivals: NDArray[np.int64]) -> None:
        span = share(P, thread, num_threads)
        _corners(features_PF, valid_P, low_F, cells_per_sigma, strides_F, offsets_PV, weights_PV, *span)

    run_team(work, num_threads)
    blurs = tuple(
        GridAxis(
            (math.prod(shape[:i]), shape[i], math.prod(shape[i + 1 :])),
            blur_taps(cells_per_sigma, shape[i], features_PF.dtype),
        )
        for i in range(F)
    )
    return Interpolated(offsets_PV, weights_PV, math.prod(shape), blurs)
