"""What a study comes to: its table of trials, the settings that stage 3 starts from, and what their score is worth.

Not here: the statistics (jointseg/cross_validation.py), the study (study.py), pictures of it (figures.py).
"""

# T trials, N frames, K folds, C classes

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jointseg.config import Config
from jointseg.cross_validation import fold_sums, nested, over_folds, paired_bootstrap
from jointseg.data.views import scenes_of
from jointseg.errors import InputError
from jointseg.settings import flatten, with_overrides
from jointseg.whole import replacing_whole
from pipeline.log_lines import Line
from pipeline.notation import percent, points
from pipeline.study.samplers import DIRECTIONS, OBJECTIVES
from pipeline.study.spaces import Point, papers_values
from pipeline.study.trial_record import FAILED, FINISHED, STOPPED, confusion_file, digest_of, read_confusions, table_row
from pipeline.workspace import TRIALS

WHOLE_SCENES = "whole scenes"
"""What folds are made of, and intervals resample, where `data.validation_by` is `scene`."""


def scores(lines: Sequence[Line]) -> list[float | None]:
    """The mean IoU of each trial, None where it failed."""
    return [line["mean_iou"] if line["state"] == FINISHED else None for line in lines]


def best_so_far(lines: Sequence[Line]) -> list[float]:
    """The best mean IoU up to each trial, in the order asked; minus infinity before the first."""
    return list(accumulate((-inf if score is None else score for score in scores(lines)), max))


def best_trial(lines: Sequence[Line]) -> Line:
    """The trial of the best mean IoU, the first among equals.

    Raises:
        InputError: no trial has a score.
    """
    finished = [line for line in lines if line["state"] == FINISHED]
    if not finished:
        raise InputError(f"search: none of {len(lines)} trials has a score; the first says: {lines[0]['error']}")
    return max(finished, key=lambda line: float(line["mean_iou"]))


def pareto_front(lines: Sequence[Line], objective: str) -> list[Line]:
    """The finished trials that no other beats in one objective without losing in the other, best mean IoU first."""
    names = OBJECTIVES[objective]

    def gains(line: Line) -> tuple[float, ...]:
        return tuple(line[name] if DIRECTIONS[name] == "maximize" else -line[name] for name in names)

    def beaten(line: Line, other: Line) -> bool:
        pairs = list(zip(gains(line), gains(other), strict=True))
        return all(own <= its for own, its in pairs) and any(own < its for own, its in pairs)

    finished = [line for line in lines if line["state"] == FINISHED and None not in {line[name] for name in names}]
    front = [line for line in finished if not any(beaten(line, other) for other in finished)]
    return sorted(front, key=lambda line: -line["mean_iou"])


def save_result(lines: Sequence[Line], config: Config, folder: Path, *, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Write the study's trials.parquet; returns what is to be its crf_settings.json.

    Args:
        lines: of all trials, in the order asked.
        config: whose `search` the study ran with.
        folder: the study's, with the confusion matrices of its trials.
        identity: what the trials depend on beside their points: the study's name, data, frames and checkpoint.

    Raises:
        InputError: no trial has a score, confusion matrices are missing, or the disk is full.
    """
    best = best_trial(lines)
    rows = [table_row(line) for line in lines]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing_whole(folder / TRIALS) as unfinished:
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows]), unfinished)
    searched = list(dict.fromkeys(name for line in lines for name in line["point"]))
    result = {
        **trial_record(best, config, folder, identity=identity),
        "paper_score": scores(lines)[0],
        "paper_held": _held(lines[0]["point"], config),
        "trials": len(lines),
        **{state: sum(line["state"] == state for line in lines) for state in (FAILED, STOPPED)},
        "search": flatten(config.search),
        "searched": searched,
        **_worth(lines, best, config, folder),
    }
    if len(OBJECTIVES[config.search.objective]) > 1:
        kept = ("trial", *OBJECTIVES[config.search.objective], "point")
        result["front"] = [{name: line[name] for name in kept} for line in pareto_front(lines, config.search.objective)]
    return result


def _held(first: Point, config: Config) -> dict[str, Any]:
    """What trial 0, the paper's values of what it draws, has otherwise than the paper: the run's own of the rest."""
    own = flatten(with_overrides(config, first).crf, prefix="crf.")
    papers = papers_values()
    return {path: value for path, value in own.items() if value != papers[path]}


def _worth(lines: Sequence[Line], best: Line, config: Config, folder: Path) -> dict[str, Any]:
    """The statistics of the choice: over folds, nested, and against the paper's point.

    The winner is within noise where its own interval holds 0, or that of frames under the trials chosen without them: its own
    does not know that it is the best of many.
    """
    settings, absent = config.search, config.evaluation.absent_classes
    finished = [line for line in lines if line["state"] == FINISHED]
    by_trial = []
    for line in finished:
        rows, confusion_NCC = read_confusions(confusion_file(folder, line["trial"]))
        by_trial.append(fold_sums(confusion_NCC, [row["fold"] for row in rows], num_folds=settings.folds))
    left_out = nested(np.stack(by_trial), absent=absent)
    chosen = [finished[place]["trial"] for place in left_out.chosen]
    worth: dict[str, Any] = {
        "folds": _over_folds(best),
        "nested": {
            "score": left_out.score,
            "optimism": best["mean_iou"] - left_out.score,
            "folds": list(left_out.folds),
            "chosen": chosen,
            "gain": None,
        },
        "paper_folds": None,
        "gain": None,
    }
    if finished[0]["trial"] == 0:
        worth["paper_folds"] = _over_folds(finished[0])
        rows, _ = read_confusions(confusion_file(folder, 0))
        scenes = scenes_of([row["frame"] for row in rows], config.data)
        beside_paper = partial(
            paired_bootstrap, other_NCC=_confusions(folder, [0] * settings.folds), absent=absent,
            num_resamples=settings.resamples, seed=settings.seed, groups=scenes,
        )  # fmt: skip
        gain = beside_paper(_confusions(folder, [best["trial"]] * settings.folds))
        unseen = beside_paper(_confusions(folder, chosen))
        worth["nested"]["gain"] = unseen._asdict()
        worth["gain"] = {**gain._asdict(), "within_noise": gain.low <= 0 or unseen.low <= 0, "over": over(scenes)}
    return worth


def over(scenes: Sequence[int] | None) -> str:
    """In words, what intervals resample."""
    return "frames" if scenes is None else WHOLE_SCENES


def _confusions(folder: Path, trials: Sequence[int]) -> NDArray[np.int64]:
    """(N, C, C): each frame's matrix under the trial that stands at its fold's place."""
    taken: NDArray[np.int64] | None = None
    for trial in dict.fromkeys(trials):
        rows, confusion_NCC = read_confusions(confusion_file(folder, trial))
        own_N = np.array([trials[row["fold"]] == trial for row in rows])
        taken = confusion_NCC if taken is None else np.where(own_N[:, None, None], confusion_NCC, taken)
    assert taken is not None
    return taken


def _over_folds(line: Line) -> dict[str, Any]:
    return {**over_folds(line["fold_scores"])._asdict(), "scores": line["fold_scores"]}


def trial_record(line: Line, config: Config, folder: Path, *, identity: Mapping[str, Any]) -> dict[str, Any]:
    """All that another needs to come to a finished trial's scores again, and the scores to compare, frame by frame."""
    own = with_overrides(config, line["point"])
    rows, confusion_NCC = read_confusions(confusion_file(folder, line["trial"]))
    return {
        "settings": flatten(own.crf, prefix="crf."),
        "score": line["mean_iou"],
        "fold_scores": line["fold_scores"],
        "boundary_f1": line["boundary_f1"],
        "trial": line["trial"],
        "commit": line.get("commit"),
        **identity,
        "config": flatten(own),
        "by_frame": [
            {**{name: row[name] for name in ("frame", "fold", "mean_iou", "pixel_accuracy")}, "confusion": digest_of(own_CC)}
            for row, own_CC in zip(rows, confusion_NCC, strict=True)
        ],
    }


def read_result(path: Path) -> dict[str, Any]:
    """What `save_result` wrote, or settings that were given, whose `study` is None.

    Raises:
        InputError: the file is damaged.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("study", "settings") if result["study"] is None else ("study", "settings", "search", "trials"):
            result[name]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); remove it, and jointseg search writes it again") from None
    return result


def said(result: dict[str, Any]) -> str:
    """A result in one line."""
    folds, gain = result["folds"], result["gain"]
    best = (
        f"best mean IoU {percent(result['score'], 2)} % (trial {result['trial']} of {result['trials']}; over folds "
        f"{percent(folds['mean'], 2)} ± {percent(folds['standard_error'], 2)}; nested {percent(result['nested']['score'], 2)})"
    )
    ends = {FAILED: "failed", STOPPED: "stopped early"}
    counts = "".join(f"; {result[state]} of {result['trials']} {how}" for state, how in ends.items() if result[state])
    if "front" in result:
        counts += f"; {len(result['front'])} on the Pareto front (figures/pareto.png)"
    at = "at the paper's point"
    if result.get("paper_held"):  # older results do not say
        at = f"at the paper's values of what is searched ({', '.join(result['paper_held'])} as in this run)"
    if gain is None:
        return f"{best}; {at}: no score{counts}"
    noise = ": within noise" if gain["within_noise"] else ""
    unseen = result["nested"].get("gain")  # older results have none
    nested = f", nested {points(unseen)}" if unseen else ""
    theirs = percent(result["paper_score"], 2)
    return f"{best}; {at} {theirs} %, a gain of {points(gain)} points{nested}{noise}{counts}"
