"""DenseCRF(normalization="symmetric"): pydensecrf's default. Not here: division by the row sums, as all other tests have it."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF, InputError, Kernel
from jointseg.crf.filters import structured
from jointseg.crf.kernels import kernel_features
from tests.crf_scenes import apart, automatic, infer, scene


@pytest.fixture(autouse=True)
def _threads_for_small_images(monkeypatch):
    monkeypatch.setattr(structured, "PIXELS_PER_THREAD", 1)


def symmetric(C: int, filter, *, learn: bool = True, **changes) -> DenseCRF:
    settings = CrfSettings(num_iterations=3, **changes).scaled(1 / 8)
    crf = DenseCRF(C, settings, filter=filter, normalization="symmetric").double()
    draw = torch.Generator().manual_seed(1)
    for parameter in crf.parameters() if learn else ():
        parameter.data += 0.3 * torch.randn(C, C, generator=draw, dtype=torch.float64)
    return crf


def test_it_is_pydensecrfs_default():
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="needs pydensecrf2")
    H, W, C = 60, 75, 7
    logits, image, _ = scene(C=C, H=H, W=W, dtype=torch.float32)
    peer = densecrf.DenseCRF2D(W, H, C)
    peer.setUnaryEnergy(np.ascontiguousarray(-logits[0].flatten(1).numpy()))
    peer.addPairwiseGaussian(sxy=3, compat=3)
    pixels = image.byte()
    peer.addPairwiseBilateral(sxy=20, srgb=13, rgbim=np.ascontiguousarray(pixels[0].movedim(0, -1).numpy()), compat=10)
    expected = torch.from_numpy(np.array(peer.inference(5)).reshape(C, H, W))
    kernels = (
        Kernel(name="smoothness", weight=3, position=3),
        Kernel(name="appearance", weight=10, position=20, guides={"image": 13}),
    )
    q = {
        normalization: infer(
            DenseCRF(C, kernels=kernels, filter="permutohedral", normalization=normalization),
            logits, pixels, None, num_iterations=5, probabilities=True,
        )[0]
        for normalization in ("symmetric", "after")
    }  # fmt: skip
    assert (q["symmetric"] - expected).abs().mean() <= 1e-6
    assert (q["after"] - expected).abs().mean() > 1e-4


def test_the_exact_one_is_the_formula():
    logits, image, depth = scene(C=3, H=5, W=6)
    crf = DenseCRF(3, CrfSettings(num_iterations=2, theta_beta=40), filter="exact", normalization="symmetric").double()
    terms = []
    for kernel in crf.kernels:
        features = kernel_features(kernel, {"image": image, "depth": depth[:, None]}, like=logits)[0]
        K = (-0.5 * (features[:, None] - features[None]).square().sum(-1)).exp()
        roots = K.sum(1).rsqrt()
        terms.append(kernel.weight * roots[:, None] * K * roots)
    now = unary = logits[0].flatten(1)
    for _ in range(2):
        now = unary + now.softmax(0) @ sum(terms).T
    torch.testing.assert_close(infer(crf, logits, image, depth)[0].flatten(1), now, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("learn", [True, False], ids=["learned weights", "multiples of I"])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_pass_gives_what_one_filter_after_another_gives_and_its_gradients(learn, threads):
    torch.set_num_threads(threads)
    parts = scene(2, 3)
    parts[2][0, 3:6] = 0  # holes
    mask = torch.rand(2, 19, 26, generator=torch.Generator().manual_seed(3)) > 0.1
    found = []
    for filter in (apart, automatic):
        crf = symmetric(3, filter, learn=learn)
        logits = parts[0].clone().requires_grad_()
        out = crf(logits, image=parts[1], depth=parts[2], mask=mask).softmax(1)
        torch.testing.assert_close(infer(crf, *parts, mask=mask).softmax(1), out.detach(), rtol=1e-11, atol=1e-12)
        (out * torch.rand(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)).sum().backward()
        found.append([out.detach(), logits.grad, *(parameter.grad for parameter in crf.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_its_gradients_are_those_of_finite_differences():
    crf, (logits, image, depth) = symmetric(3, automatic), scene(H=4, W=5)
    names, parameters = zip(*crf.named_parameters(), strict=True)

    def q(logits: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(crf, state, (logits,), {"image": image, "depth": depth}).softmax(1)

    assert torch.autograd.gradcheck(q, (logits.requires_grad_(), *parameters))


def test_what_was_prepared_serves_both():
    logits, image, depth = scene()
    one, other = symmetric(3, automatic), DenseCRF(3, CrfSettings().scaled(1 / 8), filter=automatic).double()
    prepared = other.prepare(image=image, depth=depth)
    with torch.no_grad():
        assert torch.equal(one(logits, prepared=prepared), infer(one, logits, image, depth))
        assert torch.equal(other(logits, prepared=prepared), infer(other, logits, image, depth))


def test_other_normalizations_and_learned_bandwidths_beside_it_are_refused():
    with pytest.raises(InputError, match="normalization is 'before'; allowed: 'after', 'symmetric'"):
        DenseCRF(3, normalization="before")
    with pytest.raises(InputError, match="learn_bandwidths has no derivative where normalization is 'symmetric'; allowed: 'af"):
        DenseCRF(3, normalization="symmetric", learn_bandwidths=True)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (DenseCRF(3, normalization="symmetric"), "for normalization 'after'; this is 'symmetric'"),
        (DenseCRF(3, CrfSettings(pairwise="hadamard")), "for pairwise 'crfrnn'; this is 'hadamard'"),
    ],
)
def test_weights_of_another_form_are_refused_also_from_a_file_and_within_a_network(other, said):
    kept = io.BytesIO()
    torch.save(torch.nn.Sequential(torch.nn.Identity(), DenseCRF(3)).state_dict(), kept)
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    with pytest.raises(InputError, match=f"the weights of 1 are {said}"):
        torch.nn.Sequential(torch.nn.Identity(), other).load_state_dict(state)
    with pytest.raises(InputError, match=f"the weights of the CRF are {said}"):
        other.load_state_dict(DenseCRF(3).state_dict())
    same = copy.deepcopy(other)
    assert same.load_state_dict(other.state_dict()) == same.load_state_dict(dict(other.state_dict()))
