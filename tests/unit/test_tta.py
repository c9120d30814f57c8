"""Laws of test-time augmentation: what several views of a picture say together. Not here: the network, the CRF."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from jointseg.config import NetworkConfig
from jointseg.data.views import render_input
from jointseg.evaluation import compute_unaries, predict_image
from jointseg.model import build_crf, build_model
from jointseg.settings import SettingsError, with_overrides
from jointseg.stages import Kernels
from jointseg.tta import network_says

CPU = torch.device("cpu")


@pytest.fixture
def model(small):
    return outspoken(small)


def outspoken(config):
    """With a network that has something to say: scores of new layers are too near each other."""
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.network.heads.parameters():
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
        for parameter in model.network.heads.parameters():
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


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("resize", ["fit", "stretch"])
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (97, 641), (300, 300)])
def test_every_view_says_of_a_place_what_is_there(small, size, resize, mirror):
    """The network says how red a place is, in a picture that gets brighter from left to right."""
    config = with_overrides(small, {"network.resize": resize, "evaluation.mirror": mirror})
    x = np.linspace(0, 1, size[1], dtype=np.float32)
    ramp = np.broadcast_to(40 + 150 * x**2, size)
    picture = np.repeat(ramp[..., None], 3, -1).round().astype(np.uint8)

    def redness(square, *, with_depth):
        return SimpleNamespace(logits=torch.stack([square[:, 0] / 255.0, -square[:, 0] / 255.0], 1), depth=None)

    plain, averaged = (
        network_says(
            redness, picture, with_overrides(config, {"evaluation.scales": scales}), with_depth=False, device=CPU
        ).logits.softmax(1)[:, 0]
        for scales in ((1.0,), (1.25, 2.0))
    )
    moved = (plain - averaged)[..., 2:-2].mean() / plain.diff(dim=-1).mean()
    assert abs(moved) < 0.05, "not by a twentieth of a pixel"


def test_smaller_views_do_not_pull_far_walls_nearer(small, picture):
    def wall(square, *, with_depth):
        """6 m away, or as far as the last bin where it looks farther."""
        S = square.shape[-1]
        metres = min(6.0 * 129 / S, config.network.num_depth_bins * config.network.depth_bin)
        return SimpleNamespace(logits=torch.zeros(1, 2, S, S), depth=torch.full((1, S, S), metres))

    config = with_overrides(small, {"network.input_size": 129})
    for scales in ((0.55, 1.0), (0.55, 0.8, 1.0, 1.25), (1.25, 2.0), (0.8,)):
        own = with_overrides(config, {"evaluation.scales": scales})
        depth = network_says(wall, picture, own, with_depth=True, device=CPU).depth
        farthest = 7.0 * config.network.scaled_size(max(scales)) / 129
        torch.testing.assert_close(depth, torch.full_like(depth, min(6.0, farthest)), rtol=1e-5, atol=0)


def test_an_upright_picture_is_averaged_within_its_own_part(model, small, picture):
    upright = np.ascontiguousarray(picture.transpose(1, 0, 2))
    found = said(model, upright, small, scales=(1.0, 1.5), mirror=True)
    assert found.logits.shape[2:] == found.depth.shape[1:] == found.image.shape[2:]
    assert found.image.shape[2] > found.image.shape[3]


@pytest.mark.parametrize(("scale", "size"), [(1, 513), (1.25, 641), (0.75, 385), (0.5, 257), (2, 1025)])
def test_sizes_are_those_that_the_network_takes(scale, size):
    assert NetworkConfig(input_size=513).scaled_size(scale) == size


@pytest.mark.parametrize("value", [[], [0.1], [1, 5], [1, "x"], [True], "x", 1.25, None])
def test_scales_that_are_none_are_refused_with_what_is_allowed(small, value):
    said = re.escape(
        f"evaluation.scales: {value!r} is not allowed; allowed: a list of numbers from 0.25 to 4, such as [1,1.25]"
    )
    with pytest.raises(SettingsError, match=f"^{said}$"):
        with_overrides(small, {"evaluation.scales": value})


@pytest.mark.parametrize(
    ("value", "listed"), [([1, 1.01], "1 is 65, 1.01 is 65"), ([1, 1], "1 is 65, 1 is 65"), ([0.5], "0.5 is 33")]
)
def test_scales_that_come_to_one_size_or_to_none_are_refused(small, value, listed):
    with pytest.raises(
        SettingsError, match=rf"^evaluation\.scales: sizes of the input come out as: {listed}; allowed: different"
    ):
        with_overrides(small, {"evaluation.scales": value})


def test_a_mirror_that_is_neither_is_refused(small):
    with pytest.raises(SettingsError, match=r"^evaluation\.mirror: 'half' is not allowed; allowed: true or false$"):
        with_overrides(small, {"evaluation.mirror": "half"})


def test_the_order_of_scales_is_nothing(small):
    one, other = (with_overrides(small, {"evaluation.scales": scales}) for scales in ([1.5, 1], [1, 1.5]))
    assert one == other


def test_views_are_said_in_words_and_one_is_no_choice(small):
    said = {}
    for scales, mirror in (([1], False), ([1.25], False), ([1, 1.25], True)):
        own = with_overrides(small, {"evaluation.scales": scales, "evaluation.mirror": mirror}).evaluation
        said[own.views_said] = own.views
    assert said == {
        "one view": {},
        "1 view (input × 1.25)": {"scales": [1.25], "mirror": False},
        "4 views (input × 1, 1.25, each mirrored too)": {"scales": [1, 1.25], "mirror": True},
    }
