"""The study on Ray Tune: Optuna asks in batches, each trial runs the CRF alone on the cached unaries.

Not here: spaces, points and the result (search.py), the unaries (unaries.py), the score (jointseg/evaluation.py).
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from jointseg.config import Config
from jointseg.evaluation import score_settings
from jointseg.metrics import segmentation_metrics
from jointseg.model import build_crf
from jointseg.settings import with_overrides
from pipeline.log_lines import Line, append_line, following, read_lines
from pipeline.search import flatten_point, load_space, paper_point, point_key
from pipeline.unaries import UnaryCache, row_of, subset_labels

METRIC = "mean_iou"


@dataclass(frozen=True)
class TrialJob:
    """What every trial shares; paths are absolute and readable on every node."""

    config: Config
    store: Path
    cache: UnaryCache
    known: dict[str, float] = field(default_factory=dict)
    """Scores of points that finished before an interruption, by `point_key`."""


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
        point = flatten_point(self.point)
        score = self.job.known.get(point_key(point))
        return {METRIC: self._score(point) if score is None else score, "done": True}

    def _score(self, point: dict[str, Any]) -> float:
        config = with_overrides(self.job.config, point)
        frames = ((row_of(self.arrays, row), labels) for row, labels in enumerate(self.labels))
        sums = score_settings(frames, build_crf(config).eval(), config.evaluation)
        return segmentation_metrics(sums, absent=config.evaluation.absent_classes)["mean_iou"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next point in the same process."""
        self.point = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is one step: there is nothing to go on from."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was saved."""


class InBatches(Searcher):  # type: ignore[misc]
    """Asks another searcher for a batch of points at once, and tells it their results together, in the order asked.

    What is asked then depends on the seed and the batch alone, not on which trial ends first or how many run at once; so
    a study that is begun again asks for the same points again. (Ray's ConcurrencyLimiter(batch=True) tells as soon as the
    trials that happen to be running have ended.)
    """

    def __init__(self, searcher: Searcher, *, size: int, total: int) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher = searcher
        self.size = size
        self.left = total
        self.waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self.running: dict[str, str] = {}
        self.batch: dict[str, tuple[dict[str, Any] | None, bool] | None] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next point of the batch; None, so that Tune asks again later, while an earlier batch is running."""
        if not self.waiting:
            if self.running or not self.left:
                return None
            self._next_batch()
        slot, point = self.waiting.popleft()
        self.running[trial_id] = slot
        return point

    def _next_batch(self) -> None:
        for slot, outcome in self.batch.items():
            assert outcome is not None
            self.searcher.on_trial_complete(slot, result=outcome[0], error=outcome[1])
        slots = [f"{self.left - number:06d}" for number in range(min(self.size, self.left))]
        self.batch = dict.fromkeys(slots)
        self.waiting.extend((slot, self.searcher.suggest(slot)) for slot in slots)
        self.left -= len(slots)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Keep the outcome until its batch has ended."""
        self.batch[self.running.pop(trial_id)] = (result, error)

    def get_state(self) -> dict[str, Any]:
        """Nothing: a study that is interrupted is begun again, and its finished points are answered from its log."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing was saved."""


class TrialLog(tune.Callback):  # type: ignore[misc]
    """Writes one JSON line for each trial that ends, from the driver."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Append the trial's number in the order asked, its point and its score."""
        self._append(trials, trial, trial.last_result.get(METRIC))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Append a failed trial without a score."""
        self._append(trials, trial, None)

    def _append(self, trials: list[Trial], trial: Trial, score: float | None) -> None:
        append_line(self.path, {"trial": trials.index(trial), "score": score, "point": flatten_point(trial.config)})


def read_trials(log: Path) -> list[Line]:
    """The trials of a study's log, each once, in the order they ended. A study that was begun again repeats some."""
    trials: dict[int, Line] = {}
    for line in read_lines(log):
        trials.setdefault(line["trial"], line)
    return list(trials.values())


def run_study(
    config: Config, store: Path, cache: UnaryCache, folder: Path, *, tell: Callable[[Line], None], verbose: bool = False
) -> list[Line]:
    """Run the study to its last trial; one row a trial, in the order asked: `trial`, `state`, `score` and its point.

    A study that was interrupted is begun again: the same seed asks for the same points, and those that had finished are
    answered from the log instead of computed.

    Args:
        config: the whole config; `search` says how many trials, how many at once, which space.
        store: the prepared frames, for the true labels.
        cache: the unaries of the subset.
        folder: where the log is kept.
        tell: called with each trial that has ended, as TrialLog writes it; those of before an interruption first.
        verbose: Ray Tune's own tables on the screen.
    """
    space, settings, log = load_space(config), config.search, folder / "log.jsonl"
    known = {point_key(line["point"]): line["score"] for line in read_trials(log) if line["score"] is not None}
    shutil.rmtree(folder / "ray_tune", ignore_errors=True)
    optuna.logging.set_verbosity(optuna.logging.INFO if verbose else optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=settings.startup_trials, multivariate=True)
    asked = OptunaSearch(space, metric=METRIC, mode="max", sampler=sampler, points_to_evaluate=[paper_point(space)])
    trainable = tune.with_parameters(CrfTrial, job=TrialJob(config, store, cache, known))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=InBatches(asked, size=settings.batch, total=settings.trials),
            num_samples=settings.trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=str(folder),
            verbose=2 if verbose else 0,
            callbacks=[TrialLog(log)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    with following(lambda: read_trials(log), tell):
        results = tuner.fit()
    assert len(results) == settings.trials, "Ray Tune ended the study before its last trial"
    scores = [None if result.error or not result.metrics else result.metrics.get(METRIC) for result in results]
    return [
        {"trial": number, "state": "failed" if score is None else "finished", "score": score, **flatten_point(result.config)}
        for number, (result, score) in enumerate(zip(results, scores, strict=True))
    ]
