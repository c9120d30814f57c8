"""The study on Ray Tune: points asked in fixed batches, each scored by a trial, every result in a log that a restart reads.

Not here: who asks for points (samplers.py), what a trial does (trial.py), what comes of it (search_result.py).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from jointseg.errors import DiskError, InputError
from jointseg.whole import write_atomically
from pipeline.cluster import Patience, require_resources
from pipeline.failures import LostWorkerError
from pipeline.finetune import FinetuneTrial
from pipeline.log_lines import Line, append_line, following
from pipeline.provenance import own_commit
from pipeline.run_store import shown
from pipeline.samplers import Asker
from pipeline.spaces import Point
from pipeline.trial import CrfTrial, TrialJob
from pipeline.trial_record import FAILED, FINISHED, LOG, UNSAVED, confusion_file, read_confusions, read_trials

NO_CPU = {"memory": 1.0}
"""Of a process that waits for a training: a CPU of its own would be one that the training may wait for. Tune allows no
trial without any resource."""
RETRIES = 2
"""Times that a trial whose process was lost is begun again before the study ends."""


class Batches(Searcher):  # type: ignore[misc]
    """Asks for a batch of points at once, when all trials of the batch before the last have ended, told in the order asked.

    What is asked then depends on the seed and the batch alone, not on which trial ends first or how many run at once; so a
    study that is begun again asks for the same points again, and those that had ended are answered from its log. Nor does a
    process wait for the slowest trial of a batch: the next batch is there already. (Tune also ends processes that wait.)
    """

    def __init__(
        self,
        asker: Asker,
        *,
        size: int,
        total: int,
        ended: Mapping[int, Line],
        log: Callable[[Line], None],
        concurrent: int = 0,
        early_stop: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin.

        Args:
            asker: is asked and told.
            size: of a batch.
            total: trials in all.
            ended: those that ended before an interruption, by number.
            log: called with each trial that ends now.
            concurrent: trials at once, at most; 0: as many as Tune asks for.
            early_stop: name to each trial the best of those told before it was asked, which it is to keep up with.
            say: called with a line for people when a trial runs again.
        """
        super().__init__(metric=None, mode=None)
        self.asker, self.size, self.total, self.ended, self.log = asker, size, total, dict(ended), log
        self.concurrent = concurrent or total
        self.asked = self.told = 0
        self.early_stop, self.say = early_stop, say
        self.best: Line | None = None
        self.waiting: deque[tuple[int, Point, int | None]] = deque()
        self.running: dict[str, tuple[int, Point, int | None]] = {}
        self.losses: Counter[int] = Counter()
        self.stopped: Exception | None = None
        """What no trial is to blame for, such as a full disk or a machine that ends its processes: no more are begun."""
        self.lost: str | None = None
        """Tune's name of the trial whose process was lost for the last time."""

    def __getstate__(self) -> dict[str, Any]:
        """All but the screen. Tune keeps a copy, which nobody reads."""
        return {**vars(self), "say": None}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next point; None, so that Tune asks again later, while it hangs on trials that are running."""
        if self.stopped is not None:
            return None if self.running else str(Searcher.FINISHED)
        if len(self.running) >= self.concurrent:
            return None
        if not self.advance():
            return None if self.running else str(Searcher.FINISHED)  # one that is running may be lost, and run again
        self.running[trial_id] = number, point, rival = self.waiting.popleft()
        return {"trial": number, "point": point, "rival": rival}

    def advance(self) -> bool:
        """Ask for batches until there is a point to run. False where there is none, or none yet."""
        while not self.waiting and self.asked < self.total:
            needed = max(0, self.asked - self.size)  # the trials of all batches but the last
            if any(number not in self.ended for number in range(self.told, needed)):
                return False
            self.tell(needed)
            for number in range(self.asked, min(self.asked + self.size, self.total)):
                self._ask(number)
                self.asked += 1
        return bool(self.waiting)

    def tell(self, number: int) -> None:
        """Tell the results of all trials before `number` that have not been told."""
        for earlier in range(self.told, number):
            line = self.ended[earlier]
            self.asker.tell(earlier, line)
            self.told = earlier + 1
            if self.early_stop and line["state"] == FINISHED:
                self.best = max(self.best or line, line, key=lambda one: float(one["mean_iou"]))

    def _ask(self, number: int) -> None:
        point, before = self.asker.ask(number), self.ended.get(number)
        if before is None:
            self.waiting.append((number, point, None if self.best is None else self.best["trial"]))
        elif not _is_near(before["point"], point):
            raise InputError(
                f"trial {number} was run at {before['point']} and is now asked for at {point}: this study was begun with "
                "another version of Optuna or of the space, and cannot go on; remove its folder to begin anew"
            )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Log a trial that has ended; it is told when those before it have been. One whose process was lost is run again.

        Lost too often, it ends the study without a line: what the sampler were told would hang on a machine's state.
        """
        number, point, rival = self.running.pop(trial_id)
        if result is None or error:
            self.losses[number] += 1
            if self.losses[number] <= RETRIES:
                self.waiting.appendleft((number, point, rival))
                again = f"it runs again ({self.losses[number]} of {RETRIES})"
                self.say(f"trial {number}: its process ended without a score; {again}")
            elif self.stopped is None:
                self.stopped = LostWorkerError(f"trial {number}: its process ended {RETRIES + 1} times without a score")
                self.lost = trial_id
            return
        line = {**json.loads(result["line"]), "commit": own_commit()}
        if line["state"] == UNSAVED:
            self.stopped = self.stopped or InputError(line["error"])
            return
        try:
            self.log(line)
        except DiskError as full:  # Tune would make a traceback of it
            self.stopped = self.stopped or full
        self.ended[number] = line

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a study that is interrupted is begun again, and its ended trials are answered from its log."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class Watch(tune.Callback):  # type: ignore[misc]
    """Ends a study whose trials no node can run for long: a node may have gone that does not come back."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        """Begin, for trials that take these."""
        self.patience = Patience(resources)
        self.lost: LostWorkerError | None = None

    def on_step_begin(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:  # noqa: ARG002  # Tune's names
        """Look, at every step of Tune's."""
        try:
            self.patience.look(runs=any(trial.status == Trial.RUNNING for trial in trials))
        except LostWorkerError as lost:
            self.lost = lost  # Tune makes an error of its own of it
            raise


def _is_near(point: Point, other: Point) -> bool:
    """Whether they are one point but for rounding: samplers add up otherwise on a processor with other vector instructions."""

    def near(value: Any, its: Any) -> bool:
        numbers = isinstance(value, float) and isinstance(its, float)
        return math.isclose(value, its, rel_tol=1e-9) if numbers else bool(value == its)

    return point.keys() == other.keys() and all(near(value, other[name]) for name, value in point.items())


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

    def not_logged(error: Exception) -> None:
        say(f"not logged yet, the search goes on: {shown(error)}")

    with following(lambda: [line for number, line in read_trials(log).items() if number < total], tell, trouble=not_logged):
        if batches.advance():
            _tune(job, batches, total - len(before), verbose=verbose)
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


def _tune(job: TrialJob, batches: Batches, trials: int, *, verbose: bool) -> None:
    settings = job.config.search
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # its errors are tracebacks of processes that were lost
    trains = settings.fidelity == "finetune"
    places = max(1, int(ray.cluster_resources().get("CPU", 1)) // settings.cpus_per_trial)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(places)  # by default it starts one process after the other
    trainable = tune.with_parameters(FinetuneTrial if trains else CrfTrial, job=job)
    each = NO_CPU if trains else {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}
    watch = Watch({} if trains else each)
    tuner = tune.Tuner(
        tune.with_resources(trainable, each),
        tune_config=tune.TuneConfig(
            search_alg=batches,
            num_samples=trials * (RETRIES + 1) + 1,  # the last answer is that there are no more
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=str(job.folder),
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
