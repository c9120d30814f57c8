"""The optimiser of a stage: which parameters learn, at which multiple of the rate, and the rate at each step.

Not here: the conversion of rates between loss units (units.py), the loop (training.py).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jointseg.config import StageConfig
from jointseg.model import JointModel
from jointseg.stages import Kernels, Stage


def freeze_for(stage: Stage, model: JointModel) -> None:
    """Let only the parameters that `stage` trains have gradients: no depth heads in stage 1, no CRF before stage 3, and no
    layer that `network.frozen_until` keeps.
    """
    for parameter in model.network.depth_parameters():
        parameter.requires_grad_(stage.with_depth)
    for parameter in model.network.frozen_parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.crf.named_parameters():
        used = stage.kernels is Kernels.SEM_CRF_PLUS or (stage.kernels is Kernels.SEM_CRF and name != "weights.depth")
        parameter.requires_grad_(used)


TRUNK, IN_VGG = re.compile(r"conv\d[_-]\d\."), re.compile(r"conv\d_\d\.")
"""Parameters of VGG-16's own convolutions, by their names in the network, where the paper's table has dashes, and in VGG-16."""


def build_optimizer(model: JointModel, settings: StageConfig) -> torch.optim.Optimizer:
    """SGD as Caffe's or AdamW, with DeepLab's multipliers: biases `bias_lr_multiplier` and no decay, score layers
    `head_lr_multiplier`, VGG-16's convolutions `trunk_lr_multiplier`; the CRF's weights have a rate of their own and no
    decay (the paper gives none).

    Groups have a `name`: `trunk` (VGG-16's convolutions), `network` (the other layers), `heads` (the score layers), their
    biases `trunk_bias`, `network_bias` and `heads_bias`, and `crf`.
    """
    groups: dict[str, list[nn.Parameter]] = defaultdict(list)
    starting_names = model.network.starting_names()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group_of(name, starting_names)].append(parameter)
    multipliers = {"trunk": settings.trunk_lr_multiplier, "network": 1.0, "heads": settings.head_lr_multiplier}
    rate_and_decay = {"crf": (settings.crf_lr, 0.0)}
    for part, multiplier in multipliers.items():
        rate_and_decay[part] = (settings.lr * multiplier, settings.weight_decay)
        rate_and_decay[f"{part}_bias"] = (settings.lr * multiplier * settings.bias_lr_multiplier, 0.0)
    rows: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        lr, decay = rate_and_decay[name]
        rows.append({"name": name, "params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    fused = all(parameter.is_cuda for parameters in groups.values() for parameter in parameters) or None
    if settings.optimizer == "sgd":
        return torch.optim.SGD(rows, lr=settings.lr, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(rows, lr=settings.lr, betas=(settings.momentum, 0.999), fused=fused)


def _group_of(name: str, starting_names: Mapping[str, str]) -> str:
    """The group of a parameter of the model, by its name there."""
    part, _, rest = name.partition(".")
    if part == "crf":
        return "crf"
    of_vgg = TRUNK.match(rest) and IN_VGG.match(starting_names[rest])
    group = "heads" if rest.startswith("heads.") else "trunk" if of_vgg else "network"
    return f"{group}_bias" if name.endswith(".bias") else group


def set_rate(optimizer: torch.optim.Optimizer, settings: StageConfig, *, step: int) -> None:
    """Set every group's rate for `step` (0-based): a function of the step alone, so a resumed run needs no state."""
    warmup = min(settings.warmup, settings.iterations // 2)
    rising = min(1.0, (step + 1) / (warmup + 1))
    done = max(0, step - warmup) / (settings.iterations - warmup)
    factor = rising * (1.0 if settings.schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * done)))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present rate of each group under `lr/NAME`."""
    return {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
