"""A stage with three workers and dropout on a real Ray that loses a worker, loses another, finds its newest checkpoint damaged
and then the disk full. Each is said in a line, and what it goes on to is to the bit what it would have been without.

Not here: drivers that are killed (test_killed_pipeline.py), kills at every step (tests/unit/test_killed_training.py).
"""

from __future__ import annotations

import os
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from ray.cluster_utils import Cluster
from torch.nn.parallel import DistributedDataParallel

from jointseg.batches import Place
from jointseg.checkpoint_folder import CheckpointFolder
from jointseg.data.manifest import write_manifest
from jointseg.data.store import Store
from jointseg.data.views import make_views
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.resuming import begin, resume
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import train
from pipeline.failures import LostWorkerError
from pipeline.log_lines import Line, read_lines
from pipeline.train import train_stage
from pipeline.workspace import Workspace
from tests.integration.command_line import PROCESSES, training_workers

STAGE = STAGES["stage1"]
CONFIG = with_overrides(demo(), {
    "network.width": 0.0625, "network.dropout": 0.5, "stage1.iterations": 40, "stage1.batch_size": 2,
    "training.num_workers": 3, "training.cpus_per_worker": 1, "training.log_every": 1, "training.checkpoint_every": 4,
})  # fmt: skip

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Story:
    """What the attempts ended with and said, and the stage's folder after them."""

    lost: str
    damaged: Path
    full: str
    said: list[str]
    told: list[Line]
    folder: CheckpointFolder


@pytest.fixture(scope="module")
def three_cpus() -> Iterator[None]:
    """A Ray with room for three workers, however many cores there are."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False, "wait": False})
    try:
        cluster.wait_for_nodes(timeout=180)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def story(three_cpus: None, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Story:
    place = Workspace(tmp_path_factory.mktemp("story") / "run")
    place.out.mkdir()
    place.store.symlink_to(store.path)
    write_manifest(make_views(store.train, CONFIG.data), place.views, seeds={}, store_digest=store.digest)
    folder, said, told = CheckpointFolder(place.stage(STAGE)), [], []

    def attempt(happens: dict[int, Callable[[list[int]], None]], *, max_failures: int) -> None:
        told.clear()
        config = with_overrides(CONFIG, {"training.max_failures": max_failures})
        with at_steps(happens, folder):
            train_stage(config, STAGE, place, validation=(), tell=told.append, say=said.append)

    with pytest.raises(LostWorkerError) as lost:
        attempt({6: partial(kill, 1), 14: partial(kill, 0)}, max_failures=1)
    damaged = folder.of(folder.steps()[-1]) / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(InputError) as full:
        attempt({22: fill_their_disk}, max_failures=0)
    return Story(str(lost.value), damaged, str(full.value), said, told, folder)


@contextmanager
def at_steps(happens: dict[int, Callable[[list[int]], None]], folder: CheckpointFolder) -> Iterator[None]:
    """Do things to the workers' processes, each once these workers have come to its step, and the stage to a checkpoint at all;
    all must get their turn.
    """
    given_up, log = threading.Event(), folder.path / "log.jsonl"

    def watch() -> None:
        seen = len(read_lines(log))
        while happens and not given_up.wait(0.005):
            due = min(happens)
            if folder.steps() and any(line["step"] >= due for line in read_lines(log)[seen:]):
                workers = training_workers(os.getpid())
                if len(workers) == CONFIG.training.num_workers:
                    happens.pop(due)(workers)
                    seen = len(read_lines(log))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        given_up.set()
        watcher.join()
        assert happens == {}, "these steps were not reached"


def kill(which: int, workers: list[int]) -> None:
    os.kill(workers[which], signal.SIGKILL)


def fill_their_disk(workers: list[int]) -> None:
    """From now on the kernel lets these processes write no more than 50 kB into a file."""
    for worker in workers:
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (50_000, 50_000))


def one_rank(rank: int, data: Path, folder: CheckpointFolder, result: Path) -> None:
    """One of three processes without Ray that train from the newest checkpoint in `folder` to the end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=result.with_suffix(".meeting").as_uri(), rank=rank, world_size=3)
    store, place, found = Store.open(data), Place(rank, 3), folder.newest(config=CONFIG, stage=STAGE.name)
    run = resume(CONFIG, STAGE, found.path, place=place) if found else begin(CONFIG, STAGE, place=place, start=None)
    views = make_views(store.train, CONFIG.data)
    train(
        run,
        store,
        views,
        place=place,
        report=lambda report: None,
        wrap=partial(DistributedDataParallel, find_unused_parameters=True),
    )
    if rank == 0:
        torch.save(run.model.state_dict(), result)
    dist.destroy_process_group()


def trained(store: Store, folder: CheckpointFolder, result: Path) -> dict[str, torch.Tensor]:
    ranks = [PROCESSES.Process(target=one_rank, args=(rank, store.path, folder, result)) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    weights: dict[str, torch.Tensor] = torch.load(result)
    return weights


def step_in(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def test_within_max_failures_a_stage_gets_over_a_lost_worker_by_itself(story: Story) -> None:
    loss = r"stage1: lost worker \d, process \d+ on [\d.]+ \(.*\); going on \(1 of training\.max_failures = 1\)"
    assert re.fullmatch(loss, story.said[0])
    assert re.fullmatch(r"stage1: goes on from step \d+", story.said[1])


def test_beyond_them_it_stops_with_one_line_on_what_happened_and_what_to_do(story: Story) -> None:
    assert story.lost.startswith("stage1: lost worker ")
    assert " (its worker process has died), more than training.max_failures = 1 gets over; " in story.lost
    assert story.lost.endswith(f"; the same command goes on from step {step_in(story.damaged.parent)}")
    assert "\n" not in story.lost


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_gone_on_from(story: Story) -> None:
    before = step_in(story.damaged.parent) - 4
    assert story.said[2].startswith(f"stage1: goes on from step {before}; refused: {story.damaged}: missing or altered")
    assert len(story.said) == 3


def test_a_full_disk_stops_the_stage_with_one_line_and_leaves_its_checkpoints(story: Story) -> None:
    last = story.folder.steps()[-1]
    assert story.full == f"{story.folder.of(last + 4)}: cannot be written: File too large"
    assert story.folder.steps() == [last - 4, last]
    assert [path.name for path in story.folder.path.glob(".step_*")] == []


def test_every_report_is_told_in_order(story: Story) -> None:
    assert [line["step"] for line in story.told] == list(range(1, len(story.told) + 1))
    assert story.told[-1]["step"] >= story.folder.steps()[-1]


def test_after_all_of_it_every_bit_is_as_if_nothing_had_happened(story: Story, store: Store, tmp_path: Path) -> None:
    undisturbed = trained(store, CheckpointFolder(tmp_path / "none"), tmp_path / "undisturbed.pt")
    gone_on = trained(store, story.folder, tmp_path / "gone_on.pt")
    assert gone_on.keys() == undisturbed.keys()
    assert [name for name in gone_on if not torch.equal(gone_on[name], undisturbed[name])] == []
