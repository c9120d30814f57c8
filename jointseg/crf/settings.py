"""The settings of the dense CRF, in the paper's symbols. Not here: what they do (dense_crf.py, mean_field.py)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jointseg.settings import Settings, with_overrides


class CrfSettings(Settings):
    """Bandwidths, initial weights and inference of the fully connected CRF (Eq 5-7), defaults as the paper found them."""

    theta_alpha: float = Field(160.0, gt=0)
    """Position bandwidth of the appearance kernel, theta_alpha, in pixels."""
    theta_beta: float = Field(3.0, gt=0)
    """Colour bandwidth of the appearance kernel, theta_beta, in RGB levels 0..255."""
    theta_gamma: float = Field(50.0, gt=0)
    """Position bandwidth of the depth kernel, theta_gamma, in pixels."""
    theta_zeta: float = Field(0.2, gt=0)
    """Depth bandwidth of the depth kernel, theta_zeta, in metres."""
    theta_tau: float = Field(3.0, gt=0)
    """Position bandwidth of the smoothness kernel, theta_tau, in pixels."""
    w_appearance: float = Field(7.0, ge=0)
    """Initial weight of the appearance kernel, w(1)."""
    w_depth: float = Field(4.0, ge=0)
    """Initial weight of the depth kernel, w(2)."""
    w_smoothness: float = Field(3.0, ge=0)
    """Initial weight of the smoothness kernel, w(3)."""
    num_iterations: int = Field(10, ge=0)
    """Mean-field iterations; 0 means no CRF. CRF-as-RNN tests with 10 and trains with 5."""
    pairwise: Literal["crfrnn", "hadamard"] = "crfrnn"
    """How C x C weights meet the compatibility: `crfrnn` multiplies matrices, `hadamard` is Eq 6-7 to the letter."""

    def scaled(self, factor: float) -> CrfSettings:
        """The same settings for an image `factor` times as large: position bandwidths (pixels) times `factor`."""
        positions = {name: getattr(self, name) * factor for name in ("theta_alpha", "theta_gamma", "theta_tau")}
        return with_overrides(self, positions)
