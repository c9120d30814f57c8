"""A Ray of our own on a machine whose other work keeps Ray's processes waiting.

Not here: nodes of a cluster that are lost (test_lost_workers.py, test_search.py).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HALTED = """
import os, signal, time
import ray
from pipeline.cluster import connected

@ray.remote
def one():
    return 1

with connected():
    ray.get(one.remote())
    (raylet,) = ray._private.worker._global_node.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(raylet.process.pid, signal.SIGCONT)
    time.sleep(5)
    print("again", ray.get(one.remote(), timeout=60))
"""


@pytest.mark.slow
def test_our_ray_does_not_give_itself_up_when_it_has_to_wait() -> None:
    """Halted for 8 seconds, at 30 times the usual pace of Ray's health checks: by its own default it ends after 2."""
    faster = {"RAY_health_check_period_ms": "100", "RAY_health_check_timeout_ms": "300"}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | faster
    done = subprocess.run([sys.executable, "-c", HALTED], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "again 1"), done.stderr
