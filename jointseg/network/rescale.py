"""Features of unit size: an exact change of a network's weights under which every layer's output is of size 1 or so.

Not here: where the weights come from (pretrained.py).
"""

# S side of the picture

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from jointseg.network.network import ConvReLU, JointNetwork
from jointseg.network.table import DATA

PICTURE_SIZE = 129


@torch.no_grad()
def rescale_features(network: JointNetwork, *, loaded: frozenset[str] = frozenset()) -> dict[str, float]:
    """Scale the weights, in place, so that each hidden layer's features have a root mean square near 1 on a picture of noise.

    VGG-16's features reach thousands under Caffe's weights, and new layers on top of them would begin with a loss of hundreds
    and learn at rates that suit no other layer. Convolutions, ReLU and pools pass a positive factor on, so W a / a' and b a
    give the features a times as large, a' being the factor of what the layer reads: nothing else changes (Gatys et al. 2016
    normalised VGG-19 so). Factors are powers of 2, so that nothing is rounded.

    Args:
        network: its score layers keep their weights, but for those that are named in `loaded`, whose scores stay the same.
        loaded: names of parameters that have starting weights.

    Returns:
        a for each convolution: its features now over its features before.
    """
    factors: dict[str, float] = {}
    known: dict[str, tuple[Tensor, float]] = {DATA: (network.centred(_noise(PICTURE_SIZE)), 1.0)}
    for branch in network.branches:
        x, factor = known[branch.reads]
        for layer in branch.layers:
            module = network.get_submodule(layer.name)
            if isinstance(module, ConvReLU):
                assert module.bias is not None
                module.bias.mul_(factor)
                size = _power_of_two(float(module(x).square().mean().sqrt()))
                module.weight.div_(size)
                module.bias.div_(size)
                factor /= size
                factors[layer.name] = factor
            if not isinstance(module, nn.Dropout):
                x = module(x)
            known[layer.name] = x, factor
        for task in ("segmentation", "depth"):
            if f"heads.{branch.name}.{task}.weight" in loaded:
                head = network.get_submodule(f"heads.{branch.name}.{task}")
                assert isinstance(head, nn.Conv2d)
                head.weight.div_(factor)
    return factors


def _power_of_two(size: float) -> float:
    """The power of 2 that is nearest on a log scale; 1 for 0."""
    return 2.0 ** round(math.log2(size)) if size > 0 else 1.0


def _noise(size: int) -> Tensor:
    """A picture whose power falls with frequency, as in pictures of rooms: (1, 3, S, S), RGB 0..255, always the same."""
    random = torch.Generator().manual_seed(0)
    picture = torch.zeros(1, 3, size, size)
    cells = 2
    while cells < size:
        grey, colour = torch.randn(1, 1, cells, cells, generator=random), torch.randn(1, 3, cells, cells, generator=random)
        picture += interpolate(grey + 0.3 * colour, size=(size, size), mode="bilinear", align_corners=True)
        cells *= 2
    return (128 + 50 * picture / picture.std()).clamp(0, 255)
