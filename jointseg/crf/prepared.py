"""What the CRF makes of a batch of images before it looks at any logits: a filter a kernel.

Not here: weights (dense_crf.py).
"""

# B images, C classes, P pixels (H*W, row-major), K kernels, F kernel features

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from jointseg.crf.cpu.abreast import each_image
from jointseg.crf.cpu.engine import Engine
from jointseg.crf.cpu.fused import fused_mean_field
from jointseg.crf.filters import (
    BuildFilter,
    Features,
    FilterName,
    GaussianFilter,
    StructuredFilter,
    build_filter,
    builds_as,
    name_of,
)
from jointseg.crf.filters.symmetric import SymmetricFilter
from jointseg.crf.inputs import MASK, Guides
from jointseg.crf.kernels import Kernel, feature_groups, kernel_features
from jointseg.crf.mean_field import mean_field
from jointseg.errors import InputError

Key: TypeAlias = tuple[float, tuple[tuple[str, float, str], ...], str]
"""What a filter depends on: the position's bandwidth, each guide's name, bandwidth and digest, and the mask's digest."""


class PreparedImages:
    """The filters of a batch of images, for any logits, any weights and any number of iterations.

    It holds for the kernels' bandwidths, and for the number of threads that torch had when it was made. Of use outside:
    `filter_names` (by kernel), `kernels`, `num_images`, `size` (H, W), `dtype`, `device`, `mask` and `num_bytes`.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        guides: Guides,
        *,
        like: Tensor,
        filter: FilterName | BuildFilter,
        digests: Mapping[str, str] | None = None,
        reusing: PreparedImages | None = None,
    ) -> None:
        """Build a filter for each kernel.

        Args:
            kernels: those to build; each guide they name must be there.
            guides: what they compare.
            like: (B, any, H, W), of the size, dtype and device that logits will have.
            filter: a name, or what builds a filter.
            digests: of `guides`; None where nothing will be reused.
            reusing: what was prepared before: its filters are taken for kernels of the same bandwidths over the same values.
        """
        self.kernels, self.size = tuple(kernels), (like.shape[2], like.shape[3])
        self.num_images, self.dtype, self.device = like.shape[0], like.dtype, like.device
        self.filter, self.num_threads = filter, torch.get_num_threads()
        self.mask = None if guides.mask is None else guides.mask.clone()
        """(B, H, W), or None: which pixels take part at all."""
        self.groups = [feature_groups(kernel, guides.channels) for kernel in self.kernels]
        self.keys = None if digests is None else [_key(kernel, digests) for kernel in self.kernels]
        kept = reusing._built() if reusing is not None and reusing._is_like(like, filter) else {}
        known = [None] * len(self.kernels) if self.keys is None else [kept.get(key) for key in self.keys]
        built = [before or self._build(kernel, guides, like=like) for kernel, before in zip(self.kernels, known, strict=True)]
        self.filter_names = {kernel.name: name for kernel, (name, _) in zip(self.kernels, built, strict=True)}
        self.filters: list[GaussianFilter] = [gaussian for _, gaussian in built]

    def _build(self, kernel: Kernel, guides: Guides, *, like: Tensor) -> tuple[str, GaussianFilter]:
        valid_BP = guides.valid_for(kernel)
        values_BPF = kernel_features(kernel, guides.channels, like=like, valid_BP=valid_BP)
        features = Features(values_BPF=values_BPF, size=self.size, valid_BP=valid_BP)
        try:
            return build_filter(self.filter, features, kernel=kernel.name)
        except InputError as error:
            raise type(error)(f"kernel {kernel.name!r}: {error}") from None

    def check(self, kernels: Sequence[Kernel], *, like: Tensor, filter: FilterName | BuildFilter) -> None:
        """Refuse what does not fit a CRF of these kernels and its logits (B, C, H, W).

        Raises:
            InputError: sizes, dtype or device, a kernel's bandwidths or its filter are others, or a kernel is missing.
                A function is another filter than what another function built; `auto` takes all.
        """
        expected = (self.num_images, like.shape[1], *self.size)
        if like.shape != expected or like.dtype != self.dtype or like.device != self.device:
            raise InputError(
                f"logits are {tuple(like.shape)} {like.dtype} on {like.device}; allowed beside what was prepared: "
                f"{expected} {self.dtype} on {self.device}"
            )
        own, theirs = ({kernel.name: kernel for kernel in some} for some in (kernels, self.kernels))
        for name, kernel in theirs.items():
            if name not in own or not own[name].compares_as(kernel):
                allowed = (
                    f"this CRF's, {own[name].bandwidths_named}" if name in own else f"this CRF's kernels, {', '.join(own)}"
                )
                raise InputError(f"prepared with bandwidths {kernel.bandwidths_named} for kernel {name!r}; allowed: {allowed}")
            taken = self.filter_names[name]
            by_name = isinstance(filter, str) and isinstance(self.filter, str)
            if filter != "auto" and not (taken == filter if by_name else builds_as(filter, self.filter)):
                found = repr(taken) if isinstance(self.filter, str) else f"{taken!r} (a function)"
                own_filter = repr(filter) if isinstance(filter, str) else f"{name_of(filter)!r} (the same function)"
                raise InputError(f"prepared with filter {found} for kernel {name!r}; allowed: this CRF's, {own_filter}")
        for name, kernel in own.items():
            if name not in theirs and not kernel.needs_depth_alone:
                raise InputError(
                    f"prepared for kernels {', '.join(theirs) or 'none'}, not for {name!r}; allowed: this CRF's kernels"
                )

    def _built(self) -> dict[Key, tuple[str, GaussianFilter]]:
        if self.keys is None:
            return {}
        filters = zip(self.kernels, self.keys, self.filters, strict=True)
        return {key: (self.filter_names[kernel.name], gaussian) for kernel, key, gaussian in filters}

    def _is_like(self, like: Tensor, filter: FilterName | BuildFilter) -> bool:
        images, size = like.shape[0], (like.shape[2], like.shape[3])
        return (self.num_images, self.size, self.dtype, self.device, self.filter, self.num_threads) == (
            images, size, like.dtype, like.device, filter, torch.get_num_threads(),
        )  # fmt: skip

    def serves(
        self, kernels: Sequence[Kernel], digests: Mapping[str, str] | None, *, like: Tensor, filter: FilterName | BuildFilter
    ) -> bool:
        """Whether preparing for these kernels and values, as `__init__` does, would make this again."""
        if digests is None or not self._is_like(like, filter):
            return False
        same_names = [kernel.name for kernel in kernels] == [kernel.name for kernel in self.kernels]
        return same_names and [_key(kernel, digests) for kernel in kernels] == self.keys

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays that it holds once it has been used; on a GPU but for 4 bytes a pixel of the row sums."""
        return _bytes_of([self.filters, self._engines, self.mask])

    @cached_property
    def _engines(self) -> list[Engine] | None:
        """One pass over all kernels an image, where every filter has a structure for it."""
        structured = [gaussian for gaussian in self.filters if isinstance(gaussian, StructuredFilter)]
        if len(structured) < len(self.filters) or not structured:
            return None
        first = structured[0]

        def engine_of(i: int) -> Engine:
            parts, valid = [gaussian.parts[i] for gaussian in structured], [gaussian.valid_BP[i] for gaussian in structured]
            return Engine(parts, valid, self.size, first.num_threads, first.dtype)

        return each_image(engine_of, self.num_images, threads_each=first.num_threads)

    def mean_field(
        self,
        unary_logits_BCP: Tensor,
        *,
        matrices_KCC: Tensor,
        num_iterations: int,
        log_bandwidths: Sequence[Tensor] | None = None,
        probabilities: bool = False,
        symmetric: bool = False,
    ) -> Tensor:
        """mean_field.mean_field with these filters, in the fastest way there is for them.

        Args:
            unary_logits_BCP: as there.
            matrices_KCC: as there.
            num_iterations: as there.
            log_bandwidths: of each kernel, in the order of `Kernel.bandwidths`, to differentiate by.
            probabilities: return softmax over C of the logits.
            symmetric: divide by the roots of the row sums before and after; not beside `log_bandwidths`.
        """
        if log_bandwidths is None and self._engines is not None and num_iterations > 0:
            return fused_mean_field(
                unary_logits_BCP, self._engines, matrices_KCC=matrices_KCC, num_iterations=num_iterations,
                probabilities=probabilities, symmetric=symmetric,
            )  # fmt: skip
        filters = [SymmetricFilter(gaussian) for gaussian in self.filters] if symmetric else self.filters
        logits_BCP = mean_field(
            unary_logits_BCP, filters, matrices_KCC=matrices_KCC, num_iterations=num_iterations,
            log_bandwidths=None if log_bandwidths is None else self._by_feature(log_bandwidths),
        )  # fmt: skip
        return logits_BCP.softmax(1) if probabilities else logits_BCP

    def _by_feature(self, log_bandwidths: Sequence[Tensor]) -> list[Tensor]:
        for kernel, gaussian in zip(self.kernels, self.filters, strict=True):
            if not hasattr(gaussian, "bandwidth_gradient"):
                raise InputError(
                    f"kernel {kernel.name!r}: filter {self.filter_names[kernel.name]!r} has no derivative by bandwidths; "
                    "allowed: 'exact', 'block_sparse', or torch.no_grad(), where none is needed"
                )
        return [log_G[torch.tensor(groups, device="cpu")] for log_G, groups in zip(log_bandwidths, self.groups, strict=True)]

    def __repr__(self) -> str:
        """Which filter each kernel got."""
        H, W = self.size
        return f"PreparedImages({self.num_images} of {H} x {W}, filters={self.filter_names})"


def _key(kernel: Kernel, digests: Mapping[str, str]) -> Key:
    guides = tuple((name, bandwidth, digests[name]) for name, bandwidth in kernel.guides.items())
    return kernel.position, guides, digests.get(MASK, "")


def _bytes_of(root: Any) -> int:
    """Bytes of all arrays and tensors reached from `root` through containers and attributes, shared ones once."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        found = waiting.pop()
        while isinstance(found, np.ndarray) and isinstance(found.base, np.ndarray | Tensor):  # numba's own have another base
            found = found.base
        if isinstance(found, Tensor) and found.layout == torch.sparse_csr:
            waiting += [found.crow_indices(), found.col_indices(), found.values()]
            continue
        identity = found.untyped_storage().data_ptr() if isinstance(found, Tensor) else id(found)
        if identity in seen:
            continue
        seen.add(identity)
        if isinstance(found, Tensor):
            total += found.untyped_storage().nbytes()
        elif isinstance(found, np.ndarray):
            total += found.nbytes
        elif isinstance(found, Mapping):
            waiting += found.values()
        elif isinstance(found, list | tuple):
            waiting += found
        elif hasattr(found, "__dict__") and not isinstance(found, type):
            waiting += vars(found).values()
    return total
