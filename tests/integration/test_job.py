"""The pipeline as a submitted job on a Ray cluster that was started for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import TINY, CommandLine, as_options

RAY = str(Path(sys.executable).with_name("ray"))
REPOSITORY = Path(__file__).resolve().parents[2]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def head(jointseg: CommandLine) -> Iterator[str]:
    """The address of a head node's job server; the head ends with the tests, by its process group."""
    port, dashboard = _free_port(), _free_port()
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    process = subprocess.Popen(
        command, env=jointseg.environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 90
        while subprocess.run([RAY, "job", "list", "--address", address], capture_output=True, check=False).returncode:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(1)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _submit(address: str, jointseg: CommandLine, *words: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--address", address, "--", sys.executable, "-m", "pipeline", *words]
    return subprocess.run(command, env=jointseg.environment, capture_output=True, text=True, timeout=400, check=False)


def test_a_submitted_job_trains_and_leaves_its_results_in_the_absolute_out(
    head: str, jointseg: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = _submit(head, jointseg, "train", "--stage", "1", "--out", str(out), *as_options(TINY))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "stage1" / "final" / "weights.safetensors").is_file()
    assert set(json.loads((out / "phases.json").read_text())) == {"data", "stage1"}


def test_a_job_with_a_relative_out_is_refused(head: str, jointseg: CommandLine) -> None:
    done = _submit(head, jointseg, "train", "--stage", "1", "--out", "runs/lost")
    assert done.returncode != 0
    assert "give an absolute path" in done.stdout + done.stderr
