"""What each Ray Train worker runs: an adapter round `jointseg.training`.

Not here: the loop (jointseg/training.py), the driver that starts the workers (train.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import ray.train
import ray.train.torch
import torch

from jointseg.batches import Place
from jointseg.checkpoint import write_atomically
from jointseg.config import Config
from jointseg.data.features import FeatureStore
from jointseg.data.manifest import read_manifest
from jointseg.data.store import Store
from jointseg.stages import TRAININGS
from jointseg.training import Report, begin, resume, train
from pipeline.log_lines import append_line


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs to know; paths are absolute and readable on every node."""

    config: Config
    stage: str
    store: Path
    views: Path
    log: Path
    validation: tuple[int, ...]
    start: Path | None
    features: Path | None
    """Features of the frozen layers, where they were computed before."""


def train_worker(loop_config: dict[str, TrainJob]) -> None:
    """Train one stage on this rank, from the checkpoint that Ray has for it or from the beginning."""
    job = loop_config["job"]
    torch.set_num_threads(job.config.training.cpus_per_worker)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    stage = TRAININGS[job.stage]
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        run = begin(job.config, stage, place=place, start=job.start)
        if run.loaded is not None and place.rank == 0:
            write_atomically(job.log.with_name("loaded.txt"), f"{run.loaded.table()}\n")
    else:
        with checkpoint.as_directory() as folder:
            run = resume(job.config, stage, Path(folder), place=place)
    train(
        run,
        Store.open(job.store),
        read_manifest(job.views),
        place=place,
        report=lambda report: _report(report, place, job.log),
        validation=job.validation,
        features=None if job.features is None else FeatureStore.open(job.features),
        wrap=ray.train.torch.prepare_model,
    )


def _report(report: Report, place: Place, log: Path) -> None:
    """Every rank reports: it is a barrier. Rank 0 writes the log, and brings the checkpoint, if one is due.

    The log comes first: killed between the two, the step is taken again and its line stands twice, of which readers take
    one. The other way round the line would be lost. The checkpoint has a name that a rerun writes over.
    """
    metrics = {"step": float(report.step), **report.metrics}
    if place.rank == 0:
        append_line(log, metrics)
    if report.save is None:
        ray.train.report(metrics)
        return
    name = f"step_{report.step:08d}"
    if place.rank > 0:
        ray.train.report(metrics, checkpoint_dir_name=name)
        return
    with TemporaryDirectory() as folder:
        report.save(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)
