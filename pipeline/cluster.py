"""Ray, whichever there is: a cluster that was given, or one of our own on this machine.

Not here: what runs on it (train.py, search.py, evaluate.py), how a cluster is launched (cluster.yaml).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import jointseg
import pipeline
import tune_spaces
from jointseg.config import Config
from jointseg.errors import InputError


@contextmanager
def connected(*, verbose: bool = False) -> Iterator[None]:
    """Ray for the length of the block: `RAY_ADDRESS` where it is set (a job has it), else one of our own.

    Raises:
        InputError: there is no Ray at `RAY_ADDRESS`.
    """
    address = os.environ.get("RAY_ADDRESS")
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    quiet = logging.INFO if verbose else logging.ERROR
    runtime_env = None
    if address and not in_job:
        # A job's code travels with it; elsewhere we send it, so that nodes need the dependencies alone.
        modules = [str(Path(package.__file__).parent) for package in (jointseg, pipeline, tune_spaces) if package.__file__]
        runtime_env = {"py_modules": modules}
    try:
        ray.init(address=address or "local", log_to_driver=verbose, logging_level=quiet, runtime_env=runtime_env)
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS: no Ray answers at {address!r}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def uses_gpu(config: Config) -> bool:
    """Whether workers get a GPU each: as `training.device` says, `auto` where the cluster has them."""
    if config.training.device == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) >= config.training.num_workers)
    return config.training.device == "cuda"


def require_resources(config: Config) -> None:
    """Raise InputError, before anything starts, where the cluster cannot give what the config asks for.

    Ray itself would wait for ever.
    """
    there = ray.cluster_resources()
    training = config.training
    wanted = {
        "CPU": (training.num_workers * training.cpus_per_worker, "training.num_workers x training.cpus_per_worker"),
        "GPU": (training.num_workers if training.device == "cuda" else 0, "training.num_workers on training.device=cuda"),
    }
    for resource, (amount, setting) in wanted.items():
        if amount > there.get(resource, 0):
            raise InputError(f"{setting}: {amount} {resource}s are asked for; this Ray has {there.get(resource, 0):g}")
    widest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if training.cpus_per_worker > widest:
        raise InputError(
            f"training.cpus_per_worker: {training.cpus_per_worker} CPUs on one node are asked for; the widest has {widest:g}"
        )
