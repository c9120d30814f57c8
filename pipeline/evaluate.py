"""The four rows of the paper on the test split: each a finished stage's weights, its frames shared out over Ray.

Not here: predictions and sums (jointseg/evaluation.py), metrics (jointseg/metrics.py), tables (report.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from jointseg.checkpoint import load_final
from jointseg.config import Config
from jointseg.data.frame import FRAME_SIZE, valid_depth
from jointseg.data.store import Store
from jointseg.evaluation import Prediction, Sums, predict, score
from jointseg.labels import NUM_CLASSES
from jointseg.model import trained_model
from jointseg.stages import STAGES, Stage
from pipeline.other_rules import sums_by_rule
from pipeline.shares import shared_out, shares_of

FrameScores: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class RowJob:
    """One row of the tables; paths are absolute and readable on every node."""

    config: Config
    stage: str
    store: Path
    weights: Path


class Part(NamedTuple):
    """What came of one row on some frames."""

    sums: Sums
    others: dict[str, Sums]
    """By other rules than the run's."""
    frames: list[FrameScores]
    """A dictionary a frame: its number as `frame`, and its own metrics."""
    confusions: list[NDArray[np.int64]]
    """A matrix (C, C) a frame, in the same order."""
    predictions: dict[int, Prediction]
    """Of the frames that are drawn, by number."""

    def plus(self, other: Part) -> Part:
        """What came of both, in this order."""
        return Part(
            self.sums.plus(other.sums),
            {rule: sums.plus(other.others[rule]) for rule, sums in self.others.items()},
            self.frames + other.frames,
            self.confusions + other.confusions,
            self.predictions | other.predictions,
        )


def evaluate_rows(
    jobs: dict[Stage, RowJob],
    numbers: tuple[int, ...],
    *,
    drawn: tuple[int, ...],
    progress: Callable[[int], None],
    say: Callable[[str], None],
) -> dict[str, Part]:
    """What comes of every row, by its name, on the frames `numbers`; predictions are of those in `drawn`.

    Shares of the frames are added in one order, whatever the number of CPUs or GPUs.

    Args:
        jobs: the rows.
        numbers: frames of the store.
        drawn: those whose predictions are kept.
        progress: told how many frames are done, all rows counted.
        say: called with a line for people while no node has room.
    """
    shares = [(stage, share) for stage in jobs for share in shares_of(numbers)]
    found: dict[int, Part] = {}
    asked = [(jobs[stage], share) for stage, share in shares]
    config = next(iter(jobs.values())).config
    for place, part in shared_out(partial(_Evaluator, drawn), asked, config=config, say=say):
        found[place] = part
        progress(sum(len(shares[done][1]) for done in found))
    parts = {stage: [found[place] for place, (own, _) in enumerate(shares) if own is stage] for stage in jobs}
    return {stage.row: reduce(Part.plus, own) for stage, own in parts.items()}


def extremes(frames: Sequence[FrameScores], *, most: int) -> tuple[list[int], list[int]]:
    """Numbers of the frames with the highest and with the lowest pixel accuracy, either the most extreme first.

    As many of both, together at most `most`, and no frame twice; frames without labels have no part.
    """
    scored = [own for own in frames if not math.isnan(own["pixel_accuracy"])]
    numbers = [int(own["frame"]) for own in sorted(scored, key=lambda own: (-own["pixel_accuracy"], own["frame"]))]
    half = min(most, len(numbers)) // 2
    return numbers[:half], numbers[::-1][:half]


class _Evaluator:
    """A process's: it keeps the model of the row that it is at."""

    def __init__(self, drawn: tuple[int, ...], device: torch.device) -> None:
        self._drawn, self._device = drawn, device
        self._job: RowJob | None = None

    def __call__(self, share: tuple[RowJob, tuple[int, ...]]) -> Part:
        """What comes of a row on a share of the frames."""
        job, numbers = share
        if job != self._job:
            self._job, self._store = job, Store.open(job.store)
            self._model = trained_model(job.config, load_final(job.weights), device=self._device)
        stage, evaluation, parts = STAGES[job.stage], job.config.evaluation, list[Part]()
        for frame, prediction in predict(
            self._model,
            map(self._store.frame, numbers),
            job.config,
            kernels=stage.kernels,
            with_depth=stage.with_depth,
            device=self._device,
        ):
            sums, kept = score(frame, prediction, evaluation), frame.number in self._drawn
            own = [{"frame": frame.number, **sums.metrics(evaluation)}], [sums.segmentation.confusion]
            parts.append(
                Part(sums, sums_by_rule(frame, prediction, evaluation), *own, {frame.number: prediction} if kept else {})
            )
        return reduce(Part.plus, parts)


def start_floors(config: Config, store: Path) -> ray.ObjectRef:
    """Start computing the floors on Ray; `result_of` waits for them."""
    return ray.remote(num_cpus=1, max_retries=1)(floors).remote(config, store)


def floors(config: Config, store_path: Path) -> dict[str, float]:
    """What guesses that look at no picture score on the test split: the commonest class everywhere, each pixel's mean depth.

    Both are the train split's, and the same for every picture; the test split only scores them. A pixel that no training frame
    has a depth at gets the mean over all pixels. Where the train split has no depth of the kind that is scored, there is no
    floor of it: `mean_depth` (m, over the map) is NaN, and depth's metrics are left out.
    """
    store, evaluation = Store.open(store_path), config.evaluation
    counts = np.zeros(NUM_CLASSES, np.int64)
    sums_HW, counts_HW = np.zeros(FRAME_SIZE), np.zeros(FRAME_SIZE, np.int64)
    for number in store.train:
        frame = store.frame(number)
        counts += np.bincount(frame.labels.ravel(), minlength=256)[: len(counts)]
        truth = frame.filled_depth if evaluation.depth_truth == "filled" else frame.raw_depth
        valid = valid_depth(truth)
        sums_HW += np.where(valid, truth, 0)
        counts_HW += valid
    label, depths = int(counts.argmax()), None
    if counts_HW.any():
        everywhere = sums_HW.sum() / counts_HW.sum()
        depths = np.where(counts_HW > 0, sums_HW / np.maximum(counts_HW, 1), everywhere).astype(np.float32)
    guess = Prediction(np.full(FRAME_SIZE, label, np.uint8), depths)
    total = reduce(Sums.plus, (score(store.frame(number), guess, evaluation) for number in store.test))
    return {
        **total.metrics(evaluation),
        "class": float(label),
        "mean_depth": math.nan if depths is None else float(depths.mean(dtype=np.float64)),
    }
