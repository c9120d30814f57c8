"""Laws of the study without Ray: what is asked and when it is told, and one trial. Not here: Tune (integration tests)."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
import torch
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from jointseg.evaluation import compute_unaries, score_settings
from jointseg.model import build_crf, build_model
from jointseg.settings import with_overrides
from pipeline.log_lines import append_line
from pipeline.search import flatten_point, load_space, paper_point, point_key
from pipeline.study import METRIC, CrfTrial, InBatches, TrialJob, read_trials
from pipeline.unaries import ARRAYS, UnaryCache

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


def points_of(config, *, size=3, seed=1, order=list):
    """What Optuna asks in a study of 12 trials, those of a batch ending in `order`."""
    space = load_space(with_overrides(config, {"search.space": "crf_weights"}))
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=3, multivariate=True)
    optunas = OptunaSearch(space, metric=METRIC, mode="max", sampler=sampler, points_to_evaluate=[paper_point(space)])
    batches, seen = InBatches(optunas, size=size, total=12), []
    for first in range(0, 12, size):
        names = [str(number) for number in range(first, first + size)]
        new = {name: flatten_point(batches.suggest(name)) for name in names}
        seen += new.values()
        for name in order(names):
            batches.on_trial_complete(name, {METRIC: -new[name]["crf.w_depth"], "training_iteration": 1})
    return seen


def test_optuna_asks_the_same_points_whatever_the_order_in_which_trials_end(small):
    assert points_of(small, order=reversed) == points_of(small)


def test_the_papers_point_is_asked_first_and_no_point_twice(small):
    points = points_of(small)
    assert points[0] == {"crf.w_appearance": 7.0, "crf.w_depth": 4.0, "crf.w_smoothness": 3.0}
    assert len({point_key(point) for point in points}) == 12


def test_what_is_asked_depends_on_the_seed_and_on_the_batch(small):
    assert points_of(small, seed=2)[1:] != points_of(small)[1:]
    assert points_of(small, size=4)[4:] != points_of(small)[4:]


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


def test_a_point_that_has_finished_before_is_not_computed_again(job, small):
    known = TrialJob(small, job.store, job.cache, {point_key(flatten_point(POINT)): 0.125})
    assert trial_at(POINT, known).step() == {METRIC: 0.125, "done": True}
