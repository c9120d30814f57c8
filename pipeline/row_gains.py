"""What each row of the tables is above the one it is read against, in mean IoU on the same frames, with an interval.

Not here: the rows (evaluate.py), gains of CRF settings that are not trained (score.py), what a report says
(reporting/tables.py).
"""

# N frames, C classes

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jointseg.config import Config
from jointseg.cross_validation import paired_bootstrap
from jointseg.data.views import scenes_of

COMPARED = (
    ("unary_sem_depth", "unary_sem"),
    ("sem_crf", "unary_sem_depth"),
    ("sem_crf_plus", "unary_sem_depth"),
    ("sem_crf_plus", "sem_crf"),
)
"""Each row with the one it is read against: depth added, a CRF added, the depth kernel added."""


def row_gains(
    confusion_NCC: Mapping[str, NDArray[np.int64]], frames: Sequence[int], config: Config
) -> dict[str, dict[str, dict[str, float]]]:
    """Of each row of `COMPARED`, by the other row: `difference`, `low` and `high`, shares of 1.

    The intervals are of the frames, for these networks: trained from another seed they would differ too.

    Args:
        confusion_NCC: of each row, a matrix a frame.
        frames: their numbers, rising.
        config: the run's; its `evaluation.absent_classes`, and the resamples and the seed of its search.
    """
    gains: dict[str, dict[str, dict[str, float]]] = {}
    for row, other in COMPARED:
        if row in confusion_NCC and other in confusion_NCC and len(frames) > 1:
            found = paired_bootstrap(
                confusion_NCC[row], confusion_NCC[other],
                absent=config.evaluation.absent_classes, num_resamples=config.search.resamples, seed=config.search.seed,
                groups=scenes_of(frames, config.data),
            )  # fmt: skip
            gains.setdefault(row, {})[other] = found._asdict()
    return gains
