"""The driver of a training stage: one TorchTrainer, its log followed into MLflow and onto the screen.

Not here: what a worker does (worker.py), the loop (jointseg/training.py).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from jointseg.checkpoint import final_digest, save_final
from jointseg.checkpoint_folder import CheckpointFolder
from jointseg.config import Config
from jointseg.stages import STAGES, Stage
from pipeline.cluster import free_resources, uses_gpu, worker_resources, workers_said
from pipeline.failures import LostWorkerError, NoRoomError, explained
from pipeline.log_lines import GrowingLog, Line, following, in_step_order, read_lines
from pipeline.run_store import not_logged
from pipeline.worker import TrainJob, train_worker
from pipeline.workspace import Workspace

MOST_WAITS = 9
"""After the first, each of Ray's 60 seconds (RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S)."""


def train_stage(
    config: Config,
    stage: Stage,
    place: Workspace,
    *,
    validation: tuple[int, ...],
    tell: Callable[[Line], None],
    say: Callable[[str], None],
) -> None:
    """Train `stage` on Ray to its end, going on from its newest good checkpoint if it has one; leaves `final/`.

    Args:
        config: the whole config, with the CRF settings that this stage starts from. Features that it wants kept are.
        stage: the stage.
        place: the run's folder, absolute and seen by every node.
        validation: frames to validate on.
        tell: called with each new report.
        say: called with a line for people when the stage goes on from a checkpoint.

    Raises:
        InputError: a worker stopped on what is the user's to mend, such as rates that make the loss infinite, or a full disk.
        LostWorkerError: a worker's process or node went away, more often than `training.max_failures` allows; or the cluster
            had no room for the workers for ten minutes.
    """
    start = None
    if stage.starts_from is not None:
        start = place.final(STAGES[stage.starts_from])
        final_digest(start)
    features = place.features if config.data.cache_features else None

    folder = place.stage(stage)
    folder.mkdir(parents=True, exist_ok=True)
    job = TrainJob(config, stage.name, place.store, place.views, folder, validation, start, features)
    checkpoints, earlier_notes = CheckpointFolder(folder), len(read_lines(job.notes))
    notes, reports = GrowingLog(job.notes), GrowingLog(job.log)
    with (
        following(lambda: notes.lines()[earlier_notes:], lambda note: say(note["said"])),
        following(lambda: in_step_order(reports.lines()), tell, trouble=lambda error: say(not_logged(error, work="training"))),
        _interrupts_as_ever(),
    ):
        _fit(job, place, checkpoints, say)
    save_final(place.final(stage), checkpoints.of(stage.config(config).iterations))


def _fit(job: TrainJob, place: Workspace, checkpoints: CheckpointFolder, say: Callable[[str], None]) -> None:
    """Train, again after each lost worker that `training.max_failures` gets over, and while there is no room yet.

    Ray Train's own retries would repeat the user's mistakes as well, and wait for room for ever without a word.
    """
    most, losses, waits = job.config.training.max_failures, 0, 0
    gpu = uses_gpu(job.config)  # for the whole stage: a node that is lost and comes back had the GPUs
    while True:
        try:
            _trainer(job, place, gpu).fit()
        except ray.train.TrainingFailedError as error:
            last = max(checkpoints.steps(), default=None)
            found = explained(error, stage=job.stage, max_failures=most, last_step=last)
            if isinstance(found, NoRoomError) and waits < MOST_WAITS:
                if not waits:
                    wanted = workers_said(job.config, gpu=gpu)
                    say(f"{job.stage}: waiting for room for {wanted}; Ray has free: {free_resources()}")
                waits += 1
            elif type(found) is LostWorkerError and losses < most:
                losses, waits = losses + 1, 0
                say(f"{str(found).partition(', more than ')[0]}; going on ({losses} of training.max_failures = {most})")
            else:
                raise found or error from None
        else:
            return


def _trainer(job: TrainJob, place: Workspace, gpu: bool) -> TorchTrainer:
    training = job.config.training
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=gpu,
            resources_per_worker=worker_resources(job.config, gpu=gpu)[0],
        ),
        run_config=ray.train.RunConfig(
            name=job.stage,
            storage_path=str(place.out),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


@contextmanager
def _interrupts_as_ever() -> Iterator[None]:
    """Ray Train answers an interruption with `sys.exit(0)`, and keeps its handler when it is done: undo both."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
