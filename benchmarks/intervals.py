"""How often the interval of a gain holds the gain, where frames resemble their neighbours: on the frames that a score counted.

    python benchmarks/intervals.py RUN/search/scores/test-KEY.json [--frames 100] [--draws 200] [--absent RULE]

All the frames of the score stand for the world, and their difference for the truth. Subsets of about `--frames` are drawn from
them, of single frames or of whole runs of consecutive numbers, as `data.validation_by` has it; each gets an interval over
frames and one over such runs. A 95 % interval should hold the truth in 95 of 100 subsets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jointseg.cross_validation import Interval, mean_iou, paired_bootstrap
from jointseg.data.views import consecutive_runs
from pipeline.score import PAPER
from pipeline.study.trial_record import read_confusions


def subset(runs: Sequence[Sequence[int]], size: int, draw: np.random.Generator, *, by: str) -> tuple[list[int], list[int]]:
    """Places of frames, and the run of each."""
    run_of = [number for number, run in enumerate(runs) for _ in run]
    if by == "frame":
        places = draw.choice(len(run_of), size, replace=False).tolist()
        return places, [run_of[place] for place in places]
    places, groups = [], []
    for number in draw.permutation(len(runs)).tolist():
        if len(places) < size:
            places += list(runs[number])
            groups += [number] * len(runs[number])
    return places, groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("score", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--absent", choices=["ignore", "zero", "gt_present"], help="rule for absent classes; else the score's")
    args = parser.parse_args()
    record = json.loads(args.score.read_text())
    absent = args.absent or record["absent_classes"]
    numbered = consecutive_runs(record["frames"])
    ends = np.cumsum([0, *map(len, numbered)]).tolist()
    runs = [range(first, last) for first, last in pairwise(ends)]

    def matrices(name: str) -> NDArray[np.int64]:
        return read_confusions(args.score.parent / record["confusions"][name])[1]

    paper_NCC = matrices(PAPER)
    print(f"{len(record['frames'])} frames in {len(runs)} runs; subsets of about {args.frames}, {args.draws} draws; {absent}")
    for name in record["settings"]:
        if name == PAPER:
            continue
        own_NCC = matrices(name)
        truth = float(mean_iou(own_NCC.sum(0), absent=absent) - mean_iou(paper_NCC.sum(0), absent=absent))
        for by in ("frame", "scene"):
            draw = np.random.default_rng(0)
            found: dict[str, list[Interval]] = {"frames": [], "runs": []}
            for seed in range(args.draws):
                places, groups = subset(runs, args.frames, draw, by=by)
                for over, own in (("frames", None), ("runs", groups)):
                    found[over].append(
                        paired_bootstrap(
                            own_NCC[places], paper_NCC[places], absent=absent, num_resamples=400, seed=seed, groups=own
                        )
                    )
            gains = [100 * one.difference for one in found["frames"]]
            told = [f"gains {np.mean(gains):+.2f} ± {np.std(gains):.2f}"]
            told += [
                f"over {over}: holds it {np.mean([one.low <= truth <= one.high for one in own]):.2f}, "
                f"width {100 * np.mean([one.high - one.low for one in own]):.2f}"
                for over, own in found.items()
            ]
            print(f"{name}: {100 * truth:+.2f}; drawn by {by}; {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
