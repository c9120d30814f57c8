"""Initial weights and bandwidths of the CRF together: all eight numbers of the paper's section 4.1."""

from __future__ import annotations

from optuna.distributions import BaseDistribution

from tune_spaces import crf_bandwidths, crf_weights


def space() -> dict[str, BaseDistribution]:
    """The two parts joined."""
    return {**crf_weights.space(), **crf_bandwidths.space()}
