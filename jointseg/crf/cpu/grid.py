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
    features_FP: NDArray[Any], valid_P: NDArray[np.bool_], low_F: NDArray[Any], cells: float, strides_F: NDArray[np.int64],
    offsets_PV: NDArray[np.int32], weights_PV: NDArray[Any], start: int, stop: int, dims: Any,
) -> None:  # fmt: skip
    """Where pixels [start, stop) lie. `dims`: a tuple of F numbers, of which only the length counts."""
    kind = features_FP.dtype.type
    cell, above = np.empty(len(dims), np.int64), np.empty(len(dims), np.float64)
    for p in range(np.uint64(start), np.uint64(stop)):
        if not valid_P[p]:
            for v in range(1 << len(dims)):
                offsets_PV[p, v] = 0
                weights_PV[p, v] = 0
            continue
        for i in range(len(dims)):
            place = (features_FP[i, p] - low_F[i]) * cells
            floor = int(place)
            cell[i], above[i] = floor * strides_F[i], place - floor
        for v in range(1 << len(dims)):
            offset, weight = 0, kind(1)
            for i in range(len(dims)):
                upper = v >> i & 1
                offset += cell[i] + upper * strides_F[i]
                weight = kind(weight * (above[i] if upper else 1 - above[i]))
            offsets_PV[p, v] = offset
            weights_PV[p, v] = weight


@compiled
def _bounds(features_FP: NDArray[Any], valid_P: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The least and the greatest of each feature over valid pixels; zeros where there are none."""
    F, P = features_FP.shape
    low_F, high_F = np.zeros(F, features_FP.dtype), np.zeros(F, features_FP.dtype)
    first = 0
    while first < P and not valid_P[first]:
        first += 1
    for i in range(F if first < P else 0):
        low = high = features_FP[i, first]
        for p in range(first, P):
            value = features_FP[i, p]
            low = value if valid_P[p] & (value < low) else low
            high = value if valid_P[p] & (value > high) else high
        low_F[i], high_F[i] = low, high
    return low_F, high_F


def build_grid(
    features_PF: NDArray[Any], valid_P: NDArray[np.bool_], *, cells_per_sigma: float, num_threads: int = 1
) -> Interpolated:
    """The grid over these features, in units of the bandwidths, with `cells_per_sigma` cells to a bandwidth."""
    P, F = features_PF.shape
    features_FP = np.ascontiguousarray(features_PF.T)
    low_F, high_F = _bounds(features_FP, valid_P)
    shape = grid_shape(low_F, high_F, cells_per_sigma)
    strides_F = np.array([math.prod(shape[i + 1 :]) for i in range(F)], np.int64)
    offsets_PV = np.empty((P, 2**F), np.int32)
    weights_PV = np.empty((P, 2**F), features_PF.dtype)

    def work(thread: int, arrivals: NDArray[np.int64]) -> None:
        span = share(P, thread, num_threads)
        _corners(features_FP, valid_P, low_F, cells_per_sigma, strides_F, offsets_PV, weights_PV, *span, (0,) * F)

    run_team(work, num_threads)
    blurs = tuple(
        GridAxis(
            (math.prod(shape[:i]), shape[i], math.prod(shape[i + 1 :])),
            blur_taps(cells_per_sigma, shape[i], features_PF.dtype),
        )
        for i in range(F)
    )
    return Interpolated(offsets_PV, weights_PV, math.prod(shape), blurs)
