"""What each phase of the pipeline does: its work, what it logs, what it says.

Not here: their order and what they need (run.py), how it is done (train.py, search.py, evaluate.py, report.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jointseg.checkpoint import describe_final, final_digest
from jointseg.config import Config
from jointseg.crf.settings import CrfSettings
from jointseg.data.nyu import FRAMES_FILE
from jointseg.data.rooms import processes_to_render, write_rooms
from jointseg.data.store import Store
from jointseg.settings import flatten
from jointseg.stages import STAGES, TRAININGS, Stage
from pipeline import evaluate, evaluation_files, report, search
from pipeline.cluster import result_of, uses_gpu, without_missing_gpus, workers_said
from pipeline.features import ready_features
from pipeline.provenance import own_commit
from pipeline.run_store import few_retries
from pipeline.sources import bring_in, dataset_of, list_frames
from pipeline.study.earlier import take_settings
from pipeline.study.settings_file import load_settings
from pipeline.terminal import Terminal
from pipeline.tracking import Tracker
from pipeline.train import train_stage
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Pipeline:
    """A run in its folder: everything a phase is given."""

    config: Config
    place: Workspace
    tracker: Tracker
    parent: str
    screen: Terminal
    verbose: bool

    @property
    def store(self) -> Store:
        """The prepared frames."""
        return Store.open(self.place.store)

    @property
    def validation(self) -> tuple[int, ...]:
        """The frames of the validation subset."""
        frames: tuple[int, ...] = self.place.subset()["frames"]
        return frames

    def stage_config(self, stage: Stage) -> Config:
        """The config a stage trains with: stage 3 takes the CRF settings that the search found."""
        if stage.settings != "stage3":
            return self.config
        return load_settings(self.place.crf_settings, self.config)

    def trained_crf(self, stage: Stage) -> CrfSettings:
        """The CRF that a stage was trained with, whatever was found since."""
        return describe_final(self.place.final(stage))[1].crf


def prepare_data(pipeline: Pipeline) -> None:
    """Rooms where no data was given, the prepared store, the validation subset and the manifest of views."""
    config, place, screen = pipeline.config, pipeline.place, pipeline.screen
    data = config.data
    source = data.source
    if source is None:
        source = place.rooms
        if not (source / FRAMES_FILE).is_file():
            with screen.bar("rooms", data.rooms_train + data.rooms_test) as progress:
                write_rooms(
                    source,
                    num_train=data.rooms_train,
                    num_test=data.rooms_test,
                    seed=data.rooms_seed,
                    progress=progress,
                    num_processes=processes_to_render(),
                )
    if not place.store.is_dir():
        with screen.bar("prepare", 1) as progress:
            bring_in(source, place.store, progress=progress)
    store = pipeline.store
    views = list_frames(place, store, data)
    if data.validation_by == "scene":
        search.folds_of(config, store, pipeline.validation)  # too few scenes are refused before anything is trained
    log_data(pipeline)
    seen = f"{len(views)} views" if data.views == "offline" else f"views drawn anew from {len(views)} frames at each visit"
    screen.say(f"{len(store.train)} train and {len(store.test)} test frames; {len(pipeline.validation)} for validation; {seen}")


def log_data(pipeline: Pipeline) -> None:
    """What was made of the data, on the parent run where it has none: its run may be new, the other deleted in MLflow."""
    tracker, parent, place = pipeline.tracker, pipeline.parent, pipeline.place
    if not tracker.has_dataset(parent):
        tracker.log_artifact(parent, place.views)
        tracker.log_artifact(parent, place.validation)
        _log_dataset(pipeline, parent, context="training and testing")  # last: a run that has it has all


def _log_dataset(pipeline: Pipeline, run: str, *, context: str) -> None:
    pipeline.tracker.log_dataset(run, context=context, **dataset_of(pipeline.config, pipeline.place))


def train(pipeline: Pipeline, stage: Stage) -> None:
    """One training stage on Ray Train, its reports going to MLflow and the screen as they come."""
    config, place, tracker = pipeline.stage_config(stage), pipeline.place, pipeline.tracker
    ready_features(config, place, store=place.store, screen=pipeline.screen)
    iterations = stage.config(config).iterations
    pipeline.screen.say(f"{stage.name}: {workers_said(config, gpu=uses_gpu(config))}")
    place.stage(stage).mkdir(parents=True, exist_ok=True)  # before MLflow has its settings, which a search could still change
    with (
        tracker.run(stage.name, parent=pipeline.parent) as run,
        pipeline.screen.bar(stage.name, iterations) as progress,
    ):
        tracker.log_params(run, flatten(config))
        _log_dataset(pipeline, run, context="training")
        if stage.settings == "stage3" and place.has_study():
            tracker.tag(run, {"study": place.study().name})
        last = tracker.last_step(run, "loss/total")
        loaded = place.loaded(stage)
        begins = last < 0

        def tell(row: dict[str, float]) -> None:
            nonlocal begins
            if begins and loaded.is_file():
                pipeline.screen.say(loaded.read_text(encoding="utf-8").rstrip())
            begins = False
            step = int(row["step"])
            progress(step, note=f"loss {row['loss/total']:.4g}")
            if step > last:
                when = row.get("time", time.time())  # logs of earlier commits have none
                with few_retries(), tracker.troubles_named():  # it is told again
                    tracker.log_metrics(run, curves_of(row), step=step, when=when)

        train_stage(config, stage, place, validation=pipeline.validation, tell=tell, say=pipeline.screen.say)
        tracker.log_artifact(run, place.final(stage), "checkpoint")
        for said in (loaded, place.notes(stage)):
            if said.is_file():
                tracker.log_artifact(run, said)


def curves_of(row: dict[str, float]) -> dict[str, float]:
    """What of a report MLflow draws: of layers that have the network's learning rate the network's alone."""
    rate = row.get("lr/network")
    like_it = {name for name, value in row.items() if name.startswith("lr/") and value == rate} - {"lr/network"}
    return {name: value for name, value in row.items() if name not in {"step", "time", *like_it}}


def search_settings(pipeline: Pipeline) -> None:
    """The search on the validation subset, from the stage-2 weights; or what an earlier one found."""
    p = pipeline
    if p.config.search.settings is not None:
        study = take_settings(p.config, p.place, screen=p.screen)
        if study is not None:
            p.tracker.tag(p.parent, {"study": study})
        p.tracker.log_artifact(p.parent, p.place.crf_settings, "earlier_search")  # this run's record is its report
        return
    search.run_search(p.config, p.place, p.tracker, parent=p.parent, screen=p.screen, verbose=p.verbose)


def evaluate_test(pipeline: Pipeline) -> None:
    """The four rows on the test split, with the floors beside them. What was evaluated already is told to MLflow alone."""
    place, tracker = pipeline.place, pipeline.tracker
    origin = {
        "commit": own_commit(),
        "data": pipeline.store.digest,
        "checkpoints": {name: final_digest(place.final(stage)) for name, stage in STAGES.items()},
        "config": pipeline.config.model_dump(mode="json"),
    }
    with tracker.run("evaluation", parent=pipeline.parent) as run:
        tracker.log_params(run, flatten(pipeline.config))
        _log_dataset(pipeline, run, context="testing")
        if not evaluation_files.is_from(place, origin):
            _evaluate(pipeline, origin)
        found = evaluation_files.read_metrics(place)
        gains = {f"gain/{row}_over_{other}": gain for row, own in found["gains"].items() for other, gain in own.items()}
        for of, metrics in {**found["rows"], **gains, "floor": found["floors"]}.items():
            tracker.log_result(run, {f"test/{of}/{name}": value for name, value in metrics.items() if value is not None})
        tracker.log_artifact(run, place.evaluation, "evaluation")


def _evaluate(pipeline: Pipeline, origin: Mapping[str, Any]) -> None:
    config, place, screen = pipeline.config, pipeline.place, pipeline.screen
    store, here = pipeline.store, without_missing_gpus(config, say=screen.say)
    trained = {stage: here.model_copy(update={"crf": pipeline.trained_crf(stage)}) for stage in STAGES.values()}
    jobs = {stage: evaluate.RowJob(own, stage.name, place.store, place.final(stage)) for stage, own in trained.items()}
    drawn = store.test[: config.evaluation.num_figures]
    with screen.bar("evaluate", len(jobs) * len(store.test)) as progress:
        floor_task = evaluate.start_floors(here, place.store)
        found = evaluate.evaluate_rows(jobs, store.test, drawn=drawn, progress=progress, say=screen.say)
        floors = result_of(floor_task)
    best, worst = evaluate.extremes(found[report.WITH_CRF].frames, most=len(drawn))
    if best:
        job = {stage: own for stage, own in jobs.items() if stage.row == report.WITH_CRF}
        both = (*best, *worst)
        with screen.bar("pictures", len(both)) as progress:
            seen = evaluate.evaluate_rows(job, both, drawn=both, progress=progress, say=screen.say)
        found[report.WITH_CRF].predictions.update(seen[report.WITH_CRF].predictions)
    pictures = {"first": list(drawn), "best": best, "worst": worst}
    evaluation_files.save_evaluation(place, found, config, floors=floors, pictures=pictures, origin=origin)


def write_report(pipeline: Pipeline) -> None:
    """report.json, report.md, report.html and figures/, logged on the parent run."""
    report.write(pipeline.config, pipeline.place, pipeline.store)
    tracker, parent = pipeline.tracker, pipeline.parent
    for path in (pipeline.place.report, pipeline.place.report_page, pipeline.place.report_html):
        tracker.log_artifact(parent, path)
    tracker.log_artifact(parent, pipeline.place.figures, "figures")
    tracker.log_result(parent, report.headline(pipeline.place))
    tracker.describe(parent, report.description(pipeline.place))


WORK: dict[str, Callable[[Pipeline], None]] = {
    "data": prepare_data,
    **{name: partial(train, stage=stage) for name, stage in TRAININGS.items()},
    "search": search_settings,
    "evaluate": evaluate_test,
    "report": write_report,
}
