"""How well boundaries between classes are met, whichever classes: counts of boundary pixels that add, and their F1.

Not here: which pixels have which class right (metrics.py).
"""

# H x W an image

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from jointseg.labels import VOID

DEFINITION = 2
"""Raised where other pixels come to count: scores of two definitions are not beside each other in one study."""
TOLERANCE = 0.0075
"""How far apart boundaries may lie and still meet, as a share of the diagonal (Csurka et al. 2013): 6 px of 480 x 640."""


class BoundarySums(NamedTuple):
    """Boundary pixels over any set of images; sets add."""

    predicted: int
    predicted_near_true: int
    true: int
    true_near_predicted: int

    @classmethod
    def from_labels(cls, prediction: NDArray[Any], truth: NDArray[Any], *, tolerance: float = TOLERANCE) -> Self:
        """Counts of one image: (H, W) labels, `truth` with VOID.

        Labels of objects seldom touch: VOID lies between. So the true boundary is that of the nearest classes, as far as a
        class is within reach; and a predicted boundary that meets none is no mistake within reach of VOID, for what is there is
        not known.

        Args:
            prediction: 0..C-1.
            truth: 0..C-1 or VOID.
            tolerance: as a share of the diagonal.
        """
        assert prediction.shape == truth.shape, f"prediction is {prediction.shape} but truth is {truth.shape}"
        reach = tolerance * math.hypot(*truth.shape)
        known = truth != VOID
        if not known.any():
            return cls(0, 0, 0, 0)
        to_known, nearest = distance_transform_edt(~known, return_indices=True)
        true, predicted = _boundary(truth[tuple(nearest)]) & (to_known <= reach), _boundary(prediction)
        met = predicted & _near(true, reach)
        counted = met | (predicted & ~_near(~known, reach))
        return cls(int(counted.sum()), int(met.sum()), int(true.sum()), int((true & _near(predicted, reach)).sum()))

    def plus(self, other: Self) -> Self:
        """The counts over both sets."""
        return type(self)(*(one + two for one, two in zip(self, other, strict=True)))

    @property
    def f1(self) -> float:
        """2 P R / (P + R), P and R the shares of predicted and of true boundary pixels that meet; NaN where there are none."""
        if not self.predicted and not self.true:
            return math.nan
        precision = self.predicted_near_true / max(self.predicted, 1)
        recall = self.true_near_predicted / max(self.true, 1)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another class."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def _near(pixels: NDArray[np.bool_], reach: float) -> NDArray[np.bool_]:
    if not pixels.any():
        return np.zeros(pixels.shape, bool)
    near: NDArray[np.bool_] = distance_transform_edt(~pixels) <= reach
    return near
