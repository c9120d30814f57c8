"""Laws of MLflow's store: where it lies, one that cannot be used, a kill while it is made, a full disk.

Not here: what goes to it (test_tracking.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from jointseg.errors import InputError
from pipeline.run_store import RETRIES, without_password
from pipeline.tracking import DISK_ERRORS, Tracker
from pipeline.workspace import Workspace
from tests.mlflow_runs import all_runs, status


def test_without_the_variable_the_store_lies_in_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    opened = Tracker.open(tmp_path)
    assert opened.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert (tmp_path / "mlflow.db").is_file()
    (tmp_path / "page.md").write_text("report")
    with opened.run("pipeline") as run:
        opened.log_artifact(run, tmp_path / "page.md")
    assert list((tmp_path / "mlartifacts").rglob("page.md"))


def test_of_several_that_find_no_store_one_makes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    outs = [tmp_path / name for name in "abc"]
    with ThreadPoolExecutor(3) as pool:
        opened = list(pool.map(Tracker.open, outs))
    for tracker in opened:
        with tracker.run("pipeline") as run:
            assert tracker.client.get_run(run).info.experiment_id == tracker.experiment_id
    assert len({tracker.experiment_id for tracker in opened}) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "mlflow.db"]


@pytest.mark.parametrize(
    "uri",
    [
        "nonsense://somewhere",
        "file:///tmp/mlruns",
        "sqlite:////proc/nowhere/mlflow.db",
        "http://127.0.0.1:9",
        "http://me:s@cret@127.0.0.1:9",
        "http://no such host",
        "postgresql://user@127.0.0.1:9/mlflow",
    ],
)
def test_a_store_that_cannot_be_used_is_named_in_one_line(monkeypatch, tmp_path, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv(RETRIES, "0")
    with pytest.raises(InputError) as caught:
        Tracker.open(tmp_path)
    assert str(caught.value).startswith(f"MLFLOW_TRACKING_URI: {without_password(uri)} cannot be used: ")
    assert "s@cret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "a folder remembers a store that has answered"
    assert "\n" not in str(caught.value)


def test_a_damaged_store_in_the_folder_is_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_text("not a database, though it is long enough to be one. " * 100)
    with pytest.raises(InputError) as caught:
        Tracker.open(tmp_path)
    assert str(caught.value).startswith(f"MLflow's store: sqlite:///{tmp_path / 'mlflow.db'} cannot be used: ")
    assert "\n" not in str(caught.value)


def test_a_store_that_was_killed_while_being_made_is_made_again(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / ".mlflow.db.partial").write_bytes(b"half a store")
    with Tracker.open(tmp_path).run("pipeline"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]


FILL_THE_STORE = """
import os, resource, sys
from pathlib import Path
from jointseg.errors import InputError
from pipeline.run_store import without_password
from pipeline.tracking import Tracker

out = Path(sys.argv[1])
tracker = Tracker.open(out)
try:
    with tracker.run("stage1") as run:
        size = (out / "mlflow.db").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        for step in range(10_000):
            tracker.log_metrics(run, {f"loss/{number}": 1.0 for number in range(100)}, step=step, when=step)
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_no_traceback_of_mlflows(tmp_path):
    """The kernel lets the process write no file longer than the store is."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", FILL_THE_STORE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert done.returncode == 0, done.stderr
    assert done.stdout in {f"{uri}: cannot be written: {said}\n" for said in DISK_ERRORS}
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        RestException({"error_code": "PERMISSION_DENIED", "message": "Permission denied\nmore"}),
        MlflowException("API request to http://server failed with exception refused"),
        requests.HTTPError("413 Client Error: Request Entity Too Large"),
    ],
)
def test_a_server_that_refuses_or_is_gone_is_one_line_and_its_run_has_failed(tracker, error):
    def logged():
        with tracker.run("top") as top, tracker.run("stage1", parent=top) as run:
            ids.extend([top, run])
            raise error

    ids: list[str] = []
    with pytest.raises(InputError) as caught:
        logged()
    said = str(error).splitlines()[0].strip()
    assert str(caught.value) == f"{tracker.uri}: MLflow's store cannot be used: {said}"
    assert [status(tracker, run) for run in ids] == ["FAILED", "FAILED"]


def test_a_run_that_is_deleted_while_it_goes_on_is_one_line_and_another_time_begins_anew(tracker):
    def logged(*, deletes):
        with tracker.run("stage1") as run:
            if deletes:
                tracker.client.delete_run(run)
            tracker.log_metrics(run, {"loss": 1.0}, step=1, when=1.0)

    with pytest.raises(InputError, match=r"The run \w+ must be in the 'active' state.*deleted.*repeat the command") as caught:
        logged(deletes=True)
    assert "\n" not in str(caught.value)
    logged(deletes=False)
    (run,) = all_runs(tracker)
    assert run.info.status == "FINISHED"


def test_a_value_that_mlflow_does_not_take_is_a_mistake_of_ours(tracker):
    def logged():
        with tracker.run("stage1") as run:
            for seed in (1, 2):
                tracker.log_params(run, {"seed": seed})

    with pytest.raises(MlflowException, match="Changing param values"):
        logged()


def test_runs_that_a_kill_left_running_are_ended_but_not_scores_that_go_on_elsewhere(tracker, tmp_path):
    ids = {}
    for key in ("stage1", "search/weights", "score/test-1", "score/test-2", "stage2"):
        with tracker.run(key) as ids[key]:
            pass
        if key != "stage2":
            tracker.client.update_run(ids[key], status="RUNNING")
    place = Workspace(tmp_path / "run")
    with place.locked(place.scores, "test-1"):
        tracker.end_abandoned(is_scored=place.is_scored)
    assert [status(tracker, ids[key]) for key in ids] == ["KILLED", "KILLED", "RUNNING", "KILLED", "FINISHED"]


def test_a_score_that_ends_while_others_are_looked_at_stays_finished(tracker):
    with tracker.run("score/test-1") as run:
        pass
    tracker.client.update_run(run, status="RUNNING")

    def ends_now(_):
        tracker.client.set_terminated(run, status="FINISHED")
        return False

    tracker.end_abandoned(is_scored=ends_now)
    assert status(tracker, run) == "FINISHED"
