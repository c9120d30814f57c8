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


FAR = 1024
"""Bandwidths from 0, from where on float32 tells neighbours apart less well than the filters do."""


def kernel_features(kernel: Kernel, guides: Mapping[str, Tensor], *, like: Tensor, valid_BP: Tensor | None = None) -> Tensor:
    """What `kernel` compares, in units of its bandwidths.

    Args:
        kernel: the kernel; its guides must be among `guides`.
        guides: channels by name, each (B, channels, H, W), in raw units.
        like: (B, any, H, W), of the dtype and on the device that the features get.
        valid_BP: (B, P), which pixels take part; None: all.

    Returns:
        (B, P, F): x, y, then the guides' channels, each of them moved as a whole where it is far from 0; detached.
    """
    B, _, H, W = like.shape
    y_HW, x_HW = torch.meshgrid(torch.arange(H, device=like.device), torch.arange(W, device=like.device), indexing="ij")
    parts = [torch.stack([x_HW, y_HW]).to(like.dtype).expand(B, -1, -1, -1) / kernel.position]
    for name, bandwidth in kernel.guides.items():
        guide = guides[name].detach()
        if guide.dtype.is_floating_point and name != "image":  # levels 0..255 are near 0
            guide = _near_zero(guide.to(like.dtype), bandwidth, valid_BP)
        parts.append(guide.to(like.dtype) / bandwidth)
    return torch.cat(parts, dim=1).flatten(2).mT


def _near_zero(guide: Tensor, bandwidth: float, valid_BP: Tensor | None) -> Tensor:
    """A guide (B, channels, H, W) with the middle of a channel's range subtracted where that is far from 0.

    Differences alone count, and between numbers such as a map's coordinates a division would round them away.
    """
    values = guide.flatten(2)
    if valid_BP is None:
        low, high = values.amin(2), values.amax(2)
    else:
        out_B1P = ~valid_BP[:, None]
        low, high = values.masked_fill(out_B1P, math.inf).amin(2), values.masked_fill(out_B1P, -math.inf).amax(2)
    middle = (low / 2 + high / 2)[..., None, None]
    far = (middle.abs() > FAR * bandwidth) & middle.isfinite()  # no number: of an image where no pixel takes part
    if guide.device.type == "cpu" and not far.any():
        return guide
    return torch.where(far, guide - middle, guide)


def feature_groups(kernel: Kernel, guides: Mapping[str, Tensor]) -> list[int]:
    """For each of `kernel_features`, which of `kernel.bandwidths` divides it."""
    channels = [2, *(guides[name].shape[1] for name in kernel.guides)]
    return [group for group, count in enumerate(channels) for _ in range(count)]
