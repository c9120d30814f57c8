"""Laws of who asks for points: by name, with the seed alone, and what the journal holds."""

from __future__ import annotations

import json
import warnings

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.study.samplers import Asker, build_sampler
from pipeline.study.spaces import load_space, start_points

TWO = "miou,boundary_f1"


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def config_with(**search):
    given = {"space": "crf_weights", "startup_trials": 3, **search}
    return with_overrides(demo(), {f"search.{name}": value for name, value in given.items()})


def line_at(number, point, *, failed=False, stopped=False):
    """A trial of made-up scores: the nearer w_appearance is to 5, the better."""
    line = _line_at(number, point, failed=failed)
    if not stopped:
        return line
    return {**line, "state": "stopped", "mean_iou": None, "fold_scores": [0.25], "partial_mean_iou": line["mean_iou"] / 2}


def _line_at(number, point, *, failed):
    return {
        "trial": number,
        "state": "failed" if failed else "finished",
        "mean_iou": None if failed else 1 / (1 + abs(point.get("crf.w_appearance", 7) - 5)),
        "boundary_f1": None if failed else 1 / (1 + point.get("crf.w_depth", 4)),
        "fold_scores": None if failed else [0.25, 0.5],
        "seconds": 1.5,
        "started": "2016-04-25T12:00:00+00:00",
        "error": "it failed" if failed else None,
        "point": point,
    }


def asked(config, *, trials=12, batch=4, journal=None, failing=(), stopping=()):
    space = load_space(config)
    asker = Asker(config.search, space, first=start_points(space, config), journal=journal)
    trials, points = asker.limit(trials), []
    for first in range(0, trials, batch):
        new = {number: asker.ask(number) for number in range(first, min(first + batch, trials))}
        for number, point in new.items():
            asker.tell(number, line_at(number, point, failed=number in failing, stopped=number in stopping))
        points += new.values()
    return points


def refusal(**search):
    with pytest.raises(InputError) as caught:
        asked(config_with(**search))
    return str(caught.value)


SAMPLERS = [
    {"sampler": "tpe"}, {"sampler": "cmaes"}, {"sampler": "qmc"}, {"sampler": "random"}, {"sampler": "grid"},
    {"sampler": "tpe", "objective": TWO}, {"sampler": "nsga2", "objective": TWO}, {"sampler": "random", "objective": TWO},
    {"space": "depth_or_not"}, {"space": "crf"}, {"space": "depth_or_not", "sampler": "nsga2", "objective": TWO},
]  # fmt: skip


@pytest.mark.parametrize("search", SAMPLERS, ids=lambda search: "-".join(search.values()))
def test_what_is_asked_is_the_seeds_and_the_papers_point_is_first(search):
    points = asked(config_with(**search))
    assert points == asked(config_with(**search))
    assert points[1:] != asked(config_with(**search, seed=1))[1:]
    assert points[0]["crf.w_depth"] == 4.0
    assert len({json.dumps(point, sort_keys=True) for point in points}) == 12


def test_tpe_comes_nearer_to_the_best_than_chance():
    def missed(sampler):
        points = asked(config_with(sampler=sampler), trials=40)[20:]
        return sum(abs(point["crf.w_appearance"] - 5) for point in points) / len(points)

    assert missed("tpe") < 0.6 * missed("random")


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_as_many_trials_as_asked_for_are_random_before_the_sampler_looks_at_scores(sampler):
    few, many = (asked(config_with(sampler=sampler, startup_trials=count)) for count in (2, 50))
    assert few[:3] == many[:3]
    assert few != many


def test_what_is_asked_depends_on_the_batch():
    assert asked(config_with(), batch=3) != asked(config_with(), batch=4)


def test_more_trials_begin_with_the_same_ones():
    assert asked(config_with(), trials=18)[:10] == asked(config_with(), trials=10)


def test_a_failed_trial_is_no_score_to_the_sampler():
    failing = asked(config_with(startup_trials=1), trials=12, failing=range(2, 12))
    assert failing == asked(config_with(startup_trials=1), trials=12, failing=range(2, 12))
    assert failing != asked(config_with(startup_trials=1), trials=12)


def test_a_trial_that_was_stopped_is_pruned_to_the_sampler_and_neither_complete_nor_failed():
    config, early = config_with(startup_trials=1), range(6)
    stopped = asked(config, stopping=early)
    assert stopped == asked(config, stopping=early)
    assert stopped != asked(config)
    assert stopped != asked(config, failing=early)


def test_the_journal_says_after_how_many_folds_a_trial_was_stopped_and_at_which_score(tmp_path):
    points = asked(config_with(), trials=4, journal=tmp_path / "journal.log", stopping=(2,))
    trials = journal_of(tmp_path / "journal.log").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    partial = line_at(2, points[2], stopped=True)["partial_mean_iou"]
    assert trials[2].intermediate_values == {1: partial}
    assert trials[2].value == partial


def test_a_grid_ends():
    assert len(asked(config_with(sampler="grid", grid_levels=2), trials=100)) == 1 + 2**3


def test_a_start_outside_the_ranges_is_asked_and_not_told(tmp_path):
    (tmp_path / "start.json").write_text('{"crf.w_depth": 400}')
    points = asked(config_with(start=str(tmp_path / "start.json")), journal=tmp_path / "journal.log")
    assert points[1]["crf.w_depth"] == 400
    assert max(point["crf.w_depth"] for point in points[2:]) <= 12


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc", "random", "grid"])
@pytest.mark.filterwarnings("error")
def test_a_sampler_is_made_without_a_warning(sampler):
    config = config_with(sampler=sampler)
    build_sampler(config.search, load_space(config))


def test_what_a_sampler_cannot_do_is_refused():
    one = "search.sampler: nsga2 does not go with search.objective=miou; allowed: "
    two = f"search.sampler: cmaes does not go with search.objective={TWO}; allowed: "
    assert refusal(sampler="nsga2") == f"{one}tpe, cmaes, qmc, random, grid"
    assert refusal(sampler="cmaes", objective=TWO) == f"{two}tpe, nsga2, qmc, random, grid"
    too_many = "search.grid_levels: 6 levels of tune_spaces/crf.py are 20155392 points; allowed: 1000000"
    assert refusal(sampler="grid", space="crf", grid_levels=6) == too_many
    assert refusal(sampler="grid", space="depth_or_not").startswith("search.sampler: a grid over tune_spaces/depth_or_not.py")


# The journal


def journal_of(path):
    return optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(path))))


@pytest.mark.parametrize("search", [{}, {"objective": TWO}, {"space": "depth_or_not"}], ids=["one", "two", "conditional"])
def test_optuna_opens_the_journal_with_every_trial_in_order_and_begun_again_it_has_each_once(tmp_path, search):
    path, config = tmp_path / "journal.log", config_with(**search)
    asked(config, trials=5, journal=path)
    points = asked(config, trials=9, journal=path, failing=(3,))
    study = journal_of(path)
    assert [trial.user_attrs["point"] for trial in study.trials] == points
    assert [trial.number for trial in study.trials if trial.state is optuna.trial.TrialState.FAIL] == [3]
    assert {trial.duration.total_seconds() for trial in study.trials} == {1.5}
    assert study.trials[0].user_attrs["fold_scores"] == [0.25, 0.5]
    assert [trial.user_attrs["trial"] for trial in study.trials] == list(range(9))
    assert study.metric_names == ["mean_iou", "boundary_f1"][: len(study.directions)]
    assert study.best_trials
    assert all(trial.params for trial in study.trials)


@pytest.mark.parametrize("second", ["boundary_f1", "seconds"])
def test_each_objective_is_told_in_its_place(tmp_path, second):
    points = asked(config_with(objective=f"miou,{second}"), trials=2, journal=tmp_path / "journal.log")
    for number, trial in enumerate(journal_of(tmp_path / "journal.log").trials):
        line = line_at(number, points[number])
        assert trial.values == [line["mean_iou"], line[second]]


@pytest.mark.parametrize(("objective", "stopped"), [("miou", 1), (TWO, None)])
def test_a_sampler_is_told_what_the_journal_says(tmp_path, objective, stopped):
    config = config_with(objective=objective)
    space = load_space(config)
    asker = Asker(config.search, space, first=start_points(space, config), journal=tmp_path / "journal.log")
    for number in range(3):
        asker.tell(number, line_at(number, asker.ask(number), stopped=number == stopped, failed=number == 2))
    own, kept = (
        [(trial.state, trial.values, trial.intermediate_values) for trial in study.trials]
        for study in (asker.study, journal_of(tmp_path / "journal.log"))
    )
    assert own == kept


def test_the_lock_that_a_killed_process_left_of_its_journal_is_removed(tmp_path):
    """Optuna would wait for it."""
    lock = tmp_path / "journal.log.lock"
    lock.symlink_to(tmp_path / "gone")
    asked(config_with(), trials=1, journal=tmp_path / "journal.log")
    assert not lock.is_symlink()
