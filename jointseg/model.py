"""The joint model: the network, and the CRF over its logits and its estimated depth.

Not here: the network's layers (network/), the CRF's inference (crf/), what is trained when (stages.py).
"""

# B images, C classes, D depth bins, S side of the square input, h x w the part of it that shows the frame

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jointseg.config import Config
from jointseg.crf import DenseCRF
from jointseg.data.frame import FRAME_SIZE
from jointseg.data.views import content_size
from jointseg.labels import NUM_CLASSES
from jointseg.losses import expected_depth
from jointseg.network.network import JointNetwork, build_network
from jointseg.stages import Kernels


class JointOutput(NamedTuple):
    """What the model says of a batch."""

    logits: Tensor
    """(B, C, S, S), after the CRF where it ran."""
    depth_logits: Tensor | None
    """(B, D, S, S); None where the depth heads did not run."""
    depth: Tensor | None
    """(B, S, S), metres, Eq 3; None where the depth heads did not run."""


class JointModel(nn.Module):
    """The network and its CRF. The CRF sees the part of the input that shows the frame, never the padding."""

    def __init__(self, network: JointNetwork, crf: DenseCRF, *, content: tuple[int, int], depth_bin: float) -> None:
        super().__init__()
        self.network = network
        self.crf = crf
        self.content = content
        self.depth_bin = depth_bin

    def forward(
        self,
        image: Tensor,
        *,
        kernels: Kernels = Kernels.NONE,
        with_depth: bool = True,
        num_iterations: int | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> JointOutput:
        """Class logits and depth of `image`, (B, 3, S, S), RGB 0..255, each a frame of NYU's; `features`: see
        `JointNetwork.forward`.
        """
        output = self.network(image, with_depth=with_depth, features=features)
        depth = None if output.depth_logits is None else expected_depth(output.depth_logits, depth_bin=self.depth_bin)
        logits = output.logits
        if kernels is not Kernels.NONE:
            h, w = self.content
            seen = None if depth is None else depth[..., :h, :w]
            refined = self.refined(
                logits[..., :h, :w], image[..., :h, :w], seen, kernels=kernels, num_iterations=num_iterations
            )
            logits = logits.to(refined.dtype, copy=True)
            logits[..., :h, :w] = refined
        return JointOutput(logits, output.depth_logits, depth)

    def refined(
        self, logits: Tensor, image: Tensor, depth: Tensor | None, *, kernels: Kernels, num_iterations: int | None = None
    ) -> Tensor:
        """The logits (B, C, h, w) after the CRF with these kernels, of pictures (B, 3, h, w) and depth (B, h, w) unpadded."""
        assert kernels is not Kernels.NONE, "without kernels there is no CRF"
        assert depth is not None or kernels is not Kernels.SEM_CRF_PLUS, "the depth kernel needs the depth heads"
        exact = self.crf.compatibility.dtype  # the network may run in half precision, the CRF does not
        guide = depth.to(exact) if depth is not None and kernels is Kernels.SEM_CRF_PLUS else None
        with torch.autocast(image.device.type, enabled=False):
            refined: Tensor = self.crf(logits.to(exact), image=image, depth=guide, num_iterations=num_iterations)
        return refined


def build_crf(config: Config) -> DenseCRF:
    """The CRF with its initial weights; position bandwidths scaled from `crf_reference_size` to the network's input.

    It does not look at values: they are the network's own and a frame's bytes, and where training makes them infinite the
    loop stops at the loss and says the step (training.py).
    """
    settings = config.crf.scaled(config.network.input_size / config.crf_reference_size)
    return DenseCRF(NUM_CLASSES, settings, check_inputs=False)


def trained_model(config: Config, weights: Mapping[str, Tensor], *, device: torch.device) -> JointModel:
    """The model with these weights on `device`, laid out as `training.channels_last` says, for evaluation."""
    model = build_model(config).to(device).eval()
    model.load_state_dict(weights)
    if config.training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def build_model(config: Config) -> JointModel:
    """Network and CRF as `config` says; the same weights for the same `config.seed`."""
    network = build_network(config.network, seed=config.seed)
    content = content_size(*FRAME_SIZE, config.network.input_size, config.network.resize)
    return JointModel(network, build_crf(config), content=content, depth_bin=config.network.depth_bin)
