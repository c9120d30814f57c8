"""The joint network: rows of a table made into modules, and scores of every branch summed at the image's size.

Not here: the rows (table.py), starting weights (pretrained.py), the CRF behind the network (crf/).
"""

# B images, C classes, N depth bins, S side of the square input

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from jointseg.config import NetworkConfig
from jointseg.errors import InputError
from jointseg.labels import NUM_CLASSES
from jointseg.network.bilinear import is_one_kernel, upsample_and_add
from jointseg.network.fused import convolution_relu, is_fusible
from jointseg.network.table import DATA, VARIANTS, AvgPool, Branch, Conv, Dropout, Layer, MaxPool, layers_up_to

CAFFE_MEAN_BGR = (104.008, 116.669, 122.675)
"""Subtracted from the image, in BGR order and levels 0..255 (DeepLab), unless starting weights come with another."""

SCORE_STD = 0.01
"""Standard deviation of new score layers (DeepLab)."""

IMAGE_CHANNELS = 3

IMAGE_RMS = 64.0
"""About the root mean square of an image less its mean, in levels."""


class NetworkOutput(NamedTuple):
    """What the network says of a batch."""

    logits: Tensor
    """(B, C, S, S), class scores; higher is likelier."""
    depth_logits: Tensor | None
    """(B, N, S, S), scores of the depth bins; None where depth was not asked for."""


class JointNetwork(nn.Module):
    """Class and depth-bin scores of an image, from features that both share (paper, 3.1).

    A table's layers are its submodules by their own names, so parameters go by Caffe's: `conv1_1.weight`, `fc6.bias`;
    score layers are `heads.BRANCH.segmentation` and `heads.BRANCH.depth`.

    Attributes:
        branches: the table it was built from.
        frozen: names of the layers that are not trained.
        recompute: whether the backward pass computes a branch's layers again, a pool at a time, instead of keeping what
            lies between: less memory for about a third more time, and the same gradient.
        mean_bgr: (3,) levels, subtracted from the image. It belongs to the weights, and is saved with them.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        *,
        num_classes: int,
        num_depth_bins: int,
        width: float,
        dropout: float,
        frozen_until: str | None = None,
    ):
        """Builds the modules, uninitialised as far as the paper is concerned; `build_network` also draws the weights."""
        super().__init__()
        self.branches = tuple(branches)
        self.frozen = frozenset(layers_up_to(self.branches, frozen_until)) if frozen_until else frozenset()
        self.recompute = False
        self._tapped = {branch.reads for branch in self.branches}
        self._summed: Callable[[Sequence[tuple[int, Tensor]]], Tensor] = _sum_at_full_size
        self.heads = nn.ModuleDict()
        self.mean_bgr: Tensor
        self.register_buffer("mean_bgr", torch.tensor(CAFFE_MEAN_BGR))

        channels = {DATA: IMAGE_CHANNELS}
        for branch in self.branches:
            last = channels[branch.reads]
            for layer in branch.layers:
                module = _module(layer, in_channels=last, width=width, dropout=dropout)
                self.add_module(layer.name, module)
                last = module.out_channels if isinstance(module, ConvReLU) else last
                channels[layer.name] = last
            head = {"segmentation": nn.Conv2d(last, num_classes, 1), "depth": nn.Conv2d(last, num_depth_bins, 1)}
            self.heads[branch.name] = nn.ModuleDict(head)

    def forward(self, image: Tensor, *, with_depth: bool = True, features: Mapping[str, Tensor] | None = None) -> NetworkOutput:
        """Scores of every pixel.

        Args:
            image: (B, 3, S, S), RGB, 0..255, uint8 or floating; S = 8k + 1.
            with_depth: False leaves the depth heads out (stage 1).
            features: what `frozen_features` says of this image, if it was computed before.

        Raises:
            InputError: the image has another shape.
        """
        _check_shape(image)
        tasks = ["segmentation", "depth"] if with_depth else ["segmentation"]
        scores: dict[str, list[tuple[int, Tensor]]] = {task: [] for task in tasks}
        known = {DATA: self.centred(image), **(self.frozen_features(image) if features is None else features)}
        for branch in self.branches:
            x = self._through(branch, known)
            assert (x.shape[-1] - 1) * branch.upsample + 1 == image.shape[-1], f"{branch.name} does not reach the image"
            head = cast(nn.ModuleDict, self.heads[branch.name])
            for task in tasks:
                scores[task].append((branch.upsample, head[task](x)))
        depth_logits = self._summed(scores["depth"]) if with_depth else None
        return NetworkOutput(self._summed(scores["segmentation"]), depth_logits)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`nn.Module.compile`, of the layers and the score layers alone.

        With the sum of the upsampled maps in the graph too, Inductor (PyTorch 2.13, CPU) makes its gradient by all maps of a
        fourth of the size and less 0, at some widths.
        """
        # Not a decorator: it imports all of the compiler.
        self._summed = torch.compiler.disable(_sum_at_full_size)  # type: ignore[no-untyped-call]
        super().compile(*args, **kwargs)

    @torch.no_grad()
    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        """What the layers that are trained read from those that are not: by layer, (B, channels, h, w). No dropout.

        It depends on the image and the starting weights alone, so it can be computed once and kept.
        """
        wanted, found = self.frozen_outputs(), {}
        known = {DATA: self.centred(image)}
        for branch in self.branches:
            x = known.get(branch.reads)
            for layer in branch.layers:
                if x is None or layer.name not in self.frozen:
                    break
                if not isinstance(layer, Dropout):
                    x = cast(Tensor, self.get_submodule(layer.name)(x))
                known[layer.name] = x
                if layer.name in wanted:
                    found[layer.name] = x
        return found

    def frozen_outputs(self) -> tuple[str, ...]:
        """The frozen layers that a trained layer or a score layer reads, in the table's order."""
        wanted = []
        for branch in self.branches:
            names = [layer.name for layer in branch.layers if layer.name in self.frozen]
            wanted += [name for name in names if name in self._tapped or name == names[-1]]
        return tuple(wanted)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters of the frozen layers."""
        return [parameter for name in self.frozen for parameter in self.get_submodule(name).parameters()]

    def centred(self, image: Tensor) -> Tensor:
        """What the layers read of an image: BGR, less the mean."""
        return image.flip(1).to(self.mean_bgr.dtype) - self.mean_bgr[:, None, None]

    def _through(self, branch: Branch, known: dict[str, Tensor]) -> Tensor:
        """The branch's last feature; features that later branches read are added to `known`."""
        last_frozen = [layer.name for layer in branch.layers if layer.name in self.frozen][-1:]
        x = known[last_frozen[0] if last_frozen else branch.reads]
        for layers in self._blocks(branch):
            if self.recompute and torch.is_grad_enabled() and self.training:
                x = cast(Tensor, checkpoint(self._run, layers, x, use_reentrant=False))
            else:
                x = self._run(layers, x)
            if layers[-1] in self._tapped:
                known[layers[-1]] = x
        return x

    def _blocks(self, branch: Branch) -> list[list[str]]:
        """The names of the branch's trained layers, in runs that end where a feature is read or pooled."""
        blocks: list[list[str]] = [[]]
        for layer in branch.layers:
            if layer.name in self.frozen:
                continue
            blocks[-1].append(layer.name)
            if layer.name in self._tapped or isinstance(layer, MaxPool):
                blocks.append([])
        return [block for block in blocks if block]

    def _run(self, layers: Sequence[str], x: Tensor) -> Tensor:
        for name in layers:
            x = self.get_submodule(name)(x)
        return x

    def depth_parameters(self) -> list[nn.Parameter]:
        """The depth heads, of which stage 1 has none (paper, 4.1)."""
        return [parameter for name, parameter in self.heads.named_parameters() if name.split(".")[1] == "depth"]

    def starting_names(self) -> dict[str, str]:
        """For each parameter the Caffe parameter that it starts from, in files of pretrained weights."""
        convs = (layer for branch in self.branches for layer in branch.layers if isinstance(layer, Conv))
        layers = {layer.name: layer.starts_from or layer.name for layer in convs}
        names = {}
        for name, _ in self.named_parameters():
            layer, _, leaf = name.rpartition(".")
            names[name] = f"{layers.get(layer, layer)}.{leaf}"
        return names


class ConvReLU(nn.Conv2d):
    """A convolution and its ReLU in one module, so that the parameter is `conv1_1.weight` and nothing longer."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, H, W) to (B, channels out, H', W'), not negative."""
        return convolution_relu(self, x) if is_fusible(self, x) else super().forward(x).relu_()


def build_network(config: NetworkConfig, *, seed: int) -> JointNetwork:
    """The network of `config` with weights drawn from `seed`; the global random state is left as it was.

    Score layers are N(0, 0.01), hidden layers He's over the inputs, biases 0. He's keeps the scale of what comes in, and the
    score layers expect a scale near 1, so layers that read the image also divide by IMAGE_RMS: the semantic loss then
    starts at log C and not at ten times that. `config.weights` is not read here.
    """
    with torch.random.fork_rng(devices=[]):  # torch draws weights of its own when a layer is made
        network = JointNetwork(
            VARIANTS[config.variant],
            num_classes=NUM_CLASSES,
            num_depth_bins=config.num_depth_bins,
            width=config.width,
            dropout=config.dropout,
            frozen_until=config.frozen_until,
        )
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if isinstance(module, ConvReLU):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.in_channels == IMAGE_CHANNELS:
                    with torch.no_grad():
                        module.weight.div_(IMAGE_RMS)
            else:
                nn.init.normal_(module.weight, std=SCORE_STD, generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


def _module(layer: Layer, *, in_channels: int, width: float, dropout: float) -> nn.Module:
    match layer:
        case Conv():
            return ConvReLU(
                in_channels,
                max(8, 8 * round(layer.channels * width / 8)),  # whole multiples of 8 run fast
                layer.kernel,
                stride=layer.stride,
                padding=layer.dilation * (layer.kernel // 2),
                dilation=layer.dilation,
            )
        case MaxPool():
            return nn.MaxPool2d(3, stride=layer.stride, padding=1)
        case AvgPool():
            return nn.AvgPool2d(3, stride=1, padding=1)
        case Dropout():
            return nn.Dropout(dropout)


def _sum_at_full_size(scores: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Sum of score maps, each upsampled by the factor beside it.

    Goes from the coarsest to the finest and upsamples the sum so far. On grids that share corners and divide each other,
    bilinear steps make up the whole bilinear step, so this is the sum of the upsampled maps with one large map in memory.
    """
    (factor, total), *others = sorted(scores, key=lambda pair: pair[0], reverse=True)
    for finer, score in others:
        total = _upsample_and_add(total, factor // finer, score)
        factor = finer
    return _upsample_and_add(total, factor, None)


def _upsample_and_add(total: Tensor, factor: int, score: Tensor | None) -> Tensor:
    if is_one_kernel(total, factor, score):
        return upsample_and_add(total, factor, score)
    upsampled = _upsample(total, factor)
    return upsampled if score is None else upsampled + score


def _upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, corners aligned: (B, K, h, h) to (B, K, f(h - 1) + 1, f(h - 1) + 1)."""
    side = (x.shape[-1] - 1) * factor + 1
    if factor > 2 and x.dtype == torch.bfloat16:
        x = x.float()  # the gradient adds up (2 factor - 1)^2 terms a pixel: too many for 8 bits
    return x if factor == 1 else interpolate(x, size=(side, side), mode="bilinear", align_corners=True)


def _check_shape(image: Tensor) -> None:
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[1] != IMAGE_CHANNELS or shape[2] != shape[3] or shape[2] % 8 != 1:
        raise InputError(f"image: shape {shape} is not allowed; allowed: (B, 3, S, S) with S = 8k + 1, such as 65 or 513")
