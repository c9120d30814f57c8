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
from jointseg.crf.filters.cell_items import CellItems
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


# The kernels of the separable filter and of the grid


@pytest.fixture
def both_ways(monkeypatch):
    """Builds a filter twice: by PyTorch's products alone, and with kernels of our own."""

    def build(make):
        monkeypatch.setattr(matrices, "_takes_kernels", lambda values: False)
        plain = make()
        monkeypatch.setattr(matrices, "_takes_kernels", lambda values: True)
        return plain, make()

    return build


@pytest.mark.parametrize(
    ("size", "sigma", "by_band"),
    [((70, 31), (1.0, 0.5), True), ((41, 70), (0.5, 1.2), True), ((9, 200), (3.0, 0.3), True), ((40, 40), (1.0, 2.0), False)],
)
def test_a_narrow_band_is_the_whole_matrix(both_ways, size, sigma, by_band):
    draw = torch.Generator().manual_seed(0)
    features = Features(values_BPF=torch.rand(2, size[0] * size[1], 2, generator=draw).to(DEVICE), size=size, valid_BP=None)
    plain, banded = both_ways(lambda: SeparableMatrices(features, sigma=sigma))
    values = torch.randn(2, 3, size[0] * size[1], generator=draw).to(DEVICE)
    assert not plain._by_taps
    assert banded._by_taps == by_band
    torch.testing.assert_close(banded.apply(values), plain.apply(values), rtol=0, atol=2e-5)
    totals, factors = torch.randn(2, *values.shape, generator=draw).to(DEVICE), values[:, 0].abs()
    totals[1] = totals[0]
    for gaussian, total in zip((plain, banded), totals, strict=True):
        gaussian.add_to(total, values, factors, first=False)
    torch.testing.assert_close(totals[0], totals[1], rtol=0, atol=2e-5)
    torch.testing.assert_close(banded.row_sums, plain.row_sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("size", "radius", "C"),
    [
        pytest.param((1, 1), 0, 70, id="one pixel"),
        pytest.param((33, 129), 3, 1, id="a place more than a block"),
        pytest.param((37, 16), 15, 2, id="sixteen columns"),
        pytest.param((35, 150), 20, 2, id="a program with columns of two channels"),
        pytest.param((20, 31), 19, 3, id="to the side"),
        pytest.param((7, 9), 40, 40, id="beyond the side"),
        pytest.param((3, 5), 2, 70, id="a program with columns of many channels"),
    ],
)
def test_a_blur_by_bands_is_the_sum_over_taps(size, radius, C):
    """Of two images; factors and an earlier sum beside it, and neither."""
    kernels, (H, W), draw = matrices._kernels(), size, torch.Generator().manual_seed(0)
    taps = torch.rand(2, radius + 1, generator=draw) / (1 + radius)
    values, before = torch.randn(2, 2, C, H, W, generator=draw).to(DEVICE)
    factors = torch.rand(2, H * W, generator=draw).to(DEVICE)
    bands = [kernels.band_of(each.to(DEVICE)) for each in taps]
    across, down = (toeplitz(each, length).to(DEVICE) for each, length in zip(taps.double(), (W, H), strict=True))
    expected = down @ values.double() @ across
    scaled = before.double() + expected * factors.view(2, 1, H, W)
    for given, added, sums in ((None, False, expected), (factors, True, scaled)):
        runs = [before.clone(), before.clone()]
        for out in runs:
            kernels.blur_into(out, values, *bands, given, added=added)
        torch.testing.assert_close(runs[0].double(), sums, rtol=2e-6, atol=2e-6)
        assert torch.equal(*runs)


def toeplitz(taps: Tensor, length: int) -> Tensor:
    places = torch.arange(length)
    distances = (places[:, None] - places).abs()
    return torch.where(distances < len(taps), taps[distances.clamp(max=len(taps) - 1)], 0.0)


def test_a_band_is_its_taps_in_two_parts_of_tf32():
    taps = torch.exp(-0.5 * (torch.arange(16) / 3.0) ** 2).to(DEVICE)
    big, small = matrices._kernels().band_of(taps)
    assert ((big.view(torch.int32) & 0x1FFF) == 0).all()
    assert (small.abs() <= 2.0**-11 * big.abs()).all()
    assert torch.equal((big + small)[16:48], toeplitz(taps.cpu(), 32).to(DEVICE)), "the block itself, behind 16 places"


@pytest.mark.parametrize("C", [1, 40, 70])
@pytest.mark.parametrize("masked", [False, True])
def test_a_grid_is_written_as_its_sums_over_pixels(C, masked):
    """Cells with no pixel, with some, and with more than an item holds; values of any strides."""
    P, G, offsets = 700, 50, torch.tensor([0, 1, 6, 7])
    draw = torch.Generator().manual_seed(0)
    lowest = torch.randint(43, (P,), generator=draw) // 7 * 7  # one in seven
    lowest[torch.randperm(P, generator=draw)[:400]] = 14
    corners, weights = (lowest[:, None] + offsets).to(DEVICE), torch.rand(P, 4, generator=draw).to(DEVICE)
    valid = torch.rand(P, generator=draw).to(DEVICE) > 0.3 if masked else None
    items = CellItems.of(corners, G, valid)
    assert items.first_items.diff().max() >= 3
    assert items.bounds.diff().amin() >= 1
    for values in (torch.randn(C, P, generator=draw).to(DEVICE), torch.randn(P, C, generator=draw).to(DEVICE).T):
        heard = values.double() if valid is None else torch.where(valid, values.double(), 0.0)
        expected = torch.zeros(G, C, dtype=torch.float64, device=DEVICE)
        for v in range(4):
            expected.index_add_(0, corners[:, v], (heard * weights[:, v]).T)
        given = values if valid is None else values.masked_fill(~valid, torch.nan)
        grid = matrices._kernels().splat(given, weights, items)
        torch.testing.assert_close(grid.double(), expected, rtol=1e-5, atol=2e-5)
        assert torch.equal(matrices._kernels().splat(given, weights, items), grid)
        assert (grid[expected.abs().sum(1) == 0] == 0).all()
        assert (expected.abs().sum(1) == 0).any()


def test_a_grid_that_no_pixel_takes_part_in_is_zero():
    corners = torch.arange(4, device=DEVICE) + torch.zeros(9, 1, dtype=torch.int64, device=DEVICE)
    items = CellItems.of(corners, 5, torch.zeros(9, dtype=torch.bool, device=DEVICE))
    grid = matrices._kernels().splat(torch.ones(3, 9, device=DEVICE), torch.ones(9, 4, device=DEVICE), items)
    assert torch.equal(grid, torch.zeros(5, 3, device=DEVICE))


@pytest.mark.parametrize("C", [1, 40, 70])
@pytest.mark.parametrize("F", [1, 2, 3])
def test_a_grid_is_written_and_read_as_by_its_matrices(both_ways, C, F):
    draw = torch.Generator().manual_seed(0)
    valid_BP = (torch.rand(2, 77, generator=draw) > 0.1).to(DEVICE)
    features = Features(values_BPF=2 * torch.rand(2, 77, F, generator=draw).to(DEVICE), size=(7, 11), valid_BP=valid_BP)
    plain, ours = both_ways(lambda: GridMatrices(features, cells_per_sigma=2.0))
    values = torch.randn(2, 77, C, generator=draw).to(DEVICE).mT
    assert ours.apply(values).is_contiguous()
    torch.testing.assert_close(ours.apply(values), plain.apply(values), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.row_sums, plain.row_sums, rtol=1e-6, atol=0)


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
