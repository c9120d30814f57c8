"""Laws of predictions and of the sums they are scored by. Not here: the metrics' own vectors (test_metrics.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointseg.data.frame import Frame
from jointseg.errors import OutOfRangeError
from jointseg.evaluation import (
    Prediction,
    Sums,
    Unaries,
    compute_unaries,
    depth_at_full_size,
    labels_at_full_size,
    predict,
    predict_image,
    refined_labels,
    score,
    score_labels,
)
from jointseg.evaluation_config import EvaluationConfig
from jointseg.labels import VOID
from jointseg.metrics import depth_metrics, segmentation_metrics
from jointseg.model import build_crf, build_model
from jointseg.settings import with_overrides
from jointseg.stages import Kernels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames(rooms):
    return [rooms.frame(number) for number in range(1, rooms.num_frames + 1)]


@pytest.fixture
def model(small):
    """With a network that has something to say: scores of new layers are too near each other."""
    model = build_model(small)
    with torch.no_grad():
        for parameter in model.network.heads.parameters():
            parameter.mul_(100)
    return model


def perfect(frame: Frame) -> Prediction:
    return Prediction(np.where(frame.labels == VOID, 0, frame.labels).astype(np.uint8), frame.filled_depth.copy())


def test_a_perfect_prediction_scores_one_and_errs_by_nothing(frames):
    for frame in frames:
        sums = score(frame, perfect(frame), EvaluationConfig())
        assert set(segmentation_metrics(sums.segmentation).values()) == {1.0}
        metrics = depth_metrics(sums.depth)
        shares = {name for name in metrics if name.startswith("delta")}
        assert {metrics[name] for name in shares} == {1.0}
        assert {metrics[name] for name in metrics.keys() - shares} == {0.0}


def test_sums_of_frames_add_to_the_sums_of_all(frames):
    guess = Prediction(np.zeros((480, 640), np.uint8), np.full((480, 640), 2.0, np.float32))
    total, *parts = (score(frame, guess, EvaluationConfig()) for frame in frames)
    for part in parts:
        total = total.plus(part)
    confusion = np.zeros((40, 40), np.int64)
    for frame in frames:
        confusion[:, 0] += np.bincount(frame.labels[frame.labels != VOID], minlength=40)
    assert (total.segmentation.confusion == confusion).all()
    assert total.depth.images[:, 0].sum() == sum(int((frame.filled_depth > 0).sum()) for frame in frames)
    errors = np.concatenate([(frame.filled_depth[frame.filled_depth > 0] - 2.0).astype(np.float64) for frame in frames])
    assert depth_metrics(total.depth)["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))


def test_metrics_of_sums_follow_the_configs_switches(frames, small):
    total = None
    for frame, factor in zip(frames[:2], (1.1, 2.0), strict=True):
        guess = perfect(frame)
        sums = score(frame, guess._replace(depth=guess.depth * np.float32(factor)), small.evaluation)
        total = sums if total is None else total.plus(sums)
    plain = total.metrics(small.evaluation)
    zero = total.metrics(with_overrides(small, {"evaluation.absent_classes": "zero"}).evaluation)
    images = total.metrics(with_overrides(small, {"evaluation.depth_pooling": "images"}).evaluation)
    assert plain["mean_iou"] == 1 > zero["mean_iou"]
    assert plain["rmse"] != images["rmse"]


def test_sums_without_depth_add_to_sums_without_depth(frames):
    part = score(frames[0], perfect(frames[0])._replace(depth=None), EvaluationConfig())
    assert part.depth is None
    assert part.plus(part).depth is None
    assert (part.plus(part).segmentation.confusion == 2 * part.segmentation.confusion).all()


def test_sums_with_and_without_depth_do_not_add(frames):
    whole = score(frames[0], perfect(frames[0]), EvaluationConfig())
    with pytest.raises(AssertionError):
        whole.plus(Sums(whole.segmentation, None))


@pytest.mark.parametrize(
    ("crop", "rows", "columns"), [("eigen", slice(45, 471), slice(41, 601)), ("gupta", slice(45, 470), slice(40, 600))]
)
def test_what_lies_outside_the_crop_is_not_scored(frames, crop, rows, columns):
    frame, guess = frames[0], perfect(frames[0])
    outside = np.ones((480, 640), bool)
    outside[rows, columns] = False
    wrong = Prediction(
        np.where(outside, (guess.labels + 1) % 40, guess.labels).astype(np.uint8), np.where(outside, 9.0, guess.depth)
    )
    cropped, whole = (score(frame, wrong, EvaluationConfig(crop=name)) for name in (crop, "none"))
    assert cropped.segmentation.pixel_accuracy == 1
    assert depth_metrics(cropped.depth)["rmse"] == 0
    assert whole.segmentation.pixel_accuracy < 1
    assert depth_metrics(whole.depth)["rmse"] > 0


def test_depth_is_scored_against_the_truth_that_is_named(frames):
    frame = frames[0]
    both = {truth: score(frame, perfect(frame), EvaluationConfig(depth_truth=truth)) for truth in ("raw", "filled")}
    pixels = {truth: own.depth.images[0, 0] for truth, own in both.items()}
    assert pixels == {"raw": int((frame.raw_depth > 0).sum()), "filled": int((frame.filled_depth > 0).sum())}
    assert pixels["raw"] < pixels["filled"]


def test_a_frame_that_is_all_void_counts_no_pixel(frames):
    void = replace(frames[0], labels=np.full((480, 640), VOID, np.uint8))
    assert score(void, perfect(frames[0]), EvaluationConfig()).segmentation.confusion.sum() == 0


def test_predictions_have_the_frames_size_and_say_only_what_can_be(model, small, frames):
    pairs = list(predict(model, frames[:2], small, kernels=Kernels.SEM_CRF_PLUS, with_depth=True, device=CPU))
    assert [frame.number for frame, _ in pairs] == [1, 2]
    for _, prediction in pairs:
        assert (prediction.labels.shape, prediction.labels.dtype) == ((480, 640), np.uint8)
        assert prediction.labels.max() < 40
        assert (prediction.depth.shape, prediction.depth.dtype) == ((480, 640), np.float32)
        assert 0.139 <= prediction.depth.min() <= prediction.depth.max() <= 7.001


def test_without_depth_heads_nothing_is_said_of_depth(model, small, frames):
    ((_, prediction),) = predict(model, frames[:1], small, kernels=Kernels.NONE, with_depth=False, device=CPU)
    assert prediction.depth is None


def test_predicting_drops_nothing_out_and_keeps_no_gradient(model, small, frames):
    model.train()
    state = torch.get_rng_state()
    first, second = (
        next(iter(predict(model, frames[:1], small, kernels=Kernels.NONE, with_depth=True, device=CPU)))[1] for _ in range(2)
    )
    assert (first.depth == second.depth).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_a_mirrored_map_gives_mirrored_labels_and_depth():
    """Grown about pixel centres, as pictures were shrunk: nothing moves to one side."""
    draw = torch.Generator().manual_seed(0)
    logits, depth = torch.randn(40, 49, 65, generator=draw), 5 * torch.rand(49, 65, generator=draw)
    assert (labels_at_full_size(logits.flip(2)) == labels_at_full_size(logits)[:, ::-1]).mean() > 0.9999
    np.testing.assert_allclose(depth_at_full_size(depth.flip(1)), depth_at_full_size(depth)[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(depth_at_full_size(depth.flip(0)), depth_at_full_size(depth)[::-1], atol=1e-4)


def test_an_even_map_stays_even_when_grown():
    assert (depth_at_full_size(torch.full((49, 65), 2.5)) == 2.5).all()
    logits = torch.zeros(40, 49, 65)
    logits[7] = 1
    assert (labels_at_full_size(logits) == 7).all()


def test_depth_grows_about_the_middles_of_pixels():
    np.testing.assert_allclose(depth_at_full_size(torch.tensor([[1.0, 2.0]]), (2, 4)), [[1, 1.25, 1.75, 2]] * 2)


def confusions(model, frames, config):
    """A trial's, of each frame."""
    crf = build_crf(config)
    labels = [refined_labels(compute_unaries(model, frame, config, device=CPU), crf) for frame in frames]
    return [score_labels(own, frame.labels, config.evaluation).confusion for own, frame in zip(labels, frames, strict=True)]


@pytest.mark.parametrize(("kernels", "iterations"), [(Kernels.NONE, 0), (Kernels.SEM_CRF_PLUS, 2)])
def test_a_trial_scores_as_the_model_with_its_settings_does(model, small, frames, kernels, iterations):
    """With no iterations that is the network alone: the search's unaries are what the test split is predicted with."""
    config = with_overrides(small, {"crf.num_iterations": iterations, "crf.theta_beta": 20, "evaluation.crop": "eigen"})
    trial = sum(confusions(model, frames, config))
    model.crf = build_crf(config)
    whole = [
        score(frame, prediction, config.evaluation).segmentation.confusion
        for frame, prediction in predict(model, frames, config, kernels=kernels, with_depth=True, device=CPU)
    ]
    assert (trial == sum(whole)).all()


def test_settings_change_a_trials_score(model, small, frames):
    scores = [confusions(model, frames[:1], with_overrides(small, {"crf.w_appearance": w}))[0] for w in (0.1, 30)]
    assert (scores[0] != scores[1]).any()


def test_a_crf_whose_logits_are_not_finite_is_refused(model, small, frames):
    with pytest.raises(OutOfRangeError, match="the CRF's logits are NaN or infinite"):
        confusions(model, frames[:1], with_overrides(small, {"crf.w_appearance": 3e38, "crf.w_depth": 3e38}))


@pytest.fixture(params=["logits", "depths"])
def spoiled(model, request):
    """A model of which one kind of what it says is no number, and that kind."""
    name = {"logits": "segmentation", "depths": "depth"}[request.param]
    found = [parameter for path, parameter in model.network.named_parameters() if name in path]
    with torch.no_grad():
        found[-1].fill_(torch.nan)
    return model, request.param


@pytest.mark.parametrize(("kernels", "whose"), [(Kernels.NONE, "network"), (Kernels.SEM_CRF, "network's or the CRF")])
def test_predictions_that_are_no_numbers_are_refused(spoiled, small, frames, kernels, whose):
    model, kind = spoiled
    said = f"the {whose if kind == 'logits' else 'network'}'s {kind} are NaN or infinite; its weights are too large$"
    with pytest.raises(OutOfRangeError, match=f"^{said}"):
        predict_image(model, frames[0].image, small, kernels=kernels, with_depth=True, device=CPU)
    with pytest.raises(OutOfRangeError, match=f"^frame 2: {said}"):
        list(predict(model, frames[1:2], small, kernels=kernels, with_depth=True, device=CPU))


def test_unaries_that_are_no_numbers_are_refused(spoiled, small, frames):
    model, kind = spoiled
    with pytest.raises(OutOfRangeError, match=f"^frame 1: the network's {kind} are NaN or infinite"):
        compute_unaries(model, frames[0], small, device=CPU)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("grown", [labels_at_full_size, depth_at_full_size])
def test_a_single_number_that_is_none_is_not_grown(value, grown):
    values = torch.zeros(40, 6, 8)
    values[3, 2, 1] = value
    with pytest.raises(OutOfRangeError, match="are NaN or infinite"):
        grown(values if grown is labels_at_full_size else values[3])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_single_logit_that_is_not_finite_is_refused(small, value):
    logits = torch.zeros(40, 2, 2)
    logits[1, 0, 0] = value
    unaries = Unaries(torch.zeros(3, 2, 2, dtype=torch.uint8), logits, torch.ones(2, 2))
    with pytest.raises(OutOfRangeError, match="the CRF's logits are NaN or infinite"):
        refined_labels(unaries, build_crf(with_overrides(small, {"crf.num_iterations": 0})))
