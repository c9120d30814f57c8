"""Laws of a stage's checkpoints together: the newest good one is found, none is half, a full disk harms none of those there.

Not here: a single checkpoint (test_checkpoint.py), those written in the background (test_checkpoint_writer.py), training
that is killed and goes on (test_killed_training.py).
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jointseg.checkpoint import DamagedCheckpointError, load_checkpoint
from jointseg.checkpoint_folder import CheckpointFolder, CheckpointWriter, Found
from jointseg.errors import InputError
from jointseg.settings import with_overrides
from tests.checkpoints import CONFIG, newest, saving

FILES = ("checkpoint.json", "weights.safetensors", "optimizer.pt", "random.pt")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Checkpoints of steps 10, 20 and 30."""
    folder = CheckpointFolder(tmp_path / "stage1")
    for step in (10, 20, 30):
        folder.write(step, saving(step), keep=3)
    return folder


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if how == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if how == "missing":
        path.unlink()


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


# Which one is gone on from


def test_the_newest_is_found(folder):
    assert newest(folder) == Found(folder.of(30), 30, ())
    assert str(newest(folder)) == "goes on from step 30"


def test_a_stage_without_checkpoints_begins(tmp_path):
    assert newest(CheckpointFolder(tmp_path / "nowhere")) is None
    assert newest(CheckpointFolder(tmp_path)) is None
    (tmp_path / ".step_00000010.partial").mkdir()
    (tmp_path / "final").mkdir()
    (tmp_path / "log.jsonl").touch()
    assert newest(CheckpointFolder(tmp_path)) is None


def test_steps_of_nine_digits_are_steps_and_files_are_not(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (99_999_999, 100_000_000):
        folder.of(step).mkdir()
    folder.of(5).write_text("mine")
    assert folder.steps() == [99_999_999, 100_000_000]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut", "altered", "missing"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_newest_good_one_used(folder, name, how):
    damage(folder.of(30) / name, how)
    found = newest(folder)
    assert (found.path, found.step, len(found.refused)) == (folder.of(20), 20, 1)
    assert str(folder.of(30) / name) in found.refused[0]
    assert str(found) == f"goes on from step 20; refused: {found.refused[0]}"
    assert "\n" not in str(found)


def test_every_damaged_one_is_named(folder):
    damage(folder.of(30) / "weights.safetensors", "cut")
    damage(folder.of(20) / "optimizer.pt", "missing")
    found = newest(folder)
    assert found.step == 10
    assert [str(folder.of(step)) in reason for step, reason in zip((30, 20), found.refused, strict=True)] == [True, True]


def test_a_stage_never_begins_again_because_all_are_damaged(folder):
    for step, name in zip((10, 20, 30), FILES, strict=False):
        damage(folder.of(step) / name, "cut")
    with pytest.raises(DamagedCheckpointError) as caught:
        newest(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder.path}: no checkpoint is good: ")
    assert all(str(folder.of(step) / name) in message for step, name in zip((10, 20, 30), FILES, strict=False))
    assert message.endswith("put a good one back, or remove them all to begin stage1 again")
    assert "\n" not in message


@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_of_another_config_is_an_error_and_not_skipped(folder, damaged):
    if damaged:
        damage(folder.of(30) / "weights.safetensors", "cut")
    with pytest.raises(InputError, match=r"was made with another config: stage1\.lr is ") as caught:
        newest(folder, with_overrides(CONFIG, {"stage1.lr": 0.5}))
    assert not isinstance(caught.value, DamagedCheckpointError)


# How many are kept


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_over_restarts_too(folder, keep):
    for step in (40, 50):
        CheckpointFolder(folder.path).write(step, saving(step), keep=keep)
    assert folder.steps() == [10, 20, 30, 40, 50][-keep:]


def test_one_that_was_refused_does_not_push_out_a_good_one(folder):
    """After a restart from step 10, steps 20 and 30 are there but damaged, and are not among the newest to keep."""
    for step in (20, 30):
        damage(folder.of(step) / "optimizer.pt", "cut")
    folder.write(15, saving(15), keep=2)
    assert folder.steps() == [10, 15]
    assert newest(folder) == Found(folder.of(15), 15, ())


def test_a_damaged_one_gives_way_when_its_step_comes_again(folder):
    damage(folder.of(30) / "optimizer.pt", "cut")
    folder.write(30, saving(30), keep=2)
    assert names(folder) == ["step_00000020", "step_00000030"]
    assert newest(folder).step == 30


def test_only_checkpoints_are_removed(folder):
    for name in ("step_12", "steps", "final", "step_00000010.bak", ".step_00000010.mine"):
        (folder.path / name).mkdir()
    (folder.path / "log.jsonl").touch()
    before = set(names(folder))
    folder.write(40, saving(40), keep=1)
    assert set(names(folder)) == before - {"step_00000010", "step_00000020", "step_00000030"} | {"step_00000040"}


# Kills: an audit hook sees every file operation of Python's before it happens, and kills the process at the n-th of them


def write_and_die(folder: CheckpointFolder, operation: int) -> None:
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event == "open" or event.startswith(("os.", "shutil.")):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    save = saving(40)
    sys.addaudithook(hook)
    folder.write(40, save, keep=2)
    os._exit(0)


def test_a_kill_before_any_file_operation_leaves_whole_checkpoints_and_is_cleared_away(folder, tmp_path):
    steps_after, code = [], -signal.SIGKILL
    while code == -signal.SIGKILL:
        killed = CheckpointFolder(tmp_path / str(len(steps_after)))
        shutil.copytree(folder.path, killed.path)
        attempt = FORK.Process(target=write_and_die, args=(killed, len(steps_after) + 1))
        attempt.start()
        attempt.join()
        code = attempt.exitcode
        found = newest(killed)
        assert found.refused == ()
        for step in killed.steps():
            whole = load_checkpoint(killed.of(step), config=CONFIG, stage="stage1")
            assert whole.weights["weight"].unique().item() == step
        steps_after.append(found.step)
        killed.write(50, saving(50), keep=1)
        assert names(killed) == ["step_00000050"]
    assert code == 0
    assert len(steps_after) > 20, "that are not all operations"
    assert steps_after == sorted(steps_after), "from some operation on, the new one is there"
    assert set(steps_after) == {30, 40}


# Full disks: a process that may write no more than so many bytes into a file is told so by the kernel


def write_with_limit(folder: CheckpointFolder, limit: int, in_background: bool, said: Path) -> None:
    save = saving(40)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with CheckpointWriter(folder, keep=2, in_background=in_background) as writer:
            writer.write(40, save)
    except InputError as error:
        said.write_text(str(error))


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("limit", [150, 1000, 1700, 3000, 5500])
def test_a_full_disk_is_said_in_one_line_and_those_that_were_there_stay(folder, tmp_path, limit, in_background):
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    sizes = {path.stat().st_size for path in folder.of(30).iterdir()}
    assert limit < max(sizes), "the disk is to be full"
    attempt = FORK.Process(target=write_with_limit, args=(folder, limit, in_background, tmp_path / "said"))
    attempt.start()
    attempt.join()
    assert attempt.exitcode == 0
    assert (tmp_path / "said").read_text() == f"{folder.of(40)}: cannot be written: File too large"
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    assert newest(folder).step == 30
    folder.write(40, saving(40), keep=2)
    assert newest(folder).step == 40


FILL_A_DISK = """
import sys
from pathlib import Path
import torch
from jointseg.checkpoint import Checkpoint, save_checkpoint
from jointseg.checkpoint_folder import CheckpointFolder
from jointseg.config import Config
from jointseg.errors import InputError

folder = CheckpointFolder(Path(sys.argv[1]) / "stage1")
for step in range(1, 100):
    checkpoint = Checkpoint("stage1", step, Config(), {"weight": torch.full((100, 100), float(step))}, {}, [])
    try:
        folder.write(step, lambda path: save_checkpoint(path, checkpoint), keep=100)
    except InputError as error:
        said = str(error)
        break
found = folder.newest(config=Config(), stage="stage1")
print(said, found, step, sorted(path.name for path in folder.path.iterdir())[-1], sep="|")
"""


def test_a_disk_that_has_no_space_left_keeps_its_last_good_checkpoint(tmp_path):
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, mount], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a disk of its own")
    script = [*command, f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, FILL_A_DISK]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    said, found, step, last = done.stdout.strip().split("|")
    failed = CheckpointFolder(tmp_path / "stage1").of(int(step))
    assert said == f"{failed}: cannot be written: No space left on device"
    assert int(step) > 5
    assert (found, last) == (f"goes on from step {int(step) - 1}", f"step_{int(step) - 1:08d}")
