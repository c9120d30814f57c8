"""Checkpoints without a training: of a layer or of one weight; and a stage's `final/`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from jointseg.checkpoint import Checkpoint, save_checkpoint, save_final
from jointseg.checkpoint_folder import CheckpointFolder, Found
from jointseg.config import Config
from jointseg.model import JointModel, build_model
from jointseg.settings import with_overrides

CONFIG = Config()
UNUSUAL = with_overrides(Config(), {"data.source": "a/folder", "crf.theta_beta": 0.1 + 0.2})


def a_checkpoint(seed: int = 0, step: int = 30) -> Checkpoint:
    """Of a linear layer that AdamW has moved once, so that every part holds something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
        layer(torch.randn(5, 3)).sum().backward()
        optimizer.step()
        states = [{"cpu": torch.get_rng_state(), "cuda": None}, {"cpu": torch.get_rng_state(), "cuda": None}]
    metrics = {"loss/total": 1.5, "validation/rmse": math.nan}
    return Checkpoint("stage2", step, UNUSUAL, layer.state_dict(), optimizer.state_dict(), states, metrics)


def saving(step: int) -> Callable[[Path], None]:
    weights = {"weight": torch.full((40, 10), float(step))}
    optimizer = {"state": {0: {"momentum_buffer": torch.full((40, 10), -float(step))}}}
    checkpoint = Checkpoint("stage1", step, CONFIG, weights, optimizer, [{"cpu": torch.get_rng_state(), "cuda": None}])
    return lambda folder: save_checkpoint(folder, checkpoint)


def newest(folder: CheckpointFolder, config: Config = CONFIG) -> Found | None:
    return folder.newest(config=config, stage="stage1")


def untrained_final(stage: str, config: Config, folder: Path) -> JointModel:
    """The model of a stage's `final/`, written to `folder`, with a network that has something to say: scores of new layers are
    too near each other.
    """
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.network.heads.parameters():
            parameter.mul_(100)
    source = folder.with_name("untrained")
    save_checkpoint(source, Checkpoint(stage, 0, config, dict(model.state_dict()), {}, []))
    save_final(folder, source)
    return model
