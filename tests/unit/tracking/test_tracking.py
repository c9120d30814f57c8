"""Laws of what goes to MLflow, on a real SQLite store.

Not here: curves (test_curves.py), trials (test_tracked_trials.py), the store itself (test_tracking_store.py), the tree a whole
run leaves (integration tests).
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.data import get_source
from mlflow.exceptions import MlflowException

from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import flatten
from pipeline.provenance import hardware, own_commit, typed, versions, versions_line
from pipeline.run_store import RETRIES, TIMEOUT, RunStore, few_retries
from pipeline.tracking import PARENT_TAG, Tracker, _create_experiment
from tests.mlflow_runs import all_runs, status

# Runs


def test_a_folder_keeps_its_experiment_and_two_folders_have_two(out, tracker):
    assert Tracker.open(out).experiment_id == tracker.experiment_id
    assert Tracker.open(out.parent / "other").experiment_id != tracker.experiment_id


def test_a_run_is_found_again_after_reopening(out, tracker):
    with tracker.run("pipeline") as parent, tracker.run("stage1", parent=parent) as child:
        pass
    again = Tracker.open(out)
    with again.run("pipeline") as same_parent, again.run("stage1", parent=same_parent) as same_child:
        pass
    assert (same_parent, same_child) == (parent, child)
    assert len(all_runs(tracker)) == 2


def test_folders_that_share_an_experiment_find_and_end_their_own_runs_alone(tracker):
    one, two = (replace(tracker, folder=folder) for folder in ("1111", "2222"))
    with one.run("a", key="pipeline") as first, two.run("b", key="pipeline") as second:
        assert first != second
        assert (one.find("pipeline", None), two.find("pipeline", None)) == (first, second)
        two.end_abandoned(is_scored=lambda _: False)
        assert (status(tracker, first), status(tracker, second)) == ("RUNNING", "KILLED")
    with one.run("a", key="pipeline") as again:
        assert again == first
    assert Tracker.of_run(second, Path(tracker.uri.removeprefix("sqlite:///")).parent).folder == "2222"


def test_in_a_shared_experiment_runs_are_called_after_their_folder(tracker):
    """Charts of several runs show their names alone, and each folder has a stage1."""
    shared = replace(tracker, folder="1111")
    with shared.run("run", key="pipeline") as top, shared.run("stage1", parent=top) as child:
        assert [tracker.client.get_run(run).info.run_name for run in (top, child)] == ["run", "run/stage1"]
        assert shared.find("stage1", top) == child


@pytest.mark.parametrize("folder", [None, "1111"])
def test_an_experiment_says_what_is_in_it(out, tracker, folder):
    own = RunStore(out, tracker.uri, f"described-{folder}", folder=folder)
    found = _create_experiment(tracker.client, own).tags["mlflow.note.content"]
    assert found.startswith(f"Runs of `{out}`. " if folder is None else "Runs of several folders, called after them. ")


def test_an_experiment_that_another_folder_makes_at_the_same_time_is_taken(out, tracker):
    own = RunStore(out, tracker.uri, "nyu", folder="1111")
    made = tracker.client.create_experiment("nyu")
    assert _create_experiment(tracker.client, own).experiment_id == made


def test_a_child_hangs_on_its_parent_and_is_called_by_its_name(tracker):
    with tracker.run("pipeline") as parent, tracker.run("stage1", parent=parent) as child:
        found = tracker.client.get_run(child)
        assert found.data.tags[PARENT_TAG] == parent
        assert found.info.run_name == "stage1"
        assert PARENT_TAG not in tracker.client.get_run(parent).data.tags


def test_children_of_one_name_under_two_parents_are_two(tracker):
    with tracker.run("search", key="one") as one, tracker.run("search", key="other") as other:
        with tracker.run("trial", parent=one) as first, tracker.run("trial", parent=other) as second:
            assert len({one, other, first, second}) == 4
        assert tracker.client.get_run(one).info.run_name == tracker.client.get_run(other).info.run_name == "search"


@pytest.mark.parametrize("name", ["bob's run", 'a "quoted" one', "back`tick", "θ α", "a=b and c", "x" * 200])
def test_a_run_may_have_any_name(tracker, name):
    ids = set()
    for _ in range(2):
        with tracker.run(name, key="pipeline") as run:
            ids.add(run)
    assert len(ids) == 1
    assert tracker.client.get_run(run).info.run_name == name


def test_a_run_is_running_inside_the_block_and_finished_after_it(tracker):
    with tracker.run("stage1") as run:
        assert status(tracker, run) == "RUNNING"
    assert status(tracker, run) == "FINISHED"


TIDYING_UP = FileNotFoundError("a lock that is gone")
TIDYING_UP.__context__ = KeyboardInterrupt()


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (InputError("mistake"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (TIDYING_UP, "KILLED"),
    ],
)
def test_a_run_that_ends_badly_says_how_and_lets_the_reason_through(tracker, error, left):
    def interrupted():
        with tracker.run("stage1") as run:
            ids.append(run)
            raise error

    ids: list[str] = []
    with pytest.raises(type(error)):
        interrupted()
    assert status(tracker, ids[0]) == left
    with tracker.run("stage1") as run:
        assert run == ids[0]
        assert status(tracker, run) == "RUNNING"
    assert status(tracker, run) == "FINISHED"


def test_closing_finishes_a_run_that_a_kill_left_open_and_makes_none(tracker):
    tracker.close("pipeline")
    assert all_runs(tracker) == []
    with tracker.run("run", key="pipeline") as run:
        tracker.close("pipeline")
        assert status(tracker, run) == "FINISHED"


def test_the_run_above_others_is_ended_where_it_is_new_and_left_as_it_is_where_it_is_not(tracker):
    top = tracker.top_run("run")
    assert status(tracker, top) == "FINISHED"
    tracker.client.update_run(top, status="RUNNING")
    assert tracker.top_run("run") == top
    assert status(tracker, top) == "RUNNING"


def test_a_run_says_what_made_it_and_which_other_commits_went_on_with_it(tracker, monkeypatch):
    def tags():
        return tracker.client.get_run(run).data.tags

    with tracker.run("stage1") as run:
        pass
    assert tags()["command"] == typed()
    assert tags()["command"].startswith(tags()["mlflow.source.name"])
    assert "/" not in tags()["mlflow.source.name"]
    assert tags()["mlflow.source.git.commit"] == own_commit()
    assert tags()["versions"] == versions_line(versions())
    assert tags()["hardware"].startswith(hardware()["cpu"])
    assert "commits" not in tags()
    for commit in ("second", "third", "second"):
        monkeypatch.setattr("pipeline.tracking.own_commit", lambda commit=commit: commit)
        with tracker.run("stage1") as again:
            assert again == run
    assert tags()["mlflow.source.git.commit"] == own_commit()
    assert tags()["commits"] == f"{own_commit()}, second, third"


@pytest.mark.parametrize(("lines", "kept"), [(3, 3), (400, 124)])
def test_a_description_too_long_for_mlflow_ends_at_a_line(tracker, lines, kept):
    text = "\n".join(["x" * 39] * lines)
    with tracker.run("pipeline") as run:
        tracker.describe(run, text)
    found = tracker.client.get_run(run).data.tags["mlflow.note.content"]
    assert found == (text if kept == lines else "\n".join(["x" * 39] * kept) + "\n…")


def test_a_tag_may_change(tracker):
    with tracker.run("score") as run:
        for path in ("a.json", "runs/a.json"):
            tracker.tag(run, {"settings_1": path})
    assert tracker.client.get_run(run).data.tags["settings_1"] == "runs/a.json"


def test_an_experiment_that_was_deleted_is_one_line(out, tracker):
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(InputError) as caught:
        Tracker.open(out)
    _, _, command = str(caught.value).partition("was deleted; this brings it back: ")
    assert command == f"MLFLOW_TRACKING_URI={tracker.uri} mlflow experiments restore --experiment-id {tracker.experiment_id}"


def test_a_new_folder_whose_experiment_was_deleted_keeps_nothing(out, tracker, monkeypatch):
    tracker.client.delete_experiment(tracker.client.create_experiment("shared"))
    new = out.parent / "new"
    monkeypatch.setattr("pipeline.tracking.run_store", lambda _: RunStore(new, tracker.uri, "shared", folder="d1"))
    with pytest.raises(InputError, match="experiment 'shared' was deleted"):
        Tracker.open(new)
    assert not new.exists()


@pytest.mark.parametrize("given", [None, "7"])
def test_opening_a_store_leaves_how_often_and_how_long_the_client_asks_as_it_was(out, monkeypatch, given):
    for name in (RETRIES, TIMEOUT):
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    Tracker.open(out)
    assert [os.environ.get(name) for name in (RETRIES, TIMEOUT)] == [given, given]


def test_a_server_that_accepts_and_says_nothing_is_waited_for_for_seconds():
    with socket.create_server(("127.0.0.1", 0)) as silent, few_retries(seconds=1):
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(MlflowException, match="timed out"):
            client.get_run("0" * 32)


# Parameters, metrics, inputs, artifacts


def test_a_setting_that_changes_no_number_may_change_and_others_may_not(tracker):
    settings = flatten(demo())
    with tracker.run("pipeline") as run:
        tracker.log_params(run, settings)
        tracker.log_params(run, {**settings, "training.max_failures": 9})
        found = tracker.client.get_run(run).data
        assert found.params["training.max_failures"] == "0"
        assert found.tags["now/training.max_failures"] == "9"
        tracker.log_params(run, settings)
        assert "now/training.max_failures" not in tracker.client.get_run(run).data.tags
        with pytest.raises(MlflowException):
            tracker.log_params(run, {**settings, "crf.theta_beta": 4.0})


def test_parameters_go_under_their_config_paths_and_may_be_logged_again(tracker):
    params = flatten(demo())
    with tracker.run("pipeline") as run:
        for _ in range(2):
            tracker.log_params(run, params)
        found = tracker.client.get_run(run).data.params
    assert found == {path: str(value) for path, value in params.items()}
    assert found["crf.theta_beta"] == "3.0"


def test_a_parameter_never_changes_in_silence(tracker):
    with tracker.run("pipeline") as run:
        tracker.log_params(run, {"crf.theta_beta": 3.0})
        with pytest.raises(MlflowException, match=r"crf\.theta_beta"):
            tracker.log_params(run, {"crf.theta_beta": 4.0})


def test_a_parameter_too_long_for_mlflow_is_cut_and_may_be_logged_again(tracker):
    with tracker.run("pipeline") as run:
        for _ in range(2):
            tracker.log_params(run, {"data.source": "x" * 10_000})
        assert set(tracker.client.get_run(run).data.params["data.source"]) == {"x"}


def test_the_data_is_an_input_of_the_run_once(tracker):
    with tracker.run("pipeline") as run:
        for _ in range(2):
            tracker.log_dataset(
                run, name="rooms", digest="d" * 64, source="/my rooms", frames={"train": 4}, context="training and testing"
            )
        (found,) = tracker.client.get_run(run).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.dataset.profile) == ("rooms", "d" * 36, '{"train": 4}')
    assert get_source(found).uri == "/my rooms"  # as MLflow itself reads it
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training and testing")]


def test_a_file_and_a_folder_are_artifacts(tracker, tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("figures/one.png", "figures/two.png", "report.md"):
        (tmp_path / name).touch()
    with tracker.run("pipeline") as run:
        tracker.log_artifact(run, tmp_path / "report.md")
        tracker.log_artifact(run, tmp_path / "figures", "figures")
    listed = [artifact.path for folder in (None, "figures") for artifact in tracker.client.list_artifacts(run, folder)]
    assert listed == ["figures", "report.md", "figures/one.png", "figures/two.png"]
