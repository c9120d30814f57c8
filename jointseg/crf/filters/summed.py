"""Several normalised kernels as one filter, where each is applied by itself: for GPUs.

Not here: several exact kernels as one matrix (exact.py), several of a CPU's in one pass (cpu/fused.py).
"""

# B images, C channels, P pixels

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jointseg.crf.filters import GaussianFilter


class SummedFilter:
    """sum_k s_k K_k / (K_k 1). A kernel whose s_k is 0 is not applied."""

    is_normalised = True
    """Its rows are; there is nothing to divide by."""

    def __init__(self, filters: Sequence[GaussianFilter], scales: Sequence[float]) -> None:
        pairs = [(gaussian, scale) for gaussian, scale in zip(filters, scales, strict=True) if scale]
        self._terms = [(gaussian, scale / gaussian.row_sums) for gaussian, scale in pairs]
        self.row_sums = torch.ones_like(filters[0].row_sums)

    @torch.no_grad()
    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """N v. Values (B, C, P); not recorded by autograd."""
        make = torch.empty_like if self._terms else torch.zeros_like
        total_BCP = make(values_BCP, memory_format=torch.contiguous_format)
        for number, (gaussian, factors_BP) in enumerate(self._terms):
            add_to = getattr(gaussian, "add_to", None)
            if add_to is not None:
                add_to(total_BCP, values_BCP, factors_BP, first=number == 0)
            else:
                add_scaled(total_BCP, gaussian.apply(values_BCP), factors_BP, first=number == 0)
        return total_BCP

    @torch.no_grad()
    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """N^T v; normalised rows are not symmetric."""
        total_BCP = torch.zeros_like(values_BCP)
        for gaussian, factors_BP in self._terms:
            total_BCP += gaussian.apply_transposed(values_BCP * factors_BP[:, None])
        return total_BCP


def add_scaled(total: Tensor, filtered: Tensor, factors: Tensor, *, first: bool) -> None:
    """Add factors * filtered to a total, or, `first`, put it there; of (B, C, P) and (B, P), or (C, P) and (P,)."""
    if first:
        torch.mul(filtered, factors.unsqueeze(-2), out=total)
    else:
        total.addcmul_(filtered, factors.unsqueeze(-2))
