"""Files of starting weights, made from scratch: Caffe's, by a protobuf writer that shares nothing with the reader, and
torchvision's, by its names. Not here: what is read from them (unit/test_caffemodel.py, unit/test_pretrained.py).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

# torchvision's `vgg16().state_dict()`: name, outputs, inputs of each convolution of the real one.
TORCHVISION_VGG16 = [
    (0, 64, 3), (2, 64, 64), (5, 128, 64), (7, 128, 128), (10, 256, 128), (12, 256, 256), (14, 256, 256),
    (17, 512, 256), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512),
]  # fmt: skip


def torchvision_vgg16(width: float, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under torchvision's names, `width` times as wide, in eights; its classifier whole, for 7 x 7 features."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    for number, outputs, inputs in TORCHVISION_VGG16:
        add(f"features.{number}", eights(outputs, width), inputs if inputs == 3 else eights(inputs, width), 3, 3)
    hidden = 4 * eights(1024, width)
    add("classifier.0", hidden, eights(512, width) * 49)
    add("classifier.3", hidden, hidden)
    add("classifier.6", 10, hidden)
    return state


def eights(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))


# Caffe's NetParameter, by protobuf's encoding of it.

Kind = Literal["layers", "layer"]
NUMBERS = {
    "layers": {"net": 2, "name": 4, "blobs": 6, "transform": 36},
    "layer": {"net": 100, "name": 1, "blobs": 7, "transform": 100},
}


def varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value % 128 + 128)
        value //= 128
    return bytes([*groups, value])


def number(field: int, value: int) -> bytes:
    return varint(8 * field) + varint(value)


def delimited(field: int, body: bytes) -> bytes:
    return varint(8 * field + 2) + varint(len(body)) + body


def floats(field: int, values: Sequence[float], *, packed: bool = True, double: bool = False) -> bytes:
    each = [struct.pack("<d" if double else "<f", value) for value in values]
    if packed:
        return delimited(field, b"".join(each))
    return b"".join(varint(8 * field + (1 if double else 5)) + value for value in each)


def blob(values: Tensor, *, old: bool = False, packed: bool = True, double: bool = False) -> bytes:
    """A BlobProto; `old` has four sizes of its own and ones in front, as Caffe had before 2014."""
    sizes = [*values.shape]
    if old:
        sizes = [1] * (4 - len(sizes)) + sizes
        shape = b"".join(number(field, size) for field, size in enumerate(sizes, start=1))
    else:
        dims = [varint(size) for size in sizes]
        shape = delimited(7, delimited(1, b"".join(dims)) if packed else b"".join(b"\x08" + dim for dim in dims))
    return shape + floats(8 if double else 5, values.flatten().tolist(), packed=packed, double=double)


def layer(kind: Kind, name: str | bytes, *blobs: bytes, transform: bytes | None = None) -> bytes:
    fields = NUMBERS[kind]
    body = delimited(fields["name"], name.encode() if isinstance(name, str) else name)
    body += b"".join(delimited(fields["blobs"], each) for each in blobs)
    if transform is not None:
        body += delimited(fields["transform"], transform)
    return delimited(fields["net"], body)


def caffemodel(
    tensors: Mapping[str, Tensor], kind: Kind, *, old: bool = False, packed: bool = True, double: bool = False
) -> bytes:
    """The whole file, for tensors by `LAYER.weight` and `LAYER.bias`, in this order for each layer."""
    blobs: dict[str, list[bytes]] = {}
    for name, values in tensors.items():
        blobs.setdefault(name.rpartition(".")[0], []).append(blob(values, old=old, packed=packed, double=double))
    return delimited(1, b"VGG") + b"".join(layer(kind, name, *each) for name, each in blobs.items())
