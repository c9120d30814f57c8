"""What each choice of a preset is worth: the preset, and the preset with one setting changed at a time, on validation frames.

    python benchmarks/choices.py --data FOLDER --set network.weights=FILE [--preset small] [--stage one_stage] [--steps 120]
                                 [--choices PATH=VALUE...] [--seeds 0 1] [--json FILE]
    python benchmarks/choices.py --run OUT [--steps 30] --choices loss.crf_temperature=3 [--set PATH=VALUE]...

Frames are those of the train split: the preset's validation subset is scored, the others are trained on. Every row trains from
the starting weights in plain torch, without kept features, for --steps steps, and is then scored; seconds are of both. The
preset's own row comes once for each seed, whose spread says which differences mean nothing; the others have the first seed.
A choice that the preset has already has no row. --json is written after each row.

With --run it is stage 3 of a run whose search has finished, under the run's own config: from its stage 2, with the CRF settings
found and on its frames. The first row is then of what stage 3 begins with, not trained.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from jointseg.batches import Place
from jointseg.config import Config
from jointseg.data.store import Store, is_store, prepare
from jointseg.data.views import draw_validation, make_views
from jointseg.errors import InputError
from jointseg.hardware import cpu_model, own_device
from jointseg.network.pretrained import check_pretrained
from jointseg.presets import PRESETS
from jointseg.resuming import begin
from jointseg.settings import parse_override, with_overrides
from jointseg.stages import TRAININGS
from jointseg.training import Report, train, validate
from pipeline.study.settings_file import load_settings
from pipeline.workspace import Workspace

CHOICES = [
    "loss.class_balance=0",
    "loss.depth_invariance=1",
    "{stage}.ema=0",
    "{stage}.schedule=constant",
    "{stage}.trunk_lr_multiplier=1",
    "{stage}.head_lr_multiplier=10",
    "network.unit_features=false",
    "network.dropout=0.5",
    "data.num_crops=0",
    "training.precision=float32",
]
SHOWN = {"mean_iou": 100.0, "mean_accuracy": 100.0, "pixel_accuracy": 100.0, "delta1": 100.0, "rmse": 1.0}


def scores(config: Config, args: argparse.Namespace, store: Store, *, trained: bool) -> dict[str, float]:
    """Metrics of the validation frames after the stage, or before it, and the seconds that it took."""
    stage, place, found = TRAININGS[args.stage], Place(device=own_device(config.training)), dict[str, float]()
    pace = {"log_every": args.steps, "checkpoint_every": 10 * args.steps, "validate_every": 10 * args.steps}
    changes = {f"{args.stage}.iterations": args.steps, **{f"training.{name}": value for name, value in pace.items()}}
    config = with_overrides(config, changes)
    run_place = None if args.run is None else Workspace(args.run.absolute())
    validation = draw_validation(store.train, config.data) if run_place is None else run_place.subset()["frames"]
    views = make_views([number for number in store.train if number not in set(validation)], config.data)
    torch.set_num_threads(config.training.cpus_per_worker)

    def keep(report: Report) -> None:
        found.update(report.metrics)

    started = time.perf_counter()
    run = begin(config, stage, place=place, start=None if run_place is None else run_place.final(TRAININGS["stage2"]))
    if trained:
        train(run, store, views, place=place, report=keep, validation=validation)
    else:
        found = validate(run, store, validation, place=place)
    return {"seconds": time.perf_counter() - started, **found}


def main() -> None:
    try:
        compare()
    except InputError as refused:
        sys.stderr.write(f"error: {refused}\n")
        sys.exit(2)


def compare() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--data", type=Path, help="a folder of frames, or a store that was prepared from one")
    of.add_argument("--run", type=Path, metavar="OUT", help="a run whose search has finished: its stage 3")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    parser.add_argument("--stage", choices=["stage1", "one_stage"], default="one_stage")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--choices", nargs="+", default=CHOICES, metavar="PATH=VALUE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    preset, args.stage = PRESETS[args.preset](), args.stage if args.run is None else "stage3"
    if args.run is not None:
        place = Workspace(args.run.absolute())
        there = place.load_config()
        if there is None:
            raise InputError(f"{place.out}: not the folder of a run")
        preset, args.data = load_settings(place.crf_settings, there), place.store
    base = {"data.cache_features": False, **dict(parse_override(text) for text in args.overrides)}
    ways = [(f"the preset, seed {seed}", {"seed": seed, "data.views_seed": seed}) for seed in args.seeds]
    for choice in args.choices:
        text = choice.format(stage=args.stage)
        ways.append((text, {**ways[0][1], **dict([parse_override(text)])}))
    every = [(name, with_overrides(preset, {**base, **changes})) for name, changes in ways]
    configs = [(name, config) for place, (name, config) in enumerate(every) if not place or config != every[0][1]]
    for _, config in configs:
        check_pretrained(config.network)
        if config.training.num_workers != 1:
            raise InputError(f"training.num_workers: {config.training.num_workers} is not possible here; allowed: 1")
    on_gpu = own_device(every[0][1].training).type == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"{cpu_model()}, {os.cpu_count()} cores"
    print(f"{machine}, torch {torch.__version__}, {args.steps} steps")
    given = {name: str(value) for name, value in vars(args).items()} | {"machine": machine, "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(args.data.absolute()) if is_store(args.data) else prepare(args.data, Path(folder) / "store")
        ways_trained = [(name, config, True) for name, config in configs]
        if args.run is not None:
            ways_trained.insert(0, ("not trained", configs[0][1], False))
        for name, config, trained in ways_trained:
            rows.append({"what": name, **scores(config, args, store, trained=trained)})
            shown = {short: rows[-1].get(f"validation/{short}") for short in SHOWN}
            numbers = [f"{short} {value * SHOWN[short]:.2f}" for short, value in shown.items() if value is not None]
            print(f"{name:<40}", *numbers, f"{rows[-1]['seconds']:.0f} s", flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps({**given, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
