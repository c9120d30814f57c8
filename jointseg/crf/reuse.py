"""What was prepared of many images, kept for the next CRF over them, within a bound of memory.

Not here: what is prepared (prepared.py), and which of it another CRF may take (`DenseCRF.prepare`).
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from jointseg.crf.dense_crf import DenseCRF
from jointseg.crf.prepared import PreparedImages


class PreparedCache:
    """The last preparation of each image: a CRF over it again builds only the filters whose bandwidths have changed.

    Images are visited in turn, so those that came first and fit are kept, and the others are prepared anew each time: throwing
    out the one unused for longest would, on every round, throw out the one that is due next. For one thread at a time.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty.

        Args:
            max_bytes: of the arrays kept, at most.
        """
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: dict[Hashable, tuple[PreparedImages, int]] = {}

    def prepare(self, key: Hashable, crf: DenseCRF, *, image: Tensor, depth: Tensor) -> PreparedImages:
        """As `crf.prepare(image=image, depth=depth)`.

        Args:
            key: names the image and its depth. Where their values have changed since, they are prepared anew.
            crf: any CRF.
            image: (B, 3, H, W).
            depth: (B, H, W).
        """
        before, num_bytes = self._kept.pop(key, (None, 0))
        self.num_bytes -= num_bytes
        prepared = crf.prepare(image=image, depth=depth, reusing=before)
        if prepared is not before:
            num_bytes = prepared.num_bytes
        if self.num_bytes + num_bytes <= self.max_bytes:
            self._kept[key] = prepared, num_bytes
            self.num_bytes += num_bytes
        return prepared
