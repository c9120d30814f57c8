"""The CRF around the GPU's filters, held to the exact one; on a CPU Triton's interpreter runs them.

Not here: the filters alone.
"""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF, mean_field
from jointseg.crf.filters import FILTERS, ExactFilter, Features, SummedFilter, matrices, missing_for_block_sparse
from jointseg.crf.filters.matrices import GridMatrices, SeparableMatrices

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are imported, which is when the first filter is built
pytest.importorskip("triton", reason="the block-sparse filter needs the triton package")
H, W, C = 12, 14, 3
FORMS = pytest.mark.parametrize("form", ["crfrnn", "hadamard"])
NORMALIZATIONS = pytest.mark.parametrize("normalization", ["after", "symmetric"])


def scene() -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    planes = torch.rand(2, 4, 2, 2, generator=draw).repeat_interleave(6, 2).repeat_interleave(7, 3)
    image = (255 * planes[:, :3] + 3 * torch.randn(2, 3, H, W, generator=draw)).clamp(0, 255)
    depth = 1 + 3 * planes[:, 3]
    depth[0, 2:4] = 0
    logits = torch.randn(2, C, H, W, generator=draw)
    return logits.to(DEVICE), {"image": image.to(DEVICE), "depth": depth.to(DEVICE)}


def on_gpu(features: Features):
    """What `auto` takes on CUDA for large images."""
    F = features.values_BPF.shape[2]
    if F == 2:
        return SeparableMatrices(features, sigma=(3.0, 3.0))
    return GridMatrices(features, cells_per_sigma=3.0) if F == 3 else FILTERS["block_sparse"](features)


def learned(form: str, filter, **options) -> DenseCRF:
    settings = CrfSettings(
        pairwise=form, num_iterations=3, theta_alpha=8, theta_gamma=6, w_appearance=1, w_depth=0.6, w_smoothness=0.4
    )
    crf = DenseCRF(C, settings, filter=filter, **options)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in crf.named_parameters():
        if not name.startswith("log_bandwidths"):
            parameter.data += 0.1 * torch.randn(C, C, generator=draw)
    return crf.to(DEVICE)


@NORMALIZATIONS
@FORMS
def test_q_is_near_the_exact_one(form, normalization):
    logits, guides = scene()
    with torch.no_grad():
        q, exact = (
            learned(form, filter, normalization=normalization)(logits, **guides).softmax(1) for filter in (on_gpu, "exact")
        )
    assert (q - exact).abs().max() <= 5e-3
    torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]))


@FORMS
def test_laws_of_q(form):
    logits, guides = scene()
    crf, permuted, order = learned(form, on_gpu), learned(form, on_gpu), [2, 0, 1]
    for parameter in permuted.parameters():
        parameter.data = parameter.data[order][:, order]
    shift = torch.linspace(-5, 5, H * W, device=DEVICE).reshape(1, 1, H, W)
    near, twice = {"rtol": 1e-4, "atol": 2e-5}, {**guides, "num_iterations": 2}
    with torch.no_grad():
        out = crf(logits, **twice)
        torch.testing.assert_close(crf(logits + shift, **twice).softmax(1), out.softmax(1), **near)
        torch.testing.assert_close(permuted(logits[:, order], **twice), out[:, order], **near)
        singles = [
            crf(logits[i : i + 1], num_iterations=2, **{name: guide[i : i + 1] for name, guide in guides.items()})
            for i in range(2)
        ]
        torch.testing.assert_close(torch.cat(singles), out, **near)
        crf.weights["depth"].zero_()
        torch.testing.assert_close(crf(logits, **twice), crf(logits, image=guides["image"], num_iterations=2), **near)
        for weight in crf.weights.values():
            weight.zero_()
        assert torch.equal(crf(logits, **twice), logits)
        assert crf(logits, **guides, num_iterations=0) is logits


@pytest.mark.slow
@pytest.mark.parametrize(("size", "classes"), [((1, 1), 2), ((1, 9), 150), ((9, 1), 3)])
@pytest.mark.parametrize("bandwidth", [0.01, 3.0, 1e4])
def test_any_size_class_count_and_bandwidth_gives_finite_logits(size, classes, bandwidth):
    thetas = dict.fromkeys(("theta_alpha", "theta_beta", "theta_gamma", "theta_zeta", "theta_tau"), bandwidth)
    crf = DenseCRF(classes, CrfSettings(num_iterations=2, **thetas), filter="block_sparse").to(DEVICE).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    logits, image, depth = (torch.rand(shape, generator=draw) for shape in ((2, classes, *size), (2, 3, *size), (2, *size)))
    out = crf(logits.to(DEVICE), image=255 * image.to(DEVICE), depth=1 + depth.to(DEVICE))
    assert out.shape == logits.shape
    assert out.isfinite().all()


@NORMALIZATIONS
@FORMS
def test_gradients_are_near_the_exact_ones(form, normalization):
    logits, guides = scene()
    target = torch.randint(0, C, (2, H, W), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    grads = []
    for filter in (on_gpu, "exact"):
        crf, given = learned(form, filter, normalization=normalization), logits.clone().requires_grad_()
        torch.nn.functional.cross_entropy(crf(given, **guides), target).backward()
        grads.append([given.grad, *(parameter.grad for parameter in crf.parameters())])
    for one, exact in zip(*grads, strict=True):
        assert (one - exact).abs().max() <= 2e-2 * exact.abs().max()


def test_gradients_by_the_bandwidths_are_near_the_exact_ones():
    logits, guides = scene()
    target = torch.randint(0, C, (2, H, W), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    grads = []
    for filter in ("block_sparse", "exact"):
        crf = learned("crfrnn", filter, learn_bandwidths=True)
        torch.nn.functional.cross_entropy(crf(logits, **guides), target).backward()
        grads.append([log_G.grad for log_G in crf.log_bandwidths.values()])
    for one, exact in zip(*grads, strict=True):
        assert (one - exact).abs().max() <= 2e-2 * exact.abs().max() + 1e-6


# Several kernels at once


def test_a_sum_of_filters_is_the_sum_and_its_transpose_the_transpose():
    draw = torch.Generator().manual_seed(0)
    values = [torch.rand(2, 30, F, generator=draw).to(DEVICE) for F in (1, 2, 3)]
    filters = [ExactFilter(Features(values_BPF=values_BPF, size=(5, 6))) for values_BPF in values]
    summed = SummedFilter(filters, [0.5, 0.0, -2.0])
    x, y = torch.randn(2, 2, 4, 30, generator=draw).to(DEVICE)
    parts = [filters[0].apply(x) / filters[0].row_sums[:, None], filters[2].apply(x) / filters[2].row_sums[:, None]]
    torch.testing.assert_close(summed.apply(x), 0.5 * parts[0] - 2 * parts[1])
    assert (summed.row_sums == 1).all()
    torch.testing.assert_close((summed.apply(x) * y).sum(), (x * summed.apply_transposed(y)).sum(), rtol=1e-5, atol=0)


def test_classes_are_mixed_once_where_matrices_are_multiples(monkeypatch):
    logits, guides = scene()
    crf = DenseCRF(C, CrfSettings(num_iterations=3, theta_alpha=8, w_depth=0.6), filter=on_gpu).to(DEVICE).requires_grad_(False)
    merged = crf(logits, **guides)
    monkeypatch.setattr(mean_field, "merge_terms", lambda filters, matrices_KCC: (filters, list(matrices_KCC)))
    # A GPU does not mix with multiples of I at all: q is rounded to float16 there, and A q here.
    off = 5e-3 if DEVICE == "cuda" else 2e-5
    torch.testing.assert_close(merged, crf(logits, **guides), rtol=1e-4, atol=off)


@pytest.mark.parametrize("C", [2, 40, 150])
def test_a_softmax_of_a_difference_in_one_pass_is_that_of_the_difference(monkeypatch, C):
    left, right = 20 * torch.randn(2, 2, C, 77, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    plain = (left - right).softmax(1)
    monkeypatch.setattr(mean_field, "_takes_kernels", lambda *values: True)
    torch.testing.assert_close(mean_field.softmax_of_difference(left, right), plain, rtol=1e-5, atol=1e-7)


def test_one_kernel_takes_what_it_can_and_nothing_that_is_recorded(monkeypatch):
    monkeypatch.setattr(mean_field, "has_triton", lambda: True)
    fits = {"is_cuda": True, "dtype": torch.float32, "is_contiguous": lambda: True, "requires_grad": False, "shape": (1, 40, 9)}
    others = (
        {"is_cuda": False}, {"dtype": torch.float64}, {"is_contiguous": lambda: False}, {"requires_grad": True},
        {"shape": (1, 513, 9)},
    )  # fmt: skip
    assert mean_field._takes_kernels(SimpleNamespace(**fits), SimpleNamespace(**fits))
    for other in others:
        assert not mean_field._takes_kernels(SimpleNamespace(**fits | other), SimpleNamespace(**fits)), other
    with torch.no_grad():
        assert mean_field._takes_kernels(SimpleNamespace(**fits | {"requires_grad": True}), SimpleNamespace(**fits))


def test_without_a_kernel_logits_stay_as_they_are():
    logits = torch.randn(1, 3, 8)
    assert mean_field.mean_field(logits, [], matrices_KCC=torch.zeros(0, 3, 3), num_iterations=2) is logits


@pytest.mark.parametrize("kernels", [False, True])
def test_what_is_added_to_a_sum_is_what_is_applied_times_its_factors(monkeypatch, kernels):
    monkeypatch.setattr(matrices, "_takes_kernels", lambda values: kernels)
    _, guides = scene()
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, H * W, generator=draw).to(DEVICE)
    factors, before = torch.rand(2, H * W, generator=draw).to(DEVICE), torch.randn(2, 5, H * W, generator=draw).to(DEVICE)
    prepared = DenseCRF(C, CrfSettings(), filter=on_gpu).to(DEVICE).prepare(**guides)
    for gaussian in prepared.filters:
        expected = gaussian.apply(values) * factors[:, None]
        total = torch.full_like(values, torch.nan)
        gaussian.add_to(total, values, factors, first=True)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
        total = before.clone()
        gaussian.add_to(total, values, factors, first=False)
        torch.testing.assert_close(total, before + expected, rtol=1e-5, atol=1e-5)


def test_every_run_gives_the_same_bits():
    logits, guides = scene()
    crf = learned("crfrnn", on_gpu)
    with torch.no_grad():
        assert torch.equal(crf(logits, **guides), crf(logits, **guides))


def test_what_triton_can_do_is_taken_for_any_number_of_features():
    assert missing_for_block_sparse(torch.float32) is None


@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
def test_auto_on_cuda_takes_what_suits_each_kernel():
    image = torch.randint(0, 256, (1, 3, 100, 100), dtype=torch.uint8, device="cuda")
    prepared = DenseCRF(C).cuda().prepare(image=image, depth=torch.rand(1, 100, 100, device="cuda") + 1)
    assert prepared.filter_names == {"appearance": "block_sparse", "depth": "bilateral_grid", "smoothness": "separable"}


@pytest.mark.parametrize("num_features", [2, 3, 5])
def test_what_a_masked_pixel_holds_is_heard_by_none(num_features):
    """Not even where it is no number."""
    maker = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    colours = torch.rand(1, H * W, 3, generator=maker)
    values_BPF = torch.cat([torch.stack([x, y], -1).reshape(1, -1, 2) / 3, colours], -1)[..., :num_features]
    valid = torch.rand(1, H * W, generator=maker) > 0.2
    gaussian = on_gpu(Features(values_BPF=values_BPF.to(DEVICE), size=(H, W), valid_BP=valid.to(DEVICE)))
    values = torch.rand(1, 3, H * W, generator=maker)
    spoilt = values.masked_fill(~valid[:, None], torch.nan)
    assert torch.equal(gaussian.apply(spoilt.to(DEVICE)), gaussian.apply(values.to(DEVICE)))
