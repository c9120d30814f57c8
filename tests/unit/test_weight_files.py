"""Laws of files of weights: known by content, refused in one line, never run. Not here: what the network takes of them
(test_pretrained.py), the bytes of a .caffemodel (test_caffemodel.py).
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from jointseg.batches import Place
from jointseg.checkpoint import save_checkpoint, save_final
from jointseg.errors import InputError
from jointseg.network.weight_files import VGG_MEAN_BGR, read_weights
from jointseg.presets import demo
from jointseg.resuming import begin
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from tests.starting_weights import blob, caffemodel, floats, layer, torchvision_vgg16

WIDTH = 0.05
TORCHVISION = torchvision_vgg16(WIDTH)
DEEPLAB_MEAN = pytest.approx((104.008, 116.669, 122.675))
CAFFE = {"conv1_1.weight": torch.ones(8, 3, 3, 3), "conv1_1.bias": torch.arange(8.0), "pool1.weight": torch.ones(3, 2, 1, 1)}


def torch_file(content, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


KIND_OF = {
    "layers": partial(caffemodel, kind="layers", old=True),
    "layer": partial(caffemodel, kind="layer"),
    "safetensors": save,
    "zip": torch_file,
    "pickle": partial(torch_file, zipped=False),
}
KINDS = {kind: written(CAFFE) for kind, written in KIND_OF.items()}


@pytest.fixture
def read(tmp_path):
    def run(content: bytes):
        (tmp_path / "w").write_bytes(content)
        return read_weights(tmp_path / "w")

    return run


@pytest.fixture
def refusal(read, tmp_path):
    def run(content: bytes | Path) -> str:
        with pytest.raises(InputError) as caught:
            read(content) if isinstance(content, bytes) else read_weights(content)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        return str(caught.value)

    return run


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Kinds


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_says_what_a_file_is_and_not_its_name(read, kind):
    weights = read(KINDS[kind])
    assert same(weights.tensors, CAFFE)
    assert weights.image.mean_bgr == DEEPLAB_MEAN
    assert (weights.image.scale_bgr, weights.image.rgb) == ((1, 1, 1), False)


@pytest.mark.parametrize(
    ("layer_", "mean"), [("conv5_3", VGG_MEAN_BGR), ("fc8_voc12", DEEPLAB_MEAN), ("pool2_conv", DEEPLAB_MEAN)]
)
def test_weights_that_do_not_say_their_mean_are_vggs_unless_they_have_layers_of_deeplabs(read, layer_, mean):
    tensors = {"conv1_1.weight": torch.ones(8, 3, 3, 3), f"{layer_}.bias": torch.ones(8)}
    assert read(save(tensors)).image.mean_bgr == mean


@pytest.mark.parametrize("kind", KINDS)
def test_vgg_19_under_caffes_names_is_refused(refusal, kind):
    deeper = {**CAFFE, "conv3_4.weight": torch.ones(8, 8, 3, 3)}
    assert "is not VGG-16 but another network, for it has conv3_4" in refusal(KIND_OF[kind](deeper))


@pytest.mark.parametrize(
    "content",
    [save(TORCHVISION), torch_file(TORCHVISION), torch_file(TORCHVISION, zipped=False)],
    ids=["safetensors", "torch", "torch, not zipped"],
)
def test_torchvisions_names_mean_torchvisions_input(read, content):
    weights = read(content)
    assert torch.equal(weights.tensors["conv4_2.weight"], TORCHVISION["features.19.weight"])
    assert torch.equal(weights.tensors["classifier.6.bias"], TORCHVISION["classifier.6.bias"])
    assert len(weights.tensors) == len(TORCHVISION)
    assert weights.image.mean_bgr == pytest.approx((255 * 0.406, 255 * 0.456, 255 * 0.485))
    assert weights.image.scale_bgr == pytest.approx((1 / (255 * 0.225), 1 / (255 * 0.224), 1 / (255 * 0.229)))
    assert weights.image.rgb


def test_safetensors_whose_length_looks_like_a_caffemodel_are_read(read):
    content = save({"conv1_1.bias": torch.ones(8)})
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip()
    for length in (0x10A, 0x112, 0x11A, 0x6A2):
        padded = length.to_bytes(8, "little") + header.ljust(length) + torch.ones(8).numpy().tobytes()
        assert same(read(padded).tensors, {"conv1_1.bias": torch.ones(8)})


def test_a_caffemodel_that_says_its_mean_and_scale_is_believed(read):
    data = layer("layers", "data", transform=floats(5, [103.939, 116.779, 123.68]) + floats(1, [0.017], packed=False))
    weights = read(data + KINDS["layers"])
    assert weights.image.mean_bgr == pytest.approx((103.939, 116.779, 123.68))
    assert weights.image.scale_bgr == pytest.approx((0.017, 0.017, 0.017))


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A checkpoint of stage 2 in `step`, and the stage's `final`; its network takes off a mean of its own."""
    folder = tmp_path_factory.mktemp("own")
    run = begin(with_overrides(demo(), {"network.width": WIDTH}), STAGES["stage2"], place=Place(), start=None)
    run.model.network.mean_bgr.copy_(torch.tensor([1.0, 2.0, 3.0]))
    save_checkpoint(folder / "step", run.checkpoint([{"cpu": torch.get_rng_state(), "cuda": None}]))
    save_final(folder / "final", folder / "step")
    return folder


@pytest.mark.parametrize("path", ["final", "step", "final/weights.safetensors", "moved.safetensors"])
def test_a_checkpoint_of_ours_is_read_with_its_mean(own, tmp_path, path):
    if path == "moved.safetensors":
        shutil.copy(own / "final" / "weights.safetensors", own / path)
    weights = read_weights(own / path)
    assert weights.image.mean_bgr == (1.0, 2.0, 3.0)
    assert {"conv1_1.weight", "heads.pool1.depth.bias", "crf.compatibility"} < weights.tensors.keys()
    assert "mean_bgr" not in weights.tensors


@pytest.mark.parametrize("path", ["", "weights.safetensors"])
def test_a_checkpoint_of_ours_that_was_altered_is_refused(own, tmp_path, refusal, path):
    shutil.copytree(own / "final", tmp_path / "final")
    file = tmp_path / "final" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert "altered since it was written" in refusal(tmp_path / "final" / path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, refusal):
    assert f"{tmp_path / 'checkpoint.json'}: not found; allowed: the final/ of a finished stage" in refusal(tmp_path)


@pytest.mark.parametrize(
    "mean", [{}, {"network.mean_bgr": torch.ones(1, 3)}, {"network.mean_bgr": torch.full((3,), torch.nan)}]
)
def test_weights_of_ours_without_their_mean_are_refused(refusal, mean):
    assert "network.mean_bgr" in refusal(save({"network.conv1_1.bias": torch.ones(8), **mean}))


# What is refused


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in names}


@pytest.mark.parametrize(
    ("state", "odd"),
    [
        (TORCHVISION | {"features.16.weight": torch.ones(1)}, "features.16 is there"),  # vgg19
        (TORCHVISION | {"features.1.running_mean": torch.ones(1)}, "features.1 is there"),  # vgg16_bn
        (without(TORCHVISION, "features.12", "features.28"), "features.12 is missing"),  # vgg11, alexnet
    ],
)
def test_another_network_of_torchvisions_is_refused(refusal, state, odd):
    assert f"is not torchvision's vgg16 but another of its networks, for {odd}" in refusal(torch_file(state))


UNKNOWN = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "a prototxt": b'name: "VGG_ILSVRC_16_layers"\n',
    "a page": b"<!DOCTYPE html>",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("content", UNKNOWN.values(), ids=UNKNOWN)
def test_a_file_of_no_known_kind_is_refused_with_what_is_allowed(refusal, content):
    message = refusal(content)
    assert f"it begins with {content[:8]!r}" in message
    assert "allowed: a .caffemodel; a PyTorch state dict or safetensors" in message


def test_no_file_is_refused(tmp_path, refusal):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(2)], "holds a list"),
        ({"state_dict": CAFFE, "epoch": 3}, "'state_dict' is no plain tensor by name"),
        ({"conv1_1.bias": 3.0}, "'conv1_1.bias' is no plain tensor"),
        ({1: torch.ones(2)}, "1 is no plain tensor"),
        ({"conv1_1.bias": torch.ones(2).to_sparse()}, "'conv1_1.bias' is no plain tensor"),
        ({"conv1_1.bias": torch.ones(2, device="meta")}, "'conv1_1.bias' is no plain tensor"),
        ({"conv1_1\n.bias": torch.ones(2)}, r"a tensor is called 'conv1_1\n.bias'"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_no_state_dict_is_refused(refusal, content, reason, zipped):
    assert reason in refusal(torch_file(content, zipped=zipped))


def test_a_name_that_cannot_be_printed_is_refused_in_every_kind(refusal):
    assert r"'a\x1b.weight'" in refusal(layer("layer", "a\x1b", blob(torch.ones(2))))
    assert r"'a\n'" in refusal(save({"a\n": torch.ones(2)}))


class Payload:
    """What unpickles as the making of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "torch's pickle", "pickle 2", "pickle 5"])
def test_a_pickle_is_never_run(refusal, tmp_path, kind):
    made, content = tmp_path / "made", {"conv1_1.bias": torch.ones(8), "x": Payload(tmp_path / "made")}
    if kind.startswith("pickle"):
        file = pickle.dumps(content["x"], protocol=int(kind[-1]))
        pickle.loads(file)
        made.rmdir()  # it would have
    else:
        file = torch_file(content, zipped=kind == "zip")
    message = refusal(file)
    assert not made.exists()
    assert kind.startswith("pickle") or "names posix.mkdir, which was not run" in message


def test_a_whole_pickled_module_is_refused(refusal):
    assert "names torch.nn.modules.linear.Linear, which was not run" in refusal(torch_file(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_a_file_cut_anywhere_is_refused(refusal, kind):
    content = KINDS[kind]
    for size in {*range(0, len(content), 7), *range(64), len(content) - 1}:
        refusal(content[:size])


@settings(max_examples=300)
@given(data=st.data(), kind=st.sampled_from(["safetensors", "zip", "pickle"]))
def test_any_other_bytes_are_read_or_refused(read, data, kind):
    content = bytearray(KINDS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    try:
        read(bytes(content))
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


# VGG-16's fully connected layers


def test_whole_fully_connected_layers_become_deeplabs(read):
    """Of fc6, 8 outputs of 2 x 7 x 7, stay outputs 0, 4, rows and columns 0, 3, 6; of fc7, 8 x 8, rows and columns 0, 4."""
    fc6, fc7 = torch.arange(8 * 98.0), torch.arange(64.0)
    whole = {"fc6.weight": fc6.reshape(8, 98), "fc6.bias": torch.arange(8.0), "fc7.weight": fc7.reshape(8, 8)}
    whole["fc7.bias"] = 10 + torch.arange(8.0)
    tap = [0, 3, 6, 21, 24, 27, 42, 45, 48]
    want6 = [[[tap[i] + 49 * channel + 98 * output for i in range(9)] for channel in (0, 1)] for output in (0, 4)]
    convolutions = whole | {"fc6.weight": fc6.reshape(8, 2, 7, 7), "fc7.weight": fc7.reshape(8, 8, 1, 1)}
    for content in (
        caffemodel(whole, "layers", old=True),
        caffemodel(whole, "layer"),
        caffemodel(convolutions, "layers", old=True),
        save(whole),
        torch_file(convolutions),
    ):
        weights = read(content)
        assert torch.equal(weights.tensors["fc6.weight"], torch.tensor(want6).float().reshape(2, 2, 3, 3))
        assert torch.equal(weights.tensors["fc7.weight"], torch.tensor([[0.0, 4], [32, 36]])[:, :, None, None])
        assert weights.tensors["fc6.bias"].tolist() == [0, 4]
        assert weights.tensors["fc7.bias"].tolist() == [10, 14]
        assert weights.reduced == whole.keys()
        assert weights.image.mean_bgr == pytest.approx((103.939, 116.779, 123.68))  # VGG-16's own, for want of another


def test_deeplabs_own_layers_are_left_alone(read):
    deeplab = {"fc6.weight": torch.ones(8, 2, 3, 3), "fc6.bias": torch.ones(8), "fc7.weight": torch.ones(8, 8, 1, 1)}
    weights = read(caffemodel(deeplab, "layers", old=True))
    assert same(weights.tensors, deeplab)
    assert not weights.reduced


def test_an_fc7_that_does_not_read_fc6_is_left_alone(read):
    weights = read(save({"fc6.weight": torch.ones(8, 98), "fc7.weight": torch.ones(8, 16), "fc7.bias": torch.ones(8)}))
    assert weights.reduced == {"fc6.weight"}
    assert weights.tensors["fc7.bias"].shape == (8,)
