"""A study on a real Ray: the same trials at any concurrency, lost processes, lost nodes and all.

A study within a run: test_pipeline.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster

from jointseg.checkpoint import Checkpoint, save_checkpoint, save_final
from jointseg.config import Config
from jointseg.data.manifest import write_manifest
from jointseg.data.rooms import write_rooms
from jointseg.data.store import prepare
from jointseg.data.views import make_views
from jointseg.errors import InputError
from jointseg.model import build_model
from jointseg.presets import demo
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.failures import LostWorkerError
from pipeline.log_lines import Line
from pipeline.study.batches import Batches, Watch
from pipeline.study.samplers import Asker
from pipeline.study.spaces import load_space, start_points
from pipeline.study.study import run_study, run_trials
from pipeline.study.trial import OneStep, TrialJob
from pipeline.study.trial_record import confusion_file, read_confusions, read_trials
from pipeline.study.unaries import UnaryCache, cached_unaries
from pipeline.workspace import Workspace

TRIALS = 7


@pytest.fixture(scope="module")
def four_cpus() -> Iterator[Cluster]:
    """A Ray that may run four trials at once, however many cores there are, and that nodes can join."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False, "wait": False})
    try:
        cluster.wait_for_nodes(timeout=180)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def config() -> Config:
    settings = {"trials": TRIALS, "startup_trials": 2, "batch": 2, "folds": 2, "space": "crf_weights"}
    changes = {"network.width": 0.0625, "network.input_size": 65, "crf.num_iterations": 4}
    return with_overrides(demo(), {**changes, **{f"search.{name}": value for name, value in settings.items()}})


@pytest.fixture(scope="module")
def made(four_cpus: Cluster, config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, UnaryCache]:
    """Unaries of two frames, by a network with random weights, in the folder of a run that has come to stage 2."""
    place = Workspace(tmp_path_factory.mktemp("made"))
    write_rooms(place.rooms, num_train=3, num_test=1, seed=3)
    store = prepare(place.rooms, place.store)
    write_manifest(make_views(store.train, config.data), place.views, seeds={}, store_digest=store.digest)
    weights, final = build_model(config).state_dict(), place.final(STAGES["stage2"])
    save_checkpoint(place.out / "last", Checkpoint("stage2", 1, config, weights, {}, []))
    save_final(final, place.out / "last")
    frames, folder = store.train[:2], place.search / "unaries"
    return place, cached_unaries(config, store.path, final, folder, frames=frames, progress=lambda _: None, say=print)


def _study(config: Config, made: tuple[Workspace, UnaryCache], folder: Path) -> list[Line]:
    place, unaries = made
    space = load_space(config)
    asker = Asker(config.search, space, first=start_points(space, config), journal=folder / "journal.log")
    told: list[Line] = []
    folds = tuple(place % 2 for place in range(len(unaries.frames)))
    lines = run_study(TrialJob(config, place.store, unaries, folds, folder, place.out), asker, tell=told.append)
    assert sorted(line["trial"] for line in told) == list(range(config.search.trials))
    return lines


def _outcomes(lines: list[Line]) -> list[Line]:
    """Everything but when it was and how long it took."""
    return [{name: value for name, value in line.items() if name not in {"started", "seconds"}} for line in lines]


@pytest.fixture(scope="module")
def one_at_a_time(config: Config, made: tuple[Workspace, UnaryCache], tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    folder = tmp_path_factory.mktemp("studies") / "one"
    return _study(with_overrides(config, {"search.concurrent": 1}), made, folder)


def test_the_table_of_trials_is_the_same_at_any_concurrency_and_from_a_copy_of_the_unaries(
    config: Config, made: tuple[Workspace, UnaryCache], one_at_a_time: list[Line], tmp_path: Path
) -> None:
    """Two at a time: the next test."""
    changes = {"search.concurrent": 4, "search.node_folder": str(tmp_path / "node")}
    at_once = _study(with_overrides(config, changes), made, tmp_path / "study")
    assert _outcomes(at_once) == _outcomes(one_at_a_time)
    assert len([path for path in (tmp_path / "node").iterdir() if path.is_dir()]) == 1
    assert {line["state"] for line in at_once} == {"finished"}
    for number in range(TRIALS):
        assert len(read_confusions(confusion_file(tmp_path / "study", number))[0]) == 2


def test_a_study_begun_again_with_fewer_trials_runs_those_that_are_missing(
    config: Config, made: tuple[Workspace, UnaryCache], one_at_a_time: list[Line], tmp_path: Path
) -> None:
    """As a kill with several trials at once may leave it."""
    folder = tmp_path / "study"
    two_at_once = _study(with_overrides(config, {"search.concurrent": 2}), made, folder)
    assert _outcomes(two_at_once) == _outcomes(one_at_a_time)
    log = folder / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["trial"] != 1))
    fewer = _study(with_overrides(config, {"search.trials": 4}), made, folder)
    assert _outcomes(fewer) == _outcomes(one_at_a_time)[:4]
    assert sorted(read_trials(log)) == list(range(TRIALS))


@pytest.mark.slow
def test_which_trials_are_stopped_does_not_hang_on_how_many_run_at_once(
    config: Config, made: tuple[Workspace, UnaryCache], tmp_path: Path
) -> None:
    """On each frame three times: of fewer than three in a fold no trial is stopped."""
    place, unaries = made
    for name, values in unaries.arrays().items():
        np.save(tmp_path / f"{name}.npy", np.resize(values, (6, *values.shape[1:])))
    thrice = place, UnaryCache(tmp_path, unaries.frames * 3)
    stopping = with_overrides(config, {"search.early_stop": True})
    one = _study(with_overrides(stopping, {"search.concurrent": 1}), thrice, tmp_path / "one")
    two = _study(with_overrides(stopping, {"search.concurrent": 2}), thrice, tmp_path / "two")
    assert _outcomes(two) == _outcomes(one)
    states = [line["state"] for line in one]
    assert states[:4] == ["finished"] * 4, "no trial had been told when these were asked"
    assert set(states) == {"finished", "stopped"}


@pytest.mark.slow
def test_trials_that_train_share_the_cluster_and_are_scored_with_what_they_trained(
    config: Config, made: tuple[Workspace, UnaryCache], one_at_a_time: list[Line], tmp_path: Path
) -> None:
    """Two trainings asked for at once, each of a worker that takes all four CPUs."""
    settings = {"fidelity": "finetune", "finetune_iterations": 2, "trials": 2, "concurrent": 2, "batch": 2}
    training = {"training.cpus_per_worker": 4, "stage3.batch_size": 1, "stage3.lr": 0.01}
    trains = with_overrides(config, {**training, **{f"search.{name}": value for name, value in settings.items()}})
    lines = _study(trains, made, tmp_path / "study")
    assert [(line["state"], line["error"]) for line in lines] == [("finished", None)] * 2
    assert lines[0]["point"] == one_at_a_time[0]["point"]
    assert lines[0]["fold_scores"] != one_at_a_time[0]["fold_scores"], "training changed nothing"
    assert not list((tmp_path / "study" / "finetune").iterdir()), "checkpoints were left"


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_run_again_and_none_that_ended_is(
    config: Config, made: tuple[Workspace, UnaryCache], one_at_a_time: list[Line], tmp_path: Path
) -> None:
    folder, two_at_once = tmp_path / "study", with_overrides(config, {"search.concurrent": 2})
    with _in_the_middle_of_a_trial(folder, os.getpid(), strike=lambda trial: os.kill(trial, signal.SIGKILL)):
        lines = _study(two_at_once, made, folder)
    assert _outcomes(lines) == _outcomes(one_at_a_time)
    logged = (folder / "log.jsonl").read_bytes()
    assert _outcomes(_study(two_at_once, made, folder)) == _outcomes(lines)
    assert (folder / "log.jsonl").read_bytes() == logged, "trials that had ended were run again"


@pytest.mark.slow
def test_the_trials_of_a_node_that_is_killed_are_run_on_another(
    four_cpus: Cluster, config: Config, made: tuple[Workspace, UnaryCache], one_at_a_time: list[Line], tmp_path: Path
) -> None:
    """At first there is room for trials on the second node alone."""
    elsewhere = ray.remote(num_cpus=4)(Occupied).remote()
    ray.get(elsewhere.ready.remote())
    node = four_cpus.add_node(wait=False, num_cpus=2)
    four_cpus.wait_for_nodes(timeout=180)

    def kill_node(trial: int) -> None:
        four_cpus.remove_node(node, allow_graceful=False)
        os.kill(trial, signal.SIGKILL)  # it is halted, and does not see that its node is gone
        ray.kill(elsewhere)

    raylet = node.all_processes["raylet"][0].process.pid
    with _in_the_middle_of_a_trial(tmp_path / "study", raylet, strike=kill_node):
        lines = _study(with_overrides(config, {"search.concurrent": 2}), made, tmp_path / "study")
    assert _outcomes(lines) == _outcomes(one_at_a_time)


@pytest.mark.slow
def test_what_ends_the_process_of_every_trial_ends_the_study_and_is_said(
    config: Config, made: tuple[Workspace, UnaryCache], tmp_path: Path
) -> None:
    """Unaries that are no arrays; and some that are gone, as where a node does not see the run's folder."""
    place, unaries = made
    elsewhere = tmp_path / "unaries"
    shutil.copytree(unaries.folder, elsewhere)
    own = place, UnaryCache(elsewhere, unaries.frames)
    (elsewhere / "logits.npy").write_bytes(b"no array at all")
    with pytest.raises(LostWorkerError, match=r"trial \d: its process ended 3 times without a score: .*; the same"):
        _study(with_overrides(config, {"search.concurrent": 1}), own, tmp_path / "study")
    (elsewhere / "logits.npy").unlink()
    with pytest.raises(InputError, match=r"unaries/logits\.npy is not there on node .*; --out must lie where all nodes see it"):
        _study(with_overrides(config, {"search.concurrent": 1}), own, tmp_path / "study")
    assert read_trials(tmp_path / "study" / "log.jsonl") == {}


class Meeting(OneStep):
    """A trial that ends when all have begun that its point names, and some time later; its line says which process did it."""

    def setup(self, config: dict[str, Any], job: TrialJob | None = None) -> None:
        """Nothing but the point."""
        self.asked = config

    def score(self) -> Line:
        """Wait."""
        point = self.asked["point"]
        begun = Path(point["folder"])
        (begun / str(self.asked["trial"])).touch()
        while not all((begun / str(other)).exists() for other in point["meets"]):
            time.sleep(0.01)
        time.sleep(point["seconds"])
        return {**self.asked, "state": "finished", "process": os.getpid()}


class ByThrees:
    """Asks for nine trials: the first three and the last three meet, and the first takes longer than those in between."""

    def __init__(self, folder: Path) -> None:
        """Begin with none; trials meet in this folder."""
        self.folder = folder

    def ask(self, number: int) -> dict[str, Any]:
        """By number."""
        meets = [] if number in (3, 4, 5) else [number // 3 * 3 + place for place in range(3)]
        return {"meets": meets, "seconds": 2.0 if number == 0 else 0.0, "folder": str(self.folder)}

    def tell(self, number: int, line: Line) -> None:
        """It learns nothing."""


@pytest.mark.slow
def test_processes_that_find_no_trial_for_a_while_are_kept(four_cpus: Cluster, tmp_path: Path) -> None:
    """Two wait for the first trial. Tune by itself would keep one of them."""
    lines: list[Line] = []
    batches = Batches(ByThrees(tmp_path), size=3, total=9, ended={}, log=lines.append, concurrent=3)  # type: ignore[arg-type]
    run_trials(batches, tune.with_resources(Meeting, {"CPU": 1}), Watch({"CPU": 1}, batches), folder=tmp_path, at_once=3)
    assert sorted(line["trial"] for line in lines) == list(range(9))
    assert len({line["process"] for line in lines}) == 3


class Occupied:
    """Holds CPUs."""

    def ready(self) -> bool:
        """Whether it has them."""
        return True


@contextmanager
def _in_the_middle_of_a_trial(folder: Path, ancestor: int, *, strike: Callable[[int], None]) -> Iterator[None]:
    """Once the study in `folder` has two trials, halt a process in the middle of another and strike, given its pid.

    The process is one that descends from `ancestor`. By the end of the block it must have happened.
    """
    over = threading.Event()

    def watch() -> bool:
        while not over.wait(0.002):
            if len(read_trials(folder / "log.jsonl")) < 2:
                continue
            for trial in _running_trials(ancestor):
                with suppress(ProcessLookupError):  # it may have ended
                    os.kill(trial, signal.SIGSTOP)  # it cannot end meanwhile
                    if trial in _running_trials(ancestor):
                        strike(trial)
                        return True
                    os.kill(trial, signal.SIGCONT)
        return False

    with ThreadPoolExecutor(1) as pool:
        struck = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
        assert struck.result(), "nothing was killed, so equality would say nothing"


def _running_trials(ancestor: int) -> list[int]:
    """Processes in the middle of a trial that descend from `ancestor`. Another Ray on the machine has trials too."""
    parents: dict[int, int] = {}
    trials = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_bytes().startswith(b"ray::ResourceTrainable.train"):  # Tune's name for any trial
                trials.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return [pid for pid in trials if ancestor in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found


@pytest.mark.slow
def test_a_study_whose_trials_no_node_can_run_any_more_ends_in_one_line(
    config: Config, made: tuple[Workspace, UnaryCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cluster, the nodes that could may have gone."""
    monkeypatch.setattr("pipeline.cluster.PATIENCE", 5)
    with pytest.raises(LostWorkerError, match=r"^no node of Ray has had 99 CPU free for 0 minutes; the same command goes on$"):
        _study(with_overrides(config, {"search.cpus_per_trial": 99}), made, tmp_path / "study")
