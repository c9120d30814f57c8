"""Laws of the joint model: what the CRF sees, and which of its kernels run. Not here: the network's layers, mean field."""

from __future__ import annotations

import pytest
import torch

from jointseg.data.views import MEAN_PIXEL, render_input
from jointseg.losses import expected_depth
from jointseg.model import build_crf, build_model
from jointseg.presets import paper
from jointseg.settings import differences, with_overrides
from jointseg.stages import Kernels

CRFS = [Kernels.SEM_CRF, Kernels.SEM_CRF_PLUS]


@pytest.fixture
def model(small):
    return build_model(small).eval()


@pytest.fixture(scope="module")
def image(rooms, small):
    """A padded frame as the network sees it, (1, 3, 65, 65)."""
    return render_input(rooms.frame(1).image, network=small.network)[None]


def test_a_frame_takes_the_upper_part_of_the_square_and_padding_the_rest(model, image):
    assert model.content == (49, 65)
    padding = torch.tensor(MEAN_PIXEL, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 65)
    assert torch.equal(image[..., 49:, :], padding)


def test_a_stretched_frame_takes_the_whole_square(small):
    assert build_model(with_overrides(small, {"network.resize": "stretch"})).content == (65, 65)


@torch.no_grad()
def test_padding_never_reaches_the_crf(model, image):
    """What comes out is the CRF of the frame's own part, and the network's own logits beside it."""
    h, w = model.content
    unary, refined = model(image), model(image, kernels=Kernels.SEM_CRF_PLUS)
    alone = model.crf(unary.logits[..., :h, :w], image=image[..., :h, :w], depth=unary.depth[..., :h, :w])
    assert torch.equal(refined.logits[..., :h, :w], alone)
    assert torch.equal(refined.logits[..., h:, :], unary.logits[..., h:, :])
    assert not torch.equal(refined.logits, unary.logits)


@pytest.mark.parametrize("kernels", CRFS)
@torch.no_grad()
def test_zero_iterations_return_the_network_alone(model, image, kernels):
    assert torch.equal(model(image, kernels=kernels, num_iterations=0).logits, model(image).logits)


@torch.no_grad()
def test_iterations_are_the_settings_unless_named(model, image):
    assert model.crf.settings.num_iterations == 2
    outputs = {n: model(image, kernels=Kernels.SEM_CRF, num_iterations=n).logits for n in (None, 1, 2)}
    assert torch.equal(outputs[None], outputs[2])
    assert not torch.equal(outputs[None], outputs[1])


@pytest.mark.parametrize(
    ("kernels", "felt"),
    [
        (Kernels.NONE, set()),
        (Kernels.SEM_CRF, {"appearance", "smoothness"}),
        (Kernels.SEM_CRF_PLUS, {"appearance", "depth", "smoothness"}),
    ],
)
@torch.no_grad()
def test_only_the_kernels_that_run_are_felt(model, image, kernels, felt):
    before = model(image, kernels=kernels).logits
    changing = set()
    for name, weight in model.crf.weights.items():
        weight.mul_(2)
        if not torch.equal(model(image, kernels=kernels).logits, before):
            changing.add(name)
        weight.div_(2)
    assert changing == felt


@pytest.mark.parametrize("kernels", CRFS)
@torch.no_grad()
def test_the_crf_leaves_depth_as_the_network_says_it(model, image, kernels):
    assert torch.equal(model(image, kernels=kernels).depth, model(image).depth)


def test_the_crf_takes_depth_as_an_input_and_teaches_it_nothing(model, image):
    model(image, kernels=Kernels.SEM_CRF_PLUS).logits.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.network.depth_parameters())
    assert model.crf.weights["depth"].grad.abs().sum() > 0


@torch.no_grad()
def test_depth_is_eq_3_of_its_own_scores(model, image):
    output = model(image)
    bins = 0.14 * torch.arange(1, 51)
    by_hand = torch.einsum("bdhw,d->bhw", output.depth_logits.softmax(1), bins)
    torch.testing.assert_close(output.depth, by_hand)
    assert torch.equal(output.depth, expected_depth(output.depth_logits, depth_bin=0.14))


@torch.no_grad()
def test_without_depth_heads_there_is_no_depth(model, image):
    output = model(image, with_depth=False)
    assert output.depth is None
    assert output.depth_logits is None
    assert torch.equal(output.logits, model(image).logits)


@torch.no_grad()
def test_the_depth_kernel_without_depth_is_our_mistake_and_not_another_crf(model, image):
    with pytest.raises(AssertionError, match="depth"):
        model(image, kernels=Kernels.SEM_CRF_PLUS, with_depth=False)


@torch.no_grad()
def test_frames_of_a_batch_do_not_see_each_other(model, rooms, small):
    images = torch.stack([render_input(rooms.frame(number).image, network=small.network) for number in (1, 2)])
    together = model(images, kernels=Kernels.SEM_CRF_PLUS).logits
    for one, image in zip(together, images, strict=True):
        torch.testing.assert_close(model(image[None], kernels=Kernels.SEM_CRF_PLUS).logits[0], one, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_crf_keeps_its_precision_where_the_network_has_half(model, image):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(image, kernels=Kernels.SEM_CRF_PLUS)
        assert model(image).logits.dtype == torch.bfloat16
    assert output.logits.dtype == torch.float32
    assert output.logits.isfinite().all()


def test_bandwidths_in_pixels_shrink_with_the_input_and_the_others_stay(small):
    at_65, at_513 = build_crf(small).settings, build_crf(paper()).settings
    assert at_513 == paper().crf
    assert differences(at_513, at_65.model_copy(update={"num_iterations": 10})) == {
        "theta_alpha": (160.0, 160 * 65 / 513),
        "theta_gamma": (50.0, 50 * 65 / 513),
        "theta_tau": (3.0, 3 * 65 / 513),
    }


def test_bandwidths_are_quoted_at_the_reference_size(small):
    assert build_crf(with_overrides(small, {"crf_reference_size": 65})).settings == small.crf


def test_the_same_seed_gives_the_same_model(small):
    one, other = build_model(small).state_dict(), build_model(small).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variant", ["table1_literal", "vgg16_msc", "deeplab_msc"])
@torch.no_grad()
def test_every_variant_goes_through_the_crf(small, image, variant):
    model = build_model(with_overrides(small, {"network.variant": variant})).eval()
    assert model(image, kernels=Kernels.SEM_CRF_PLUS, num_iterations=1).logits.shape == (1, 40, 65, 65)
