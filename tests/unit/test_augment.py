"""Laws of views that are drawn anew at every visit: crops, mirrors, colours."""

from __future__ import annotations

import numpy as np
import pytest

from jointseg.config import DataConfig
from jointseg.data.augment import Colour, coloured, view_of_visit


def test_a_round_visits_every_frame_once_in_an_order_of_its_own():
    numbers = (3, 5, 8, 13, 21, 34)
    rounds = [[view_of_visit(numbers, 6 * turn + i, DataConfig())[0].frame for i in range(6)] for turn in range(3)]
    assert all(sorted(frames) == list(numbers) for frames in rounds)
    assert len({tuple(frames) for frames in rounds}) == 3


def test_a_visit_is_a_function_of_the_seed_and_its_number():
    numbers, data = (1, 2, 3), DataConfig(crop_scale_min=0.5, views="online", color_jitter=0.3)
    drawn = [view_of_visit(numbers, visit, data) for visit in range(60)]
    assert drawn == [view_of_visit(numbers, visit, data) for visit in range(60)]
    views = [view for view, _ in drawn]
    assert len(set(views)) == 60
    assert {view.mirror for view in views} == {True, False}
    assert all(0 <= view.top <= 480 - view.height and 0 <= view.left <= 640 - view.width for view in views)
    assert all(0.5 <= view.height / 480 <= 1 and view.zoom == pytest.approx(640 / view.width) for view in views)
    assert all(0.7 <= factor <= 1.3 for _, colour in drawn for factor in vars(colour).values())


def of_seed(seed, numbers):
    data = DataConfig(views="online", color_jitter=0.3, views_seed=seed)
    return [view_of_visit(numbers, visit, data) for visit in range(40)]


def test_another_seed_visits_the_frames_in_another_order():
    one, other = ([view.frame for view, _ in of_seed(seed, range(1, 41))] for seed in (0, 1))
    assert one != other


def test_another_seed_has_other_crops_and_colours_of_the_same_frame():
    one, other = of_seed(0, [7]), of_seed(1, [7])
    assert not {view for view, _ in one} & {view for view, _ in other}
    assert not {colour for _, colour in one} & {colour for _, colour in other}


def test_a_stage_sees_other_views_than_those_before_it_in_another_order():
    numbers, data = range(1, 41), DataConfig(views="online", color_jitter=0.3)
    stages = [[view_of_visit(numbers, visit, data, stages_before=before) for visit in range(40)] for before in range(3)]
    assert len({view for drawn in stages for view, _ in drawn}) == 120
    assert len({colour for drawn in stages for _, colour in drawn}) == 120
    assert len({tuple(view.frame for view, _ in drawn) for drawn in stages}) == 3


def test_online_views_fill_their_ranges():
    data = DataConfig(views="online", color_jitter=0.3, crop_scale_min=0.5, crop_scale_max=0.9)
    drawn = [view_of_visit((1, 2, 3), visit, data) for visit in range(60)]
    shares = [view.height / 480 for view, _ in drawn]
    assert min(shares) < 0.6
    assert max(shares) > 0.95
    for name in ("brightness", "contrast", "saturation"):
        factors = [getattr(colour, name) for _, colour in drawn]
        assert min(factors) < 0.8
        assert max(factors) > 1.2


def test_colours_by_hand():
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert (coloured(grey, Colour(1.2, 0.5, 0.1)) == 120).all()
    two = np.array([[[100, 100, 100], [200, 200, 200]]], np.uint8)
    assert coloured(two, Colour(1, 0.5, 1)).tolist() == [[[125] * 3, [175] * 3]]
    red = np.array([[[200, 0, 0]]], np.uint8)
    assert coloured(red, Colour(1, 1, 0)).tolist() == [[[60, 60, 60]]]
    assert (coloured(red, Colour(1, 1, 1)) == red).all()
    assert coloured(red, Colour(2, 1, 1)).max() == 255
