"""A study on a real Ray: the same trials at any concurrency, lost processes and all. A study within a run: test_pipeline.py."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from jointseg.checkpoint import Checkpoint, save_checkpoint, save_final
from jointseg.config import Config
from jointseg.data.rooms import write_rooms
from jointseg.data.store import Store, prepare
from jointseg.model import build_model
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.log_lines import Line
from pipeline.samplers import Asker
from pipeline.spaces import load_space, start_points
from pipeline.study import run_study
from pipeline.trial import TrialJob
from pipeline.trial_record import confusion_file, read_confusions, read_trials
from pipeline.unaries import UnaryCache, cached_unaries

TRIALS = 7


@pytest.fixture(scope="module")
def four_cpus() -> Iterator[None]:
    """A Ray that may run four trials at once, however many cores there are."""
    ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def config() -> Config:
    settings = {"trials": TRIALS, "startup_trials": 2, "batch": 2, "folds": 2, "space": "crf_weights"}
    changes = {"network.width": 0.0625, "network.input_size": 65, "crf.num_iterations": 1}
    return with_overrides(demo(), {**changes, **{f"search.{name}": value for name, value in settings.items()}})


@pytest.fixture(scope="module")
def made(four_cpus: None, config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, UnaryCache]:
    """Unaries of two frames, by a network with random weights."""
    folder = tmp_path_factory.mktemp("made")
    write_rooms(folder / "nyu", num_train=3, num_test=1, seed=3)
    store = prepare(folder / "nyu", folder / "store")
    weights = build_model(config).state_dict()
    save_checkpoint(folder / "last", Checkpoint("stage2", 1, config, weights, {}, []))
    save_final(folder / "final", folder / "last")
    frames = store.train[:2]
    unaries = cached_unaries(config, store.path, folder / "final", folder / "unaries", frames=frames, progress=lambda _: None)
    return store, unaries


def _study(config: Config, made: tuple[Store, UnaryCache], folder: Path) -> list[Line]:
    store, unaries = made
    space = load_space(config)
    asker = Asker(config.search, space, first=start_points(space, config), journal=folder / "journal.log")
    told: list[Line] = []
    lines = run_study(TrialJob(config, store.path, unaries, (0, 1), folder, folder), asker, tell=told.append)
    assert sorted(line["trial"] for line in told) == list(range(TRIALS))
    return lines


def _outcomes(lines: list[Line]) -> list[Line]:
    """Everything but when it was and how long it took."""
    return [{name: value for name, value in line.items() if name not in {"started", "seconds"}} for line in lines]


@pytest.fixture(scope="module")
def one_at_a_time(config: Config, made: tuple[Store, UnaryCache], tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    folder = tmp_path_factory.mktemp("studies") / "one"
    return _study(with_overrides(config, {"search.concurrent": 1}), made, folder)


@pytest.mark.parametrize("concurrent", [2, 4])
def test_the_table_of_trials_is_the_same_at_any_concurrency(
    config: Config, made: tuple[Store, UnaryCache], one_at_a_time: list[Line], tmp_path: Path, concurrent: int
) -> None:
    at_once = _study(with_overrides(config, {"search.concurrent": concurrent}), made, tmp_path / "study")
    assert _outcomes(at_once) == _outcomes(one_at_a_time)
    assert {line["state"] for line in at_once} == {"finished"}
    for number in range(TRIALS):
        assert len(read_confusions(confusion_file(tmp_path / "study", number))[0]) == 2


def test_a_trial_whose_process_is_killed_is_run_again_and_none_that_ended_is(
    config: Config, made: tuple[Store, UnaryCache], one_at_a_time: list[Line], tmp_path: Path
) -> None:
    folder, killed = tmp_path / "study", threading.Event()

    def kill_one() -> None:
        while not killed.wait(0.01):
            workers = _own_trials()
            if len(read_trials(folder / "log.jsonl")) >= 2 and workers:
                os.kill(workers[0], signal.SIGKILL)
                killed.set()

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        lines = _study(with_overrides(config, {"search.concurrent": 2, "crf.num_iterations": 1}), made, folder)
    finally:
        found = killed.is_set()
        killed.set()
        killer.join()
    assert found, "no process was killed, so equality would say nothing"
    assert _outcomes(lines) == _outcomes(one_at_a_time)
    again = time.monotonic()
    assert _outcomes(_study(with_overrides(config, {"search.concurrent": 2}), made, folder)) == _outcomes(lines)
    assert time.monotonic() - again < 5, "trials that had ended were run again"


def _own_trials() -> list[int]:
    """The trial processes of this test's own Ray: this process's descendants, not those of another Ray on the machine."""
    parents: dict[int, int] = {}
    trials = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"CrfTrial" in (entry / "cmdline").read_bytes():
                trials.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return [pid for pid in trials if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found
