"""A kernel normalised as pydensecrf does unless told otherwise, around any filter.

Not here: the same in one pass over several of a CPU's kernels (cpu/engine.py).
"""

# B images, C channels, P pixels

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jointseg.crf.filters import GaussianFilter


class SymmetricFilter:
    """N^-1/2 K N^-1/2, N the row sums of K on the diagonal (Kraehenbuehl & Koltun 2013; NORMALIZE_SYMMETRIC)."""

    is_normalised = True

    def __init__(self, gaussian: GaussianFilter) -> None:
        self._gaussian = gaussian
        self._factors_B1P = gaussian.row_sums.rsqrt()[:, None]

    @property
    def row_sums(self) -> Tensor:
        """(B, P): ones; there is nothing left to divide by."""
        return torch.ones_like(self._factors_B1P[:, 0])

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """N^-1/2 K N^-1/2 v. Values (B, C, P); not recorded by autograd."""
        with torch.no_grad():
            return self._gaussian.apply(values_BCP * self._factors_B1P) * self._factors_B1P

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """The transpose of `apply`, by that of the filter within."""
        with torch.no_grad():
            return self._gaussian.apply_transposed(values_BCP * self._factors_B1P) * self._factors_B1P
