"""The numbers that the paper prints in its Tables 2 and 3, its own and its rivals', as data.

Not here: the settings it found (crf/settings.py has them as defaults), what this code reaches (a run's report).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Metrics: TypeAlias = Mapping[str, float]

TABLE3_METRICS = ("mean_iou", "mean_accuracy", "pixel_accuracy")
"""Columns of Table 3, shares of 1 here and percent in print; higher is better."""
TABLE2_METRICS = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "si_log_std", "si_log_var")
"""Lines of Table 2, its last one as both a standard deviation and a variance. Of the deltas higher is better."""
HIGHER_IS_BETTER = frozenset({*TABLE3_METRICS, "delta1", "delta2", "delta3"})

ROW_NAMES: Mapping[str, str] = {
    "unary_sem": "Unary-Sem",
    "unary_sem_depth": "Unary-Sem+Depth",
    "sem_crf": "Sem-CRF",
    "sem_crf_plus": "Sem-CRF+",
}
"""The paper's four rows, in its order, as it names them (without "Ours-")."""

NUM_TEST_FRAMES = 654
"""Frames that both tables are taken over: NYUv2's whole test split."""


def _segmentation(mean_iou: float | None, mean_accuracy: float, pixel_accuracy: float) -> Metrics:
    """A row of Table 3, from percent to shares; what it leaves out is left out."""
    percent = zip(TABLE3_METRICS, (mean_iou, mean_accuracy, pixel_accuracy), strict=True)
    return {name: round(value / 100, 3) for name, value in percent if value is not None}


TABLE3: Mapping[str, Metrics] = {
    "unary_sem": _segmentation(36.0, 49.1, 66.0),
    "unary_sem_depth": _segmentation(36.5, 49.2, 66.6),
    "sem_crf": _segmentation(38.4, 51.2, 68.0),
    "sem_crf_plus": _segmentation(39.2, 52.3, 68.6),
}
"""The paper's own rows."""

TABLE3_RIVALS: Mapping[str, Metrics] = {
    "Deng et al., RGB-D": _segmentation(None, 31.5, 63.8),
    "FCN, RGB": _segmentation(29.2, 42.2, 60.0),
    "FCN + Depth, RGB-D": _segmentation(34.0, 46.1, 65.4),
    "Eigen & Fergus, RGB": _segmentation(34.1, 45.1, 65.6),
}
"""What the paper compares itself with, and what goes in."""

TABLE2: Mapping[str, Metrics] = {
    "sem_crf_plus": {
        "delta1": 0.568,
        "delta2": 0.856,
        "delta3": 0.956,
        "abs_rel": 0.200,
        "sq_rel": 0.301,
        "rmse": 0.816,
        "rmse_log": 0.314,
        # Printed as an RMSE. As a standard deviation it would leave a bias of .308 in log depth, more than delta1's bound
        # of .223, and so far too few pixels within it; as a variance (std .247, bias .194) it agrees with the other lines.
        "si_log_var": 0.061,
    }
}
"""The one depth column that the paper prints, "Ours", set beside its final model; it does not say of which row it is."""

TABLE2_RIVALS: Mapping[str, Metrics] = {
    "Eigen & Fergus": {
        "delta1": 0.769,
        "delta2": 0.950,
        "delta3": 0.988,
        "abs_rel": 0.158,
        "sq_rel": 0.121,
        "rmse": 0.641,
        "rmse_log": 0.214,
        # Above rmse_log squared (.046), as no variance can be: this one is the standard deviation.
        "si_log_std": 0.171,
    },
    "Liu et al.": {"delta1": 0.614, "delta2": 0.883, "delta3": 0.971, "abs_rel": 0.230, "rmse": 0.824},
}
"""What the paper compares its depth with."""
