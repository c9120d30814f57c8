"""What a message filter is, and which there are: one file per algorithm behind one interface.

Not here: the algorithms (exact.py, structured.py, block_sparse.py), and where the features come from (kernels.py).

A filter is the linear map of one Gaussian kernel over the pixels of an image,

    (K v)_p = sum_p' exp(-|f_p - f_p'|^2 / 2) v_p',        p' = p included,

with features f in units of the bandwidths. It is built once per image and kernel, and then serves every iteration, both
directions and any weights. It has no gradient of its own: mean_field.py differentiates by v through `apply_transposed`, so
the derivative is that of what was computed, also where a filter approximates.
"""

# B images, C channels, P pixels (H*W, row-major), F kernel features

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from jointseg.crf.filters.block_sparse import BlockSparseFilter
from jointseg.crf.filters.by_image import ByImage
from jointseg.crf.filters.exact import ExactFilter, blend
from jointseg.crf.filters.features import Features
from jointseg.crf.filters.structured import (
    StructuredFilter,
    bilateral_grid,
    grid_fits,
    lattice_fits,
    permutohedral,
    separable_filter,
)
from jointseg.crf.filters.summed import SummedFilter
from jointseg.errors import InputError
from jointseg.needs import missing_for_triton


class GaussianFilter(Protocol):
    """One kernel over B images, ready to be applied.

    It may also have

    - `add_to(total_BCP, values_BCP, factors_BP, *, first)`: adds factors * K v to a contiguous total, or `first` puts it there,
      in one pass where that saves one;
    - `has_row_sums`, False while only a first application would bring them without work of its own;
    - `is_normalised`, True where its rows are divided by their sums already;
    - `bandwidth_gradient(y_BCP, v_BCP)`, as `ExactFilter` has it: what `learn_bandwidths` needs.

    On CPUs kernels are fused into one pass where every filter is a `StructuredFilter`, as `FILTERS` builds them: not where one
    is wrapped in another class.
    """

    @property
    def row_sums(self) -> Tensor:
        """(B, P): K 1, what each pixel's message is divided by; 1 where a pixel is left out, whose message is 0."""
        ...

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v, for any number of channels. Not recorded by autograd."""
        ...

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, the exact transpose of `apply`. Not recorded by autograd."""
        ...


BuildFilter: TypeAlias = Callable[[Features], GaussianFilter]
"""Builds a filter from what pixels are compared by."""

FilterName: TypeAlias = Literal["auto", "exact", "separable", "bilateral_grid", "permutohedral", "block_sparse"]

FILTERS: Mapping[str, BuildFilter] = {
    "exact": ExactFilter,
    "separable": separable_filter,
    "bilateral_grid": bilateral_grid,
    "permutohedral": permutohedral,
    "block_sparse": BlockSparseFilter,
}

EXACT_UP_TO: Mapping[str, int] = {"cpu": 1024, "cuda": 4096}
"""Pixels of an image up to which `auto` takes the exact filter: its matrices are quick to make, and are kept."""
DEVICES = tuple(EXACT_UP_TO)
"""What the filters run on: they need float64, which MPS lacks."""


def choose_filters(features: Features, *, kernel: str = "") -> list[str]:
    """What `auto` takes for each image: `exact` for small ones; else by the kernel.

    `separable` for positions alone, `bilateral_grid` for one more channel as long as its grid is small; for the rest on CPUs
    `permutohedral` where it has room, on CUDA `block_sparse` (float32, with Triton); else `exact`, with a warning: its time
    grows with P². `kernel` is its name, for that warning.
    """
    device, (B, P, F) = features.values_BPF.device.type, features.values_BPF.shape
    if EXACT_UP_TO[device] >= P:
        return ["exact"] * B
    if F == 2:
        return ["separable"] * B
    grid_fits_B = grid_fits(features)
    if all(grid_fits_B):
        return ["bilateral_grid"] * B
    needed: str | None
    if device == "cpu":
        general, needed = "permutohedral", f"wider bandwidths or fewer than {F} features"
        general_fits_B = lattice_fits(features)
    else:
        general, needed = "block_sparse", missing_for_block_sparse(features.values_BPF.dtype)
        general_fits_B = [needed is None] * B
    fits_B = zip(grid_fits_B, general_fits_B, strict=True)
    names = ["bilateral_grid" if grid else general if other else "exact" for grid, other in fits_B]
    if "exact" in names:
        of = f"kernel {kernel!r}: " if kernel else ""
        slow = f"{of}filter='auto' takes 'exact' for {P} pixels, which is slow: {general!r} needs {needed}"
        warnings.warn(slow, stacklevel=_levels_to_caller())
    return names


def _levels_to_caller() -> int:
    """How far up the stack the first function is that is neither of this package nor of torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("jointseg.crf", "torch.")):
        level, frame = level + 1, frame.f_back
    return level


def missing_for_block_sparse(dtype: torch.dtype) -> str | None:
    """What `block_sparse` needs on CUDA and is missing; None where all is there."""
    missing = missing_for_triton()
    if missing is None and dtype != torch.float32:
        missing = f"float32, not {str(dtype).removeprefix('torch.')}"
    return missing


def check_filter(choice: FilterName | BuildFilter) -> None:
    """Refuse names that no filter has, and what builds none.

    Raises:
        InputError: no filter has this name, or it cannot be called.
    """
    if not callable(choice) and choice != "auto" and (not isinstance(choice, str) or choice not in FILTERS):
        named = ", ".join(map(repr, FILTERS))
        raise InputError(f"filter: {choice!r} is unknown; allowed: 'auto', {named}, or a function from Features to a filter")


def name_of(choice: FilterName | BuildFilter) -> str:
    """For messages."""
    return choice if isinstance(choice, str) else getattr(choice, "__name__", repr(choice))


def builds_as(one: FilterName | BuildFilter, other: FilterName | BuildFilter) -> bool:
    """Whether they are one function, or one name; a copy of a `partial`, as is within a copied module, is that `partial`."""
    one, other = (FILTERS.get(choice, choice) if isinstance(choice, str) else choice for choice in (one, other))
    if isinstance(one, partial) and isinstance(other, partial):
        return builds_as(one.func, other.func) and (one.args, one.keywords) == (other.args, other.keywords)
    return one == other


def build_filter(choice: FilterName | BuildFilter, features: Features, *, kernel: str = "") -> tuple[str, GaussianFilter]:
    """The name of the filter taken for these features, and the filter; `kernel` names it in warnings.

    Raises:
        InputError: the filter cannot take these features, or what was built is no filter.
    """
    if not isinstance(choice, str):
        name, built = name_of(choice), choice(features)
        missing = [part for part in ("apply", "apply_transposed", "row_sums") if not hasattr(built, part)]
        if missing:
            raise InputError(f"filter {name!r} built a {type(built).__name__} without {', '.join(missing)}; see GaussianFilter")
        if isinstance(built, StructuredFilter) and not built.serves(features):
            raise InputError(f"filter {name!r} built one for other images; allowed: of the size, number and dtype it was given")
        return name, built
    names = choose_filters(features, kernel=kernel) if choice == "auto" else [choice] * len(features.values_BPF)
    taken = sorted(set(names))
    if len(taken) == 1:
        return taken[0], FILTERS[taken[0]](features)
    places = [[place for place, own in enumerate(names) if own == name] for name in taken]
    parts = [(own, FILTERS[name](features.of_images(own))) for name, own in zip(taken, places, strict=True)]
    name = " and ".join(taken)
    structured = [(own, gaussian) for own, gaussian in parts if isinstance(gaussian, StructuredFilter)]
    whole = StructuredFilter.joined(name, structured) if len(structured) == len(parts) else ByImage(parts)
    return name, whole


__all__ = [
    "DEVICES", "FILTERS", "BlockSparseFilter", "BuildFilter", "ExactFilter", "Features", "FilterName", "GaussianFilter",
    "StructuredFilter", "SummedFilter", "bilateral_grid", "blend", "build_filter", "builds_as", "check_filter",
    "choose_filters", "name_of", "permutohedral", "separable_filter",
]  # fmt: skip
