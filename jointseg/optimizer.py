"""The optimiser of a stage: which parameters learn, at which multiple of the rate, and the rate at each step.

Not here: the conversion of rates between loss units (units.py), the loop (training.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from jointseg.config import StageConfig
from jointseg.model import JointModel
from jointseg.stages import Kernels, Stage


def freeze_for(stage: Stage, model: JointModel) -> None:
    """Let only the parameters that `stage` trains have gradients: no depth heads in stage 1, no CRF before stage 3."""
    for parameter in model.network.depth_parameters():
        parameter.requires_grad_(stage.with_depth)
    for name, parameter in model.crf.named_parameters():
        used = stage.kernels is Kernels.SEM_CRF_PLUS or (stage.kernels is Kernels.SEM_CRF and name != "weights.depth")
        parameter.requires_grad_(used)


def build_optimizer(model: JointModel, settings: StageConfig) -> torch.optim.Optimizer:
    """SGD as Caffe's or AdamW, with DeepLab's multipliers: biases `bias_lr_multiplier` and no decay, score layers
    `head_lr_multiplier`; the CRF's weights have a rate of their own and no decay (the paper gives none).

    Groups have a `name`: `network`, `heads` (the score layers), their `network_bias` and `heads_bias`, and `crf`.
    """
    score = {id(parameter) for parameter in model.network.score_parameters()}
    groups: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("crf."):
            groups["crf"].append(parameter)
            continue
        part = "heads" if id(parameter) in score else "network"
        groups[f"{part}_bias" if name.endswith(".bias") else part].append(parameter)
    heads, bias = settings.head_lr_multiplier, settings.bias_lr_multiplier
    rate_and_decay = {
        "network": (settings.lr, settings.weight_decay),
        "network_bias": (settings.lr * bias, 0.0),
        "heads": (settings.lr * heads, settings.weight_decay),
        "heads_bias": (settings.lr * heads * bias, 0.0),
        "crf": (settings.crf_lr, 0.0),
    }
    rows: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        lr, decay = rate_and_decay[name]
        rows.append({"name": name, "params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    if settings.optimizer == "sgd":
        return torch.optim.SGD(rows, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(rows, lr=settings.lr, betas=(settings.momentum, 0.999))


def set_rate(optimizer: torch.optim.Optimizer, settings: StageConfig, *, step: int) -> None:
    """Set every group's rate for `step` (0-based): a function of the step alone, so a resumed run needs no state."""
    factor = 1.0 if settings.schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * step / settings.iterations))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present rate of each group under `lr/NAME`."""
    return {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
