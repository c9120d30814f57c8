"""A run's tracker where MLflow is gone: it takes everything and keeps nothing. Not here: when that is so (pipeline/run.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.tracking import Tracker


class Untracked(Tracker):
    """Of a run that goes on without MLflow; the same command tells it later, from what lies in the folder."""

    is_gone = True

    @contextmanager
    def run(self, name: str, **_: Any) -> Iterator[str]:
        """No run."""
        yield name

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Keep nothing."""

    log_params = log_metrics = log_curves = log_result = log_artifact = log_text = log_dataset = tag = describe = _nothing
    offer_again = _nothing

    def has_dataset(self, *_: Any) -> bool:
        """Data count as told."""
        return True

    def last_step(self, *_: Any) -> int:
        """All steps count as told."""
        return sys.maxsize
