"""What a message filter is, and which there are: one file per algorithm behind one interface.

Not here: the algorithms (exact.py), and where the features come from (kernels.py).

A filter is the linear map of one Gaussian kernel over the pixels of an image,

    (K v)_p = sum_p' exp(-|f_p - f_p'|^2 / 2) v_p',        p' = p included,

with features f in units of the bandwidths. It is built once per image and kernel, and then serves every iteration, both
directions and any weights. It has no gradient of its own: mean_field.py differentiates by v through `apply_transposed`, so
the derivative is that of what was computed, also where a filter approximates.
"""

# B images, C channels, P pixels (H*W, row-major), F kernel features

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from jointseg.crf.filters.exact import ExactFilter, blend
from jointseg.errors import InputError


class GaussianFilter(Protocol):
    """One kernel over B images, ready to be applied."""

    row_sums: Tensor
    """(B, P): K 1, what each pixel's message is divided by; at least 1, as every pixel hears itself."""

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v, for any number of channels. Not recorded by autograd."""
        ...

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, the exact transpose of `apply`. Not recorded by autograd."""
        ...


BuildFilter: TypeAlias = Callable[[Tensor], GaussianFilter]
"""Builds a filter from features (B, P, F), already divided by the bandwidths."""

FilterName: TypeAlias = Literal["auto", "exact"]

FILTERS: Mapping[str, BuildFilter] = {"exact": ExactFilter}


def resolve_filter(choice: FilterName | BuildFilter) -> tuple[str, BuildFilter]:
    """The name and the builder of a filter; `auto` takes `exact`, today the only one.

    Raises:
        InputError: no filter has this name.
    """
    if not isinstance(choice, str):
        return getattr(choice, "__name__", repr(choice)), choice
    name = "exact" if choice == "auto" else choice
    if name not in FILTERS:
        raise InputError(f"filter: {choice!r} is unknown; allowed: 'auto', {', '.join(map(repr, FILTERS))}")
    return name, FILTERS[name]


__all__ = ["FILTERS", "BuildFilter", "ExactFilter", "FilterName", "GaussianFilter", "blend", "resolve_filter"]
