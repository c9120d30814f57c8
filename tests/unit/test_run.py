"""Laws of a run as a whole: how it begins, goes on without MLflow and ends. Not here: its phases (test_phases.py), whole runs
on Ray (tests/integration/test_pipeline.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

import pipeline.phases
import pipeline.run
from jointseg.data.manifest import write_manifest
from jointseg.data.views import make_views
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.failures import TrackingError
from pipeline.run import _run_due, run_phases, run_search_command
from pipeline.run_store import RETRIES, VARIABLE
from pipeline.terminal import Terminal
from pipeline.tracking import Tracker
from pipeline.untracked import Untracked
from pipeline.workspace import PIPELINE, Workspace


def test_a_run_that_a_kill_left_open_after_its_last_phase_is_closed(tmp_path, monkeypatch):
    place, closed = Workspace(tmp_path / "run"), []
    place.adopt_config(demo())
    for phase in PIPELINE:
        place.finish(phase, seconds=1)
    monkeypatch.setattr(Tracker, "open", lambda out: SimpleNamespace(close=closed.append))
    run_phases(demo(), place, PIPELINE, screen=Terminal(), verbose=False)
    assert closed == ["pipeline"]


def test_a_finished_run_is_shown_where_its_server_is_down(tmp_path, monkeypatch, capsys):
    def down(out, **how):
        raise TrackingError("http://gone: no answer")

    place = Workspace(tmp_path / "run")
    place.adopt_config(demo())
    for phase in PIPELINE:
        place.finish(phase, seconds=1)
    monkeypatch.setattr(Tracker, "open", down)
    run_phases(demo(), place, PIPELINE, screen=Terminal(), verbose=False)
    assert "nothing to do" in capsys.readouterr().out


def everything(config, place, **how):
    run_phases(config, place, PIPELINE, **how)


def test_where_mlflow_goes_away_the_run_goes_on_without_and_the_same_command_tells_it_later(pipeline_of, monkeypatch, capsys):
    """Here in the second of three phases; what has been told of is finished."""
    own, worked, told, answers = pipeline_of(), [], [], [True]
    own.tracker.client, own.tracker.uri, own.tracker.experiment_id, own.tracker.folder = None, "http://server", "1", None
    own.tracker.offer_again, own.tracker.datasets = lambda: None, [("top", {})]

    def work(name, pipeline):
        worked.append(name)
        with pipeline.tracker.run(name) as run:
            pipeline.tracker.log_params(run, {"phase": name})
            if pipeline.tracker is own.tracker:
                if not answers[0] and name == "stage1":
                    raise TrackingError("http://server: gone")
                told.append(name)

    phases = ("data", "stage1", "stage2")
    monkeypatch.setattr(pipeline.run, "WORK", {name: partial(work, name) for name in phases})
    answers[0] = False
    with pytest.raises(TrackingError) as caught:
        _run_due(own, phases)
    assert (worked, told) == (["data", "stage1", "stage1", "stage2"], ["data"])
    assert list(own.place.done()) == ["data"]
    assert "the run goes on without MLflow: http://server: gone\n" in capsys.readouterr().out
    everything = f"{own.place.out} has everything, and the same command tells MLflow once it answers: http://server: gone"
    assert str(caught.value) == everything
    answers[0] = True
    _run_due(own, [name for name in phases if not own.place.finished(name)])
    assert (told, list(own.place.done())) == (["data", "stage1", "stage2"], list(phases))


def test_without_mlflow_all_that_phases_call_is_another_and_asks_nobody():
    """What is left is for who opens a tracker, and for `log_trial`, which is not called."""
    methods = {name for name, own in vars(Tracker).items() if callable(own) and not name.startswith("_")}
    assert methods - vars(Untracked).keys() == {"troubles_named", "top_run", "end_abandoned", "close", "find"}


def test_where_mlflow_goes_away_while_the_data_are_prepared_the_run_goes_on_too(pipeline_of, monkeypatch):
    """They are told on the run's own page: no run under it ends badly."""
    monkeypatch.setenv(RETRIES, "0")
    uri, done = "http://127.0.0.1:9", []
    own = replace(pipeline_of(), tracker=Tracker(MlflowClient(tracking_uri=uri), uri, "1"))
    monkeypatch.setitem(pipeline.run.WORK, "stage1", lambda run: done.append(run.validation))
    with pytest.raises(TrackingError, match=rf"^{own.place.out} has everything, .*: {uri}: MLflow's store cannot be used: "):
        _run_due(own, ["data", "stage1"])
    assert done == [own.validation]
    assert not own.place.done()


@pytest.mark.parametrize("begin", [everything, run_search_command])
def test_a_folder_whose_link_leads_to_other_frames_now_is_refused_before_anything_runs(
    rooms, small, tmp_path, monkeypatch, begin
):
    place, begun = Workspace(tmp_path / "run"), []
    place.adopt_config(small)
    place.store.symlink_to(rooms.path)
    write_manifest(make_views(rooms.train, small.data), place.views, seeds={}, store_digest="of what it led to")
    for phase in ("data", "stage1", "stage2"):
        place.finish(phase, seconds=1)
    for name in ("run_store", "connected"):
        monkeypatch.setattr(pipeline.run, name, lambda *_, own=name, **__: begun.append(own))
    monkeypatch.setattr(pipeline.run.search, "open_study", lambda *_: begun.append("study"))
    there = sorted(place.out.rglob("*"))
    with pytest.raises(InputError, match=rf"^{place.store}: other frames than {place.out} began with"):
        begin(small, place, screen=Terminal(), verbose=False)
    assert (begun, sorted(place.out.rglob("*"))) == ([], there)


def test_a_new_folder_whose_server_does_not_answer_may_begin_with_other_settings(tmp_path, monkeypatch):
    place = Workspace(tmp_path / "run")
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr(pipeline.run, "connected", lambda **_: nullcontext())
    for seed in (0, 1):
        config = with_overrides(demo(), {"data.rooms_seed": seed})
        with pytest.raises(InputError, match=f"^{VARIABLE}: http://127.0.0.1:9 cannot be used: "):
            run_phases(config, place, ("data",), screen=Terminal(), verbose=False)
    assert place.load_config() is None


def test_a_new_folder_whose_experiment_cannot_be_made_is_left_as_it_was(tmp_path, monkeypatch):
    def refuse(*_):
        raise TrackingError("no")

    place = Workspace(tmp_path / "run")
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path}/elsewhere.db")
    monkeypatch.setattr(pipeline.run, "connected", lambda **_: nullcontext())
    monkeypatch.setattr("pipeline.tracking._create_experiment", refuse)
    with pytest.raises(TrackingError):
        run_phases(demo(), place, ("data",), screen=Terminal(), verbose=False)
    assert [path.name for path in place.out.iterdir()] == [".lock"]
