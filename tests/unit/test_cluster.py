"""Laws of the Ray that is used: how it is reached, what it has room for.

Not here: how frames are shared out (test_shares.py), work on a real one (integration tests).
"""

from __future__ import annotations

import os
import signal
import socket
from unittest.mock import Mock

import pytest
import torch
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

from jointseg.errors import DeviceMemoryError, InputError
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline import cluster
from pipeline.failures import LostWorkerError

# How it is reached


@pytest.fixture
def init(monkeypatch):
    """What Ray was asked for, in place of Ray; "ended" where it was ended."""
    kept = []
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster.ray, "init", lambda **asked: kept.append(asked))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: kept.append("ended"))
    return kept


@pytest.fixture
def head(monkeypatch):
    """The address of something that listens, set as Ray's; of tokens it says nothing."""
    monkeypatch.setattr(cluster, "refuse_other_token", lambda address: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield address


def test_a_ray_of_our_own_opens_no_port_that_takes_jobs(init):
    with cluster.connected():
        pass
    assert (init[0]["address"], init[0]["include_dashboard"], init[1]) == ("local", False, "ended")


@pytest.mark.parametrize("in_job", [False, True])
def test_our_code_goes_to_a_cluster_that_was_given_unless_a_job_has_brought_it(init, head, monkeypatch, in_job):
    if in_job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with cluster.connected():
        pass
    assert init[0]["address"] == head
    sent = (init[0]["runtime_env"] or {"py_modules": []})["py_modules"]
    assert [path.rpartition("/")[2] for path in sent] == ([] if in_job else ["jointseg", "pipeline", "tune_spaces"])


def test_sigterm_stays_ours_and_ray_ends_whatever_happens(init, monkeypatch):
    before, inside = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr(cluster.ray, "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: None))

    def work():
        with cluster.connected():
            inside.append(signal.getsignal(signal.SIGTERM))
            raise InputError("mine")

    try:
        with pytest.raises(InputError, match="mine"):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (inside, init) == ([before], ["ended"])


def test_a_cluster_that_does_not_answer_is_named_in_one_line(init, head, monkeypatch):
    def silent(**_):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(cluster.ray, "init", silent)
    with pytest.raises(InputError, match=rf"^RAY_ADDRESS: no Ray answers at '{head}': nobody$"), cluster.connected():
        pass


@pytest.mark.parametrize(
    ("said", "kind", "shown"),
    [
        ("The current node timed out during startup.", LostWorkerError, "^Ray did not start in time: .*goes on$"),
        ("something else", Exception, "^something else$"),
    ],
)
def test_a_ray_of_our_own_that_a_busy_machine_cannot_start_is_one_line(init, monkeypatch, said, kind, shown):
    def slow(**_):
        raise Exception(said)  # of no kind of its own, as Ray's is

    monkeypatch.setattr(cluster.ray, "init", slow)
    with pytest.raises(kind, match=shown), cluster.connected():
        pass


def test_a_folder_too_long_for_rays_sockets_is_named_in_one_line(monkeypatch, tmp_path):
    long = tmp_path / ("l" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(cluster.tempfile, "tempdir", None)
    with pytest.raises(InputError, match=rf"^TMPDIR: '{long}' is too long .*RAY_TMPDIR=/tmp"), cluster.connected():
        pass


@pytest.mark.parametrize(("there", "usable", "asked"), [(8, 8, {}), (8, 3, {"num_cpus": 3}), (None, 1, {})])
def test_a_ray_of_our_own_takes_the_cpus_that_this_process_may_run_on(init, monkeypatch, there, usable, asked):
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: there)
    monkeypatch.setattr(cluster, "usable_cpus", lambda: usable)
    with cluster.connected():
        pass
    assert {name: value for name, value in init[0].items() if name == "num_cpus"} == asked


def test_an_address_that_is_no_name_is_refused(init, head, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0..1:6379")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS: no Ray answers at '10\.0\.\.1:6379': "), cluster.connected():
        pass
    assert init == []


def test_where_nothing_listens_ray_is_not_asked(init, head, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS: no Ray answers at '127\.0\.0\.1:9': .*refused"), cluster.connected():
        pass
    assert init == []


@pytest.mark.parametrize(
    "error", [RuntimeError("Version mismatch:\n    2.60 and 2.59"), RayError("AuthenticationError: no token")]
)
def test_a_cluster_that_cannot_be_joined_is_named_in_one_line(init, head, monkeypatch, error):
    def refusing(**_):
        raise error

    monkeypatch.setattr(cluster.ray, "init", refusing)
    with pytest.raises(InputError) as caught, cluster.connected():
        pass
    assert str(caught.value) == f"RAY_ADDRESS: the Ray at {head!r} cannot be joined: {' '.join(str(error).split())}"


def test_work_on_files_of_this_machine_stays_on_it(init, head, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with cluster.connected(here=True):
        assert "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ
    assert (init[0]["address"], init[0]["runtime_env"]) == ("local", None)


def test_what_starts_apart_hears_no_signal_to_our_group(init, monkeypatch):
    groups = []
    monkeypatch.setattr(cluster.ray, "init", lambda **_: groups.append(os.getpgrp()))
    before = os.getpgrp()
    with cluster.connected():
        assert os.getpgrp() == before
    assert groups != [before] or os.getpid() == os.getsid(0)


# What comes of a task


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (RayTaskError("f", "Traceback", InputError("mine")), InputError, "mine"),
        (
            RayTaskError("f", "Traceback", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")),
            DeviceMemoryError,
            "CUDA out of memory; lower evaluation.processes_per_gpu, or other work shares it, or it is too small",
        ),
        (
            RayTaskError("f", "Traceback", RuntimeError("CUDA error: out of memory\nmore")),
            DeviceMemoryError,
            "CUDA error: out of",
        ),
        (WorkerCrashedError(), LostWorkerError, "lost a process of Ray: "),
    ],
)
def test_what_stops_a_task_is_one_line(monkeypatch, raised, kind, said):
    def get(_):
        raise raised

    monkeypatch.setattr(cluster.ray, "get", get)
    with pytest.raises(kind) as caught:
        cluster.result_of(None)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_mistake_of_ours_in_a_task_keeps_its_traceback(monkeypatch):
    def get(_):
        raise RayTaskError("f", "Traceback", KeyError("ours"))

    monkeypatch.setattr(cluster.ray, "get", get)
    with pytest.raises(RayTaskError):
        cluster.result_of(None)


# What it has room for


@pytest.fixture
def nodes(monkeypatch):
    """Makes a cluster of such nodes."""

    def there(*resources, dead=()):
        listed = [{"Alive": True, "Resources": own} for own in resources] + [{"Alive": False, "Resources": own} for own in dead]
        total = {name: sum(own.get(name, 0) for own in resources) for name in {name for own in resources for name in own}}
        monkeypatch.setattr(cluster.ray, "nodes", lambda: listed)
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: total)

    return there


def with_training(**own):
    return with_overrides(demo(), {f"training.{name}": value for name, value in own.items()})


def test_gpus_are_used_where_every_worker_gets_one_or_where_they_are_asked_for(nodes):
    nodes({"CPU": 8, "GPU": 2})
    for own, used in (
        ({"num_workers": 2}, True),
        ({"num_workers": 3}, False),
        ({"num_workers": 3, "device": "cuda"}, True),
        ({"device": "cpu"}, False),
    ):
        assert cluster.uses_gpu(with_training(**own)) is used
    nodes({"CPU": 8})
    assert not cluster.uses_gpu(with_training())
    with pytest.raises(InputError, match=r"training\.device: cuda is asked for, and no node of Ray has a GPU"):
        cluster.uses_gpu(with_training(device="cuda"))


def test_workers_fit_node_by_node_and_the_room_is_counted_in_trainings(nodes):
    """Five CPUs and three are no place for four workers of two."""
    nodes({"CPU": 5}, {"CPU": 3}, dead=[{"CPU": 64}])
    for workers, cpus, trainings in ((1, 1, 8), (2, 1, 4), (3, 2, 1)):
        assert cluster.require_resources(with_training(num_workers=workers, cpus_per_worker=cpus)) == trainings
    with pytest.raises(InputError, match=r"4 workers of 2 CPU each .*; there is room for 3 on 2 node\(s\) with 5 CPU; 3 CPU$"):
        cluster.require_resources(with_training(num_workers=4, cpus_per_worker=2))
    nodes({"CPU": 8, "GPU": 1})
    assert cluster.require_resources(with_training(num_workers=1, cpus_per_worker=2)) == 1


def test_what_trains_nothing_does_without_the_gpus_that_training_had(nodes):
    said, asked = [], with_training(device="cuda")
    nodes({"CPU": 8})
    assert cluster.without_missing_gpus(asked, say=said.append) == with_training(device="auto")
    assert said == [
        "training.device is cuda, and no node of Ray has a GPU: CPUs compute this, and the CRF has other filters there"
    ]
    nodes({"CPU": 8, "GPU": 1})
    for own in (asked, with_training()):
        assert cluster.without_missing_gpus(own, say=said.append) is own
    assert len(said) == 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves."""
    now = [0.0]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.fixture
def asked_for(monkeypatch):
    """What an autoscaler is asked for and no longer asked for, in order."""
    kept = []
    monkeypatch.setattr(cluster, "placement_group", lambda bundles: kept.append(bundles) or bundles)
    monkeypatch.setattr(cluster, "remove_placement_group", lambda bundles: kept.append(("no longer", bundles)))
    return kept


WANTED = [{"CPU": 4}, {"CPU": 4}]


def test_nodes_that_are_on_their_way_to_a_cluster_are_waited_for(clock, monkeypatch, asked_for):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    said, refusals = [], ["room for 0", "room for 1"]

    def check():
        if refusals:
            raise InputError(refusals.pop(0))

    cluster.once_nodes_are_there(check, WANTED, say=said.append)
    assert said == ["waiting up to 10 minutes for nodes: room for 0"]
    assert refusals == []
    assert asked_for == [WANTED, ("no longer", WANTED)]
    cluster.once_nodes_are_there(check, WANTED, say=said.append)
    assert len(asked_for) == 2, "what is there already is not asked for"


@pytest.mark.parametrize(("address", "waited"), [(None, 0), ("head:6379", 600)])
def test_nodes_that_do_not_come_are_refused_in_the_end_and_on_a_ray_of_our_own_at_once(
    clock, monkeypatch, asked_for, address, waited
):
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="room for 0"):
        cluster.once_nodes_are_there(Mock(side_effect=InputError("room for 0")), WANTED, say=lambda _: None)
    assert waited <= clock[0] <= waited + 10
    assert asked_for == ([WANTED, ("no longer", WANTED)] if address else [])


def test_rays_own_word_for_a_new_one_is_no_address(init, monkeypatch, asked_for):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with cluster.connected():
        pass
    assert (init[0]["address"], init[0]["include_dashboard"]) == ("local", False)
    with pytest.raises(InputError, match="too little"):
        cluster.once_nodes_are_there(Mock(side_effect=InputError("too little")), WANTED, say=lambda _: None)
    assert asked_for == []
