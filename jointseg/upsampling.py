"""The likeliest class of each pixel of an upsampled map, without making the upsampled map: compiled, for CPUs.

Not here: what is upsampled and scored (evaluation.py).
"""

# C classes, h x w the map, H x W the frame

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.compiled import compiled, inner
from jointseg.crf.cpu.layout import padded_width
from jointseg.crf.cpu.simd import row_type
from jointseg.crf.cpu.transpose import into_rows

_Neighbours = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Of each place along a side of the frame: the two of the map that it lies between, and the share of the second."""
_LEAST = float(np.finfo(np.float32).min)
"""Fills rows: no infinity, whose difference from itself is no number."""


def argmax_upsampled(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The argmax over classes of a map that is upsampled bilinearly, as PyTorch does with `align_corners=False`.

    Args:
        logits: (C, h, w), finite, of at most 256 classes; fastest channels last, with whole eights of classes.
        size: H, W.

    Returns:
        (H, W); where classes tie, the first of them.
    """
    C, h, w = logits.shape
    labels = np.empty(size, np.uint8)
    rows_hwC, width = logits.transpose(1, 2, 0), padded_width(C)
    if width != C or not rows_hwC.flags.c_contiguous:
        rows_hwC = np.empty((h, w, width), np.float32)
        into_rows(np.ascontiguousarray(logits).reshape(C, -1), rows_hwC.reshape(-1, width), _LEAST, 1)
    _argmax_upsampled(rows_hwC, _neighbours(h, size[0]), _neighbours(w, size[1]), labels, row_type(width))
    return labels


def _neighbours(length: int, target: int) -> _Neighbours:
    places = np.maximum((np.arange(target, dtype=np.float32) + 0.5) * np.float32(length / target) - 0.5, 0)
    first = np.minimum(places.astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), (places - first).astype(np.float32)


@compiled
def _argmax_upsampled(
    logits_hwC: NDArray[Any], vertical: _Neighbours, horizontal: _Neighbours, labels_HW: NDArray[Any], rows: Any
) -> None:
    """Row by row of the frame; of the map's rows, the two that it lies between are kept, as wide as the frame."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C, (H, W) = step * len(rows[1]), labels_HW.shape
    above, below, share_below = vertical
    map_rows_hN, wide_2N, held = logits_hwC.reshape(len(logits_hwC), -1), np.empty((2, W * C), logits_hwC.dtype), np.full(2, -1)
    for y in range(H):
        for row in (above[y], below[y]):
            if held[row % 2] != row:
                held[row % 2] = row
                _widen(map_rows_hN[row], horizontal, wide_2N[row % 2], rows)
        upper, lower, share = wide_2N[above[y] % 2], wide_2N[below[y] % 2], share_below[y]
        for x in range(W):
            best, label = np.float32(-np.inf), 0
            for c in range(0, C, step):
                at = x * C + c
                values = _between(simd.load(upper, at, eights), simd.load(lower, at, eights), share)
                greatest = simd.largest(values)
                if greatest > best:
                    best, label = greatest, c + simd.first_equal(values, greatest)
            labels_HW[y, x] = label


@inner
def _widen(row: NDArray[Any], columns: _Neighbours, wide: NDArray[Any], rows: Any) -> None:
    """A row of the map as wide as the frame."""
    eights = rows[0]
    step = simd.LANES * len(eights)
    C = step * len(rows[1])
    left, right, share = columns
    for x in range(len(left)):
        for c in range(0, C, step):
            first, second = simd.load(row, left[x] * C + c, eights), simd.load(row, right[x] * C + c, eights)
            simd.store(wide, x * C + c, _between(first, second, share[x]))


@inner
def _between(first: Any, second: Any, share: float) -> Any:
    """At `share` of the way, rounded as PyTorch does it."""
    return simd.add(first, simd.multiply(simd.splat(share, first), simd.subtract(second, first)))
