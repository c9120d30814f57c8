"""Laws of the units of the loss. Not here: the loss itself (test_losses.py)."""

import itertools

import pytest
import torch

from jointseg.units import convert_rate, unit_scale

LAMBDA, PIXELS = 1e-6, 513**2
UNITS = ("sum", "joint", "mean")
PAIRS = list(itertools.product(UNITS, UNITS))


def test_the_papers_rate_on_l_prime_is_one_in_ten_thousand_on_l():
    rate = convert_rate(1e-10, 5e-4, from_unit="sum", to_unit="joint", lambda_semantic=LAMBDA, num_pixels=PIXELS)
    assert rate.lr == pytest.approx(1e-4, rel=1e-12)
    assert rate.weight_decay == pytest.approx(5e-10, rel=1e-12)


def test_the_papers_rate_on_the_mean_loss():
    rate = convert_rate(1e-10, 5e-4, from_unit="sum", to_unit="mean", lambda_semantic=LAMBDA, num_pixels=PIXELS)
    assert rate.lr == pytest.approx(2.632e-5, rel=2e-4)
    assert rate.weight_decay == pytest.approx(1.90e-9, rel=1e-3)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_there_and_back_is_where_it_began(one, other):
    sizes = {"lambda_semantic": LAMBDA, "num_pixels": PIXELS}
    there = convert_rate(1e-10, 5e-4, from_unit=one, to_unit=other, **sizes)
    back = convert_rate(*there, from_unit=other, to_unit=one, **sizes)
    assert tuple(back) == pytest.approx((1e-10, 5e-4), rel=1e-12)


@pytest.mark.parametrize(("one", "other"), [pair for pair in PAIRS if pair[0] < pair[1]])
def test_sgd_takes_the_same_steps_in_every_unit(one, other):
    sizes = {"lambda_semantic": 1e-3, "num_pixels": 81}

    def weights_after_training(unit):
        rate = convert_rate(1e-3, 0.5, from_unit="sum", to_unit=unit, **sizes)
        w = torch.linspace(-1, 2, 5, dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([w], lr=rate.lr, weight_decay=rate.weight_decay, momentum=0.99)
        for _ in range(6):
            loss = unit_scale(unit, **sizes) * (w.sin() * w).square().sum()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        return w.detach()

    torch.testing.assert_close(weights_after_training(one), weights_after_training(other), rtol=1e-12, atol=1e-14)
    assert (weights_after_training(one) - torch.linspace(-1, 2, 5)).abs().max() > 1e-2
