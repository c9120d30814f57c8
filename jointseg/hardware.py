"""What the machine under a number is called, where on it one process computes, and in which precision."""

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


def name_of(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def own_device(training: TrainingConfig) -> torch.device:
    """Where one process without Ray computes: on the GPU, where there is one and `training.device` is not `cpu`."""
    return torch.device("cuda" if training.device != "cpu" and torch.cuda.is_available() else "cpu")


def trains_in_bfloat16(training: TrainingConfig, device: torch.device) -> bool:
    """Whether the network trains in bfloat16: where `training.precision` says so and `device` is made for it."""
    return training.precision == "bfloat16" and has_bfloat16(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes convolutions in bfloat16 about as fast as in float32, or faster.

    An NVIDIA GPU from Ampere on; of CPUs one with AVX-512, or Arm's with bfloat16. On other CPUs PyTorch trains twenty times
    slower in it than in float32 (docs/training.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]
