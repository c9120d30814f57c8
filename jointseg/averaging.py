"""The running mean of a model's weights over training (`ema`), which is what is validated and kept.

Not here: when it is updated (training.py).
"""

from __future__ import annotations

import copy

import torch

from jointseg.model import JointModel


class RunningMean:
    """Weights as m <- d m + (1 - d) w after each step, d = min(decay, (1 + n) / (10 + n)) after n steps.

    The smaller d of the first steps lets go of the weights at the start, of which 0.98^60 = 0.3 would otherwise be left after
    60 steps at 0.98. It waits for no device.

    Attributes:
        model: has the mean as its weights.
        count: steps that are in it.
    """

    def __init__(self, model: JointModel, decay: float) -> None:
        """Begin at the model's weights."""
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, model: JointModel) -> None:
        """Take the weights after a step into the mean."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        self.count += 1
