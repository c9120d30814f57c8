"""One NYU Depth v2 frame in memory, and the one definition of a valid depth.

Not here: how frames are read from a disk (source.py, store.py) or turned into training samples (views.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FRAME_SIZE = FRAME_HEIGHT, FRAME_WIDTH = (480, 640)
"""Size of every NYU Depth v2 frame, pixels: height, width."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One RGB-D frame, upright, its arrays its own."""

    number: int
    """As NYU's splits count: from 1."""
    image: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    labels: NDArray[np.uint8]
    """(H, W), 0..39 or `jointseg.labels.VOID`."""
    raw_depth: NDArray[np.float32]
    """(H, W), metres, the sensor's own; 0 = missing."""
    filled_depth: NDArray[np.float32]
    """(H, W), metres, its holes filled in; 0 = missing."""


@overload
def valid_depth(depth: Tensor) -> Tensor: ...
@overload
def valid_depth(depth: NDArray[np.floating[Any]]) -> NDArray[np.bool_]: ...
def valid_depth(depth: Tensor | NDArray[np.floating[Any]]) -> Tensor | NDArray[np.bool_]:
    """Where a depth in metres is known: finite and above 0 (NaN is neither). Any shape; boolean of the same shape."""
    return (depth > 0) & (depth < math.inf)
