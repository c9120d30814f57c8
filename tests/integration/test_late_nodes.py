"""Work on frames that has begun on one node of a real Ray goes on on another that joins later.

Not here: the work itself, mistakes and lost processes (test_shares.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from jointseg.presets import demo
from pipeline.shares import SHARES_A_TASK, shared_out

pytestmark = pytest.mark.slow


def where_it_is_done(_: torch.device) -> Callable[[int], str]:
    def work(_: int) -> str:
        time.sleep(0.5)
        return str(ray.get_runtime_context().get_node_id())

    return work


def test_a_node_that_joins_later_takes_its_part() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "wait": False})
    try:
        cluster.wait_for_nodes(timeout=180)
        ray.init(address=cluster.address, log_to_driver=False)
        num = 40 * SHARES_A_TASK
        results = shared_out(where_it_is_done, range(num), config=demo(), say=print)
        found = dict([next(results)])
        cluster.add_node(wait=False, num_cpus=1)
        found.update(results)
        assert sorted(found) == list(range(num))
        assert len(set(found.values())) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
