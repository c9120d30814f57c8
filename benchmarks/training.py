"""Speed and memory of training: the loader against the loop, Ray against plain torch, tuned against naive, the paper's batch 1.

Not here: what is learned (docs/results.md), the CRF alone (crf.py).

    python benchmarks/training.py [--parts loader ray tuned paper memory] [--preset NAME] [--set PATH=VALUE]...
                                  [--store DIR] [--steps 30] [--windows 3] [--turns 3] [--json FILE]

- loader: images a second that the loader cuts, beside those that stage 2 trains on.
- ray:    stage 1 inside a Ray Train worker and in plain torch, by turns; needs the `pipeline` extra.
- tuned:  the preset's precision, layout and compilation against float32, contiguous, uncompiled, by turns.
- paper:  the paper's batch of 1 for --steps steps, projected to its 160k + 10k (stage 3 is timed with its CRF, 10k).
- memory: peak memory of stage 3 with the CRF on CUDA, with and without `training.recompute`.

Stages run through `jointseg.training.train` on views of --store (a folder that `jointseg data prepare` made), or of rooms that
are made up. A figure is the median over --windows windows of --steps steps, after one window to warm up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jointseg.batches import Place, ViewDataset, batches
from jointseg.config import Config
from jointseg.data.rooms import write_rooms
from jointseg.data.store import Store, prepare
from jointseg.data.views import make_views
from jointseg.hardware import cpu_model, own_device
from jointseg.presets import PRESETS
from jointseg.resuming import begin
from jointseg.settings import parse_override, with_overrides
from jointseg.stages import STAGES
from jointseg.training import train, validate

NAIVE = {"training.precision": "float32", "training.channels_last": False, "training.compile": False}
PAPER_STEPS = {"stage1": 160_000, "stage2": 10_000, "stage3": 10_000}
PREFETCHED = 2
"""Batches that torch has each loader process hold ready."""
LOADED = 200
"""Batches of the loader that are timed."""
Row = dict[str, Any]


def timed(config: Config, stage: str, args: argparse.Namespace) -> Config:
    """`config` with `stage` cut to the windows that are measured, and nothing else reported or validated."""
    steps = (args.windows + 1) * args.steps
    pace = {"log_every": args.steps, "checkpoint_every": 10 * steps, "validate_every": 10 * steps}
    return with_overrides(config, {f"{stage}.iterations": steps, **{f"training.{name}": value for name, value in pace.items()}})


def plain(config: Config, stage: str, store: Store, args: argparse.Namespace) -> list[float]:
    """Images a second of each window of `stage`, in plain torch; the first, which warms up, is left out."""
    config, place = timed(config, stage, args), Place(device=own_device(config.training))
    torch.set_num_threads(config.training.cpus_per_worker)
    run = begin(config, STAGES[stage], place=place, start=None)
    rates: list[float] = []
    views = make_views(store.train, config.data)
    train(run, store, views, place=place, report=lambda report: rates.append(report.metrics["images_per_second"]))
    return rates[1:]


def in_ray(config: Config, stage: str, store: Store, args: argparse.Namespace) -> list[float]:
    """The same inside a Ray Train worker."""
    from jointseg.data.manifest import write_manifest  # noqa: PLC0415
    from pipeline.train import train_stage  # noqa: PLC0415
    from pipeline.workspace import Workspace  # noqa: PLC0415

    config, rates = timed(config, stage, args), []
    with tempfile.TemporaryDirectory() as folder:
        place = Workspace(Path(folder))
        place.store.symlink_to(store.path)
        write_manifest(make_views(store.train, config.data), place.views, seeds={}, store_digest=store.digest)
        train_stage(
            config, STAGES[stage], place, validation=(), tell=lambda line: rates.append(line["images_per_second"]), say=print
        )
    return rates[1:]


def loader(config: Config, store: Store, args: argparse.Namespace) -> list[Row]:
    """Images a second of the loader alone, beside those of training; the loader with the preset's own processes.

    Twice over the same views, the first time so that the store is in memory. What processes hold ready is not counted.
    """
    workers, passes = config.training.loader_workers, config.stage2.accumulate
    ready = 1 + workers * PREFETCHED
    steps = with_overrides(config, {"stage2.iterations": -(-(ready + LOADED) // passes)}).stage2
    dataset = ViewDataset(store, make_views(store.train, config.data), config)
    for _ in range(2):
        fed = batches(dataset, steps, Place(device=own_device(config.training)), first_step=0, loader_workers=workers)
        for _ in range(ready):
            next(fed)
        start, count = time.perf_counter(), 0
        for batch in fed:
            count += len(batch.image)
        rate = count / (time.perf_counter() - start)
    trained = statistics.median(plain(config, "stage2", store, args))
    return [
        {"part": "loader", "what": f"loader alone, {workers} processes", "images/s": rate, "ratio": rate / trained},
        {"part": "loader", "what": "training, stage 2", "images/s": trained, "ratio": 1.0},
    ]


def by_turns(ways: dict[str, Callable[[], list[float]]], part: str, *, turns: int) -> list[Row]:
    """Each way `turns` times, one after the other; rates are medians, ratios medians of each turn's, to the last way."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, measure in ways.items():
            rates[name].append(statistics.median(measure()))
    last = rates[list(ways)[-1]]
    return [
        {
            "part": part,
            "what": name,
            "images/s": statistics.median(each),
            "ratio": statistics.median(own / base for own, base in zip(each, last, strict=True)),
        }
        for name, each in rates.items()
    ]


def paper(config: Config, store: Store, args: argparse.Namespace) -> list[Row]:
    """Batch 1, the paper's stages: minutes of each as projected from the steps that were run, and of validating on the way."""
    rows, whole = [], 0.0
    for stage, steps in PAPER_STEPS.items():
        changes = {f"{stage}.batch_size": 1, f"{stage}.accumulate": 1}
        rate = statistics.median(plain(with_overrides(config, changes), stage, store, args))
        whole += steps / rate
        rows.append(
            {"part": "paper", "what": f"{stage}, batch 1, {steps} steps", "images/s": rate, "minutes": steps / rate / 60}
        )
    pace, frames = config.training.validate_every, config.data.validation_frames
    looked = sum(PAPER_STEPS.values()) // pace * frames * seconds_to_validate(config, store)
    rows.append({"part": "paper", "what": f"validation, {frames} frames each {pace} steps", "minutes": looked / 60})
    return [*rows, {"part": "paper", "what": "all of it", "minutes": (whole + looked) / 60}]


def seconds_to_validate(config: Config, store: Store, *, frames: int = 4) -> float:
    """Seconds a frame, stage 2."""
    place = Place(device=own_device(config.training))
    run, numbers = begin(config, STAGES["stage2"], place=place, start=None), store.train[:frames]
    validate(run, store, numbers[:1], place=place)
    start = time.perf_counter()
    validate(run, store, numbers, place=place)
    return (time.perf_counter() - start) / len(numbers)


def memory(config: Config, store: Store, args: argparse.Namespace) -> list[Row]:
    """Peak of CUDA's allocator in stage 3, with batches of 1 and 8."""
    if not torch.cuda.is_available():
        return [{"part": "memory", "what": "needs CUDA"}]
    rows = []
    for batch in (1, 8):
        for recompute in (False, True):
            changes = {"stage3.batch_size": batch, "stage3.accumulate": 1, "training.recompute": recompute}
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            rate = statistics.median(plain(with_overrides(config, changes), "stage3", store, args))
            gigabytes = torch.cuda.max_memory_allocated() / 1e9
            what = f"stage 3, batch {batch}, {'recomputed' if recompute else 'kept'}"
            rows.append({"part": "memory", "what": what, "images/s": rate, "GB": gigabytes})
    return rows


def machine() -> Row:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()
    return {"device": name, "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


def measure(part: str, config: Config, store: Store, args: argparse.Namespace) -> list[Row]:
    match part:
        case "loader":
            return loader(config, store, args)
        case "ray":
            from pipeline.__main__ import ENVIRONMENT  # noqa: PLC0415

            os.environ.update(ENVIRONMENT)
            from pipeline.cluster import connected  # noqa: PLC0415

            with connected():
                return by_turns(
                    {
                        "in a Ray Train worker": lambda: in_ray(config, "stage1", store, args),
                        "plain torch": lambda: plain(config, "stage1", store, args),
                    },
                    "ray",
                    turns=args.turns,
                )
        case "tuned":
            naive = with_overrides(config, NAIVE)
            ways = {
                "the preset's": lambda: plain(config, "stage2", store, args),
                "float32, contiguous, uncompiled": lambda: plain(naive, "stage2", store, args),
            }
            return by_turns(ways, "tuned", turns=2)
        case "paper":
            return paper(config, store, args)
    return memory(config, store, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["loader", "ray", "tuned", "paper", "memory"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=["loader", "ray"])
    parser.add_argument("--preset", choices=PRESETS, help="paper for --parts paper alone, else demo")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3, help="how often Ray and plain torch take turns")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    changes = {"data.cache_features": False, **dict(parse_override(text) for text in args.overrides)}
    config = with_overrides(PRESETS[args.preset or ("paper" if args.parts == ["paper"] else "demo")](), changes)
    if config.training.num_workers != 1:
        parser.error(
            f"training.num_workers is {config.training.num_workers}; allowed here: 1, beside one process of plain torch"
        )
    print(f"preset {config.preset}, {config.network.input_size} x {config.network.input_size}; ", end="")
    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.store is None:
            write_rooms(Path(folder) / "nyu", num_train=16, num_test=1, seed=0)
            store = prepare(Path(folder) / "nyu", Path(folder) / "store")
        else:
            store = Store.open(args.store.absolute())
        rows = []
        for part in args.parts:
            for row in measure(part, config, store, args):
                rows.append(row)
                numbers = {name: f"{value:.3g}" for name, value in row.items() if isinstance(value, float)}
                print(f"{row['part']:<8}{row['what']:<40}" + "  ".join(f"{n} {v}" for n, v in numbers.items()), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(), "preset": config.preset, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
