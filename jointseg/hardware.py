"""The machine under a number: its name, what of it may be used, where on it a process computes and in which precision."""

from __future__ import annotations

import os
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


def usable_cpus() -> int:
    """The CPUs that this process may run on: those of the machine, or what `taskset`, Slurm or a container leaves of them."""
    there = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux alone
        there = min(there, len(os.sched_getaffinity(0)))
    quota, _, period = _of_cgroup("cpu.max").partition(" ")
    return max(1, min(there, int(quota) // int(period))) if quota.isdigit() else there


def usable_memory() -> int:
    """Bytes of memory that this process and its like may take: the machine's, or a container's limit."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _of_cgroup("memory.max")
    return min(there, int(limit)) if limit.isdigit() else there


def _of_cgroup(name: str) -> str:
    """A file of the control group that a container's processes see as the topmost; empty where there is none."""
    path = Path("/sys/fs/cgroup") / name
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


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

    An NVIDIA GPU from Ampere on; of CPUs one with AVX512-BF16, or Arm's with bfloat16. On others it is emulated: without any
    AVX-512 PyTorch trains twenty times slower in it than in float32 (docs/training.md).
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]
