"""Which trial runs next: points asked for in fixed batches, told in the order asked, whichever ends first.

Not here: who asks for points (samplers.py), what a trial does (trial.py), the study (study.py).
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from jointseg.errors import DiskError, InputError
from pipeline.cluster import Patience
from pipeline.failures import LostWorkerError
from pipeline.log_lines import Line
from pipeline.provenance import own_commit
from pipeline.study.samplers import Asker
from pipeline.study.spaces import Point
from pipeline.study.trial import NOTHING
from pipeline.study.trial_record import FINISHED, UNSAVED

RETRIES = 2
"""Times that a trial whose process was lost is begun again before the study ends."""


class Batches(Searcher):  # type: ignore[misc]
    """Asks for a batch of points at once, when all trials of the batch before the last have ended, told in the order asked.

    What is asked then depends on the seed and the batch alone, not on which trial ends first or how many run at once; so a
    study that is begun again asks for the same points again, and those that had ended are answered from its log. The next batch
    is there before the slowest trial of one has ended. A process that still finds no point gets a trial that does nothing for
    a moment: Tune would end it, and the start of another takes longer than many a trial.
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
            say: called with a line for people when a trial runs again, and while no node has room.
        """
        super().__init__(metric=None, mode=None)
        self.asker, self.size, self.total, self.ended, self.log = asker, size, total, dict(ended), log
        self.concurrent = concurrent or total
        self.asked = self.told = 0
        self.early_stop, self.say = early_stop, say
        self.best: Line | None = None
        self.waiting: deque[tuple[int, Point, int | None]] = deque()
        self.running: dict[str, tuple[int, Point, int | None]] = {}
        self.held: set[str] = set()
        """Tune's names of the trials that do nothing."""
        self.processes = 0
        """That have been there at once, at most."""
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
        if len(self.running) + len(self.held) >= self.concurrent:
            return None
        if not self.advance():
            if not self.running:
                return str(Searcher.FINISHED)
            return self._hold(trial_id) if self.asked < self.total else None  # the last that run may be lost, and run again
        self.running[trial_id] = number, point, rival = self.waiting.popleft()
        return {"trial": number, "point": point, "rival": rival}

    def _hold(self, trial_id: str) -> dict[str, Any] | None:
        """A trial that does nothing, where there is a process for it."""
        if len(self.running) + len(self.held) >= self.processes:
            return None
        self.held.add(trial_id)
        return dict(NOTHING)

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
        if trial_id in self.held:
            self.held.remove(trial_id)
            return
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
    """Counts processes, and ends a study whose trials no node can run for long: a node may be gone for good."""

    def __init__(self, resources: Mapping[str, float], batches: Batches) -> None:
        """Begin.

        Args:
            resources: that a trial takes.
            batches: are told of the processes.
        """
        self.patience, self.batches = Patience(resources), batches
        self.lost: LostWorkerError | None = None

    def on_step_begin(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:  # noqa: ARG002  # Tune's names
        """Look, at every step of Tune's."""
        running = sum(trial.status == Trial.RUNNING for trial in trials)
        self.batches.processes = max(self.batches.processes, running)
        try:
            self.patience.look(runs=running > 0, say=self.batches.say)
        except LostWorkerError as lost:
            self.lost = lost  # Tune makes an error of its own of it
            raise


def _is_near(point: Point, other: Point) -> bool:
    """Whether they are one point but for rounding: samplers add up otherwise on a processor with other vector instructions."""

    def near(value: Any, its: Any) -> bool:
        numbers = isinstance(value, float) and isinstance(its, float)
        return math.isclose(value, its, rel_tol=1e-9) if numbers else bool(value == its)

    return point.keys() == other.keys() and all(near(value, other[name]) for name, value in point.items())
