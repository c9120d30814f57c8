"""Laws of test-time augmentation: what several views of a picture say together. Not here: the network, the CRF."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from jointseg.data.views import render_input
from jointseg.evaluation import compute_unaries, predict_image
from jointseg.model import build_crf, build_model
from jointseg.settings import SettingsError, with_overrides
from jointseg.stages import Kernels
from jointseg.tta import network_says, scaled_size

CPU = torch.device("cpu")


@pytest.fixture
def model(small):
    return outspoken(small)


def outspoken(config):
    """With a network that has something to say: scores of new layers are too near each other."""
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.network.score_parameters():
            parameter.mul_(100)
    return model


@pytest.fixture
def picture(rooms):
    return rooms.frame(1).image


def said(model, picture, config, **views):
    config = with_overrides(config, {f"evaluation.{name}": value for name, value in views.items()})
    return network_says(model, picture, config, with_depth=True, device=CPU)


def size_of(config):
    return config.network.input_size


@pytest.mark.parametrize("resize", ["fit", "stretch"])
def test_one_view_is_what_the_model_says_to_the_bit(small, picture, resize):
    config = with_overrides(small, {"network.resize": resize})
    model = build_model(config).eval()
    found = said(model, picture, config)
    with torch.no_grad():
        output = model(render_input(picture, network=config.network)[None])
    h, w = model.content
    assert torch.equal(found.logits, output.logits[..., :h, :w])
    assert torch.equal(found.depth, output.depth[..., :h, :w])
    assert torch.equal(found.image[0], render_input(picture, network=config.network)[:, :h, :w])


def test_with_the_mirror_image_probabilities_and_depth_are_the_mean_of_both(model, small, picture):
    found = said(model, picture, small, mirror=True)
    one, other = (said(model, each, small) for each in (picture, picture[:, ::-1].copy()))
    assert not torch.equal(one.logits, other.logits.flip(-1))
    torch.testing.assert_close(found.logits.exp(), (one.logits.softmax(1) + other.logits.flip(-1).softmax(1)) / 2)
    torch.testing.assert_close(found.depth, (one.depth + other.depth.flip(-1)) / 2)
    assert torch.equal(found.image, one.image)


def test_what_is_said_with_the_mirror_image_is_mirrored_with_the_picture(model, small, picture):
    found, of_mirror = (said(model, each, small, mirror=True) for each in (picture, picture[:, ::-1].copy()))
    torch.testing.assert_close(found.logits, of_mirror.logits.flip(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.depth, of_mirror.depth.flip(-1))


def test_at_another_size_the_larger_picture_is_the_nearer(model, small, picture):
    found = said(model, picture, small, scales=(2.0,))
    larger = said(model, picture, with_overrides(small, {"network.input_size": 2 * size_of(small) - 1}))
    h, w = found.image.shape[2:]
    zoom = larger.image.shape[3] / w
    assert 1.9 < zoom < 2
    depth = interpolate(larger.depth[None], size=(h, w), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found.depth, depth * zoom)
    p = interpolate(larger.logits.softmax(1), size=(h, w), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.logits.exp(), p)


def test_sizes_and_mirror_images_weigh_the_same(model, small, picture):
    found = said(model, picture, small, scales=(1.0, 1.5), mirror=True)
    parts = [said(model, picture, small, scales=(scale,), mirror=True) for scale in (1.0, 1.5)]
    torch.testing.assert_close(found.logits.exp(), sum(part.logits.exp() for part in parts) / 2)
    torch.testing.assert_close(found.depth, sum(part.depth for part in parts) / 2)
    torch.testing.assert_close(found.logits.exp().sum(1), torch.ones_like(found.depth))


def test_without_depth_heads_there_is_no_depth(model, small, picture):
    config = with_overrides(small, {"evaluation.mirror": True, "evaluation.scales": [1, 1.5]})
    assert network_says(model, picture, config, with_depth=False, device=CPU).depth is None


def test_a_certain_network_leaves_no_infinity(model, small, picture):
    with torch.no_grad():
        for parameter in model.network.score_parameters():
            parameter.mul_(1e4)
    assert said(model, picture, small, scales=(1.5,)).logits.isfinite().all()


@pytest.mark.parametrize("kernels", [Kernels.SEM_CRF, Kernels.SEM_CRF_PLUS])
def test_the_crf_comes_after_the_mean(small, rooms, kernels):
    config = with_overrides(small, {"evaluation.scales": [1, 1.5], "evaluation.mirror": True, "crf.theta_beta": 20})
    model, frame = outspoken(config), rooms.frame(1)
    unaries = compute_unaries(model, frame, config, device=CPU)
    crf = build_crf(config).eval()
    with torch.no_grad():
        depth = unaries.depth[None] if kernels is Kernels.SEM_CRF_PLUS else None
        refined = crf(unaries.logits[None], image=unaries.image[None], depth=depth)
        full = interpolate(refined, size=frame.labels.shape, mode="bilinear", align_corners=False)[0].argmax(0)
    found = predict_image(model, frame.image, config, kernels=kernels, with_depth=True, device=CPU)
    assert (found.labels == full.numpy()).mean() > 0.999
    plain = predict_image(model, frame.image, config, kernels=Kernels.NONE, with_depth=True, device=CPU)
    assert (found.labels != plain.labels).any()


def test_an_upright_picture_is_averaged_within_its_own_part(model, small, picture):
    upright = np.ascontiguousarray(picture.transpose(1, 0, 2))
    found = said(model, upright, small, scales=(1.0, 1.5), mirror=True)
    assert found.logits.shape[2:] == found.depth.shape[1:] == found.image.shape[2:]
    assert found.image.shape[2] > found.image.shape[3]


@pytest.mark.parametrize(("scale", "size"), [(1, 513), (1.25, 641), (0.75, 385), (0.5, 257), (0.01, 65)])
def test_sizes_are_those_that_the_network_takes(scale, size):
    assert scaled_size(513, scale) == size


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [("scales", [], "at least 1"), ("scales", [0], "greater than"), ("scales", [1, "x"], "'x'"), ("mirror", "half", "'half'")],
)
def test_views_that_there_are_not_are_refused(small, path, value, said):
    with pytest.raises(SettingsError, match=rf"evaluation\.{path}.*{said}"):
        with_overrides(small, {f"evaluation.{path}": value})
