"""The bilateral grid: how near its messages are, and how many cells that takes. Not here: what it shares with the other
filters that have a structure (test_crf_structured.py).
"""

import math

import pytest
import torch
from torch import Tensor

from jointseg.crf.filters import ExactFilter, Features
from jointseg.crf.filters.matrices import GridMatrices
from jointseg.crf.filters.structured import bilateral_grid, grid_cells, grid_rows
from jointseg.crf.kernels import Kernel, kernel_features


def messages(gaussian, values: Tensor) -> Tensor:
    return gaussian.apply(values) / gaussian.row_sums[:, None]


@pytest.mark.parametrize("tolerance", [2e-3, 5e-3, 1e-2])
@pytest.mark.parametrize(
    ("position", "patch", "step"),
    [
        *[(each, 8, None) for each in (4.0, 10.0, 50.0)],
        *[(each, round(1.5 * each), step) for each in (10.0, 15.0, 30.0) for step in (None, 1.0)],
        *[(each, round(1.5 * each), step) for each in (2.0, 4.0, 5.1, 7.5, 9.9) for step in (None, 1.0)],
    ],
)
def test_sharp_regions_keep_the_grids_tolerance(position, patch, step, tolerance):
    """Patches of a class are sharper than any noise, which a wide blur makes flat. Depth has steps of so many bandwidths."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    depth = 2 + x / 64 + 0.4 * torch.sin(y / 9) + (x > 40)
    if step is not None:
        depth = (depth / (0.2 * step)).round() * 0.2 * step
    kernel = Kernel(name="k", weight=1, position=position, guides={"depth": 0.2})
    features = Features(values_BPF=kernel_features(kernel, {"depth": depth[None, None]}, like=depth[None, None]), size=(64, 64))
    across = -(-64 // patch)
    patches = torch.randint(0, 4, (across, across), generator=torch.Generator().manual_seed(1))
    classes = patches.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:64, :64]
    values = torch.nn.functional.one_hot(classes, 4).permute(2, 0, 1).flatten(1)[None].float()
    exact = messages(ExactFilter(features), values)
    assert (messages(bilateral_grid(features, tolerance=tolerance), values) - exact).abs().mean() / exact.mean() <= tolerance


@pytest.mark.parametrize("position", [0.05, 0.3, 0.7])
def test_a_grid_of_pixels_that_hardly_see_each_other_is_exact_along_positions(position):
    kernel = Kernel(name="k", weight=1, position=position, guides={"depth": 0.5})
    depth = torch.ones(1, 1, 20, 30, dtype=torch.float64)
    features = Features(values_BPF=kernel_features(kernel, {"depth": depth}, like=depth), size=(20, 30))
    values = torch.rand(1, 4, 600, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = messages(ExactFilter(features), values)
    for gaussian in (bilateral_grid(features), GridMatrices(features, cells_per_sigma=grid_cells(features))):
        torch.testing.assert_close(messages(gaussian, values), exact, rtol=2e-3, atol=1e-9)


def test_a_grid_has_no_more_cells_for_wide_positions_than_its_tolerance_asks_for():
    depth = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for position, times in ((10.0, 1.2), (30.0, 1.2), (9.0, 1.25)):
        kernel = Kernel(name="k", weight=1, position=position, guides={"depth": 0.2})
        features = Features(values_BPF=kernel_features(kernel, {"depth": depth}, like=depth), size=(64, 64))
        cells = grid_cells(features)
        assert cells == pytest.approx([2 * times, 2 * times, 2.2])
        assert grid_rows(features, cells) == [math.prod(bilateral_grid(features).parts[0].shape)]
