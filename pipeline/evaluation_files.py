"""What an evaluation leaves in its folder: scores, the sums they were divided from, and predictions, written and read.

Not here: how they are come by (evaluate.py), what a report makes of them (report.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jointseg.config import Config
from jointseg.evaluation import Prediction
from jointseg.json_files import read_json, write_json
from jointseg.labels import CLASS_NAMES
from jointseg.metrics import SegmentationSums
from jointseg.whole import appearing_whole
from pipeline.evaluate import Part
from pipeline.other_rules import metrics_by_rule
from pipeline.reporting.confusions import confusion_name
from pipeline.row_gains import row_gains
from pipeline.study.trial_record import FrameSums, write_confusions
from pipeline.workspace import Workspace

METRICS, SUMS = "metrics.json", "sums.json"


def save_evaluation(
    place: Workspace,
    found: Mapping[str, Part],
    config: Config,
    *,
    floors: Mapping[str, float],
    pictures: Mapping[str, Sequence[int]],
    origin: Mapping[str, Any],
) -> None:
    """Write the evaluation's folder, all or nothing, in place of an earlier one.

    metrics.json: as `read_metrics` says. sums.json: what its rows were divided from. confusion_ROW.parquet: true class by
    predicted class. frames_ROW.parquet: each frame's own metrics. confusions_ROW.parquet: each frame's confusion matrix
    (trial_record.read_confusions). predictions_ROW.npz: `labels_N` and `depth_N` of each frame N that is drawn.

    Args:
        place: the run's folder.
        found: of each row, by the evaluation; all of the same frames.
        config: the run's.
        floors: metrics of the floors, with the `class` that every pixel gets and the `mean_depth` of the depth map.
        pictures: numbers of the frames to draw: the `first` of the split, and the `best` and `worst` of the row with the CRF.
        origin: what the evaluation was made from.
    """
    numbers = [int(own["frame"]) for own in next(iter(found.values())).frames]
    metrics = {
        "rows": {row: part.sums.metrics(config.evaluation) for row, part in found.items()},
        "rules": metrics_by_rule({row: (part.sums, part.others) for row, part in found.items()}, config),
        "gains": row_gains({row: np.stack(part.confusions) for row, part in found.items()}, numbers, config),
        "floors": floors,
        "pictures": pictures,
        "origin": origin,
    }
    with appearing_whole(place.evaluation, replace=True) as folder:
        write_json(folder / METRICS, metrics)
        write_json(
            folder / SUMS,
            {
                row: {"segmentation": sums.segmentation.to_dict(), "depth": sums.depth and sums.depth.to_dict()}
                for row, (sums, *_) in found.items()
            },
        )
        for place_of_row, (row, part) in enumerate(found.items()):
            confusion = dict(zip(CLASS_NAMES, part.sums.segmentation.confusion.T, strict=True))
            pq.write_table(pa.table({"truth": CLASS_NAMES, **confusion}), folder / confusion_name(row))
            pq.write_table(pa.Table.from_pylist(part.frames), folder / frames_file(place, row).name)
            path, sums = (
                folder / f"confusions_{row}.parquet",
                [FrameSums(SegmentationSums(own_CC), None) for own_CC in part.confusions],
            )
            write_confusions(path, place_of_row, numbers, [0] * len(numbers), sums, absent=config.evaluation.absent_classes)
            arrays: dict[str, Any] = {}
            for frame, prediction in part.predictions.items():
                arrays[f"labels_{frame}"] = prediction.labels
                if prediction.depth is not None:
                    arrays[f"depth_{frame}"] = prediction.depth
            np.savez_compressed(folder / f"predictions_{row}.npz", **arrays)


def read_metrics(place: Workspace) -> dict[str, Any]:
    """What an evaluation found: metrics of `rows`, `rules` with each row's metrics by each other rule, `gains` of rows over
    others, `floors`, `pictures` and the `origin` of it all, as `save_evaluation` was given them; NaN as None.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    found: dict[str, Any] = read_json(place.evaluation / METRICS)
    return found


def is_from(place: Workspace, origin: Mapping[str, Any]) -> bool:
    """Whether there is an evaluation that was made from this."""
    return (place.evaluation / METRICS).is_file() and read_metrics(place).get("origin") == origin


def frames_file(place: Workspace, row: str) -> Path:
    """Where each frame's own metrics of a row are."""
    return place.evaluation / f"frames_{row}.parquet"


def load_predictions(place: Workspace, row: str) -> dict[int, Prediction]:
    """The predictions that `save_evaluation` wrote for a row, by frame number, ascending."""
    with np.load(place.evaluation / f"predictions_{row}.npz") as arrays:
        numbers = sorted(int(name.removeprefix("labels_")) for name in arrays if name.startswith("labels_"))
        return {number: Prediction(arrays[f"labels_{number}"], arrays.get(f"depth_{number}")) for number in numbers}
