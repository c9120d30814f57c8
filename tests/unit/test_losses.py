"""Laws of Eq 1 to 4, and the vectors of the specification. Not here: conversion of rates (test_units.py)."""

import math

import pytest
import torch

from jointseg.labels import NUM_CLASSES, VOID
from jointseg.losses import _sum_of_bins, expected_depth, joint_loss, scale_invariant_loss, semantic_loss

DEPTH = torch.tensor([[[1.0, 2.0, 4.0, 3.0]]], dtype=torch.float64)
TARGET = torch.tensor([[[1.1, 1.8, 4.4, 2.5]]], dtype=torch.float64)


def random_batch(seed=0, *, images=2, classes=4, bins=5, side=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, side, side, generator=g, dtype=dtype)
    depth_logits = torch.randn(images, bins, side, side, generator=g, dtype=dtype)
    labels = torch.randint(0, classes, (images, side, side), generator=g)
    labels[0, 0, 0] = VOID
    target = torch.rand(images, side, side, generator=g, dtype=dtype) * 5 + 0.5
    target[0, 1, 1] = 0
    return logits, depth_logits, labels, target


# Eq 2


def test_ignorance_costs_log_c_for_each_pixel_that_is_not_void():
    labels = torch.tensor([[[0, 39, VOID]], [[VOID, VOID, VOID]]])
    torch.testing.assert_close(
        semantic_loss(torch.zeros(2, NUM_CLASSES, 1, 3), labels), torch.tensor([2 * math.log(NUM_CLASSES), 0.0])
    )


def test_the_scale_that_lambda_balances_at_the_papers_size():
    loss = semantic_loss(torch.zeros(1, NUM_CLASSES, 513, 513), torch.zeros(1, 513, 513, dtype=torch.uint8))
    assert 1e-6 * loss.item() == pytest.approx(0.971, abs=5e-4)
    assert loss.item() == pytest.approx(math.log(40) * 513**2, rel=1e-6)


def test_a_void_pixel_has_zero_gradient():
    logits, _, labels, _ = random_batch()
    logits.requires_grad_()
    semantic_loss(logits, labels).sum().backward()
    assert not logits.grad[0, :, 0, 0].any()
    assert logits.grad[0, :, 0, 1].any()


# Eq 3


def test_an_even_distribution_is_at_the_middle_of_the_bins():
    torch.testing.assert_close(expected_depth(torch.zeros(1, 50, 1, 1), depth_bin=0.14), torch.full((1, 1, 1), 3.57))


def test_expected_depth_of_a_ramp():
    ramp = torch.linspace(-1, 1, 50, dtype=torch.float64).view(1, 50, 1, 1)
    assert expected_depth(ramp, depth_bin=0.14).item() == pytest.approx(4.684785160203743, rel=1e-14)


@pytest.mark.parametrize(("bin_index", "metres"), [(0, 0.14), (49, 7.0)])
def test_a_certain_bin_is_its_depth_and_the_first_bin_is_one_length(bin_index, metres):
    logits = torch.zeros(1, 50, 2, 2)
    logits[:, bin_index] = 1e4
    torch.testing.assert_close(expected_depth(logits, depth_bin=0.14), torch.full((1, 2, 2), metres))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_on_gpus_the_bins_are_summed_by_a_product_in_float32_under_autocast_too(layout):
    logits = 4 * torch.randn(2, 50, 9, 17, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    p = torch.softmax(logits, dim=1).requires_grad_()
    bins = 0.14 * torch.arange(1, 51)
    want = expected_depth(logits, depth_bin=0.14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _sum_of_bins(p, bins)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, want, rtol=1e-6, atol=0)
    found.sum().backward()
    torch.testing.assert_close(p.grad, bins.view(1, -1, 1, 1).expand_as(p), rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_expected_depth_on_a_gpu_is_that_on_a_cpu_under_autocast_too(layout):
    logits = 4 * torch.randn(2, 50, 33, 33, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = expected_depth(logits.cuda(), depth_bin=0.14)
    torch.testing.assert_close(found.cpu(), expected_depth(logits, depth_bin=0.14), rtol=2e-6, atol=0)


# Eq 4


def test_the_vector_of_eq_4_and_its_gradient():
    log_depth = DEPTH.log().requires_grad_()
    loss = scale_invariant_loss(log_depth, TARGET)
    assert loss.item() == pytest.approx(0.030077402527554593, rel=1e-13)
    loss.sum().backward()
    expected = torch.tensor([[[-0.11957561, 0.08109509, -0.11957561, 0.15805613]]], dtype=torch.float64)
    torch.testing.assert_close(log_depth.grad, expected, rtol=0, atol=1e-8)


def test_eq_4_is_the_double_sum_over_pairs():
    _, _, _, target = random_batch()
    target, log_depth = target[1:], torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    r = (log_depth - target.log()).flatten()
    pairs = (r[:, None] - r[None, :]).square().sum() / len(r) ** 2
    torch.testing.assert_close(scale_invariant_loss(log_depth, target)[0], pairs)


@pytest.mark.parametrize("factor", [0.1, 1.0, 17.0])
def test_scaling_the_estimate_changes_nothing(factor):
    torch.testing.assert_close(
        scale_invariant_loss((factor * DEPTH).log(), TARGET), scale_invariant_loss(DEPTH.log(), TARGET), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("missing", [0.0, -1.0, math.nan, math.inf])
def test_a_missing_pixel_has_zero_gradient_and_does_not_count(missing):
    log_depth = torch.cat([DEPTH.log(), torch.full((1, 1, 1), 3.0, dtype=torch.float64)], dim=2).requires_grad_()
    target = torch.cat([TARGET, torch.full((1, 1, 1), missing, dtype=torch.float64)], dim=2)
    loss = scale_invariant_loss(log_depth, target)
    loss.sum().backward()
    torch.testing.assert_close(loss, scale_invariant_loss(DEPTH.log(), TARGET))
    assert log_depth.grad[0, 0, 4] == 0
    assert log_depth.grad.isfinite().all()


@pytest.mark.parametrize("invariance", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("num_valid", [0, 1])
def test_an_image_with_fewer_than_two_valid_pixels_adds_nothing(num_valid, invariance):
    log_depth = torch.stack([DEPTH[0].log(), DEPTH[0].log()]).requires_grad_()
    target = torch.stack([torch.zeros(1, 4, dtype=torch.float64), TARGET[0]])
    target[0, 0, :num_valid] = 2.0
    loss = scale_invariant_loss(log_depth, target, invariance=invariance)
    loss.sum().backward()
    assert loss[0] == 0
    assert not log_depth.grad[0].any()
    torch.testing.assert_close(loss[1:], scale_invariant_loss(DEPTH.log(), TARGET, invariance=invariance))


def test_each_image_has_its_own_n():
    one, two = (DEPTH.log(), TARGET), ((DEPTH + 1).log(), torch.where(TARGET > 4, 0.0, TARGET))
    both = scale_invariant_loss(torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]]))
    torch.testing.assert_close(both, torch.cat([scale_invariant_loss(*one), scale_invariant_loss(*two)]))


def test_float32_is_enough_at_the_papers_size():
    g = torch.Generator().manual_seed(0)
    target = torch.rand(1, 513, 513, generator=g, dtype=torch.float64) * 6.8 + 0.2
    log_depth = target.log() + 3 + 0.01 * torch.randn(1, 513, 513, generator=g, dtype=torch.float64)
    exact = scale_invariant_loss(log_depth, target)
    torch.testing.assert_close(scale_invariant_loss(log_depth.float(), target.float()).double(), exact, rtol=1e-4, atol=0)


# Eq 1


def loss_of(logits, depth_logits, labels, target, *, unit="sum", lambda_semantic=1e-2):
    depth = None if depth_logits is None else expected_depth(depth_logits, depth_bin=0.14)
    return joint_loss(logits, labels, depth=depth, target_depth=target, lambda_semantic=lambda_semantic, unit=unit)


def test_the_joint_loss_is_the_mean_over_images_of_lambda_l_sem_plus_l_depth():
    logits, depth_logits, labels, target = random_batch()
    semantic = semantic_loss(logits, labels).mean()
    depth = scale_invariant_loss(expected_depth(depth_logits, depth_bin=0.14).log(), target).mean()
    loss = loss_of(logits, depth_logits, labels, target, unit="joint")
    torch.testing.assert_close(loss.total, 1e-2 * semantic + depth)
    torch.testing.assert_close(loss.semantic, 1e-2 * semantic)
    torch.testing.assert_close(loss.depth, depth)


@pytest.mark.parametrize(("unit", "per_sum"), [("joint", 1e-2), ("mean", 1 / 9)])
def test_units_are_one_factor_apart_in_every_term(unit, per_sum):
    batch = random_batch()
    for in_unit, in_sum in zip(loss_of(*batch, unit=unit), loss_of(*batch, unit="sum"), strict=True):
        torch.testing.assert_close(in_unit, per_sum * in_sum)


def test_the_joint_loss_has_the_depth_loss_of_its_invariance():
    logits, labels = torch.zeros(1, 4, 1, 4, dtype=torch.float64), torch.zeros(1, 1, 4)
    loss = joint_loss(logits, labels, depth=DEPTH, target_depth=TARGET, lambda_semantic=1e-2, unit="joint", invariance=0.5)
    torch.testing.assert_close(loss.depth, scale_invariant_loss(DEPTH.log(), TARGET, invariance=0.5).mean())


def test_the_mean_unit_counts_the_pixels_of_any_shape():
    logits, labels = torch.zeros(1, 4, 2, 5), torch.zeros(1, 2, 5)
    loss = joint_loss(logits, labels, depth=None, target_depth=torch.ones(1, 2, 5), lambda_semantic=1e-2, unit="mean")
    assert loss.total.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("unit", ["sum", "joint", "mean"])
def test_without_depth_the_loss_is_the_semantic_one_in_the_same_unit(unit):
    logits, depth_logits, labels, target = random_batch()
    alone, both = loss_of(logits, None, labels, target, unit=unit), loss_of(logits, depth_logits, labels, target, unit=unit)
    assert alone.total == alone.semantic == both.semantic
    assert alone.depth == 0


def test_gradients_are_those_of_finite_differences():
    logits, depth_logits, labels, target = random_batch()
    logits.requires_grad_()
    depth_logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss_of(a, b, labels, target).total, (logits, depth_logits))


def test_bfloat16_scores_lose_only_what_rounding_them_lost():
    logits, depth_logits, labels, target = random_batch(side=33, classes=40, bins=50, dtype=torch.bfloat16)
    logits, depth_logits, target = 8 * logits, 8 * depth_logits, target.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(logits, depth_logits, labels, target, unit="joint", lambda_semantic=1e-6)
    exact = loss_of(logits.double(), depth_logits.double(), labels, target.double(), unit="joint", lambda_semantic=1e-6)
    for term, want in zip(loss, exact, strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    logits, depth_logits, labels, target = random_batch(dtype=torch.float32)
    logits, depth_logits = logits.to(dtype), depth_logits.to(dtype)
    assert torch.equal(semantic_loss(logits, labels), semantic_loss(logits.float(), labels))
    depth = expected_depth(depth_logits, depth_bin=0.14)
    assert torch.equal(depth, expected_depth(depth_logits.float(), depth_bin=0.14))
    half, single = (
        joint_loss(scores, labels, depth=metres, target_depth=target, lambda_semantic=1e-2, unit="sum")
        for scores, metres in ((logits, depth.to(dtype)), (logits.float(), depth.to(dtype).float()))
    )
    assert half == single


def test_the_overall_scale_counts_where_invariance_is_below_one() -> None:
    target = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)
    twice = (2 * target).log()
    expected = [2 * (1 - invariance) * math.log(2) ** 2 for invariance in (1.0, 0.5, 0.0)]
    found = [scale_invariant_loss(twice, target, invariance=invariance).item() for invariance in (1.0, 0.5, 0.0)]
    assert found == pytest.approx(expected, abs=1e-12)
