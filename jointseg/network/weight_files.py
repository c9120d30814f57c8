"""Files of starting weights: known by their content, read as tensors under Caffe's names, and what their input is.

Not here: Caffe's own format (caffemodel.py), which parameter of the network takes what (pretrained.py).
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jointseg.checkpoint import DESCRIPTION, WEIGHTS, load_final
from jointseg.errors import InputError
from jointseg.network.caffemodel import looks_like_caffemodel, read_caffemodel
from jointseg.network.network import CAFFE_MEAN_BGR

ALLOWED = (
    "allowed: a .caffemodel; a PyTorch state dict or safetensors, with Caffe's names or those of torchvision's vgg16; "
    "a folder with a checkpoint of jointseg"
)

# torchvision's `vgg16`: `features.N` and `classifier.N` are the layers of a Sequential, ReLUs, pools and dropout counted too.
TORCHVISION_CONVS = {
    "features.0": "conv1_1", "features.2": "conv1_2",
    "features.5": "conv2_1", "features.7": "conv2_2",
    "features.10": "conv3_1", "features.12": "conv3_2", "features.14": "conv3_3",
    "features.17": "conv4_1", "features.19": "conv4_2", "features.21": "conv4_3",
    "features.24": "conv5_1", "features.26": "conv5_2", "features.28": "conv5_3",
}  # fmt: skip
TORCHVISION = TORCHVISION_CONVS | {"classifier.0": "fc6", "classifier.3": "fc7"}
VGG_MEAN_BGR = (103.939, 116.779, 123.68)
"""Levels, of VGG-16's authors; DeepLab's is CAFFE_MEAN_BGR."""

FC6_KERNEL, KEPT_TAPS, KEPT_OUTPUTS = 7, 3, 4
"""VGG-16's fc6 as a convolution is 7 x 7; every third row and column of it is kept, and every fourth output."""


@dataclass(frozen=True)
class ImageInput:
    """What the weights of a layer that reads the image expect: channels in an order, less a mean, times a scale."""

    mean_bgr: tuple[float, ...]
    """Levels, 0..255."""
    scale_bgr: tuple[float, ...] = (1.0, 1.0, 1.0)
    """What a level counts, once the mean is off."""
    rgb: bool = False
    """Whether the weights have their channels as RGB; else as BGR."""

    def adapt(self, weight: Tensor) -> Tensor:
        """(O, 3, h, w) weights of such a layer as those that say the same of BGR levels less the mean."""
        bgr = weight.flip(1) if self.rgb else weight
        return bgr * torch.tensor(self.scale_bgr, dtype=weight.dtype).view(1, 3, 1, 1)


IMAGENET_MEAN_RGB, IMAGENET_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of levels / 255 (torchvision)."""
TORCHVISION_INPUT = ImageInput(
    mean_bgr=tuple(255 * mean for mean in reversed(IMAGENET_MEAN_RGB)),
    scale_bgr=tuple(1 / (255 * std) for std in reversed(IMAGENET_STD_RGB)),
    rgb=True,
)


@dataclass(frozen=True)
class StartingWeights:
    """The content of a file of weights."""

    kind: str
    """What the file is, for people."""
    tensors: Mapping[str, Tensor]
    """By Caffe's names, `conv1_1.weight`, or by the network's own where jointseg wrote them."""
    image: ImageInput
    reduced: frozenset[str] = frozenset()
    """Names of those tensors that are a part of VGG-16's fully connected layers, as DeepLab takes it."""


def read_weights(path: Path) -> StartingWeights:
    """The weights in a file or folder, VGG-16's whole fc6 and fc7 cut down to DeepLab's. Nothing in it is run.

    Raises:
        InputError: there is none, it is of no kind that is known, it is damaged, or it is of another network.
    """
    weights = _read(path)
    odd = next((name for name in weights.tensors if not name.isprintable()), None)
    if odd is not None:
        raise InputError(f"{path}: a tensor is called {odd[:40]!r}; allowed: names that can be printed")
    return _with_reduced_layers(weights)


def _read(path: Path) -> StartingWeights:
    try:
        if path.is_dir():
            return _named(load_final(path), "checkpoint", path)
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {ALLOWED}") from None
    if _is_safetensors(head):  # before .caffemodel: the length that it begins with may look like one
        return _named(_read_safetensors(path), "safetensors", path)
    if looks_like_caffemodel(head):
        model = read_caffemodel(path)
        image = ImageInput(model.mean_bgr or _usual_mean(model.tensors), (model.scale,) * 3)
        refuse_deeper(model.tensors, path)
        return StartingWeights(".caffemodel", model.tensors, image)
    if head.startswith(_TORCH):
        return _named(_read_state_dict(path), "PyTorch", path)
    raise InputError(f"{path}: is no file of weights, it begins with {head[:8]!r}; {ALLOWED}")


# A zip file, which torch.save writes since 1.6; a pickle, which it wrote before.
_TORCH = (b"PK\x03\x04", b"\x80")


def _is_safetensors(head: bytes) -> bool:
    """A length of at most 100 MB in 8 bytes, and JSON of that length."""
    return int.from_bytes(head[:8], "little") <= 100_000_000 and head[8:9] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    beside = path.with_name(DESCRIPTION)
    if path.name == WEIGHTS and beside.is_file():
        return load_final(path.parent)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not safetensors, or damaged ({error})") from None


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch has not written
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {code[1]}, which was not run" if code else "is a pickle of more than tensors"
        raise InputError(f"{path}: {what}; allowed: a state dict, which holds tensors by name and nothing else") from None
    except Exception as error:  # whatever a damaged pickle makes torch's reader run into
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a PyTorch file, or a damaged one ({type(error).__name__}: {reason})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; allowed: a state dict, tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or type(tensor) not in (Tensor, nn.Parameter) or not _is_plain(tensor):
            raise InputError(f"{path}: {name!r:.40} is no plain tensor by name; allowed: a state dict of such")
    return content


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not (tensor.is_nested or tensor.is_quantized)


def _named(tensors: dict[str, Tensor], container: str, path: Path) -> StartingWeights:
    """The weights by the names that this package looks for, and the input that goes with the names they had."""
    if any(name.startswith("network.") for name in tensors):
        return _own(tensors, path)
    features = {name.rpartition(".")[0] for name in tensors if name.startswith("features.")}
    if not features:
        refuse_deeper(tensors, path)
        return StartingWeights(f"{container}, Caffe's names", tensors, ImageInput(_usual_mean(tensors)))
    if odd := sorted(features ^ TORCHVISION_CONVS.keys(), key=lambda name: (len(name), name)):
        found = "there" if odd[0] in features else "missing"
        raise InputError(f"{path}: is not torchvision's vgg16 but another of its networks, for {odd[0]} is {found}; {ALLOWED}")
    renamed = {}
    for name, tensor in tensors.items():
        layer, dot, leaf = name.rpartition(".")
        renamed[f"{TORCHVISION.get(layer, layer)}{dot}{leaf}"] = tensor
    return StartingWeights(f"{container}, torchvision's names", renamed, TORCHVISION_INPUT)


def refuse_deeper(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError for convolutions that VGG-16 has not, such as VGG-19's: without them the others are in no network."""
    layers = {name.rpartition(".")[0] for name in tensors}
    others = sorted(layer for layer in layers - set(TORCHVISION_CONVS.values()) if re.fullmatch(r"conv\d_\d", layer))
    if others:
        raise InputError(f"{path}: is not VGG-16 but another network, for it has {others[0]}; {ALLOWED}")


def _usual_mean(tensors: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Of weights under Caffe's names that do not say theirs: DeepLab's where they have layers of its own, else VGG-16's."""
    fc6 = tensors.get("fc6.weight")
    if fc6 is not None:
        return VGG_MEAN_BGR if _is_whole_fc6(fc6) else CAFFE_MEAN_BGR
    layers = {name.rpartition(".")[0] for name in tensors}
    return VGG_MEAN_BGR if layers <= set(TORCHVISION_CONVS.values()) else CAFFE_MEAN_BGR


def _own(tensors: dict[str, Tensor], path: Path) -> StartingWeights:
    own = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    mean = own.pop("mean_bgr", None)
    if mean is None or mean.shape != (3,) or not mean.isfinite().all():
        found = "missing" if mean is None else str(mean.flatten().tolist()[:4])
        raise InputError(f"{path}: network.mean_bgr is {found}; needed: the 3 levels that jointseg writes with its weights")
    return StartingWeights("jointseg's own", own, ImageInput(tuple(mean.tolist())))


def _with_reduced_layers(weights: StartingWeights) -> StartingWeights:
    """The same with VGG-16's fc6 and fc7, where they are whole, cut down to DeepLab's convolutions.

    DeepLab (Chen et al. 2015) subsamples them, fc6's 7 x 7 taps to 3 x 3 and the 4096 outputs of both to 1024, and does not
    say which it keeps. Here: rows and columns 0, 3 and 6; every fourth output, and the same of fc7's inputs. Views, no copies.
    """
    whole = weights.tensors
    reduced: dict[str, Tensor] = {}
    fc6, fc7 = whole.get("fc6.weight"), whole.get("fc7.weight")
    if fc6 is not None and _is_whole_fc6(fc6):
        outputs = fc6.shape[0]
        taps = fc6.reshape(outputs, -1, FC6_KERNEL, FC6_KERNEL)
        reduced["fc6.weight"] = taps[::KEPT_OUTPUTS, :, ::KEPT_TAPS, ::KEPT_TAPS]
        if fc7 is not None and fc7.shape[1:] in ((outputs,), (outputs, 1, 1)):
            reduced["fc7.weight"] = fc7.reshape(-1, outputs, 1, 1)[::KEPT_OUTPUTS, ::KEPT_OUTPUTS]
    for bias in [name.replace("weight", "bias") for name in reduced]:
        if bias in whole and whole[bias].ndim == 1:
            reduced[bias] = whole[bias][::KEPT_OUTPUTS]
    return replace(weights, tensors={**whole, **reduced}, reduced=frozenset(reduced))


def _is_whole_fc6(weight: Tensor) -> bool:
    flat = weight.ndim == 2 and weight.shape[1] % FC6_KERNEL**2 == 0
    return weight.numel() > 0 and (flat or weight.shape[2:] == (FC6_KERNEL, FC6_KERNEL))
