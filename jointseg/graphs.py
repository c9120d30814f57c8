"""The network's passes of training as CUDA graphs (`training.cuda_graphs`): recorded once, then replayed by one launch each.

Not here: the loss and the optimiser, which stay as they are, and the loop (training.py). The CRF is not for graphs: its
filters are built anew for every image.
"""

# B images, S side of the square input

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from jointseg.batches import Place
from jointseg.config import Config
from jointseg.errors import InputError
from jointseg.hardware import trains_in_bfloat16
from jointseg.losses import expected_depth
from jointseg.model import JointModel, JointOutput
from jointseg.network.network import JointNetwork
from jointseg.stages import Kernels, Stage


class GraphedModel(nn.Module):
    """What trains a `JointModel` in a stage without the CRF; one replay's scores last until the next.

    The parameters are the model's own, and their gradients are those of autograd; see `own_gradients`.
    """

    def __init__(self, model: JointModel, config: Config, stage: Stage, *, device: torch.device) -> None:
        """Record both passes, for batches of the stage's size. The random states are left as they were.

        To be made before batches are: while a pass is recorded no other thread may ask CUDA for memory, pinned or not.
        """
        super().__init__()
        assert stage.kernels is Kernels.NONE
        self.depth_bin = model.depth_bin
        size = config.network.input_size
        image = torch.zeros(stage.config(config).batch_size, 3, size, size, dtype=torch.uint8, device=device)
        half = trains_in_bfloat16(config.training, device)
        passes = _Passes(model.network, with_depth=stage.with_depth, in_half=half).train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.passes = torch.cuda.make_graphed_callables(passes, (image,), allow_unused_input=True)

    def forward(self, image: Tensor, **_: Any) -> JointOutput:
        """Class logits and depth of `image`, (B, 3, S, S) uint8, of the batch size that was recorded."""
        logits, *depth_logits = cast(tuple[Tensor, ...], self.passes(image))
        if not depth_logits:
            return JointOutput(logits, None, None)
        return JointOutput(logits, depth_logits[0], expected_depth(depth_logits[0], depth_bin=self.depth_bin))


class _Passes(nn.Module):
    """The network with tensors alone for arguments and results, as graphs want it.

    Autocast is in here so that the backward pass, which is recorded too, is outside of it.
    """

    def __init__(self, network: JointNetwork, *, with_depth: bool, in_half: bool) -> None:
        super().__init__()
        self.network = network
        self.with_depth = with_depth
        self.in_half = in_half

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.in_half, cache_enabled=False):
            logits, depth_logits = self.network(image, with_depth=self.with_depth)
        return (logits,) if depth_logits is None else (logits, depth_logits)


def own_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give each gradient memory of its own, before another pass is added to it.

    A replay leaves its gradients where the next one leaves its own, and autograd takes the first of a step over as they lie
    (pytorch/pytorch#181723).
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def refuse_where_there_are_no_graphs(place: Place) -> None:
    """Say where `training.cuda_graphs` cannot be had.

    Raises:
        InputError: training is not on a GPU, or is shared among workers.
    """
    if place.device.type != "cuda":
        raise InputError(f"training.cuda_graphs: true needs a GPU; the device is {place.device.type}")
    if place.world_size > 1:
        raise InputError(f"training.cuda_graphs: true needs one worker; training has {place.world_size}")
