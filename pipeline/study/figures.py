"""Which pictures of a study are drawn, and from what: its trials, what mattered, the frames that gained and lost most.

Not here: how they are drawn (jointseg/search_figures.py, jointseg/figures.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from jointseg.data.store import Store
from jointseg.evaluation import Prediction, refined_labels
from jointseg.figures import save_png, side_by_side
from jointseg.json_files import write_json
from jointseg.model import build_crf
from jointseg.search_figures import Axis, fold_spread, importance_bars, parallel_coordinates, pareto, search_history, slices
from jointseg.settings import with_overrides
from jointseg.whole import appearing_whole
from pipeline.failures import interruptions_wait
from pipeline.log_lines import Line
from pipeline.study.result import pareto_front, scores
from pipeline.study.samplers import OBJECTIVES, Asker
from pipeline.study.spaces import Point, papers_values
from pipeline.study.trial import TrialJob
from pipeline.study.trial_record import FINISHED, STOPPED, confusion_file, read_confusions
from pipeline.study.unaries import row_of

FORESTS = 8
"""fANOVA's forests, each of its own seed and resample of the trials: their spread is the uncertainty shown."""
MOST = 256
"""Trials of a forest, at most: fANOVA takes time by their square, 3 s for as many and 13 s for 600, 16 times."""
TOP, SHOWN = 10, 2


def importance(study: optuna.Study) -> dict[str, tuple[float, float]]:
    """The share of the variance of mean IoU that each parameter explains by itself, and its deviation over resamples of the
    trials; none of too few. Of parameters that not every trial draws there is none.

    The share is the mean of forests over all trials. The deviation is over forests on as many trials drawn with replacement:
    forests on the same trials differ by a half to a quarter of what a study differs from another. Of more than MOST trials each
    forest is of as many of them, drawn for it; the deviation is then that of a study of so many.
    """
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    generator, size = np.random.default_rng(0), min(len(complete), MOST)

    def forests(draw: Callable[[], Iterable[int]]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = []
        while len(found) < FORESTS:
            drawn = [complete[place] for place in draw()]
            if len({trial.values[0] for trial in drawn}) > 1:
                found.append(_shares(study, drawn, seed=len(found)))
        return found

    every = range(len(complete))
    shares = forests(lambda: every if size == len(every) else generator.permutation(len(every))[:size])
    resampled = forests(lambda: generator.integers(len(every), size=size))
    always = [name for name in shares[0] if all(name in trial.params for trial in complete)]
    return {
        name: (math.fsum(one[name] for one in shares) / FORESTS, statistics.stdev(one.get(name, 0.0) for one in resampled))
        for name in always
    }


def _shares(study: optuna.Study, trials: Sequence[FrozenTrial], *, seed: int) -> dict[str, float]:
    # Here, for it brings scikit-learn, which takes a second to import.
    from optuna.importance import FanovaImportanceEvaluator  # noqa: PLC0415

    of_them = optuna.create_study(directions=study.directions)
    of_them.add_trials(trials)
    target = (lambda trial: trial.values[0]) if len(study.directions) > 1 else None
    # Not `get_param_importances`, which scales them to add up to 1, unless an experimental argument says not to: what
    # parameters explain together would be each one's.
    return FanovaImportanceEvaluator(seed=seed).evaluate(of_them, target=target)


@interruptions_wait()
def draw_study(lines: Sequence[Line], asker: Asker, job: TrialJob, result: Mapping[str, Any]) -> None:
    """Draw a study's figures/, with importance.json among them, all or nothing."""
    objective, values = job.config.search.objective, scores(lines)
    title = f"{job.folder.name}: {len(lines)} trials"
    axes, shares = _axes(lines, asker), importance(asker.study)
    finished = [line for line in lines if line["state"] == FINISHED]
    with appearing_whole(job.folder / "figures", replace=True) as folder:
        stopped = [line["trial"] for line in lines if line["state"] == STOPPED]
        save_png(search_history(values, stopped=stopped, title=title), folder / "history.png")
        save_png(slices(axes, values, title=title), folder / "slices.png")
        save_png(parallel_coordinates(axes, values, title=title), folder / "parallel.png")
        if shares:
            named = {name.replace("/", "."): share for name, share in shares.items()}
            save_png(importance_bars(named, left_out=left_out(axes, named), title=title), folder / "importance.png")
        save_png(fold_spread(_top(finished), title=title), folder / "folds.png")
        if len(OBJECTIVES[objective]) > 1:
            second = OBJECTIVES[objective][1]
            points, front = (
                [(own["mean_iou"], own[second]) for own in of] for of in (finished, pareto_front(lines, objective))
            )
            paper = points[0] if finished[0]["trial"] == 0 else None
            figure = pareto(points, front, paper=paper, second=second.replace("_", " "), title=title)
            save_png(figure, folder / "pareto.png")
        _draw_frames(job, result, lines[0]["point"], folder / "frames.png")
        write_json(folder / "importance.json", shares)


def left_out(axes: Sequence[Axis], shares: Collection[str]) -> list[str]:
    """The axes that have no share of the variance, which are called by their config paths."""
    return [axis.name for axis in axes if f"crf.{axis.name}" not in shares]


def _axes(lines: Sequence[Line], asker: Asker) -> list[Axis]:
    papers = papers_values()
    logged = {
        name.replace("/", ".")
        for trial in asker.study.trials
        for name, own in trial.distributions.items()
        if isinstance(own, FloatDistribution | IntDistribution) and own.log
    }
    names = dict.fromkeys(name for line in lines for name in line["point"])
    found = []
    for name in names:
        values = [line["point"].get(name) for line in lines]
        positive = all(not isinstance(value, str) and value > 0 for value in values if value is not None)
        found.append(Axis(name.removeprefix("crf."), values, name in logged and positive, papers[name]))
    return found


def _top(finished: Sequence[Line]) -> list[tuple[str, list[float]]]:
    best = sorted(finished, key=lambda line: -line["mean_iou"])[:TOP]
    shown = [(f"trial {line['trial']}", line["fold_scores"]) for line in best]
    papers = [("trial 0", line["fold_scores"]) for line in finished if line["trial"] == 0]
    return [("paper" if name == "trial 0" else name, folds) for name, folds in dict([*shown, *papers]).items()]


def changed_most(lines_of_winner: Sequence[Line], lines_of_paper: Sequence[Line]) -> list[int]:
    """Places of the frames whose mean IoU rose most, then of those it fell most for; each once, none that stayed.

    Args:
        lines_of_winner: the rows of its confusion file.
        lines_of_paper: those of the paper's point, frame by frame the same.
    """
    pairs = zip(lines_of_winner, lines_of_paper, strict=True)
    gains = np.nan_to_num([own["mean_iou"] - other["mean_iou"] for own, other in pairs]).tolist()  # NaN: all unlabelled
    order = sorted(range(len(gains)), key=lambda place: -gains[place])
    gained = [place for place in order[:SHOWN] if gains[place] > 0]
    lost = [place for place in reversed(order[-SHOWN:]) if gains[place] < 0]
    return gained + lost


def _draw_frames(job: TrialJob, result: Mapping[str, Any], papers: Point, path: Path) -> None:
    """The frames that gained and lost most, computed again under both settings; of trials of the CRF alone."""
    if result["gain"] is None or result["trial"] == 0 or job.config.search.fidelity == "finetune":
        return  # what a training made of them is not kept
    rows = [read_confusions(confusion_file(job.folder, number))[0] for number in (result["trial"], 0)]
    places = changed_most(*rows)
    if not places:
        return
    store, arrays = Store.open(job.store), job.cache.arrays()
    drawn: dict[str, dict[int, Prediction]] = {}
    for name, settings in {"paper's settings": papers, "settings found": result["settings"]}.items():
        crf = build_crf(with_overrides(job.config, settings)).eval()
        labels = {job.cache.frames[place]: refined_labels(row_of(arrays, place), crf) for place in places}
        drawn[name] = {number: Prediction(own, None) for number, own in labels.items()}
    frames = [store.frame(job.cache.frames[place]) for place in places]
    points = {rows[0][p]["frame"]: 100 * (rows[0][p]["mean_iou"] - rows[1][p]["mean_iou"]) for p in places}
    changes = "; ".join(f"{frame}: {more:+.1f}" for frame, more in points.items())
    save_png(side_by_side(frames, drawn, title=f"Points of mean IoU, frame {changes}"), path)
