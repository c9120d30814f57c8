"""What a trial takes of a cluster, and whether that is there. Not here: what a cluster has (pipeline/cluster.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jointseg.config import Config
from jointseg.errors import InputError
from jointseg.search_config import SearchConfig
from pipeline.cluster import has_room, node_resources, once_nodes_are_there, require_resources, worker_resources


def wait_for_room(config: Config, *, say: Callable[[str], None]) -> None:
    """See that some node can run a trial, or that one which can is added in time.

    Raises:
        InputError: as `require_room`, in the end.
    """
    once_nodes_are_there(partial(require_room, config), trial_resources(config), say=say)


def trial_resources(config: Config) -> list[dict[str, float]]:
    """What a trial takes: a dictionary for each process, which fits on one node."""
    settings = config.search
    if settings.fidelity == "finetune":
        return [{**own} for own in worker_resources(config, gpu=config.training.device == "cuda")]
    return [{resource: amount for resource, amount in resources_of(settings).items() if amount}]


def resources_of(settings: SearchConfig) -> dict[str, float]:
    """What a trial of the CRF alone takes."""
    return {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}


def require_room(config: Config) -> None:
    """See that some node can run a trial.

    Raises:
        InputError: none can. Ray itself would wait for ever.
    """
    settings = config.search
    if settings.fidelity == "finetune":
        require_resources(config)
        return
    wanted = resources_of(settings)
    if has_room(wanted):
        return
    nodes = node_resources()
    for resource, amount in wanted.items():
        most = max((node.get(resource, 0) for node in nodes), default=0)
        if amount > most:
            raise InputError(
                f"search.{resource.lower()}s_per_trial: {amount:g} {resource} are asked for; allowed: up to {most:g}, the most "
                "that a node has"
            )
    both = " and ".join(f"{amount:g} {resource}" for resource, amount in wanted.items())
    raise InputError(f"search.cpus_per_trial, search.gpus_per_trial: {both} are asked for, and no node has both")
