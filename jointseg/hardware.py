"""What the machine under a number is called, and where on it one process computes."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from jointseg.config import TrainingConfig


def cpu_model() -> str:
    """The CPU's name as Linux gives it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    for line in listing.read_text().splitlines() if listing.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def own_device(training: TrainingConfig) -> torch.device:
    """Where one process without Ray computes: on the GPU, where there is one and `training.device` is not `cpu`."""
    return torch.device("cuda" if training.device != "cpu" and torch.cuda.is_available() else "cpu")
