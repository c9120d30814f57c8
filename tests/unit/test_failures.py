"""What is said of Ray Train's failures, on its own exceptions. Not here: workers that are really killed (tests/integration)."""

from __future__ import annotations

import signal
import threading

import pytest
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from jointseg.errors import DeviceMemoryError, InputError
from pipeline.failures import LostWorkerError, NoRoomError, explained, interruptions_wait

# As Ray 2.60 words them, shortened.
INFO = "A worker health check failed.\nWorker info: Worker(\n    node_ip='10.0.0.7',\n    pid=4242,\n)"
DIED = "The actor died unexpectedly before finishing this task.\n\tpid: 4242\n\tip: 10.0.0.7\nThe actor is dead because its "
DIED += "worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: End of file."
PEER = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:22417")


def lost(text: str = DIED) -> Exception:
    return WorkerHealthCheckFailedError(INFO, failure=RayActorError(error_msg=text))


def said(failures: dict[int, Exception], *, last_step: int | None = 8) -> Exception | None:
    return explained(WorkerGroupError("", failures), stage="stage1", max_failures=1, last_step=last_step)


@pytest.mark.parametrize("others", [{}, {0: PEER}, {0: RuntimeError("anything")}])
def test_a_lost_worker_is_one_line_with_its_process_its_machine_and_where_the_same_command_goes_on(others):
    error = said({**others, 1: lost()})
    assert isinstance(error, LostWorkerError)
    assert str(error) == (
        "stage1: lost worker 1, process 4242 on 10.0.0.7 (its worker process has died), more than training.max_failures = 1 "
        "gets over; the same command goes on from step 8"
    )


def test_a_loss_that_ray_says_nothing_of_is_named_by_its_kind():
    assert str(said({0: RayError()})).startswith("stage1: lost worker 0 (RayError), ")


def test_several_lost_workers_are_all_named():
    text = str(said({0: lost(), 3: lost("Task was killed due to the node running low on memory.\nMore.")}))
    assert "worker 0, process 4242 on 10.0.0.7 (its worker process has died) and worker 3, process 4242" in text
    assert "(the node running low on memory)" in text
    assert "\n" not in text


def test_without_a_checkpoint_the_stage_begins_again():
    assert str(said({1: lost()}, last_step=None)).endswith("the same command goes on from the start of the stage")


def test_a_worker_whose_peer_is_gone_tells_of_a_loss():
    assert str(said({0: PEER})).startswith("stage1: lost a worker, more than")


def test_what_is_the_users_to_mend_comes_first():
    mistake = InputError("stage1: mine")
    assert said({0: lost(), 1: mistake}) is mistake
    wrapped = RuntimeError("of Ray's")
    wrapped.__cause__ = mistake
    assert said({1: wrapped}) is mistake


def test_a_mistake_inside_rays_account_of_a_task_comes_out_as_itself():
    mistake = InputError("stage1: mine")
    assert said({0: RayTaskError("train_worker", "Traceback ...", mistake)}) is mistake


def test_a_gpu_without_memory_is_one_line_with_what_to_do():
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB.")
    wrapped = RuntimeError("of Ray's")
    wrapped.__cause__ = full
    error = said({0: wrapped, 1: lost()})
    assert isinstance(error, DeviceMemoryError)
    assert str(error).startswith("stage1: CUDA out of memory; a smaller batch_size with more accumulate takes the same steps")


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_gpu_that_has_no_memory_for_a_library_is_as_one_that_has_none_for_pytorch(text):
    error = said({0: RuntimeError(text)})
    assert isinstance(error, DeviceMemoryError)
    assert str(error).startswith(f"stage1: {text.splitlines()[0]}; a smaller batch_size")


@pytest.mark.parametrize("end", ["exited unexpectedly", "is killed by signal: Killed. "])
def test_a_lost_loader_is_a_loss(end):
    error = said({0: RuntimeError(f"DataLoader worker (pid(s) 4242) {end}")})
    assert isinstance(error, LostWorkerError)
    assert str(error).startswith("stage1: lost a process that cuts views, more than")


@pytest.mark.parametrize(
    "end",
    [
        "DataLoader worker (pid 4242) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory.",
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: unable to allocate shared memory(shm) "
        "for file </torch_7_1_0>: No space left on device (28)",
    ],
)
def test_loaders_without_shared_memory_are_no_loss_but_for_the_user_to_mend(end):
    error = said({0: RuntimeError(end)})
    assert isinstance(error, InputError)
    assert str(error).startswith("stage1: the processes that cut views have run out of shared memory (/dev/shm); give")
    assert "training.loader_workers" in str(error)


def test_mistakes_of_ours_keep_their_traceback():
    assert said({0: AssertionError("ours")}) is None
    assert explained(ControllerError(RuntimeError("ours")), stage="stage1", max_failures=0, last_step=None) is None


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (WorkerGroupStartupTimeoutError(2), "The worker group startup timed out after 60.0 seconds waiting for 2 workers"),
        (WorkerGroupStartupFailedError("no module\nmore"), "no module"),
    ],
)
def test_workers_that_do_not_start_are_one_line(failure, why):
    error = explained(ControllerError(failure), stage="stage1", max_failures=1, last_step=4)
    assert isinstance(error, NoRoomError)
    assert str(error) == f"stage1: the workers did not start: {why}; the same command goes on from step 4"


@pytest.fixture
def handlers():
    """SIGINT and SIGTERM as on a terminal, whatever started the tests; set others by their numbers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.signal
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interruption_waits_for_the_end_of_a_drawing_and_a_second_one_does_not(handlers):
    done = []

    @interruptions_wait()
    def draw(*interruptions):
        for number in interruptions:
            signal.raise_signal(number)
            done.append(number)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for interruptions in ((signal.SIGINT,), (signal.SIGINT, signal.SIGINT)):
        with pytest.raises(KeyboardInterrupt):
            draw(*interruptions)
        assert done == [signal.SIGINT]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        done.clear()
    draw()
    thread = threading.Thread(target=draw)  # which may set no handler
    thread.start()
    thread.join()


def test_an_error_in_a_drawing_that_was_interrupted_is_not_taken_for_the_drawings(handlers):
    @interruptions_wait()
    def draw():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("half drawn")

    with pytest.raises(KeyboardInterrupt):
        draw()


def test_a_job_that_is_deaf_to_ctrl_c_stays_so_in_a_drawing_and_hears_sigterm(handlers):
    """As those that a shell's script starts in the background."""
    heard = []
    handlers(signal.SIGINT, signal.SIG_IGN)
    handlers(signal.SIGTERM, lambda number, _: heard.append(number))
    with interruptions_wait():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]
