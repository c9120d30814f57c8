"""What the CRF refuses, each in one line. Not here: what it does with what it takes."""

import pytest
import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF, Kernel, PreparedCache, logits_from_labels
from jointseg.errors import InputError

H, W = 4, 6
nan, inf = float("nan"), float("inf")


def inputs(**changes: Tensor | None) -> dict[str, Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    good = {
        "logits": torch.randn(2, 3, H, W, generator=draw),
        "image": 255 * torch.rand(2, 3, H, W, generator=draw),
        "depth": 5 * torch.rand(2, H, W, generator=draw),
    }
    return good | changes


def spoiled(name: str, value: float, layout: torch.memory_format = torch.contiguous_format) -> dict[str, Tensor | None]:
    given = inputs()
    given[name].view(-1)[7] = value
    return given | ({} if layout == torch.contiguous_format else {name: given[name].to(memory_format=layout)})


BAD = {
    "logits without a batch": (inputs(logits=torch.zeros(3, H, W)), r"logits have shape \(3, 4, 6\)"),
    "an array of logits": (inputs(logits=torch.zeros(2, 3, H, W).numpy()), "logits is a ndarray; allowed: torch.Tensor"),
    "an array for an image": (inputs(image=torch.zeros(2, 3, H, W).numpy()), "image is a ndarray; allowed: torch.Tensor"),
    "another class count": (inputs(logits=torch.zeros(2, 4, H, W)), r"logits have shape .* allowed: \(B, 3, H, W\)"),
    "empty logits": (inputs(logits=torch.zeros(0, 3, H, W)), "not empty"),
    "integer logits": (inputs(logits=torch.zeros(2, 3, H, W, dtype=torch.int64)), "logits are torch.int64"),
    "float16 logits": (inputs(logits=torch.zeros(2, 3, H, W).half()), "logits are torch.float16"),
    "bfloat16 logits": (inputs(logits=torch.zeros(2, 3, H, W).bfloat16()), "logits are torch.bfloat16"),
    "float64 logits, float32 weights": (inputs(logits=torch.zeros(2, 3, H, W).double()), "weights are torch.float32"),
    "logits elsewhere": (inputs(logits=torch.zeros(2, 3, H, W, device="meta")), "logits are on meta"),
    "image of another size": (inputs(image=torch.zeros(2, 3, W, H)), r"image has shape \(2, 3, 6, 4\)"),
    "image of another batch": (inputs(image=torch.zeros(1, 3, H, W)), "image has shape"),
    "channels last": (inputs(image=torch.zeros(2, H, W, 3)), "image has shape"),
    "grey image": (inputs(image=torch.zeros(2, 1, H, W)), "image has shape"),
    "float64 image": (inputs(image=torch.zeros(2, 3, H, W).double()), "image is torch.float64"),
    "int64 image": (inputs(image=torch.zeros(2, 3, H, W).long()), "image is torch.int64"),
    "image elsewhere": (inputs(image=torch.zeros(2, 3, H, W, device="meta")), "image is on meta"),
    "depth with a channel": (inputs(depth=torch.ones(2, 1, H, W)), "depth has shape"),
    "one depth": (inputs(depth=torch.tensor(1.0)), r"depth has shape \(\)"),
    "depth of another size": (inputs(depth=torch.ones(2, W, H)), "depth has shape"),
    "depth in millimetres as integers": (inputs(depth=torch.ones(2, H, W, dtype=torch.int32)), "depth is torch.int32"),
    "depth elsewhere": (inputs(depth=torch.ones(2, H, W, device="meta")), "depth is on meta"),
    "NaN logits": (spoiled("logits", nan), "logits: 1 of 144 values are NaN or infinite"),
    "infinite logits": (spoiled("logits", -inf), "logits: 1 of 144"),
    "NaN logits, channels last": (spoiled("logits", nan, torch.channels_last), "logits: 1 of 144"),
    "infinite logits, channels last": (spoiled("logits", -inf, torch.channels_last), "logits: 1 of 144"),
    "NaN image": (spoiled("image", nan), "image: 1 of 144"),
    "image above 255": (spoiled("image", 256.0), r"image has values in .*\.\.256; allowed: RGB levels 0..255"),
    "image with its mean taken off": (inputs(image=inputs()["image"] - 116), "not normalised"),
    "image in 0..1": (inputs(image=inputs()["image"] / 255), "as if scaled to 0..1"),
    "NaN depth": (spoiled("depth", nan), r"depth: 1 of 48 .*; allowed: metres, 0 where there is none \(torch.nan_to_num\)"),
    "infinite depth": (spoiled("depth", inf), "depth: 1 of 48"),
    "negative depth": (spoiled("depth", -0.5), "depth has values in -0.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_one_line(name):
    given, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        DenseCRF(3)(given.pop("logits"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "value"),
    [("image", torch.zeros(2, 3, H, W)), ("image", torch.ones(2, 3, H, W)), ("depth", torch.zeros(2, H, W)), ("depth", None)],
    ids=["black image", "nearly black image", "depth of 0 m", "no depth"],
)
def test_unusual_but_sound_input_is_taken(change, value):
    given = inputs(**{change: value})
    assert DenseCRF(3)(given.pop("logits"), **given).isfinite().all()


def test_values_go_unseen_where_checks_are_off():
    given = inputs(image=inputs()["image"] / 255)
    assert DenseCRF(3, check_inputs=False)(given.pop("logits"), **given).isfinite().all()


@pytest.mark.parametrize("filter", ["exact", "permutohedral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_logit_that_is_no_number_is_not_hidden_where_checks_are_off(filter, dtype, probabilities):
    logits = inputs()["logits"].to(dtype)
    logits[1, 1, 2, 3] = nan
    crf = DenseCRF(3, CrfSettings(num_iterations=2), filter=filter, check_inputs=False).to(dtype).requires_grad_(False)
    out = crf(logits, image=inputs()["image"].to(dtype), probabilities=probabilities)
    assert out[1, :, 2, 3].isnan().all()
    assert out[0].isfinite().all()


@pytest.mark.parametrize("beyond", [-1.0, nan])
def test_what_counts_as_depth_does_not_hang_on_the_other_images_of_the_batch(beyond):
    given = inputs()
    given["depth"][0, 1, 2] = beyond
    crf = DenseCRF(3, filter="exact", check_inputs=False).requires_grad_(False)
    alone = crf(**{name: part[:1] for name, part in given.items()})
    given["depth"][1, 0, 0] = 0
    beside_a_hole = crf(**given)[:1]
    assert beside_a_hole.isfinite().all()
    torch.testing.assert_close(beside_a_hole, alone, rtol=1e-6, atol=1e-6)


def test_shapes_are_checked_where_value_checks_are_off():
    given = inputs(depth=torch.ones(2, W, H))
    with pytest.raises(InputError, match="depth has shape"):
        DenseCRF(3, check_inputs=False)(given.pop("logits"), **given)


NEAR = Kernel(name="near", weight=1.0, position=2.0)
OF_ANOTHER_KIND = {
    "settings": (lambda: DenseCRF(3, {"theta_beta": 4.0}), "settings is a dict; allowed: CrfSettings"),
    "one kernel": (lambda: DenseCRF(3, kernels=NEAR), "kernels is a Kernel; allowed: a sequence of Kernel"),
    "a kernel": (lambda: DenseCRF(3, kernels=[{"name": "near"}]), r"kernels\[0\] is a dict; allowed: Kernel"),
    "guides": (lambda: DenseCRF(3)(**inputs(guides=[torch.ones(2, 1, H, W)])), "guides is a list; allowed: a mapping of names"),
    "a guide": (lambda: DenseCRF(3)(**inputs(guides={"a": None})), r"guides\['a'\] is a NoneType; allowed: torch.Tensor"),
    "prepared": (lambda: DenseCRF(3)(inputs()["logits"], prepared=inputs()["image"]), "prepared is a Tensor; allowed: what"),
    "half a class": (lambda: DenseCRF(21.5), "num_classes is a float; allowed: a whole number from 2"),
    "classes as text": (lambda: DenseCRF("21"), "num_classes is a str"),
    "half an iteration": (lambda: DenseCRF(3)(**inputs(num_iterations=2.5)), "num_iterations is a float; allowed: a whole"),
    "NaN iterations": (lambda: DenseCRF(3)(**inputs(num_iterations=nan)), "num_iterations is a float"),
    "no filter": (lambda: DenseCRF(3, filter=None), "filter: None is unknown; allowed: 'auto', 'exact', .* or a function from"),
    "a list of filters": (lambda: DenseCRF(3, filter=["exact"]), r"filter: \['exact'\] is unknown"),
    "what builds none": (
        lambda: DenseCRF(3, filter=lambda _: None)(**inputs()),
        "kernel 'appearance': filter '<lambda>' built a NoneType without apply, apply_transposed, row_sums",
    ),
    "a kernel's name": (lambda: DenseCRF(3, kernels=[Kernel(name=3, weight=1, position=1)]), "the name of a kernel is a int"),
    "bytes": (lambda: PreparedCache("a"), "max_bytes is a str; allowed: a number of bytes, 0 or more"),
    "no label": (
        lambda: logits_from_labels(torch.zeros(1, 2, 2, dtype=torch.long), 3, confidence=0.5, ignore_index=None),
        "ignore_index is a NoneType; allowed: a whole number",
    ),
    "a guide's name": (lambda: DenseCRF(3)(**inputs(guides={3: torch.ones(2, 1, H, W)})), "a guide's name is a int"),
    "half precision": (lambda: DenseCRF(3, dtype=torch.float16), "dtype is torch.float16; allowed: torch.float32, "),
    "channels last": (
        lambda: DenseCRF(3).prepare(image=torch.zeros(1, H, W, 3)),
        r"image has shape \(1, 4, 6, 3\); allowed: \(B, 3, H, W\), not empty",
    ),
    "reusing": (lambda: DenseCRF(3).prepare(image=inputs()["image"], reusing={}), "reusing is a dict; allowed: what `prepare`"),
}


@pytest.mark.parametrize("name", OF_ANOTHER_KIND)
def test_what_is_of_another_kind_is_named_in_one_line(name):
    call, message = OF_ANOTHER_KIND[name]
    with pytest.raises(InputError, match=f"^{message}"):
        call()


def test_a_device_that_no_filter_runs_on_is_refused():
    crf = DenseCRF(3).to("meta")
    given = {name: part.to("meta") for name, part in inputs().items()}
    for call in (lambda: crf(**given), lambda: crf.prepare(image=given["image"])):
        with pytest.raises(InputError, match="the CRF is on meta; allowed: cpu, cuda"):
            call()


def test_an_unknown_filter_lists_the_known_ones():
    with pytest.raises(InputError, match="filter: 'lattice' is unknown; allowed: 'auto', 'exact', 'separable'"):
        DenseCRF(3, filter="lattice")


def test_fewer_than_two_classes_and_negative_iterations_are_refused():
    for num_classes in (0, 1):
        with pytest.raises(InputError, match=f"num_classes is {num_classes}; allowed: at least 2 .one sigmoid logit z makes"):
            DenseCRF(num_classes)
    given = inputs()
    with pytest.raises(InputError, match="num_iterations is -1"):
        DenseCRF(3, CrfSettings())(given.pop("logits"), **given, num_iterations=-1)


def test_true_is_one_iteration_at_any_size():
    given = {"image": torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8), "logits": torch.zeros(1, 3, 40, 40)}
    with torch.no_grad():
        once, true = (DenseCRF(3)(**given, num_iterations=T) for T in (1, True))
    assert torch.equal(once, true)


@pytest.mark.parametrize("name", ["mask", "position", 3])
def test_a_guide_has_a_name_of_its_own(name):
    with pytest.raises(InputError, match=f"kernel 'own' compares {name!r}; allowed: a name that is not 'mask' or 'position'"):
        DenseCRF(3, kernels=[Kernel(name="own", weight=1.0, position=2.0, guides={name: 1.0})])


def test_a_filter_that_cannot_take_a_kernel_says_which():
    with pytest.raises(InputError, match=r"^kernel 'appearance': filter 'separable': features are not the pixels' x and y"):
        DenseCRF(3, filter="separable")(**inputs())


def test_depth_that_is_forgotten_is_asked_for_where_nothing_else_is_compared():
    crf, given = DenseCRF(3, kernels=[Kernel(name="deep", weight=1.0, position=2.0, guides={"depth": 0.5})]), inputs()
    for call in (lambda: crf(given["logits"]), lambda: crf(given["logits"], image=given["image"])):
        with pytest.raises(InputError, match="depth is not given, and no kernel compares anything else; allowed: depth="):
            call()
    assert not torch.equal(crf(given["logits"], depth=given["depth"]), given["logits"])


@pytest.mark.parametrize("value", [-200.0, 200.0, nan])
def test_bandwidths_that_learning_has_spoilt_are_named(value):
    crf = DenseCRF(3, filter="exact", learn_bandwidths=True)
    with torch.no_grad():
        crf.log_bandwidths["appearance"].fill_(value)
    with pytest.raises(InputError, match=r"kernel 'appearance' has bandwidths .*; allowed: 1e-18 to 1e\+18"):
        crf(**inputs())


@pytest.mark.parametrize("filter", ["auto", "exact", "permutohedral"])
@pytest.mark.parametrize("prepare", [False, True])
def test_logits_of_masked_pixels_may_be_anything_and_stay_that(filter, prepare):
    given = {name: part.repeat(1, *[10] * (part.ndim - 1))[:, :3] if name != "depth" else part.repeat(1, 10, 10)
             for name, part in inputs().items()}  # fmt: skip
    mask = torch.rand(2, 10 * H, 10 * W, generator=torch.Generator().manual_seed(1)) > 0.1
    crf = DenseCRF(3, CrfSettings(num_iterations=3), filter=filter).requires_grad_(False)
    logits = given.pop("logits")
    around = {"prepared": crf.prepare(**given, mask=mask)} if prepare else given | {"mask": mask}
    anything = logits.masked_fill(~mask[:, None], nan)
    anything[0, 0, ~mask[0]] = -inf
    here = mask[:, None].expand_as(logits)
    for probabilities in (False, True):
        expected, out = (crf(values, **around, probabilities=probabilities) for values in (logits, anything))
        assert torch.equal(out[here], expected[here])
    torch.testing.assert_close(crf(anything, **around)[~here], anything[~here], rtol=0, atol=0, equal_nan=True)


def test_a_logit_that_counts_is_checked_beside_masked_ones():
    given, mask = spoiled("logits", nan), torch.ones(2, H, W, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(InputError, match="logits: 1 of 144 values are NaN"):
        DenseCRF(3)(**given, mask=mask)
    given["logits"][0] = 0
    given["logits"][1] = nan
    assert DenseCRF(3)(**given, mask=mask)[0].isfinite().all()


@pytest.mark.parametrize("filter", ["exact", "permutohedral"])
def test_another_default_device_changes_nothing(filter):
    crf, given = DenseCRF(3, filter=filter, learn_bandwidths=filter == "exact"), inputs()
    expected = crf(**given)
    with torch.device("meta"):
        assert torch.equal(crf(**given), expected)
