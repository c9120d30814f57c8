"""One trial: the CRF alone, with one point's settings, on the cached unaries of every validation frame.

Not here: which points are tried (samplers.py), on how many processes (study.py), trials that train (finetune.py).
"""

from __future__ import annotations

import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ray import tune

from jointseg.boundary import BoundarySums
from jointseg.config import Config
from jointseg.crf.reuse import PreparedCache
from jointseg.cross_validation import is_behind
from jointseg.data.views import scenes_of
from jointseg.errors import InputError, OutOfRangeError
from jointseg.evaluation import labels_at_full_size, score_labels
from jointseg.hardware import usable_cpus, usable_memory
from jointseg.metrics import crop
from jointseg.model import build_crf
from jointseg.search_config import SearchConfig
from jointseg.settings import SettingsError, with_overrides
from pipeline.failures import first_sentence, lacks_device_memory
from pipeline.log_lines import Line
from pipeline.study.samplers import OBJECTIVES
from pipeline.study.spaces import Point
from pipeline.study.trial_record import (
    FAILED,
    FINISHED,
    STOPPED,
    UNSAVED,
    FrameSums,
    confusion_file,
    read_confusions,
    scores_of,
    write_confusions,
)
from pipeline.study.unaries import UnariesOnDevice, UnaryCache, on_this_node, subset_labels

MIB = 2**20
ON_GPU_AT_ONCE = 5
"""Frames that a GPU works on together: one alone leaves it waiting for the next launch much of the time."""
_SHARE_FOR_UNARIES = 1 / 4
"""Of a trial's part of a GPU's memory."""
_SHARE_FOR_FILTERS = 1 / 4
"""Of a machine's memory, for the filters that all its processes keep."""


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
    out: Path
    """The run's."""


class Counted(NamedTuple):
    """What a trial counted: all frames, or those of the first folds where it was stopped."""

    places: list[int]
    """Of the frames in the subset, rising."""
    sums: list[FrameSums]


def run_trial(job: TrialJob, number: int, point: Point, count: Callable[[], Counted]) -> Line:
    """Score a point, leave its confusion matrices in the study's folder, and return its line of the log.

    A point that is refused, or leads out of the range of numbers or of a filter, has failed: `state` and `error` say so.
    Whatever else is wrong, such as a full disk or a missing file, says nothing about the point: the trial is unsaved. So it is
    where a GPU's memory is full.

    Args:
        job: of all trials.
        number: of this one.
        point: its settings.
        count: does the work.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    state, error = FAILED, None
    scores: Line = {"mean_iou": None, "fold_scores": None, "boundary_f1": None}
    try:
        places, sums = count()
        frames, folds = [job.cache.frames[place] for place in places], [job.folds[place] for place in places]
        found = scores_of(sums, folds, job.config.evaluation)
        for objective in OBJECTIVES[job.config.search.objective]:
            if math.isnan(found.get(objective, 0.0)):
                raise OutOfRangeError(f"{objective} is not a number: no labelled pixel was scored")
        write_confusions(
            confusion_file(job.folder, number), number, frames, folds, sums, absent=job.config.evaluation.absent_classes
        )
        state = FINISHED if len(places) == len(job.cache.frames) else STOPPED
        scores = found if state == FINISHED else {**found, "mean_iou": None, "partial_mean_iou": found["mean_iou"]}
    except (SettingsError, OutOfRangeError) as refused:
        error = str(refused)
    except InputError as failure:
        state, error = UNSAVED, str(failure)
    except RuntimeError as failure:
        if not lacks_device_memory(failure):
            raise
        state, error = UNSAVED, f"{first_sentence(failure)}; lower --concurrent, so that fewer trials share a GPU"
    return {
        "trial": number,
        "state": state,
        **scores,
        "seconds": round(time.perf_counter() - clock, 4),
        "started": started.isoformat(),
        "error": error,
        "point": point,
    }


class TrialRunner:
    """Scores point after point in one process, with the filters that the points before it left."""

    def __init__(self, job: TrialJob) -> None:
        """Map the unaries and load the true labels, once a process.

        Raises:
            InputError: this process has no GPU where one is asked for, the frames are not there, or its node has no room for a
                copy of the unaries.
        """
        settings = job.config.search
        torch.set_num_threads(settings.cpus_per_trial)
        if settings.gpus_per_trial and not torch.cuda.is_available():
            raise InputError(f"search.gpus_per_trial: {settings.gpus_per_trial:g} is asked for; this process has no GPU")
        self.job, self.device = job, torch.device("cuda" if settings.gpus_per_trial else "cpu")
        self.frames_at_once, memory = 1, 0
        if settings.gpus_per_trial:
            self.frames_at_once, memory = ON_GPU_AT_ONCE, torch.cuda.get_device_properties(self.device).total_memory
        for_filters, for_unaries = kept_bytes(settings, memory)
        self.arrays = on_this_node(job.cache, settings.node_folder).arrays()
        self.unaries = UnariesOnDevice(self.arrays, self.device, for_unaries)
        self.labels = subset_labels(job.store, job.cache.frames)
        self.prepared = PreparedCache(for_filters)
        if is_timed(settings):
            self._scorer({})(range(len(self.labels))[: self.frames_at_once])

    def run(self, number: int, point: Point, *, rival: int | None = None) -> Line:
        """Score a point, as `run_trial`.

        Args:
            number: of the trial.
            point: its settings.
            rival: a finished trial to keep up with: once this one is behind it after a fold, it is stopped. None: it is not.
        """
        return run_trial(self.job, number, point, lambda: self._count(point, rival))

    def _count(self, point: Point, rival: int | None) -> Counted:
        """Fold by fold."""
        folds, absent = self.job.folds, self.job.config.evaluation.absent_classes
        best_NCC = None if rival is None else read_confusions(confusion_file(self.job.folder, rival))[1]
        scenes = scenes_of(self.job.cache.frames, self.job.config.data)
        score = self._scorer(point)
        seen: dict[int, FrameSums] = {}
        for fold in sorted(set(folds)):
            places = [place for place, own in enumerate(folds) if own == fold]
            seen |= zip(places, score(places), strict=True)
            if best_NCC is not None and len(seen) < len(folds):
                seen_NCC = np.stack([own.segmentation.confusion for own in seen.values()])
                groups = None if scenes is None else [scenes[place] for place in seen]
                if is_behind(seen_NCC, best_NCC[list(seen)], absent=absent, seed=self.job.config.search.seed, groups=groups):
                    break
        places = sorted(seen)
        return Counted(places, [seen[place] for place in places])

    def _scorer(self, point: Point) -> Callable[[Sequence[int]], list[FrameSums]]:
        """What counts frames, by their places, under a point.

        Raises:
            InputError: the CRF cannot have these settings.
        """
        config = with_overrides(self.job.config, point)
        crf = build_crf(config).eval().to(self.device)

        @torch.no_grad()
        def score_together(places: tuple[int, ...]) -> list[FrameSums]:
            unaries = self.unaries.of(places)
            prepared = self.prepared.prepare(places, crf, image=unaries.image, depth=unaries.depth)
            logits = crf(unaries.logits, prepared=prepared)
            truths = [self.labels[place] for place in places]
            labels = [labels_at_full_size(own, truth.shape, of="CRF") for own, truth in zip(logits, truths, strict=True)]
            return [frame_sums(found, truth, config) for found, truth in zip(labels, truths, strict=True)]

        def score(places: Sequence[int]) -> list[FrameSums]:
            starts = range(0, len(places), self.frames_at_once)
            return [sums for i in starts for sums in score_together(tuple(places[i : i + self.frames_at_once]))]

        return score


def is_timed(settings: SearchConfig) -> bool:
    """Whether the seconds of a trial are an objective."""
    return "seconds" in OBJECTIVES[settings.objective]


def kept_bytes(settings: SearchConfig, gpu_memory: int) -> tuple[int, int]:
    """What a process may keep from one trial to the next: bytes of filters, and on a GPU of so many bytes those of unaries.

    The filters of all processes that this machine has CPUs for get no more than a part of its memory. Nothing is kept where
    seconds are an objective: no trial is to gain by those before it in its process.
    """
    if is_timed(settings):
        return 0, 0
    filters = settings.filter_cache * MIB
    if not settings.gpus_per_trial:
        processes = max(1, usable_cpus() // settings.cpus_per_trial)
        filters = min(filters, int(usable_memory() * _SHARE_FOR_FILTERS / processes))
    return filters, int(gpu_memory * settings.gpus_per_trial * _SHARE_FOR_UNARIES)


def frame_sums(labels: NDArray[np.uint8], truth: NDArray[np.uint8], config: Config) -> FrameSums:
    """What a trial counts on one frame: classes found beside true ones, both (H, W)."""
    boundary = None
    if "boundary_f1" in OBJECTIVES[config.search.objective]:
        boundary = BoundarySums.from_labels(crop(labels, config.evaluation.crop), crop(truth, config.evaluation.crop))
    return FrameSums(score_labels(labels, truth, config.evaluation), boundary)


NOTHING: Mapping[str, Any] = {"trial": None}
"""What a trial is asked for that only keeps its process, until there is a point."""
_FOR_SECONDS = 0.25


class OneStep(tune.Trainable):  # type: ignore[misc]
    """A trial as Ray Tune sees it: one step. Its process serves trial after trial."""

    def setup(self, config: dict[str, Any], job: TrialJob | None = None) -> None:
        """Make ready, once a process."""
        assert job is not None
        self.job, self.asked = job, config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next point in the same process."""
        self.asked = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Score the point. The line goes to Ray Tune as text, which would flatten it."""
        if self.asked == NOTHING:
            time.sleep(_FOR_SECONDS)
            return {"done": True}
        return {"line": json.dumps(self.score()), "done": True}

    @abstractmethod
    def score(self) -> Line:
        """The line of the trial that is asked for."""

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing to go on from: a training has checkpoints of its own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was saved."""


class CrfTrial(OneStep):
    """A trial of the CRF alone."""

    def setup(self, config: dict[str, Any], job: TrialJob | None = None) -> None:
        """Make ready, once a process. What is wrong with the process says nothing about a point."""
        super().setup(config, job)
        self.runner: TrialRunner | None = None
        try:
            self.runner = TrialRunner(self.job)
        except InputError as refused:
            self.refused = str(refused)

    def score(self) -> Line:
        """Score the point."""
        if self.runner is None:
            return {"state": UNSAVED, "error": self.refused}
        return self.runner.run(self.asked["trial"], self.asked["point"], rival=self.asked["rival"])
