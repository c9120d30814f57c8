"""The trainings of the paper as data: what each starts from, and what it trains.

Not here: the loop (training.py), rates and iterations (config.py: stage1, stage2, stage3, one_stage).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from jointseg.config import Config, StageConfig


class Kernels(Enum):
    """Which kernels of Eq 7 the CRF has."""

    NONE = "none"
    """No CRF: the network's own logits."""
    SEM_CRF = "sem_crf"
    """Appearance and smoothness (kernels 1 and 3)."""
    SEM_CRF_PLUS = "sem_crf_plus"
    """All three, the second on the estimated depth."""


@dataclass(frozen=True)
class Stage:
    """One training. `row` is the row of Table 3 that its weights stand for, or what else to call it."""

    name: str
    row: str
    settings: str
    starts_from: str | None
    with_depth: bool
    kernels: Kernels

    def config(self, config: Config) -> StageConfig:
        """This stage's rates and iterations in `config`."""
        stage: StageConfig = getattr(config, self.settings)
        return stage

    @property
    def num_before(self) -> int:
        """How many trainings its starting weights have been through."""
        return 0 if self.starts_from is None else 1 + STAGES[self.starts_from].num_before


STAGES = {
    stage.name: stage
    for stage in (
        Stage("stage1", "unary_sem", "stage1", None, with_depth=False, kernels=Kernels.NONE),
        Stage("stage2", "unary_sem_depth", "stage2", "stage1", with_depth=True, kernels=Kernels.NONE),
        Stage("stage3_sem_crf", "sem_crf", "stage3", "stage2", with_depth=True, kernels=Kernels.SEM_CRF),
        Stage("stage3", "sem_crf_plus", "stage3", "stage2", with_depth=True, kernels=Kernels.SEM_CRF_PLUS),
    )
}
"""The trainings of the pipeline, a row of Table 3 each."""

ONE_STAGE = Stage("one_stage", "one_stage", "one_stage", None, with_depth=True, kernels=Kernels.NONE)
"""What the paper compares stages 1 and 2 with: both tasks from the start. It has no row; its curves are what it is for."""

TRAININGS = {**STAGES, ONE_STAGE.name: ONE_STAGE}
"""Every training there is."""
