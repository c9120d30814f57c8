"""Laws of a training stage's driver and of a worker's reports. Not here: Ray Train itself (tests/integration), the loop
(test_training.py).
"""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import ray
import ray.train
import torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from jointseg.batches import Place
from jointseg.errors import InputError
from jointseg.hardware import cpu_model
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import Report
from pipeline import train, worker
from pipeline.failures import LostWorkerError, NoRoomError
from pipeline.log_lines import append_line, read_lines
from pipeline.workspace import Workspace
from tests.checkpoints import untrained_final

STAGE = STAGES["stage2"]


# The driver


@pytest.fixture
def place(tmp_path, small):
    """A run's folder that stage 2 may begin in."""
    place = Workspace(tmp_path / "run")
    untrained_final("stage1", small, place.final(STAGES["stage1"]))
    return place


@pytest.fixture
def trained(place, small, monkeypatch):
    """Trains stage 2 with an act in place of Ray's: the workers' job, what was told and said, the checkpoint it ended with."""

    def run(act, *, gpus=(False,), **settings):
        kept = SimpleNamespace(job=None, told=[], said=[], end=None, gpus=[])
        there = list(gpus)

        class Trainer:
            def __init__(self, train_worker, *, train_loop_config, scaling_config, **_):
                kept.job = train_loop_config["job"]
                kept.gpus.append(scaling_config.use_gpu)

            def fit(self):
                act(kept.job)

        monkeypatch.setattr(train, "TorchTrainer", Trainer)
        monkeypatch.setattr(train, "uses_gpu", lambda config: there.pop(0))
        monkeypatch.setattr(train, "save_final", lambda final, source: setattr(kept, "end", source.name))
        config = with_overrides(small, {f"training.{name}": value for name, value in settings.items()})
        train.train_stage(config, STAGE, place, validation=(3,), tell=kept.told.append, say=kept.said.append)
        return kept

    return run


def test_a_stage_goes_from_the_weights_before_it_to_the_checkpoint_of_its_last_step(trained, place):
    kept = trained(lambda job: None)
    assert (kept.job.start, kept.job.validation) == (place.final(STAGES["stage1"]), (3,))
    assert kept.end == "step_00000004"


def test_a_stage_is_not_begun_from_damaged_weights(trained, place):
    (place.final(STAGES["stage1"]) / "weights.safetensors").write_bytes(b"short")
    begun = []
    with pytest.raises(InputError, match="stage1/final"):
        trained(begun.append)
    assert begun == []


def test_reports_are_told_and_of_the_notes_those_of_this_start_are_said(trained, place):
    place.stage(STAGE).mkdir()
    append_line(place.stage(STAGE) / "notes.jsonl", {"said": "earlier"})

    def work(job):
        append_line(job.notes, {"said": "now"})
        append_line(job.log, {"step": 1.0})

    kept = trained(work)
    assert (kept.said, kept.told) == (["now"], [{"step": 1.0}])


def test_an_interruption_that_ray_train_makes_an_exit_is_one_again_and_its_handler_goes(trained):
    before = signal.getsignal(signal.SIGINT)

    def interrupted(job):
        signal.signal(signal.SIGINT, lambda *_: None)
        raise SystemExit(0)

    with pytest.raises(KeyboardInterrupt):
        trained(interrupted)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_lost_worker_says_where_the_stage_goes_on(trained, place):
    def lost(job):
        for step in (2, 4):
            (job.folder / f"step_{step:08d}").mkdir()
        raise ray.train.WorkerGroupError("lost", {1: ray.exceptions.WorkerCrashedError()})

    with pytest.raises(LostWorkerError, match=r"stage2: lost worker 1 .*training\.max_failures = 0 .*goes on from step 4"):
        trained(lost)


def test_a_stage_stays_on_gpus_though_their_node_is_lost_and_not_back_yet(trained):
    lost = ray.train.WorkerGroupError("lost", {0: ray.exceptions.WorkerCrashedError()})
    kept = trained(failing([lost]), gpus=(True, False), max_failures=1)
    assert kept.gpus == [True, True]


def failing(failures):
    """What a stage does that fails so and so at each start, and then does not."""

    def work(job):
        if failures:
            raise failures.pop(0)

    return work


def test_only_lost_workers_are_got_over(trained):
    loss = ray.train.WorkerGroupError("lost", {1: ray.exceptions.WorkerCrashedError()})
    kept = trained(failing([loss, loss]), max_failures=2)
    assert [line.rpartition("; ")[2] for line in kept.said] == [
        f"going on ({number} of training.max_failures = 2)" for number in (1, 2)
    ]
    with pytest.raises(LostWorkerError, match=r"more than training\.max_failures = 1 gets over"):
        trained(failing([loss, loss]), max_failures=1)
    left = [ray.train.WorkerGroupError("mine", {0: InputError("stage2: mine")}), loss]
    with pytest.raises(InputError, match="stage2: mine"):
        trained(failing(left), max_failures=2)
    assert left == [loss], "a mistake of the user's was tried again"


def test_room_is_waited_for_and_that_is_said_once(trained, monkeypatch):
    monkeypatch.setattr(train, "free_resources", lambda: "0 CPU")
    full = ray.train.ControllerError(WorkerGroupStartupTimeoutError(2))
    kept = trained(failing([full, full]))
    assert kept.said == ["stage2: waiting for room for 1 worker(s) of 1 CPU each; Ray has free: 0 CPU"]
    with pytest.raises(NoRoomError, match=r"the workers did not start: .*waiting for 2 workers"):
        trained(failing([full] * (train.MOST_WAITS + 1)))


# A worker


def test_a_stage_whose_processor_is_not_made_for_bfloat16_says_that_it_trains_in_float32(small, tmp_path, monkeypatch):
    asked = with_overrides(small, {"training.precision": "bfloat16"})
    jobs = {
        name: worker.TrainJob(config, name, *[tmp_path / name] * 3, (), None, None)
        for name, config in {"asked": asked, "made_for_it": asked, "not_asked": small}.items()
    }
    for name, job in jobs.items():
        job.folder.mkdir()
        monkeypatch.setattr(worker, "has_bfloat16", lambda device, there=name == "made_for_it": there)
        worker.note_precision(job, torch.device("cpu"))
    said = {name: [line["said"] for line in read_lines(job.notes)] for name, job in jobs.items()}
    assert said == {
        "asked": [f"asked: trains in float32: {cpu_model()} is not made for bfloat16 and many times slower in it"],
        "made_for_it": [],
        "not_asked": [],
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_the_log_comes_before_the_checkpoint_and_ray_hears_of_steps_with_one(monkeypatch, tmp_path, rank):
    """And rank 0 alone writes."""
    events, log = [], tmp_path / "log.jsonl"

    def written(step, save):
        events.append(f"wrote {step} after lines of {[line['step'] for line in read_lines(log)]}")

    writer = SimpleNamespace(check=lambda: None, write=written)
    monkeypatch.setattr(worker.ray.train, "report", lambda metrics: events.append(f"told {metrics['step']:g}"))
    for step, save in ((1, None), (2, lambda folder: None)):
        worker._report(Report(step, {"loss/total": 1.0}, save), Place(rank, 2, torch.device("cpu")), log, writer)
    assert events == (["wrote 2 after lines of [1.0, 2.0]"] if rank == 0 else []) + ["told 2"]
    assert len(read_lines(log)) == (2 if rank == 0 else 0)
