"""Laws of loading starting weights. Not here: the network they go into (test_network.py), the files they come in
(test_weight_files.py).
"""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from jointseg.config import NetworkConfig
from jointseg.errors import InputError
from jointseg.network.network import CAFFE_MEAN_BGR, build_network
from jointseg.network.pretrained import check_pretrained, load_pretrained
from jointseg.network.table import LARGE_FOV, Conv
from jointseg.network.weight_files import VGG_MEAN_BGR
from tests.starting_weights import TORCHVISION_VGG16, caffemodel, torchvision_vgg16

WIDTH = 0.05
CONVS = [layer.name for layer in LARGE_FOV.layers if isinstance(layer, Conv) and layer.name.startswith("conv")]
TORCHVISION = torchvision_vgg16(WIDTH)


def small(variant="vgg16_msc", *, seed=0, width=WIDTH):
    return build_network(NetworkConfig(variant=variant, width=width), seed=seed)


def features(network, layer, image):
    """What `layer` makes of the image, in float64."""
    kept = []
    hook = network.get_submodule(layer).register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        network.double().eval()(image, with_depth=False)
    hook.remove()
    return kept[0]


@pytest.fixture(params=["zip", "pickle", "safetensors"])
def torchvision_file(request, tmp_path):
    path = tmp_path / "vgg16"
    if request.param == "safetensors":
        save_file(TORCHVISION, path)
    else:
        torch.save(TORCHVISION, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


# Which parameter takes what


@pytest.mark.parametrize("kind", ["layers", "layer", "safetensors", "state dict"])
@pytest.mark.parametrize("variant", ["vgg16_msc", "deeplab_msc"])
def test_a_trunk_that_was_saved_comes_back_whole(variant, kind, tmp_path):
    donor, network, path = small(variant, seed=1), small(variant, seed=2), tmp_path / "w"
    trunk = [f"{name}.{leaf}" for name in (*CONVS, "fc6", "fc7") for leaf in ("weight", "bias")]
    tensors = {name: donor.state_dict()[name] for name in trunk}
    if kind.startswith("layer"):
        path.write_bytes(caffemodel(tensors, kind, old=kind == "layers"))
    elif kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    report = load_pretrained(network, path)
    assert set(trunk) <= set(report.loaded)
    for name in trunk:
        assert torch.equal(network.state_dict()[name], donor.state_dict()[name])


def test_deeplabs_own_heads_are_taken_under_the_names_that_its_files_have(tmp_path):
    network = small("deeplab_msc")
    names = {"pool3_conv1.weight": "pool3_conv.weight", "pool3_conv2.bias": "pool3_fc.bias"}
    file = {there: torch.full_like(network.get_parameter(own), 2.0) for own, there in names.items()}
    save_file({name: tensor.detach() for name, tensor in file.items()}, tmp_path / "w")
    assert set(load_pretrained(network, tmp_path / "w").loaded) == set(names)


def test_every_name_is_reported_once(tmp_path):
    network = small()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    fits = torch.full_like(network.get_submodule("conv3_2").bias, 2.0)
    file = {"conv3_2.bias": fits.half(), "conv3_2.weight": torch.zeros(2, 2, 3, 3), "fc8.weight": torch.zeros(4)}
    save_file(file, tmp_path / "w.safetensors")
    report = load_pretrained(network, tmp_path / "w.safetensors")
    assert report.loaded == ("conv3_2.bias",)
    assert set(report.unused) == {"conv3_2.weight", "fc8.weight"}
    assert {*report.loaded, *report.initialised} == set(before)
    assert len(report.loaded) + len(report.initialised) == len(before)
    after = network.state_dict()
    assert torch.equal(after["conv3_2.bias"], fits)
    assert all(torch.equal(before[name], after[name]) for name in report.initialised)
    lines = report.table().splitlines()
    assert lines[0].split(maxsplit=1) == [
        "weights",
        f"{tmp_path / 'w.safetensors'}: safetensors, Caffe's names; the image as BGR less (104.008, 116.669, 122.675)",
    ]
    assert [line[:16].split() for line in lines[1:]] == [
        ["loaded", "1"],
        ["reduced", "0"],
        ["initialised", str(len(before) - 1)],
        ["unused", "2"],
        ["other", "shape", "1"],
    ]
    assert lines[-1].endswith("conv3_2.weight is (16, 16, 3, 3), the file's conv3_2.weight is (2, 2, 3, 3)")


def test_table_1_starts_from_the_vgg_layer_of_one_block_before(tmp_path):
    network = small("table1_literal")
    weight = torch.ones_like(network.get_submodule("conv4-2").weight)
    save_file({"conv3_2.weight": weight}, tmp_path / "w.safetensors")
    assert load_pretrained(network, tmp_path / "w.safetensors").loaded == ("conv4-2.weight",)


@pytest.mark.parametrize("variant", ["table1_literal", "vgg16_msc", "deeplab_msc"])
def test_a_network_of_ours_gives_another_of_its_kind_everything(variant, tmp_path):
    donor, network = small(variant, seed=1), small(variant, seed=2)
    donor.mean_bgr.copy_(torch.tensor([1.0, 2.0, 3.0]))
    save_file({f"network.{name}": tensor for name, tensor in donor.state_dict().items()}, tmp_path / "w")
    report = load_pretrained(network, tmp_path / "w")
    assert (report.initialised, report.unused) == ((), ())
    for name, tensor in donor.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_a_file_in_which_nothing_fits_is_refused_and_leaves_the_network(tmp_path):
    network = small()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    save_file({"conv1_1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"no tensor fits .* it has conv1_1.weight \(64, 3, 3, 3\), .*; needed: conv1_1.weight \(8, 3"
    ):
        load_pretrained(network, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_weights_of_ours_for_another_width_are_refused_though_biases_of_scores_fit(tmp_path):
    save_file(small(width=0.25).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no tensor fits the network by name and shape"):
        load_pretrained(small(width=0.5), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("value", "reason"),
    [(float("nan"), "has values that are not finite"), (1e300, "has values that are not finite"), (7, "is of torch.int64")],
)
def test_values_that_no_training_can_begin_with_are_refused_and_leave_the_network(tmp_path, value, reason):
    network = small()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    bias = torch.full_like(network.get_submodule("conv5_3").bias, value, dtype=torch.int64 if value == 7 else torch.float64)
    torch.save({"conv1_1.bias": torch.ones(8), "conv5_3.bias": bias}, tmp_path / "w")
    with pytest.raises(InputError, match=rf"conv5_3.bias {reason}"):
        load_pretrained(network, tmp_path / "w")
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_fully_connected_layers_fit_a_network_of_their_width_alone(torchvision_file):
    report = load_pretrained(small(), torchvision_file)
    assert report.reduced == ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias")
    assert set(report.unused) == {"classifier.6.weight", "classifier.6.bias"}
    wider = load_pretrained(small(width=0.1), torchvision_file)
    assert wider.reduced == ()
    assert {"fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"} < set(wider.initialised)


def test_what_does_not_fit_is_named_with_both_shapes(tmp_path):
    whole = {"fc6.weight": torch.ones(64, 24 * 49), "fc6.bias": torch.ones(64), "conv1_1.bias": torch.ones(8)}
    save_file(whole, tmp_path / "w")
    report = load_pretrained(small(), tmp_path / "w")
    assert "fc6.weight is (48, 24, 3, 3), the file's fc6.weight, reduced, is (16, 24, 3, 3)" in report.table()
    assert report.reduced == ()


# What the layers see


def plain_vgg16(state):
    """torchvision's `features` with DeepLab's pools and dilation, up to the ReLU of conv5_3, in float64."""
    layers, numbers = [], iter(number for number, _, _ in TORCHVISION_VGG16)
    for size, stride, dilation in [(2, 2, 1), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, None, 2)]:
        for _ in range(size):
            name = f"features.{next(numbers)}"
            outputs, inputs = state[f"{name}.weight"].shape[:2]
            conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
            conv.load_state_dict({leaf: state[f"{name}.{leaf}"] for leaf in ("weight", "bias")})
            layers += [conv, nn.ReLU()]
        if stride is not None:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
    return nn.Sequential(*layers).double()


def test_torchvisions_weights_see_what_they_see_in_torchvision(torchvision_file):
    """The image by torchvision's own preparation through a plain VGG-16, and by ours through the network; borders too."""
    image = torch.randint(0, 256, (2, 3, 65, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    with torch.no_grad():
        want = plain_vgg16(TORCHVISION)((image.double() / 255 - mean[:, None, None]) / std[:, None, None])
    network = small()
    load_pretrained(network, torchvision_file)
    got = features(network, "conv5_3", image)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["table1_literal", "vgg16_msc", "deeplab_msc"])
def test_every_layer_that_starts_from_conv1_1_is_converted_alike(variant, torchvision_file):
    network = small(variant)
    load_pretrained(network, torchvision_file)
    levels = 255 * torch.tensor([0.225, 0.224, 0.229])[:, None, None]
    want = TORCHVISION["features.0.weight"][:, [2, 1, 0]] / levels
    starting = {"table1_literal": ["conv1-1", "conv2-1"], "vgg16_msc": ["conv1_1", "data_conv1"], "deeplab_msc": ["conv1_1"]}
    for name in starting[variant]:
        torch.testing.assert_close(network.get_submodule(name).weight, want, rtol=1e-6, atol=0)


def test_an_image_of_the_weights_own_mean_is_nothing_up_to_its_borders(torchvision_file):
    network = small()
    load_pretrained(network, torchvision_file)
    seen = features(network, "conv1_1", network.mean_bgr.flip(0)[:, None, None].expand(1, 3, 65, 65))
    assert torch.equal(seen, network.get_submodule("conv1_1").bias.relu()[:, None, None].expand_as(seen))


def test_the_mean_follows_the_weights(tmp_path, torchvision_file):
    network = small()
    assert network.mean_bgr.tolist() == pytest.approx(CAFFE_MEAN_BGR)
    load_pretrained(network, torchvision_file)
    assert network.mean_bgr.tolist() == pytest.approx([103.53, 116.28, 123.675])
    for of_deeplab, mean in (({}, VGG_MEAN_BGR), ({"fc8_voc12.bias": torch.ones(21)}, CAFFE_MEAN_BGR)):
        save_file({"conv5_3.bias": torch.ones(24), **of_deeplab}, tmp_path / "w")
        load_pretrained(network, tmp_path / "w")
        assert network.mean_bgr.tolist() == pytest.approx(mean)


# Before anything is begun


def test_a_check_refuses_what_loading_refuses(tmp_path, torchvision_file):
    check_pretrained(NetworkConfig())
    check_pretrained(NetworkConfig(width=WIDTH, weights=torchvision_file))
    save_file({"conv5_3.bias": torch.full((24,), torch.inf)}, tmp_path / "w")
    for weights in ("w", "nowhere"):
        with pytest.raises(InputError, match=f"{tmp_path / weights}: c"):
            check_pretrained(NetworkConfig(width=WIDTH, weights=tmp_path / weights))
    with pytest.raises(InputError, match="no tensor fits"):
        check_pretrained(NetworkConfig(weights=torchvision_file))
    with pytest.raises(
        InputError, match=r"network.weights: none is given, and network.frozen_until keeps layers up to conv4_3"
    ):
        check_pretrained(NetworkConfig(frozen_until="conv4_3"))


# The real thing


def test_all_of_vgg_16_loads_and_sees_a_room_as_it_should(shared):
    network = build_network(NetworkConfig(variant="vgg16_msc"), seed=0).eval()
    report = load_pretrained(network, shared / "weights" / "vgg16_imagenet_bgr.safetensors")
    trunk = {f"{name}.{leaf}" for name in CONVS for leaf in ("weight", "bias")}
    assert len(trunk) == 26
    branch = {f"data_conv{number}.{leaf}" for number in (1, 2) for leaf in ("weight", "bias")}
    assert set(report.loaded) == trunk | branch
    assert report.unused == ()

    image = torch.tensor(VGG_MEAN_BGR[::-1]).view(1, 3, 1, 1).repeat(1, 1, 513, 513)
    room = Image.open(shared / "nyuv2" / "rgb" / "0001.jpg").resize((513, 385), Image.Resampling.BILINEAR)
    image[..., :385, :] = torch.from_numpy(np.array(room)).permute(2, 0, 1)
    kept = []
    network.get_submodule("conv5_3").register_forward_hook(lambda *call: kept.append(call[2][..., :49, :]))
    with torch.no_grad():
        network(image, with_depth=False)
    assert kept[0].mean().item() == pytest.approx(0.94, abs=0.15)
    assert (kept[0] == 0).float().mean().item() == pytest.approx(0.95, abs=0.015)
