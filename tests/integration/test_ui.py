"""MLflow's UI as `jointseg ui` serves it, and its end by a signal. Not here: what is logged (test_pipeline.py)."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from jointseg.presets import demo
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from tests.integration.command_line import CommandLine, free_port


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_ui_serves_the_folders_runs_and_ends_with_its_processes(
    jointseg: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Workspace(tmp_path / "run")
    place.out.mkdir()
    place.adopt_config(demo())
    tracker, port = Tracker.open(place.out), free_port()
    with tracker.run("stage1"):
        pass
    with jointseg.in_background("ui", "--out", str(place.out), "--port", str(port)) as (process, printed):
        deadline = time.monotonic() + 400
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, printed.read_text()
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=180) as page:
            assert "MLflow" in page.read().decode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
            data=json.dumps({"experiment_ids": [tracker.experiment_id]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=180) as found:
            assert [run["info"]["run_name"] for run in json.load(found)["runs"]] == ["stage1"]
        process.terminate()
        process.wait(timeout=180)
        deadline = time.monotonic() + 120
        while answers(port):
            assert time.monotonic() < deadline, "a process of the UI was left"
            time.sleep(0.2)
        assert f"http://127.0.0.1:{port}/#/experiments/{tracker.experiment_id}" in printed.read_text()
