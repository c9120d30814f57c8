"""How much of the optimism of picking the best of many trials the nested estimate takes away, where the truth is known.

A made-up world in which no setting is better than another: the gain of each image is a smooth random function of the settings,
of mean 0 over images that were not drawn. What a study finds above 0 is chance alone.

    python benchmarks/nested.py --seeds 16
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jointseg.cross_validation import draw_folds, fold_sums, mean_iou, nested, paired_bootstrap
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.study.samplers import Asker
from pipeline.study.spaces import Point, Space, load_space, start_points
from pipeline.study.trial_record import FINISHED

IMAGES, FOLDS, WAVES = 100, 5, 64
PIXELS, HALF, SPREAD = 1000, 500, 100
"""Of each class and image; right under a gain of 0; and more for each unit of gain."""


def world(space: Space, seed: int) -> Callable[[Point], NDArray[np.int64]]:
    """What gives the confusion matrices (images, 2, 2) at a point."""
    assert space.distributions is not None
    ranges = {name.replace("/", "."): own for name, own in space.distributions.items() if hasattr(own, "low")}
    draw = np.random.default_rng(1000 + seed)
    slopes, phases = draw.normal(0, 2, (WAVES, len(ranges))), draw.uniform(0, 2 * np.pi, WAVES)
    heights = draw.normal(0, math.sqrt(2 / WAVES), (IMAGES, WAVES))

    def place(name: str, value: float) -> float:
        own = ranges[name]
        low, high, at = (math.log(each) if own.log else each for each in (own.low, own.high, value))
        return (at - low) / (high - low)

    def confusion(point: Point) -> NDArray[np.int64]:
        gains = heights @ np.cos(slopes @ np.array([place(name, point[name]) for name in ranges]) + phases)
        right = np.rint(HALF + SPREAD * gains).clip(0, PIXELS).astype(np.int64)
        return np.stack([np.array([[hits, PIXELS - hits], [PIXELS - hits, hits]]) for hits in right])

    return confusion


def study(sampler: str, seed: int, trials: int) -> tuple[float, float, bool, bool]:
    """Mean IoU above the truth of the best trial and of the nested estimate, and whether the interval of each lies above 0."""
    changes = {"sampler": sampler, "space": "crf", "seed": seed, "trials": trials}
    config = with_overrides(demo(), {f"search.{name}": value for name, value in changes.items()})
    space = load_space(config)
    asker, confusion_of = Asker(config.search, space, first=start_points(space, config)), world(space, seed)
    found: list[NDArray[np.int64]] = []
    told = 0
    while len(found) < trials:
        for number in range(told, max(0, len(found) - config.search.batch)):
            score = float(mean_iou(found[number].sum(0), absent="ignore"))
            asker.tell(number, {"state": FINISHED, "mean_iou": score, "fold_scores": [score]})
            told = number + 1
        found += [
            confusion_of(asker.ask(number)) for number in range(len(found), min(len(found) + config.search.batch, trials))
        ]
    scores = [float(mean_iou(own.sum(0), absent="ignore")) for own in found]
    folds = draw_folds(IMAGES, num_folds=FOLDS, seed=seed)
    left_out = nested(np.stack([fold_sums(own, folds, num_folds=FOLDS) for own in found]), absent="ignore")
    best = int(np.argmax(scores))
    unseen = np.stack([found[left_out.chosen[fold]][image] for image, fold in enumerate(folds)])
    gains = [paired_bootstrap(side, found[0], absent="ignore", num_resamples=300, seed=0) for side in (found[best], unseen)]
    truth = HALF / (2 * PIXELS - HALF)
    return scores[best] - truth, left_out.score - truth, gains[0].low > 0, gains[1].low > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    args = parser.parse_args()
    for sampler in args.samplers:
        results = np.array([study(sampler, seed, args.trials) for seed in range(args.seeds)])
        (best, after, *_), errors = results.mean(0), results.std(0, ddof=1) / math.sqrt(args.seeds)
        taken, (apart, both) = 1 - after / best, results[:, 2:].sum(0).astype(int)
        print(
            f"{sampler}: best {best:+.4f} ± {errors[0]:.4f}, nested {after:+.4f} ± {errors[1]:.4f}: {taken:.0%} of the "
            f"optimism taken away; of {args.seeds} intervals of the best {apart} lie above 0, of the nested estimate's {both}",
            flush=True,
        )


if __name__ == "__main__":
    main()
