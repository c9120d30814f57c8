"""Laws of the phases: what each is given, and what it leaves in the folder and in MLflow. Not here: Ray, whole runs
(tests/integration/test_pipeline.py).
"""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

import pipeline.phases
import pipeline.run
from jointseg.data.manifest import read_manifest, write_manifest
from jointseg.data.store import prepare
from jointseg.data.views import make_views
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import with_overrides
from jointseg.stages import STAGES, TRAININGS
from pipeline.failures import TrackingError
from pipeline.phases import Pipeline, curves_of, evaluate_test, prepare_data, train
from pipeline.row_gains import COMPARED
from pipeline.run import _run_due, run_phases, run_search_command
from pipeline.run_store import RETRIES, VARIABLE
from pipeline.terminal import Terminal
from pipeline.tracking import Tracker
from pipeline.untracked import Untracked
from pipeline.workspace import PIPELINE, Workspace
from tests.checkpoints import untrained_final


class Noting:
    """A tracker that keeps what it is given."""

    troubles_named = staticmethod(nullcontext)

    def __init__(self):
        self.metrics, self.artifacts, self.params, self.tags, self.datasets = {}, [], {}, {}, []

    @contextmanager
    def run(self, name, *, parent=None, key=None):
        yield name

    def log_metrics(self, run, metrics, *, step=0, when=None):
        self.metrics |= {(run, name, step): value for name, value in metrics.items()}

    log_result = log_metrics

    def log_artifact(self, run, path, folder=None):
        self.artifacts.append((run, path.name, folder))

    def log_params(self, run, params):
        self.params[run] = params

    def tag(self, run, tags):
        self.tags[run] = tags

    def has_dataset(self, run):
        return any(run == own for own, _ in self.datasets)

    def log_dataset(self, run, **own):
        self.datasets.append((run, own))

    def last_step(self, run, metric):
        return 1


@pytest.fixture
def pipeline_of(rooms, small, tmp_path):
    """A run in a folder whose data are prepared."""
    place = Workspace(tmp_path / "run")
    place.out.mkdir()
    place.store.symlink_to(rooms.path)

    def made(changes=None):
        own = {"data.source": str(rooms.path.parent / "nyu"), "data.validation_frames": 2}
        return Pipeline(with_overrides(small, own | (changes or {})), place, Noting(), "top", Terminal(), False)

    return made


def find_settings(place, **found):
    """Leave what a search found."""
    settings = {f"crf.{name}": value for name, value in found.items()}
    place.crf_settings.write_text(json.dumps({"study": "crf-1", "settings": settings}))


# Data


@pytest.mark.parametrize("kept", [False, True])
def test_the_validation_frames_are_trained_on_only_where_that_is_asked_for(pipeline_of, rooms, kept):
    own = pipeline_of({"data.train_on_validation": kept})
    prepare_data(own)
    subset = own.place.subset()
    trained = {view.frame for view in read_manifest(own.place.views)}
    assert trained == set(rooms.train) - (set() if kept else set(subset["frames"]))
    assert (len(subset["frames"]), subset["in_training"]) == (2, kept)


def test_of_views_drawn_at_each_visit_the_frames_are_kept_and_told(pipeline_of, rooms, capsys):
    own = pipeline_of({"data.views": "online", "data.crop_scale_min": 0.95})
    prepare_data(own)
    (view,) = read_manifest(own.place.views)
    assert (view.kind, view.height, view.frame in rooms.train) == ("original", 480, True)
    assert "2 for validation; views drawn anew from 1 frames at each visit" in capsys.readouterr().out


def test_the_data_go_to_mlflow_by_their_digest_with_the_views_and_the_validation_frames(pipeline_of, rooms):
    own = pipeline_of()
    prepare_data(own)
    ((run, data),) = own.tracker.datasets
    assert (run, data["digest"]) == ("top", rooms.digest)
    assert data["frames"] == {"train": len(rooms.train), "test": len(rooms.test), "validation": 2}
    assert sorted(own.tracker.artifacts) == [("top", "validation.json", None), ("top", "views.parquet", None)]


def test_a_run_that_was_deleted_in_mlflow_gets_what_was_made_of_the_data_once_more(pipeline_of, rooms):
    own = pipeline_of()
    prepare_data(own)
    before, own.tracker.datasets, own.tracker.artifacts = own.tracker.datasets, [], []  # as a new run has them
    for _ in range(2):
        _run_due(own, [])
    assert own.tracker.datasets == before
    assert sorted(own.tracker.artifacts) == [("top", "validation.json", None), ("top", "views.parquet", None)]


# Training


def test_of_layers_with_one_learning_rate_the_networks_is_drawn_alone():
    row = {"step": 1.0, "loss/total": 0.5, "lr/heads": 0.5, "lr/network": 0.5, "lr/network_bias": 1.0, "lr/crf": 0.5}
    assert curves_of(row) == {"loss/total": 0.5, "lr/network": 0.5, "lr/network_bias": 1.0}
    row = {"step": 1.0, "time": 2.0, "lr/heads": 0.5}
    assert curves_of(row) == {"lr/heads": 0.5}, "of the network's own, where it is frozen, there is none"


def test_stage_3_alone_takes_the_settings_that_were_found(pipeline_of):
    own = pipeline_of()
    find_settings(own.place, theta_beta=9.0)
    found = {name: own.stage_config(stage).crf.theta_beta for name, stage in TRAININGS.items()}
    assert found == {"stage1": 3.0, "stage2": 3.0, "stage3_sem_crf": 9.0, "stage3": 9.0, "one_stage": 3.0}


def test_a_stage_trains_with_what_was_found_and_logs_the_steps_that_were_not_logged_before(pipeline_of, monkeypatch, capsys):
    own, trained = pipeline_of(), []
    find_settings(own.place, theta_beta=9.0)
    own.place.validation.write_text(json.dumps({"frames": [1, 2], "seed": 0, "digest": "d"}))

    def train_stage(config, stage, place, *, validation, tell, say):
        trained.append((config.crf.theta_beta, stage.name, validation))
        for step in (1.0, 2.0):
            tell({"step": step, "loss/total": 1 / step})

    monkeypatch.setattr(pipeline.phases, "train_stage", train_stage)
    monkeypatch.setattr(pipeline.phases, "uses_gpu", lambda config: False)  # it asks Ray
    train(own, STAGES["stage3"])
    assert "stage3: 1 worker(s) of 1 CPU each" in capsys.readouterr().out
    assert own.tracker.tags["stage3"] == {"study": "crf-1"}
    assert trained == [(9.0, "stage3", (1, 2))]
    assert own.tracker.metrics == {("stage3", "loss/total", 2): 0.5}
    assert own.tracker.params["stage3"]["crf.theta_beta"] == 9.0
    assert own.tracker.artifacts == [("stage3", "final", "checkpoint")]


# Evaluation


@pytest.fixture
def evaluated(pipeline_of, small, small_nyu, monkeypatch, last_share_first):
    """A run of untrained stages, evaluated without Ray on two test frames; and what each evaluation was asked for."""
    own, asked, evaluate = pipeline_of({"evaluation.num_figures": 2}), [], pipeline.phases.evaluate
    own.place.store.unlink()
    prepare(small_nyu, own.place.store)
    find_settings(own.place, theta_beta=11.0)  # since stage 3 was trained
    found = with_overrides(small, {"crf.theta_beta": 9.0})
    for name, stage in STAGES.items():
        untrained_final(name, found if stage.settings == "stage3" else small, own.place.final(stage))
    evaluate_rows = evaluate.evaluate_rows

    def noting(jobs, numbers, **named):
        asked.append((jobs, numbers, named))
        return evaluate_rows(jobs, numbers, **named)

    monkeypatch.setattr(evaluate, "evaluate_rows", noting)
    monkeypatch.setattr(evaluate, "start_floors", evaluate.floors)
    monkeypatch.setattr(pipeline.phases, "result_of", lambda floors: floors)
    own.place.validation.write_text(json.dumps({"frames": [1], "seed": 0, "digest": "d"}))
    evaluate_test(own)
    return own, asked


def test_each_row_has_its_stages_weights_and_settings_and_the_best_and_worst_frames_of_the_full_crf_are_drawn_too(evaluated):
    own, ((jobs, numbers, first), (again, extremes, then)) = evaluated
    assert numbers == own.store.test
    assert {stage.name: (job.stage, job.weights, job.config.crf.theta_beta) for stage, job in jobs.items()} == {
        name: (name, own.place.final(stage), 9.0 if stage.settings == "stage3" else 3.0) for name, stage in STAGES.items()
    }
    pictures = json.loads((own.place.evaluation / "metrics.json").read_text())["pictures"]
    assert pictures == {"first": list(numbers), "best": [extremes[0]], "worst": [extremes[1]]}
    assert (first["drawn"], then["drawn"], set(extremes)) == (numbers, extremes, set(numbers))
    assert [stage.name for stage in again] == ["stage3"]


def test_rows_and_floors_go_to_mlflow_as_they_are_written(evaluated):
    own, _ = evaluated
    written = json.loads((own.place.evaluation / "metrics.json").read_text())
    assert list(written["rows"]) == ["unary_sem", "unary_sem_depth", "sem_crf", "sem_crf_plus"]
    assert len({metrics["mean_iou"] for metrics in written["rows"].values()}) > 1
    expected = {f"test/{row}/{name}": value for row, metrics in written["rows"].items() for name, value in metrics.items()}
    expected |= {f"test/floor/{name}": value for name, value in written["floors"].items()}
    compared = [(row, other) for row, others in written["gains"].items() for other in others]
    assert compared == list(COMPARED)
    gains = {(row, other): written["gains"][row][other].items() for row, other in compared}
    expected |= {f"test/gain/{row}_over_{other}/{name}": value for (row, other), own in gains.items() for name, value in own}
    assert own.tracker.metrics == {("evaluation", name, 0): value for name, value in expected.items()}
    assert own.tracker.artifacts == [("evaluation", "evaluation", "evaluation")]


def test_an_evaluation_that_mlflow_was_not_told_of_is_not_made_again(evaluated, pipeline_of, small, monkeypatch):
    own, asked = evaluated
    told = dict(own.tracker.metrics)
    own.tracker.metrics.clear()
    evaluate_test(own)
    assert (len(asked), own.tracker.metrics) == (2, told)
    untrained_final("stage3", with_overrides(small, {"seed": 5}), own.place.final(STAGES["stage3"]))
    evaluate_test(own)
    assert len(asked) == 4, "of other weights it is another"


# The run as a whole


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
