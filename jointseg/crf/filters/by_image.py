"""Several filters for the images of one batch, each for those that it suits.

Not here: which suits which (__init__.py).
"""

# B images, C channels, P pixels (H*W, row-major)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jointseg.crf.filters import GaussianFilter


class ByImage:
    """One kernel over B images by more than one filter."""

    def __init__(self, parts: Sequence[tuple[list[int], GaussianFilter]]) -> None:
        """Take over filters that are built.

        Args:
            parts: the places of images in the batch and the filter over them, in that order; every image once.
        """
        self.parts = tuple(parts)
        order = [place for places, _ in parts for place in places]
        self._back = [order.index(place) for place in range(len(order))]
        self.row_sums = self._joined(lambda _, gaussian: gaussian.row_sums)

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v. Values (B, C, P); not recorded by autograd."""
        return self._joined(lambda places, gaussian: gaussian.apply(values_BCP[places]))

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, by each filter's own transpose."""
        return self._joined(lambda places, gaussian: gaussian.apply_transposed(values_BCP[places]))

    @torch.no_grad()
    def _joined(self, part_of: Callable[[list[int], GaussianFilter], Tensor]) -> Tensor:
        return torch.cat([part_of(places, gaussian) for places, gaussian in self.parts])[self._back]
