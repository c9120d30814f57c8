"""Laws of the boundaries' F1, on images of which every boundary pixel can be counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jointseg.boundary import BoundarySums
from jointseg.labels import VOID

HALVES = np.repeat([[0] * 5 + [1] * 5], 8, axis=0)  # one boundary, of 8 pixels, in column 4


def shifted(pixels):
    return np.roll(HALVES, pixels, axis=1) * (np.arange(10) >= pixels)


def sums(prediction, truth, pixels=1.0):
    return BoundarySums.from_labels(prediction, truth, tolerance=pixels / math.hypot(*truth.shape))


def test_the_truth_has_f1_of_1_and_its_pixels_are_counted():
    assert sums(HALVES, HALVES) == (8, 8, 8, 8)
    assert sums(HALVES, HALVES).f1 == 1


def test_boundaries_meet_within_the_tolerance_and_not_beyond():
    assert sums(shifted(2), HALVES, pixels=2).f1 == 1
    assert sums(shifted(2), HALVES, pixels=1.9) == (8, 0, 8, 0)
    assert sums(shifted(2), HALVES, pixels=1.9).f1 == 0


@pytest.mark.parametrize(("off", "met"), [(6, 640), (7, 0)])
def test_where_nothing_else_is_said_boundaries_meet_within_6_pixels_of_a_frame(off, met):
    truth, prediction = (np.repeat(np.arange(480)[:, None] >= row, 640, axis=1) for row in (200, 200 + off))
    assert BoundarySums.from_labels(prediction, truth) == (640, met, 640, met)


def test_one_boundary_too_many_costs_precision_alone():
    prediction = HALVES.copy()
    prediction[:, 9] = 2
    assert sums(prediction, HALVES) == (16, 8, 8, 8)
    assert sums(prediction, HALVES).f1 == 2 * 0.5 * 1 / 1.5


@pytest.mark.parametrize("off", [0, 1, 2, 3])
def test_a_band_of_void_between_two_classes_is_a_boundary(off):
    """As NYU's labels have it: objects do not touch."""
    truth = HALVES.copy()
    truth[:, 4:6] = VOID
    assert sums(shifted(off), truth, pixels=3).f1 == 1
    assert sums(shifted(4), truth, pixels=3)[2:] == (8, 0)


@pytest.mark.parametrize("off", [0, 1, 2, 3])
def test_boundaries_between_rows_are_boundaries_as_between_columns(off):
    truth = HALVES.copy()
    truth[:, 7:] = VOID
    turned = sums(shifted(off).T, truth.T)
    assert turned == sums(shifted(off), truth)
    assert turned.true == len(truth)


def test_a_boundary_that_meets_none_is_a_mistake_but_beside_void():
    truth = np.zeros((8, 20), int)
    truth[:, 15:] = VOID
    prediction = np.zeros_like(truth)
    prediction[:, 14:], prediction[:, 5:8] = 1, 1
    assert sums(prediction, truth, pixels=2.1) == (16, 0, 0, 0)
    assert sums(prediction, np.full_like(truth, VOID)) == (0, 0, 0, 0)


def test_beside_void_there_is_no_boundary():
    truth = np.where(np.arange(10) < 5, 0, VOID) * np.ones((8, 1), int)
    assert sums(HALVES, truth) == (0, 0, 0, 0)
    assert math.isnan(sums(HALVES, truth).f1)


def test_sets_add():
    one, two = sums(HALVES, HALVES), sums(shifted(3), HALVES)
    assert one.plus(two) == (16, 8, 16, 8)
    assert one.plus(two).f1 == 0.5


def test_no_prediction_of_a_boundary_has_f1_of_0():
    assert sums(np.zeros_like(HALVES), HALVES).f1 == 0
