"""Work on many frames, shared out over Ray: a task a CPU, or GPU, that loads what it needs once and yields share after share.

A task that takes a GPU gets a process of its own from Ray, whose start takes longer than a few frames: so there is one a GPU.

Not here: what is done with a share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
import torch

from jointseg.config import Config
from pipeline.cluster import result_of, uses_gpu

Share = TypeVar("Share")
Result = TypeVar("Result")
Work = Callable[[Share], Result]

FRAMES_A_SHARE = 6  # logits at full size: 200 MB


def shares_of(frames: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Frames in order, a few together: in the same way on any cluster, so that sums over them are added in one order."""
    return [frames[first : first + FRAMES_A_SHARE] for first in range(0, len(frames), FRAMES_A_SHARE)]


def shared_out(
    load: Callable[[torch.device], Work[Share, Result]],
    shares: Sequence[Share],
    take: Callable[[int, Result], None],
    *,
    config: Config,
) -> None:
    """Have every share worked on, by all CPUs (GPUs, where `config` uses them) there are; needs Ray.

    A process that is lost is started again once.

    Args:
        load: called once in each task, with its device; what it returns is called with a share.
        shares: what to work on.
        take: given the place of a share and its result, as they come.
        config: says whether GPUs are used.

    Raises:
        InputError: `load` or the work stopped on a mistake of the user's.
    """
    gpu = uses_gpu(config)
    count = max(1, min(len(shares), int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1))))
    # By itself Ray would place them where this process is, which may have no CPU.
    options = {"num_cpus": 1, "num_gpus": int(gpu), "max_retries": 1, "scheduling_strategy": "DEFAULT"}
    task = ray.remote(num_returns="streaming", **options)(_results)
    dealt = [{place: shares[place] for place in range(first, len(shares), count)} for first in range(count)]
    waiting = [task.remote(load, own, "cuda" if gpu else "cpu") for own in dealt]
    while waiting:
        (ready, *_), waiting = ray.wait(waiting)
        following = next(ready, None)
        if following is not None:
            take(*result_of(following))
            waiting.append(ready)


def _results(
    load: Callable[[torch.device], Work[Any, Any]], shares: Mapping[int, Any], device: str
) -> Iterator[tuple[int, Any]]:
    torch.set_num_threads(1)
    work = load(torch.device(device))
    for place, share in shares.items():
        yield place, work(share)
