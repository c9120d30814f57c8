"""What an evaluation, a search and a trial leave, made up without a network.

Not here: the folder and its report (tests/unit/report).
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jointseg.crf.settings import CrfSettings
from jointseg.data.store import Store
from jointseg.evaluation import Prediction, Sums, score
from jointseg.labels import CLASS_NAMES, VOID
from jointseg.metrics import depth_metrics, segmentation_metrics
from jointseg.presets import demo
from jointseg.settings import flatten
from pipeline.other_rules import sums_by_rule
from pipeline.workspace import TRIALS, Workspace

RECORD = {
    "settings": {"crf.theta_beta": 3.0},
    "score": 0.5,
    "fold_scores": [0.25, 0.75],
    "boundary_f1": None,
    "trial": 3,
    "data": "d" * 64,
    "frames": [11, 12],
    "checkpoint": "c" * 64,
    "config": flatten(demo()),
    "by_frame": [
        {"frame": 11, "fold": 0, "mean_iou": 0.25, "pixel_accuracy": 0.5, "confusion": "aa"},
        {"frame": 12, "fold": 1, "mean_iou": 0.75, "pixel_accuracy": 0.75, "confusion": "bb"},
    ],
}
"""What a search tells of a trial."""


def guesses(store: Store, wrong: float, *, depth: bool) -> dict[int, Prediction]:
    generator = np.random.default_rng(int(100 * wrong))
    drawn = {}
    for number in store.test:
        frame = store.frame(number)
        labels = np.where(frame.labels == VOID, 0, frame.labels)
        missed = generator.random(labels.shape) < wrong
        guessed = np.where(missed, (labels + 1) % len(CLASS_NAMES), labels).astype(np.uint8)
        drawn[number] = Prediction(guessed, (frame.filled_depth * np.float32(1 + wrong / 4)) if depth else None)
    return drawn


def floor_guesses(store: Store) -> dict[int, Prediction]:
    shape = store.frame(1).labels.shape
    return {number: Prediction(np.zeros(shape, np.uint8), np.full(shape, 2.534, np.float32)) for number in store.test}


def total(store: Store, drawn: dict[int, Prediction]) -> Sums:
    first, *rest = (score(store.frame(number), prediction, demo().evaluation) for number, prediction in drawn.items())
    for one in rest:
        first = first.plus(one)
    return first


def totals_by_rule(store: Store, drawn: dict[int, Prediction]) -> dict[str, Sums]:
    first, *rest = (sums_by_rule(store.frame(number), own, demo().evaluation) for number, own in drawn.items())
    for one in rest:
        first = {rule: sums.plus(one[rule]) for rule, sums in first.items()}
    return first


def metrics(sums: Sums) -> dict[str, float]:
    return {**segmentation_metrics(sums.segmentation), **(depth_metrics(sums.depth) if sums.depth else {})}


def save_search(place: Workspace, scores: list[float | None]) -> None:
    """A search's result as the report reads it: two folds, the second as good as the first; a gain of 1 to 2 points."""
    finished = [one for one in scores if one is not None]
    best = scores.index(max(finished))
    rows = [
        {"trial": trial, "state": "failed" if one is None else "finished", "mean_iou": one, "crf.theta_beta": 3.0 + trial}
        for trial, one in enumerate(scores)
    ]
    folds = {"mean": 0.11, "standard_error": 0.005, "scores": [0.115, 0.105]}
    unseen = {"difference": 0.003, "low": 0.001, "high": 0.005} if scores[0] is not None else None
    result = {
        "settings": {f"crf.{name}": value for name, value in flatten(CrfSettings(theta_beta=3.0 + best)).items()},
        "score": scores[best],
        "paper_score": scores[0],
        "trial": best,
        "trials": len(scores),
        "failed": scores.count(None),
        "stopped": 0,
        "searched": ["crf.theta_beta"],
        "study": "own-tpe-0",
        "search": flatten(demo().search),
        "balanced_by": "scene type",
        "frames": [1, 2],
        "subset": "s" * 64,
        "folds": folds,
        "paper_folds": folds if scores[0] is not None else None,
        "nested": {"score": 0.108, "optimism": 0.012, "folds": [0.1, 0.116], "chosen": [0, 1], "gain": unseen},
        "gain": {"difference": 0.015, "low": 0.01, "high": 0.02, "within_noise": False} if scores[0] is not None else None,
    }
    place.out.mkdir(parents=True, exist_ok=True)
    place.crf_settings.write_text(json.dumps(result))
    place.study().mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), place.study() / TRIALS)
