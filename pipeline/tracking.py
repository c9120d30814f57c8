"""Everything that goes to MLflow, and the only file that imports it. Used by the driver alone, with explicit run ids.

Not here: trials (study/tracked_trials.py), what is worth logging (phases.py, score.py), reading files (tracked_files.py).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from jointseg.config import OPERATIONAL
from jointseg.errors import InputError
from pipeline.failures import TrackingError, is_interruption
from pipeline.provenance import COMMIT_TAG, MAX_TAG_LENGTH, origin, own_commit
from pipeline.run_store import VARIABLE, RunStore, few_retries, made_once, run_store, shown, uri_of, without_password
from pipeline.unsent import UNSENT, Unsent, left_over

# mlflow and alembic announce every table they create; set before the import, which configures them.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

KEY_TAG = "jointseg.key"
TOP = "pipeline"
"""Key of the run that all others are under."""
SCORE = "score/"
"""How keys of scores begin."""
FOLDER_TAG = "jointseg.folder"
"""In an experiment of several folders, whose run it is (RunStore.folder)."""
NOTE_TAG = "mlflow.note.content"
"""The description, Markdown that MLflow shows."""
PARENT_TAG = "mlflow.parentRunId"
COMMITS_TAG = "commits"
"""All commits that a run was worked on with, where they are more than one, the first first."""
MAX_PARAM_LENGTH = 6000
MOST_POINTS = 1000  # in a request
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError, ImportError)  # a server's too: OSError
DELETED = "must be in the 'active' state"
DISK_ERRORS = ("database or disk is full", "disk I/O error")
"""What SQLite says of a disk."""


def _create_experiment(client: MlflowClient, store: RunStore) -> entities.Experiment:
    """The store's experiment; another folder that has the same may have made it meanwhile."""
    try:
        client.create_experiment(store.experiment, store.artifacts, {NOTE_TAG: store.description})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(store.experiment)


def _upload(client: MlflowClient, file: Mapping[str, Any]) -> None:
    """Send one file or folder, as Unsent has it."""
    if "text" in file:
        client.log_text(file["run"], file["text"], file["name"])
    elif (path := Path(file["path"])).is_dir():
        client.log_artifacts(file["run"], str(path), file["into"])
    else:
        client.log_artifact(file["run"], str(path), file["into"])


@dataclass(frozen=True)
class Tracker:
    """One experiment of one store."""

    client: MlflowClient
    uri: str
    experiment_id: str
    folder: str | None = None
    """Whose runs of the experiment; None: all are of one folder."""
    files: Unsent | None = None
    is_gone: ClassVar[bool] = False

    @classmethod
    def open(cls, out: Path, *, say: Callable[[str], None] = lambda _: None) -> Tracker:
        """The experiment of `out`, created with its store where they are not there yet. `say` is told of files not taken.

        Raises:
            InputError: the store is another than the folder's runs are in; or a TrackingError, it cannot be reached.
        """
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints tracebacks of errors it raises too
        store = run_store(out)
        try:
            made_once(store.uri, lambda uri: MlflowClient(tracking_uri=uri).search_experiments())
            client = MlflowClient(tracking_uri=store.uri)
            with few_retries():
                experiment = client.get_experiment_by_name(store.experiment)
            if experiment is not None and experiment.lifecycle_stage == entities.LifecycleStage.DELETED:
                at = f"{VARIABLE}={shlex.quote(without_password(store.uri))}"
                again = f"{at} mlflow experiments restore --experiment-id {experiment.experiment_id}"
                raise InputError(f"{store}: experiment {store.experiment!r} was deleted; this brings it back: {again}")
            store.remember()
            experiment = experiment or _create_experiment(client, store)
        except STORE_ERRORS as error:
            raise TrackingError(f"{store} cannot be used: {shown(error)}") from None
        files = Unsent(out / UNSENT, partial(_upload, client), say)
        return cls(client, store.uri, experiment.experiment_id, store.folder, files)

    @contextmanager
    def run(self, name: str, *, parent: str | None = None, key: str | None = None, started: int | None = None) -> Iterator[str]:
        """The id of the run called `name` under `parent`, found or created, so that a restart goes on with it.

        It is RUNNING inside the block, and FINISHED, FAILED or KILLED after it. `key` tells apart runs of one name; one that is
        created began at `started`, in milliseconds, or now.

        Raises:
            InputError: the store could not be used, or its disk was full.
        """
        key = key or name
        with self.troubles_named():
            run_id = self._gone_on_with(key, parent) or self._create(name, key, parent, started)
            self.client.update_run(run_id, status="RUNNING")
        try:
            with self.troubles_named():
                yield run_id
        except BaseException as error:
            with suppress(MlflowException, SQLAlchemyError, OSError), few_retries():  # what happened says more than this would
                self.client.set_terminated(run_id, status="KILLED" if is_interruption(error) else "FAILED")
            raise
        with self.troubles_named():
            self.client.set_terminated(run_id, status="FINISHED")

    @contextmanager
    def troubles_named(self) -> Iterator[None]:
        """A store that does not answer, refuses or is full comes out as an InputError; a value that it won't take as it is."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, RequestException) as error:
            again = "; restore it in MLflow, or repeat the command, for another" if DELETED in str(error) else ""
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE" and not again:
                raise
            full = next((said for said in DISK_ERRORS if said in str(error)), None)
            if full:
                raise InputError(f"{without_password(self.uri)}: cannot be written: {full}") from None
            raise TrackingError(f"{without_password(self.uri)}: MLflow's store cannot be used: {shown(error)}{again}") from None

    def top_run(self, name: str) -> str:
        """The id of the run that all others are under, its status left as it is; a new one is ended, for nobody else may be to.

        Raises:
            InputError: the store could not be used.
        """
        with self.troubles_named():
            if (there := self._gone_on_with(TOP, None)) is None:
                self.client.set_terminated(there := self._create(name, TOP, None), status="FINISHED")
            return there

    def end_abandoned(self, *, is_scored: Callable[[str], bool]) -> None:
        """Mark runs KILLED that a killed process left RUNNING, for whoever has the folder to itself.

        Args:
            is_scored: whether a score of this name is being computed by another process: scores lock themselves alone.
        """
        with self.troubles_named():
            running = f"attributes.status = 'RUNNING'{self._of_folder}"
            for run in self.client.search_runs([self.experiment_id], running, max_results=1000):
                key = run.data.tags.get(KEY_TAG, "")
                goes_on = key.startswith(SCORE) and is_scored(key.removeprefix(SCORE))
                if not goes_on and self.client.get_run(run.info.run_id).info.status == "RUNNING":  # it may have ended since
                    self.client.set_terminated(run.info.run_id, status="KILLED")

    def close(self, key: str) -> None:
        """Mark the run with this key FINISHED, if it is there and is not."""
        with self.troubles_named():
            run_id = self.find(key, None)
            if run_id and self.client.get_run(run_id).info.status != "FINISHED":
                self.client.set_terminated(run_id, status="FINISHED")

    def find(self, key: str, parent: str | None) -> str | None:
        """The id of the run with this key, under `parent` where it is given; None where there is none."""
        # MLflow cannot filter on a missing tag, so the top run is told apart by a key of its own.
        of_parent = f" and tags.`{PARENT_TAG}` = '{parent}'" if parent else ""
        wanted = f"tags.`{KEY_TAG}` = '{key}'{of_parent}{self._of_folder}"
        found = self.client.search_runs([self.experiment_id], wanted, max_results=1)
        return found[0].info.run_id if found else None

    @property
    def _of_folder(self) -> str:
        return f" and tags.`{FOLDER_TAG}` = '{self.folder}'" if self.folder else ""

    def _gone_on_with(self, key: str, parent: str | None) -> str | None:
        """A run that is there, with this process's commit among its own."""
        run_id = self.find(key, parent)
        now = own_commit() or "not known"
        if run_id is not None:
            tags = self.client.get_run(run_id).data.tags
            before = tags.get(COMMITS_TAG, tags.get(COMMIT_TAG, "not known")).split(", ")
            if now not in before:
                self.client.set_tag(run_id, COMMITS_TAG, ", ".join([*before, now]))
        return run_id

    def _create(self, name: str, key: str, parent: str | None, started: int | None = None) -> str:
        own = {KEY_TAG: key, PARENT_TAG: parent, FOLDER_TAG: self.folder}
        tags = {name: value for name, value in own.items() if value} | origin()
        called = f"{self._files.folder.parent.name}/{name}" if self.folder and parent else name  # charts show names alone
        return str(self.client.create_run(self.experiment_id, started, tags, called).info.run_id)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Parameters under their config paths; those already there with the same value are left alone.

        MLflow lets none change: where a run goes on under another of `config.OPERATIONAL`, that is a tag, `now/PATH`.
        """
        data = self.client.get_run(run_id).data
        there, tags = data.params, data.tags
        given = {name: str(value)[:MAX_PARAM_LENGTH] for name, value in params.items()}
        changed = {name: value for name, value in given.items() if name in OPERATIONAL and there.get(name, value) != value}
        for name, value in changed.items():
            self.client.set_tag(run_id, f"now/{name}", value)
        for name in given.keys() - changed.keys():
            if f"now/{name}" in tags:  # it is the parameter's again
                self.client.delete_tag(run_id, f"now/{name}")
        new = [entities.Param(name, value) for name, value in given.items() if there.get(name) != value and name not in changed]
        for first in range(0, len(new), 100):
            self.client.log_batch(run_id, params=new[first : first + 100])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int, when: float) -> None:
        """Finite values at `step`, of a time in Unix seconds; a point that is there, logged before a restart, stays one.

        MLflow drops what equals a point that it has in key, value, step and time.
        """
        self.log_curves(run_id, {step: metrics}, when={step: when})

    def log_curves(self, run_id: str, rows: Mapping[int, Mapping[str, float]], *, when: Mapping[int, float]) -> None:
        """The same at many steps, in a few requests."""
        points = [
            entities.Metric(name, float(value), round(1000 * when[step]), step)
            for step, metrics in rows.items()
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        for first in range(0, len(points), MOST_POINTS):
            self.client.log_batch(run_id, metrics=points[first : first + MOST_POINTS])

    def log_result(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Finite values that may come again, after a restart, and be others then: the newest is what MLflow shows.

        Of values at one step it shows the latest in time, and of those of one time the largest.
        """
        there, now = self.client.get_run(run_id).data.metrics, time.time_ns() // 10**6
        changed = {name: value for name, value in metrics.items() if math.isfinite(value) and there.get(name) != value}
        if changed:
            points = [entities.Metric(name, float(value), now, step) for name, value in changed.items()]
            self.client.log_batch(run_id, metrics=points)

    def last_step(self, run_id: str, metric: str) -> int:
        """The last step at which `metric` was logged, -1 if it never was."""
        history = self.client.get_metric_history(run_id, metric)
        return max((point.step for point in history), default=-1)

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """A file, or everything in a folder, now or later; see `unsent.py`.

        Raises:
            DiskError: it was not taken, and that cannot be noted.
        """
        self._files.send({"run": run_id, "name": path.name, "path": str(path), "into": folder})

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """A file with this text, as `log_artifact`."""
        self._files.send({"run": run_id, "name": name, "text": text})

    def offer_again(self) -> None:
        """Send files that were not taken before, if they are taken now."""
        self._files.offer()

    @classmethod
    def send_left_over(cls, out: Path) -> None:
        """The same for a folder where nothing else is to do, if its store answers; asked only where it lacks something."""
        if left_over(out) is not None:
            with suppress(TrackingError):
                cls.open(out).offer_again()

    @property
    def _files(self) -> Unsent:
        assert self.files is not None, "a tracker that was opened to read"
        return self.files

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tags, in place of those of the same names."""
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value[:MAX_TAG_LENGTH])

    def describe(self, run_id: str, text: str) -> None:
        """The run's description, Markdown that MLflow shows on its page; what is longer than a tag may be is cut at a line."""
        if len(text) > MAX_TAG_LENGTH:
            text = text[: text.rfind("\n", 0, MAX_TAG_LENGTH - 1) + 1] + "…"
        self.client.set_tag(run_id, NOTE_TAG, text)

    def has_dataset(self, run_id: str) -> bool:
        """Whether the run says which data it read."""
        return bool(self.client.get_run(run_id).inputs.dataset_inputs)

    def log_dataset(self, run_id: str, *, name: str, digest: str, source: str, frames: Mapping[str, int], context: str) -> None:
        """The data as an input of the run. MLflow's digests hold 36 characters: the first of ours."""
        if self.has_dataset(run_id):
            return
        dataset = entities.Dataset(name, digest[:36], "local", json.dumps({"uri": source}), profile=json.dumps(frames))
        tag = entities.InputTag(key="mlflow.data.context", value=context)
        self.client.log_inputs(run_id, datasets=[entities.DatasetInput(dataset=dataset, tags=[tag])])

    @classmethod
    def of_run(cls, run_id: str, out: Path | None) -> Tracker:
        """The experiment that a run is in, in the store that `MLFLOW_TRACKING_URI` or else the folder `out` names.

        Raises:
            InputError: neither is given, or there is no such run.
        """
        try:
            client = MlflowClient(tracking_uri=uri_of(run_id, out))
            with few_retries():
                run = client.get_run(run_id)
        except STORE_ERRORS as error:
            raise InputError(f"mlflow:{run_id}: {shown(error)}") from None
        return cls(client, client.tracking_uri, run.info.experiment_id, run.data.tags.get(FOLDER_TAG))
