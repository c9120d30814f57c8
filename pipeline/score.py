"""CRF settings scored as they are, without training: the CRF alone on stage 2's output, over a split's frames.

Not here: the search that finds settings (search.py), the rows of the tables, which stage 3 has trained (evaluate.py).
"""

# N frames, C classes

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from jointseg.checkpoint import final_digest, load_final
from jointseg.config import Config
from jointseg.cross_validation import Interval, mean_iou, paired_bootstrap
from jointseg.data.store import Store
from jointseg.data.views import scenes_of
from jointseg.errors import InputError
from jointseg.evaluation import Prediction, compute_unaries, depth_at_full_size, labels_at_full_size, refined_labels, score
from jointseg.json_files import read_json, write_json
from jointseg.metrics import Absent, DepthSums, SegmentationSums, depth_metrics
from jointseg.model import build_crf, trained_model
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.cluster import connected, uses_gpu, without_missing_gpus
from pipeline.notation import fixed, percent, points
from pipeline.provenance import provenance
from pipeline.shares import shared_out, shares_of
from pipeline.sources import dataset_of
from pipeline.study.result import over
from pipeline.study.settings_file import load_settings
from pipeline.study.spaces import papers_values
from pipeline.study.trial_record import FrameSums, write_confusions
from pipeline.terminal import Terminal
from pipeline.tracking import SCORE, Tracker
from pipeline.workspace import Workspace

NO_CRF, PAPER, PAPER_NO_DEPTH = "no CRF", "the paper's settings", "the paper's settings, no depth kernel"
SHORT = {NO_CRF: "no_crf", PAPER: "paper", PAPER_NO_DEPTH: "paper_no_depth"}
PATHS = {
    "crop": "evaluation.crop",
    "absent_classes": "evaluation.absent_classes",
    "scales": "evaluation.scales",
    "mirror": "evaluation.mirror",
    "resamples": "search.resamples",
    "seed": "search.seed",
}
"""In the config, of what a record of scores has from it."""
CONTEXTS = {"validation": "validation", "test": "testing"}
"""What MLflow calls it that frames of a split are read for."""
Jobs = Mapping[str, Config | None]
"""Configs by name; None: without a CRF."""


class Counts(NamedTuple):
    """What came of some frames."""

    confusion_NCC: dict[str, NDArray[np.int64]]
    """Of each settings, a matrix a frame."""
    depth: DepthSums
    """Of stage 2, whose depth no CRF changes."""


class Score(NamedTuple):
    """What settings score over frames."""

    mean_iou: float
    pixel_accuracy: float
    gain: Interval
    """Of mean IoU over the paper's settings on the same frames."""


def score_settings(
    config: Config, place: Workspace, files: Sequence[Path], *, split: str, screen: Terminal, verbose: bool
) -> dict[str, Score]:
    """Score each file's settings, the paper's and none on a split, once: asked again, what was found is read.

    The CRF runs where the network does: on GPUs its filters are others than on CPUs, and scores differ a little.

    It is a run in MLflow, and a file in search/scores/ with the confusion matrices of every frame beside it, each of its own
    for other settings, weights or frames.

    Args:
        config: the run's.
        place: the run's folder, whose stage 2 has finished.
        files: results of searches.
        split: `test`, or `validation`, the frames that searches choose by.
        screen: where the progress is shown.
        verbose: Ray's own logs on the screen.

    Raises:
        InputError: there is no such split, stage 2 has not finished, a file is no search's result, or the record of what was
            scored before is damaged.
    """
    if split not in {"test", "validation"}:
        raise InputError(f"--split: {split!r} is not a split; allowed: test, validation")
    place.require("stage2", wanted="score")
    jobs = _jobs(config, files)
    asked = _asked(config, place, split)
    frames = tuple(asked["frames"])
    settings = {name: None if own is None else own.crf.model_dump() for name, own in jobs.items()}
    content = json.dumps([asked, sorted({json.dumps(own) for own in settings.values()})])
    key = f"{split}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    path = place.scores / f"{key}.json"
    if path.is_file():
        Tracker.send_left_over(place.out)
        return _read(path, settings, screen)
    with place.locked(path.parent, key):
        if path.is_file():  # another process has scored the same meanwhile
            return _read(path, settings, screen)
        tracker, untold = Tracker.open(place.out, say=screen.say), path.with_suffix(".untold")
        with tracker.run(f"score {key}", parent=tracker.top_run(place.out.name), key=f"{SCORE}{key}") as run:
            tracker.log_dataset(run, context=CONTEXTS[split], **dataset_of(config, place))
            if untold.is_file():  # MLflow went away when all was counted
                scores = _read(untold, settings, screen)
            else:
                with connected(verbose=verbose):
                    scores, record = _scored(config, place, jobs, asked, path.with_suffix(""), screen=screen)
                write_json(untold, {**record, "settings": settings})
                screen.say(f"{path}: the scores, and what they come from; {_said(record['depth'])}")
            views = {"scales": list(config.evaluation.scales), "mirror": config.evaluation.mirror}
            _log(tracker, run, {**asked, **views, "frames": len(frames)}, scores, read_json(untold)["depth"])
            tracker.describe(run, _described(scores))
            tracker.log_text(run, untold.read_text(encoding="utf-8"), "scores.json")
            tracker.log_artifact(run, path.with_suffix(""), "confusions")
            tracker.offer_again()
        untold.rename(path)
    return scores


def _scored(
    config: Config, place: Workspace, jobs: Jobs, asked: Mapping[str, Any], folder: Path, *, screen: Terminal
) -> tuple[dict[str, Score], dict[str, Any]]:
    """The scores, and their record; each frame's matrices are written to `folder`. Needs Ray."""
    here, frames = without_missing_gpus(config, say=screen.say), tuple(asked["frames"])
    with screen.bar(f"score {asked['split']}", len(frames)) as progress:
        counts = _counted(here, place, jobs, frames, progress=progress, say=screen.say)
    scores = _scores(counts.confusion_NCC, config, scenes_of(frames, config.data))
    record = {
        **asked,
        "scores": {name: {**own._asdict(), "gain": own.gain._asdict()} for name, own in scores.items()},
        "depth": depth_metrics(counts.depth, pooling=config.evaluation.depth_pooling),
        "confusions": _write_matrices(counts.confusion_NCC, frames, folder, config.evaluation.absent_classes),
        "device": "cuda" if uses_gpu(here) else "cpu",
        "provenance": provenance(config, place.out),
    }
    return scores, record


def _jobs(config: Config, files: Sequence[Path]) -> Jobs:
    """No CRF, the paper's settings with and without its depth kernel, and those of each file."""
    paper = with_overrides(config, papers_values())
    given = {str(path): load_settings(path, config) for path in files}
    return {NO_CRF: None, PAPER: paper, PAPER_NO_DEPTH: with_overrides(paper, {"crf.w_depth": 0.0}), **given}


def _asked(config: Config, place: Workspace, split: str) -> dict[str, Any]:
    """What scores depend on beside the settings that are scored: the frames, the weights, and the rules."""
    store = Store.open(place.store)
    frames = store.test if split == "test" else place.subset()["frames"]
    asked = {
        "split": split,
        "frames": list(frames),
        "data": store.digest,
        "checkpoint": final_digest(place.final(STAGES["stage2"])),
        "crop": config.evaluation.crop,
        "absent_classes": config.evaluation.absent_classes,
        **config.evaluation.views,
        "resamples": config.search.resamples,
        "seed": config.search.seed,
    }
    scenes = scenes_of(frames, config.data)
    return asked if scenes is None else {**asked, "resampled": over(scenes)}


def _said(depth: Mapping[str, float]) -> str:
    return f"depth of stage 2: δ < 1.25 {fixed(depth['delta1'])}, RMSE {fixed(depth['rmse'])} m"


def _read(path: Path, settings: Mapping[str, Any], screen: Terminal) -> dict[str, Score]:
    """What was found before, whatever the files of the settings were called then."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {json.dumps(own): record["scores"][name] for name, own in record["settings"].items()}
        found = {name: kept[json.dumps(own)] for name, own in settings.items()}
        scores = {name: Score(**_numbers({**own, "gain": Interval(**_numbers(own["gain"]))})) for name, own in found.items()}
        commit, device = record["provenance"]["commit"], record.get("device", "cpu")
        depth = f"; {_said(record['depth'])}" if "depth" in record else ""  # older records have none
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); remove it to score again") from None
    screen.say(f"{path}: scored before, at commit {commit}, on {device}{depth}")
    return scores


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def _scores(confusion_NCC: Mapping[str, NDArray[np.int64]], config: Config, scenes: Sequence[int] | None) -> dict[str, Score]:
    absent, settings = config.evaluation.absent_classes, config.search
    scores = {}
    for name, own_NCC in confusion_NCC.items():
        pooled_CC = own_NCC.sum(0)
        gain = paired_bootstrap(
            own_NCC, confusion_NCC[PAPER], absent=absent, num_resamples=settings.resamples, seed=settings.seed, groups=scenes
        )
        scores[name] = Score(float(mean_iou(pooled_CC, absent=absent)), SegmentationSums(pooled_CC).pixel_accuracy, gain)
    return scores


def _write_matrices(
    confusion_NCC: Mapping[str, NDArray[np.int64]], frames: Sequence[int], folder: Path, absent: Absent
) -> dict[str, str]:
    """A file of `trial_record` for each settings, as of trial 0, 1 and on; returns their names."""
    files = {}
    for number, (name, own_NCC) in enumerate(confusion_NCC.items()):
        files[name] = f"{folder.name}/{number}.parquet"
        sums = [FrameSums(SegmentationSums(own_CC), None) for own_CC in own_NCC]
        write_confusions(folder.parent / files[name], number, frames, [0] * len(frames), sums, absent=absent)
    return files


def _log(tracker: Tracker, run: str, asked: Mapping[str, Any], scores: Mapping[str, Score], depth: Mapping[str, Any]) -> None:
    """To MLflow, whose names of metrics have no apostrophes: files are `settings_1` and on, which tags name.

    Those names are tags, not parameters, which could not change: the same settings may lie elsewhere another time.
    """
    given = [name for name in scores if name not in SHORT]
    short = {**SHORT, **{name: f"settings_{place}" for place, name in enumerate(given, start=1)}}
    tracker.log_params(run, {PATHS.get(name, name): value for name, value in asked.items()})
    tracker.tag(run, {short[name]: name for name in given})
    tracker.log_result(run, {f"depth/{metric}": value for metric, value in depth.items() if value is not None})
    for name, own in scores.items():
        values = {**own._asdict(), **{f"gain/{of}": value for of, value in own.gain._asdict().items()}}
        tracker.log_result(run, {f"{short[name]}/{metric}": value for metric, value in values.items() if metric != "gain"})


def _described(scores: Mapping[str, Score]) -> str:
    """Scores in Markdown."""
    rows = [f"| {name} | {percent(own.mean_iou, 2)} | {points(own.gain._asdict())} |" for name, own in scores.items()]
    return "\n".join(["| settings | mean IoU, % | beside the paper's, points |", "| --- | ---: | ---: |", *rows])


def score_table(scores: Mapping[str, Score], config: Config, *, split: str) -> Table:
    """What `score_settings` found under a config, in percent and points, for a terminal."""
    chosen_by = "searches choose by these frames: what settings are worth on others, --split test says"
    evaluation = config.evaluation
    part = "whole frame" if evaluation.crop == "none" else f"{evaluation.crop} crop"
    table = Table(
        title=f"{split} split, {part}, {evaluation.views_said}, absent classes: {evaluation.absent_classes}",
        caption=chosen_by if split == "validation" and scores.keys() - SHORT.keys() else None,
    )
    table.add_column("settings", overflow="fold")  # the end of a file's path tells it from another
    for heading in ("mean IoU, %", "pixel acc., %", "beside the paper's, points"):
        table.add_column(heading)
    for name, own in scores.items():
        table.add_row(name, percent(own.mean_iou, 2), percent(own.pixel_accuracy, 2), points(own.gain._asdict()))
    return table


def _counted(
    config: Config,
    place: Workspace,
    jobs: Jobs,
    frames: tuple[int, ...],
    *,
    progress: Callable[[int], None],
    say: Callable[[str], None],
) -> Counts:
    """Of each of `jobs`, the confusion matrix of each frame; of each frame, stage 2's depth."""
    shares = shares_of(frames)
    found: dict[int, Counts] = {}
    count = partial(_counting, config, place.store, place.final(STAGES["stage2"]), jobs)
    for part, counted in shared_out(count, shares, config=config, say=say):
        found[part] = counted
        progress(sum(len(shares[done]) for done in found))
    parts = [found[part] for part in range(len(shares))]
    confusion_NCC = {name: np.concatenate([part.confusion_NCC[name] for part in parts]) for name in jobs}
    return Counts(confusion_NCC, reduce(add, [part.depth for part in parts]))


def _counting(
    config: Config, store: Path, start: Path, jobs: Jobs, device: torch.device
) -> Callable[[tuple[int, ...]], Counts]:
    model, opened = trained_model(config, load_final(start), device=device), Store.open(store)
    crfs = {name: None if own is None else build_crf(own).eval().to(device) for name, own in jobs.items()}

    @torch.no_grad()
    def count(frames: tuple[int, ...]) -> Counts:
        counted: dict[str, list[NDArray[np.int64]]] = {name: [] for name in jobs}
        depths: list[DepthSums] = []
        for number in frames:
            frame = opened.frame(number)
            unaries = compute_unaries(model, frame, config, device=device).to(device)
            size = (frame.labels.shape[0], frame.labels.shape[1])
            for name, crf in crfs.items():
                if crf is None:
                    labels, depth = labels_at_full_size(unaries.logits, size), depth_at_full_size(unaries.depth, size)
                else:
                    labels, depth = refined_labels(unaries, crf, size=size), None
                sums = score(frame, Prediction(labels, depth), config.evaluation)
                counted[name].append(sums.segmentation.confusion)
                depths += [] if sums.depth is None else [sums.depth]
        return Counts({name: np.stack(own) for name, own in counted.items()}, reduce(add, depths))

    return count
