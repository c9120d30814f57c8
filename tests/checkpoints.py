"""Checkpoints of one weight, for tests of the folder that they lie in. Not here: those of a real training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from jointseg.checkpoint import Checkpoint, save_checkpoint
from jointseg.checkpoint_folder import CheckpointFolder, Found
from jointseg.config import Config

CONFIG = Config()


def saving(step: int) -> Callable[[Path], None]:
    weights = {"weight": torch.full((40, 10), float(step))}
    optimizer = {"state": {0: {"momentum_buffer": torch.full((40, 10), -float(step))}}}
    checkpoint = Checkpoint("stage1", step, CONFIG, weights, optimizer, [{"cpu": torch.get_rng_state(), "cuda": None}])
    return lambda folder: save_checkpoint(folder, checkpoint)


def newest(folder: CheckpointFolder, config: Config = CONFIG) -> Found | None:
    return folder.newest(config=config, stage="stage1")
