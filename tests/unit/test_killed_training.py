"""Training that is killed by SIGKILL, at every step in turn or at any moment, ends in the same bits as one left alone.

Plain torch, one process. Not here: workers and drivers that are killed (tests/integration), kills inside the writing of a
checkpoint (test_checkpoint_folder.py).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jointseg.batches import Place
from jointseg.checkpoint_folder import CheckpointFolder, CheckpointWriter
from jointseg.config import Config
from jointseg.data.store import Store
from jointseg.data.views import make_views
from jointseg.errors import InputError
from jointseg.resuming import begin, resume
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import Report, train

STAGE = STAGES["stage2"]
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def config(small: Config) -> Config:
    """Five steps with dropout, a checkpoint every two."""
    return with_overrides(small, {"stage2.iterations": 5, "network.dropout": 0.5, "training.log_every": 1})


@pytest.fixture(scope="module")
def undisturbed(config: Config, rooms: Store) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    run = begin(config, STAGE, place=Place(), start=None)
    train(run, rooms, make_views(rooms.train, config.data), place=Place(), report=lambda report: None)
    return run.model.state_dict()


def die(at: int, step: int) -> None:
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk(at: int, step: int) -> None:
    """From now on no file may have more than 2000 bytes; the kernel says so to who writes one."""
    if step == at:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def go_on(
    config: Config, data: Path, folder: CheckpointFolder, end: Path, happens: Callable[[int], None] | None = None
) -> None:
    """Train from the newest good checkpoint to the end, and leave the weights there; `happens` is called after each step."""
    torch.set_num_threads(1)
    store, place, pace = Store.open(data), Place(), config.training
    found = folder.newest(config=config, stage=STAGE.name)
    run = resume(config, STAGE, found.path, place=place) if found else begin(config, STAGE, place=place, start=None)

    def report(one: Report) -> None:
        writer.check()
        if one.save is not None:
            writer.write(one.step, one.save)
        if happens is not None:
            happens(one.step)

    try:
        with CheckpointWriter(folder, keep=pace.keep_checkpoints, in_background=pace.async_checkpoints) as writer:
            train(run, store, make_views(store.train, config.data), place=place, report=report)
    except InputError as error:
        end.with_name("said").write_text(str(error))
    else:
        torch.save(run.model.state_dict(), end)


def attempt(*arguments: Any, end_after: float | None = None) -> int | None:
    """Run `go_on` in a process of its own, killing it after so many seconds; its exit code, None if it was killed so."""
    process = PROCESSES.Process(target=go_on, args=arguments)
    process.start()
    process.join(end_after)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def same(end: Path, undisturbed: dict[str, torch.Tensor]) -> bool:
    weights = torch.load(end)
    return weights.keys() == undisturbed.keys() and all(torch.equal(weights[name], undisturbed[name]) for name in weights)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_run_killed_at_every_step_in_turn_ends_in_the_same_bits(rooms, config, undisturbed, tmp_path, in_background):
    config = with_overrides(config, {"training.async_checkpoints": in_background})
    folder, end = CheckpointFolder(tmp_path / "stage2"), tmp_path / "end.pt"
    for kill_at in range(1, 6):
        assert attempt(config, rooms.path, folder, end, partial(die, kill_at)) == -signal.SIGKILL
        assert not end.exists()
    assert attempt(config, rooms.path, folder, end) == 0
    assert same(end, undisturbed)
    assert folder.steps() == [4, 5]


def test_a_run_killed_at_any_moment_ends_in_the_same_bits(rooms, config, undisturbed, tmp_path):
    config = with_overrides(config, {"training.checkpoint_every": 1})
    chance = random.Random(0)
    folder, end = CheckpointFolder(tmp_path / "stage2"), tmp_path / "end.pt"
    took = []
    for name in ("first", "second", "third"):  # the first may wait for the server that processes are forked from
        started = time.perf_counter()
        assert attempt(config, rooms.path, CheckpointFolder(tmp_path / name), tmp_path / f"{name}.pt") == 0
        took.append(time.perf_counter() - started)
    # The early kills first: a run that has come to its end cannot be killed.
    moments = sorted(share * min(took) for share in (0.03, 0.1, *(chance.uniform(0.02, 0.9) for _ in range(6))))
    codes = [attempt(config, rooms.path, folder, end, end_after=moment) for moment in moments]
    assert None in codes, "nothing was killed"
    assert attempt(config, rooms.path, folder, end) == 0
    assert same(end, undisturbed)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_disk_that_fills_stops_training_in_one_line_and_it_goes_on_to_the_same_bits(
    rooms, config, undisturbed, tmp_path, in_background
):
    config = with_overrides(config, {"training.async_checkpoints": in_background, "training.checkpoint_every": 1})
    folder, end = CheckpointFolder(tmp_path / "stage2"), tmp_path / "end.pt"
    assert attempt(config, rooms.path, folder, end, partial(fill_the_disk, 4)) == 0
    found = folder.newest(config=config, stage=STAGE.name)
    assert found.step == 4 or (in_background and found.step == 3)  # that of step 4 may still be in the writing then
    assert found.refused == ()
    assert end.with_name("said").read_text() == f"{folder.of(found.step + 1)}: cannot be written: File too large"
    assert attempt(config, rooms.path, folder, end) == 0
    assert same(end, undisturbed)
