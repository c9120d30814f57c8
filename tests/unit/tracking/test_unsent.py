"""Laws of files that MLflow's store does not take: the run goes on, and they come later. Not here: what is sent."""

from __future__ import annotations

import pytest

from pipeline.run_store import RETRIES
from pipeline.tracking import Tracker
from pipeline.unsent import REFUSALS, UNSENT, Unsent, left_over
from pipeline.workspace import Workspace
from tests.mlflow_runs import status


@pytest.fixture
def files(out):
    """Three files of a run's folder."""
    paths = [out / name for name in ("stage1/final/weights", "report.md", "views.parquet")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return [out / "stage1/final", *paths[1:]]


def listed(tracker, run, folder=None):
    return [artifact.path for artifact in tracker.client.list_artifacts(run, folder)]


def test_where_a_store_refuses_files_the_run_ends_well_and_has_them_once_it_takes_them(tracker, out, files, monkeypatch):
    said, root = [], out / "mlartifacts"
    monkeypatch.setattr(tracker.files, "say", said.append)
    root.write_text("where the folder of artifacts would be")
    with tracker.run("stage1") as run:
        for path in files:
            tracker.log_artifact(run, path, "checkpoint" if path.is_dir() else None)
        tracker.log_text(run, "{}", "trial.json")
        tracker.offer_again()
    assert status(tracker, run) == "FINISHED"
    (line,) = said
    assert line.startswith("MLflow does not take stage1/final, which stays in the folder; the run goes on: [Errno ")
    left = left_over(out)
    assert left is not None and "\n" not in left
    names = "run/report.md, run/views.parquet, stage1/final, trial.json"
    assert left.startswith(f"4 files or folders are not in MLflow yet, only in {out} ({names}): [Errno ")
    root.unlink()
    tracker.send_left_over(out)
    assert listed(tracker, run) == ["checkpoint", "report.md", "trial.json", "views.parquet"]
    assert listed(tracker, run, "checkpoint") == ["checkpoint/weights"]
    assert left_over(out) is None


def test_a_server_that_is_gone_stops_nothing_where_files_are_all_there_is_to_do(tmp_path, monkeypatch):
    """`jointseg score` shows what it has found before."""
    monkeypatch.setenv(RETRIES, "0")
    Workspace(tmp_path).tracking.write_text('{"uri": "http://127.0.0.1:9", "experiment": "one"}')
    Unsent(tmp_path / UNSENT, Store("a")).send(text("a"))
    Tracker.send_left_over(tmp_path)
    assert left_over(tmp_path) is not None


def test_a_file_that_is_logged_again_and_taken_is_no_longer_missed(tracker, out, files):
    root = out / "mlartifacts"
    root.write_text("where the folder of artifacts would be")
    with tracker.run("report") as run:
        tracker.log_artifact(run, files[1])
        root.unlink()
        tracker.files.refused = False  # as in the next process
        tracker.log_artifact(run, files[1])
    assert left_over(out) is None


class Store:
    """Takes files by name, and refuses others."""

    def __init__(self, *refused):
        self.refused, self.tried, self.has = set(refused), [], {}

    def __call__(self, file):
        self.tried.append(file["name"])
        if file["name"] in self.refused:
            raise ConnectionError(f"no {file['name']}")
        self.has[file["name"]] = file.get("text")


def text(name, content=""):
    return {"run": "r", "name": name, "text": content}


def test_after_a_refusal_nothing_is_tried_before_it_is_offered_again(tmp_path):
    """A server that does not answer takes seconds to say so, and a search has a file a trial."""
    store = Store("a")
    unsent = Unsent(tmp_path / "unsent", store)
    for name in "abc":
        unsent.send(text(name))
    assert store.tried == ["a"]
    store.refused.clear()
    unsent.offer()
    unsent.send(text("d"))
    assert store.tried == ["a", *"abcd"]
    assert list((tmp_path / "unsent").iterdir()) == []


def test_what_is_refused_again_lets_the_others_go_before_it(tmp_path):
    """One that is too large for the store, say."""
    store = Store(*"abcd")
    unsent = Unsent(tmp_path / "unsent", store)
    for name in "abcde":
        unsent.send(text(name))
    store.tried.clear()
    store.refused = {"a", "b"}
    unsent.offer()
    assert (store.tried, len(store.tried)) == (["a", "b"], REFUSALS)
    unsent.offer()
    assert list(store.has) == ["c", "d", "e"]
    left = left_over(tmp_path)
    assert left in {
        f"2 files or folders are not in MLflow yet, only in {tmp_path} (a, b): no {name}; the same command sends them"
        for name in "ab"
    }


def test_the_newest_content_is_sent_and_what_is_gone_is_forgotten(tmp_path):
    store = Store("a", "b")
    unsent = Unsent(tmp_path / "unsent", store)
    unsent.send(text("a", "old"))
    unsent.send(text("a", "new"))
    unsent.send({"run": "r", "name": "b", "path": str(tmp_path / "b"), "into": None})
    store.refused.clear()
    unsent.offer()
    assert store.has == {"a": "new"}
    assert left_over(tmp_path) is None


def test_what_another_process_sends_meanwhile_is_passed_over(tmp_path):
    store = Store("a")
    unsent = Unsent(tmp_path / "unsent", store)
    for name in "abc":
        unsent.send(text(name))
    store.refused.clear()

    def upload(file):
        store(file)
        for note in unsent.folder.iterdir():
            note.unlink()

    Unsent(unsent.folder, upload).offer()
    assert (store.has, left_over(tmp_path)) == ({"a": ""}, None)
