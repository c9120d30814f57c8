"""What is kept of each trial: a line of the study's log, and the confusion matrix of every frame in a Parquet file.

Not here: what the numbers are worth together (result.py), how a trial comes by them (trial.py).
"""

# N frames, C classes

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jointseg.boundary import BoundarySums
from jointseg.cross_validation import fold_sums, mean_iou
from jointseg.errors import InputError, one_line
from jointseg.evaluation_config import EvaluationConfig
from jointseg.labels import NUM_CLASSES
from jointseg.metrics import Absent, SegmentationSums
from jointseg.whole import replacing_whole
from pipeline.log_lines import Line, read_lines

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
UNSAVED = "unsaved"
"""Of a trial that its machine kept from ending, as by a full disk: it is in no log, and the study ends there."""
LOG = "log.jsonl"
"""Of a study's folder: a line a trial that has ended."""
SCHEMA = pa.schema(
    {
        "trial": pa.int32(),
        "frame": pa.int32(),
        "fold": pa.int16(),
        "mean_iou": pa.float64(),
        "pixel_accuracy": pa.float64(),
        "cells": pa.list_(pa.uint16()),
        "pixels": pa.list_(pa.uint32()),
        "boundary": pa.list_(pa.int64()),
    },
    metadata={"cells": "true class * 40 + predicted class, of the cells that are not 0; `pixels` in the same order"},
)


class FrameSums(NamedTuple):
    """What a trial counted on one frame."""

    segmentation: SegmentationSums
    boundary: BoundarySums | None


def times(line: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """When the trial of this line began and ended."""
    began = datetime.fromisoformat(line["started"])
    return began, began + timedelta(seconds=line["seconds"])


def confusion_file(folder: Path, number: int) -> Path:
    """Where a study's folder keeps the confusion matrices of a trial; all such files together are one Parquet data set."""
    return folder / "confusions" / f"trial-{number:04d}.parquet"


def write_confusions(
    path: Path, number: int, frames: Sequence[int], folds: Sequence[int], sums: Sequence[FrameSums], *, absent: Absent
) -> None:
    """Write a row a frame, all or nothing; each frame's mean IoU is over the classes that `absent` leaves.

    Raises:
        DiskError: the disk is full.
    """
    rows = []
    for frame, fold, own in zip(frames, folds, sums, strict=True):
        flat = own.segmentation.confusion.ravel()
        cells = np.flatnonzero(flat)
        scores = {"mean_iou": own.segmentation.mean_iou(absent=absent), "pixel_accuracy": own.segmentation.pixel_accuracy}
        counts = {"cells": cells.tolist(), "pixels": flat[cells].tolist(), "boundary": own.boundary and list(own.boundary)}
        rows.append({"trial": number, "frame": frame, "fold": fold, **scores, **counts})
    with replacing_whole(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial, compression="zstd")


def read_confusions(path: Path) -> tuple[list[Line], NDArray[np.int64]]:
    """The rows of a trial, and its confusion matrices (N, C, C) in their order.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        rows: list[Line] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: missing or damaged: {one_line(error)}") from None
    flat = np.zeros((len(rows), NUM_CLASSES**2), np.int64)
    for row, counts in zip(rows, flat, strict=True):
        counts[row["cells"]] = row["pixels"]
    return rows, flat.reshape(-1, NUM_CLASSES, NUM_CLASSES)


def digest_of(confusion_CC: NDArray[np.int64]) -> str:
    """16 hexadecimal digits that tell one confusion matrix from another."""
    return hashlib.sha256(np.ascontiguousarray(confusion_CC, "<i8").tobytes()).hexdigest()[:16]


def scores_of(sums: Sequence[FrameSums], folds: Sequence[int], evaluation: EvaluationConfig) -> Line:
    """The scores over some frames: `mean_iou` pooled over them, `fold_scores`, and `boundary_f1` where boundaries were counted.

    Args:
        sums: of each frame.
        folds: of each frame; of a trial that was stopped, the first folds.
        evaluation: whose switches the metrics follow.
    """
    confusion_NCC = np.stack([own.segmentation.confusion for own in sums])
    absent = evaluation.absent_classes
    by_fold = fold_sums(confusion_NCC, folds, num_folds=max(folds) + 1)
    boundaries = [own.boundary for own in sums if own.boundary is not None]
    return {
        "mean_iou": float(mean_iou(confusion_NCC.sum(0), absent=absent)),
        "fold_scores": mean_iou(by_fold, absent=absent).tolist(),
        "boundary_f1": reduce(BoundarySums.plus, boundaries).f1 if boundaries else None,
    }


def read_trials(log: Path) -> dict[int, Line]:
    """The trials in a study's log, as `by_number`."""
    return by_number(read_lines(log))


def by_number(lines: Iterable[Line]) -> dict[int, Line]:
    """The lines of a study's log by their trials' numbers, in the order they ended."""
    trials: dict[int, Line] = {}
    for line in lines:
        trials.setdefault(line["trial"], line)
    return trials


def table_row(line: Line) -> dict[str, Any]:
    """A line of the log as a row of trials.parquet: its point under config paths."""
    point: Mapping[str, Any] = line["point"]
    return {**{name: value for name, value in line.items() if name != "point"}, **point}
