"""The kernels of the CRF as data, the paper's (Eq 7) and anybody's own, and the features each compares pixels by.

Not here: how messages are filtered (filters/) and how they are weighed (mean_field.py).
"""

# B images, P pixels (H*W, row-major), F kernel features

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jointseg.crf.settings import CrfSettings


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """exp(-|p_i - p_j|^2 / (2 position^2) - sum_g |g_i - g_j|^2 / (2 guides[g]^2)), over the guides that it names."""

    name: str
    weight: float
    """Initial weight w(k)."""
    position: float
    """Bandwidth of the position, pixels."""
    guides: Mapping[str, float] = field(default_factory=dict)
    """What is compared beside the position, and its bandwidth in its own unit: `image` (RGB levels 0..255), `depth` (metres),
    or any other name but `mask` and `position` that `DenseCRF` is given as one of `guides`."""

    def __post_init__(self) -> None:
        """Keep a copy of the guides: the caller's may change."""
        if isinstance(self.guides, Mapping):
            object.__setattr__(self, "guides", dict(self.guides))

    def __hash__(self) -> int:
        return hash((self.name, self.weight, self.position, frozenset(self.guides.items())))

    @property
    def bandwidths(self) -> tuple[float, ...]:
        """The position's, then the guides': what a structure built for this kernel depends on."""
        return (self.position, *self.guides.values())

    @property
    def bandwidths_named(self) -> str:
        """The same for messages: `position 3, image 10`."""
        return ", ".join(f"{name} {bandwidth:.8g}" for name, bandwidth in {"position": self.position, **self.guides}.items())

    @property
    def needs_depth_alone(self) -> bool:
        """Whether depth is all that it compares beside the position: without depth such a kernel is left out."""
        return tuple(self.guides) == ("depth",)

    def compares_as(self, other: Kernel) -> bool:
        """Whether it compares pixels as `other` does: the same guides in one order, at the same bandwidths but for rounding.

        Learned ones begin a rounding off their settings: they are logarithms in float32.
        """
        if list(self.guides) != list(other.guides):
            return False
        pairs = zip(self.bandwidths, other.bandwidths, strict=True)
        return all(math.isclose(own, others, rel_tol=1e-6) for own, others in pairs)

    def with_bandwidths(self, bandwidths: Sequence[float]) -> Kernel:
        """The same kernel with other bandwidths, in the order of `bandwidths`."""
        position, *others = bandwidths
        return replace(self, position=position, guides=dict(zip(self.guides, others, strict=True)))


def paper_kernels(settings: CrfSettings) -> tuple[Kernel, ...]:
    """Eq 7: appearance, depth and smoothness, with their bandwidths and initial weights."""
    s = settings
    return (
        Kernel(name="appearance", weight=s.w_appearance, position=s.theta_alpha, guides={"image": s.theta_beta}),
        Kernel(name="depth", weight=s.w_depth, position=s.theta_gamma, guides={"depth": s.theta_zeta}),
        Kernel(name="smoothness", weight=s.w_smoothness, position=s.theta_tau),
    )


def kernel_features(kernel: Kernel, guides: Mapping[str, Tensor], *, like: Tensor) -> Tensor:
    """What `kernel` compares, in units of its bandwidths.

    Args:
        kernel: the kernel; its guides must be among `guides`.
        guides: channels by name, each (B, channels, H, W), in raw units.
        like: (B, any, H, W), of the dtype and on the device that the features get.

    Returns:
        (B, P, F): x, y, then the guides' channels; detached.
    """
    B, _, H, W = like.shape
    y_HW, x_HW = torch.meshgrid(torch.arange(H, device=like.device), torch.arange(W, device=like.device), indexing="ij")
    parts = [torch.stack([x_HW, y_HW]).to(like.dtype).expand(B, -1, -1, -1) / kernel.position]
    parts += [guides[name].detach().to(like.dtype) / bandwidth for name, bandwidth in kernel.guides.items()]
    return torch.cat(parts, dim=1).flatten(2).mT


def feature_groups(kernel: Kernel, guides: Mapping[str, Tensor]) -> list[int]:
    """For each of `kernel_features`, which of `kernel.bandwidths` divides it."""
    channels = [2, *(guides[name].shape[1] for name in kernel.guides)]
    return [group for group, count in enumerate(channels) for _ in range(count)]
