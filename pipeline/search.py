"""The search as a phase of a run: its study's folder and what the study is, the trials, and where the result goes.

Not here: spaces (study/spaces.py), the study on Ray Tune (study/study.py), what the result says (study/result.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from jointseg import boundary
from jointseg.checkpoint import final_digest
from jointseg.config import Config
from jointseg.cross_validation import draw_folds, draw_grouped_folds
from jointseg.data.store import Store
from jointseg.data.views import consecutive_runs
from jointseg.json_files import as_json, write_json
from jointseg.settings import SettingsError, flatten
from jointseg.stages import STAGES
from jointseg.whole import write_atomically
from pipeline.cluster import without_missing_gpus
from pipeline.features import ready_features
from pipeline.log_lines import Line
from pipeline.notation import CRF_ROWS, setting, setting_of_the_paper
from pipeline.run_store import few_retries
from pipeline.sources import dataset_of
from pipeline.study import unaries
from pipeline.study.figures import draw_study
from pipeline.study.grid import grid
from pipeline.study.result import WHOLE_SCENES, best_so_far, read_result, said, save_result, scores, trial_record
from pipeline.study.room import wait_for_room
from pipeline.study.samplers import OBJECTIVES, Asker, build_sampler
from pipeline.study.spaces import Space, load_space, start_points
from pipeline.study.study import run_study
from pipeline.study.tracked_trials import log_trial, told_trials
from pipeline.study.trial import TrialJob
from pipeline.study.trial_record import FINISHED, times
from pipeline.terminal import Terminal
from pipeline.tracking import Tracker
from pipeline.workspace import SETTINGS, TRIALS, Workspace

AFTER = frozenset({"trials", "resamples", "concurrent", "filter_cache", "node_folder", "start", "settings"})
"""Settings of the search that change no trial: more trials go on with the same study. Of `start` the points count; with
`settings` there are no trials."""
STUDY, JOURNAL = "study.json", "journal.log"
UNTOLD = "untold"
"""Of a study that has ended while MLflow was gone: the same command tells it."""


@dataclass(frozen=True)
class Study:
    """One study of a run: what its trials depend on, and the folder named after that."""

    config: Config
    space: Space
    frames: tuple[int, ...]
    folds: tuple[int, ...]
    folder: Path
    description: Line
    """Everything that decides the list of trials and their scores."""

    @property
    def identity(self) -> Line:
        """What is written beside every trial's scores."""
        kept = ("data", "frames", "subset", "checkpoint", "balanced_by")
        return {"study": self.folder.name, **{name: self.description[name] for name in kept}}

    def asker(self) -> Asker:
        """Optuna, not asked yet; its journal lies in the study's folder."""
        first = start_points(self.space, self.config)
        journal = self.folder / JOURNAL
        return Asker(self.config.search, self.space, first=first, journal=journal, name=self.folder.name)


def check_search(config: Config) -> Space:
    """Look at everything about a search that can be wrong before there are any frames; returns its space.

    Raises:
        InputError: the space, the sampler, the start or the number of folds is not allowed.
    """
    space = load_space(config)
    build_sampler(config.search, space)
    start_points(space, config)
    folds, frames = config.search.folds, config.data.validation_frames
    if frames == 1:
        raise SettingsError("data.validation_frames", f"{frames} is too few for the folds of the search; allowed: from 2 up")
    if folds > frames:
        raise SettingsError("search.folds", f"{folds} folds of {frames} frames (data.validation_frames); allowed: 2..{frames}")
    if config.search.sampler == "grid":
        grid(space, levels=config.search.grid_levels, seed=config.search.seed)
    return space


def folds_of(config: Config, store: Store, frames: Sequence[int]) -> tuple[tuple[int, ...], str | None]:
    """The fold of each validation frame, and what folds are balanced by: `scene type`, where known; or WHOLE_SCENES, none of
    which is in two folds, where validation has whole ones.

    Raises:
        InputError: there are more folds than scenes.
    """
    num_folds, seed = config.search.folds, config.search.seed
    if config.data.validation_by == "scene":
        runs = consecutive_runs(frames)
        if num_folds > len(runs):
            asked = f"{num_folds} folds of {len(runs)} scenes (data.validation_by=scene)"
            raise SettingsError("search.folds", f"{asked}; allowed: as many as scenes, or fewer")
        groups = [place for place, run in enumerate(runs) for _ in run]
        return draw_grouped_folds(groups, num_folds=num_folds, seed=seed), WHOLE_SCENES
    strata = None if store.scene_types is None else [store.scene_types[number - 1] for number in frames]
    return draw_folds(len(frames), num_folds=num_folds, seed=seed, strata=strata), None if strata is None else "scene type"


def open_study(config: Config, place: Workspace) -> Study:
    """The study that `config` means in this run's folder; the folder of another one is another.

    Raises:
        InputError: as `check_search`, or stage 2 has left no weights.
    """
    space, settings = check_search(config), config.search
    store = Store.open(place.store)
    subset = place.subset()
    frames = subset["frames"]
    folds, balanced_by = folds_of(config, store, frames)
    checkpoint = final_digest(place.final(STAGES["stage2"]))
    description = {
        "space": {"name": space.name, "sha256": space.digest},
        "first": [point for point, _, _ in start_points(space, config)],
        **{name: value for name, value in flatten(settings).items() if name not in AFTER | {"space"}},
        **({"boundary_f1": boundary.DEFINITION} if "boundary_f1" in OBJECTIVES[settings.objective] else {}),
        "crf": flatten(config.crf),
        "crop": config.evaluation.crop,
        "absent_classes": config.evaluation.absent_classes,
        **config.evaluation.views,
        "data": store.digest,
        "frames": list(frames),
        "subset": subset["digest"],
        "balanced_by": balanced_by,
        "checkpoint": checkpoint,
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    short = re.sub(r"\W+", "_", Path(space.name.removesuffix(":space")).name.removesuffix(".py"))
    folder = place.search / f"{short}-{settings.sampler}-{digest[:8]}"
    return Study(config, space, frames, folds, folder, description)


def finished_result(study: Study) -> dict[str, Any] | None:
    """The result of a study that has the trials that are asked for now, or more; None where there is none yet, or where as many
    trials are asked for with other `resamples`, or MLflow has not been told of them.
    """
    path = study.folder / SETTINGS
    if not path.is_file():
        return None
    result = read_result(path)
    then, now = result["search"], study.config.search
    same = then["trials"] == now.trials and then["resamples"] == now.resamples and not (study.folder / UNTOLD).is_file()
    return result if same or then["trials"] > now.trials else None


def take_over(result: dict[str, Any], study: Study, place: Workspace, screen: Terminal) -> bool:
    """Say what a finished study found, and make it the one that stage 3 starts from, as `run_search`. Returns whether it is."""
    screen.say(f"{study.folder}: finished already; {said(result)}")
    return _hand_over(place, study, screen)


def run_search(config: Config, place: Workspace, tracker: Tracker, *, parent: str, screen: Terminal, verbose: bool) -> bool:
    """Run the study to its end, or go on with it, and write and log its result. Needs Ray.

    Its crf_settings.json comes last: a study that has it has all else.

    Returns:
        Whether stage 3 starts from it: not where one has started from another.
    """
    study = open_study(config, place)
    there = finished_result(study)
    if there is not None:
        return take_over(there, study, place, screen)
    wait_for_room(config, say=screen.say)
    write_json(study.folder / STUDY, study.description)
    name = study.folder.name
    with tracker.run(f"search {name}", parent=parent, key=f"search/{name}") as run:
        # A study goes on with more trials, and MLflow lets no parameter change.
        passing = {f"search.{name}" for name in AFTER}
        lasting = {path: value for path, value in flatten(config).items() if path not in passing}
        tracker.log_params(run, {**lasting, "search.space": study.space.name})  # its file may lie elsewhere another time
        tracker.log_dataset(run, context="validation", **dataset_of(config, place))
        cache = unaries.UnaryCache(place.search / "unaries", study.frames)
        if config.search.fidelity == "finetune":  # a trial runs the network that it trains
            ready_features(config, place, store=place.store, screen=screen)
        else:
            with screen.bar("unaries", len(study.frames)) as progress:
                start = place.final(STAGES["stage2"])
                here = without_missing_gpus(config, say=screen.say)
                unaries.cached_unaries(
                    here, place.store, start, cache.folder, frames=study.frames, progress=progress, say=screen.say
                )
        job = TrialJob(config, place.store, cache, study.folds, study.folder, place.out)
        asker = study.asker()
        lines = _run_trials(study, job, asker, tracker=tracker, run=run, screen=screen, verbose=verbose)
        result = save_result(lines, config, study.folder, identity=study.identity)
        draw_study(lines, asker, job, result)
        bests = {line["trial"]: {"best_so_far": best} for line, best in zip(lines, best_so_far(lines), strict=True)}
        known = accumulate((times(line)[1].timestamp() for line in lines), max)  # once it and all before it had ended
        tracker.log_curves(run, bests, when=dict(zip(bests, known, strict=True)))
        tracker.log_result(run, _summary(result), step=result["trials"])
        tracker.log_text(run, as_json(result), SETTINGS)
        tracker.describe(run, _described(name, result))
        tracker.tag(run, {f"found/{path}": str(value) for path, value in result["settings"].items()})
        for part in (TRIALS, STUDY, JOURNAL, "confusions", "figures"):
            path = study.folder / part
            tracker.log_artifact(run, path, part if path.is_dir() else None)
    if tracker.is_gone:
        (study.folder / UNTOLD).touch()
    write_json(study.folder / SETTINGS, result)
    if not tracker.is_gone:
        (study.folder / UNTOLD).unlink(missing_ok=True)
    screen.say(said(result))
    return _hand_over(place, study, screen)


def _run_trials(
    study: Study, job: TrialJob, asker: Asker, *, tracker: Tracker, run: str, screen: Terminal, verbose: bool
) -> list[Line]:
    ended: dict[int, Line] = {}
    told = set() if tracker.is_gone else told_trials(tracker, run)
    with screen.bar("search", asker.limit(study.config.search.trials)) as progress:
        failures: set[str] = set()

        def tell(line: Line) -> None:
            ended[line["trial"]] = line
            reason = re.sub(r"[-+.e\d]*\d", "…", line["error"] or "")  # whatever the values were
            if reason and reason not in failures:
                failures.add(reason)
                screen.say(f"trial {line['trial']} failed: {line['error']}")
            known = [score for score in scores(list(ended.values())) if score is not None]
            progress(len(ended), note=f"best {max(known, default=math.nan):.4f}")
            if tracker.is_gone or line["trial"] in told:
                return
            record = None
            if line["state"] == FINISHED:
                record = trial_record(line, study.config, study.folder, identity=study.identity)
            with few_retries(seconds=None), tracker.troubles_named():  # it is told again
                log_trial(tracker, run, line, record=record)

        return run_study(job, asker, tell=tell, say=screen.say, verbose=verbose)


def _summary(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a result as MLflow's metrics."""
    known = {
        "best_mean_iou": result["score"],
        "best_trial": result["trial"],
        **{count: result[count] for count in ("trials", "failed", "stopped")},
        "paper_mean_iou": result["paper_score"],
        "nested_mean_iou": result["nested"]["score"],
        "optimism": result["nested"]["optimism"],
        **{f"folds/{name}": result["folds"][name] for name in ("mean", "standard_error")},
        **_named("gain", result["gain"]),
        **_named("nested_gain", result["nested"].get("gain")),
    }
    return {name: value for name, value in known.items() if value is not None}


def _named(name: str, gain: dict[str, float] | None) -> dict[str, float]:
    return {} if gain is None else {f"{name}/{end}": gain[end] for end in ("difference", "low", "high")}


def _described(name: str, result: dict[str, Any]) -> str:
    """A study's result in Markdown."""
    found = result["settings"]
    rows = [f"| {path} | {setting(found[path])} | {setting_of_the_paper(path)} |" for path in CRF_ROWS]
    return "\n".join([f"Study `{name}`. {said(result)}.", "", "| | found | paper |", "| --- | ---: | ---: |", *rows])


def _hand_over(place: Workspace, study: Study, screen: Terminal) -> bool:
    """Make the result the one that stage 3 starts from, unless a stage 3 has started from another. Returns whether it is."""
    path = study.folder / SETTINGS
    found = path.read_text(encoding="utf-8")
    begun = [stage.name for stage in STAGES.values() if stage.settings == "stage3" and place.stage(stage).is_dir()]
    if not begun or not place.crf_settings.is_file():
        write_atomically(place.crf_settings, found)
        return True
    there, own = read_result(place.crf_settings), read_result(path)
    if all(there[name] == own[name] for name in ("study", "settings")):
        write_atomically(place.crf_settings, found)
        if there != own and place.finished("report"):
            place.forget("report")
            screen.say(f"{place.report}: of the study as it was; `jointseg evaluate --out {place.out}` writes it anew")
        return True
    origin = "settings that were given" if there["study"] is None else f"study {there['study']}"
    screen.say(f"{place.crf_settings} stays: {' and '.join(begun)} began from {origin}; this result is in {study.folder}")
    return False
