"""Kernels of one's own, masks, holes in the depth, and bandwidths that are learned. Not here: the paper's kernels."""

import pytest
import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF, Kernel
from jointseg.crf.filters import FILTERS, Features
from jointseg.crf.kernels import paper_kernels
from jointseg.errors import InputError

H, W = 5, 6
OWN = (
    Kernel(name="shape", weight=2.0, position=4.0, guides={"normals": 0.5, "depth": 0.4}),
    Kernel(name="near", weight=1.0, position=1.5),
)


def scene(B: int = 2, C: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(B, C, H, W, generator=draw, dtype=torch.float64),
        "image": 100 + 6 * torch.rand(B, 3, H, W, generator=draw, dtype=torch.float64),
        "depth": 1 + torch.rand(B, H, W, generator=draw, dtype=torch.float64),
        "normals": torch.randn(B, 3, H, W, generator=draw, dtype=torch.float64),
    }


def plain(logits: Tensor, features_BPF: list[Tensor], weights: list[float], T: int) -> Tensor:
    """Mean field as one would first write it."""
    messages = []
    for features in features_BPF:
        K = (-0.5 * (features[:, :, None] - features[:, None]).square().sum(-1)).exp()
        messages.append(K / K.sum(-1, keepdim=True))
    unary = logits.flatten(2)
    now = unary
    for _ in range(T):
        q = now.softmax(1)
        now = unary + sum(weight * q @ K.mT for weight, K in zip(weights, messages, strict=True))
    return now.reshape(logits.shape)


def positions(theta: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return torch.stack([x, y], -1).reshape(1, -1, 2).double() / theta


def test_kernels_of_ones_own_compare_what_they_name():
    s = scene()
    crf = DenseCRF(3, CrfSettings(num_iterations=3), kernels=OWN).double()
    shape = torch.cat(
        [positions(4.0).expand(2, -1, -1), s["normals"].flatten(2).mT / 0.5, s["depth"].flatten(1)[..., None] / 0.4], -1
    )
    expected = plain(s["logits"], [shape, positions(1.5)], [2.0, 1.0], 3)
    got = crf(s["logits"], depth=s["depth"], guides={"normals": s["normals"]})
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert set(crf.weights) == {"shape", "near"}


def test_a_guide_that_no_kernel_gets_is_named():
    s = scene()
    crf = DenseCRF(3, kernels=OWN).double()
    with pytest.raises(InputError, match="kernel 'shape' compares normals; given: depth"):
        crf(s["logits"], depth=s["depth"])
    with pytest.raises(InputError, match="kernel 'shape' compares depth; given: normals"):
        crf(s["logits"], guides={"normals": s["normals"]})
    with pytest.raises(InputError, match="kernel 'appearance' compares image; given: none"):
        DenseCRF(3).double()(s["logits"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"guides": {"normals": torch.zeros(2, 3, W, H).double()}},
            r"guides\['normals'\] has shape \(2, 3, 6, 5\); allowed here: \(2, channels, 5, 6\)",
        ),
        ({"guides": {"normals": torch.zeros(2, 3, H, W)}}, r"guides\['normals'\] is torch.float32"),
        (
            {"guides": {"normals": torch.full((2, 3, H, W), torch.nan).double()}},
            r"guides\['normals'\]: 180 of 180 values are NaN",
        ),
        (
            {"guides": {"normals": torch.full((2, 3, H, W), -1e30).double()}},
            r"guides\['normals'\] has values in -1e\+30..-1e\+30; allowed: up to 1e\+18 in size",
        ),
        ({"guides": {"image": torch.zeros(2, 3, H, W).double()}}, "guides holds 'image'"),
        ({"mask": torch.ones(2, H, W)}, r"mask is \(2, 5, 6\) torch.float32"),
        ({"mask": torch.ones(1, H, W, dtype=torch.bool)}, r"mask is \(1, 5, 6\) torch.bool"),
    ],
)
def test_bad_guides_and_masks_are_named_in_one_line(change, message):
    s = scene()
    given = {"image": s["image"], "depth": s["depth"], "guides": {"normals": s["normals"]}} | change
    kernels = (*OWN, Kernel(name="colour", weight=1.0, position=2.0, guides={"image": 3.0}))
    with pytest.raises(InputError, match=message) as caught:
        DenseCRF(3, kernels=kernels).double()(s["logits"], **given)
    assert "\n" not in str(caught.value)


def test_bad_kernels_are_refused():
    with pytest.raises(InputError, match="kernel 'near' is there 2 times"):
        DenseCRF(3, kernels=(OWN[1], OWN[1]))
    for position in (0.0, -1.0, float("inf"), float("nan"), 1e-37, 1e39):
        with pytest.raises(InputError, match="kernel 'k' has bandwidths"):
            DenseCRF(3, kernels=(Kernel(name="k", weight=1, position=position),))
    for weight in (float("nan"), 1e39):
        with pytest.raises(InputError, match=r"kernel 'k' has weight .*; allowed: finite in float32"):
            DenseCRF(3, kernels=(Kernel(name="k", weight=weight, position=1.0),))
    for change, said in (
        ({"position": (3.0, 5.0)}, "bandwidth of position is a tuple; allowed: one number .where channels differ, divide"),
        (
            {"guides": {"image": (13, 13, 13)}},
            "bandwidth of image is a tuple; allowed: one number .where channels differ, divide",
        ),
        ({"guides": "image"}, "guides is a str; allowed: a mapping of names to bandwidths"),
        ({"weight": torch.eye(3)}, "weight is a Tensor; allowed: one number .a matrix goes into crf.weights"),
    ):
        with pytest.raises(InputError, match=f"kernel 'k': {said}"):
            DenseCRF(3, kernels=(Kernel(**{"name": "k", "weight": 1, "position": 1.0, **change}),))
    for name in ("", "a.b", "values"):
        with pytest.raises(InputError, match=f"a kernel is called '{name}'; allowed: a name without dots"):
            DenseCRF(3, kernels=(Kernel(name=name, weight=1, position=1.0),))


def test_a_masked_pixel_keeps_its_logits_and_nobody_hears_it():
    s = scene()
    mask = torch.ones(2, H, W, dtype=torch.bool)
    mask[:, 1, 2:5] = False
    crf = DenseCRF(3).double()
    out = crf(s["logits"], image=s["image"], depth=s["depth"], mask=mask)
    assert torch.equal(out.permute(0, 2, 3, 1)[~mask], s["logits"].permute(0, 2, 3, 1)[~mask])
    changed = s["logits"].clone()
    changed[:, :, 1, 2:5] += torch.tensor([9.0, -9.0, 0.0], dtype=torch.float64)[:, None]
    other = crf(changed, image=s["image"], depth=s["depth"], mask=mask)
    torch.testing.assert_close(other.permute(0, 2, 3, 1)[mask], out.permute(0, 2, 3, 1)[mask])


def test_padding_under_a_mask_changes_nothing_of_the_picture():
    s = scene()
    crf = DenseCRF(3).double()
    padded = {name: torch.nn.functional.pad(part, (0, 4, 0, 3), value=50.0) for name, part in s.items()}
    mask = torch.nn.functional.pad(torch.ones(2, H, W, dtype=torch.bool), (0, 4, 0, 3))
    out = crf(padded["logits"], image=padded["image"], depth=padded["depth"], mask=mask)
    torch.testing.assert_close(out[..., :H, :W], crf(s["logits"], image=s["image"], depth=s["depth"]), rtol=1e-11, atol=1e-12)


def test_a_pixel_without_depth_has_no_part_in_the_depth_kernel_alone():
    s = scene()
    s["depth"][:, 2, 3] = 0
    crf = DenseCRF(3).double()
    out = crf(s["logits"], image=s["image"], depth=s["depth"])
    there = torch.ones(2, H, W, dtype=torch.bool)
    there[:, 2, 3] = False
    without = DenseCRF(3, CrfSettings(w_appearance=0, w_smoothness=0)).double()
    alone = without(s["logits"], image=s["image"], depth=s["depth"])
    masked = without(s["logits"], image=s["image"], depth=s["depth"].clamp(min=1), mask=there)
    torch.testing.assert_close(alone, masked)
    assert (out[:, :, 2, 3] - s["logits"][:, :, 2, 3]).abs().min() > 0  # it still hears the other two


@pytest.mark.parametrize("form", ["crfrnn", "hadamard"])
def test_gradients_by_the_bandwidths_are_those_of_finite_differences(form):
    s = scene(C=3)
    s["depth"][:, 0, 0] = 0
    settings = CrfSettings(
        pairwise=form, num_iterations=2, theta_alpha=4, theta_gamma=3, theta_zeta=0.4, theta_tau=1.5, theta_beta=4
    )
    crf = DenseCRF(3, settings, filter="exact", learn_bandwidths=True).double()
    names, parameters = zip(*crf.named_parameters(), strict=True)

    def q(logits: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        call = {"image": s["image"], "depth": s["depth"]}
        return torch.func.functional_call(crf, state, (logits,), call).softmax(1)

    assert len([name for name in names if name.startswith("log_bandwidths")]) == 3
    assert torch.autograd.gradcheck(q, (s["logits"].requires_grad_(), *parameters))


def test_learned_bandwidths_begin_at_the_settings_and_are_what_inference_uses():
    s = scene()
    crf = DenseCRF(3, filter="exact", learn_bandwidths=True).double()
    assert crf.bandwidths["appearance"] == pytest.approx((160.0, 3.0))
    with torch.no_grad():
        crf.log_bandwidths["appearance"][1] = torch.tensor(7.0).double().log()
        out = crf(s["logits"], image=s["image"], depth=s["depth"])
        expected = DenseCRF(3, CrfSettings(theta_beta=7.0)).double()(s["logits"], image=s["image"], depth=s["depth"])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_what_a_crf_of_the_same_settings_prepared_serves_one_that_learns_bandwidths():
    s = scene()
    plain, learning = (DenseCRF(3, filter="exact", learn_bandwidths=learn).double() for learn in (False, True))
    prepared = plain.prepare(image=s["image"], depth=s["depth"])
    learning(s["logits"], prepared=prepared).square().mean().backward()
    assert all(log_G.grad.isfinite().all() for log_G in learning.log_bandwidths.values())
    with torch.no_grad():
        learning.log_bandwidths["smoothness"] += 2e-6
    with pytest.raises(InputError, match=r"bandwidths position 3 for kernel 'smoothness'; allowed: .*, position 3\.0000"):
        learning(s["logits"], prepared=prepared)


def test_a_step_against_the_gradient_by_the_bandwidths_lowers_the_loss():
    s = scene()
    truth = torch.randint(0, 3, (2, H, W), generator=torch.Generator().manual_seed(2))
    settings = CrfSettings(theta_alpha=4, theta_gamma=3, theta_tau=2, num_iterations=1)
    crf = DenseCRF(3, settings, filter="exact", learn_bandwidths=True).double()

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(crf(s["logits"], image=s["image"], depth=s["depth"]), truth)

    before = loss()
    before.backward()
    with torch.no_grad():
        for log_G in crf.log_bandwidths.values():
            log_G.sub_(1e-3 * log_G.grad)
    assert loss() < before


def test_filters_without_that_derivative_say_so():
    s = scene()
    crf = DenseCRF(3, filter="permutohedral", learn_bandwidths=True).double()
    with pytest.raises(
        InputError, match="filter 'permutohedral' has no derivative by bandwidths; allowed: 'exact', 'block_sparse'"
    ):
        crf(s["logits"], image=s["image"], depth=s["depth"])
    with torch.no_grad():
        out = crf(s["logits"], image=s["image"], depth=s["depth"])
        fixed = DenseCRF(3, filter="permutohedral").double()
        torch.testing.assert_close(out, fixed(s["logits"], image=s["image"], depth=s["depth"]), rtol=1e-6, atol=1e-6)


def test_without_the_depth_kernel_every_parameter_has_a_gradient_without_depth():
    s, settings = scene(), CrfSettings(num_iterations=2)
    two = [kernel for kernel in paper_kernels(settings) if kernel.name != "depth"]
    crf = DenseCRF(3, settings, kernels=two).double()
    crf(s["logits"], image=s["image"]).square().mean().backward()
    assert [name for name, parameter in crf.named_parameters() if parameter.grad is None] == []
    same = DenseCRF(3, settings).double()
    assert torch.equal(crf(s["logits"], image=s["image"]), same(s["logits"], image=s["image"]))


def test_a_guide_that_no_kernel_compares_is_refused():
    s = scene()
    with pytest.raises(InputError, match="guides holds 'normals', which no kernel compares; allowed here: image, depth"):
        DenseCRF(3).double()(s["logits"], image=s["image"], guides={"normals": s["image"]})
    with pytest.raises(InputError, match="guides holds 'mask'; allowed: names of your own"):
        DenseCRF(3).double()(s["logits"], image=s["image"], guides={"mask": s["image"]})


def test_a_function_of_features_chooses_a_filter_for_each_kernel():
    s = scene()
    seen: list[int] = []

    def mine(features: Features):
        seen.append(features.values_BPF.shape[2])
        return FILTERS["exact"](features)

    crf = DenseCRF(3, filter=mine).double()
    crf(s["logits"], image=s["image"], depth=s["depth"])
    assert seen == [5, 3, 2]


def test_a_filter_that_was_built_for_other_images_is_refused():
    """Compiled code would read and write beside its arrays."""
    s = scene()

    def halved(features: Features):
        H, W = features.size
        return FILTERS["permutohedral"](Features(values_BPF=features.values_BPF[:, : H // 2 * W], size=(H // 2, W)))

    def single(features: Features):
        return FILTERS["permutohedral"](Features(values_BPF=features.values_BPF.float(), size=features.size))

    for filter in (halved, single):
        with pytest.raises(InputError, match=r"kernel 'appearance': filter '\w+' built one for other images"):
            DenseCRF(3, filter=filter).double()(s["logits"], image=s["image"])


def test_a_filter_takes_values_of_its_own_pixels_alone():
    H, W = 5, 6
    draw = torch.Generator().manual_seed(0)
    features = torch.rand(2, H * W, 5, generator=draw)
    with pytest.raises(InputError, match=r"features of 5 x 6 pixels have shape \(2, 29, 5\); allowed: \(B, 30, F\)"):
        Features(values_BPF=features[:, :29], size=(H, W))
    with pytest.raises(InputError, match=r"valid_BP has shape \(2, 29\); allowed: \(2, 30\)"):
        Features(values_BPF=features, size=(H, W), valid_BP=torch.ones(2, 29, dtype=torch.bool))
    gaussian = FILTERS["permutohedral"](Features(values_BPF=features, size=(H, W)))
    for values in (
        torch.rand(2, 3, 29),
        torch.rand(2, 3, 60),
        torch.rand(1, 3, 30),
        torch.rand(2, 3, 30).double(),
        torch.rand(2, 30),
    ):
        for apply in (gaussian.apply, gaussian.apply_transposed):
            with pytest.raises(
                InputError, match=r"filter 'permutohedral': values are .*; allowed: \(2, C, 30\) float32 on cpu"
            ):
                apply(values)


def test_learned_bandwidths_begin_where_the_fixed_ones_are_whatever_torchs_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        learning = DenseCRF(3, learn_bandwidths=True, dtype=torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)
    for kernel in paper_kernels(CrfSettings()):
        assert learning.bandwidths[kernel.name] == pytest.approx(kernel.bandwidths, rel=1e-14)
