"""Laws of the dense CRF, in both pairwise forms. Not here: derivatives, filters by themselves, bad input."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.filters import ExactFilter

CASES = json.loads((Path(__file__).parents[2] / "golden" / "crf_vectors.json").read_text())
FORMS = pytest.mark.parametrize("form", ["crfrnn", "hadamard"])
CHUNKED = partial(ExactFilter, budget_bytes=4000)


def scene(B: int = 1, C: int = 3, H: int = 5, W: int = 7, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, image and depth: smooth colours with some noise, so that pixels hear each other."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, C, H, W, generator=draw, dtype=torch.float64)
    image = (110 + 8 * torch.randn(B, 3, H, W, generator=draw, dtype=torch.float64)).clamp(0, 255)
    return logits, image, 1 + 2 * torch.rand(B, H, W, generator=draw, dtype=torch.float64)


def learned(C: int, form: str, *, seed: int = 1, **options) -> DenseCRF:
    """A CRF whose weights and compatibility have left their start: full matrices."""
    crf = DenseCRF(C, CrfSettings(pairwise=form, num_iterations=3), **options).double()
    draw = torch.Generator().manual_seed(seed)
    for parameter in crf.parameters():
        parameter.data += 0.3 * torch.randn(C, C, generator=draw, dtype=torch.float64)
    return crf


def infer(crf: DenseCRF, logits: Tensor, image: Tensor, depth: Tensor | None, **options) -> Tensor:
    with torch.no_grad():
        return crf(logits, image=image, depth=depth, **options)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("filter", ["exact", CHUNKED], ids=["kept", "chunked"])
def test_q_is_that_of_the_specification(case, filter):
    double = partial(torch.tensor, dtype=torch.float64)
    crf = DenseCRF(3, CrfSettings(pairwise=case["pairwise"], num_iterations=case["iterations"]), filter=filter).double()
    crf.compatibility.data = double(case["compatibility"])
    for name, weight in zip(case["kernels"], case["weights"], strict=True):
        crf.weights[name].data = double(weight)
    depth = double(CASES["depth"])[None] if "depth" in case["kernels"] else None
    for grad in (False, True):  # with gradients the kernels are never blended
        with torch.set_grad_enabled(grad):
            q = crf(double(CASES["unary_logits"])[None], image=double(CASES["rgb"])[None], depth=depth).softmax(1)
        torch.testing.assert_close(q[0].detach(), double(case["q"]), rtol=1e-12, atol=1e-14)


def test_zero_iterations_return_the_network_alone():
    logits, image, depth = scene()
    assert infer(learned(3, "crfrnn"), logits, image, depth, num_iterations=0) is logits


@FORMS
def test_q_sums_to_one(form):
    q = infer(learned(3, form), *scene()).softmax(1)
    torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]))


@FORMS
def test_a_constant_added_to_a_pixels_logits_changes_nothing(form):
    logits, image, depth = scene()
    shift = 10 * torch.randn(1, 1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    crf = learned(3, form)
    torch.testing.assert_close(
        infer(crf, logits + shift, image, depth).softmax(1), infer(crf, logits, image, depth).softmax(1), rtol=1e-10, atol=1e-12
    )


@FORMS
def test_relabelling_permutes_q(form):
    logits, image, depth = scene()
    crf, order = learned(3, form), [2, 0, 1]
    expected = infer(crf, logits, image, depth)[:, order]
    for parameter in crf.parameters():
        parameter.data = parameter.data[order][:, order]
    torch.testing.assert_close(infer(crf, logits[:, order], image, depth), expected)


@FORMS
def test_with_all_weights_zero_the_logits_stay(form):
    logits, image, depth = scene()
    crf = DenseCRF(3, CrfSettings(pairwise=form, w_appearance=0, w_depth=0, w_smoothness=0)).double()
    assert torch.equal(infer(crf, logits, image, depth), logits)


@FORMS
def test_a_batch_equals_its_images_one_by_one(form):
    logits, image, depth = scene(B=3)
    crf = learned(3, form)
    singles = [infer(crf, logits[i : i + 1], image[i : i + 1], depth[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(infer(crf, logits, image, depth), torch.cat(singles), rtol=1e-12, atol=1e-12)


@FORMS
def test_depth_weight_zero_is_the_crf_without_depth(form):
    logits, image, depth = scene()
    crf = learned(3, form)
    crf.weights["depth"].data.zero_()
    torch.testing.assert_close(infer(crf, logits, image, depth), infer(crf, logits, image, None), rtol=1e-12, atol=1e-12)


def test_both_forms_agree_at_the_start():
    crfrnn, hadamard = (
        infer(DenseCRF(3, CrfSettings(pairwise=form)).double(), *scene()).softmax(1) for form in ("crfrnn", "hadamard")
    )
    torch.testing.assert_close(crfrnn, hadamard, rtol=1e-11, atol=1e-14)


@FORMS
def test_kernels_blended_into_one_give_what_they_give_apart(form):
    logits, image, depth = scene()
    crf = DenseCRF(3, CrfSettings(pairwise=form)).double()
    apart = crf(logits, image=image, depth=depth).detach()
    torch.testing.assert_close(infer(crf, logits, image, depth), apart, rtol=1e-11, atol=1e-12)


@FORMS
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 11)])
@pytest.mark.parametrize("C", [2, 150])
def test_any_size_and_class_count_gives_finite_logits_of_that_size(form, size, C):
    logits, image, depth = scene(2, C, *size)
    out = infer(learned(C, form), logits, image, depth)
    assert out.shape == logits.shape
    assert out.isfinite().all()


@FORMS
@pytest.mark.parametrize("bandwidth", [0.01, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_bandwidths_give_finite_logits(form, bandwidth, dtype):
    thetas = dict.fromkeys(("theta_alpha", "theta_beta", "theta_gamma", "theta_zeta", "theta_tau"), bandwidth)
    crf = DenseCRF(3, CrfSettings(pairwise=form, **thetas)).to(dtype)
    assert infer(crf, *(part.to(dtype) for part in scene())).isfinite().all()


def test_with_vanishing_bandwidths_a_pixel_hears_only_itself():
    logits, image, depth = scene()
    crf = DenseCRF(3, CrfSettings(theta_alpha=0.01, theta_gamma=0.01, theta_tau=0.01, num_iterations=1)).double()
    torch.testing.assert_close(infer(crf, logits, image, depth), logits + 14 * logits.softmax(1))


def test_with_boundless_bandwidths_every_pixel_hears_the_mean():
    logits, image, depth = scene()
    thetas = dict.fromkeys(("theta_alpha", "theta_beta", "theta_gamma", "theta_zeta", "theta_tau"), 1e9)
    crf = DenseCRF(3, CrfSettings(num_iterations=1, **thetas)).double()
    mean = logits.softmax(1).mean((2, 3), keepdim=True)
    torch.testing.assert_close(infer(crf, logits, image, depth), logits + 14 * mean)


def test_a_pixel_of_another_colour_loses_its_influence():
    logits, image, depth = scene()
    crf = DenseCRF(3, CrfSettings(w_depth=0, w_smoothness=0)).double()
    image[0, :, 2, 3] = torch.tensor([255.0, 0.0, 255.0])
    changed = logits.clone()
    changed[0, :, 2, 3] += torch.tensor([50.0, 0.0, -50.0])
    elsewhere = torch.ones(5, 7, dtype=torch.bool)
    elsewhere[2, 3] = False
    one, other = infer(crf, logits, image, depth), infer(crf, changed, image, depth)
    torch.testing.assert_close(one[0, :, elsewhere], other[0, :, elsewhere], rtol=1e-12, atol=1e-12)


def test_alike_neighbours_correct_a_lone_pixel():
    logits = torch.zeros(1, 2, 5, 5)
    logits[:, 0] = 1.0
    logits[0, :, 2, 2] = torch.tensor([0.0, 0.5])
    out = infer(DenseCRF(2), logits, torch.full((1, 3, 5, 5), 90, dtype=torch.uint8), torch.ones(1, 5, 5))
    assert (out.argmax(1) == 0).all()


@FORMS
def test_chunked_equals_kept(form):
    parts = scene(2)
    torch.testing.assert_close(
        infer(learned(3, form, filter=CHUNKED), *parts), infer(learned(3, form), *parts), rtol=1e-12, atol=1e-12
    )


def test_every_run_gives_the_same_bits():
    parts = [part.float() for part in scene(2, 40, 20, 30)]
    crf = DenseCRF(40)
    assert torch.equal(infer(crf, *parts), infer(crf, *parts))


def test_an_image_in_bytes_equals_the_same_in_floats():
    logits, image, depth = scene()
    levels = image.round()
    crf = learned(3, "crfrnn")
    assert torch.equal(infer(crf, logits, levels.to(torch.uint8), depth), infer(crf, logits, levels, depth))


@FORMS
def test_a_saved_state_gives_the_same_crf(form):
    crf = learned(3, form)
    again = DenseCRF(3, crf.settings).double()
    again.load_state_dict(crf.state_dict())
    assert torch.equal(infer(again, *scene()), infer(crf, *scene()))


@FORMS
def test_float32_is_near_float64(form):
    parts = scene(C=40, H=20, W=30)
    exact = infer(DenseCRF(40, CrfSettings(pairwise=form)).double(), *parts).softmax(1)
    single = infer(DenseCRF(40, CrfSettings(pairwise=form)), *(part.float() for part in parts)).softmax(1)
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4)


def test_autocast_does_not_lower_the_precision():
    parts = [part.float() for part in scene()]
    expected = infer(DenseCRF(3), *parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(infer(DenseCRF(3), *parts), expected)
