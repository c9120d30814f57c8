"""A tracker on a real MLflow store."""

from __future__ import annotations

import pytest

from pipeline.tracking import Tracker


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One store for all tests: making one takes seconds. Each test has a folder, and so an experiment, of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'shared.db'}"


@pytest.fixture
def out(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tmp_path / "run"


@pytest.fixture
def tracker(out):
    return Tracker.open(out)
