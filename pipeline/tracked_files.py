"""What runs in MLflow have kept, read back. Not here: how it came there (tracking.py), what is made of it (evidence.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jointseg.errors import InputError, one_line
from pipeline.run_store import shown
from pipeline.tracking import STORE_ERRORS, Tracker


@contextmanager
def reading_of(run_id: str) -> Iterator[None]:
    """Where MLflow does not give what a run has, that comes out as an InputError."""
    try:
        yield
    except STORE_ERRORS as error:
        raise InputError(f"mlflow:{run_id}: {shown(error)}") from None


def read_tracked(tracker: Tracker, run_id: str, name: str) -> Any:
    """What a JSON artifact of a run holds; None where it has none of this name."""
    if name not in {artifact.path for artifact in tracker.client.list_artifacts(run_id)}:
        return None
    with TemporaryDirectory() as folder:
        text = Path(tracker.client.download_artifacts(run_id, name, folder)).read_bytes()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"mlflow:{run_id}: {name}: no JSON: {one_line(error)}") from None


def ended_otherwise(tracker: Tracker, run_id: str) -> str | None:
    """Of a trial without a score, how it ended; None of any other run."""
    tags = tracker.client.get_run(run_id).data.tags
    if "stopped" in tags:
        return f"was stopped {tags['stopped']}"
    return f"failed ({tags['error']})" if "error" in tags else None


def download(tracker: Tracker, key: str, name: str, folder: Path) -> None:
    """Copy a folder of artifacts of the run with this key to `folder`; nothing where there is none."""
    run_id = tracker.find(key, None)
    if run_id is None or not tracker.client.list_artifacts(run_id, name):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as partial:
        Path(tracker.client.download_artifacts(run_id, name, partial)).rename(folder)
