"""The likeliest class of each pixel of an upsampled map, without making the upsampled map: compiled, for CPUs.

Not here: what is upsampled and scored (evaluation.py).
"""

# C classes, h x w the map, H x W the frame

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.compiled import compiled, inner

_Neighbours = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Of each place along a side of the frame: the two of the map that it lies between, and the share of the second."""


def argmax_upsampled(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The argmax over classes of a map that is upsampled bilinearly, as PyTorch does with `align_corners=False`.

    Args:
        logits: (C, h, w), finite, of at most 256 classes.
        size: H, W.

    Returns:
        (H, W); where classes tie, the first of them.
    """
    labels = np.empty(size, np.uint8)
    rows, columns = _neighbours(logits.shape[1], size[0]), _neighbours(logits.shape[2], size[1])
    _argmax_upsampled(np.ascontiguousarray(logits), rows, columns, labels)
    return labels


def _neighbours(length: int, target: int) -> _Neighbours:
    places = np.maximum((np.arange(target, dtype=np.float32) + 0.5) * np.float32(length / target) - 0.5, 0)
    first = np.minimum(places.astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), (places - first).astype(np.float32)


@compiled
def _argmax_upsampled(logits_Chw: NDArray[Any], rows: _Neighbours, columns: _Neighbours, labels_HW: NDArray[Any]) -> None:
    """Row by row of the frame; of the map's rows, the two that it lies between are kept, as wide as the frame."""
    C, (H, W) = logits_Chw.shape[0], labels_HW.shape
    above, below, share_below = rows
    wide, held = np.empty((2, C, W), np.float32), np.full(2, -1)
    best, label = np.empty(W, np.float32), np.empty(W, np.int32)
    for y in range(H):
        for row in (above[y], below[y]):
            if held[row % 2] != row:
                held[row % 2] = row
                for c in range(C):
                    _widen(logits_Chw[c, row], columns, wide[row % 2, c])
        upper_CW, lower_CW, share = wide[above[y] % 2], wide[below[y] % 2], share_below[y]
        best[:], label[:] = -np.inf, 0
        for c in range(C):
            upper, lower = upper_CW[c], lower_CW[c]
            for x in range(W):
                value = upper[x] + share * (lower[x] - upper[x])
                better = value > best[x]
                best[x] = value if better else best[x]
                label[x] = np.int32(c) if better else label[x]
        for x in range(W):
            labels_HW[y, x] = label[x]


@inner
def _widen(row: NDArray[Any], columns: _Neighbours, wide: NDArray[Any]) -> None:
    left, right, share = columns
    for x in range(len(wide)):
        wide[x] = row[left[x]] + share[x] * (row[right[x]] - row[left[x]])
