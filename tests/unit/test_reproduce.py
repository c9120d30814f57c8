"""Laws of computing a result again: what is compared, and what is not found. Not here: all of it on Ray (integration tests)."""

from __future__ import annotations

import copy
import json
import math
import re
from contextlib import nullcontext

import pytest
import torch

from jointseg.checkpoint import Checkpoint, load_final, save_checkpoint, save_final
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from pipeline import evaluate, reproduce
from pipeline.evidence import Evidence, find_checkpoint, find_store, gathered
from pipeline.provenance import own_commit
from pipeline.reproduce import compare_rows, compare_trials
from pipeline.terminal import Terminal
from pipeline.tracked_trials import log_trial
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from tests.checkpoints import untrained_final

RECORD = {
    "settings": {"crf.theta_beta": 3.0},
    "score": 0.5,
    "fold_scores": [0.25, 0.75],
    "boundary_f1": None,
    "trial": 3,
    "data": "d" * 64,
    "frames": [11, 12],
    "checkpoint": "c" * 64,
    "config": flatten(demo()),
    "by_frame": [
        {"frame": 11, "fold": 0, "mean_iou": 0.25, "pixel_accuracy": 0.5, "confusion": "aa"},
        {"frame": 12, "fold": 1, "mean_iou": 0.75, "pixel_accuracy": 0.75, "confusion": "bb"},
    ],
}


def changed(**frame):
    record = copy.deepcopy(RECORD)
    record["by_frame"][1] |= frame
    return record


# What is compared


def test_the_same_trial_is_equal():
    found = compare_trials(RECORD, copy.deepcopy(RECORD), tolerance=0)
    assert found.equal
    assert found.compared == 2 + 2 + 2 * 2


def test_a_score_that_differs_in_its_last_digit_is_said_with_both_and_by_how_much():
    found = compare_trials(RECORD, {**RECORD, "score": math.nextafter(0.5, 1)}, tolerance=0)
    assert found.lines == ("mean IoU: 0.5 then and 0.5000000000000001 now, by +1.11e-16",)


def test_a_frame_that_differs_is_named():
    found = compare_trials(RECORD, changed(pixel_accuracy=0.5, confusion="cc"), tolerance=0)
    assert found.lines == ("frame 12, pixel accuracy: 0.75 then and 0.5 now, by -0.25",)


def test_a_frame_whose_classes_came_out_otherwise_differs_whatever_is_tolerated_of_its_pixels():
    found = compare_trials(RECORD, changed(mean_iou=0.25, confusion="cc"), tolerance=0.01)
    assert found.lines == ("frame 12, mean iou: 0.75 then and 0.25 now, by -0.5",)


def test_a_frame_with_as_many_pixels_right_but_other_labels_differs_unless_that_is_tolerated():
    assert compare_trials(RECORD, changed(confusion="cc"), tolerance=0).lines[0].startswith("frame 12: other pixels")
    assert compare_trials(RECORD, changed(confusion="cc"), tolerance=0.001).equal


@pytest.mark.parametrize(("by", "equal"), [(0.0009, True), (0.0011, False)])
def test_differences_up_to_the_tolerance_are_equal(by, equal):
    assert compare_trials(RECORD, {**RECORD, "score": 0.5 - by}, tolerance=0.001).equal is equal


def test_every_metric_of_every_row_is_compared_and_no_number_equals_no_number():
    then = {"sem_crf": {"mean_iou": 0.5, "rmse": None}, "unary_sem": {"mean_iou": 0.25}}
    now = {"sem_crf": {"mean_iou": 0.5, "rmse": math.nan}, "unary_sem": {"mean_iou": 0.5}}
    found = compare_rows(then, now, tolerance=0)
    assert found.compared == 3
    assert found.lines == ("unary_sem, mean_iou: 0.25 then and 0.5 now, by +0.25",)


@pytest.mark.parametrize("now", [{"rmse": 0.5}, {}])
def test_a_number_and_no_number_differ_whatever_is_tolerated(now):
    then = {"sem_crf": {"rmse": None if now else 0.5}}
    assert not compare_rows(then, {"sem_crf": now}, tolerance=0.001).equal


def test_boundaries_are_compared():
    found = compare_trials({**RECORD, "boundary_f1": 0.5}, {**RECORD, "boundary_f1": 0.25}, tolerance=0)
    assert found.lines == ("boundary F1: 0.5 then and 0.25 now, by -0.25",)


# What it was made from


@pytest.mark.parametrize(
    ("record", "commit"),
    [
        ({"by_frame": [], "commit": "c1"}, "c1"),
        ({"by_frame": []}, None),
        ({"table3": {}, "provenance": {"commit": "c2"}}, "c2"),
        ({"table3": {}, "provenance": {"commit": "c2"}, "commits": {"stage1": "c0", "evaluate": "c1"}}, "c1"),
    ],
    ids=["trial", "older trial", "older run", "run"],
)
def test_a_record_knows_which_code_scored_it(record, commit):
    assert Evidence("it", record, None).commit == commit


def evidence_of(record=RECORD, place=None):
    return Evidence("trial.json", record, place)


def refusal(act, *arguments, **named):
    with pytest.raises(InputError) as caught:
        act(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def look_at(what, out=None):
    with gathered(str(what), out=out) as evidence:
        return evidence


def test_a_record_knows_the_folder_of_its_run_from_where_it_lies(tmp_path):
    place = Workspace(tmp_path / "run")
    place.adopt_config(demo())
    place.finish("data", seconds=1)
    (place.search / "one").mkdir(parents=True)
    (place.search / "one" / "crf_settings.json").write_text(json.dumps(RECORD))
    found = look_at(place.search / "one" / "crf_settings.json")
    assert found.place == place
    assert found.record == RECORD
    assert found.config == demo()
    assert not found.is_run


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"by_frame"', '{"table3": {}}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    assert re.search("not a (whole )?record", refusal(look_at, path))


@pytest.mark.parametrize("missing", ["data", "config", "boundary_f1", "checkpoint", "fold_scores"])
def test_what_a_record_lacks_is_named(tmp_path, missing):
    path = tmp_path / "trial.json"
    path.write_text(json.dumps({name: value for name, value in RECORD.items() if name != missing}))
    assert refusal(look_at, path) == f"{path}: not a whole record: it has no {missing}"


def test_a_record_without_some_of_its_frames_is_refused(tmp_path):
    path = tmp_path / "trial.json"
    path.write_text(json.dumps({**RECORD, "by_frame": RECORD["by_frame"][1:]}))
    assert refusal(look_at, path) == f"{path}: not a whole record: by_frame has not each of frames once, in their order"


def test_a_record_of_settings_that_this_version_does_not_know_is_refused():
    message = refusal(lambda: evidence_of({**RECORD, "config": {"crf.theta_omega": 1}}).config)
    assert message.startswith("trial.json: crf.theta_omega: unknown setting")


def test_data_are_found_by_their_digest(rooms, tmp_path):
    record = {**RECORD, "data": rooms.digest}
    assert find_store(evidence_of(record), rooms.path, tmp_path) == rooms.path
    assert find_store(evidence_of(record), rooms.path.parent / "nyu", tmp_path) == tmp_path / "store-0"
    message = refusal(find_store, evidence_of(), rooms.path, tmp_path)
    assert message.startswith(f"trial.json: its data has digest dddddddddddd; looked in {rooms.path} ({rooms.digest[:12]})")
    assert "looked in no folder; give its folder as --data" in refusal(find_store, evidence_of(), None, tmp_path)
    gone, place = tmp_path / "gone", Workspace(tmp_path / "run")
    place.out.mkdir()
    place.store.symlink_to(rooms.path)
    assert find_store(evidence_of(record, place), None, tmp_path) == place.store
    assert refusal(find_store, evidence_of(record, place), gone, tmp_path) == f"--data: {gone} is not a folder"


def test_data_are_looked_for_in_the_runs_folder_and_where_they_came_from(rooms, tmp_path):
    place = Workspace(tmp_path / "run")
    place.out.mkdir()
    config = {"data.source": str(rooms.path.parent / "nyu")}
    trial = {**RECORD, "data": rooms.digest, "config": config}
    assert find_store(evidence_of(trial, place), None, tmp_path) == tmp_path / "store-0"
    place.store.symlink_to(rooms.path)
    run = {"table3": {}, "provenance": {"config": config}, "data": {"digest": rooms.digest}}
    for record in (trial, run):
        assert find_store(evidence_of(record, place), None, tmp_path / "none") == place.store


def test_the_checkpoint_is_found_by_its_digest(tmp_path):
    place = Workspace(tmp_path / "run")
    save_checkpoint(tmp_path / "last", Checkpoint("stage2", 1, demo(), {"weight": torch.zeros(1)}, {}, []))
    save_final(place.final(STAGES["stage2"]), tmp_path / "last")
    _, digest = load_final(place.final(STAGES["stage2"]))
    assert find_checkpoint(evidence_of({**RECORD, "checkpoint": digest}, place)) == place.final(STAGES["stage2"])
    assert "the record was made with cccccccccccc" in refusal(find_checkpoint, evidence_of(RECORD, place))
    assert "give the one with checkpoint cccccccccccc as --out" in refusal(find_checkpoint, evidence_of())


# Computed again


@pytest.fixture
def again(monkeypatch, last_share_first, rooms, tmp_path, capsys):
    """Computes a record again without Ray, on the rooms: whether it came out equal, and what was said."""

    def run(record, place=None):
        (tmp_path / "record.json").write_text(json.dumps(record))
        out = None if place is None else place.out
        equal = reproduce.reproduce(
            str(tmp_path / "record.json"), data=rooms.path, out=out, tolerance=0, screen=Terminal(), verbose=False
        )
        return equal, capsys.readouterr().out.replace("\n", "")

    monkeypatch.setattr(reproduce, "connected", lambda **_: nullcontext())
    return run


def test_both_tables_of_a_run_are_compared_each_row_under_its_own_settings(again, rooms, small, tmp_path):
    place, found = Workspace(tmp_path / "run"), with_overrides(small, {"crf.theta_beta": 30.0, "crf.w_appearance": 50.0})
    jobs = {}
    for name, stage in STAGES.items():
        untrained_final(name, small, place.final(stage))
        config = found if stage.settings == "stage3" else small
        jobs[stage] = evaluate.RowJob(config, name, rooms.path, place.final(stage))
    sums = evaluate.evaluate_rows(jobs, rooms.test, drawn=(), progress=lambda _: None).sums
    rows = {row: total.metrics(small.evaluation) for row, total in sums.items()}
    record = {
        "table3": {row: {"mean_iou": metrics["mean_iou"]} for row, metrics in rows.items()},
        "table2": {row: {"rmse": metrics["rmse"]} for row, metrics in rows.items() if row != "unary_sem"},
        "search": {"best": {"settings": {"crf.theta_beta": 30.0, "crf.w_appearance": 50.0}}},
        "provenance": {"config": flatten(small), "commit": None},
        "data": {"digest": rooms.digest},
    }
    equal, said = again(record, place)
    assert (equal, "7 numbers, to the last digit" in said) == (True, True)
    record["table2"]["sem_crf"]["rmse"] += 1
    equal, said = again(record, place)
    assert (equal, "differs: sem_crf, rmse: " in said) == (False, True)
    assert "sem_crf_plus" not in said
    assert "with the stages' weights, is not found; give it as --out" in refusal(again, record)


def trial_of(small, rooms, tmp_path, changes):
    """A trial's record, whose scores are made up, of a run that has come to stage 2."""
    place = Workspace(tmp_path / "run")
    untrained_final("stage2", small, place.final(STAGES["stage2"]))
    _, checkpoint = load_final(place.final(STAGES["stage2"]))
    record = {**RECORD, "data": rooms.digest, "frames": list(rooms.train[:2]), "checkpoint": checkpoint}
    record["by_frame"] = [{**own, "frame": frame} for own, frame in zip(RECORD["by_frame"], record["frames"], strict=True)]
    return {**record, "config": flatten(small), **changes}, place


def test_a_trial_that_fails_here_is_said_to(again, rooms, small, tmp_path):
    record, place = trial_of(small, rooms, tmp_path, {"settings": {"crf.w_appearance": 3e38, "crf.w_depth": 3e38}})
    assert "the trial fails here: the CRF's logits are NaN or infinite" in refusal(again, record, place)


def test_a_trial_that_does_not_come_out_again_is_told_by_number_and_commit(again, rooms, small, tmp_path, monkeypatch):
    record, place = trial_of(small, rooms, tmp_path, {"settings": {"crf.w_depth": 4.0}, "commit": "another"})
    found = {}

    def kept(then, now, **options):
        found.update(now)
        return compare_trials(then, now, **options)

    monkeypatch.setattr(reproduce, "compare_trials", kept)
    assert not again(record, place)[0], "the scores were made up"
    record |= {name: found[name] for name in ("score", "fold_scores", "boundary_f1", "by_frame")}
    assert again(record, place)[0]
    equal, said = again({**record, "score": record["score"] + 0.01}, place)
    assert not equal
    assert f"differs: mean IoU: {record['score'] + 0.01!r} then and {record['score']!r} now, by -0.01" in said
    assert said.count("differs") == 1
    assert f"it was scored at commit another; this is {own_commit()}" in said


def test_what_a_gpu_scored_is_computed_where_there_is_none(again, rooms, small, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = with_overrides(small, {"search.gpus_per_trial": 0.5, "training.device": "cuda"})
    record, place = trial_of(given, rooms, tmp_path, {"settings": {"crf.w_depth": 4.0}})
    equal, said = again(record, place)
    assert not equal, "the scores were made up"
    assert "it came from a GPU and this machine has none" in said
    assert "differs: mean IoU" in said
    assert "from a GPU" not in again({**record, "config": flatten(small)}, place)[1]


# MLflow


def test_a_run_of_mlflow_is_found_with_its_record_and_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "in which store? Set MLFLOW_TRACKING_URI" in refusal(look_at, "mlflow:abc")
    assert refusal(look_at, "mlflow:abc", tmp_path / "run").endswith("has no MLflow store")
    for uri, said in (
        (f"sqlite:///{tmp_path}/typo/x.db", "x.db: not found"),
        ("postgresql://me:s@cret@127.0.0.1:9/runs", "abc: "),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert said in refusal(look_at, "mlflow:abc")
        assert "s@cret" not in refusal(look_at, "mlflow:abc")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "run").mkdir()
    tracker = Tracker.open(tmp_path / "run")
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "weights.safetensors").write_text("weights")
    with tracker.run("pipeline") as parent:
        with tracker.run("stage2", parent=parent) as stage:
            tracker.log_artifact(stage, tmp_path / "final", "checkpoint")
        with tracker.run("search", parent=parent) as search:
            line = {
                "trial": 3,
                "state": "finished",
                "mean_iou": 0.5,
                "boundary_f1": None,
                "seconds": 1.0,
                "fold_scores": None,
                "error": None,
            }
            log_trial(tracker, search, {**line, "point": {}}, record=RECORD)
            stopped = {"trial": 4, "state": "stopped", "mean_iou": None, "partial_mean_iou": 0.1, "fold_scores": [0.1]}
            log_trial(tracker, search, {**line, **stopped, "point": {}}, record=None)
            log_trial(
                tracker, search, {**line, "trial": 5, "state": "failed", "error": "its score is nan", "point": {}}, record=None
            )
    runs = {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id])}
    trial = runs["trial-0003"]
    for name, said in {"trial-0004": "was stopped early, after 1 folds", "trial-0005": "failed (its score is nan)"}.items():
        asked = f"mlflow:{runs[name].info.run_id}"
        assert refusal(look_at, asked, tmp_path / "run") == f"{asked}: a trial that {said}: it has no score to reproduce"
    assert look_at(f"mlflow:{trial.info.run_id}", tmp_path / "run").record == RECORD
    assert "not a trial, a search or a whole run" in refusal(look_at, f"mlflow:{search}", tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    with gathered(f"mlflow:{trial.info.run_id}", out=None) as evidence:
        assert evidence.place is not None
        final = evidence.place.final(STAGES["stage2"])
        assert (final / "weights.safetensors").read_text() == "weights"
