"""Laws of the phases: what each is given, and what it leaves in the folder and in MLflow. Not here: the run as a whole
(test_run.py), Ray (tests/integration/test_pipeline.py).
"""

from __future__ import annotations

import json

import pytest

import pipeline.phases
import pipeline.run
from jointseg.data.manifest import read_manifest
from jointseg.data.store import prepare
from jointseg.settings import with_overrides
from jointseg.stages import STAGES, TRAININGS
from pipeline.phases import curves_of, evaluate_test, prepare_data, train
from pipeline.row_gains import COMPARED
from pipeline.run import _run_due
from tests.checkpoints import untrained_final


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
            tell({"step": step, "time": 1e9 + step, "loss/total": 1 / step})

    monkeypatch.setattr(pipeline.phases, "train_stage", train_stage)
    monkeypatch.setattr(pipeline.phases, "uses_gpu", lambda config: False)  # it asks Ray
    train(own, STAGES["stage3"])
    assert "stage3: 1 worker(s) of 1 CPU each" in capsys.readouterr().out
    assert own.tracker.tags["stage3"] == {"study": "crf-1"}
    assert trained == [(9.0, "stage3", (1, 2))]
    assert own.tracker.metrics == {("stage3", "loss/total", 2): 0.5}
    assert own.tracker.times == {("stage3", 2): 1e9 + 2}, "when it was reported, not when it is told"
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
