"""A result computed again and compared to the last digit: any trial, a search's winner, a whole run's four rows.

Not here: finding what it was made from (evidence.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jointseg.config import Config
from jointseg.data.store import Store
from jointseg.errors import InputError
from jointseg.settings import with_overrides
from jointseg.stages import STAGES, TRAININGS
from pipeline import evaluate
from pipeline.cluster import connected, require_resources
from pipeline.evidence import Evidence, find_checkpoint, find_store, gathered, refuse_other_checkpoint
from pipeline.features import ready_features
from pipeline.provenance import own_commit
from pipeline.study import unaries
from pipeline.study.finetune import run_finetune
from pipeline.study.result import trial_record
from pipeline.study.trial import TrialJob, TrialRunner
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace

SCOPE = {
    True: "both tables (gains, other rules and what the search said are not computed again)",
    False: "the trial's own scores, over folds and by frame (what a study makes of several trials is not computed again)",
}
"""Of a run's record, or of a trial's: what was compared."""


@dataclass(frozen=True)
class Comparison:
    """What a record says beside what came out now."""

    compared: int
    """Numbers compared."""
    lines: tuple[str, ...]
    """A line for each that differs."""

    @property
    def equal(self) -> bool:
        """Whether none differs by more than was allowed."""
        return not self.lines


def reproduce(what: str, *, data: Path | None, out: Path | None, tolerance: float, screen: Terminal, verbose: bool) -> bool:
    """Compute a record's scores again from its data and its checkpoint, and say whether they are equal.

    On one machine, with as many threads, they are equal bit for bit.

    Args:
        what: a file, or `mlflow:RUN_ID`; see evidence.gathered.
        data: a store or a folder of frames with the record's data; None: that of the run's folder.
        out: the run's folder, where the record does not lie in it.
        tolerance: differences of scores up to this count as equal, for other machines; with 0 every pixel's count is compared.
        screen: where it is said.
        verbose: Ray's own logs on the screen.

    Returns:
        Whether they are equal.

    Raises:
        InputError: the record, its data or its checkpoint is not found.
    """
    with gathered(what, out=out) as evidence, TemporaryDirectory(prefix="jointseg-") as folder:
        scratch = Path(folder)
        store = find_store(evidence, data, scratch)
        with connected(verbose=verbose, here=True):  # what it works on lies on this machine alone
            if evidence.is_run:
                found = _compare_rows(evidence, store, tolerance, screen)
            else:
                found = compare_trials(evidence.record, _trial_again(evidence, store, scratch, screen), tolerance=tolerance)
    for line in found.lines:
        screen.say(f"differs: {line}")
    if found.lines and evidence.commit != own_commit():
        screen.say(f"it was scored at commit {evidence.commit or 'not known'}; this is {own_commit() or 'not known'}")
    if found.equal:
        within = f"within {tolerance:g}" if tolerance else "to the last digit"
        screen.say(f"equal: {evidence.name}, {found.compared} numbers, {within}: {SCOPE[evidence.is_run]}")
    return found.equal


def _trial_again(evidence: Evidence, store: Path, scratch: Path, screen: Terminal) -> dict[str, Any]:
    # The nodes' own disks were those of the cluster it was found on.
    record, config = evidence.record, with_overrides(_for_here(evidence.config, screen), {"search.node_folder": None})
    start, frames = find_checkpoint(evidence), tuple(record["frames"])
    cache = unaries.UnaryCache(scratch / "unaries", frames)
    folds = tuple(own["fold"] for own in record["by_frame"])
    job = TrialJob(config, store, cache, folds, scratch, evidence.place.out if evidence.place else scratch)
    number, point = record["trial"], dict(record["settings"])
    if config.search.fidelity == "finetune":
        require_resources(config)
        ready_features(config, Workspace(job.out), store=store, screen=screen)
        line = run_finetune(job, number, point)
    else:
        with screen.bar("unaries", len(frames)) as progress:
            unaries.cached_unaries(config, store, start, cache.folder, frames=frames, progress=progress, say=screen.say)
        line = TrialRunner(job).run(number, point)
    if line["error"] is not None:
        raise InputError(f"{evidence.name}: the trial fails here: {line['error']}")
    return trial_record(line, config, scratch, identity={})


def _for_here(config: Config, screen: Terminal) -> Config:
    """The config without the GPUs that it asks for, where this machine has none."""
    wanted: dict[str, Any] = {"search.gpus_per_trial": 0} if config.search.gpus_per_trial else {}
    wanted |= {"training.device": "auto"} if config.training.device == "cuda" else {}
    changed = config if torch.cuda.is_available() else with_overrides(config, wanted)
    if changed != config:
        screen.say("it came from a GPU and this machine has none: CPUs compute it, with filters of their own; see --tolerance")
    return changed


def compare_trials(record: Mapping[str, Any], again: Mapping[str, Any], *, tolerance: float) -> Comparison:
    """A trial's record beside what came out now: the pooled score, that of each fold, and each frame.

    Args:
        record: what was written then.
        again: the same trial now.
        tolerance: as in `reproduce`.
    """
    lines: list[str] = []
    pairs = {"mean IoU": (record["score"], again["score"]), "boundary F1": (record["boundary_f1"], again["boundary_f1"])}
    pairs |= {f"fold {fold}": pair for fold, pair in enumerate(zip(record["fold_scores"], again["fold_scores"], strict=True))}
    for name, (then, now) in pairs.items():
        lines += _differs(name, then, now, tolerance)
    by_frame = list(zip(record["by_frame"], again["by_frame"], strict=True))
    for then, now in by_frame:
        found = []
        for name in ("pixel_accuracy", "mean_iou"):
            found += _differs(f"frame {then['frame']}, {name.replace('_', ' ')}", then[name], now[name], tolerance)
        if not found and not tolerance and then["confusion"] != now["confusion"]:
            found = [f"frame {then['frame']}: other pixels are labelled otherwise, as many rightly"]
        lines += found
    return Comparison(len(pairs) + 2 * len(by_frame), tuple(lines))


def _compare_rows(evidence: Evidence, store: Path, tolerance: float, screen: Terminal) -> Comparison:
    place, config, record = evidence.place, _for_here(evidence.config, screen), evidence.record
    if place is None or not all(place.final(stage).is_dir() for stage in STAGES.values()):
        raise InputError(f"{evidence.name}: its run's folder, with the stages' weights, is not found; give it as --out")
    for name, wanted in record.get("checkpoints", {}).items():
        refuse_other_checkpoint(place.final(TRAININGS[name]), wanted)
    found = with_overrides(config, record["search"]["best"]["settings"])

    def own(settings: str) -> Config:
        return found if settings == "stage3" else config

    jobs = {stage: evaluate.RowJob(own(stage.settings), stage.name, store, place.final(stage)) for stage in STAGES.values()}
    numbers = Store.open(store).test
    with screen.bar("evaluate", len(jobs) * len(numbers)) as progress:
        found_now = evaluate.evaluate_rows(jobs, numbers, drawn=(), progress=progress, say=screen.say)
    then = {row: {**metrics, **record["table2"].get(row, {})} for row, metrics in record["table3"].items()}
    now = {row: part.sums.metrics(config.evaluation) for row, part in found_now.items()}
    return compare_rows(then, now, tolerance=tolerance)


def compare_rows(
    then: Mapping[str, Mapping[str, float | None]], now: Mapping[str, Mapping[str, float]], *, tolerance: float
) -> Comparison:
    """Every metric of every row of the tables, as they were and as they came out now."""
    lines: list[str] = []
    for row, metrics in then.items():
        for name, value in metrics.items():
            lines += _differs(f"{row}, {name}", value, now[row].get(name), tolerance)
    return Comparison(sum(map(len, then.values())), tuple(lines))


def _differs(name: str, then: float | None, now: float | None, tolerance: float) -> list[str]:
    """A line where two numbers differ by more than the tolerance; None and NaN are no number, and equal."""
    one, other = (math.nan if value is None else value for value in (then, now))
    if one == other or (math.isnan(one) and math.isnan(other)) or abs(one - other) <= tolerance:
        return []
    return [f"{name}: {one!r} then and {other!r} now, by {other - one:+.3g}"]
