"""Several kernels of one kind in one CRF: each keeps to its own points, whatever the bandwidths and the image's size."""

from __future__ import annotations

import pytest
import torch

from jointseg.crf import DenseCRF
from jointseg.crf.filters import Features, StructuredFilter, structured
from jointseg.crf.filters.structured import bilateral_grid, separable_filter
from jointseg.crf.kernels import Kernel

KERNELS = (
    Kernel(name="narrow", weight=1.0, position=1.0),
    Kernel(name="middle", weight=0.7, position=4.0),
    Kernel(name="wide", weight=0.5, position=60.0),
    Kernel(name="fine", weight=0.3, position=20.0, guides={"depth": 0.5}),
    Kernel(name="rough", weight=0.2, position=9.0, guides={"depth": 2.0}),
)


def of_a_kind(features: Features) -> StructuredFilter:
    found = separable_filter(features) if features.values_BPF.shape[2] == 2 else bilateral_grid(features)
    assert isinstance(found, StructuredFilter)
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [(20, 129), (5, 200), (1, 300), (129, 3), (30, 31), (3, 701)])
def test_several_kernels_of_a_kind_match_the_exact_sums(
    size: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structured, "PIXELS_PER_THREAD", 1)
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    H, W = size
    logits, depth = torch.randn(1, 7, H, W, generator=draw), 1 + 3 * torch.rand(1, H, W, generator=draw)
    depth[..., : W // 3] = 0  # no depth there
    found, exact = (
        DenseCRF(7, kernels=KERNELS, filter=filter).requires_grad_(False)(logits, depth=depth, num_iterations=3).softmax(1)
        for filter in (of_a_kind, "exact")
    )
    assert (found - exact).abs().max() <= 5e-4
