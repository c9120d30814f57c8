"""How frames are shared out to tasks, and how many work at once.

Not here: the work on a real Ray (tests/integration/test_shares.py).
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline import cluster, shares
from pipeline.failures import LostWorkerError


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


@pytest.mark.parametrize(
    ("num", "cpus", "sizes"),
    [
        (7, 1, [2, 2, 3]),
        (2, 4, [1, 1]),
        (17, 1, [3, 3, 4, 3, 4]),
        (0, 4, []),
        (400, 2, [4] * 100),
        (400, 90, [1] * 140 + [2] * 130),
    ],
)
def test_tasks_on_cpus_have_a_few_shares_that_follow_each_other(num, cpus, sizes):
    dealt = shares.neighbours(range(10, 10 + num), cpus=cpus)
    assert sorted(len(own) for own in dealt) == sorted(sizes)
    assert [pair for own in dealt for pair in own.items()] == list(enumerate(range(10, 10 + num)))


def test_tasks_on_gpus_have_shares_of_every_row():
    assert shares.dealt_out("abcdefg", 3) == [{0: "a", 3: "d", 6: "g"}, {1: "b", 4: "e"}, {2: "c", 5: "f"}]
    assert shares.dealt_out("ab", 3) == [{0: "a"}, {1: "b"}]
    assert shares.dealt_out("", 3) == []


@pytest.mark.parametrize(("begin", "ends"), [(2, 3600), (0, 600)], ids=["lost its nodes", "has no room"])
def test_a_cluster_is_waited_for_aloud_and_not_for_ever(monkeypatch, begin, ends):
    """As Ray does. Tasks that have begun may take their time while there are nodes for them."""
    said, now, there, begun = [], [0.0], [[{"Alive": True, "Resources": {"CPU": 2.0}}]], []

    def wait(tasks, *, timeout):
        if len(begun) < begin:
            begun.append(tasks[0])
            return tasks[:1], tasks[1:]
        now[0] += timeout
        if now[0] > 3000:
            there[0] = [{"Alive": True, "Resources": {"GPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 2.0}}]
        return [], tasks

    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(shares.ray, "wait", wait)
    monkeypatch.setattr(shares.ray, "nodes", lambda: there[0])
    monkeypatch.setattr(shares.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(shares.ray, "available_resources", dict)
    monkeypatch.setattr(shares, "result_of", lambda _: None)
    task = SimpleNamespace(remote=lambda *_: iter(["it has begun"]))
    monkeypatch.setattr(shares.ray, "remote", lambda **_: lambda _: task)
    config = with_overrides(demo(), {"training.device": "cpu"})
    with pytest.raises(LostWorkerError, match=r"^no node of Ray has had 1 CPU free for 10 minutes; the same command goes on$"):
        list(shares.shared_out(lambda _: None, [1, 2], config=config, say=said.append))
    assert ends <= now[0] <= ends + 100
    assert said == ["waiting up to 10 minutes for a node with 1 CPU free; Ray has free: 0 CPU, 0 GPU"]


@pytest.mark.parametrize("number", [0, 1, 6, 7, 13])
def test_shares_have_every_frame_once_and_in_order(number):
    frames = tuple(range(number))
    assert tuple(frame for share in shares.shares_of(frames) for frame in share) == frames
    assert all(len(share) <= shares.FRAMES_A_SHARE for share in shares.shares_of(frames))
