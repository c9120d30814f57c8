"""Laws of folds and of what scores over them are worth, with numbers worked out by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jointseg.cross_validation import (
    draw_folds,
    draw_grouped_folds,
    fold_sums,
    is_behind,
    mean_iou,
    nested,
    over_folds,
    paired_bootstrap,
)
from jointseg.errors import InputError
from jointseg.metrics import SegmentationSums

RIGHT = np.array([[4, 0], [0, 4]])  # mean IoU 1
HALF = np.array([[2, 2], [0, 4]])  # (2/4 + 4/6) / 2 = 7/12
WRONG = np.array([[0, 4], [4, 0]])  # mean IoU 0
ABSENT = pytest.mark.parametrize("absent", ["ignore", "zero", "gt_present"])


def shared_out(sizes):
    return max(sizes) - min(sizes) <= 1


def without_a_class(seed, images):
    """Class 3 is nowhere, and class 2 is only predicted."""
    matrices = np.random.default_rng(seed).integers(0, 9, (images, 4, 4))
    matrices[:, :, 3] = matrices[:, 2:] = 0
    return matrices


# Folds


@pytest.mark.parametrize(("images", "folds"), [(10, 5), (11, 5), (3, 3), (100, 7)])
def test_folds_differ_by_at_most_one_image_and_none_is_empty(images, folds):
    sizes = Counter(draw_folds(images, num_folds=folds, seed=0))
    assert set(sizes) == set(range(folds))
    assert shared_out(sizes.values())


def test_every_stratum_is_shared_out_evenly_and_so_is_the_whole():
    strata = ["kitchen"] * 7 + ["office"] * 12 + ["attic"] * 2
    folds = draw_folds(len(strata), num_folds=5, seed=3, strata=strata)
    assert shared_out(Counter(folds).values())
    for kind in set(strata):
        sizes = Counter(dict.fromkeys(range(5), 0))
        sizes.update(fold for fold, own in zip(folds, strata, strict=True) if own == kind)
        assert shared_out(sizes.values()), kind


def test_folds_are_the_seeds():
    assert draw_folds(20, num_folds=4, seed=1) == draw_folds(20, num_folds=4, seed=1)
    assert draw_folds(20, num_folds=4, seed=1) != draw_folds(20, num_folds=4, seed=2)


def test_fewer_frames_than_folds_are_refused():
    with pytest.raises(InputError, match="5 folds of 4 frames; allowed: as many folds as frames, or fewer"):
        draw_folds(4, num_folds=5, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_in_one_fold_and_folds_are_as_even_as_that_allows(seed):
    sizes = [30, 9, 9, 8, 8, 7, 6, 5, 5, 4, 3, 2, 2, 1, 1]  # of the validation frames' scenes
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    folds = draw_grouped_folds(groups, num_folds=5, seed=seed)
    assert all(len({folds[place] for place, own in enumerate(groups) if own == group}) == 1 for group in set(groups))
    filled = sorted(Counter(folds).values())
    assert filled[-1] == 30
    assert filled[-2] - filled[0] <= 1
    assert folds == draw_grouped_folds(groups, num_folds=5, seed=seed)


def test_groups_of_one_are_shared_out_evenly_and_by_the_seed():
    drawn = [draw_grouped_folds(range(11), num_folds=4, seed=seed) for seed in range(3)]
    assert all(sorted(Counter(folds).values()) == [2, 3, 3, 3] for folds in drawn)
    assert len(set(drawn)) > 1


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(InputError, match="3 folds of 2 groups; allowed: as many folds as groups, or fewer"):
        draw_grouped_folds([7, 7, 9, 9], num_folds=3, seed=0)


# Scores


@ABSENT
def test_mean_iou_of_many_is_that_of_each(absent):
    matrices = np.random.default_rng(0).integers(0, 3, (6, 5, 5)) * (np.arange(5) < 4)  # the last class is never predicted
    matrices[0], matrices[1, 4] = 0, 0
    each = [SegmentationSums(matrix).mean_iou(absent=absent) for matrix in matrices]
    assert mean_iou(matrices.reshape(2, 3, 5, 5), absent=absent).ravel() == pytest.approx(each, nan_ok=True)
    assert np.isnan(each[0])


def test_by_hand():
    assert mean_iou(np.stack([RIGHT, HALF, WRONG]), absent="ignore") == pytest.approx([1, 7 / 12, 0])


def test_the_folds_sums_add_up_to_the_whole():
    images = np.random.default_rng(0).integers(0, 9, (7, 3, 3))
    sums = fold_sums(images, (0, 1, 2, 0, 1, 2, 0), num_folds=3)
    assert (sums.sum(0) == images.sum(0)).all()
    assert (sums[1] == images[1] + images[4]).all()


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_the_folds():
    mean, error = over_folds([0.1, 0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.25)
    assert error == pytest.approx(np.sqrt(0.05 / 3) / 2)


# The nested estimate


def test_a_trial_that_is_best_everywhere_is_chosen_everywhere_and_its_score_is_its_own():
    found = nested(np.array([[WRONG] * 3, [RIGHT] * 3, [HALF] * 3]), absent="ignore")
    assert found == (1.0, (1.0, 1.0, 1.0), (1, 1, 1))


def test_a_choice_never_sees_the_fold_that_it_is_scored_on():
    """Each trial is right on one fold alone: on the others another one is chosen, which is wrong on this."""
    lucky = np.array([[RIGHT, WRONG, WRONG], [WRONG, RIGHT, WRONG], [WRONG, WRONG, RIGHT]])
    found = nested(lucky, absent="ignore")
    assert found.score == 0
    assert found.chosen == (1, 0, 0)
    assert mean_iou(lucky.sum(1), absent="ignore").max() > 0


def test_a_trial_without_a_pixel_elsewhere_is_not_chosen():
    empty = np.zeros((2, 2), np.int64)
    assert nested(np.array([[empty, RIGHT], [HALF, HALF]]), absent="ignore").chosen == (0, 1)


@ABSENT
def test_a_single_trial_is_worth_what_it_scores_whatever_counts_as_absent(absent):
    folds = without_a_class(2, 3)
    found = nested(folds[None], absent=absent)
    assert found.score == pytest.approx(float(mean_iou(folds.sum(0), absent=absent)))
    assert found.folds == pytest.approx(mean_iou(folds, absent=absent).tolist())


# The bootstrap


def interval(one, other, *, resamples=400, seed=0):
    return paired_bootstrap(np.array(one), np.array(other), absent="ignore", num_resamples=resamples, seed=seed)


def test_the_same_on_both_sides_differs_by_nothing():
    found = interval([RIGHT, HALF, WRONG], [RIGHT, HALF, WRONG])
    assert found == (0, 0, 0)


def test_the_difference_is_of_pooled_scores():
    found = interval([RIGHT, HALF], [HALF, HALF])
    assert found.difference == pytest.approx((6 / 8 + 8 / 10) / 2 - 7 / 12)


@ABSENT
def test_the_difference_is_that_of_the_mean_ious_whatever_counts_as_absent(absent):
    one, other = without_a_class(0, 12), without_a_class(1, 12)
    found = paired_bootstrap(one, other, absent=absent, num_resamples=200, seed=0)
    expected = mean_iou(one.sum(0), absent=absent) - mean_iou(other.sum(0), absent=absent)
    assert found.difference == pytest.approx(float(expected))
    assert found.low < found.difference < found.high


def test_what_is_better_on_every_image_is_beyond_noise_and_what_wins_half_of_them_is_not():
    assert interval([RIGHT] * 8, [HALF] * 8).low > 0
    found = interval([RIGHT, WRONG] * 4, [WRONG, RIGHT] * 4)
    assert found.low < 0 < found.high


def over_groups(one, other, groups):
    return paired_bootstrap(np.array(one), np.array(other), absent="ignore", num_resamples=400, seed=0, groups=groups)


def test_copies_of_an_image_in_one_group_tell_no_more_than_the_image():
    one, other = [RIGHT, WRONG, HALF, RIGHT], [HALF, RIGHT, WRONG, HALF]
    copied = over_groups([*one, *one[::-1], *one], [*other, *other[::-1], *other], [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3])
    assert copied == pytest.approx(interval(one, other))
    narrower = interval([*one, *one[::-1], *one], [*other, *other[::-1], *other])
    assert copied.low < narrower.low < narrower.high < copied.high


def test_groups_of_an_image_each_are_none():
    one, other = [RIGHT, WRONG, HALF], [HALF, RIGHT, WRONG]
    assert over_groups(one, other, [7, 3, 5]).difference == interval(one, other).difference
    assert over_groups(one, other, [3, 5, 7]) == interval(one, other)


def test_a_group_is_all_of_its_images():
    """Two groups: a resample has both, or one of them twice."""
    one, other = [RIGHT, WRONG, HALF, HALF, RIGHT], [HALF, HALF, RIGHT, WRONG, WRONG]
    found = over_groups(one, other, [0, 0, 1, 1, 1])
    assert found.difference == interval(one, other).difference

    def gain(first, last):
        return float(np.subtract(*(mean_iou(np.sum(side[first:last], 0), absent="ignore") for side in (one, other))))

    assert sorted((found.low, found.high)) == pytest.approx(sorted((gain(0, 2), gain(2, 5))))


def test_a_class_that_a_resample_lacks_is_in_its_mean_on_neither_side():
    """Two images, of which one has the third class: alone, the other is scored by its two."""
    few, all_three = np.diag([4, 4, 0]), np.diag([4, 4, 4])
    worse = np.array([[2, 2, 0], [0, 4, 0], [0, 0, 0]])
    found = interval([few, all_three], [worse, all_three])
    assert (found.low, found.high) == pytest.approx((0, 1 - (2 / 4 + 4 / 6) / 2))


HALF_OF_THREE = np.array([[5, 4, 0], [4, 5, 0], [0, 0, 0]])


def test_a_class_that_only_one_side_names_in_a_resample_costs_it_no_whole_class():
    """Both sides are right but for the first, which calls a pixel of each image a class that the last image alone has."""
    right, rare = np.diag([9, 9, 0]), np.diag([9, 9, 9])
    stray = right + np.array([[-1, 0, 1], [0, 0, 0], [0, 0, 0]])
    found = interval([stray] * 5 + [rare], [right] * 5 + [rare])
    assert found.difference < 0
    assert found.low > -0.5 * 2 / 3, "a resample without the last image counted the class on one side alone"
    found = interval([stray] * 3 + [right] * 3, [right] * 3 + [HALF_OF_THREE] * 3)
    assert found.low <= found.difference <= found.high, "the class is in no truth: it costs the first side in every resample"


def test_turned_round_it_is_the_negative():
    one, other = [RIGHT, HALF, RIGHT], [HALF, HALF, WRONG]
    there, back = interval(one, other), interval(other, one)
    assert back == pytest.approx((-there.difference, -there.high, -there.low))


def behind(one, other):
    return is_behind(np.array(one), np.array(other), absent="ignore", seed=0)


def test_what_is_worse_on_every_image_is_behind_and_what_is_as_good_or_wins_half_of_them_is_not():
    assert behind([HALF] * 8, [RIGHT] * 8)
    assert not behind([RIGHT] * 8, [RIGHT] * 8)
    assert not behind([RIGHT] * 8, [HALF] * 8)
    assert not behind([RIGHT, WRONG] * 4, [WRONG, RIGHT] * 4)


def test_of_two_images_or_scenes_nothing_is_behind():
    assert not behind([HALF] * 2, [RIGHT] * 2)
    assert behind([HALF] * 3, [RIGHT] * 3)
    sides = np.array([HALF] * 4), np.array([RIGHT] * 4)
    assert not is_behind(*sides, absent="ignore", seed=0, groups=[0, 0, 1, 1])
    assert is_behind(*sides, absent="ignore", seed=0, groups=[0, 1, 2, 2])


@pytest.mark.parametrize(("worse", "verdict"), [(1, False), (2, True)])
def test_a_side_is_behind_where_few_resamples_lack_all_images_on_which_it_is_worse(worse, verdict):
    """Of ten images, all else equal: 0.9^10 = 35% of the resamples lack one of them, 0.8^10 = 11% two; up to 15% may."""
    assert behind([HALF] * worse + [RIGHT] * (10 - worse), [RIGHT] * 10) == verdict


def test_what_counts_as_absent_decides_who_is_behind():
    """One side is nearer the truth but for a pixel of a class that is in no truth."""
    stray, plain = np.array([[9, 0, 0], [0, 8, 1], [0, 0, 0]]), np.array([[8, 1, 0], [1, 8, 0], [0, 0, 0]])
    sides = np.array([stray] * 4), np.array([plain] * 4)
    assert is_behind(*sides, absent="ignore", seed=0)
    assert not is_behind(*sides, absent="gt_present", seed=0)


def test_at_the_border_the_verdict_is_the_seeds():
    """Two images of a hundred are worse: 13% of all resamples lack them both, and more or less of 400 that are drawn."""
    one, other = np.array([HALF] * 2 + [RIGHT] * 98), np.array([RIGHT] * 100)
    assert {is_behind(one, other, absent="ignore", seed=seed) for seed in range(30)} == {True, False}


@ABSENT
@pytest.mark.filterwarnings("error")
def test_without_a_labelled_pixel_there_is_no_difference_and_nothing_to_warn_of(absent):
    nothing = np.zeros((3, 2, 2), np.int64)
    found = paired_bootstrap(nothing, nothing, absent=absent, num_resamples=20, seed=0)
    assert all(np.isnan(found))


def test_resamples_without_a_labelled_pixel_have_no_part_in_the_interval():
    one = np.stack([RIGHT, 0 * RIGHT])
    assert paired_bootstrap(one, np.stack([HALF, 0 * HALF]), absent="ignore", num_resamples=200, seed=0) == pytest.approx(
        [5 / 12] * 3
    )


def test_the_interval_is_the_seeds():
    one, other = [RIGHT, WRONG, HALF, HALF], [HALF, HALF, WRONG, RIGHT]
    assert interval(one, other, resamples=300) == interval(one, other, resamples=300)
    assert interval(one, other, resamples=300) != interval(one, other, resamples=300, seed=1)


def test_two_images_of_which_one_differs_have_the_interval_of_their_four_draws():
    """Draws are (a, a), (a, b) twice and (b, b), a quarter each: the ends are those of a drawn twice and b drawn twice."""
    found = interval([RIGHT, HALF], [HALF, HALF], resamples=2000)
    assert (found.low, found.high) == pytest.approx((0, 1 - 7 / 12))
