"""What the network says of a picture: of one view, or the mean over sizes and mirror images (test-time augmentation).

Not here: the CRF behind the network (model.py), predictions at the picture's size (evaluation.py), views to train on (data/).
"""

# C classes, S side of the square input, h x w the part of it that shows the picture

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
    """What the network says of a picture, as a batch of one, without padding."""

    image: Tensor
    """(1, 3, h, w), uint8 RGB."""
    logits: Tensor
    """(1, C, h, w); of several views, the logarithms of their mean probabilities."""
    depth: Tensor | None
    """(1, h, w), metres, Eq 3; of several views, their mean. None where the depth heads did not run."""


@torch.no_grad()
def network_says(
    model: JointModel, picture: NDArray[np.uint8], config: Config, *, with_depth: bool, device: torch.device
) -> Seen:
    """The network's logits and depth for a picture (H, W, 3), RGB, over the views that `config.evaluation` asks for.

    What a view of another size says is resized bilinearly. A picture s times as large looks s times as near, so its depth is
    multiplied by s.
    """
    evaluation, size = config.evaluation, config.network.input_size
    if not evaluation.views:
        return _of_view(model, picture, config, size=size, with_depth=with_depth, device=device)
    square, h, w = _rendered(picture, config, size=size, device=device)
    image = square[..., :h, :w]
    log_ps, depths = [], []
    for scale in evaluation.scales:
        for mirrored in (False, True) if evaluation.mirror else (False,):
            shown = np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture
            view = _of_view(model, shown, config, size=scaled_size(size, scale), with_depth=with_depth, device=device)
            log_p, depth = _laid_over(image, view, mirrored=mirrored)
            log_ps.append(log_p)
            depths += [] if depth is None else [depth]
    log_mean = torch.logsumexp(torch.stack(log_ps), 0) - math.log(len(log_ps))
    return Seen(image, log_mean, torch.stack(depths).mean(0) if depths else None)


def scaled_size(input_size: int, scale: float) -> int:
    """The side of a square input about `scale` times as large, 8k + 1 as the network needs; not below 65."""
    return max(65, 8 * round((input_size - 1) * scale / 8) + 1)


def _rendered(picture: NDArray[np.uint8], config: Config, *, size: int, device: torch.device) -> tuple[Tensor, int, int]:
    network = config.network.model_copy(update={"input_size": size})
    h, w = content_size(picture.shape[0], picture.shape[1], size, network.resize)
    return render_input(picture, network=network).to(device)[None], h, w


def _of_view(
    model: JointModel, picture: NDArray[np.uint8], config: Config, *, size: int, with_depth: bool, device: torch.device
) -> Seen:
    image, h, w = _rendered(picture, config, size=size, device=device)
    output = model(image, with_depth=with_depth)
    return Seen(image[..., :h, :w], output.logits[..., :h, :w], None if output.depth is None else output.depth[..., :h, :w])


def _laid_over(image: Tensor, view: Seen, *, mirrored: bool) -> tuple[Tensor, Tensor | None]:
    """A view's logarithms of probabilities, and its depth, pixel by pixel where `image` has its own."""
    (h, w), own_w = image.shape[-2:], view.image.shape[-1]
    log_p, depth = view.logits.log_softmax(1), view.depth
    if mirrored:
        log_p, depth = log_p.flip(-1), None if depth is None else depth.flip(-1)
    if own_w != w:
        p = interpolate(log_p.exp(), size=(h, w), mode="bilinear", align_corners=False)
        log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
        if depth is not None:
            depth = interpolate(depth[:, None], size=(h, w), mode="bilinear", align_corners=False)[:, 0] * (own_w / w)
    return log_p, depth
