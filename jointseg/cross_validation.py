"""Folds of a subset of images, and what scores over them are worth: standard error, nested estimate, paired bootstrap.

Not here: how images are scored (evaluation.py), what is chosen between (pipeline/).
"""

# T trials, N images, K folds, C classes, R resamples

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointseg.errors import InputError
from jointseg.metrics import Absent

_RESAMPLES_AT_ONCE = 256
_STOP_RESAMPLES, _STOP_LEVEL = 400, 0.7  # docs/search.md: what other levels save and cost
_STOP_UNITS = 3  # of one or two, resamples say nothing: equal sides were stopped in 48 and 27 % of draws, at a level for 15 %


class Estimate(NamedTuple):
    """A mean over folds and its standard error."""

    mean: float
    standard_error: float


class Nested(NamedTuple):
    """What choosing between trials is worth on images that the choice did not see."""

    score: float
    """Mean IoU pooled over all folds, each under the trial that was best on the others."""
    folds: tuple[float, ...]
    """Mean IoU of each fold under that trial."""
    chosen: tuple[int, ...]
    """Which trial that was, by its place."""


class Interval(NamedTuple):
    """A difference of two mean IoU on the same images, and where its bootstrap lies."""

    difference: float
    low: float
    high: float


def draw_grouped_folds(groups: Sequence[int], *, num_folds: int, seed: int) -> tuple[int, ...]:
    """The fold 0..K-1 of each image, images of a group in one: the larger groups first, each into the smallest fold so far.

    For images that resemble each other, such as frames of one room: what was chosen on some says too much of the others.

    Args:
        groups: the group of each image.
        num_folds: K.
        seed: of the order among groups of one size.

    Raises:
        InputError: there are fewer groups than folds.
    """
    names, sizes = np.unique(np.asarray(groups), return_counts=True)
    if num_folds > len(names):
        raise InputError(f"{num_folds} folds of {len(names)} groups; allowed: as many folds as groups, or fewer")
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of, filled = {}, np.zeros(num_folds, np.int64)
    for place in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold = int(filled.argmin())
        fold_of[names[place]] = fold
        filled[fold] += sizes[place]
    return tuple(fold_of[group] for group in groups)


def draw_folds(num_images: int, *, num_folds: int, seed: int, strata: Sequence[str] | None = None) -> tuple[int, ...]:
    """The fold 0..K-1 of each image. Folds differ by at most one image, and by at most one of each stratum.

    Args:
        num_images: N.
        num_folds: K.
        seed: of the shuffle within each stratum.
        strata: the kind of each image, such as its scene type; None: all are of one kind.

    Raises:
        InputError: there are fewer images than folds.
    """
    if num_folds > num_images:
        raise InputError(f"{num_folds} folds of {num_images} frames; allowed: as many folds as frames, or fewer")
    kinds = ["" for _ in range(num_images)] if strata is None else list(strata)
    assert len(kinds) == num_images, f"{len(kinds)} strata for {num_images} images"
    generator = np.random.default_rng(seed)
    folds, dealt = np.empty(num_images, np.int64), 0
    for kind in sorted(set(kinds)):
        members = generator.permutation([image for image, own in enumerate(kinds) if own == kind])
        folds[members] = (dealt + np.arange(len(members))) % num_folds  # on where the last stratum ended
        dealt += len(members)
    return tuple(folds.tolist())


def mean_iou(confusion: NDArray[Any], *, absent: Absent) -> NDArray[np.float64]:
    """Mean IoU of each of many confusion matrices: (..., C, C) to (...). NaN without a pixel.

    As `SegmentationSums.mean_iou`, for all at once.
    """
    iou, kept, scored = _iou_by_class(_counts(confusion), absent)
    return _mean_over(iou, kept, scored)


def _counts(confusion: NDArray[Any]) -> NDArray[Any]:
    """All that IoU needs of (..., C, C), and that adds up as matrices do: of each class the hits, the true and the predicted
    pixels, (..., 3, C).
    """
    return np.stack([np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), confusion.sum(-2)], -2)


def _iou_by_class(counts: NDArray[Any], absent: Absent) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """IoU of each class (..., C), whether it enters the mean (..., C), and whether there is a pixel at all (...)."""
    hits, truth, predicted = np.moveaxis(counts, -2, 0)
    union = truth + predicted - hits
    kept = {"ignore": union > 0, "zero": np.ones_like(union, bool), "gt_present": truth > 0}[absent]
    iou = np.divide(hits, union, out=np.zeros(union.shape), where=union > 0)
    return iou, kept, truth.sum(-1) > 0


def _mean_over(iou: NDArray[np.float64], kept: NDArray[np.bool_], scored: NDArray[np.bool_]) -> NDArray[np.float64]:
    count = np.where(scored, kept.sum(-1), 0)
    mean: NDArray[np.float64] = np.divide((iou * kept).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean


def fold_sums(confusion_NCC: NDArray[np.int64], folds: Sequence[int], *, num_folds: int) -> NDArray[np.int64]:
    """(K, C, C): the images' matrices added up within each fold."""
    sums = np.zeros((num_folds, *confusion_NCC.shape[1:]), np.int64)
    np.add.at(sums, np.asarray(folds), confusion_NCC)
    return sums


def over_folds(fold_scores: Sequence[float]) -> Estimate:
    """Mean over folds, and its standard error: their sample deviation over the root of their number."""
    scores = np.asarray(fold_scores, dtype=np.float64)
    return Estimate(float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(len(scores))))


def nested(fold_sums_TKCC: NDArray[np.int64], *, absent: Absent) -> Nested:
    """Choose the best trial on all folds but one and score it on that one, for each fold.

    The best trial's own score minus this is what picking the best of T adds by chance, where the T were drawn without looking
    at scores. A sampler that goes by them has seen every fold: then it is the least that picking adds. Among equals the first
    trial is chosen.
    """
    K = fold_sums_TKCC.shape[1]
    total_TCC = fold_sums_TKCC.sum(1)
    chosen, left_out = [], []
    for fold in range(K):
        scores_T = mean_iou(total_TCC - fold_sums_TKCC[:, fold], absent=absent)
        chosen.append(int(np.argmax(np.where(np.isnan(scores_T), -1.0, scores_T))))
        left_out.append(fold_sums_TKCC[chosen[-1], fold])
    left_out_KCC = np.stack(left_out)
    folds = mean_iou(left_out_KCC, absent=absent)
    return Nested(float(mean_iou(left_out_KCC.sum(0), absent=absent)), tuple(folds.tolist()), tuple(chosen))


def is_behind(
    seen_NCC: NDArray[np.int64],
    best_NCC: NDArray[np.int64],
    *,
    absent: Absent,
    seed: int,
    groups: Sequence[int] | None = None,
) -> bool:
    """Whether one side lies behind another on the same images by more than resampling them explains; never on fewer than three
    images, or groups of them.

    Args:
        seen_NCC: its matrix of each image.
        best_NCC: the other side's, in the same order.
        absent: as in `mean_iou`.
        seed: of the resamples.
        groups: as in `paired_bootstrap`.
    """
    if len(seen_NCC if groups is None else set(groups)) < _STOP_UNITS:
        return False
    found = paired_bootstrap(
        seen_NCC, best_NCC, absent=absent, num_resamples=_STOP_RESAMPLES, seed=seed, level=_STOP_LEVEL, groups=groups
    )
    return found.high < 0


def paired_bootstrap(
    confusion_NCC: NDArray[np.int64],
    other_NCC: NDArray[np.int64],
    *,
    absent: Absent,
    num_resamples: int,
    seed: int,
    level: float = 0.95,
    groups: Sequence[int] | None = None,
) -> Interval:
    """Pooled mean IoU of the first minus that of the second on the same images, with a percentile interval over images.

    A resample draws N images with replacement, the same for both, and pools their matrices. Where images resemble each other,
    as frames of one scene do, it draws as many groups of them as there are: intervals over images would be too narrow.

    In a resample both sides average over the classes that are in its truth: with its own, a stray pixel of a class that the
    resample happens to lack would cost the side that has it a whole class. Classes that are in no image's truth enter each
    side's mean as they do over all images. (benchmarks/intervals.py: how often an interval holds what it should.)

    Without a labelled pixel in any image all three numbers are NaN.

    Args:
        confusion_NCC: one side's matrix of each image.
        other_NCC: the other side's, in the same order.
        absent: as in `mean_iou`.
        num_resamples: R.
        seed: of the draws.
        level: share of the resamples inside the interval.
        groups: of each image, at least two; None: each is one of its own.
    """
    assert confusion_NCC.shape == other_NCC.shape, f"{confusion_NCC.shape} beside {other_NCC.shape}"
    N, C = confusion_NCC.shape[:2]
    assert groups is None or (len(groups) == N and len(set(groups)) > 1), f"groups {groups} of {N} images"
    # Whole numbers below 2^53: products and sums in float64 are exact, in whatever order.
    both_NX = np.stack([_counts(confusion_NCC), _counts(other_NCC)], axis=1).reshape(N, -1).astype(np.float64)

    if groups is not None:
        names, group_N = np.unique(np.asarray(groups), return_inverse=True)
        by_group = np.zeros((len(names), both_NX.shape[1]))
        np.add.at(by_group, group_N, both_NX)
        N, both_NX = len(names), by_group

    all_23C = both_NX.sum(0).reshape(2, 3, C)
    _, kept_2C, _ = _iou_by_class(all_23C, absent)
    there_2C = all_23C[:, 1] > 0

    def differences(times_RN: NDArray[Any]) -> NDArray[np.float64]:
        drawn_R23C = (times_RN @ both_NX).reshape(-1, 2, 3, C)
        iou_R2C, _, scored_R2 = _iou_by_class(drawn_R23C, absent)
        scores_R2 = _mean_over(iou_R2C, np.where(there_2C, drawn_R23C[:, :, 1] > 0, kept_2C), scored_R2)
        return scores_R2[:, 0] - scores_R2[:, 1]

    generator = np.random.default_rng(seed)
    drawn = []
    for first in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, num_resamples - first)
        drawn.append(differences(generator.multinomial(N, np.full(N, 1 / N), size=count).astype(np.float64)))
    edge = (1 - level) / 2
    found = np.concatenate(drawn)
    found = found[~np.isnan(found)]  # of resamples without a labelled pixel
    low, high = np.quantile(found, [edge, 1 - edge]) if found.size else (math.nan, math.nan)
    return Interval(float(differences(np.ones((1, N)))[0]), float(low), float(high))
