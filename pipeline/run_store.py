"""Where the MLflow runs of a folder are: in a store of its own, or in the one that it was begun with, which it remembers.

Not here: MLflow itself (tracking.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointseg.errors import InputError, first_line
from jointseg.json_files import write_json
from pipeline.workspace import Workspace

VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
"""Names an experiment that several folders' runs are to be in, on a server."""
STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""Of a folder that has a store of its own."""
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in what `ray job submit` runs."""
RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)\b")


@contextmanager
def few_retries(*, seconds: int | None = 10) -> Iterator[None]:
    """MLflow's client asks a server that does not answer for minutes; in the block three times.

    Args:
        seconds: how long an answer is waited for each time; None: as long as outside, for files, which a server may pass on
            before it answers.
    """
    asked = {RETRIES: "2", **({TIMEOUT: str(seconds)} if seconds is not None else {})}
    asked = {name: value for name, value in asked.items() if name not in os.environ}
    os.environ.update(asked)
    try:
        yield
    finally:
        for name in asked:
            os.environ.pop(name, None)  # a thread that follows a log may have been here meanwhile


@dataclass(frozen=True)
class RunStore:
    """A store, and a folder's experiment in it."""

    out: Path
    uri: str
    experiment: str
    """Its name. On a server it ends in digits drawn once for each folder: users of several machines may have one path."""
    folder: str | None = None
    """What tells this folder's runs from others in the experiment; None: all are its own."""

    @property
    def is_own(self) -> bool:
        """Whether it lies in the folder."""
        return self.uri == _own(self.out)

    @property
    def artifacts(self) -> str | None:
        """Where files of runs go; None: where the server says. To a database MLflow would keep them in its working folder."""
        return (self.out / ARTIFACTS).as_uri() if _DATABASE.match(self.uri) else None

    @property
    def elsewhere(self) -> str | None:
        """Where the runs are, without a password, if `jointseg ui` cannot show them; None where it can."""
        return None if self.uri.startswith("sqlite:") else without_password(self.uri)

    @property
    def description(self) -> str:
        """What people find in the experiment, Markdown."""
        whose = f"Runs of `{self.out}`" if self.folder is None else "Runs of several folders, called after them"
        return (
            f"{whose}. The outermost has the report, its tables and figures; under it is a run for each stage of training, the "
            "search (under that one for each trial), the evaluation and each `jointseg score`. Of layers that share a "
            "learning rate with most of the network `lr/network` alone is drawn."
        )

    def __str__(self) -> str:
        named = VARIABLE if os.environ.get(VARIABLE) else "MLflow's store"
        return f"{named}: {without_password(self.uri)}"

    def remember(self) -> None:
        """Leave in the folder which store this is, where it is not the folder's own. No password is kept.

        Raises:
            InputError: the folder cannot be written.
        """
        if self.is_own:
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            kept = {"uri": without_password(self.uri), "experiment": self.experiment, "folder": self.folder}
            write_json(Workspace(self.out).tracking, kept)
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written: {error.strerror}") from None


def run_store(out: Path) -> RunStore:
    """The store of a folder: the one it has runs in; for a new folder `MLFLOW_TRACKING_URI`, or else one of its own.

    On a server a new folder's runs are in the experiment that `MLFLOW_EXPERIMENT_NAME` names, with those of other folders, or
    else in one of their own.

    Raises:
        InputError: the variable names another one than the folder has runs in, or a relative path in a job.
    """
    given, place = _given(), Workspace(out)
    if place.tracking.is_file():
        kept = _read(place.tracking)
        _refuse_another(given, kept["uri"], out)
        return RunStore(out, given or kept["uri"], kept["experiment"], kept["folder"])
    by_path = f"{out.name}-{hashlib.sha256(str(out).encode()).hexdigest()[:8]}"
    if (out / STORE).is_file() or given is None:
        _refuse_another(given, _own(out), out)
        return RunStore(out, _own(out), by_path)
    if place.done():  # folders did not remember their store until commit 5c7ed1f
        return RunStore(out, given, by_path)
    drawn, shared = secrets.token_hex(4), os.environ.get(EXPERIMENT)
    if shared and _is_server(given):
        return RunStore(out, given, shared, folder=drawn)
    return RunStore(out, given, f"{out.name}-{drawn}")


def uri_of(run_id: str, out: Path | None) -> str:
    """The store that `MLFLOW_TRACKING_URI` or else the folder `out` names, for a run that is there already.

    Raises:
        InputError: neither is given, or it is a file that is not there.
    """
    uri = os.environ.get(VARIABLE) or None
    if uri is None and out is None:
        raise InputError(f"mlflow:{run_id}: in which store? Set {VARIABLE}, or give the run's folder as --out")
    if uri is None and out is not None:
        store = run_store(out.resolve())
        if store.is_own and not (out / STORE).is_file():
            raise InputError(f"{out / STORE}: not found; {out} has no MLflow store")
        uri = store.uri
    file = Path(str(uri).removeprefix("sqlite:///"))
    if str(uri).startswith("sqlite:") and not file.is_file():  # MLflow would make it
        raise InputError(f"mlflow:{run_id}: {file}: not found; there is no MLflow store")
    return str(uri)


def made_once(uri: str, make: Callable[[str], object]) -> None:
    """Have a store's SQLite file made where it is not there, by one rename: MLflow cannot open one killed in the making.

    Of several processes that find none, one makes it and the others wait. `make` is given the address of a file beside it.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    partial, lock = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "lock"))
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not path.exists():
            partial.unlink(missing_ok=True)
            make(f"sqlite:///{partial}")
            partial.replace(path)
        lock.unlink(missing_ok=True)  # nobody who comes later asks for it


def page_of(run_id: str, *, uri: str, experiment_id: str) -> str | None:
    """The address of a run's page, where the store is a server that has pages; None where it is a database."""
    if not _is_server(uri):
        return None
    return f"{without_password(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def without_password(uri: str) -> str:
    """A store's address, or a text that has it, without the user and the password that may stand in it."""
    shown = re.sub(r"(?<=://)[^/\s]*@", "", uri)
    return re.sub(r"(?i)(?:(?<=\?)|&)(?:password|passwd|pwd|sslpassword)=[^&\s]*", "", shown).replace("?&", "?").rstrip("?")


def shown(error: Exception) -> str:
    """The first line of what MLflow says, without the password that the store's address in it may have, and without what its
    libraries say to each other between the request and its trouble.
    """
    said = without_password(first_line(error))
    return re.sub(r"failed with exception .*\(Caused by \w+\((.*)\)\)$", r"failed: \1", said)


def not_logged(error: Exception, *, work: str) -> str:
    """What to say where something could not be told to MLflow while `work` goes on (log_lines.following)."""
    when = "yet" if isinstance(error, InputError | OSError) else "any more, by a mistake of ours"
    return f"not logged {when}, {work} goes on: {shown(error)}"


def _own(out: Path) -> str:
    return f"sqlite:///{out / STORE}"


def _given() -> str | None:
    """What the variable says, a relative SQLite file by its whole path."""
    given = os.environ.get(VARIABLE) or None
    if given is not None and re.fullmatch(r"sqlite:/{0,3}|sqlite:.*:memory:.*", given):
        raise InputError(
            f"{VARIABLE}: {given} is no file, and would end with the process; allowed: sqlite:////path/to/mlflow.db"
        )
    relative = re.match(r"sqlite:///(?=[^/])(.+)", given or "")
    if relative is None:
        return given
    if IN_JOB in os.environ:
        raise InputError(
            f"{VARIABLE}: {given} is relative, and a job's working directory is a copy that goes away; allowed: sqlite:////..."
        )
    return f"sqlite:///{Path(relative[1]).absolute()}"


def _refuse_another(given: str | None, there: str, out: Path) -> None:
    if given is not None and without_password(given) != there:
        raise InputError(
            f"{VARIABLE}: {without_password(given)} is not where the runs of {out} are; allowed: {there}, or to leave it unset"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {"uri": str(kept["uri"]), "experiment": str(kept["experiment"]), "folder": kept.get("folder")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r})") from None
