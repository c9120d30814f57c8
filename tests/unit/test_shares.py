"""How many tasks work on frames at once. Not here: the work on a real Ray (tests/integration/test_shares.py)."""

from __future__ import annotations

import pytest

from pipeline import shares


@pytest.mark.parametrize(
    ("there", "per_gpu", "count", "gpu"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, 0, 16, 0),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 2, 1),
        ({"CPU": 16.0, "GPU": 2.0}, 4, 8, 0.25),
        ({"CPU": 3.0, "GPU": 2.0}, 4, 3, 0.25),
        ({"GPU": 2.0}, 0, 1, 0),
    ],
)
def test_a_task_a_cpu_or_a_few_a_gpu(monkeypatch, there, per_gpu, count, gpu):
    monkeypatch.setattr(shares.ray, "cluster_resources", lambda: there)
    assert shares.tasks_at_once(per_gpu) == (count, {"num_cpus": 1, "num_gpus": gpu})
