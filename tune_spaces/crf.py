"""All of the CRF: the eight numbers of the paper's section 4.1, the pairwise form and the number of iterations."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from tune_spaces import crf_bandwidths, crf_weights


def space() -> dict[str, BaseDistribution]:
    """The two parts joined, and how inference runs.

    Iterations from 1 to 15: the paper names none, CRF-as-RNN tests with 10; time grows with them, and beyond 15 labels hardly
    move. The two pairwise forms are one until their weights are trained, so a search of the CRF alone cannot tell them
    apart: what importance it gives the form is the noise to read the others against.
    """
    return {
        **crf_weights.space(),
        **crf_bandwidths.space(),
        "crf/num_iterations": IntDistribution(1, 15),
        "crf/pairwise": CategoricalDistribution(["crfrnn", "hadamard"]),
    }
