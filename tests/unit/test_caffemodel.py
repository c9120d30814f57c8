"""Laws of reading Caffe's files, written here byte by byte. Not here: what the network takes of them (test_pretrained.py)."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointseg.errors import InputError
from jointseg.network.caffemodel import looks_like_caffemodel, read_caffemodel
from tests.starting_weights import blob, caffemodel, delimited, floats, layer, number, varint

KINDS = pytest.mark.parametrize("kind", ["layers", "layer"])
TENSORS = {
    "conv1_1.weight": torch.arange(54.0).reshape(2, 3, 3, 3) / 7,
    "conv1_1.bias": torch.tensor([0.5, -0.25]),
    "fc6.weight": torch.arange(10.0).reshape(5, 2),
    "fc6.bias": torch.arange(5.0),
}


@pytest.fixture
def read(tmp_path: Path):
    def run(content: bytes):
        (tmp_path / "w").write_bytes(content)
        return read_caffemodel(tmp_path / "w")

    return run


@pytest.fixture
def refusal(read, tmp_path):
    def run(content: bytes) -> str:
        with pytest.raises(InputError) as caught:
            read(content)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / "w") in str(caught.value)
        return str(caught.value)

    return run


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@KINDS
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("double", [True, False])
def test_what_was_written_comes_back(read, kind, old, packed, double):
    content = caffemodel(TENSORS, kind, old=old, packed=packed, double=double)
    assert looks_like_caffemodel(content[:64])
    model = read(content)
    assert same(model.tensors, TENSORS)
    assert all(tensor.dtype == torch.float32 for tensor in model.tensors.values())
    assert (model.mean_bgr, model.scale) == (None, 1.0)


@KINDS
def test_what_googles_protobuf_writes_comes_back(read, kind):
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory  # noqa: PLC0415

    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    messages = {  # of each field: name, number, 1 (optional) or 3 (repeated), type: 2 float, 3 int64, 9 string or a message
        "BlobShape": [("dim", 1, 3, 3)],
        "BlobProto": [("shape", 7, 1, "BlobShape"), ("data", 5, 3, 2), ("diff", 6, 3, 2), ("num", 1, 1, 3)],
        "V1LayerParameter": [("name", 4, 1, 9), ("blobs", 6, 3, "BlobProto"), ("bottom", 2, 3, 9)],
        "LayerParameter": [("name", 1, 1, 9), ("blobs", 7, 3, "BlobProto"), ("bottom", 3, 3, 9)],
        "NetParameter": [("name", 1, 1, 9), ("layers", 2, 3, "V1LayerParameter"), ("layer", 100, 3, "LayerParameter")],
    }
    for message, fields in messages.items():
        made = file.message_type.add(name=message)
        for name, field, label, kind_of in fields:
            one = made.field.add(name=name, number=field, label=label, type=kind_of if isinstance(kind_of, int) else 11)
            if isinstance(kind_of, str):
                one.type_name = f".caffe.{kind_of}"
            elif label == 3 and kind_of != 9:
                one.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))(name="VGG")
    for name in ("conv1_1", "fc6"):
        part = getattr(net, kind).add(name=name, bottom=["data"])
        for leaf in ("weight", "bias"):
            values = TENSORS[f"{name}.{leaf}"]
            part.blobs.add(shape={"dim": values.shape}, data=values.flatten().tolist(), diff=[1.0] * values.numel())
    assert same(read(net.SerializeToString()).tensors, TENSORS)


@KINDS
def test_what_is_not_weights_is_stepped_over(read, kind):
    diff, double_diff = floats(6, [9.0, 9.0]), floats(9, [9.0], double=True)
    with_extras = layer(kind, "conv", diff + blob(torch.ones(2)) + double_diff)
    without = layer(kind, "relu")
    rest = delimited(3, b"data") + number(4, 513) + number(5, 1) + varint(8 * 90 + 1) + bytes(8) + varint(8 * 91 + 5) + bytes(4)
    assert same(read(rest + without + with_extras + rest).tensors, {"conv.weight": torch.ones(2)})


def test_old_shapes_lose_the_ones_in_front_but_not_the_last(read):
    written = {"conv.weight": torch.ones(4, 1, 1, 3), "conv.bias": torch.ones(1), "ip.weight": torch.ones(1, 1, 3, 2)}
    shapes = {name: tuple(tensor.shape) for name, tensor in read(caffemodel(written, "layers", old=True)).tensors.items()}
    assert shapes == {"conv.weight": (4, 1, 1, 3), "conv.bias": (1,), "ip.weight": (3, 2)}


def test_an_old_shape_stands_where_both_are(read):
    both = blob(torch.arange(6.0).reshape(2, 3)) + number(3, 3) + number(4, 2) + number(1, 1) + number(2, 1)
    assert read(layer("layers", "ip", both)).tensors["ip.weight"].shape == (3, 2)


def test_further_blobs_go_by_their_place(read):
    parts = [blob(torch.full((2,), float(value))) for value in range(3)]
    assert list(read(layer("layer", "bn", *parts)).tensors) == ["bn.weight", "bn.bias", "bn.2"]


@KINDS
@pytest.mark.parametrize("packed", [True, False])
def test_the_mean_and_scale_of_a_data_layer_are_read(read, kind, packed):
    data = layer(kind, "data", transform=floats(5, [104.5, 116.25, 122.75], packed=packed) + floats(1, [0.5], packed=False))
    model = read(data + caffemodel(TENSORS, kind))
    assert (model.mean_bgr, model.scale) == ((104.5, 116.25, 122.75), 0.5)
    grey = layer(kind, "data", transform=number(3, 224)) + layer(kind, "data", transform=floats(5, [128.0], packed=False))
    assert read(grey + caffemodel(TENSORS, kind)).mean_bgr == (128.0, 128.0, 128.0)


CONV = delimited(2, b"\x22\x01c" + delimited(6, blob(torch.ones(2))))
LARGE = 2**62
DAMAGED = {
    "a layer past the end": (varint(18) + varint(LARGE) + b"layer", "is 4611686018427387904 bytes long"),
    "a blob past its layer": (delimited(2, varint(50) + varint(99)), "field 6 is 99 bytes long, but its message ends after 0"),
    "data past its blob": (layer("layers", "c", varint(42) + varint(LARGE)), "layer 'c': field 5 is 4611686018427387904 bytes"),
    "half a number": (CONV + b"\x28", "ends inside a number"),
    "a long number": (CONV + b"\x28" + b"\xff" * 10, "longer than 64 bits"),
    "a number of 65 bits": (CONV + b"\x28" + b"\xff" * 9 + b"\x02", "longer than 64 bits"),
    "field 0": (CONV + b"\x02\x00", "0 is no field's number"),
    "a group": (CONV + b"\x0b", "field 1 has wire type 3"),
    "a layer that is a number": (CONV + number(2, 7), "field 2 has wire type 0; allowed: 2"),
    "a layer of four bytes": (CONV + varint(8 * 2 + 5) + b"\x22\x01cc", "field 2 has wire type 5; allowed: 2"),
    "a name that is a number": (delimited(2, number(4, 7)), "field 4 has wire type 0; allowed: 2"),
    "a size that is bytes": (
        layer("layer", "c", delimited(1, b"\x02") + floats(5, [1, 1])),
        "field 1 has wire type 2; allowed: 0",
    ),
    "data of eight bytes": (layer("layer", "c", varint(41) + bytes(8)), "field 5 has wire type 1; allowed: 2 or 5"),
    "half a float": (layer("layer", "c", delimited(5, bytes(6))), "field 5 is 6 bytes long; allowed: a multiple of 4"),
    "a name that is not UTF-8": (layer("layer", b"conv\xff1", blob(torch.ones(2))), r"not UTF-8: b'conv\xff1'"),
    "a shape of more": (
        layer("layer", "c", delimited(7, b"\x08\x03") + floats(5, [1, 1])),
        "blob 0 of layer 'c': its shape is (3)",
    ),
    "a huge shape": (
        layer("layer", "c", delimited(7, delimited(1, varint(LARGE) * 2)) + floats(5, [1])),
        f"its shape is ({LARGE}, {LARGE}) but it holds 1 values",
    ),
    "a huge old shape": (layer("layers", "c", number(1, LARGE) + floats(5, [1])), f"its shape is ({LARGE}, 0, 0, 0)"),
    "a negative size": (layer("layers", "c", number(1, 2**64 - 1) + floats(5, [1])), "but it holds 1 values"),
    "many axes": (layer("layer", "c", delimited(7, delimited(1, b"\x01" * 5000)) + floats(5, [1])), "but it holds 1 values"),
    "a blob without data": (layer("layer", "c", delimited(7, b"\x08\x00")), "its shape is (0) but it holds 0 values"),
    "two layers of one name": (CONV + CONV, "two layers with weights are called 'c'"),
    "two mean values": (layer("layer", "d", transform=floats(5, [1, 2])) + CONV, "mean values [1.0, 2.0]"),
    "a mean that is no number": (layer("layer", "d", transform=floats(5, [float("nan")])) + CONV, "mean values [nan]"),
    "no layer": (delimited(1, b"VGG"), "without weights"),
    "layers without blobs": (layer("layer", "relu") + layer("layers", "relu"), "without weights"),
    "nothing": (b"", "without weights"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named(refusal, damage):
    content, reason = DAMAGED[damage]
    assert reason in refusal(content)


@pytest.mark.parametrize("damage", [name for name in DAMAGED if "past" in name or "huge" in name or "axes" in name])
def test_what_a_file_claims_is_not_allocated(refusal, damage):
    tracemalloc.start()
    refusal(DAMAGED[damage][0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@KINDS
@pytest.mark.parametrize("old", [True, False])
def test_a_file_cut_anywhere_but_between_two_layers_is_refused(read, refusal, kind, old):
    """Between two layers the format itself may end."""
    content = caffemodel(TENSORS, kind, old=old)
    first = dict(list(TENSORS.items())[:2])
    between = len(caffemodel(first, kind, old=old))
    assert same(read(content[:between]).tensors, first)
    for size in {*range(len(content))} - {between}:
        refusal(content[:size])


WHOLE = caffemodel(TENSORS, "layers", old=True) + caffemodel({f"a{n}": t for n, t in TENSORS.items()}, "layer")


@settings(max_examples=400)
@given(data=st.data())
def test_any_other_bytes_are_read_or_refused(read, data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    try:
        assert all(tensor.numel() for tensor in read(bytes(content)).tensors.values())
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=300)
@given(content=st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda body: delimited(2, delimited(6, body)))))
def test_noise_is_read_or_refused(read, content):
    try:
        read(content)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
