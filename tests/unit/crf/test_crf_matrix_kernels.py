"""The kernels of the separable filter and of the bilateral grid on a GPU, held to their sums and matrices; on a CPU Triton's
interpreter runs them.

Not here: the CRF around them (test_crf_on_gpu_filters.py).
"""

import os

import pytest
import torch
from torch import Tensor

from jointseg.crf.filters import Features, matrices
from jointseg.crf.filters.cell_items import CellItems
from jointseg.crf.filters.matrices import GridMatrices, SeparableMatrices

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are imported, which is when the first filter is built
pytest.importorskip("triton", reason="these kernels need the triton package")


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


@pytest.mark.slow
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
