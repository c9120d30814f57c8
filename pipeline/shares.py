"""Work on many frames, shared out over Ray: tasks that load what they need once and yield share after share.

On CPUs a task has a few shares, so that nodes which come later, or are faster, take more of them. A task that takes part of a
GPU gets a process of its own from Ray, whose start takes longer than many frames: there are a few a GPU, for all shares.

Not here: what is done with a share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import ray
import torch

from jointseg.config import Config
from pipeline.cluster import Patience, has_room, result_of, uses_gpu

Share = TypeVar("Share")
Result = TypeVar("Result")
Work = Callable[[Share], Result]

FRAMES_A_SHARE = 6  # logits at full size: 200 MB
SHARES_A_TASK = 4
"""On CPUs, at most. It loads a network for them, which takes about as long as a frame."""
TASKS_A_CPU = 3
"""At least, where there are as many shares: those of one row of a table take longer than those of another."""
RESULTS_AHEAD = 2
"""Of each task, that wait to be taken."""


def shares_of(frames: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Frames in order, a few together: in the same way on any cluster, so that sums over them are added in one order."""
    return [frames[first : first + FRAMES_A_SHARE] for first in range(0, len(frames), FRAMES_A_SHARE)]


def shared_out(
    load: Callable[[torch.device], Work[Share, Result]],
    shares: Sequence[Share],
    *,
    config: Config,
    say: Callable[[str], None],
) -> Iterator[tuple[int, Result]]:
    """Have every share worked on, by all CPUs, those that join meanwhile too; where `config` uses GPUs, by those that are there
    now, `evaluation.processes_per_gpu` each. Needs Ray.

    A process that is lost is started again once.

    Args:
        load: called once in each task, with its device; what it returns is called with a share.
        shares: what to work on.
        config: says whether GPUs are used.
        say: called with a line for people while no node has room.

    Yields:
        The place of a share and its result, as they come.

    Raises:
        InputError: `load` or the work stopped on a mistake of the user's.
        LostWorkerError: a process was lost twice, or no node could run any for ten minutes: others use them, or they are gone.
    """
    gpu = uses_gpu(config)
    count, each = tasks_at_once(config.evaluation.processes_per_gpu if gpu else 0)
    dealt = dealt_out(shares, count) if gpu else neighbours(shares, cpus=count)
    # By itself Ray would place them where this process is, which may have no CPU.
    options = {**each, "max_retries": 1, "scheduling_strategy": "DEFAULT"}
    # Results that nobody has taken yet would fill the memory and then the disk of the nodes.
    task = ray.remote(num_returns="streaming", _generator_backpressure_num_objects=RESULTS_AHEAD, **options)(_results)
    waiting = [task.remote(load, own, "cuda" if gpu else "cpu") for own in dealt]
    needed = {"CPU": each["num_cpus"], "GPU": each["num_gpus"]}
    patience, running = Patience(needed), 0
    while waiting:
        done, waiting = ray.wait(waiting, timeout=10)
        for ready in done:
            following = next(ready, None)
            if following is None:
                running -= 1
                continue
            found = result_of(following)
            if found is None:
                running += 1
            else:
                yield found
            waiting.append(ready)
        patience.look(runs=bool(done) or (running > 0 and has_room(needed)), say=say)


def dealt_out(shares: Sequence[Share], count: int) -> list[dict[int, Share]]:
    """The shares of each of `count` tasks by their places: every task has some of each row of a table."""
    return [{place: shares[place] for place in range(first, len(shares), count)} for first in range(min(len(shares), count))]


def neighbours(shares: Sequence[Share], *, cpus: int) -> list[dict[int, Share]]:
    """The shares of each task on CPUs by their places: a few that follow each other, so that most tasks load one network."""
    count = min(len(shares), max(TASKS_A_CPU * cpus, -(-len(shares) // SHARES_A_TASK)))
    bounds = [len(shares) * task // max(1, count) for task in range(count + 1)]
    return [{place: shares[place] for place in range(*own)} for own in pairwise(bounds)]


def tasks_at_once(per_gpu: int) -> tuple[int, dict[str, float]]:
    """How many tasks the cluster runs at once, and what Ray is asked of for each: a CPU, and of a GPU its part.

    Args:
        per_gpu: tasks that share a GPU; 0: they need none.
    """
    there = ray.cluster_resources()
    cpus = there.get("CPU", 1)
    count = min(cpus, per_gpu * there.get("GPU", 0)) if per_gpu else cpus
    return max(1, int(count)), {"num_cpus": 1, "num_gpus": 1 / per_gpu if per_gpu else 0}


def _results(
    load: Callable[[torch.device], Work[Any, Any]], shares: Mapping[int, Any], device: str
) -> Iterator[tuple[int, Any] | None]:
    yield None  # it runs: there was room
    torch.set_num_threads(1)
    work = load(torch.device(device))
    for place, share in shares.items():
        yield place, work(share)
