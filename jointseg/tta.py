"""What the network says of a picture: of one view, or the mean over sizes and mirror images (test-time augmentation).

Not here: the CRF behind the network (model.py), predictions at the picture's size (evaluation.py), views to train on (data/).
"""

# B views, C classes, S side of the square input, h x w the part of it that shows the picture

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from jointseg.config import Config
from jointseg.data.views import content_size, render_input
from jointseg.model import JointModel


class Seen(NamedTuple):
    """What the network says of views of one size, without padding."""

    image: Tensor
    """(B, 3, h, w), uint8 RGB."""
    logits: Tensor
    """(B, C, h, w); of a mean over views, the logarithms of their mean probabilities."""
    depth: Tensor | None
    """(B, h, w), metres, Eq 3. None where the depth heads did not run."""


@torch.no_grad()
def network_says(
    model: JointModel, picture: NDArray[np.uint8], config: Config, *, with_depth: bool, device: torch.device
) -> Seen:
    """The network's logits and depth for a picture (H, W, 3), RGB: the mean over the views that `config.evaluation` asks for.

    What a view of another size says is resized bilinearly. A picture s times as large looks s times as near, so its depth is
    multiplied by s. Smaller views than the input have no part in the mean depth, unless all are smaller: their last depth
    bin is a nearer one.

    Returns:
        A batch of one, of `network.input_size`.
    """
    evaluation, size = config.evaluation, config.network.input_size
    square, h, w = _rendered(picture, config, size, device)
    if not evaluation.views:
        return _said(model, square, h, w, with_depth=with_depth)
    far_enough = min(1.0, max(evaluation.scales))
    log_ps: list[Tensor] = []
    depths: list[Tensor] = []
    for scale in evaluation.scales:
        own = config.network.scaled_size(scale)
        view, own_h, own_w = (square, h, w) if own == size else _rendered(picture, config, own, device)
        for mirrored in (False, True) if evaluation.mirror else (False,):
            seen = _said(model, _mirrored(view, own_w) if mirrored else view, own_h, own_w, with_depth=with_depth)
            log_p, depth = seen.logits.log_softmax(1), seen.depth
            if mirrored:
                log_p, depth = log_p.flip(-1), None if depth is None else depth.flip(-1)
            if own != size:
                p = interpolate(log_p.exp(), size=(h, w), mode="bilinear", align_corners=False)
                log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
            log_ps.append(log_p)
            if depth is not None and scale >= far_enough:
                resized = interpolate(depth[:, None], size=(h, w), mode="bilinear", align_corners=False)[:, 0]
                depths.append(depth if own == size else resized * (own / size))
    log_mean = torch.logsumexp(torch.stack(log_ps), 0) - math.log(len(log_ps))
    return Seen(square[..., :h, :w], log_mean, torch.stack(depths).mean(0) if depths else None)


def _rendered(picture: NDArray[np.uint8], config: Config, size: int, device: torch.device) -> tuple[Tensor, int, int]:
    """The picture as a square input of this size, (1, 3, S, S), and h and w."""
    network = config.network.model_copy(update={"input_size": size})
    h, w = content_size(picture.shape[0], picture.shape[1], size, network.resize)
    return render_input(picture, network=network).to(device)[None], h, w


def _mirrored(square: Tensor, w: int) -> Tensor:
    """Left and right exchanged in the picture; padding stays where it is."""
    return torch.cat([square[..., :w].flip(-1), square[..., w:]], -1)


def _said(model: JointModel, square: Tensor, h: int, w: int, *, with_depth: bool) -> Seen:
    output = model(square, with_depth=with_depth)
    depth = None if output.depth is None else output.depth[..., :h, :w]
    return Seen(square[..., :h, :w], output.logits[..., :h, :w], depth)
