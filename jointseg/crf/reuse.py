"""What was prepared of many images, kept for the next CRF over them, within a bound of memory.

Not here: what is prepared (prepared.py), and which of it another CRF may take (`DenseCRF.prepare`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from numbers import Real

from torch import Tensor

from jointseg.crf.dense_crf import DenseCRF
from jointseg.crf.inputs import refuse_others
from jointseg.crf.prepared import PreparedImages
from jointseg.errors import InputError


class PreparedCache:
    """The last preparation of each image: a CRF over it again builds only the filters whose bandwidths have changed.

    Images are visited in turn, so those that came first and fit are kept, and the others are prepared anew each time: throwing
    out the one unused for longest would, on every round, throw out the one that is due next. For one thread at a time.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty.

        Args:
            max_bytes: of the arrays kept, at most.

        Raises:
            InputError: that is no number, or below 0.
        """
        refuse_others("max_bytes", max_bytes, Real, "a number of bytes, 0 or more")
        if not max_bytes >= 0:
            raise InputError(f"max_bytes is {max_bytes}; allowed: 0 or more")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: dict[Hashable, tuple[PreparedImages, int]] = {}

    def prepare(
        self,
        key: Hashable,
        crf: DenseCRF,
        *,
        image: Tensor | None = None,
        depth: Tensor | None = None,
        guides: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> PreparedImages:
        """As `crf.prepare(image=image, depth=depth, guides=guides, mask=mask)`.

        Args:
            key: names the image with all that comes beside it. What has changed since in its values is prepared anew.
            crf: any CRF.
            image: as in `DenseCRF.forward`.
            depth: as there.
            guides: as there.
            mask: as there.
        """
        before, num_bytes = self._kept.get(key, (None, 0))
        prepared = crf.prepare(image=image, depth=depth, guides=guides, mask=mask, reusing=before)
        self._kept.pop(key, None)
        self.num_bytes -= num_bytes
        if prepared is not before:
            num_bytes = prepared.num_bytes
        if self.num_bytes + num_bytes <= self.max_bytes:
            self._kept[key] = prepared, num_bytes
            self.num_bytes += num_bytes
        return prepared
