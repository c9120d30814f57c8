"""Stages 1 and 2 of a run in one process of plain torch, for a machine that has no Ray.

Not here: the stages with the CRF, the search, the evaluation: the folder that this leaves is a run's, and the pipeline goes on
from it, on any machine that sees the same paths (`jointseg run --out DIR` with the same settings). Interrupted, this goes on
from the last checkpoint.

    python benchmarks/without_ray.py --out DIR --store STORE [--preset modern] [--set PATH=VALUE]... [--commit HASH]

STORE is a folder that `jointseg data prepare` made.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from jointseg.batches import Place
from jointseg.checkpoint import save_final
from jointseg.checkpoint_folder import CheckpointFolder
from jointseg.config import Config
from jointseg.data.manifest import read_manifest
from jointseg.data.store import Store
from jointseg.data.views import View
from jointseg.errors import InputError
from jointseg.graphs import refuse_where_there_are_no_graphs
from jointseg.hardware import own_device
from jointseg.network.pretrained import check_pretrained
from jointseg.presets import PRESETS
from jointseg.resuming import begin, resume
from jointseg.settings import parse_override, with_overrides
from jointseg.stages import STAGES, Stage
from jointseg.training import Report, train
from pipeline.log_lines import append_line
from pipeline.sources import bring_in, list_frames
from pipeline.workspace import Workspace


def lay_out(config: Config, place: Workspace, store: Store, *, commit: str | None) -> tuple[View, ...]:
    """The folder as the pipeline's first phase leaves it; the views that are trained on."""
    place.adopt_config(config)
    if place.finished("data"):
        return read_manifest(place.views)
    bring_in(store.path, place.store)
    views = list_frames(place, store, config.data)
    place.finish("data", seconds=0.0, commit=commit)
    return views


def check(config: Config, place: Workspace, store: Store) -> Place:
    """The device that is trained on.

    Raises:
        InputError: the config is for more than one process, or for kept features; the device is not there; the starting
            weights are not in order; the folder is of another store.
    """
    for path, value, allowed in (
        ("data.cache_features", config.data.cache_features, False),
        ("training.num_workers", config.training.num_workers, 1),
    ):
        if value != allowed:
            raise InputError(f"{path}: {value} is not possible here; allowed: {allowed}")
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device: cuda is asked for, and PyTorch sees no GPU; allowed: auto, cpu")
    check_pretrained(config.network)
    there = place.store.resolve()
    if (place.store.exists() or place.store.is_symlink()) and there != store.path.resolve():
        raise InputError(f"{place.out}: is of another store, {there}; allowed as --store: that, or another --out")
    here = Place(device=own_device(config.training))
    if config.training.cuda_graphs:
        refuse_where_there_are_no_graphs(here)
    return here


def train_stage(config: Config, stage: Stage, place: Workspace, *, here: Place, store: Store, views: tuple[View, ...]) -> None:
    """Train a stage to its end, from its newest checkpoint if it has one; leaves its log, checkpoints and `final/`."""
    folder = place.stage(stage)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = CheckpointFolder(folder)
    found = checkpoints.newest(config=config, stage=stage.name)
    if found is None:
        start = None if stage.starts_from is None else place.final(STAGES[stage.starts_from])
        run = begin(config, stage, place=here, start=start)
    else:
        print(f"{stage.name}: {found}", flush=True)
        run = resume(config, stage, checkpoints.of(found.step), place=here)
    if run.loaded is not None:
        place.loaded(stage).write_text(f"{run.loaded.table()}\n", encoding="utf-8")

    def report(said: Report) -> None:
        append_line(place.log(stage), {"time": round(time.time(), 3), "step": float(said.step), **said.metrics})
        shown = {name: value for name, value in said.metrics.items() if not name.startswith("lr/")}
        print(stage.name, said.step, *(f"{name} {value:.4g}" for name, value in shown.items()), flush=True)
        if said.save is not None:
            checkpoints.write(said.step, said.save, keep=config.training.keep_checkpoints)

    train(run, store, views, place=here, report=report, validation=place.subset()["frames"])
    save_final(place.final(stage), checkpoints.of(stage.config(config).iterations))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="modern")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    parser.add_argument("--commit", help="of the code, for the record")
    args = parser.parse_args()
    try:
        config = with_overrides(PRESETS[args.preset](), dict(parse_override(text) for text in args.overrides))
        place, store = Workspace(args.out.absolute()), Store.open(args.store.absolute())
        here = check(config, place, store)
        torch.set_num_threads(config.training.cpus_per_worker)
        with place.locked():
            views = lay_out(config, place, store, commit=args.commit)
            for name in ("stage1", "stage2"):
                if place.finished(name):
                    continue
                started = time.perf_counter()
                train_stage(config, STAGES[name], place, here=here, store=store, views=views)
                place.finish(name, seconds=time.perf_counter() - started, commit=args.commit)
    except InputError as refused:
        sys.stderr.write(f"error: {refused}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
