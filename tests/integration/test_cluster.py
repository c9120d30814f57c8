"""Which code Ray's workers run, tokens that it asks for, and nodes that an autoscaler brings.

Not here: what workers do with it (the other files).
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest
import ray
from ray.util import get_node_ip_address

import jointseg
from pipeline.cluster import connected
from tests.integration.command_line import CommandLine, free_port
from tests.integration.conftest import RAY


@ray.remote(num_cpus=0)
def where_is(module: str) -> str:
    return str(importlib.import_module(module).__file__)


@pytest.mark.slow
def test_workers_take_no_code_from_the_folder_that_the_command_is_run_in(tmp_path, monkeypatch):
    """Its user's own project may have a pipeline/ too."""
    for foreign in ("jointseg", "pipeline", "tune_spaces"):
        (tmp_path / foreign).mkdir()
        (tmp_path / foreign / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    ours = Path(jointseg.__file__).parents[1]
    with connected(here=True):
        assert Path.cwd() == tmp_path
        found = ray.get([where_is.remote(module) for module in ("jointseg", "pipeline.study.trial", "tune_spaces.crf")])
    assert [Path(file).relative_to(ours).parts[0] for file in found] == ["jointseg", "pipeline", "tune_spaces"]


A_HEAD = """
import sys
import ray

print(ray.init("local", num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1]).address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(uuid4().hex)
    return path


@contextmanager
def a_head(environment: dict[str, str]) -> Iterator[str]:
    """The address of a Ray that was started with these variables and is there for the length of the block."""
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [sys.executable, "-c", A_HEAD, folder]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_client_whose_token_is_not_what_the_head_asks_for_is_refused_in_one_line(jointseg, token, tmp_path):
    """The last of them Ray itself lets in, and its workers end without a reason or wait for ever."""
    plain = jointseg.environment | {"RAY_AUTH_MODE": "disabled"}
    asking = jointseg.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    command = [sys.executable, "-m", "pipeline", "train", "--stage", "1", "--preset", "demo", "--out", str(tmp_path / "run")]

    def refusal(environment: dict[str, str], address: str) -> str:
        ended = subprocess.run(
            command, env={**environment, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=300, check=False
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert not (tmp_path / "run").exists()
        return ended.stderr

    with a_head(plain) as open_to_all, a_head(asking) as closed:
        where = "in ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names\n"
        for environment, said in (
            (plain, f"asks for a token; set RAY_AUTH_MODE=token, with the head's token, {where}"),
            ({**asking, "RAY_AUTH_TOKEN": uuid4().hex}, f"asks for another token than ours; set the head's, {where}"),
        ):
            assert refusal(environment, closed) == f"error: RAY_ADDRESS: the Ray at {closed!r} {said}"
        said = refusal(asking, open_to_all)
        assert said.startswith(f"error: RAY_AUTH_MODE: token, but the Ray at {open_to_all!r} asks for none, and ")
        assert said.count("\n") == 1


WAITING = """
from functools import partial
import ray
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.cluster import connected, once_nodes_are_there, require_resources, worker_resources

config = with_overrides(demo(), {"training.num_workers": 2, "training.cpus_per_worker": 1})
with connected():
    before = ray.cluster_resources().get("CPU", 0)
    once_nodes_are_there(partial(require_resources, config), worker_resources(config, gpu=False), say=print)
    print("CPUs", before, ray.cluster_resources()["CPU"])
"""


@pytest.fixture
def scaled(jointseg: CommandLine, token: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a client of an autoscaling cluster needs in its environment: a head without CPUs, and up to three nodes of one that
    Ray's own stand-in for a cloud starts as processes here.
    """
    port, folder = free_port(), tempfile.mkdtemp(prefix="ray-")  # sockets have short paths
    nodes = {"resources": {"CPU": 1, "object_store_memory": 100 * 2**20}, "node_config": {}, "min_workers": 0, "max_workers": 3}
    here = {"type": "fake_multinode", "gcs_address": f"{get_node_ip_address()}:{port}"}
    lists = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands", "rsync_exclude")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_filter")
    scaling = {
        "cluster_name": "scaled", "max_workers": 3, "upscaling_speed": 1.0, "idle_timeout_minutes": 5, "docker": {},
        "provider": {**here, "head_node_id": "f" * 51 + "00000"}, "auth": {"ssh_user": "no one", "ssh_private_key": str(token)},
        "head_node_type": "head", "file_mounts": {}, "file_mounts_sync_continuously": False, **{name: [] for name in lists},
        "available_node_types": {"head": {"resources": {}, "node_config": {}, "max_workers": 0}, "node": nodes},
    }  # fmt: skip
    (tmp_path / "scaling.json").write_text(json.dumps(scaling))
    environment = {**jointseg.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    command = [RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}"]
    command += [f"--autoscaling-config={tmp_path / 'scaling.json'}", f"--dashboard-agent-listen-port={free_port()}"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment | own, start_new_session=True, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 200
        while "block forever" not in (said := (tmp_path / "head.log").read_text()):
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.5)
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_an_autoscaler_is_asked_for_the_nodes_that_a_training_waits_for(scaled):
    ended = subprocess.run(
        [sys.executable, "-c", WAITING], env=scaled, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    waiting, there = ended.stdout.splitlines()
    assert waiting.startswith("waiting up to 10 minutes for nodes: training.num_workers: 2 workers of 1 CPU each")
    assert there == "CPUs 0 2.0"
