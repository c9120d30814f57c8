"""Laws of the filters by themselves, held to the plain sum in float64. Not here: the CRF around them."""

import pytest
import torch
from torch import Tensor

from jointseg.crf.filters import ExactFilter, Features, blend


def features_of(H: int = 9, W: int = 13, *, B: int = 2, theta_position: float = 20.0, theta_colour: float = 3.0) -> Tensor:
    """(B, P, 5) like the appearance kernel's: up to 85 in colour, many pairs near, many far."""
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    position = torch.stack([x, y], -1).reshape(1, -1, 2).expand(B, -1, -1) / theta_position
    base = torch.randint(0, 4, (B, H * W, 1), generator=draw) * 80
    colour = (base + torch.randint(0, 12, (B, H * W, 3), generator=draw)) / theta_colour
    return torch.cat([position, colour], -1).double()


def wrapped(features_BPF: Tensor, size: tuple[int, int] | None = None, valid_BP: Tensor | None = None) -> Features:
    return Features(values_BPF=features_BPF, size=size or (1, features_BPF.shape[1]), valid_BP=valid_BP)


def plain_matrix(features_BPF: Tensor) -> Tensor:
    return (-0.5 * (features_BPF[:, :, None] - features_BPF[:, None]).square().sum(-1)).exp()


def values_like(features_BPF: Tensor, C: int = 4, *, seed: int = 3) -> Tensor:
    B, P, _ = features_BPF.shape
    return torch.rand(B, C, P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BUDGETS = pytest.mark.parametrize("budget_bytes", [0, 1, 20_000, 2**28])


@BUDGETS
def test_exact_is_the_plain_sum(budget_bytes):
    features = features_of()
    values = values_like(features)
    exact = ExactFilter(wrapped(features), budget_bytes=budget_bytes)
    torch.testing.assert_close(exact.apply(values), values @ plain_matrix(features), rtol=1e-12, atol=0)
    torch.testing.assert_close(exact.row_sums, plain_matrix(features).sum(-1), rtol=1e-12, atol=0)


@BUDGETS
def test_in_float32_a_row_is_within_1e_5_of_float64(budget_bytes):
    features = features_of()
    values = values_like(features)
    single = ExactFilter(wrapped(features.float()), budget_bytes=budget_bytes)
    torch.testing.assert_close(single.apply(values.float()).double(), values @ plain_matrix(features), rtol=1e-5, atol=0)
    torch.testing.assert_close(single.row_sums.double(), plain_matrix(features).sum(-1), rtol=1e-5, atol=0)


def test_float32_keeps_small_distances_far_from_the_origin():
    features = torch.tensor([[[85.0, 85.0, 85.0], [85.0, 85.0, 85.03125]]])
    weight = ExactFilter(wrapped(features)).row_sums[0, 0].item() - 1
    assert weight == pytest.approx(2.718281828459045 ** (-0.5 * 0.03125**2), abs=2e-7)


@BUDGETS
def test_transposed_is_the_transpose(budget_bytes):
    features = features_of()
    exact = ExactFilter(wrapped(features), budget_bytes=budget_bytes)
    x, y = values_like(features, seed=4), values_like(features, seed=5)
    torch.testing.assert_close((exact.apply(x) * y).sum(), (x * exact.apply_transposed(y)).sum(), rtol=1e-12, atol=0)


def test_a_blend_is_the_weighted_sum_of_normalised_filters_and_so_is_its_transpose():
    kernels = [features_of(), features_of(theta_colour=30.0)]
    blended = blend([ExactFilter(wrapped(features)) for features in kernels], [0.7, -2.0])
    matrix = sum(s * plain_matrix(f) / plain_matrix(f).sum(-1, keepdim=True) for s, f in zip([0.7, -2.0], kernels, strict=True))
    values = values_like(kernels[0])
    torch.testing.assert_close(blended.apply(values), values @ matrix.mT, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(blended.apply_transposed(values), values @ matrix, rtol=1e-11, atol=1e-13)
    assert torch.equal(blended.row_sums, torch.ones_like(values[:, 0]))


def test_filters_over_their_budget_are_not_blended():
    assert (
        blend([ExactFilter(wrapped(features_of())), ExactFilter(wrapped(features_of()), budget_bytes=1000)], [1.0, 1.0]) is None
    )


def test_no_weight_is_subnormal():
    features = torch.linspace(0, 20, 500)[None, :, None]
    weights = ExactFilter(wrapped(features)).apply(torch.eye(500)[None])
    assert (weights[weights > 0] >= torch.finfo(torch.float32).tiny).all()


def test_a_filter_over_its_budget_holds_no_matrix_and_works_within_the_budget():
    P, budget_bytes = 2000, 100_000
    features = torch.rand(1, P, 3, generator=torch.Generator().manual_seed(0))
    exact = ExactFilter(wrapped(features), budget_bytes=budget_bytes)
    held = sum(part.nbytes for part in vars(exact).values() if isinstance(part, Tensor))
    largest_block = max(weights.untyped_storage().nbytes() for _, weights in exact._blocks())
    assert held <= features.nbytes + 4 * P
    assert 2 * largest_block <= budget_bytes
