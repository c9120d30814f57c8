"""The pipeline: its phases in order, each leaving its result in `--out` before the next begins.

Not here: what a phase does (phases.py), the command line (cli.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from jointseg.config import Config
from jointseg.errors import InputError
from jointseg.network.pretrained import check_pretrained
from jointseg.settings import flatten
from jointseg.stages import TRAININGS
from pipeline import search
from pipeline.cluster import connected, once_nodes_are_there, require_resources, worker_resources
from pipeline.failures import TrackingError
from pipeline.phases import WORK, Pipeline, log_data
from pipeline.provenance import own_commit
from pipeline.run_store import page_of, run_store
from pipeline.sources import check_source
from pipeline.study.earlier import earlier_study, refuse_a_search
from pipeline.study.room import wait_for_room
from pipeline.terminal import Terminal
from pipeline.tracking import TOP, Tracker
from pipeline.untracked import Untracked
from pipeline.workspace import PHASES, PIPELINE, Workspace

NEEDS = {
    "data": (),
    "stage1": ("data",),
    "one_stage": ("data",),
    "stage2": ("stage1",),
    "search": ("stage2",),
    "stage3_sem_crf": ("search",),
    "stage3": ("search",),
    "evaluate": ("stage1", "stage2", "stage3_sem_crf", "stage3"),
    "report": ("evaluate", "search"),
}


def run_phases(config: Config, place: Workspace, phases: Sequence[str], *, screen: Terminal, verbose: bool) -> None:
    """Run those of `phases` that have not finished in this folder, in the pipeline's order.

    Raises:
        InputError: the folder has another config, an earlier phase or the data is missing, or Ray lacks the resources asked
            for. A new folder is left as it was.
    """
    place.refuse_other_config(config)
    due = [phase for phase in PHASES if phase in phases and not place.finished(phase)]
    if not due:
        screen.say(f"{place.out}: {', '.join(phases)} finished already; nothing to do")
        if place.finished(PIPELINE[-1]):  # a kill may have come after the last phase and before the run was closed
            with suppress(TrackingError):
                Tracker.open(place.out).close(TOP)
        Tracker.send_left_over(place.out)
        return
    for phase in due:
        for needed in NEEDS[phase]:
            if needed not in due[: due.index(phase)]:
                place.require(needed, wanted=phase)
    place.refuse_other_frames()
    if not place.finished("search"):
        search.check_search(config)
        if config.search.settings is not None:
            earlier_study(config)
    if "data" in due:
        check_pretrained(config.network)
        check_source(config.data)
    run_store(place.out)  # refused before anything is made, where MLflow's store cannot be used as it is named
    with connected(verbose=verbose):
        if any(phase in TRAININGS for phase in due):
            workers = worker_resources(config, gpu=config.training.device == "cuda")
            once_nodes_are_there(partial(require_resources, config), workers, say=screen.say)
        if "search" in due and config.search.settings is None:
            wait_for_room(config, say=screen.say)
        with place.locked():
            made = [path for path in (place.config, place.tracking) if not path.is_file()]
            place.adopt_config(config)  # not before all else is in order: a folder keeps the config it once has
            try:
                tracker = Tracker.open(place.out, say=screen.say)
            except InputError:
                for path in made:  # the folder is left as it was
                    path.unlink(missing_ok=True)
                raise
            tracker.end_abandoned(is_scored=place.is_scored)
            with tracker.run(place.out.name, key=TOP) as parent:
                tracker.log_params(parent, flatten(config))
                tracker.tag(parent, {"folder": str(place.out)})
                _say_where(tracker, parent, screen)
                _run_due(Pipeline(config, place, tracker, parent, screen, verbose), due)


def run_search_command(config: Config, place: Workspace, *, screen: Terminal, verbose: bool) -> None:
    """Run a study of its own settings, `config.search`, in a run's folder whose stage 2 has finished, or go on with it.

    Raises:
        InputError: the folder has another config beside `search`, stage 2 has not finished, or the search is not possible.
    """
    there = place.load_config()
    place.refuse_other_config(config if there is None else config.model_copy(update={"search": there.search}))
    refuse_a_search(config)
    place.require("stage2", wanted="search")
    place.refuse_other_frames()
    study = search.open_study(config, place)
    result = search.finished_result(study)
    if result is not None:
        with place.locked():
            search.take_over(result, study, place, screen)
            if not place.finished("search"):
                place.finish("search", seconds=0.0, commit=own_commit())
        Tracker.send_left_over(place.out)
        return
    with connected(verbose=verbose), place.locked():
        tracker = Tracker.open(place.out, say=screen.say)
        tracker.end_abandoned(is_scored=place.is_scored)
        parent, started = tracker.top_run(place.out.name), time.perf_counter()
        _say_where(tracker, parent, screen)
        handed_over = search.run_search(config, place, tracker, parent=parent, screen=screen, verbose=verbose)
        if handed_over or not place.finished("search"):
            place.finish("search", seconds=time.perf_counter() - started, commit=own_commit())
        tracker.offer_again()


def _say_where(tracker: Tracker, parent: str, screen: Terminal) -> None:
    """The page of the run that all others are under, on a server; a folder's own store has a command, `jointseg ui`."""
    page = page_of(parent, uri=tracker.uri, experiment_id=tracker.experiment_id)
    if page is not None:
        screen.say(f"MLflow: {page}")


def _run_due(pipeline: Pipeline, due: Sequence[str]) -> None:
    """Run phases, to the end also where MLflow goes away: those that it was not told of are not finished, and repeated later.

    Raises:
        TrackingError: it has gone away, at the end.
    """
    if "data" not in due:
        log_data(pipeline)
    gone: TrackingError | None = None
    for phase in due:
        started = time.perf_counter()
        try:
            with pipeline.tracker.troubles_named():
                WORK[phase](pipeline)
        except TrackingError as error:
            gone = error
            pipeline.screen.say(f"the run goes on without MLflow: {error}")
            tracker = pipeline.tracker
            pipeline = replace(pipeline, tracker=Untracked(tracker.client, tracker.uri, tracker.experiment_id, tracker.folder))
            WORK[phase](pipeline)
        pipeline.tracker.offer_again()
        seconds = time.perf_counter() - started
        if gone is None:
            pipeline.place.finish(phase, seconds=seconds, commit=own_commit())
        pipeline.screen.say(f"{phase}: {'done' if gone else 'finished'} in {seconds:.0f} s")
    if gone is not None:
        raise TrackingError(f"{pipeline.place.out} has everything, and the same command tells MLflow once it answers: {gone}")
