"""Laws of curves and results in MLflow, on a real SQLite store. Not here: runs, parameters and files (test_tracking.py)."""

from __future__ import annotations

import itertools
import math

from pipeline.tracking import Tracker
from tests.mlflow_runs import history


def test_a_point_logged_again_after_a_restart_stays_one(out, tracker):
    for one in (tracker, Tracker.open(out)):
        with one.run("stage1") as run:
            for step in (10, 20):
                one.log_metrics(run, {"loss/total": 1 / step, "lr": 1e-3}, step=step, when=1e9 + step / 8)
    assert history(tracker, run, "loss/total") == [(10, 0.1), (20, 0.05)]
    assert history(tracker, run, "lr") == [(10, 1e-3), (20, 1e-3)]
    times = [point.timestamp for point in tracker.client.get_metric_history(run, "lr")]
    assert times == [10**12 + 1250, 10**12 + 2500], "in milliseconds, when they were"


def test_a_long_curve_is_logged_at_once_and_each_point_of_it_once(tracker):
    curve = {step: {"best_so_far": step / 4, "left out": math.nan} for step in range(2500)}
    with tracker.run("search") as run:
        when = {step: 1e9 + step for step in curve}
        tracker.log_metrics(run, curve[7], step=7, when=when[7])
        for _ in range(2):
            tracker.log_curves(run, curve, when=when)
    assert history(tracker, run, "best_so_far") == [(step, step / 4) for step in curve]


def test_of_a_result_that_came_out_otherwise_the_newer_is_shown(out, tracker, monkeypatch):
    """MLflow shows the larger of two values of one step and time."""
    milliseconds = itertools.count(10**12)
    monkeypatch.setattr("pipeline.tracking.time.time_ns", lambda: 10**6 * next(milliseconds))
    with tracker.run("evaluation") as run:
        for one, rmse in ((tracker, 0.75), (Tracker.open(out), 0.75), (tracker, 0.5), (tracker, 0.625)):
            one.log_result(run, {"rmse": rmse, "nan": math.nan})
            assert tracker.client.get_run(run).data.metrics == {"rmse": rmse}
    assert [value for _, value in history(tracker, run, "rmse")] == [0.75, 0.5, 0.625]


def test_what_is_not_finite_is_left_out(tracker):
    with tracker.run("stage1") as run:
        tracker.log_metrics(run, {"one": 1.0, "nan": math.nan, "inf": math.inf, "minus": -math.inf}, step=0, when=1.0)
        tracker.log_metrics(run, {"nan": math.nan}, step=0, when=1.0)
        assert tracker.client.get_run(run).data.metrics == {"one": 1.0}


def test_the_last_step_is_where_a_restart_goes_on(tracker):
    with tracker.run("stage1") as run:
        assert tracker.last_step(run, "loss/total") == -1
        for step in (10, 30, 20):
            tracker.log_metrics(run, {"loss/total": 1.0}, step=step, when=step)
        assert tracker.last_step(run, "loss/total") == 30
