"""Initial weights of the three kernels, w(1), w(2), w(3)."""

from __future__ import annotations

from optuna.distributions import FloatDistribution


def space() -> dict[str, FloatDistribution]:
    """A tenth to three times the paper's 7, 4, 3, on a log scale: a kernel may all but vanish, or rule."""
    return {
        "crf/w_appearance": FloatDistribution(0.7, 21.0, log=True),
        "crf/w_depth": FloatDistribution(0.4, 12.0, log=True),
        "crf/w_smoothness": FloatDistribution(0.3, 9.0, log=True),
    }
