"""Guides of one's own, and what a mask covers of them. Not here: kernels of one's own (test_crf_own_kernels.py)."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF, Kernel
from jointseg.crf.filters import FILTERS, Features
from jointseg.errors import InputError

H, W = 5, 6
NEAR = Kernel(name="near", weight=1.0, position=1.5)
KERNELS = (
    Kernel(name="shape", weight=2.0, position=4.0, guides={"xyz": 0.5}),
    Kernel(name="appearance", weight=2.0, position=9.0, guides={"image": 20.0}),
    Kernel(name="depth", weight=1.0, position=3.0, guides={"depth": 0.2}),
)


def logits_of(B: int, H: int, W: int) -> Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def xyz(B: int = 1, H: int = 40, W: int = 44) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(B, 3, H, W, generator=draw, dtype=torch.float64) * 4


def test_positions_that_tell_nothing_do_not_blur_the_lattice():
    guide = xyz()
    logits = logits_of(1, *guide.shape[2:])

    def refined(filter):
        kernels = [Kernel(name="near", weight=4.0, position=1e9, guides={"xyz": 0.8})]
        crf = DenseCRF(3, CrfSettings(num_iterations=3), kernels=kernels, filter=filter, dtype=torch.float64)
        return crf(logits, guides={"xyz": guide}).softmax(1)

    def of_the_guide_alone(features: Features):
        alone = Features(values_BPF=features.values_BPF[..., 2:], size=features.size, valid_BP=features.valid_BP)
        return FILTERS["permutohedral"](alone)

    assert torch.equal(refined("permutohedral"), refined(of_the_guide_alone))
    assert (refined("permutohedral") - refined("exact")).abs().mean() < 0.02


def test_guides_far_from_zero_are_as_good_as_near_it():
    """Coordinates on a map: kernels compare differences."""
    guide, far = xyz(), torch.tensor([450_000.0, 5_400_000.0, 300.0], dtype=torch.float64)[:, None, None]
    logits = logits_of(1, *guide.shape[2:])
    kernels = [Kernel(name="near", weight=4.0, position=9.0, guides={"xyz": 0.5})]
    crf = DenseCRF(3, CrfSettings(num_iterations=3), kernels=kernels, dtype=torch.float64)
    near, there = (crf.prepare(guides={"xyz": own}) for own in (guide, guide + far))
    assert near.filter_names == there.filter_names == {"near": "permutohedral"}
    exact = DenseCRF(3, crf.settings, kernels=kernels, filter="exact", dtype=torch.float64)
    q = exact(logits, guides={"xyz": guide}).softmax(1)
    errors = [(crf(logits, prepared=own).softmax(1) - q).abs().mean() for own in (near, there)]
    assert errors[1] < 1.5 * errors[0] < 0.05


@pytest.mark.parametrize("masked", [False, True])
def test_float32_tells_neighbours_apart_far_from_zero(masked):
    """Metres on a map, compared in centimetres: all values are float32's own, so that nothing was lost before."""
    centimetres = torch.randint(0, 64, (2, 3, 12, 15), generator=torch.Generator().manual_seed(0)) / 64
    guide = centimetres + torch.tensor([50_000.0, 0.0, -9_000.0])[:, None, None]
    assert (guide.double() == centimetres.double() + torch.tensor([50_000.0, 0.0, -9_000.0])[:, None, None]).all()
    mask = torch.rand(2, 12, 15, generator=torch.Generator().manual_seed(1)) > 0.2 if masked else None
    if mask is not None:
        mask[1] = False  # an image where no pixel takes part
    kernels, logits = [Kernel(name="near", weight=4.0, position=9.0, guides={"xyz": 0.1})], logits_of(2, 12, 15).float()
    crf = DenseCRF(3, CrfSettings(num_iterations=3), kernels=kernels, filter="exact")
    exact = DenseCRF(3, crf.settings, kernels=kernels, filter="exact", dtype=torch.float64)
    with torch.no_grad():
        q = exact(logits.double(), guides={"xyz": centimetres.double()}, mask=mask, probabilities=True)
        found = crf(logits, guides={"xyz": guide}, mask=mask, probabilities=True)
    assert (found - q).abs().max() < 1e-5


def test_a_kernel_keeps_its_guides_and_can_be_a_key():
    given = {"image": 13.0, "depth": 0.2}
    kernel = Kernel(name="appearance", weight=1.0, position=5.0, guides=given)
    given["image"] = -1.0
    assert kernel.bandwidths == (5.0, 13.0, 0.2)
    same = Kernel(name="appearance", weight=1.0, position=5.0, guides={"depth": 0.2, "image": 13.0})
    assert {kernel: "found"}[same] == "found"
    assert pickle.loads(pickle.dumps(kernel)) == kernel == copy.deepcopy(kernel)


def test_kernels_of_positions_alone_are_prepared_for_a_mask():
    mask = torch.ones(2, H, W, dtype=torch.bool)
    mask[1, :, 4:] = False
    crf = DenseCRF(3, CrfSettings(num_iterations=2), kernels=[NEAR], dtype=torch.float64)
    logits = logits_of(2, H, W)
    assert torch.equal(crf(logits, prepared=crf.prepare(mask=mask)), crf(logits, mask=mask))
    with pytest.raises(InputError, match=r"^nothing to prepare: .* for positions alone mask \(B, H, W\)$"):
        crf.prepare()
    with pytest.raises(InputError, match=r"^mask has shape \(5, 6\); allowed: \(B, H, W\), not empty$"):
        crf.prepare(mask=mask[0])


def test_a_guide_of_bytes_is_as_one_of_numbers():
    guide = torch.randint(0, 256, (2, 2, H, W), dtype=torch.uint8)
    crf = DenseCRF(3, kernels=[Kernel(name="thermal", weight=2.0, position=4.0, guides={"thermal": 20.0})], dtype=torch.float64)
    logits = logits_of(2, H, W)
    assert torch.equal(crf(logits, guides={"thermal": guide}), crf(logits, guides={"thermal": guide.double()}))


@pytest.mark.parametrize("filter", ["auto", "permutohedral"])
def test_what_lies_under_the_mask_may_be_no_number(filter):
    B, H, W = 1, 40, 44
    guide, mask = xyz(), torch.rand(B, H, W, generator=torch.Generator().manual_seed(5)) > 0.2
    crf = DenseCRF(3, CrfSettings(num_iterations=2), kernels=KERNELS, filter=filter, dtype=torch.float64)
    draw = torch.Generator().manual_seed(6)
    given = {
        "logits": logits_of(B, H, W),
        "image": 255 * torch.rand(B, 3, H, W, generator=draw, dtype=torch.float64),
        "depth": guide[:, 2] + 1,
    }

    def spoil(values, worse):
        return values.masked_fill(~mask[:, None] if values.ndim == 4 else ~mask, worse)

    found = []
    for worse in (1.0, float("nan"), float("inf")):
        bad = {name: spoil(values, worse) for name, values in given.items()}
        leaf = bad.pop("logits").requires_grad_()
        q = crf(leaf, **bad, guides={"xyz": spoil(guide, worse)}, mask=mask, probabilities=True)
        seen = q.movedim(1, -1)[mask]
        seen.square().sum().backward()
        found.append((seen.detach(), leaf.grad.movedim(1, -1)[mask], leaf.grad.movedim(1, -1)[~mask]))
    for seen, gradient, under in found:
        assert torch.equal(seen, found[0][0])
        assert torch.equal(gradient, found[0][1])
        assert not under.any()
