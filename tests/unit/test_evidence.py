"""Laws of what a result was made from: records that are read, and data and checkpoints that are found by their digests.

Not here: computing it again (test_reproduce.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from jointseg.checkpoint import Checkpoint, final_digest, save_checkpoint, save_final
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.stages import STAGES
from pipeline.evidence import Evidence, find_checkpoint, find_store, gathered
from pipeline.study.tracked_trials import log_trial
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from tests.made_up_runs import RECORD


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


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"by_frame"', '{"table3": {}}', "[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    assert re.search("not a (whole )?record|cannot be read: No such file|no JSON: ", refusal(look_at, path))


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
    assert find_store(evidence_of(record, place), None, tmp_path) == rooms.path
    assert refusal(find_store, evidence_of(record, place), gone, tmp_path) == f"--data: {gone} is not a folder"


def test_data_may_be_given_from_where_one_is(rooms, tmp_path, monkeypatch):
    monkeypatch.chdir(rooms.path.parent)
    assert find_store(evidence_of({**RECORD, "data": rooms.digest}), Path(rooms.path.name), tmp_path) == rooms.path


def test_data_are_looked_for_in_the_runs_folder_and_where_they_came_from(rooms, tmp_path):
    place = Workspace(tmp_path / "run")
    place.out.mkdir()
    config = {"data.source": str(rooms.path.parent / "nyu")}
    trial = {**RECORD, "data": rooms.digest, "config": config}
    assert find_store(evidence_of(trial, place), None, tmp_path) == tmp_path / "store-0"
    place.store.symlink_to(rooms.path)
    run = {"table3": {}, "provenance": {"config": config}, "data": {"digest": rooms.digest}}
    for record in (trial, run):
        assert find_store(evidence_of(record, place), None, tmp_path / "none") == rooms.path


def test_the_checkpoint_is_found_by_its_digest(tmp_path):
    place = Workspace(tmp_path / "run")
    save_checkpoint(tmp_path / "last", Checkpoint("stage2", 1, demo(), {"weight": torch.zeros(1)}, {}, []))
    save_final(place.final(STAGES["stage2"]), tmp_path / "last")
    digest = final_digest(place.final(STAGES["stage2"]))
    assert find_checkpoint(evidence_of({**RECORD, "checkpoint": digest}, place)) == place.final(STAGES["stage2"])
    assert "the record was made with cccccccccccc" in refusal(find_checkpoint, evidence_of(RECORD, place))
    assert "give the one with checkpoint cccccccccccc as --out" in refusal(find_checkpoint, evidence_of())


def test_files_that_mlflow_cannot_give_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs.db")
    elsewhere = client.create_run(client.create_experiment("elsewhere", "s3://bucket/runs")).info.run_id
    assert re.fullmatch(f"mlflow:{elsewhere}: .*(boto|credentials).*", refusal(look_at, f"mlflow:{elsewhere}"))
    cut_short = client.create_run(client.create_experiment("cut short", f"file://{tmp_path}/files")).info.run_id
    client.log_text(cut_short, '{"table3"', "report.json")
    assert refusal(look_at, f"mlflow:{cut_short}").startswith(f"mlflow:{cut_short}: report.json: no JSON: ")


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
                "started": "2026-01-01T00:00:00+00:00",
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
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert look_at(f"mlflow:{trial.info.run_id}", tmp_path / "moved").record == RECORD


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"by_frame": 5}, "by_frame"),
        ({"by_frame": [5, 6]}, "by_frame"),
        ({"by_frame": [{"frame": 1}, {"frame": 2}]}, "by_frame"),
        ({"frames": 5, "config": "small"}, "frames, config"),
        ({"score": "high"}, "score"),
    ],
)
def test_a_record_of_other_things_is_refused(tmp_path, change, named):
    path = tmp_path / "trial.json"
    path.write_text(json.dumps({**RECORD, **change}))
    assert refusal(look_at, path) == f"{path}: not a record: {named} holds something else than one does"


def test_a_report_of_other_things_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"table2": {}, "table3": 1, "search": {}, "data": [], "provenance": {}}))
    assert refusal(look_at, path) == f"{path}: not a record: table3, data holds something else than one does"


def test_a_record_of_a_trial_has_a_score_for_each_fold(tmp_path):
    path = tmp_path / "trial.json"
    path.write_text(json.dumps({**RECORD, "fold_scores": [0.25, 0.75, 0.5]}))
    assert refusal(look_at, path) == f"{path}: not a whole record: fold_scores has not each of by_frame's folds once"
    path.write_text(json.dumps({**RECORD, "fold_scores": [0.25, "high"]}))
    assert refusal(look_at, path) == f"{path}: not a record: a score is no number"


@pytest.mark.parametrize("rows", [{}, {"sem_crf": {}}, {"unary_sem": {}, "unary_sem_depth": {}, "sem_crf": {}, "best": {}}])
def test_a_report_has_every_row(tmp_path, rows):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"table2": {}, "table3": rows, "search": {}, "data": {}, "provenance": {}}))
    wanted = "unary_sem, unary_sem_depth, sem_crf, sem_crf_plus"
    assert refusal(look_at, path) == f"{path}: not a whole record: table3 has not the rows {wanted}"
