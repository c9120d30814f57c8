"""What the CRF makes of a batch of images before it looks at any logits: a filter a kernel.

Not here: weights (dense_crf.py).
"""

# B images, C classes, P pixels (H*W, row-major), K kernels

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from torch import Tensor

from jointseg.crf.cpu.engine import Engine
from jointseg.crf.cpu.fused import fused_mean_field
from jointseg.crf.filters import BuildFilter, Features, FilterName, GaussianFilter, StructuredFilter, build_filter
from jointseg.crf.kernels import Kernel, kernel_features
from jointseg.crf.mean_field import mean_field


class PreparedImages:
    """The filters of a batch of images, for any logits, any weights and any number of iterations.

    It holds for the kernels' bandwidths, and for the number of threads that torch had when it was made.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        guides: Mapping[str, Tensor],
        *,
        size: tuple[int, int],
        valid: Mapping[str, Tensor],
        filter: FilterName | BuildFilter,
    ) -> None:
        """Build a filter for each kernel.

        Args:
            kernels: those to build.
            guides: floating-point channels by name, (B, channels, H, W).
            size: H, W.
            valid: by guide, (B, P), bool: which pixels have one. A guide that is not among them is everywhere.
            filter: a name, or what builds a filter.
        """
        self.kernels, self.size = tuple(kernels), size
        any_guide = next(iter(guides.values()))
        self.num_images, self.dtype, self.device = len(any_guide), any_guide.dtype, any_guide.device
        features = [
            Features(values_BPF=kernel_features(kernel, guides, size=size), size=size, valid_BP=valid.get(kernel.guide or ""))
            for kernel in self.kernels
        ]
        built = [build_filter(filter, of_kernel) for of_kernel in features]
        self.filter_names = {kernel.name: name for kernel, (name, _) in zip(self.kernels, built, strict=True)}
        self.filters: list[GaussianFilter] = [gaussian for _, gaussian in built]

    @cached_property
    def _engines(self) -> list[Engine] | None:
        """One pass over all kernels an image, where every filter has a structure for it."""
        structured = [gaussian for gaussian in self.filters if isinstance(gaussian, StructuredFilter)]
        if len(structured) < len(self.filters):
            return None
        first = structured[0]
        return [
            Engine(
                [gaussian.parts[i] for gaussian in structured],
                [np.ascontiguousarray(gaussian.valid_BP[i]) for gaussian in structured],
                self.size, first.num_threads, first.dtype,
            )
            for i in range(self.num_images)
        ]  # fmt: skip

    def mean_field(self, unary_logits_BCP: Tensor, *, matrices_KCC: Tensor, num_iterations: int) -> Tensor:
        """mean_field.mean_field with these filters, in the fastest way there is for them."""
        engines = self._engines
        if engines is None or num_iterations == 0:
            return mean_field(unary_logits_BCP, self.filters, matrices_KCC=matrices_KCC, num_iterations=num_iterations)
        return fused_mean_field(unary_logits_BCP, engines, matrices_KCC=matrices_KCC, num_iterations=num_iterations)

    def __repr__(self) -> str:
        """Which filter each kernel got."""
        H, W = self.size
        return f"PreparedImages({self.num_images} of {H} x {W}, filters={self.filter_names})"


def valid_pixels(depth: Tensor | None) -> dict[str, Tensor]:
    """Which pixels have a depth: those above 0."""
    return {} if depth is None or bool((depth > 0).all()) else {"depth": (depth > 0).flatten(1)}
