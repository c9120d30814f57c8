"""A few rooms prepared for training, a config small enough to train on them in seconds, the command line in this process, and
what a disk is told.

Not here: data in NYU's layout that is made up (tests/conftest.py).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import ray
import torch

from jointseg.config import Config
from jointseg.data.rooms import write_rooms
from jointseg.data.store import Store, prepare
from jointseg.data.views import make_views
from jointseg.presets import demo
from jointseg.settings import with_overrides
from jointseg.training import train
from pipeline.cli import run_command_line
from pipeline.phases import Pipeline
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace
from tests.noting import Noting
from tests.trainings import ALONE, InterruptedRunError


@pytest.fixture(scope="session", autouse=True)
def _forked_from_what_has_imported_training() -> None:
    """Processes are forked from a clean one that has imported what takes seconds: optimisers import torch._dynamo when first
    made. There is one such process to each of pytest's, and whoever is first says what it imports.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["jointseg.training", "torch._dynamo"])
    forkserver.ensure_running()


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three train rooms and one test room."""
    folder = tmp_path_factory.mktemp("rooms")
    write_rooms(folder / "nyu", num_train=3, num_test=1, seed=0)
    return prepare(folder / "nyu", folder / "store")


@pytest.fixture(scope="session")
def small() -> Config:
    """The demo with an eighth of its width, a few steps a stage, and a CRF of two iterations."""
    stages = {"stage1": (4, 2), "stage2": (4, 2), "stage3": (2, 1)}
    changes: dict[str, object] = {"network.width": 0.0625, "network.dropout": 0.5}
    for stage, (iterations, batch_size) in stages.items():
        changes |= {f"{stage}.iterations": iterations, f"{stage}.batch_size": batch_size, f"{stage}.lr": 1e-3}
    pace = {"log_every": 1, "checkpoint_every": 2, "validate_every": 100, "cpus_per_worker": 1}
    changes |= {f"training.{name}": value for name, value in pace.items()}
    return with_overrides(demo(), changes | {"crf.num_iterations": 2, "crf_train_iterations": 2})


@pytest.fixture(scope="session")
def views(rooms, small):
    return make_views(rooms.train, small.data)


@pytest.fixture
def fit(rooms, views):
    """Trains a run to its end and returns its reports; stops at a step, or leaves checkpoints in a folder, where asked."""

    def fit(run, *, stop_at=None, save_to=None, validation=()):
        reports = []

        def report(one):
            reports.append(one)
            if save_to is not None and one.save is not None:
                one.save(save_to / str(one.step))
            if one.step == stop_at:
                raise InterruptedRunError

        train(run, rooms, views, place=ALONE, report=report, validation=validation)
        return reports

    return fit


@pytest.fixture
def jointseg(monkeypatch, capsys, tmp_path):
    """Runs the command in this process and in an empty folder: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which the command replaces
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["jointseg", *map(str, words)])
        try:
            code = run_command_line()
        except SystemExit as left:
            code = left.code
        assert not ray.is_initialized()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def mistake(jointseg):
    """Runs a command that must be refused, in one line; returns the line."""

    def run(*words):
        code, out, err = jointseg(*words)
        assert (code, out) == (2, ""), f"{code}: {out}{err}"
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        return err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def last_share_first(monkeypatch):
    """Work that is shared out is done in this process, a frame a share, and the last share comes first; no Ray is needed."""

    def shared_out(load, shares, *, config, say):
        work = load(torch.device("cpu"))
        for place in reversed(range(len(shares))):
            yield place, work(shares[place])

    monkeypatch.setattr("pipeline.shares.FRAMES_A_SHARE", 1)
    for module in ("evaluate", "features", "score", "study.finetune", "study.unaries"):
        monkeypatch.setattr(f"pipeline.{module}.shared_out", shared_out)


@pytest.fixture
def told_to_disk(monkeypatch):
    """The paths that are synced, in order, and "rename" for each rename between them."""
    told, fsync, rename, replace = [], os.fsync, Path.rename, Path.replace

    def syncing(descriptor):
        told.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def renaming(path, target):
        told.append("rename")
        return rename(path, target)

    def replacing(path, target):
        told.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    monkeypatch.setattr(Path, "replace", replacing)
    return told


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors, and tests that run beside each other: more threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture
def own_file(tmp_path):
    """Writes a file with a space; returns how it is named."""

    def write(text, function="space"):
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path / 'mine.py'}:{function}"

    return write


@pytest.fixture
def pipeline_of(rooms, small, tmp_path):
    """A run in a folder whose data are prepared."""
    place = Workspace(tmp_path / "run")
    place.out.mkdir()
    place.store.symlink_to(rooms.path)

    def made(changes=None):
        own = {"data.source": str(rooms.path.parent / "nyu"), "data.validation_frames": 2}
        return Pipeline(with_overrides(small, own | (changes or {})), place, Noting(), "top", Terminal(), False)

    return made
