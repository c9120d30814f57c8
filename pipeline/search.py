"""The search of CRF settings: Ray Tune asks Optuna, each trial runs the CRF alone on the cached unaries.

Not here: the spaces (tune_spaces/), the unaries (unaries.py), the score (jointseg/evaluation.py).
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from optuna.distributions import BaseDistribution
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search.optuna import OptunaSearch

import tune_spaces
from jointseg.checkpoint import load_final, write_atomically
from jointseg.config import Config
from jointseg.crf.settings import CrfSettings
from jointseg.errors import InputError
from jointseg.evaluation import score_settings
from jointseg.metrics import segmentation_metrics
from jointseg.model import build_crf
from jointseg.settings import flatten, with_overrides
from pipeline.log_lines import Line, append_line, following, read_lines
from pipeline.unaries import UnaryCache, row_of, subset_labels

METRIC = "mean_iou"


@dataclass(frozen=True)
class TrialJob:
    """What every trial shares; paths are absolute and readable on every node."""

    config: Config
    store: Path
    cache: UnaryCache


class CrfTrial(tune.Trainable):  # type: ignore[misc]
    """One trial: the CRF with one point's settings, scored on the subset. Its process serves trial after trial."""

    def setup(self, config: dict[str, Any], job: TrialJob | None = None) -> None:
        """Map the unaries and load the true labels, once a process."""
        assert job is not None
        torch.set_num_threads(1)
        self.job = job
        self.point = config
        self.arrays = job.cache.arrays()
        self.labels = subset_labels(job.store, job.cache.frames)

    def step(self) -> dict[str, Any]:
        """Score the point: mean IoU pooled over the subset."""
        config = with_overrides(self.job.config, flatten_point(self.point))
        frames = ((row_of(self.arrays, row), labels) for row, labels in enumerate(self.labels))
        sums = score_settings(frames, build_crf(config).eval(), config.evaluation)
        metrics = segmentation_metrics(sums, absent=config.evaluation.absent_classes)
        return {METRIC: metrics["mean_iou"], "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next point in the same process."""
        self.point = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is one step: there is nothing to go on from."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was saved."""


class TrialLog(tune.Callback):  # type: ignore[misc]
    """Writes one JSON line for each finished trial. Tune pickles it with the study, so it holds a path alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Append the trial's id, point and score."""
        append_line(self.path, {"id": trial.trial_id, "score": trial.last_result.get(METRIC), "point": trial.config})


def flatten_point(point: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Ray's nested point {"crf": {"theta_beta": 3}} under config paths: {"crf.theta_beta": 3}."""
    flat: dict[str, Any] = {}
    for name, value in point.items():
        flat |= flatten_point(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def load_space(config: Config) -> dict[str, BaseDistribution]:
    """The space that `search.space` names, its names checked against the config's paths.

    Raises:
        InputError: there is no such file, or it names something that is no setting.
    """
    name = config.search.space
    known = sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))
    if name not in known:
        raise InputError(f"search.space: {name!r} is not in tune_spaces/; allowed: {', '.join(known)}")
    space: dict[str, BaseDistribution] = importlib.import_module(f"tune_spaces.{name}").space()
    paths = flatten(config)
    for path in space:
        if path.replace("/", ".") not in paths:
            raise InputError(f"tune_spaces/{name}.py: {path!r} is not a config path with / for .")
    return space


def paper_point(space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """The paper's values of what the space searches: trial 0."""
    values = {f"crf.{name}": value for name, value in flatten(CrfSettings()).items()}
    return {path: values[path.replace("/", ".")] for path in space}


def search(
    config: Config, store: Path, cache: UnaryCache, folder: Path, *, tell: Callable[[Line], None], verbose: bool = False
) -> list[Line]:
    """Run the study to its last trial, going on with an interrupted one; one row a trial, in the order asked.

    Args:
        config: the whole config; `search` says how many trials, how many at once, which space.
        store: the prepared frames, for the true labels.
        cache: the unaries of the subset.
        folder: where Ray Tune keeps the study.
        tell: called with each finished trial, as TrialLog writes it; those of before a restart first.
        verbose: Ray Tune's own tables on the screen.
    """
    space = load_space(config)
    settings = config.search
    optuna.logging.set_verbosity(optuna.logging.INFO if verbose else optuna.logging.WARNING)
    job = TrialJob(config, store, cache)
    trainable = tune.with_resources(tune.with_parameters(CrfTrial, job=job), {"CPU": 1})
    study, log = folder / "ray_tune", folder / "log.jsonl"
    if not any(study.glob("experiment_state-*.json")):
        shutil.rmtree(study, ignore_errors=True)  # interrupted before it had anything to go on from
    if study.is_dir():
        tuner = tune.Tuner.restore(str(study), trainable=trainable, resume_unfinished=True, restart_errored=True)
    else:
        sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=settings.startup_trials, multivariate=True)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=OptunaSearch(
                    space, metric=METRIC, mode="max", sampler=sampler, points_to_evaluate=[paper_point(space)]
                ),
                num_samples=settings.trials,
                max_concurrent_trials=settings.concurrency,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=study.name,
                storage_path=str(study.parent),
                verbose=2 if verbose else 0,
                callbacks=[TrialLog(log)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
    with following(lambda: read_lines(log), tell):
        results = tuner.fit()
    return _rows(results, space)


def _rows(results: tune.ResultGrid, space: dict[str, BaseDistribution]) -> list[Line]:
    """The study's trials as rows, in the order Ray lists them, which is the order they were asked in.

    A point that ran again after a restart, under a new id, stands once.
    """
    rows: dict[tuple[Any, ...], Line] = {}
    for result in results:
        point = flatten_point(result.config)
        values = {path.replace("/", "."): point[path.replace("/", ".")] for path in space}
        score = None if result.error or not result.metrics else result.metrics.get(METRIC)
        row = {"trial": len(rows), "state": "failed" if score is None else "finished", "score": score, **values}
        known = rows.get(tuple(values.values()))
        if known is None:
            rows[tuple(values.values())] = row
        elif known["score"] is None:
            known.update(state=row["state"], score=score)
    return list(rows.values())


def save_result(rows: list[Line], config: Config, *, trials: Path, settings: Path, start: Path, subset: str) -> dict[str, Any]:
    """Write trials.parquet and crf_settings.json; returns the latter.

    Raises:
        InputError: no trial has a score.
    """
    finished = [row for row in rows if row["score"] is not None and math.isfinite(row["score"])]
    if not finished:
        raise InputError(f"search: none of {len(rows)} trials has a score")
    trials.parent.mkdir(parents=True, exist_ok=True)
    partial = trials.with_name(f".{trials.name}.partial")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(trials)
    best = max(finished, key=lambda row: row["score"])
    found = {path: value for path, value in best.items() if path not in {"trial", "state", "score"}}
    _, checkpoint = load_final(start)
    result = {
        "settings": {f"crf.{name}": value for name, value in flatten(with_overrides(config, found).crf).items()},
        "score": best["score"],
        "paper_score": rows[0]["score"],
        "trial": best["trial"],
        "trials": len(rows),
        "seed": config.search.seed,
        "frames": subset,
        "checkpoint": checkpoint,
    }
    write_atomically(settings, json.dumps(result, indent=1))
    return result


def load_settings(path: Path, config: Config) -> Config:
    """`config` with the CRF settings that the search found.

    Raises:
        InputError: the file is not a search's result.
    """
    try:
        found = json.loads(path.read_text())["settings"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the result of a search ({error!r})") from None
    return with_overrides(config, found)
