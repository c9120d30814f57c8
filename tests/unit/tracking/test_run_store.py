"""Laws of where a folder's runs are: in one store, whatever the environment says later. Not here: what goes there."""

from __future__ import annotations

import json

import pytest
from mlflow.exceptions import MlflowException

from jointseg.errors import InputError
from pipeline.run_store import EXPERIMENT, IN_JOB, VARIABLE, page_of, run_store, shown, without_password
from pipeline.tracking import TOP, Tracker
from pipeline.workspace import Workspace
from tests.mlflow_runs import all_runs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in (VARIABLE, EXPERIMENT, IN_JOB):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def refusal(out):
    with pytest.raises(InputError) as caught:
        run_store(out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_the_variable_it_lies_in_the_folder_and_need_not_be_remembered(folder):
    store = run_store(folder)
    assert (store.uri, store.is_own) == (f"sqlite:///{folder / 'mlflow.db'}", True)
    store.remember()
    assert list(folder.iterdir()) == []


def test_folders_of_one_name_in_two_places_have_two_experiments(tmp_path, folder):
    one, two = (run_store(tmp_path / name / "run").experiment for name in "ab")
    assert one != two and one.startswith("run-") and two.startswith("run-")


def test_a_folder_stays_with_the_server_that_it_was_begun_with(folder, monkeypatch):
    monkeypatch.setenv(VARIABLE, "https://me:secret@server:5000")
    begun = run_store(folder)
    begun.remember()
    assert "secret" not in (folder / "tracking.json").read_text()
    again = run_store(folder)
    assert (again.uri, again.experiment) == ("https://me:secret@server:5000", begun.experiment)
    monkeypatch.delenv(VARIABLE)
    assert (run_store(folder).uri, run_store(folder).experiment) == ("https://server:5000", begun.experiment)
    monkeypatch.setenv(VARIABLE, "https://other:pass@another")
    said = (
        f"{VARIABLE}: https://another is not where the runs of {folder} are; allowed: https://server:5000, or to leave it unset"
    )
    assert refusal(folder) == said


def test_on_a_server_folders_may_share_an_experiment_and_each_remembers_which_runs_are_its_own(tmp_path, folder, monkeypatch):
    monkeypatch.setenv(VARIABLE, "http://server:5000")
    monkeypatch.setenv(EXPERIMENT, "nyu")
    one, two = run_store(folder), run_store(tmp_path / "two")
    assert one.experiment == two.experiment == "nyu"
    assert one.folder and two.folder and one.folder != two.folder
    one.remember()
    monkeypatch.delenv(EXPERIMENT)
    again = run_store(folder)
    assert (again.experiment, again.folder) == ("nyu", one.folder)
    alone = run_store(tmp_path / "three")
    assert (alone.experiment.startswith("three-"), alone.folder) == (True, None)
    alone.remember()
    monkeypatch.setenv(EXPERIMENT, "nyu")
    assert run_store(tmp_path / "three").experiment == alone.experiment, "a folder stays in the experiment that it has runs in"


@pytest.mark.parametrize("uri", [None, "sqlite:////elsewhere/mlflow.db", "postgresql://server/mlflow"])
def test_elsewhere_than_on_a_server_a_folders_experiment_is_its_own(folder, monkeypatch, uri):
    """A database keeps files where its experiment was begun: in a folder, which may go away."""
    monkeypatch.setenv(EXPERIMENT, "nyu")
    if uri is not None:
        monkeypatch.setenv(VARIABLE, uri)
    assert run_store(folder).experiment.startswith("run-")


def test_a_folder_of_an_earlier_version_has_its_experiment_to_itself(folder, monkeypatch):
    (folder / "tracking.json").write_text(json.dumps({"uri": "http://server:5000", "experiment": "run-1"}))
    monkeypatch.setenv(EXPERIMENT, "nyu")
    assert (run_store(folder).experiment, run_store(folder).folder) == ("run-1", None)


def test_a_folder_with_a_store_of_its_own_is_not_gone_on_with_elsewhere(folder, monkeypatch):
    (folder / "mlflow.db").touch()
    own = run_store(folder).uri
    monkeypatch.setenv(VARIABLE, "https://server")
    assert refusal(folder).endswith(f"allowed: {own}, or to leave it unset")
    monkeypatch.setenv(VARIABLE, own)
    assert run_store(folder).is_own


def test_a_folder_made_again_where_one_was_is_another_experiment(folder, monkeypatch, tmp_path):
    """As on two machines whose containers both call it /workspace/run."""
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path / 'shared.db'}")
    first = Tracker.open(folder)
    with first.run("run", key=TOP) as run:
        first.log_params(run, {"seed": 0})
    (folder / "tracking.json").unlink()
    second = Tracker.open(folder)
    with second.run("run", key=TOP) as other:
        second.log_params(other, {"seed": 1})
    assert run != other and len(all_runs(first)) == len(all_runs(second)) == 1


def test_a_folder_begun_before_folders_remembered_keeps_its_experiment(folder, monkeypatch):
    by_path = run_store(folder).experiment
    Workspace(folder).finish("data", seconds=1.0)
    monkeypatch.setenv(VARIABLE, "https://server")
    assert run_store(folder).experiment == by_path


@pytest.mark.parametrize("uri", ["postgresql://me@host/runs", "mysql+pymysql://host/runs", "sqlite:////else/where.db"])
def test_files_of_runs_in_a_database_lie_in_the_folder(folder, monkeypatch, uri):
    monkeypatch.setenv(VARIABLE, uri)
    assert run_store(folder).artifacts == (folder / "mlartifacts").as_uri()


@pytest.mark.parametrize("uri", ["https://server:5000", "databricks"])
def test_a_server_says_itself_where_files_go(folder, monkeypatch, uri):
    monkeypatch.setenv(VARIABLE, uri)
    assert run_store(folder).artifacts is None


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("https://me:secret@server/ml/", "https://server/ml/#/experiments/7/runs/ab?workflowType=machine_learning"),
        ("sqlite:////run/mlflow.db", None),
        ("databricks", None),
    ],
)
def test_a_run_has_a_page_where_the_store_is_a_server(uri, page):
    assert page_of("ab", uri=uri, experiment_id="7") == page


def test_a_relative_file_is_meant_from_here_and_refused_in_a_job(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "sqlite:///runs.db")
    assert run_store(folder).uri == f"sqlite:///{tmp_path / 'runs.db'}"
    monkeypatch.setenv(IN_JOB, "{}")
    assert refusal(folder).startswith(f"{VARIABLE}: sqlite:///runs.db is relative, and a job's working directory ")


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"uri": "x"})])
def test_a_damaged_memory_is_named(folder, content):
    (folder / "tracking.json").write_text(content)
    assert refusal(folder).startswith(f"{folder / 'tracking.json'}: damaged (")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@server:5000/a@b", "https://server:5000/a@b"),
        ("postgresql://me@host/runs", "postgresql://host/runs"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("databricks", "databricks"),
        ("http://me:p@ss@server:5000", "http://server:5000"),
        ("sqlite:////me@home/mlflow.db", "sqlite:////me@home/mlflow.db"),
        ("postgresql://host/runs?user=me&password=secret&sslmode=off", "postgresql://host/runs?user=me&sslmode=off"),
        ("postgresql://host/runs?password=secret", "postgresql://host/runs"),
        ("API request to http://me:secret@server:5000/api failed", "API request to http://server:5000/api failed"),
    ],
)
def test_passwords_are_not_shown(uri, shown):
    assert without_password(uri) == shown


def test_of_a_long_story_of_retries_the_request_and_its_trouble_are_shown():
    told = (
        "API request to http://me:secret@server/api/x failed with exception HTTPConnectionPool(host='server', port=80): Max "
        "retries exceeded with url: /api/x (Caused by ResponseError('too many 500 error responses'))"
    )
    said = "API request to http://server/api/x failed: 'too many 500 error responses'"
    assert shown(MlflowException(told)) == said


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(folder, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=f"^MLFLOW_TRACKING_URI: {uri} is no file, and would end with the process; allowed: "):
        run_store(folder)
