"""One trial that trains: a short stage 3 through Ray Train from a point's settings, scored on the validation frames.

Not here: trials of the CRF alone (trial.py), training itself (pipeline/train.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from jointseg.checkpoint import load_final
from jointseg.config import Config
from jointseg.data.store import Store
from jointseg.evaluation import predict
from jointseg.model import trained_model
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.log_lines import Line
from pipeline.shares import shared_out, shares_of
from pipeline.study.spaces import Point
from pipeline.study.trial import Counted, OneStep, TrialJob, frame_sums, run_trial
from pipeline.study.trial_record import UNSAVED, FrameSums
from pipeline.train import train_stage
from pipeline.workspace import Workspace

STAGE = STAGES["stage3"]


def run_finetune(job: TrialJob, number: int, point: Point) -> Line:
    """Train and score a point, as `run_trial`; needs Ray. Interrupted, it goes on from the training's newest checkpoint.

    The training has a folder of its own in the study's, which goes when the trial has ended.
    """
    place = Workspace(job.folder / "finetune" / f"trial-{number:04d}")
    line = run_trial(job, number, point, lambda: _count(job, point, place))
    if line["state"] != UNSAVED:
        shutil.rmtree(place.out, ignore_errors=True)
    return line


def _count(job: TrialJob, point: Point, place: Workspace) -> Counted:
    config = with_overrides(job.config, {**point, "stage3.iterations": job.config.search.finetune_iterations})
    _lend(Workspace(job.out), place, job.store)
    train_stage(config, STAGE, place, validation=(), tell=_ignore, say=_ignore)
    frames = job.cache.frames
    scoring = partial(_scoring, config, place.final(STAGE), job.store)
    found = dict(shared_out(scoring, shares_of(frames), config=config, say=_ignore))
    return Counted(list(range(len(frames))), [sums for part in sorted(found) for sums in found[part]])


def _ignore(_: object) -> None:
    """A trial's own steps are not shown: there may be several at once."""


def _lend(run: Workspace, place: Workspace, store: Path) -> None:
    """Give a trial's folder what stage 3 starts from, without a copy."""
    assert STAGE.starts_from is not None
    start = STAGES[STAGE.starts_from]
    for own, lent in (
        (place.store, store),
        (place.views, run.views),
        (place.features, run.features),
        (place.final(start), run.final(start)),
    ):
        own.parent.mkdir(parents=True, exist_ok=True)
        if not own.is_symlink():
            own.symlink_to(lent.resolve())


def _scoring(config: Config, weights: Path, store: Path, device: torch.device) -> Callable[[tuple[int, ...]], list[FrameSums]]:
    model, opened = trained_model(config, load_final(weights), device=device), Store.open(store)

    def score(frames: tuple[int, ...]) -> list[FrameSums]:
        predictions = predict(
            model, map(opened.frame, frames), config, kernels=STAGE.kernels, with_depth=STAGE.with_depth, device=device
        )
        return [frame_sums(prediction.labels, frame.labels, config) for frame, prediction in predictions]

    return score


class FinetuneTrial(OneStep):
    """A trial that trains. Its process waits for the training."""

    def score(self) -> Line:
        """Train and score."""
        return run_finetune(self.job, self.asked["trial"], self.asked["point"])
