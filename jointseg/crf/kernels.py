"""The kernels of the paper's CRF (Eq 7) as data, and the features each compares pixels by.

Not here: how messages are filtered (filters/) and how they are weighed (mean_field.py).
"""

# B images, P pixels (H*W, row-major), F kernel features

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jointseg.crf.settings import CrfSettings


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """exp(-|p_i - p_j|^2 / (2 position^2) - |g_i - g_j|^2 / (2 guide_bandwidth^2)), where g is what `guide` names."""

    name: str
    weight: float
    """Initial weight w(k)."""
    position: float
    """Bandwidth of the position, pixels."""
    guide: Literal["image", "depth"] | None = None
    """What is compared beside the position: `image` (three channels), `depth` (one) or nothing."""
    guide_bandwidth: float = 1.0
    """Bandwidth of the guide, in its own unit: RGB levels 0..255, or metres."""

    @property
    def bandwidths(self) -> tuple[float, ...]:
        """All of them: what a structure built for this kernel depends on."""
        return (self.position,) if self.guide is None else (self.position, self.guide_bandwidth)


def paper_kernels(settings: CrfSettings) -> tuple[Kernel, ...]:
    """Eq 7: appearance, depth and smoothness, with their bandwidths and initial weights."""
    s = settings
    return (
        Kernel(name="appearance", weight=s.w_appearance, position=s.theta_alpha, guide="image", guide_bandwidth=s.theta_beta),
        Kernel(name="depth", weight=s.w_depth, position=s.theta_gamma, guide="depth", guide_bandwidth=s.theta_zeta),
        Kernel(name="smoothness", weight=s.w_smoothness, position=s.theta_tau),
    )


def kernel_features(kernel: Kernel, guides: Mapping[str, Tensor], *, size: tuple[int, int]) -> Tensor:
    """What `kernel` compares, in units of its bandwidths.

    Args:
        kernel: the kernel; its guide must be among `guides`.
        guides: floating-point channels by name, each (B, channels, H, W), in raw units.
        size: H, W.

    Returns:
        (B, P, F): x, y, then the guide's channels; detached.
    """
    H, W = size
    any_guide = next(iter(guides.values()))
    y_HW, x_HW = torch.meshgrid(
        torch.arange(H, dtype=any_guide.dtype, device=any_guide.device),
        torch.arange(W, dtype=any_guide.dtype, device=any_guide.device),
        indexing="ij",
    )
    position_BFHW = torch.stack([x_HW, y_HW]).expand(any_guide.shape[0], -1, -1, -1) / kernel.position
    if kernel.guide is None:
        features_BFHW = position_BFHW
    else:
        features_BFHW = torch.cat([position_BFHW, guides[kernel.guide].detach() / kernel.guide_bandwidth], dim=1)
    return features_BFHW.flatten(2).mT
