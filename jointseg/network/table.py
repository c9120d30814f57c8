"""The three readings of the paper's network as rows of data; Table 1 is to be held beside them.

Not here: how rows become modules (network.py) and where starting weights come from (pretrained.py).

Every Conv is followed by a ReLU and keeps the size (padding = dilation * (kernel - 1) / 2) unless it has a stride. Every
Branch ends in two score layers, 1 x 1 and without a ReLU, which read its last feature: one for the classes, one for the
depth bins. Their maps are upsampled by `upsample` and summed over the branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias


@dataclass(frozen=True)
class Conv:
    """A convolution and its ReLU. `starts_from`: the Caffe layer whose weights fit it, where it goes by another name."""

    name: str
    channels: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    starts_from: str | None = None


@dataclass(frozen=True)
class MaxPool:
    """3 x 3 max pooling, padding 1 (DeepLab; VGG's own is 2 x 2)."""

    name: str
    stride: int


@dataclass(frozen=True)
class AvgPool:
    """3 x 3 average pooling, padding 1, stride 1; the padding counts as zeros (Caffe)."""

    name: str


@dataclass(frozen=True)
class Dropout:
    """Dropout at the configured rate."""

    name: str


Layer: TypeAlias = Conv | MaxPool | AvgPool | Dropout


@dataclass(frozen=True)
class Branch:
    """Layers in a row, and a pair of score layers at their end.

    Attributes:
        name: names the score layers, `heads.NAME.segmentation` and `heads.NAME.depth`.
        reads: `data` (the image) or a layer of an earlier branch.
        upsample: factor from the last feature to the image.
    """

    name: str
    reads: str
    layers: tuple[Layer, ...]
    upsample: int


DATA = "data"

# Table 1 to the letter, its names with its hyphens. Strides 2, 2, 1, 2 are the only ones under which its upsampling factors
# 2, 4, 4, 8 reach the image. Its pool2..pool5 are VGG's pool1..pool4, so its layers start from VGG's of one block before.
# The dilation and dropout of branch 5 are those of DeepLab's fc6 and fc7.
TABLE1_LITERAL = (
    Branch(
        "branch1",
        reads=DATA,
        layers=(
            Conv("conv1-1", 64, starts_from="conv1_1"),
            Conv("conv1-2", 64, starts_from="conv1_2"),
        ),
        upsample=1,
    ),
    Branch(
        "branch2",
        reads=DATA,
        layers=(
            Conv("conv2-1", 64, starts_from="conv1_1"),
            Conv("conv2-2", 64, starts_from="conv1_2"),
            MaxPool("pool2", stride=2),
            Conv("conv2-3", 128),
        ),
        upsample=2,
    ),
    Branch(
        "branch3",
        reads="pool2",
        layers=(
            Conv("conv3-1", 128, starts_from="conv2_1"),
            Conv("conv3-2", 128, starts_from="conv2_2"),
            MaxPool("pool3", stride=2),
            Conv("conv3-3", 128),
            Conv("conv3-4", 128),
        ),
        upsample=4,
    ),
    Branch(
        "branch4",
        reads="pool3",
        layers=(
            Conv("conv4-1", 256, starts_from="conv3_1"),
            Conv("conv4-2", 256, starts_from="conv3_2"),
            MaxPool("pool4", stride=1),
            Conv("conv4-3", 128),
            Conv("conv4-4", 128),
        ),
        upsample=4,
    ),
    Branch(
        "branch5",
        reads="pool4",
        layers=(
            Conv("conv5-1", 512, starts_from="conv4_1"),
            Conv("conv5-2", 512, starts_from="conv4_2"),
            MaxPool("pool5", stride=2),
            Conv("conv5-3", 1024, dilation=12, starts_from="fc6"),
            Dropout("drop5-3"),
            Conv("conv5-4", 1024, kernel=1, starts_from="fc7"),
            Dropout("drop5-4"),
        ),
        upsample=8,
    ),
)

# DeepLab-LargeFOV: VGG-16 whose last two pools keep their size and whose later layers are dilated instead.
LARGE_FOV = Branch(
    "fc7",
    reads=DATA,
    layers=(
        Conv("conv1_1", 64),
        Conv("conv1_2", 64),
        MaxPool("pool1", stride=2),
        Conv("conv2_1", 128),
        Conv("conv2_2", 128),
        MaxPool("pool2", stride=2),
        Conv("conv3_1", 256),
        Conv("conv3_2", 256),
        Conv("conv3_3", 256),
        MaxPool("pool3", stride=2),
        Conv("conv4_1", 512),
        Conv("conv4_2", 512),
        Conv("conv4_3", 512),
        MaxPool("pool4", stride=1),
        Conv("conv5_1", 512, dilation=2),
        Conv("conv5_2", 512, dilation=2),
        Conv("conv5_3", 512, dilation=2),
        MaxPool("pool5", stride=1),
        AvgPool("pool5a"),
        Conv("fc6", 1024, dilation=12),
        Dropout("drop6"),
        Conv("fc7", 1024, kernel=1),
        Dropout("drop7"),
    ),
    upsample=8,
)

# The whole of VGG-16, and the layers Table 1 has between each pool and its scores (its conv1-1, 1-2, 2-3, 3-3, 3-4, 4-3, 4-4).
VGG16_MSC = (
    LARGE_FOV,
    Branch(
        "data",
        reads=DATA,
        layers=(
            Conv("data_conv1", 64, starts_from="conv1_1"),
            Conv("data_conv2", 64, starts_from="conv1_2"),
        ),
        upsample=1,
    ),
    Branch("pool1", reads="pool1", layers=(Conv("pool1_conv1", 128),), upsample=2),
    Branch("pool2", reads="pool2", layers=(Conv("pool2_conv1", 128), Conv("pool2_conv2", 128)), upsample=4),
    Branch("pool3", reads="pool3", layers=(Conv("pool3_conv1", 128), Conv("pool3_conv2", 128)), upsample=8),
)


def _deeplab_tap(reads: str, *, stride: int) -> Branch:
    layers = (
        Conv(f"{reads}_conv1", 128, stride=stride, starts_from=f"{reads}_conv"),
        Dropout(f"{reads}_drop1"),
        Conv(f"{reads}_conv2", 128, kernel=1, starts_from=f"{reads}_fc"),
        Dropout(f"{reads}_drop2"),
    )
    return Branch(reads, reads=reads, layers=layers, upsample=8)


# The multi-scale heads of the paper's reference [4], all at an eighth of the image. Files that were trained on from DeepLab-MSc
# call their layers poolK_conv, poolK_fc and poolK_ms.
DEEPLAB_MSC = (
    LARGE_FOV,
    _deeplab_tap(DATA, stride=8),
    _deeplab_tap("pool1", stride=4),
    _deeplab_tap("pool2", stride=2),
    _deeplab_tap("pool3", stride=1),
    _deeplab_tap("pool4", stride=1),
)

VARIANTS: Mapping[str, tuple[Branch, ...]] = MappingProxyType(
    {"table1_literal": TABLE1_LITERAL, "vgg16_msc": VGG16_MSC, "deeplab_msc": DEEPLAB_MSC}
)
"""The rows of each `NetworkConfig.variant`."""


def layers_up_to(branches: Sequence[Branch], name: str) -> list[str]:
    """The layer `name` and all that it is computed from, in the table's order; empty where there is no such layer."""
    owner = next((branch for branch in branches if any(layer.name == name for layer in branch.layers)), None)
    if owner is None:
        return []
    names = [layer.name for layer in owner.layers]
    return [*layers_up_to(branches, owner.reads), *names[: names.index(name) + 1]]
