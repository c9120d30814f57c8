"""One trial: the CRF alone, with one point's settings, on the cached unaries of every validation frame.

Not here: which points are tried (samplers.py), on how many processes (study.py).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ray import tune

from jointseg.boundary import BoundarySums
from jointseg.config import Config
from jointseg.crf.reuse import PreparedCache
from jointseg.errors import InputError
from jointseg.evaluation import refined_labels, score_labels
from jointseg.metrics import crop
from jointseg.model import build_crf
from jointseg.settings import with_overrides
from pipeline.log_lines import Line
from pipeline.samplers import OBJECTIVES
from pipeline.spaces import Point
from pipeline.trial_record import FAILED, FINISHED, FrameSums, confusion_file, scores_of, write_confusions
from pipeline.unaries import UnaryCache, row_of, subset_labels

MIB = 2**20


@dataclass(frozen=True)
class TrialJob:
    """What every trial shares; paths are absolute and readable on every node."""

    config: Config
    store: Path
    cache: UnaryCache
    folds: tuple[int, ...]
    """Of each frame of `cache`."""
    folder: Path
    """The study's."""


class TrialRunner:
    """Scores point after point in one process, with the filters that the points before it left."""

    def __init__(self, job: TrialJob) -> None:
        """Map the unaries and load the true labels, once a process."""
        settings = job.config.search
        torch.set_num_threads(settings.cpus_per_trial)
        self.job = job
        self.arrays = job.cache.arrays()
        self.labels = subset_labels(job.store, job.cache.frames)
        self.prepared = PreparedCache(settings.filter_cache * MIB)

    def run(self, number: int, point: Point) -> Line:
        """Score a point, leave its confusion matrices in the study's folder, and return its scores.

        A point that the CRF refuses, or whose score is no number, has failed: `state` and `error` say so.
        """
        job = self.job
        started, clock = datetime.now(UTC), time.perf_counter()
        scores: Line = {"mean_iou": None, "fold_scores": None, "boundary_f1": None}
        error = None
        try:
            sums = self.score(point)
            found = scores_of(sums, job.folds, job.config.evaluation)
            for objective in OBJECTIVES[job.config.search.objective]:
                if math.isnan(found.get(objective, 0.0)):
                    raise InputError(f"{objective} is not a number: no labelled pixel was scored")
            write_confusions(confusion_file(job.folder, number), number, job.cache.frames, job.folds, sums)
            scores = found
        except InputError as refused:
            error = str(refused)
        return {
            "trial": number,
            "state": FINISHED if error is None else FAILED,
            **scores,
            "seconds": round(time.perf_counter() - clock, 4),
            "started": started.isoformat(),
            "error": error,
            "point": point,
        }

    def score(self, point: Point) -> list[FrameSums]:
        """The sums of each frame.

        Raises:
            InputError: the CRF cannot have these settings.
        """
        config = with_overrides(self.job.config, point)
        crf, evaluation = build_crf(config).eval(), config.evaluation
        with_boundary = "boundary_f1" in config.search.objective
        sums = []
        for row, truth in enumerate(self.labels):
            unaries = row_of(self.arrays, row)
            prepared = self.prepared.prepare(row, crf, image=unaries.image[None], depth=unaries.depth[None])
            labels = refined_labels(unaries, crf, size=(truth.shape[0], truth.shape[1]), prepared=prepared)
            own, true = crop(labels, evaluation.crop), crop(truth, evaluation.crop)
            boundary = BoundarySums.from_labels(own, true) if with_boundary else None
            sums.append(FrameSums(score_labels(labels, truth, evaluation), boundary))
        return sums


class CrfTrial(tune.Trainable):  # type: ignore[misc]
    """A trial as Ray Tune sees it: one step. Its process serves trial after trial."""

    def setup(self, config: dict[str, Any], job: TrialJob | None = None) -> None:
        """Make ready, once a process."""
        assert job is not None
        self.runner = TrialRunner(job)
        self.asked = config

    def step(self) -> dict[str, Any]:
        """Score the point. Its line goes as text: Tune would flatten it."""
        return {"line": json.dumps(self.runner.run(self.asked["trial"], self.asked["point"])), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next point in the same process."""
        self.asked = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is one step: there is nothing to go on from."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was saved."""
