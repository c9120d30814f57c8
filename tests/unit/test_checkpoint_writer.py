"""Laws of checkpoints that are written in the background, while training goes on. Not here: which are kept and found again
(test_checkpoint_folder.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jointseg.checkpoint_folder import CheckpointFolder, CheckpointWriter
from jointseg.errors import InputError
from tests.checkpoints import newest, saving


def test_training_goes_on_while_one_is_written_and_the_end_waits_for_it(tmp_path):
    folder, go_on = CheckpointFolder(tmp_path / "stage1"), threading.Event()

    def save(path: Path) -> None:
        assert go_on.wait(30)
        saving(10)(path)

    with CheckpointWriter(folder, keep=2, in_background=True) as writer:
        writer.write(10, save)
        writer.check()
        assert folder.steps() == []
        go_on.set()
    assert newest(folder).step == 10


def test_checkpoints_are_written_one_after_another(tmp_path):
    folder, at_once, most = CheckpointFolder(tmp_path / "stage1"), [], []

    def save(path: Path) -> None:
        at_once.append(path)
        most.append(len(at_once))
        saving(int(path.name[-2:]))(path)
        at_once.remove(path)

    with CheckpointWriter(folder, keep=2, in_background=True) as writer:
        for step in range(10, 20):
            writer.write(step, save)
    assert max(most) == 1
    assert folder.steps() == [18, 19]


def failing(path: Path) -> None:
    raise InputError(f"{path}: mine")


def look_on(writer: CheckpointWriter) -> None:
    for _ in range(6000):
        writer.check()
        time.sleep(0.01)


def test_what_failed_in_the_background_is_raised_at_the_next_look(tmp_path):
    with CheckpointWriter(CheckpointFolder(tmp_path), keep=2, in_background=True) as writer:
        writer.write(10, failing)
        with pytest.raises(InputError, match="step_00000010: mine"):
            look_on(writer)


def test_what_failed_in_the_background_is_raised_instead_of_writing_the_next(tmp_path):
    with CheckpointWriter(CheckpointFolder(tmp_path), keep=2, in_background=True) as writer:
        writer.write(10, failing)
        with pytest.raises(InputError, match="step_00000010: mine"):
            writer.write(20, saving(20))
    assert list(tmp_path.iterdir()) == []


def test_what_failed_in_the_background_is_raised_at_the_end(tmp_path):
    with (
        pytest.raises(InputError, match="step_00000010: mine"),
        CheckpointWriter(CheckpointFolder(tmp_path), keep=2, in_background=True) as writer,
    ):
        writer.write(10, failing)


def divide_by_zero(folder: CheckpointFolder, in_background: bool, save: Callable[[Path], None]) -> None:
    with CheckpointWriter(folder, keep=2, in_background=in_background) as writer:
        writer.write(10, save)
        raise ZeroDivisionError


@pytest.mark.parametrize("in_background", [False, True])
def test_an_error_of_trainings_own_comes_first_and_the_last_checkpoint_is_whole(tmp_path, in_background):
    folder = CheckpointFolder(tmp_path / "stage1")
    with pytest.raises(ZeroDivisionError):
        divide_by_zero(folder, in_background, saving(10))
    assert newest(folder).step == 10


def test_an_error_of_trainings_own_comes_before_that_of_writing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        divide_by_zero(CheckpointFolder(tmp_path), True, failing)
