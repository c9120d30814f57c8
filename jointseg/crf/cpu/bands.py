"""A Gaussian along one axis of the image, through fewer points where it is wide. Not here: who applies it (passes.py)."""

# n pixels along the axis, m coarse points, T taps

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.parts import Band, Separable

_SPACING, _TAPS = 0.7, 9
_DIRECT_RADIUS = 5.0


def separable(size: tuple[int, int], sigma: tuple[float, float], dtype: Any) -> Separable:
    """exp(-dx^2 / (2 sx^2) - dy^2 / (2 sy^2)) on H x W pixels, for `sigma` = (sx, sy) in pixels.

    With values in 0..1, a message (after division by the row sums) is within 1e-4 of the exact one.
    """
    (H, W), (sigma_x, sigma_y) = size, sigma
    read_x, write_x = axis_bands(W, sigma_x, dtype)
    read_y, write_y = axis_bands(H, sigma_y, dtype)
    return Separable(read_x, write_x, read_y, write_y)


def axis_bands(n: int, sigma: float, dtype: Any) -> tuple[Band, Band]:
    """R and W (n, m) with R W^T near exp(-d^2 / (2 sigma^2)), but for a factor.

    A Gaussian is the product of two of sigma / sqrt 2 summed over points in between; points 0.7 sigma apart sum to within
    1e-4 of the integral (Poisson: 2 exp(-pi^2 / (2 * 0.49)) = 9e-5 at worst, and messages differ by half of it).
    Below 1.5 pixels those points would be closer than pixels: there R is the Gaussian itself and W the identity.
    """
    if sigma * _SPACING <= 1.05:
        radius = min(math.ceil(_DIRECT_RADIUS * sigma), n - 1)
        return _band(np.arange(n, dtype=np.float64), n, 2 * radius + 1, sigma, dtype), _identity(n, dtype)
    spacing = sigma * _SPACING
    half = _TAPS // 2
    places = np.arange(n) / spacing + half
    both = _band(places, math.floor(places[-1]) + half + 2, _TAPS, 1 / (_SPACING * math.sqrt(2.0)), dtype)
    return both, both


def _band(places: NDArray[np.float64], m: int, taps: int, sigma: float, dtype: Any) -> Band:
    """Gaussian weights of the points nearest to each place, all in units of the points' spacing."""
    taps = min(taps, m)
    start = np.clip(np.rint(places).astype(np.int64) - taps // 2, 0, m - taps)
    distance = places[:, None] - (start[:, None] + np.arange(taps))
    return Band(start, np.exp(-0.5 * np.square(distance / sigma)).astype(dtype), m)


def _identity(n: int, dtype: Any) -> Band:
    return Band(np.arange(n), np.ones((n, 1), dtype), n)
