"""MLflow's store: where it is, making it, and the experiment in it. With tracking.py the only file that imports MLflow.

Not here: what is logged to it (tracking.py), which store and experiment a folder has (run_store.py).
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jointseg.errors import InputError
from pipeline.run_store import VARIABLE, run_store, without_password

# mlflow and alembic announce every table they create; set before the import, which configures them.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class Experiment(NamedTuple):
    """One experiment of one store."""

    client: MlflowClient
    uri: str
    experiment_id: str


@contextmanager
def few_retries() -> Iterator[None]:
    """MLflow's client asks a server that does not answer for four minutes; in the block for seconds."""
    given = RETRIES in os.environ
    os.environ.setdefault(RETRIES, "2")
    try:
        yield
    finally:
        if not given:
            os.environ.pop(RETRIES, None)  # a thread that follows a log may have been here meanwhile


def _create_store(uri: str) -> None:
    """Make the SQLite file where it is not there, by one rename: MLflow cannot open one that was killed while being made.

    Of several processes that find none, one makes it and the others wait.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    partial, lock = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "lock"))
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not path.exists():
            partial.unlink(missing_ok=True)
            MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
            partial.replace(path)
        lock.unlink(missing_ok=True)  # nobody who comes later asks for it


def first_line(error: Exception) -> str:
    """MLflow's messages name the store, with the password that its address may have."""
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return without_password(next(lines, type(error).__name__))


def experiment_of(out: Path) -> Experiment:
    """The experiment of `out`, created with its store where they are not there yet.

    Raises:
        InputError: the store cannot be reached.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints tracebacks of errors it raises too
    store = run_store(out)
    try:
        _create_store(store.uri)
        client = MlflowClient(tracking_uri=store.uri)
        with few_retries():
            experiment = client.get_experiment_by_name(store.experiment)
        store.remember()
        if experiment is None:
            return Experiment(client, store.uri, client.create_experiment(store.experiment, artifact_location=store.artifacts))
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise InputError(f"{store} cannot be used: {first_line(error)}") from None
    if experiment.lifecycle_stage == entities.LifecycleStage.DELETED:
        at = f"{VARIABLE}={shlex.quote(without_password(store.uri))}"
        again = f"{at} mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise InputError(f"{store}: experiment {store.experiment!r} was deleted; this brings it back: {again}")
    return Experiment(client, store.uri, experiment.experiment_id)


def experiment_with(run_id: str, out: Path | None) -> Experiment:
    """The experiment that a run is in, in the store that `MLFLOW_TRACKING_URI` or else the folder `out` names.

    Raises:
        InputError: neither is given, or there is no such run.
    """
    uri = os.environ.get(VARIABLE) or None
    if uri is None and out is None:
        raise InputError(f"mlflow:{run_id}: in which store? Set {VARIABLE}, or give the run's folder as --out")
    if uri is None and out is not None:
        store = run_store(out.resolve())
        if store.is_own and not (out / "mlflow.db").is_file():
            raise InputError(f"{out / 'mlflow.db'}: not found; {out} has no MLflow store")
        uri = store.uri
    file = Path(str(uri).removeprefix("sqlite:///"))
    if str(uri).startswith("sqlite:") and not file.is_file():  # MLflow would make it
        raise InputError(f"mlflow:{run_id}: {file}: not found; there is no MLflow store")
    try:
        client = MlflowClient(tracking_uri=uri)
        with few_retries():
            experiment: str = client.get_run(run_id).info.experiment_id
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise InputError(f"mlflow:{run_id}: {first_line(error)}") from None
    return Experiment(client, client.tracking_uri, experiment)
