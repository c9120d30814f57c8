"""MLflow's UI as `jointseg ui` serves it, and how it and other commands end when a script that started them ends them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from jointseg.presets import demo
from pipeline.tracking import Tracker
from pipeline.workspace import Workspace
from tests.integration.command_line import free_port


def in_background(*words: str) -> subprocess.Popen[bytes]:
    """As a shell's script starts a command with &: deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen([sys.executable, "-m", "pipeline", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    finally:
        signal.signal(signal.SIGINT, before)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_ui_serves_the_folders_runs_and_ends_with_its_processes(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "run")
    place.out.mkdir()
    place.adopt_config(demo())
    tracker, port = Tracker.open(place.out), free_port()
    with tracker.run("stage1"):
        pass
    process = in_background("ui", "--out", str(place.out), "--port", str(port))
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, "the UI did not start"
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert "MLflow" in page.read().decode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
            data=json.dumps({"experiment_ids": [tracker.experiment_id]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=60) as found:
            assert [run["info"]["run_name"] for run in json.load(found)["runs"]] == ["stage1"]
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}/#/experiments/{tracker.experiment_id}".encode() in said
    deadline = time.monotonic() + 30
    while answers(port):
        assert time.monotonic() < deadline, "a process of the UI was left"
        time.sleep(0.2)


def test_a_command_in_the_background_can_be_ended(tmp_path: Path) -> None:
    process = in_background("data", "rooms", "--out", str(tmp_path / "rooms"), "--frames", "100000")
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert process.poll() is None and time.monotonic() < deadline, "the command did not start"
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")], "a part of the folder was left"
