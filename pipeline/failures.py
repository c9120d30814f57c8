"""What failures come to: something that is the user's to mend, a worker that was lost, an interruption, or none of these.

Not here: what is printed and with which exit code (cli.py), going on after a loss (train.py).
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jointseg.errors import DeviceMemoryError, InputError, first_line

_PEER_GONE = re.compile("connection (closed|reset) by peer", re.IGNORECASE)  # gloo and NCCL, in the workers that are left

_NOT_STARTED = ("WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError")  # Ray Train keeps them to itself
_NO_SHARED_MEMORY = re.compile("out of shared memory|unable to allocate shared memory|unable to resize file </torch_")
_NO_DEVICE_MEMORY = re.compile(r"CUDA error: out of memory|CU\w+_STATUS_(\w+_)?ALLOC(ATION)?_FAILED")
"""What a GPU's memory that is full looks like where it is not PyTorch that asks for some: at the start of a process, say."""
_LOADER_GONE = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal)")


class LostWorkerError(Exception):
    """A worker went away in the middle of a stage: nobody's mistake, and the same command goes on. One line."""


class TrackingError(InputError):
    """MLflow's server is gone or refuses, for longer than it was waited for. One line."""


class NoRoomError(LostWorkerError):
    """Workers did not start: no room in the cluster for now, or a node that cannot run them. One line."""


def is_interruption(error: BaseException) -> bool:
    """Whether this is Ctrl-C, or what came of it where it struck: a library's own tidying up may fail then, and say that."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause is not None


@contextmanager
def interruptions_wait() -> Iterator[None]:
    """Ctrl-C or SIGTERM in the block comes at its end, a second one at once.

    For drawing: an interruption in matplotlib's compiled parts is lost, or ends in an error of theirs.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    waiting: list[int] = []

    def as_before() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        waiting.append(number)
        if len(waiting) > 1:
            as_before()
            signal.raise_signal(number)

    for number, handler in handlers.items():
        if callable(handler):  # a shell's script starts its background jobs deaf to Ctrl-C
            signal.signal(number, note)
    try:
        yield
    finally:
        as_before()
        if len(waiting) == 1:
            signal.raise_signal(waiting[0])


def lacks_device_memory(error: BaseException) -> bool:
    """Whether this is a GPU whose memory is full."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return "torch.OutOfMemoryError" in kinds or bool(_NO_DEVICE_MEMORY.search(str(error)))


def first_sentence(error: BaseException) -> str:
    """Of its message, in one line."""
    return first_line(error).split(". ")[0]


def explained(error: Exception, *, stage: str, max_failures: int, last_step: int | None) -> Exception | None:
    """What to raise in place of Ray Train's `TrainingFailedError`; None where only a traceback will do.

    A NoRoomError is a LostWorkerError, but nothing was lost.

    Args:
        error: what `fit()` raised.
        stage: the stage's name.
        max_failures: losses that the stage got over by itself.
        last_step: step of the newest checkpoint in its folder, None without one.
    """
    where = "the start of the stage" if last_step is None else f"step {last_step}"
    controller: Any = getattr(error, "controller_failure", None)
    if type(controller).__name__ in _NOT_STARTED:
        said = first_line(controller).split(". Potential causes")[0]
        return NoRoomError(f"{stage}: the workers did not start: {said}; the same command goes on from {where}")
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for cause in _causes(failure):
            if isinstance(cause, InputError):
                return cause
            if _NO_SHARED_MEMORY.search(str(cause)):
                return InputError(
                    f"{stage}: the processes that cut views have run out of shared memory (/dev/shm); give the machine or the "
                    "container more (docker run --shm-size), or set training.loader_workers or the stage's batch_size lower"
                )
            if lacks_device_memory(cause):
                return DeviceMemoryError(
                    f"{stage}: {first_sentence(cause)}; a smaller batch_size with more accumulate takes the same steps in less "
                    "memory, as does training.recompute=true"
                )
    # Ray's own errors are about a worker. Other errors were raised in one, where the end of another looks like this.
    lost = [_described(rank, failure) for rank, failure in failures.items() if type(failure).__module__.startswith("ray.")]
    if not lost and any(_LOADER_GONE.search(str(failure)) for failure in failures.values()):
        lost = ["a process that cuts views"]
    if not lost and any(_PEER_GONE.search(str(failure)) for failure in failures.values()):
        lost = ["a worker"]
    if not lost:
        return None
    return LostWorkerError(
        f"{stage}: lost {' and '.join(lost)}, more than training.max_failures = {max_failures} gets over; "
        f"the same command goes on from {where}"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: Any = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "cause", None) or cause.__cause__


def _described(rank: int, failure: Exception) -> str:
    """A lost worker, with its process, machine and end as far as Ray tells them."""
    text = str(failure)
    process, machine = re.search(r"\bpid[=:] ?(\d+)", text), re.search(r"ip[=:] ?'?([\w.:]+)", text)
    reason = re.search(r"(?:because|due to) ([^.\n]+)", text)
    where = f", process {process[1]} on {machine[1]}" if process and machine else ""
    return f"worker {rank}{where} ({reason[1] if reason else first_line(failure)})"
