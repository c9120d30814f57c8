"""What each Ray Train worker runs: an adapter round `jointseg.training`.

Checkpoints are written and chosen by our own hand (jointseg/checkpoint_folder.py). Ray keeps a record of those reported to it,
overwritten in place: after a kill in the middle of that, no later start succeeds. And when a name comes a second time, Ray
2.60 removes the new folder along with its old entry, and has no other to go on from where the newest is damaged.

Not here: the loop (jointseg/training.py), the driver that starts the workers (train.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from torch import nn

from jointseg.batches import Place
from jointseg.checkpoint_folder import CheckpointFolder, CheckpointWriter
from jointseg.config import Config
from jointseg.data.features import FeatureStore
from jointseg.data.manifest import read_manifest
from jointseg.data.store import Store
from jointseg.hardware import has_bfloat16, name_of
from jointseg.model import JointModel
from jointseg.resuming import Run, begin, resume
from jointseg.stages import TRAININGS
from jointseg.training import Report, train
from jointseg.whole import write_atomically
from pipeline.log_lines import append_line
from pipeline.workspace import LOADED, NOTES, STAGE_LOG


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs to know; paths are absolute and readable on every node."""

    config: Config
    stage: str
    store: Path
    views: Path
    folder: Path
    """The stage's folder: its checkpoints, and the two logs."""
    validation: tuple[int, ...]
    start: Path | None
    features: Path | None
    """Features of the frozen layers, where they were computed before."""

    @property
    def log(self) -> Path:
        """One line a report."""
        return self.folder / STAGE_LOG

    @property
    def notes(self) -> Path:
        """One line for people each time that the stage goes on from a checkpoint, or trains in another precision than asked."""
        return self.folder / NOTES


def train_worker(loop_config: dict[str, TrainJob]) -> None:
    """Train one stage on this rank, from the newest good checkpoint in its folder or from the beginning."""
    job = loop_config["job"]
    pace = job.config.training
    torch.set_num_threads(pace.cpus_per_worker)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    checkpoints = CheckpointFolder(job.folder)
    if place.rank == 0:
        note_precision(job, place.device)
    run = _begin_or_resume(job, checkpoints, place)
    with CheckpointWriter(checkpoints, keep=pace.keep_checkpoints, in_background=pace.async_checkpoints) as writer:
        train(
            run,
            Store.open(job.store),
            read_manifest(job.views),
            place=place,
            report=lambda report: _report(report, place, job.log, writer),
            validation=job.validation,
            features=None if job.features is None else FeatureStore.open(job.features),
            wrap=partial(distributed, device=place.device),
        )


def distributed(model: JointModel, *, device: torch.device) -> nn.Module:
    """The model as DDP, where there are several ranks.

    On CPUs its gradients are summed in one order from the first step on. By default DDP sorts them anew after a process's first
    backward pass, and gloo's sums over three ranks or more hang on where a number lies: a stage that was gone on with would end
    in other bits. The search for unused parameters, of which there are none, keeps the order.
    """
    options = {"find_unused_parameters": True} if device.type == "cpu" else {}
    wrapped: nn.Module = ray.train.torch.prepare_model(model, parallel_strategy_kwargs=options)
    return wrapped


def note_precision(job: TrainJob, device: torch.device) -> None:
    """Note where the stage trains in float32, though its config asks for bfloat16."""
    if job.config.training.precision == "bfloat16" and not has_bfloat16(device):
        said = f"{job.stage}: trains in float32: {name_of(device)} is not made for bfloat16 and many times slower in it"
        append_line(job.notes, {"said": said})


def _begin_or_resume(job: TrainJob, checkpoints: CheckpointFolder, place: Place) -> Run:
    """The stage where it stands. Rank 0 chooses the checkpoint for all, and notes what it chose."""
    stage = TRAININGS[job.stage]
    found = checkpoints.newest(config=job.config, stage=stage.name) if place.rank == 0 else None
    step = ray.train.collective.broadcast_from_rank_zero(None if found is None else found.step)
    if step is not None:
        if found is not None:
            append_line(job.notes, {"said": f"{stage.name}: {found}"})
        return resume(job.config, stage, checkpoints.of(step), place=place)
    run = begin(job.config, stage, place=place, start=job.start)
    if run.loaded is not None and place.rank == 0:
        write_atomically(job.folder / LOADED, f"{run.loaded.table()}\n")
    return run


def _report(report: Report, place: Place, log: Path, writer: CheckpointWriter) -> None:
    """Rank 0 writes the log, with the time in Unix seconds, and the checkpoint, if one is due; with a checkpoint every rank
    reports to Ray, which shows it.

    Not each time: Ray takes ten reports a second and holds the workers up until it has taken theirs.

    The log comes first: killed between the two, the step is taken again and its line stands twice, of which readers take
    one. The other way round the line would be lost.
    """
    metrics = {"step": float(report.step), **report.metrics}
    if place.rank == 0:
        append_line(log, {"time": round(time.time(), 3), **metrics})
        writer.check()
        if report.save is not None:
            writer.write(report.step, report.save)
    if report.save is not None:
        ray.train.report(metrics)
