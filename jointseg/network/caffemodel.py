"""Caffe's own files of weights, `.caffemodel`: the few fields that hold them, read without Caffe and without protobuf.

Not here: which of these weights the network takes (pretrained.py), other kinds of files (weight_files.py).

A `.caffemodel` is a NetParameter of BVLC/caffe's src/caffe/proto/caffe.proto, from which the field numbers below are, in
protobuf's wire format (https://protobuf.dev/programming-guides/encoding). What is not needed is stepped over, unread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jointseg.errors import InputError


class LayerFields(NamedTuple):
    """Where a layer's message has what is read of it."""

    name: int
    blobs: int
    transform_param: int


# NetParameter: field 2 `layers` (V1LayerParameter, until 2014), field 100 `layer` (LayerParameter).
LAYERS = {2: LayerFields(name=4, blobs=6, transform_param=36), 100: LayerFields(name=1, blobs=7, transform_param=100)}
# TransformationParameter, of data layers
SCALE, MEAN_VALUE = 1, 5
# BlobProto: `num`, `channels`, `height`, `width` (until 2014), else `shape`; `data`, else `double_data`
OLD_SHAPE, DATA, SHAPE, DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8
# BlobShape
DIM = 1

MAX_AXES = 32
"""Of a blob (Caffe's kMaxBlobAxes)."""

# How such a file begins: with NetParameter's `name` (1), `layers` (2), `input` (3) or `layer` (100), each of wire type 2.
_BEGINNINGS = (b"\x0a", b"\x12", b"\x1a", b"\xa2\x06")


@dataclass(frozen=True)
class CaffeModel:
    """What a `.caffemodel` says of its weights."""

    tensors: dict[str, Tensor]
    """Float32, as `LAYER.weight`, `LAYER.bias`; further blobs of a layer are `LAYER.2`, ... Old shapes are without the ones
    that Caffe put in front: a bias is (N), an inner product's weight (outputs, inputs)."""
    mean_bgr: tuple[float, ...] | None
    """The mean that its data layer takes off each channel, levels; None where the file does not say."""
    scale: float
    """What its data layer multiplies levels by, once the mean is off."""


def looks_like_caffemodel(head: bytes) -> bool:
    """Whether a file that begins with `head` may be a `.caffemodel`: the format has no mark of its own."""
    return head.startswith(_BEGINNINGS)


def read_caffemodel(path: Path) -> CaffeModel:
    """The weights in a `.caffemodel`, of the old or the new kind of layers.

    Raises:
        InputError: the file is damaged, or no layer in it has weights.
    """
    data = np.memmap(path, np.uint8, "r").data if path.stat().st_size else memoryview(b"")
    tensors: dict[str, Tensor] = {}
    inputs: list[_Transform] = []
    try:
        for part in _fields(data):
            if part.number not in LAYERS:
                continue
            layer = _layer(part.message(), LAYERS[part.number])
            for name, blob in layer.named_blobs().items():
                if name in tensors:
                    raise _DamagedError(f"two layers with weights are called {layer.name!r}")
                tensors[name] = blob
            inputs += [transform for transform in layer.transforms if transform != _Transform()]
    except _DamagedError as error:
        raise InputError(f"{path}: not a .caffemodel, or a damaged one: {error}") from None
    if not tensors:
        raise InputError(f"{path}: a .caffemodel without weights; needed: layers with blobs, in `layers` (V1) or in `layer`")
    first = inputs[0] if inputs else _Transform()
    return CaffeModel(tensors, first.mean_bgr or None, first.scale)


class _DamagedError(ValueError):
    """The bytes are not what the format allows."""


class _Transform(NamedTuple):
    """What a data layer does to an image."""

    mean_bgr: tuple[float, ...] = ()
    scale: float = 1.0


@dataclass
class _Layer:
    name: str = ""
    blobs: list[Tensor] = field(default_factory=list)
    transforms: list[_Transform] = field(default_factory=list)

    def named_blobs(self) -> dict[str, Tensor]:
        leaves = ("weight", "bias", *map(str, range(2, len(self.blobs))))
        return {f"{self.name}.{leaf}": blob for leaf, blob in zip(leaves, self.blobs, strict=False)}


def _layer(message: memoryview, fields: LayerFields) -> _Layer:
    layer = _Layer()
    for part in _fields(message):
        if part.number == fields.name:
            layer.name = part.text()
        elif part.number == fields.blobs:
            try:
                layer.blobs.append(_blob(part.message()))
            except _DamagedError as error:
                raise _DamagedError(f"blob {len(layer.blobs)} of layer {layer.name[:40]!r}: {error}") from None
        elif part.number == fields.transform_param:
            layer.transforms.append(_transform(part.message()))
    return layer


def _transform(message: memoryview) -> _Transform:
    means, scales = bytearray(), bytearray(np.float32(1).tobytes())
    for part in _fields(message):
        if part.number == MEAN_VALUE:
            means += part.values(width=4)
        elif part.number == SCALE:
            scales = bytearray(part.values(width=4))
    mean, scale = (np.frombuffer(values, "<f4").tolist() for values in (means, scales))
    if len(mean) not in (0, 1, 3) or len(scale) != 1 or not all(map(math.isfinite, mean + scale)):
        raise _DamagedError(f"a data layer has mean values {mean[:4]} and scale {scale[:2]}; allowed: 1 or 3 numbers, and 1")
    return _Transform(tuple(mean * 3 if len(mean) == 1 else mean), scale[0])


def _blob(message: memoryview) -> Tensor:
    old: dict[int, int] = {}
    shape: list[int] = []
    singles, doubles = bytearray(), bytearray()
    for part in _fields(message):
        if part.number in OLD_SHAPE:
            old[part.number] = part.integer()
        elif part.number == SHAPE:
            shape += _dims(part.message())
        elif part.number == DATA:
            singles += part.values(width=4)
        elif part.number == DOUBLE_DATA:
            doubles += part.values(width=8)
    if old:
        shape = [old.get(number, 0) for number in OLD_SHAPE]
        while len(shape) > 1 and shape[0] == 1:
            del shape[0]
    count = len(doubles) // 8 if doubles else len(singles) // 4
    if len(shape) > MAX_AXES or math.prod(shape) != count or not count:
        sizes = ", ".join(map(str, shape[:MAX_AXES]))
        raise _DamagedError(f"its shape is ({sizes}) but it holds {count} values")
    values = torch.frombuffer(doubles, dtype=torch.float64) if doubles else torch.frombuffer(singles, dtype=torch.float32)
    return values.float().reshape(shape)


def _dims(message: memoryview) -> list[int]:
    return [dim for part in _fields(message) if part.number == DIM for dim in part.integers()]


# Wire types of protobuf: a number of 7 bits a byte; eight bytes; so many bytes as a number before them says; four bytes
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    """A field of a message: the number it holds (VARINT), or its bytes (the other types)."""

    number: int
    wire: int
    value: int
    data: memoryview

    def message(self) -> memoryview:
        return self._expect(BYTES).data

    def text(self) -> str:
        try:
            return str(self._expect(BYTES).data, "utf-8")
        except UnicodeDecodeError:
            raise _DamagedError(f"a layer's name is not UTF-8: {bytes(self.data[:40])!r}") from None

    def integer(self) -> int:
        return self._expect(VARINT).value

    def integers(self) -> list[int]:
        """Of a repeated field: one, or many packed."""
        if self.wire == VARINT:
            return [self.value]
        integers, at, data = [], 0, self.message()
        while at < len(data):
            value, at = _varint(data, at)
            integers.append(value)
        return integers

    def values(self, *, width: int) -> memoryview:
        """The bytes of a repeated field of floating-point values: of one, or of many packed."""
        data = self._expect(BYTES, FIXED32 if width == 4 else FIXED64).data
        if len(data) % width:
            raise _DamagedError(f"field {self.number} is {len(data)} bytes long; allowed: a multiple of {width}")
        return data

    def _expect(self, *wires: int) -> _Field:
        if self.wire not in wires:
            raise _DamagedError(f"field {self.number} has wire type {self.wire}; allowed: {' or '.join(map(str, wires))}")
        return self


def _fields(message: memoryview) -> Iterator[_Field]:
    """Every field of a message, in the file's order."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value, size = 0, 0
        if not 0 < number < 1 << 29:
            raise _DamagedError(f"{number} is no field's number")
        if wire == VARINT:
            value, at = _varint(message, at)
        elif wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise _DamagedError(f"field {number} has wire type {wire}; allowed: 0, 1, 2, 5")
        if size > len(message) - at:
            raise _DamagedError(f"field {number} is {size} bytes long, but its message ends after {len(message) - at}")
        yield _Field(number, wire, value, message[at : at + size])
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, below 2^64, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            raise _DamagedError("it ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 and value < 1 << 64:
            return value, at
    raise _DamagedError("a number is longer than 64 bits")
