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
        self._terms = [(gaussian, scale) for gaussian, scale in zip(filters, scales, strict=True) if scale]
        self._any = filters[0]
        self._factors: dict[int, Tensor] = {}

    @property
    def row_sums(self) -> Tensor:
        """(B, P): ones, for rows are normalised already."""
        return torch.ones_like(self._any.row_sums)

    @torch.no_grad()
    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """N v. Values (B, C, P); not recorded by autograd."""
        make = torch.empty_like if self._terms else torch.zeros_like
        total_BCP = make(values_BCP, memory_format=torch.contiguous_format)
        for number, (gaussian, _) in enumerate(self._terms):
            add_to = getattr(gaussian, "add_to", None)
            if add_to is not None and getattr(gaussian, "has_row_sums", True):
                add_to(total_BCP, values_BCP, self._factors_of(number), first=number == 0)
            else:  # a first application brings the row sums, which the factors need
                filtered_BCP = gaussian.apply(values_BCP)
                add_scaled(total_BCP, filtered_BCP, self._factors_of(number), first=number == 0)
        return total_BCP

    @torch.no_grad()
    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """N^T v; normalised rows are not symmetric."""
        total_BCP = torch.zeros_like(values_BCP)
        for number, (gaussian, _) in enumerate(self._terms):
            factors_BP = self._factors_of(number)
            total_BCP += gaussian.apply_transposed(values_BCP * factors_BP[:, None])
        return total_BCP

    def _factors_of(self, number: int) -> Tensor:
        """(B, P): what a term's rows are multiplied by."""
        if number not in self._factors:
            gaussian, scale = self._terms[number]
            self._factors[number] = scale / gaussian.row_sums
        return self._factors[number]


def add_scaled(total: Tensor, filtered: Tensor, factors: Tensor, *, first: bool) -> None:
    """Add factors * filtered to a total, or, `first`, put it there; of (B, C, P) and (B, P), or (C, P) and (P,)."""
    if first:
        torch.mul(filtered, factors.unsqueeze(-2), out=total)
    else:
        total.addcmul_(filtered, factors.unsqueeze(-2))
