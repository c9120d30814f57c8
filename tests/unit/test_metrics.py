"""Laws of the metrics of Tables 2 and 3, the specification's vectors, and the floors on the real test frames.

Not here: predictions (test_evaluation.py).
"""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

from jointseg.errors import InputError
from jointseg.metrics import DepthSums, SegmentationSums, crop, depth_metrics, segmentation_metrics

TRUTH = np.array([[0, 0, 0, 1], [1, 1, 2, 255], [2, 2, 2, 0]], dtype=np.uint8)
PREDICTION = np.array([[0, 0, 1, 1], [1, 3, 2, 0], [2, 0, 2, 0]], dtype=np.uint8)
TRUE_DEPTH = np.array([[1.2, 1.5, 3], [5, 0, 9]])
DEPTH = np.array([[1.0, 2, 3], [4, 5, 6]])


def random_frames(num=5, *, seed=0):
    g = np.random.default_rng(seed)
    truth = g.integers(0, 6, (num, 7, 9)).astype(np.uint8)
    truth[truth == 5] = 255
    true_depth = g.uniform(0.3, 9, (num, 7, 9)).astype(np.float32)
    true_depth[:, 0] = 0
    return g.integers(0, 5, truth.shape), truth, g.uniform(0.3, 9, truth.shape).astype(np.float32), true_depth


# Segmentation


@pytest.mark.parametrize(
    ("absent", "mean_iou", "mean_accuracy"),
    [("ignore", 0.4625, 13 / 18), ("zero", 0.37, 13 / 30), ("gt_present", 0.6166667, 13 / 18)],
)
def test_the_vector_of_table_3(absent, mean_iou, mean_accuracy):
    sums = SegmentationSums.from_labels(PREDICTION, TRUTH, 5)
    assert segmentation_metrics(sums, absent=absent)["mean_iou"] == pytest.approx(mean_iou, abs=1e-7)
    assert segmentation_metrics(sums, absent=absent)["mean_accuracy"] == pytest.approx(mean_accuracy, abs=1e-7)
    assert sums.pixel_accuracy == pytest.approx(0.7272727, abs=1e-7)
    assert segmentation_metrics(sums, absent=absent)["frequency_weighted_iou"] == pytest.approx(0.6272727, abs=1e-7)
    assert sums.mean_accuracy() == pytest.approx(0.7222222, abs=1e-7)
    assert np.isnan(sums.class_iou).tolist() == [False, False, False, False, True]


def test_a_perfect_labelling_scores_one_on_every_metric():
    truth = random_frames()[1]
    sums = SegmentationSums.from_labels(np.where(truth == 255, 0, truth), truth, 5)
    assert set(segmentation_metrics(sums).values()) == {1.0}


def test_what_is_predicted_on_void_changes_nothing():
    other = np.where(TRUTH == 255, 4, PREDICTION)
    one, two = (SegmentationSums.from_labels(labels, TRUTH, 5) for labels in (PREDICTION, other))
    assert np.array_equal(one.confusion, two.confusion)


def test_relabelling_the_classes_permutes_their_iou():
    prediction, truth, _, _ = random_frames()
    order = np.array([3, 0, 4, 1, 2])
    table = np.full(256, 255)
    table[:5] = order
    one = SegmentationSums.from_labels(prediction, truth, 5)
    two = SegmentationSums.from_labels(table[prediction], table[truth], 5)
    assert np.array_equal(two.class_iou[order], one.class_iou)


def test_parts_add_up_to_the_whole_confusion():
    prediction, truth, _, _ = random_frames()
    whole = SegmentationSums.from_labels(prediction, torch.from_numpy(truth), 5)
    parts = [SegmentationSums.from_labels(p, t, 5) for p, t in zip(prediction, truth, strict=True)]
    assert np.array_equal(sum(parts[1:], start=parts[0]).confusion, whole.confusion)


@pytest.mark.parametrize("wrong", [5, -1])
def test_a_predicted_class_that_does_not_exist_is_our_mistake(wrong):
    with pytest.raises(AssertionError, match="prediction"):
        SegmentationSums.from_labels(np.full((2, 2), wrong), np.zeros((2, 2), dtype=int), 5)


def test_no_labelled_pixel_is_not_a_number():
    sums = SegmentationSums.from_labels(PREDICTION, np.full_like(TRUTH, 255), 5)
    for absent in ("ignore", "zero", "gt_present"):
        assert all(math.isnan(value) for value in segmentation_metrics(sums, absent=absent).values())


# Depth


def test_the_vector_of_table_2():
    sums = DepthSums.from_depth(DEPTH, TRUE_DEPTH)
    assert sums.images[0, 0] == 5
    assert depth_metrics(sums) == pytest.approx(
        {
            "delta1": 0.4,
            "delta2": 1.0,
            "delta3": 1.0,
            "abs_rel": 0.2066667,
            "sq_rel": 0.28,
            "rmse": 1.4345731,
            "rmse_log": 0.2569814,
            "si_log_std": 0.2347081,
            "si_log_var": 0.0550879,
            "log10": 0.0954242,
        },
        abs=1e-7,
    )


@pytest.mark.parametrize(("pooling", "rmse"), [("pixels", 1.2416387), ("images", 0.9267767)])
def test_the_vector_of_pooling(pooling, rmse):
    one = DepthSums.from_depth(np.array([1.0, 2]), np.array([1.5, 2]))
    two = DepthSums.from_depth(np.array([3.0, 3, 3, 9]), np.array([3.0, 3, 3, 6]))
    assert depth_metrics(one + two, pooling=pooling)["rmse"] == pytest.approx(rmse, abs=1e-7)


@pytest.mark.parametrize("pooling", ["pixels", "images"])
def test_a_perfect_depth_has_no_error(pooling):
    true_depth = random_frames()[3]
    metrics = depth_metrics(DepthSums.from_depth(np.where(true_depth > 0, true_depth, 1), true_depth), pooling=pooling)
    assert [metrics.pop(f"delta{i}") for i in (1, 2, 3)] == [1, 1, 1]
    assert set(metrics.values()) == {0.0}


def test_scaling_the_estimate_leaves_the_scale_invariant_error():
    _, _, depth, true_depth = random_frames()
    one, two = (depth_metrics(DepthSums.from_depth(factor * depth.astype(float), true_depth)) for factor in (1, 3))
    assert two["si_log_std"] == pytest.approx(one["si_log_std"], rel=1e-12)
    assert two["rmse_log"] > 1.2 * one["rmse_log"]


def test_a_ratio_at_the_threshold_is_not_within_it():
    assert depth_metrics(DepthSums.from_depth(np.array([5.0]), np.array([4.0])))["delta1"] == 0


@pytest.mark.parametrize("pooling", ["pixels", "images"])
def test_parts_in_any_order_give_the_metrics_of_the_whole_to_the_last_bit(pooling):
    _, _, depth, true_depth = random_frames()
    whole = DepthSums.from_depth(torch.from_numpy(depth), torch.from_numpy(true_depth))
    parts = [DepthSums.from_depth(d, t) for d, t in zip(depth, true_depth, strict=True)]
    assert np.array_equal(sum(parts[1:], start=parts[0]).images, whole.images)
    shuffled = (parts[3] + parts[1]) + (parts[4] + (parts[0] + parts[2]))
    assert depth_metrics(shuffled, pooling=pooling) == depth_metrics(whole, pooling=pooling)


@pytest.mark.parametrize("missing", [0.0, math.nan, math.inf])
def test_missing_truth_is_not_scored(missing):
    truth = np.where(TRUE_DEPTH == 0, missing, TRUE_DEPTH)
    assert depth_metrics(DepthSums.from_depth(DEPTH, truth)) == depth_metrics(DepthSums.from_depth(DEPTH, TRUE_DEPTH))


@pytest.mark.parametrize("pooling", ["pixels", "images"])
def test_no_true_depth_is_not_a_number_and_an_empty_image_changes_nothing(pooling):
    empty, full = DepthSums.from_depth(DEPTH, 0 * DEPTH), DepthSums.from_depth(DEPTH, TRUE_DEPTH)
    assert all(math.isnan(value) for value in depth_metrics(empty, pooling=pooling).values())
    assert depth_metrics(empty + full, pooling=pooling) == depth_metrics(full, pooling=pooling)


def test_a_prediction_that_is_no_depth_is_our_mistake():
    with pytest.raises(AssertionError, match="predicted depth"):
        DepthSums.from_depth(0 * DEPTH, TRUE_DEPTH)


# Both


def test_mirrored_and_read_only_arrays_are_scored_like_any():
    labels, depths = TRUTH[:, ::-1].copy(), TRUE_DEPTH[:, ::-1].copy()
    labels.flags.writeable = depths.flags.writeable = False
    one, two = (SegmentationSums.from_labels(PREDICTION, truth, 5) for truth in (TRUTH[:, ::-1], labels))
    assert np.array_equal(one.confusion, two.confusion)
    three, four = (DepthSums.from_depth(DEPTH, truth) for truth in (TRUE_DEPTH[:, ::-1], depths))
    assert np.array_equal(three.images, four.images)


def test_sums_survive_json():
    prediction, truth, depth, true_depth = random_frames()
    labels, depths = SegmentationSums.from_labels(prediction, truth, 5), DepthSums.from_depth(depth, true_depth)
    assert np.array_equal(json.loads(json.dumps(labels.to_dict()))["confusion"], labels.confusion)
    assert np.array_equal(json.loads(json.dumps(depths.to_dict()))["images"], depths.images)


@pytest.mark.parametrize(("name", "shape", "first"), [("none", (480, 640), 0), ("eigen", (426, 560), 45 * 640 + 41),
                                                      ("gupta", (425, 560), 45 * 640 + 40)])  # fmt: skip
def test_crops_are_those_of_the_specification(name, shape, first):
    frames = np.arange(480 * 640).reshape(1, 480, 640)
    assert crop(frames, name).shape == (1, *shape)
    assert crop(torch.from_numpy(frames), name)[0, 0, 0] == first


@pytest.mark.parametrize("name", ["eigen", "gupta"])
def test_a_crop_of_another_size_is_refused(name):
    with pytest.raises(InputError, match=rf"crop {name}: frame is \(240, 320\)"):
        crop(np.zeros((240, 320)), name)
    assert crop(np.zeros((240, 320)), "none").shape == (240, 320)


# Floors on the 654 real test frames: what needs no model


@pytest.fixture(scope="module")
def nyu(shared):
    folder = shared / "nyuv2"
    split = loadmat(folder / "splits.mat")
    read = {
        name: lambda number, name=name: np.array(Image.open(folder / name / f"{number:04d}.png"))
        for name in ("depth", "labels40")
    }
    return split["trainNdxs"].ravel(), split["testNdxs"].ravel(), read["depth"], read["labels40"]


def test_the_floor_of_segmentation_is_to_call_everything_wall(nyu):
    _, test, _, read_labels = nyu
    wall = np.zeros((480, 640), dtype=np.uint8)
    sums = [SegmentationSums.from_labels(wall, read_labels(number) - np.uint8(1), 40) for number in test]  # 0, void, to 255
    total = sum(sums[1:], start=sums[0])
    assert total.pixel_accuracy == pytest.approx(0.2556, abs=5e-5)
    assert total.mean_iou() == pytest.approx(0.00639, abs=5e-6)


@pytest.mark.slow
def test_the_floors_of_depth_and_the_ceiling_of_its_bins(nyu):
    train, test, read_depth, _ = nyu
    metres = ((np.arange(256) + 0.5) / 25.5).astype(np.float32)
    binned = (0.14 * np.clip(np.floor(metres / 0.14 + 0.5), 1, 50)).astype(np.float32)
    first_frames = [metres[crop(read_depth(number), "eigen")] for number in train[:100]]
    mean_map = sum(first_frames[1:], start=first_frames[0]) / 100
    constant = np.full_like(mean_map, 2.53)
    sums = {"constant": [], "mean map": [], "binned": []}
    for number in test:
        codes = crop(read_depth(number), "eigen")
        for name, estimate in (("constant", constant), ("mean map", mean_map), ("binned", binned[codes])):
            sums[name].append(DepthSums.from_depth(estimate, metres[codes]))
    got = {name: depth_metrics(sum(parts[1:], start=parts[0])) for name, parts in sums.items()}
    want = {
        "constant": {"rmse": 1.369, "abs_rel": 0.408, "delta1": 0.379},
        "mean map": {"rmse": 1.214, "delta1": 0.432},
        "binned": {"rmse": 0.182, "abs_rel": 0.0178, "delta1": 0.996},
    }
    for name, metrics in want.items():
        for metric, value in metrics.items():
            assert got[name][metric] == pytest.approx(value, abs=1.5e-3), (name, metric)  # these files step by 3.9 cm
