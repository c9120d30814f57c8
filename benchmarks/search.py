"""Speed and memory of a search, and what early stopping does: as ratios in one run.

    python benchmarks/search.py [--parts naive scaling memory] [--size 257] [--frames 12] [--trials 8] [--set PATH=VALUE]...
                                [--json FILE]
    python benchmarks/search.py --parts stopping --study RUN/search/STUDY [--seeds 20]

- naive:    a trial of new weights on what the trials before it left, beside network and CRF from scratch, in one process.
- scaling:  trials an hour, one and two trials of one thread at a time; overhead: the share of a process's time outside
            the trial.
- memory:   proportional set size (shared pages counted once) of four trial processes at once, beside the unaries' size.
- stopping: trials of a finished study, replayed in shuffled orders with other folds: how much work is saved, and how often
            the winner changes.

The first three work on rooms that are made up and a network with random weights: times depend on sizes alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from jointseg.cross_validation import draw_folds, is_behind, mean_iou
from jointseg.data.rooms import write_rooms
from jointseg.data.store import Store, prepare
from jointseg.evaluation import compute_unaries, refined_labels
from jointseg.hardware import cpu_model
from jointseg.model import build_crf, build_model
from jointseg.presets import demo
from jointseg.settings import parse_override, with_overrides
from pipeline.study.samplers import Asker
from pipeline.study.spaces import load_space, start_points
from pipeline.study.study import run_study
from pipeline.study.trial import TrialJob, TrialRunner
from pipeline.study.trial_record import FINISHED, LOG, confusion_file, read_confusions, read_trials
from pipeline.study.unaries import ARRAYS, UnaryCache, row_of, rows_of
from pipeline.workspace import SETTINGS

Row = dict[str, Any]


def made_up(args: argparse.Namespace, folder: Path) -> TrialJob:
    """A job on rooms, its unaries there."""
    settings = {"space": "crf_weights", "trials": args.trials, "startup_trials": 2, "folds": 2, "filter_cache": 8192}
    changes = {"network.input_size": args.size, "network.width": 1.0, "network.resize": "stretch"}
    changes |= {f"search.{name}": value for name, value in settings.items()}
    config = with_overrides(demo(), {**changes, **dict(map(parse_override, args.overrides))})
    write_rooms(folder / "nyu", num_train=args.frames + 1, num_test=1, seed=0)
    store = prepare(folder / "nyu", folder / "store")
    frames, model = store.train[: args.frames], build_model(config)
    (folder / "unaries").mkdir()
    kept = [compute_unaries(model, store.frame(number), config, device=torch.device("cpu")) for number in frames]
    for name in ARRAYS:
        np.save(folder / "unaries" / f"{name}.npy", np.stack([rows_of(one)[name] for one in kept]))
    cache = UnaryCache(folder / "unaries", frames)
    return TrialJob(config, store.path, cache, tuple(place % 2 for place in range(args.frames)), folder / "study", folder)


def naive(job: TrialJob) -> list[Row]:
    """CPU seconds a frame, by turns, three times each: from scratch on four frames, trials on all. Of one thread they are
    what a quiet machine's clock shows, and other work beside it does not count.
    """
    torch.set_num_threads(1)
    clock = time.process_time

    def trial(number: int, point: Row) -> float:
        started = clock()
        assert runner.run(number, point)["error"] is None
        return (clock() - started) / len(places)

    model, store = build_model(job.config).eval(), Store.open(job.store)
    few, places = range(min(4, len(job.cache.frames))), range(len(job.cache.frames))
    runner = TrialRunner(job)
    runner.run(0, {})
    times: dict[str, list[float]] = {"from scratch": [], "trial, new bandwidths": [], "trial, new weights": [], "CRF alone": []}
    for turn in range(3):
        names = ("theta_alpha", "theta_beta", "theta_gamma", "theta_zeta", "theta_tau")
        moved = {f"crf.{name}": getattr(job.config.crf, name) * (1.1 + turn / 10) for name in names}
        started = clock()
        for place in few:
            config = with_overrides(job.config, {**moved, "crf.w_depth": 1.0 + turn})
            unaries = compute_unaries(model, store.frame(job.cache.frames[place]), config, device=torch.device("cpu"))
            refined_labels(unaries, build_crf(config).eval(), size=runner.labels[place].shape)
        times["from scratch"].append((clock() - started) / len(few))
        times["trial, new bandwidths"].append(trial(1, moved))
        times["trial, new weights"].append(trial(2, {**moved, "crf.w_depth": 2.0 + turn}))
        crf = build_crf(with_overrides(job.config, {**moved, "crf.w_depth": 3.0 + turn})).eval()
        inputs = [row_of(runner.arrays, place) for place in places]
        ready = [
            runner.prepared.prepare(place, crf, image=own.image[None], depth=own.depth[None])
            for place, own in zip(places, inputs, strict=True)
        ]
        started = clock()
        with torch.no_grad():
            for own, prepared in zip(inputs, ready, strict=True):
                crf(own.logits[None], prepared=prepared)
        times["CRF alone"].append((clock() - started) / len(places))
    medians = {name: statistics.median(own) for name, own in times.items()}
    base = medians["from scratch"]
    return [{"part": "naive", "what": name, "CPU s/frame": own, "ratio": base / own} for name, own in medians.items()]


def study(job: TrialJob, concurrent: int, folder: Path, *, trials: int | None = None) -> tuple[float, list[Row]]:
    """Wall seconds of a study, and its trials."""
    given = {"search.concurrent": concurrent, "search.trials": trials or job.config.search.trials}
    config = with_overrides(job.config, given)
    space = load_space(config)
    own = TrialJob(config, job.store, job.cache, job.folds, folder, job.out)
    asker = Asker(config.search, space, first=start_points(space, config))
    started = time.perf_counter()
    lines = run_study(own, asker, tell=lambda _: None)
    return time.perf_counter() - started, lines


def span(lines: list[Row]) -> float:
    """Seconds from the first trial's start to the last one's end: without the start of processes."""
    starts = [time_of(line) for line in lines]
    return max(start + line["seconds"] for start, line in zip(starts, lines, strict=True)) - min(starts)


def time_of(line: Row) -> float:
    return datetime.fromisoformat(line["started"]).timestamp()


def scaling(job: TrialJob, folder: Path) -> list[Row]:
    rows: list[Row] = []
    for turn in range(2):
        for concurrent in (1, 2):
            _, lines = study(job, concurrent, folder / f"scaling-{turn}-{concurrent}")
            rows.append(
                {"concurrent": concurrent, "span": span(lines), "busy": sum(line["seconds"] for line in lines), "n": len(lines)}
            )
    found = []
    for concurrent in (1, 2):
        own = [row for row in rows if row["concurrent"] == concurrent]
        hour = statistics.median(3600 * row["n"] / row["span"] for row in own)
        # Of a busy process: the wait between two of its trials.
        idle = statistics.median(1 - row["busy"] / (row["span"] * concurrent) for row in own)
        found.append({"part": "scaling", "what": f"{concurrent} at a time", "trials/hour": hour, "outside trials": idle})
    for row in found:
        row["ratio"] = row["trials/hour"] / found[0]["trials/hour"]
    return found


def memory(job: TrialJob, folder: Path) -> list[Row]:
    peaks: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            peaks.append(sum(proportional(process) for process in trial_processes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    study(job, 4, folder / "memory", trials=8)
    ended.set()
    watcher.join()
    unaries = sum((job.cache.folder / f"{name}.npy").stat().st_size for name in ARRAYS)
    return [{"part": "memory", "what": "4 trials at once", "MiB": max(peaks) / 2**20, "unaries MiB": unaries / 2**20}]


def trial_processes() -> list[Path]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::ResourceTrainable"):  # Tune's name for any trial
                found.append(folder)
        except OSError:
            continue
    return found


def proportional(process: Path) -> int:
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def stopping(folder: Path, seeds: int) -> list[Row]:
    """Trials in a shuffled order, the paper's first, in batches as the study asks for them."""
    settings = json.loads((folder / SETTINGS).read_text())
    absent, batch, num_folds = (
        settings["config"][name] for name in ("evaluation.absent_classes", "search.batch", "search.folds")
    )
    numbers = sorted(number for number, line in read_trials(folder / LOG).items() if line["state"] == FINISHED)
    confusion_TNCC = np.stack([read_confusions(confusion_file(folder, number))[1] for number in numbers])
    scores = mean_iou(confusion_TNCC.sum(1), absent=absent)
    changed, saved, lost = 0, [], []
    for seed in range(seeds):
        folds = np.array(draw_folds(confusion_TNCC.shape[1], num_folds=num_folds, seed=seed))
        order = [0, *np.random.default_rng(seed).permutation(range(1, len(numbers))).tolist()]
        done: dict[int, bool] = {}
        frames = 0
        for at, trial in enumerate(order):
            told = order[: max(0, (at // batch - 1) * batch)]
            whole = [one for one in told if done[one]]
            best = max(whole, key=lambda one: scores[one]) if whole else None
            seen = np.zeros(len(folds), bool)
            for fold in range(num_folds):
                seen |= folds == fold
                rivals = best is not None and fold < num_folds - 1
                if rivals and is_behind(confusion_TNCC[trial][seen], confusion_TNCC[best][seen], absent=absent, seed=seed):
                    break
            done[trial] = bool(seen.all())
            frames += int(seen.sum())
        winner = max((one for one in order if done[one]), key=lambda one: scores[one])
        changed += winner != int(np.argmax(scores))
        lost.append(float(scores.max() - scores[winner]))
        saved.append(1 - frames / (len(order) * len(folds)))
    row = {"part": "stopping", "what": f"{seeds} seeds, {len(numbers)} trials", "saved": statistics.median(saved)}
    return [{**row, "winners changed": changed, "mean IoU lost, most": max(lost)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["naive", "scaling", "memory", "stopping"], default=["naive", "scaling", "memory"]
    )
    parser.add_argument("--size", type=int, default=257)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--study", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    machine = f"{cpu_model()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{machine}, size {args.size}")
    rows: list[Row] = []

    def add(new: list[Row]) -> None:
        rows.extend(new)
        for row in new:
            print(
                "  ".join(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{value!s:<22}" for name, value in row.items()
                ),
                flush=True,
            )

    if "stopping" in args.parts:
        if args.study is None:
            parser.error("--parts stopping needs --study, the folder of a finished study")
        add(stopping(args.study, args.seeds))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(args.parts) & {"naive", "scaling", "memory"}:
            job = made_up(args, folder)
        if "naive" in args.parts:
            add(naive(job))
        for part, measure in (("scaling", scaling), ("memory", memory)):
            if part in args.parts:
                ray.init(num_cpus=4 if part == "memory" else 2, log_to_driver=False, include_dashboard=False)
                add(measure(job, folder))
                ray.shutdown()
    if args.json:
        args.json.write_text(json.dumps([{**row, "size": args.size, "machine": machine} for row in rows], indent=1))


if __name__ == "__main__":
    main()
