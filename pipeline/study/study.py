"""The study on Ray Tune: each point scored by a trial, every result in a log that a restart reads.

Not here: who asks for points (samplers.py) and when (batches.py), what a trial does (trial.py), what comes of it
(result.py).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ray
from ray import tune

from jointseg.errors import InputError
from jointseg.whole import write_atomically
from pipeline.cluster import require_resources
from pipeline.failures import LostWorkerError
from pipeline.log_lines import GrowingLog, Line, append_line, following
from pipeline.run_store import not_logged
from pipeline.study.batches import Batches, Watch
from pipeline.study.finetune import FinetuneTrial
from pipeline.study.room import resources_of
from pipeline.study.samplers import Asker
from pipeline.study.trial import CrfTrial, OneStep, TrialJob
from pipeline.study.trial_record import FAILED, LOG, by_number, confusion_file, read_confusions, read_trials

NO_CPU = {"memory": 1.0}
"""Of a process that waits for a training: a CPU of its own would be one that the training may wait for. Tune allows no
trial without any resource."""


def run_study(
    job: TrialJob,
    asker: Asker,
    *,
    tell: Callable[[Line], None],
    say: Callable[[str], None] = lambda _: None,
    verbose: bool = False,
) -> list[Line]:
    """Run the study to its last trial; a line a trial, in the order asked.

    A study that was interrupted is begun again: the same seed asks for the same points, and those that had ended are answered
    from the log instead of computed.

    Args:
        job: what trials need; its config's `search` says how many trials, how many at once.
        asker: of a study that has not been asked yet.
        tell: called with each trial that has ended; those of before an interruption first.
        say: called with a line for people when a trial runs again, or could not be told yet.
        verbose: Ray Tune's own tables on the screen.

    Raises:
        InputError: the log is of other points, the disk is full, or trials cannot run where Ray puts them.
        LostWorkerError: a trial's process was lost again and again.
    """
    settings, folder = job.config.search, job.folder
    log = folder / LOG
    total = asker.limit(settings.trials)
    logged = read_trials(log)
    whole = {number: line for number, line in logged.items() if _is_whole(line, job)}
    if len(whole) < len(logged):
        write_atomically(log, "".join(f"{json.dumps(line)}\n" for line in whole.values()))
    before = {number: line for number, line in whole.items() if number < total}  # it may have been asked for more
    batches = Batches(
        asker,
        size=settings.batch,
        total=total,
        ended=before,
        log=partial(append_line, log),
        concurrent=_at_once(job),
        early_stop=settings.early_stop,
        say=say,
    )
    shutil.rmtree(folder / "ray_tune", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)

    grows = GrowingLog(log)
    with following(
        lambda: [line for number, line in by_number(grows.lines()).items() if number < total],
        tell,
        trouble=lambda error: say(not_logged(error, work="the search")),
    ):
        if batches.advance():
            _tune(job, batches, verbose=verbose)
    if batches.lost is not None:
        raise LostWorkerError(
            f"{batches.stopped}{_last_words(folder / 'ray_tune' / batches.lost)}; the same command tries again"
        )
    if batches.stopped is not None:
        raise batches.stopped
    batches.tell(total)
    lines = [batches.ended[number] for number in range(total)]
    shutil.rmtree(folder / "ray_tune", ignore_errors=True)
    return lines


def _last_words(folder: Path) -> str:
    """What Tune kept of a trial's end: the last line of its traceback, and where the rest is."""
    path = folder / "error.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1]} (more in {path})" if said else ""


def _is_whole(line: Line, job: TrialJob) -> bool:
    """Whether a trial that is in the log has its matrices too: a machine that stopped may have left an empty file."""
    if line["state"] == FAILED:
        return True
    try:
        return bool(read_confusions(confusion_file(job.folder, line["trial"]))[0])
    except InputError:
        return False


def _at_once(job: TrialJob) -> int:
    """Trials at once, at most; 0: no bound of ours. Of trainings no more than the cluster has room for, or they would wait."""
    settings = job.config.search
    if settings.fidelity == "inference":
        return settings.concurrent
    room = require_resources(job.config)
    return min(settings.concurrent or room, room)


def _tune(job: TrialJob, batches: Batches, *, verbose: bool) -> None:
    settings = job.config.search
    trains = settings.fidelity == "finetune"
    places = max(1, int(ray.cluster_resources().get("CPU", 1)) // settings.cpus_per_trial)
    trainable = tune.with_parameters(FinetuneTrial if trains else CrfTrial, job=job)
    each = resources_of(settings)
    watch = Watch({} if trains else each, batches)
    trainable = tune.with_resources(trainable, NO_CPU if trains else each)
    run_trials(batches, trainable, watch, folder=job.folder, at_once=places, verbose=verbose)


def run_trials(
    batches: Batches, trainable: type[OneStep], watch: Watch, *, folder: Path, at_once: int, verbose: bool = False
) -> None:
    """Run trials on Ray Tune until there are no more.

    Args:
        batches: says which.
        trainable: does one; with the resources that it takes.
        watch: looks on.
        folder: where Tune's own files go.
        at_once: processes that are started at once, at most.
        verbose: Ray Tune's own tables on the screen.

    Raises:
        LostWorkerError: no node has had room for a trial for long.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)  # by default it starts one process after the other
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # its errors are tracebacks of processes that were lost
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=batches,
            num_samples=-1,  # until the answer is that there are no more
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=str(folder),
            verbose=2 if verbose else 0,
            callbacks=[watch],
            # Tune's own retries count a process twice that is lost while it is given its next trial.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except Exception:
        if watch.lost is None:
            raise
        raise watch.lost from None
