"""Laws of a study's pictures: what is drawn where, and what mattered. Not here: pictures of frames."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from PIL import Image

from jointseg.figures import PAPERS, save_png
from jointseg.presets import demo
from jointseg.search_figures import Axis, fold_spread, importance_bars, parallel_coordinates, pareto, search_history, slices
from jointseg.settings import with_overrides
from pipeline.study import figures as search_figures
from pipeline.study.figures import changed_most, importance
from pipeline.study.samplers import Asker
from pipeline.study.spaces import load_space, start_points

BETA = Axis("theta_beta", [3.0, 6.0, None, 12.0], log=True, paper=3.0)
FORM = Axis("pairwise", ["crfrnn", "hadamard", "crfrnn", None], log=False, paper="crfrnn")
SCORES = [0.25, 0.5, 0.75, None]


def red_lines(panel):
    return [line for line in panel.lines if to_rgba(line.get_color()) == to_rgba(PAPERS)]


def drawn(figure):
    """The figure, after matplotlib has laid it out: what cannot be drawn raises here."""
    figure.canvas.draw()
    return figure


def test_the_search_shows_each_trial_the_best_so_far_and_the_papers_point() -> None:
    figure = search_history([0.10, 0.08, None, 0.12, math.nan, 0.11])
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["trial"].get_xydata().tolist() == [[0, 0.10], [1, 0.08], [3, 0.12], [5, 0.11]]
    assert lines["best so far"].get_ydata().tolist() == [0.10, 0.10, 0.10, 0.12, 0.12, 0.12]
    assert lines["best: 12.00%"].get_xydata().tolist() == [[3, 0.12]]
    assert lines["paper's point: 10.00%"].get_xydata().tolist() == [[0, 0.10]]
    assert lines["failed"].get_xdata().tolist() == [2, 4]
    assert "stopped early" not in lines


def test_a_trial_that_was_stopped_early_is_not_drawn_as_one_that_failed() -> None:
    figure = search_history([0.10, None, None, 0.12], stopped=[1])
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["failed"].get_xdata().tolist() == [2]
    assert lines["stopped early"].get_xdata().tolist() == [1]


@pytest.mark.parametrize("scores", [[], [None], [None, 0.1], [0.1]])
def test_a_search_of_any_length_can_be_drawn(scores: list[float | None], tmp_path: Path) -> None:
    save_png(search_history(scores), tmp_path / "search.png")
    assert Image.open(tmp_path / "search.png").format == "PNG"


def test_a_slice_shows_each_trial_that_drew_its_parameter_and_the_papers_value():
    beta, form = drawn(slices([BETA, FORM], SCORES)).axes
    shown = np.ma.filled(beta.collections[0].get_offsets(), np.nan)
    assert shown[:2].tolist() == [[3.0, 0.25], [6.0, 0.5]]
    assert np.isnan(shown[2:]).any(axis=1).all()
    assert (beta.get_xscale(), form.get_xscale()) == ("log", "linear")
    assert [line.get_xdata()[0] for line in (*red_lines(beta), *red_lines(form))] == [3.0, 0.0]
    assert [label.get_text() for label in form.get_xticklabels()] == ["crfrnn", "hadamard"]


def test_parallel_coordinates_have_a_line_a_finished_trial_the_best_on_top_and_the_papers_in_red():
    panel = drawn(parallel_coordinates([BETA, FORM], SCORES)).axes[0]
    (paper,) = red_lines(panel)
    assert len(panel.lines) == 3 + 1
    assert paper.get_ydata().tolist() == [0.0, 0.0]
    assert panel.lines[1].get_ydata().tolist() == pytest.approx([0.5, 1.0])  # 6 is half way from 3 to 12 on a log scale
    assert (panel.lines[2].get_xdata().tolist(), panel.lines[2].get_ydata().tolist()) == ([1], [0.0]), "it drew the form alone"


def test_a_line_goes_on_over_a_parameter_that_its_trial_did_not_draw():
    ends = Axis("theta_tau", [1.0, 2.0, 3.0, 4.0], log=True, paper=3.0)
    panel = drawn(parallel_coordinates([ends, BETA, ends], SCORES)).axes[0]
    assert panel.lines[2].get_xdata().tolist() == [0, 2]


def test_the_title_of_one_slice_is_in_the_picture():
    figure = drawn(slices([BETA], SCORES, title="crf_weights-tpe-0123abcd: 64 trials"))
    (title,) = [text for text in figure.findobj(Text) if "darker: later" in text.get_text()]
    assert title.get_window_extent().x1 <= figure.bbox.x1


def test_a_parameter_that_never_changed_and_no_finished_trial_can_be_drawn():
    still = Axis("theta_tau", [3.0, 3.0], log=True, paper=3.0)
    for draw in (slices, parallel_coordinates):
        drawn(draw([still], [None, None]))


def test_parameters_that_not_every_trial_drew_are_said_to_be_left_out():
    label = drawn(importance_bars({"a": (0.5, 0.1)}, left_out=["w_depth"])).axes[0].get_xlabel()
    assert label.endswith("not drawn by every trial, and left out: w_depth")


def test_bars_rise_to_the_most_important():
    panel = drawn(importance_bars({"a": (0.5, 0.1), "b": (0.1, 0.05), "c": (0.4, 0.0)})).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["b", "c", "a"]
    assert [bar.get_width() for bar in panel.patches] == [0.1, 0.4, 0.5]


def test_folds_stand_above_their_trial_with_mean_and_standard_error():
    panel = drawn(fold_spread([("trial 1", [0.1, 0.3]), ("paper", [0.2, 0.2])])).axes[0]
    assert panel.lines[0].get_ydata().tolist() == [0.1, 0.2]
    (bars,) = panel.containers
    assert bars.lines[0].get_ydata().tolist() == pytest.approx([0.2, 0.2])
    assert [label.get_text() for label in panel.get_xticklabels()] == ["trial 1", "paper"]


def test_a_front_is_a_line_along_the_second_objective():
    points, front = [(0.1, 1.0), (0.3, 4.0), (0.2, 2.0)], [(0.3, 4.0), (0.1, 1.0)]
    panel = drawn(pareto(points, front, paper=(0.2, 2.0), second="seconds")).axes[0]
    assert panel.lines[1].get_xdata().tolist() == [1.0, 4.0]
    assert panel.lines[1].get_ydata().tolist() == [0.1, 0.3]
    assert panel.lines[2].get_xydata().tolist() == [[2.0, 0.2]]
    assert len(drawn(pareto(points, front, paper=None, second="seconds")).axes[0].lines) == 2


# What of a study is drawn


def test_the_ten_best_trials_and_the_papers_point_are_shown_fold_by_fold():
    finished = [{"trial": trial, "mean_iou": trial / 20, "fold_scores": [trial]} for trial in range(12)]
    shown = search_figures._top(finished)
    assert [name for name, _ in shown] == [*(f"trial {trial}" for trial in range(11, 1, -1)), "paper"]
    assert shown[-1][1] == [0]


def test_an_axis_is_logarithmic_where_its_range_is_and_no_value_is_0():
    config = with_overrides(demo(), {"search.space": "depth_or_not", "search.startup_trials": 3})
    space = load_space(config)
    asker = Asker(config.search, space, first=start_points(space, config))
    lines = [{"point": asker.ask(number)} for number in range(12)]
    axes = {axis.name: axis for axis in search_figures._axes(lines, asker)}
    assert axes["theta_beta"].log
    assert 0 in axes["w_depth"].values
    assert not axes["w_depth"].log
    assert None in axes["theta_zeta"].values
    assert axes["theta_zeta"].paper == 0.2


def test_what_not_every_trial_drew_has_no_share_of_the_variance_and_is_named():
    config = with_overrides(demo(), {"search.space": "depth_or_not", "search.startup_trials": 3, "search.trials": 12})
    space = load_space(config)
    asker, lines = Asker(config.search, space, first=start_points(space, config)), []
    for number in range(12):
        lines.append({"point": asker.ask(number)})
        asker.tell(number, {"trial": number, "state": "finished", "mean_iou": number / 100, "fold_scores": [0.1]})
    shares = {name.replace("/", ".") for name in importance(asker.study)}
    missing = search_figures.left_out(search_figures._axes(lines, asker), shares)
    assert missing == ["w_depth", "theta_gamma", "theta_zeta"]


# What mattered


def study_of(value, trials=20):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, value(trial.suggest_float("much", 0, 1), trial.suggest_float("little", 0, 1)))
    return study


def test_what_moves_the_score_more_is_more_important_with_its_uncertainty():
    found = importance(study_of(lambda much, little: much + 0.1 * little))
    assert found["much"][0] > 0.8
    assert sum(mean for mean, _ in found.values()) <= 1
    assert all(deviation >= 0 for _, deviation in found.values())


def test_what_parameters_explain_together_is_said_of_none():
    """Of xy on the unit square each explains 3/7 by itself; of its sign about the middle, nothing."""
    found = importance(study_of(lambda much, little: (much - 0.5) * (little - 0.5) > 0, trials=64))
    assert sum(mean for mean, _ in found.values()) < 0.5


@pytest.mark.slow
def test_its_uncertainty_is_that_of_the_trials_and_not_of_the_forests_alone(monkeypatch):
    """Shares of one function, found by eight studies: they differ as much as each says, within a factor of two."""
    monkeypatch.setattr(search_figures, "FORESTS", 4)
    monkeypatch.setattr(
        "optuna.importance.FanovaImportanceEvaluator", partial(optuna.importance.FanovaImportanceEvaluator, n_trees=32)
    )
    found = []
    for seed in range(8):
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
        for _ in range(30):
            trial = study.ask()
            one, two, three = (trial.suggest_float(name, 0, 1) for name in ("one", "two", "three"))
            study.tell(trial, one + two * three)
        found.append(importance(study)["one"])
    shares, deviations = zip(*found, strict=True)
    assert 0.5 < np.mean(deviations) / np.std(shares, ddof=1) < 2


def test_a_forest_is_of_so_many_trials_and_no_more_for_its_time_grows_with_their_square(monkeypatch):
    sizes, shares_of = [], search_figures._shares

    def counting(study, trials, *, seed):
        sizes.append((len(trials), len({trial.number for trial in trials})))
        return shares_of(study, trials, seed=seed)

    monkeypatch.setattr(search_figures, "FORESTS", 2)
    monkeypatch.setattr(search_figures, "_shares", counting)
    study = study_of(lambda much, little: much + 0.1 * little, trials=40)
    importance(study)
    assert sizes[:2] == [(40, 40)] * 2
    monkeypatch.setattr(search_figures, "MOST", 24)
    found = importance(study)
    assert [size for size, _ in sizes[4:]] == [24] * 4
    assert sizes[4:6] == [(24, 24)] * 2, "without replacement"
    assert found["much"][0] > 0.8


def test_importance_is_of_mean_iou_also_where_two_objectives_are_sought():
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        study.tell(trial, (trial.suggest_float("of the first", 0, 1), trial.suggest_float("of the second", 0, 1)))
    found = importance(study)
    assert found["of the first"][0] > 0.8
    assert 0 < found["of the first"][1] < 0.2


def test_of_too_few_trials_and_of_a_score_that_never_moves_nothing_is_said():
    assert importance(study_of(lambda much, little: much, trials=3)) == {}
    assert importance(study_of(lambda much, little: 0.5)) == {}


def test_frames_that_gained_most_come_first_then_those_that_lost_most():
    def rows(*scores):
        return [{"mean_iou": score} for score in scores]

    assert changed_most(rows(0.5, 0.2, 0.9, 0.4, 0.1), rows(0.4, 0.4, 0.5, 0.4, 0.2)) == [2, 0, 1, 4]
    assert changed_most(rows(0.5, 0.5), rows(0.5, 0.5)) == []
    assert changed_most(rows(0.6, 0.7), rows(0.5, 0.5)) == [1, 0]
