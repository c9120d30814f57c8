"""Ray's settings for tests that start it, a head node, a small store, a small run's options.

Not here: how the command is run (command_line.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from pipeline.__main__ import ENVIRONMENT

for name, value in ENVIRONMENT.items():  # before Ray is imported
    os.environ.setdefault(name, value)
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # others may fill the memory
os.environ.setdefault("RAY_worker_niceness", "0")  # workers are nice by default, and the other tests would go first

from jointseg.data.rooms import write_rooms
from jointseg.data.store import Store, prepare
from pipeline.cluster import connected
from tests.integration.command_line import IMPORTED, PROCESSES, CommandLine, free_port
from tests.starting_weights import torchvision_vgg16

# A whole pipeline in about a minute: six rooms to train on, a handful of steps a stage, four trials.
TINY = {
    "data.rooms_train": 6, "data.rooms_test": 2, "data.validation_frames": 2, "network.width": 0.0625,
    "stage1.iterations": 8, "stage1.batch_size": 2, "stage2.iterations": 4, "stage2.batch_size": 2,
    "stage3.iterations": 2, "stage3.batch_size": 1, "search.trials": 4, "search.startup_trials": 2, "search.batch": 2,
    "search.folds": 2,
    "training.cpus_per_worker": 1, "training.log_every": 2, "training.checkpoint_every": 4, "training.validate_every": 4,
    "evaluation.num_figures": 1,
    # 65 x 65 whole: more pixels than the CRF would sum over exactly, so it takes the filters that large images have.
    "network.resize": "stretch",
    # Also what the demo does not have: a frozen trunk whose features are kept, accumulated passes, a mean of the weights.
    "network.frozen_until": "conv2_1", "data.cache_features": True, "stage1.accumulate": 2, "stage1.ema": 0.5,
}  # fmt: skip


SHARED = Path(__file__).resolve().parents[2].parent / "shared"
RAY = str(Path(sys.executable).with_name("ray"))


def as_options(settings: dict[str, object]) -> list[str]:
    return [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]


@pytest.fixture(scope="session")
def jointseg(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    PROCESSES.set_forkserver_preload(IMPORTED)  # here, for it is one setting of this process, and other tests have theirs
    forkserver.ensure_running()
    left_out = {"RAY_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI", "RAY_JOB_CONFIG_JSON_ENV_VAR"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    repository = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [repository, environment.get("PYTHONPATH")]))
    return CommandLine({**environment, "PYTHONPATH": path}, tmp_path_factory.mktemp("printed"))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray of this process's own."""
    with connected():
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four train rooms and one test room."""
    folder = tmp_path_factory.mktemp("rooms")
    write_rooms(folder / "nyu", num_train=4, num_test=1, seed=3)
    return prepare(folder / "nyu", folder / "store")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight and three of NYU's own frames, in its own layout; synthetic rooms where the frames are not at hand. Stage 1 starts
    from weights with torchvision's names.
    """
    folder = tmp_path_factory.mktemp("nyu")
    torch.save(torchvision_vgg16(TINY["network.width"]), folder / "vgg16.pth")  # type: ignore[arg-type]
    weights = ["--set", f"network.weights={folder / 'vgg16.pth'}"]
    if not (SHARED / "nyuv2").is_dir():
        return as_options(TINY) + weights
    script = SHARED / "nyuv2" / "build_mat.py"
    subprocess.run([sys.executable, script, "--out", folder, "--train", "8", "--test", "3"], check=True, capture_output=True)
    shutil.copy(SHARED / "nyuv2" / "classMapping40.mat", folder)
    own = {path: value for path, value in TINY.items() if not path.startswith("data.rooms")}
    return ["--data", str(folder), *as_options(own), *weights]


@dataclass(frozen=True)
class Head:
    """A head node that was started for the tests: where its job server listens, and what its clients need."""

    address: str
    environment: dict[str, str]

    def answers(self, token: str) -> bool:
        """Whether its job server does."""
        asked = urllib.request.Request(f"{self.address}/api/version", headers={"Authorization": f"Bearer {token}"})
        try:
            return bool(urllib.request.urlopen(asked, timeout=10).status == 200)
        except OSError:
            return False

    def job(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`ray job` with these words, from the repository's root."""
        command = [RAY, "job", words[0], "--address", self.address, *words[1:]]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=1200, check=False)

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a submitted job to its end. The head's agent, which starts jobs, comes up after its server."""
        deadline = time.monotonic() + 400
        while True:
            done = self.job("submit", "--", *words)
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1)


@pytest.fixture(scope="module")
def head(jointseg: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node with token authentication, as Ray has it wherever a token is found; it ends with the tests of a file."""
    port, dashboard = free_port(), free_port()
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(uuid4().hex)
    environment = {**jointseg.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    at_once = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}  # on SIGTERM it does not wait for what may still run on it
    there = Head(f"http://127.0.0.1:{dashboard}", environment)
    # A folder of its own: a head that is killed leaves its address in the common one, where later clusters look for it.
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    # A port of its own for the agent that starts jobs: it is not asked for another where a second head has the usual one.
    command += [f"--temp-dir={folder}", f"--dashboard-agent-listen-port={free_port()}"]
    process = subprocess.Popen(
        command, env=environment | at_once, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 400
        while not there.answers(token.read_text()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(1)
        yield there
    finally:
        process.terminate()  # SIGINT may be ignored, as in a job of the background
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
