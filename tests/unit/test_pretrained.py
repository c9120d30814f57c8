"""Laws of loading starting weights. Not here: the network they go into (test_network.py)."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jointseg.config import NetworkConfig
from jointseg.errors import InputError
from jointseg.network.network import build_network
from jointseg.network.pretrained import load_pretrained
from jointseg.network.table import LARGE_FOV, Conv

CONVS = [layer.name for layer in LARGE_FOV.layers if isinstance(layer, Conv) and layer.name.startswith("conv")]


def small(variant="vgg16_msc", *, seed=0):
    return build_network(NetworkConfig(variant=variant, width=0.05), seed=seed)


@pytest.mark.parametrize("variant", ["vgg16_msc", "deeplab_msc"])
def test_a_trunk_that_was_saved_comes_back_whole(variant, tmp_path):
    donor, network = small(variant, seed=1), small(variant, seed=2)
    save_file(
        {name: t for name, t in donor.state_dict().items() if name.startswith(("conv", "fc"))}, tmp_path / "w.safetensors"
    )
    load_pretrained(network, tmp_path / "w.safetensors")
    for name in (*CONVS, "fc6", "fc7"):
        assert torch.equal(network.get_submodule(name).weight, donor.get_submodule(name).weight)


def test_every_name_is_reported_once(tmp_path):
    network = small()
    before = {name: t.clone() for name, t in network.state_dict().items()}
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
    assert [line.split()[:2] for line in report.table().splitlines()] == [
        ["loaded", "1"],
        ["initialised", str(len(before) - 1)],
        ["unused", "2"],
    ]


def test_table_1_starts_from_the_vgg_layer_of_one_block_before(tmp_path):
    network = small("table1_literal")
    weight = torch.ones_like(network.get_submodule("conv4-2").weight)
    save_file({"conv3_2.weight": weight}, tmp_path / "w.safetensors")
    assert load_pretrained(network, tmp_path / "w.safetensors").loaded == ("conv4-2.weight",)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_a_missing_or_foreign_file_is_refused_by_name(content, tmp_path):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_pretrained(small(), path)


def test_a_file_in_which_nothing_fits_is_refused_and_leaves_the_network(tmp_path):
    network = small()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    save_file({"conv1_1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no tensor fits"):
        load_pretrained(network, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_all_of_vgg_16_loads_and_sees_a_room_as_it_should(shared):
    network = build_network(NetworkConfig(variant="vgg16_msc"), seed=0).eval()
    report = load_pretrained(network, shared / "weights" / "vgg16_imagenet_bgr.safetensors")
    trunk = {f"{name}.{leaf}" for name in CONVS for leaf in ("weight", "bias")}
    assert len(trunk) == 26
    branch = {f"data_conv{number}.{leaf}" for number in (1, 2) for leaf in ("weight", "bias")}
    assert set(report.loaded) == trunk | branch
    assert report.unused == ()

    image = torch.tensor([122.675, 116.669, 104.008]).view(1, 3, 1, 1).repeat(1, 1, 513, 513)
    room = Image.open(shared / "nyuv2" / "rgb" / "0001.jpg").resize((513, 385), Image.Resampling.BILINEAR)
    image[..., :385, :] = torch.from_numpy(np.array(room)).permute(2, 0, 1)
    kept = []
    network.get_submodule("conv5_3").register_forward_hook(lambda *call: kept.append(call[2][..., :49, :]))
    with torch.no_grad():
        network(image, with_depth=False)
    assert kept[0].mean().item() == pytest.approx(0.94, abs=0.15)
    assert (kept[0] == 0).float().mean().item() == pytest.approx(0.95, abs=0.015)
