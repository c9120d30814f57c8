"""Ray, whichever there is: a cluster that was given, or one of our own on this machine.

Not here: what runs on it (train.py, search.py, evaluate.py), how a cluster is launched (cluster.yaml).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group

import jointseg
import pipeline
import tune_spaces
from jointseg.config import Config
from jointseg.errors import DeviceMemoryError, InputError, first_line, one_line
from jointseg.hardware import usable_cpus
from jointseg.settings import with_overrides
from pipeline.failures import LostWorkerError, first_sentence, lacks_device_memory
from pipeline.ray_token import refuse_other_token
from pipeline.run_store import IN_JOB

PATIENCE = 600.0
"""Seconds that nodes of a cluster are waited for: `ray up` is done when its head is there, and nodes go away and come back."""
QUIET = 30.0
"""Seconds of them without a word: processes take some to start."""
OWN_RAY = {
    "include_dashboard": False,  # it takes jobs from whoever reaches its port
    "_system_config": {"health_check_failure_threshold": 100},  # by 5 it gives itself up where other work keeps it waiting
}


@contextmanager
def connected(*, verbose: bool = False, here: bool = False) -> Iterator[None]:
    """Ray for the length of the block: `RAY_ADDRESS` where it is set (a job has it), else one of our own.

    Args:
        verbose: Ray's own logs on the screen.
        here: one of our own in any case, for work on files of this machine.

    Raises:
        InputError: there is no Ray at `RAY_ADDRESS`, or it asks for another token than ours, or it is Ray Client's, whose
            driver runs elsewhere.
        LostWorkerError: one of our own did not start.
    """
    address = None if here else given_address()
    if here:
        os.environ.pop(IN_JOB, None)  # what the job's Ray is to load is not at hand in ours
    if address and address.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS: {address!r} is Ray Client's; allowed: HOST:6379 from one of its nodes, or `ray job submit`"
        )
    if address:
        _refuse_closed(address)
    in_job = IN_JOB in os.environ
    quiet = logging.INFO if verbose else logging.ERROR
    runtime_env = None
    if address and not in_job:
        # A job's code travels with it; elsewhere we send it, so that nodes need the dependencies alone.
        modules = [str(Path(package.__file__).parent) for package in (jointseg, pipeline, tune_spaces) if package.__file__]
        runtime_env = {"py_modules": modules}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {} if address else dict(OWN_RAY)
    if not address and usable_cpus() < (os.cpu_count() or 1):  # Ray would take those that this process may not run on, too
        own["num_cpus"] = usable_cpus()
    try:
        with _apart() if not address else nullcontext(), _away_from_here(own=not address):
            ray.init(address=address or "local", log_to_driver=verbose, logging_level=quiet, runtime_env=runtime_env, **own)
    except Exception as error:
        known = _no_ray(error, address)
        if known is None:
            raise
        raise known from None
    try:
        if address == "auto":  # it had no port to ask at
            refuse_other_token(ray.get_runtime_context().gcs_address)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would exit at once, with another code and nothing said
        yield
    finally:
        ray.shutdown()


def given_address() -> str | None:
    """`RAY_ADDRESS`, where it names a Ray that is there already; Ray's own word for a new one is `local`."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def _no_ray(error: Exception, address: str | None) -> Exception | None:
    """What to say of `ray.init`'s error in one line; None where it is a mistake of ours."""
    match error:
        case ConnectionError() | ValueError() if address:
            return InputError(f"RAY_ADDRESS: no Ray answers at {address!r}: {first_line(error)}")
        case RuntimeError() | RayError() if address:  # other versions of Ray or Python, a token that is missing
            return InputError(f"RAY_ADDRESS: the Ray at {address!r} cannot be joined: {one_line(error)}")
        case OSError() if not address and "AF_UNIX" in str(error):
            return InputError(
                f"TMPDIR: {tempfile.gettempdir()!r} is too long for the paths of Ray's sockets; allowed: about 35 characters, "
                "or RAY_TMPDIR=/tmp beside it, for Ray alone"
            )
        case _ if not address and "timed out during startup" in str(error):  # after 30 seconds
            return LostWorkerError("Ray did not start in time: this machine is busy; the same command goes on")
    return None


def _refuse_closed(address: str) -> None:
    """Raise InputError where nothing listens at HOST:PORT, for which Ray itself would look for minutes; or another token."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"RAY_ADDRESS: no Ray answers at {address!r}: {error}") from None
    refuse_other_token(address)


@contextmanager
def _away_from_here(*, own: bool) -> Iterator[None]:
    """In another folder for the length of the block: Ray's workers look for modules first where their driver is.

    There may be a pipeline/ of someone else's. A Ray of our own starts in that folder too, which stays: where our code is. On a
    cluster that may be another version's, and the folder is an empty one.
    """
    with nullcontext(Path(jointseg.__file__).parents[1]) if own else tempfile.TemporaryDirectory() as folder, chdir(folder):
        yield


@contextmanager
def _apart() -> Iterator[None]:
    """What is started in the block is in a process group of its own, which a signal to this one's does not reach.

    `timeout` and schedulers signal the whole group. Ray without its head would keep this process for a minute, and then end it
    without a word. A Ctrl-C while Ray starts is not heard. A process that leads its session cannot leave its group: there all
    is as ever.
    """
    own = os.getpgrp()
    keeper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, process_group=0)
    try:
        with suppress(PermissionError):
            os.setpgid(0, keeper.pid)
        yield
    finally:
        with suppress(PermissionError):
            os.setpgid(0, own)
        keeper.kill()
        keeper.communicate()


def uses_gpu(config: Config) -> bool:
    """Whether workers get a GPU each: as `training.device` says, `auto` where the cluster has them.

    Raises:
        InputError: it says `cuda`, and the cluster has none. Ray itself would wait for ever.
    """
    device, gpus = config.training.device, ray.cluster_resources().get("GPU", 0)
    if device == "cuda" and not gpus:
        raise InputError("training.device: cuda is asked for, and no node of Ray has a GPU; allowed: auto, cpu")
    return device == "cuda" or (device == "auto" and bool(gpus >= config.training.num_workers))


def without_missing_gpus(config: Config, *, say: Callable[[str], None]) -> Config:
    """The config for work that trains nothing: with GPUs only where there are some, whatever it was trained on."""
    if config.training.device != "cuda" or ray.cluster_resources().get("GPU", 0):
        return config
    say("training.device is cuda, and no node of Ray has a GPU: CPUs compute this, and the CRF has other filters there")
    return with_overrides(config, {"training.device": "auto"})


def once_nodes_are_there(
    check: Callable[[], object], wanted: Sequence[Mapping[str, float]], *, say: Callable[[str], None]
) -> None:
    """Check what a cluster has, again and again for PATIENCE while it is too little: its nodes may be on their way.

    An autoscaler is asked for what is wanted meanwhile, in a way that ends with this process. A Ray of our own has all that it
    will have, and is looked at once.

    Args:
        check: raises InputError where it is too little.
        wanted: what there must be room for: resources that one node has, each.
        say: called with a line for people when this waits.

    Raises:
        InputError: as `check`, in the end.
    """
    deadline, asked = time.monotonic() + PATIENCE, None
    try:
        while True:
            try:
                check()
                return
            except InputError as refused:
                if given_address() is None or time.monotonic() >= deadline:
                    raise
                if asked is None:
                    say(f"waiting up to {PATIENCE / 60:.0f} minutes for nodes: {refused}")
                    asked = placement_group([dict(own) for own in wanted])  # its want is what an autoscaler sees
            time.sleep(2)
    finally:
        if asked is not None:
            remove_placement_group(asked)


def result_of(task: ray.ObjectRef) -> Any:
    """What a task returned.

    Raises:
        InputError: a mistake of the user's that it stopped on, or a GPU whose memory was full.
        LostWorkerError: its process or node went away.
    """
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        if lacks_device_memory(error.cause):
            why = "lower evaluation.processes_per_gpu, or other work shares it, or it is too small"
            raise DeviceMemoryError(f"{first_sentence(error.cause)}; {why}") from None
        raise
    except RayError as error:
        raise LostWorkerError(f"lost a process of Ray: {one_line(error)}; the same command goes on") from None


def workers_said(config: Config, *, gpu: bool) -> str:
    """In words, what the workers of a training take, with a GPU each or without."""
    training, gpus = config.training, " and 1 GPU" if gpu else ""
    return f"{training.num_workers} worker(s) of {training.cpus_per_worker} CPU{gpus} each"


def has_room(resources: Mapping[str, float]) -> bool:
    """Whether some node has these, if nothing else ran there. Ray itself would wait for one for ever."""
    return any(all(node.get(name, 0) >= amount for name, amount in resources.items()) for node in node_resources())


def node_resources() -> list[dict[str, float]]:
    """What each node that is alive has, in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class Patience:
    """Ends work that no node has room for in PATIENCE, where Ray itself would wait for ever without a word."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        """Begin to look whether something of this size runs."""
        self.resources, self._said = resources, False
        self._since = self._looked = time.monotonic()

    def look(self, *, runs: bool, say: Callable[[str], None]) -> None:
        """Look again, every ten seconds at most.

        Args:
            runs: whether some of the work runs.
            say: called with a line for people, once, when nothing has run for QUIET.

        Raises:
            LostWorkerError: for too long nothing has run.
        """
        now = time.monotonic()
        if not runs and now - self._looked < 10:
            return
        self._looked = now
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in self.resources.items() if amount)
        if runs:
            self._since, self._said = now, False
        elif now - self._since > PATIENCE:
            raise LostWorkerError(
                f"no node of Ray has had {wanted} free for {PATIENCE / 60:.0f} minutes; the same command goes on"
            )
        elif now - self._since >= QUIET and not self._said:
            minutes, free = f"{PATIENCE / 60:.0f} minutes", free_resources()
            say(f"waiting up to {minutes} for a node with {wanted} free; Ray has free: {free}")
            self._said = True


def free_resources() -> str:
    """In words, what no one uses of the cluster's CPUs and GPUs."""
    free = ray.available_resources()
    return ", ".join(f"{free.get(resource, 0):g} {resource}" for resource in ("CPU", "GPU"))


def worker_resources(config: Config, *, gpu: bool) -> list[dict[str, int]]:
    """What each worker of a training takes, with a GPU or without."""
    training = config.training
    return [{"CPU": training.cpus_per_worker, **({"GPU": 1} if gpu else {})} for _ in range(training.num_workers)]


def require_resources(config: Config) -> int:
    """How many trainings of this config the cluster has room for at once, other work aside.

    Raises:
        InputError: not for one. Ray itself would wait for ever.
    """
    training = config.training
    gpu = training.device == "cuda" or uses_gpu(config)
    each = worker_resources(config, gpu=gpu)[0]
    nodes = node_resources()
    places = sum(min(int(node.get(resource, 0) // amount) for resource, amount in each.items()) for node in nodes)
    if places < training.num_workers:
        wanted = " and ".join(f"{amount} {resource}" for resource, amount in each.items())
        there = "; ".join(", ".join(f"{node.get(resource, 0):g} {resource}" for resource in each) for node in nodes)
        raise InputError(
            f"training.num_workers: {training.num_workers} workers of {wanted} each (training.cpus_per_worker, "
            f"training.device) are asked for; there is room for {places} on {len(nodes)} node(s) with {there}"
        )
    return places // training.num_workers
