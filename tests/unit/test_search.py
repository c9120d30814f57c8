"""Laws of the search without Ray: spaces, points, one trial, results. Not here: the study (integration tests)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import torch
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

import tune_spaces
from jointseg.checkpoint import Checkpoint, load_final, save_checkpoint, save_final
from jointseg.crf.settings import CrfSettings
from jointseg.errors import InputError
from jointseg.evaluation import compute_unaries, score_settings
from jointseg.model import build_crf, build_model
from jointseg.presets import demo
from jointseg.settings import differences, with_overrides
from pipeline.log_lines import append_line
from pipeline.search import (
    flatten_point,
    load_settings,
    load_space,
    paper_point,
    point_key,
    save_result,
)
from pipeline.study import METRIC, CrfTrial, InBatches, TrialJob, read_trials
from pipeline.unaries import ARRAYS, UnaryCache

SPACES = ("crf", "crf_bandwidths", "crf_weights")
WEIGHTS = {"crf/w_appearance": 7.0, "crf/w_depth": 4.0, "crf/w_smoothness": 3.0}
BANDWIDTHS = {
    "crf/theta_alpha": 160.0,
    "crf/theta_beta": 3.0,
    "crf/theta_gamma": 50.0,
    "crf/theta_zeta": 0.2,
    "crf/theta_tau": 3.0,
}


def space_named(name):
    return load_space(with_overrides(demo(), {"search.space": name}))


@pytest.fixture
def own_space(tmp_path, monkeypatch):
    """Puts a file of the user's among tune_spaces/."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(tune_spaces, "__path__", [*tune_spaces.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"tune_spaces.{name}", raising=False)
        monkeypatch.delattr(tune_spaces, name, raising=False)
        return name

    return write


def refusal(act, *arguments):
    with pytest.raises(InputError) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Spaces


@pytest.mark.parametrize(
    ("name", "point"), [("crf", WEIGHTS | BANDWIDTHS), ("crf_weights", WEIGHTS), ("crf_bandwidths", BANDWIDTHS)]
)
def test_a_space_searches_what_it_is_named_for_and_the_papers_point_is_the_papers(name, point):
    assert paper_point(space_named(name)) == point


@pytest.mark.parametrize("name", SPACES)
def test_the_papers_point_lies_inside_every_space(name):
    space = space_named(name)
    for path, value in paper_point(space).items():
        assert space[path].low < value < space[path].high, path


@pytest.mark.parametrize("name", SPACES)
def test_every_point_of_a_space_is_a_config(name):
    space = space_named(name)
    corners = [
        {path: bound(distribution) for path, distribution in space.items()} for bound in (lambda d: d.low, lambda d: d.high)
    ]
    sampler = optuna.samplers.RandomSampler(seed=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    drawn = [study.ask(space).params for _ in range(20)]
    for point in [*corners, *drawn]:
        settings = {path.replace("/", "."): value for path, value in point.items()}
        changed = with_overrides(demo(), settings)
        assert set(differences(demo(), changed)) <= set(settings)


def test_an_unknown_space_lists_the_known_ones():
    message = refusal(space_named, "nope")
    assert message == "search.space: 'nope' is not in tune_spaces/; allowed: crf, crf_bandwidths, crf_weights"


@pytest.mark.parametrize("path", ["crf/theta_omega", "crf.theta_beta", "stage1/lr", "theta_beta"])
def test_a_space_may_only_name_settings_of_the_crf(own_space, path):
    text = f"from optuna.distributions import FloatDistribution\ndef space(): return {{{path!r}: FloatDistribution(0.1, 1)}}"
    message = refusal(space_named, own_space("wrong", text))
    assert message.startswith(f"tune_spaces/wrong.py: {path!r} is not a setting of the CRF; allowed: crf/theta_alpha,")


def test_a_space_without_the_function_is_named(own_space):
    assert refusal(space_named, own_space("empty", "")) == "tune_spaces/empty.py: has no function space()"


def test_a_space_of_the_users_own_is_found_and_may_be_of_any_kind(own_space):
    text = (
        "from optuna.distributions import CategoricalDistribution, IntDistribution\n"
        "def space():\n"
        "    forms = CategoricalDistribution(['crfrnn', 'hadamard'])\n"
        "    return {'crf/num_iterations': IntDistribution(0, 20), 'crf/pairwise': forms}"
    )
    assert paper_point(space_named(own_space("own", text))) == {"crf/num_iterations": 10, "crf/pairwise": "crfrnn"}


# Points and rows


def test_rays_nested_point_becomes_config_paths():
    assert flatten_point({"crf": {"theta_beta": 3.0, "w_depth": 4.0}, "seed": 1}) == {
        "crf.theta_beta": 3.0,
        "crf.w_depth": 4.0,
        "seed": 1,
    }
    assert flatten_point({}) == {}


# What is asked, and when it is told


class Counting(Searcher):
    """Points are numbers in the order asked; remembers what it was told."""

    def __init__(self):
        super().__init__(metric=METRIC, mode="max")
        self.asked, self.told = 0, []

    def suggest(self, trial_id):
        self.asked += 1
        return {"number": self.asked}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told.append(result["number"] if result else None)


def test_a_batch_is_asked_at_once_and_told_in_the_order_asked_whatever_ends_first():
    asked = Counting()
    batches = InBatches(asked, size=2, total=5)
    assert [batches.suggest(name)["number"] for name in "ab"] == [1, 2]
    assert batches.suggest("c") is None
    batches.on_trial_complete("b", {"number": 2})
    assert batches.suggest("c") is None
    batches.on_trial_complete("a", error=True)
    assert (asked.asked, asked.told) == (2, [])
    assert batches.suggest("c")["number"] == 3
    assert (asked.asked, asked.told) == (4, [None, 2])


def test_a_batch_is_asked_whole_even_where_its_first_trial_ends_before_the_second_begins():
    batches = InBatches(Counting(), size=2, total=3)
    batches.suggest("a")
    batches.on_trial_complete("a", {"number": 1})
    assert batches.suggest("b")["number"] == 2
    batches.on_trial_complete("b", {"number": 2})
    assert batches.suggest("c")["number"] == 3
    batches.on_trial_complete("c", {"number": 3})
    assert batches.suggest("d") is None


def test_optuna_asks_the_same_points_whatever_the_order_in_which_trials_end():
    def points(reverse):
        space = space_named("crf_weights")
        sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=3, multivariate=True)
        optunas = OptunaSearch(space, metric=METRIC, mode="max", sampler=sampler, points_to_evaluate=[paper_point(space)])
        batches, seen = InBatches(optunas, size=3, total=12), []
        for first in range(0, 12, 3):
            names = [str(number) for number in range(first, first + 3)]
            new = {name: flatten_point(batches.suggest(name)) for name in names}
            seen += new.values()
            for name in reversed(names) if reverse else names:
                batches.on_trial_complete(name, {METRIC: -new[name]["crf.w_depth"], "training_iteration": 1})
        return seen

    assert points(reverse=True) == points(reverse=False)


def test_a_trial_stands_once_in_the_log_of_a_study_that_was_begun_again(tmp_path):
    log = tmp_path / "log.jsonl"
    for trial, score in ((1, 0.5), (0, 0.25), (1, 0.5), (2, None)):
        append_line(log, {"trial": trial, "score": score, "point": {}})
    assert [(line["trial"], line["score"]) for line in read_trials(log)] == [(1, 0.5), (0, 0.25), (2, None)]


# One trial


@pytest.fixture(scope="module")
def job(rooms, small, tmp_path_factory):
    """Two frames' unaries as the pipeline keeps them."""
    folder, frames, model = tmp_path_factory.mktemp("unaries"), rooms.train[:2], build_model(small)
    unaries = [compute_unaries(model, rooms.frame(number), small, device=torch.device("cpu")) for number in frames]
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", np.stack([getattr(frame, name).numpy() for frame in unaries]))
    return TrialJob(small, rooms.path, UnaryCache(folder, frames))


def trial_at(point, job):
    trial = CrfTrial.__new__(CrfTrial)  # Ray's own constructor wants a cluster
    trial.setup(point, job=job)
    return trial


POINT = {"crf": {"theta_beta": 20.0, "w_appearance": 9.0}}


def test_a_trial_scores_the_crf_on_the_cached_unaries(job, rooms, small):
    reported = trial_at(POINT, job).step()
    model = build_model(small)
    unaries = [
        (compute_unaries(model, rooms.frame(number), small, device=torch.device("cpu")), rooms.frame(number).labels)
        for number in job.cache.frames
    ]
    config = with_overrides(small, flatten_point(POINT))
    assert reported == {METRIC: score_settings(unaries, build_crf(config), config.evaluation).mean_iou(), "done": True}


def test_a_process_that_serves_another_trial_scores_as_a_new_one(job):
    other = {"crf": {"theta_beta": 3.0, "w_appearance": 0.5, "num_iterations": 0}}
    trial = trial_at(POINT, job)
    trial.step()
    assert trial.reset_config(other)
    assert trial.step() == trial_at(other, job).step()


# Results


@pytest.fixture
def final(tmp_path):
    """A finished stage's weights, as far as a search looks at them."""
    save_checkpoint(tmp_path / "last", Checkpoint("stage2", 1, demo(), {"weight": torch.zeros(1)}, {}, []))
    save_final(tmp_path / "final", tmp_path / "last", extra={})
    return tmp_path / "final"


ROWS = [
    {"trial": 0, "state": "finished", "score": 0.25, "crf.theta_beta": 3.0},
    {"trial": 1, "state": "failed", "score": None, "crf.theta_beta": 4.0},
    {"trial": 2, "state": "finished", "score": 0.5, "crf.theta_beta": 6.5},
    {"trial": 3, "state": "finished", "score": float("nan"), "crf.theta_beta": 8.0},
    {"trial": 4, "state": "finished", "score": 0.5, "crf.theta_beta": 7.5},
]


def saved(rows, final, folder: Path):
    trials, settings = folder / "search" / "trials.parquet", folder / "crf_settings.json"
    save_result(rows, demo(), trials=trials, settings=settings, start=final, subset="the digest of the subset")
    return trials, settings


def test_the_best_trial_is_the_result_and_all_trials_are_kept(final, tmp_path):
    trials, settings = saved(ROWS, final, tmp_path)
    found = json.loads(settings.read_text())
    assert found == {
        "settings": {f"crf.{name}": value for name, value in CrfSettings(theta_beta=6.5).model_dump().items()},
        "score": 0.5,
        "paper_score": 0.25,
        "trial": 2,
        "trials": 5,
        "seed": 0,
        "frames": "the digest of the subset",
        "checkpoint": load_final(final)[1],
    }
    assert pq.read_table(trials).column_names == ["trial", "state", "score", "crf.theta_beta"]
    assert str(pq.read_table(trials).to_pylist()) == str(ROWS)
    assert [path.name for path in trials.parent.iterdir()] == ["trials.parquet"]


def test_stage_3_takes_the_settings_that_were_found_and_keeps_the_rest(final, tmp_path):
    _, settings = saved(ROWS, final, tmp_path)
    config = with_overrides(demo(), {"crf.theta_beta": 9, "seed": 4})
    assert differences(demo(), load_settings(settings, config)) == {"seed": (0, 4), "crf.theta_beta": (3.0, 6.5)}


def test_a_search_in_which_every_trial_failed_is_no_result(final, tmp_path):
    assert refusal(saved, ROWS[1:2], final, tmp_path) == "search: none of 1 trials has a score"
    assert not (tmp_path / "crf_settings.json").exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b'{"settings": 4}', b'{"settings": [4]}', b"\xff\xfe", b'{"settings": {"crf.theta_beta": -1}}',
     b'{"settings": {"crf.theta_bta": 1}}'],
)  # fmt: skip
def test_what_is_no_result_of_a_search_is_refused_by_file(tmp_path, text):
    path = tmp_path / "crf_settings.json"
    path.write_bytes(text)
    assert refusal(load_settings, path, demo()).startswith(f"{path}: ")


def test_a_result_that_is_not_there_is_refused_by_file(tmp_path):
    assert refusal(load_settings, tmp_path / "crf_settings.json", demo()).startswith(f"{tmp_path / 'crf_settings.json'}: ")


def test_a_point_that_has_finished_before_is_not_computed_again(job, small):
    known = TrialJob(small, job.store, job.cache, {point_key(flatten_point(POINT)): 0.125})
    assert trial_at(POINT, known).step() == {METRIC: 0.125, "done": True}
