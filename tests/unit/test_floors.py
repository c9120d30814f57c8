"""Laws of the floors, which look at no picture. Not here: how rows are shared out over Ray (integration tests)."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jointseg.labels import VOID
from jointseg.settings import with_overrides
from pipeline import evaluate
from pipeline.evaluate import floors


@pytest.fixture(scope="module")
def split(rooms):
    """The frames of the train and of the test split."""
    return [rooms.frame(number) for number in rooms.train], [rooms.frame(number) for number in rooms.test]


@pytest.mark.parametrize("truth", ["filled", "raw"])
def test_the_floors_are_the_train_splits_class_and_mean_map_scored_on_the_test_split(rooms, small, split, truth):
    train, test = split
    found = floors(with_overrides(small, {"evaluation.depth_truth": truth}), rooms.path)
    counts = np.bincount(np.concatenate([frame.labels[frame.labels != VOID] for frame in train]))
    true = np.concatenate([frame.labels[frame.labels != VOID] for frame in test])
    assert found["class"] == counts.argmax()
    assert found["pixel_accuracy"] == pytest.approx((true == counts.argmax()).mean())
    given = np.stack([getattr(frame, f"{truth}_depth") for frame in train]).astype(np.float64)
    given[given == 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a pixel without any depth
        each = np.nanmean(given, axis=0)
    each[np.isnan(each)] = np.nanmean(given)
    assert found["mean_depth"] == pytest.approx(each.mean(), rel=1e-5)
    depths = np.stack([getattr(frame, f"{truth}_depth") for frame in test])
    errors = (depths - each)[depths > 0]
    assert found["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)


def test_a_pixel_that_no_frame_has_a_depth_at_gets_the_mean_of_all(rooms, small, split, monkeypatch):
    frame = split[0][0]
    seen, asked = np.full_like(frame.filled_depth, 2.0), np.zeros_like(frame.filled_depth)
    seen[:, :320], seen[0, 0], asked[0, 0] = 4.0, 0.0, 1.0
    frames = {1: replace(frame, filled_depth=seen), 2: replace(frame, filled_depth=asked)}
    store = SimpleNamespace(train=(1,), test=(2,), frame=frames.__getitem__)
    monkeypatch.setattr(evaluate.Store, "open", lambda _: store)
    mean = seen.sum(dtype=np.float64) / (seen.size - 1)
    assert floors(small, "store")["rmse"] == pytest.approx(mean - 1, rel=1e-4)


def test_one_class_everywhere_has_the_mean_iou_of_one_class(rooms, small, split):
    """Its own share of the pixels over all the classes there are."""
    _, test = split
    found = floors(small, rooms.path)
    true = np.concatenate([frame.labels[frame.labels != VOID] for frame in test])
    classes = set(true.tolist()) | {int(found["class"])}
    assert found["mean_iou"] == pytest.approx((true == found["class"]).mean() / len(classes))


@pytest.mark.parametrize("truth", ["filled", "raw"])
def test_without_a_depth_in_the_train_split_there_is_no_floor_of_it(rooms, small, truth, monkeypatch):
    def frame(number):
        own = rooms.frame(number)
        nothing = np.zeros_like(own.filled_depth)
        return replace(own, **{f"{truth}_depth": nothing}) if number in rooms.train else own

    store = SimpleNamespace(train=rooms.train, test=rooms.test, frame=frame)
    before = floors(with_overrides(small, {"evaluation.depth_truth": truth}), rooms.path)
    monkeypatch.setattr(evaluate.Store, "open", lambda _: store)
    found = floors(with_overrides(small, {"evaluation.depth_truth": truth}), "store")
    assert math.isnan(found.pop("mean_depth"))
    assert found == {name: value for name, value in before.items() if name in found}
    assert "mean_iou" in found
    assert not {"rmse", "delta1"} & found.keys()


def test_the_class_is_that_of_most_pixels_and_not_of_most_frames(small, split, monkeypatch):
    """1 is in every frame and is all of one; 5 is nearly all of two."""
    frame = split[0][0]
    mostly_5 = np.full_like(frame.labels, 5)
    mostly_5[0, 0] = 1
    labels = {1: mostly_5, 2: np.full_like(mostly_5, 1), 3: mostly_5}
    frames = {number: replace(frame, labels=own) for number, own in labels.items()}
    store = SimpleNamespace(train=(1, 2, 3), test=(1,), frame=frames.__getitem__)
    monkeypatch.setattr(evaluate.Store, "open", lambda _: store)
    assert floors(small, "store")["class"] == 5
