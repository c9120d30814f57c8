"""Laws of how a command ends: interrupted, with a worker lost, on a mistake of ours, as a process. Not here: what it refuses
(test_cli_refusals.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

import pipeline.run
from jointseg.presets import demo
from pipeline.failures import LostWorkerError
from pipeline.workspace import Workspace

ROOT = Path(__file__).resolve().parents[3]


def interrupted(*_, **__):
    raise KeyboardInterrupt


def interrupted_in_a_library(*_, **__):
    """As Optuna's lock of its journal is."""
    lock = Path("lock")
    lock.touch()
    try:
        lock.unlink()
        raise KeyboardInterrupt
    except BaseException:
        lock.unlink()
        raise


@pytest.mark.parametrize("work", [interrupted, interrupted_in_a_library])
def test_an_interruption_exits_130(jointseg, monkeypatch, tmp_path, work):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.run, "run_phases", work)
    monkeypatch.setattr(pipeline.run, "run_search_command", work)
    said = f"interrupted; the same command goes on with {tmp_path / 'x'} where it stopped\n"
    assert jointseg("run", "--out", "x") == jointseg("search", "--out", "x") == (130, said, "")


def test_an_interruption_of_what_does_not_go_on_says_what_becomes_of_it(jointseg, monkeypatch, tmp_path):
    place = Workspace(tmp_path / "x")
    place.adopt_config(demo())
    place.finish("stage3", seconds=1)
    monkeypatch.setattr("pipeline.score.score_settings", interrupted)
    monkeypatch.setattr("pipeline.predict.predict_files", interrupted)
    assert jointseg("score", "--out", "x") == (130, "interrupted; the same command begins again\n", "")
    assert jointseg("predict", "--out", "x", "a.jpg") == (130, "interrupted; the pictures done before are kept\n", "")


def test_an_interruption_that_python_discards_comes_again(jointseg, monkeypatch):

    class Drawn:
        pass

    def draw(*_, **__):
        drawn = Drawn()
        kept = weakref.ref(drawn, lambda _: signal.raise_signal(signal.SIGTERM))
        del drawn
        assert kept() is None
        time.sleep(60)

    monkeypatch.setattr(pipeline.run, "run_phases", draw)
    began = time.monotonic()
    code, said, _ = jointseg("run", "--out", "x")
    assert (code, said.partition(";")[0]) == (130, "interrupted")
    assert time.monotonic() - began < 50, "it went on to the end"


def test_an_error_beside_no_interruption_is_none(jointseg, monkeypatch):
    monkeypatch.setattr(pipeline.run, "run_phases", lambda *_, **__: Path("no/such/file").unlink())
    with pytest.raises(FileNotFoundError):
        jointseg("run", "--out", "x")


def test_a_lost_worker_is_one_line_and_nobodys_mistake(jointseg, monkeypatch):
    def lost(*_, **__):
        raise LostWorkerError("stage1: lost worker 1")

    monkeypatch.setattr(pipeline.run, "run_search_command", lost)
    assert jointseg("search", "--out", "x") == (1, "", "error: stage1: lost worker 1\n")


def test_a_mistake_of_ours_is_not_taken_for_the_users(jointseg, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("ours")

    monkeypatch.setattr(pipeline.run, "run_phases", broken)
    with pytest.raises(AssertionError, match="ours"):
        jointseg("run", "--out", "x")


# As a process


def process(*words, program=("-m", "pipeline"), cwd=None):
    environment = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "MLFLOW_TRACKING_URI"}}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, *program, *words], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_process_exits_with_the_code_and_the_line(tmp_path):
    done = process("run", "--out", "x", "--preset", "huge", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --preset: 'huge' is not a preset; allowed: demo, small, modern, paper\n"


def test_an_interruption_before_anything_begins_exits_130_and_says_nothing(tmp_path):
    program = """
import sys
class Interrupted:
    def find_spec(name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted)
from pipeline.__main__ import main
main()
"""
    done = process(program=("-c", program), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_without_the_extra_the_package_to_install_is_named(tmp_path):
    program = "import sys; sys.modules['typer'] = None; from pipeline.__main__ import main; main()"
    done = process(program=("-c", program), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    how = "pip install '.[pipeline]' in a clone of the repository"
    assert done.stderr == f"error: the command line needs 'typer'; install it with: {how}\n"
