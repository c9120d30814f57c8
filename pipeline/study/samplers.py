"""Optuna, asked for points and told scores: its samplers by name, the points tried first, the journal of what was told.

Not here: where the points are scored (study.py), in which batches they are asked for (batches.py).
"""

from __future__ import annotations

import warnings
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from jointseg.errors import InputError
from jointseg.search_config import SamplerName, SearchConfig
from pipeline.log_lines import Line
from pipeline.study.grid import grid
from pipeline.study.spaces import Point, Space
from pipeline.study.trial_record import FAILED, FINISHED, STOPPED, times

OBJECTIVES = {
    "miou": ("mean_iou",),
    "miou,seconds": ("mean_iou", "seconds"),
    "miou,boundary_f1": ("mean_iou", "boundary_f1"),
}
"""What of a trial's line each objective is told."""
Direction = Literal["maximize", "minimize"]
DIRECTIONS: dict[str, Direction] = {"mean_iou": "maximize", "seconds": "minimize", "boundary_f1": "maximize"}
STATES = {FINISHED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL}
_no_warnings = partial(warnings.catch_warnings, action="ignore", category=optuna.exceptions.ExperimentalWarning)
"""Of what Optuna calls experimental."""
POPULATION = 20
"""Of NSGA-II, a generation. Optuna's own 50 would leave most of a study of this size random."""


def _is_for(name: str, objectives: int) -> bool:
    return {"cmaes": 1, "nsga2": 2}.get(name, objectives) == objectives


def build_sampler(settings: SearchConfig, space: Space) -> BaseSampler:
    """The sampler that `search.sampler` names.

    Raises:
        InputError: it does not go with the objective or the space.
    """
    name, seed, objectives = settings.sampler, settings.seed, len(OBJECTIVES[settings.objective])
    if not _is_for(name, objectives):
        fit = ", ".join(other for other in get_args(SamplerName) if _is_for(other, objectives))
        raise InputError(f"search.sampler: {name} does not go with search.objective={settings.objective}; allowed: {fit}")
    conditional = space.distributions is None
    match name:
        case "cmaes":
            return CmaEsSampler(seed=seed, n_startup_trials=settings.startup_trials, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed, population_size=POPULATION)
        case "qmc":
            with _no_warnings():
                return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        case "tpe":
            with _no_warnings():  # of `multivariate` and `group`
                return TPESampler(seed=seed, n_startup_trials=settings.startup_trials, multivariate=True, group=conditional)
        case _:
            return RandomSampler(seed=seed)


KEPT = ("trial", "point", "fold_scores", "seconds", "error")
"""Of a trial's line, what its entry in the journal has as user attributes."""


class Asker:
    """One study in memory. Asked and told in the same order, it asks for the same points."""

    def __init__(
        self,
        settings: SearchConfig,
        space: Space,
        *,
        first: list[tuple[Point, dict[str, Any], bool]],
        journal: Path | None = None,
        name: str = "search",
    ) -> None:
        """Begin.

        Args:
            settings: sampler, objective and seed.
            space: to draw from.
            first: points tried first, as `spaces.start_points` gives them.
            journal: file for what is told, which optuna-dashboard opens; one that is there is begun again.
            name: of the study in the journal.
        """
        self.space, self.objectives = space, OBJECTIVES[settings.objective]
        directions = [DIRECTIONS[objective] for objective in self.objectives]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with _no_warnings():
            self.study = optuna.create_study(sampler=build_sampler(settings, space), directions=directions, study_name=name)
        self.first = deque(first)
        self.grid = deque(grid(space, levels=settings.grid_levels, seed=settings.seed)) if settings.sampler == "grid" else None
        self.asked: dict[int, optuna.Trial | None] = {}
        self.params: dict[int, dict[str, Any]] = {}
        self.journal = None if journal is None else _new_journal(journal, name, self.objectives)

    def limit(self, trials: int) -> int:
        """How many of `trials` there are to ask for: a grid ends."""
        return trials if self.grid is None else min(trials, len(self.first) + len(self.grid))

    def ask(self, number: int) -> Point:
        """The point of the next trial, which is called `number` when it is told."""
        trial: optuna.Trial | None = None
        if self.first:
            point, params, inside = self.first.popleft()
            if inside:
                trial = self._ask(params)
        else:
            trial = self._ask(self.grid.popleft() if self.grid is not None else None)
            point = self.space.draw(trial)
            params = trial.params
        self.asked[number], self.params[number] = trial, params
        return point

    def _ask(self, params: dict[str, Any] | None) -> optuna.Trial:
        if params is not None:
            self.study.enqueue_trial(params)
        trial = self.study.ask(dict(self.space.distributions or {}))
        if params is not None:
            self.space.draw(trial)  # a space that draws by itself takes the values from the queue
        return trial

    def tell(self, number: int, line: Line) -> None:
        """A trial has ended; one that was stopped early is told as pruned, after so many folds and at the score it had."""
        trial, state = self.asked.pop(number), STATES[line["state"]]
        values = [line[objective] for objective in self.objectives] if state is TrialState.COMPLETE else None
        seen = {len(line["fold_scores"]): line["partial_mean_iou"]} if state is TrialState.PRUNED else {}
        if trial is not None:
            for folds, score in seen.items():
                trial.report(score, step=folds)
            self.study.tell(trial, values, state=state)
        if self.journal is not None:
            self._record(number, line, trial, values or list(seen.values()) or None, seen)

    def _record(
        self, number: int, line: Line, trial: optuna.Trial | None, values: list[float] | None, seen: dict[int, float]
    ) -> None:
        assert self.journal is not None
        known = {} if trial is None else trial.distributions  # `study.trials` would copy them all
        frozen = optuna.trial.create_trial(
            state=STATES[line["state"]],
            values=values,
            intermediate_values=seen,
            params={name: value for name, value in self.params.pop(number).items() if name in known},
            distributions=known,
            user_attrs={name: line[name] for name in KEPT if line.get(name) is not None},
        )
        frozen.datetime_start, frozen.datetime_complete = times(line)
        self.journal.add_trial(frozen)


def _new_journal(path: Path, name: str, objectives: tuple[str, ...]) -> optuna.Study:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in (path, path.with_name(f"{path.name}.lock")):  # a killed process leaves its lock, which Optuna waits for
        left.unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, directions=[DIRECTIONS[one] for one in objectives], study_name=name)
    with _no_warnings():
        study.set_metric_names(list(objectives))
    return study
