"""Bandwidths of the three kernels, theta."""

from __future__ import annotations

from optuna.distributions import FloatDistribution


def space() -> dict[str, FloatDistribution]:
    """One to three octaves to either side of the paper's 160, 3, 50, 0.2, 3, on log scales.

    Upwards more for colour and the short positions, where the paper's values are near the narrow end: theta_beta = 3 of
    256 levels is below most images' noise between neighbours, theta_zeta = 0.2 m is little more than one depth bin.
    Downwards more for theta_alpha: at 513 x 513 the best of a study lay at 43 .. 61 (docs/search.md), where its range began.
    """
    return {
        "crf/theta_alpha": FloatDistribution(20.0, 320.0, log=True),
        "crf/theta_beta": FloatDistribution(1.5, 24.0, log=True),
        "crf/theta_gamma": FloatDistribution(12.0, 200.0, log=True),
        "crf/theta_zeta": FloatDistribution(0.05, 1.6, log=True),
        "crf/theta_tau": FloatDistribution(1.0, 24.0, log=True),
    }
