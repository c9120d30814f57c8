"""Bilinear upsampling by a whole factor as two products with a small matrix, for wide steps on GPUs.

There `interpolate` and its gradient, which adds up atomically and so in no fixed order, take several times as long, and with
channels innermost they leave a layout that losses copy.

Not here: which steps are taken (network.py).
"""

# B images, K scores, h side of the small map, f factor

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def upsample_by_products(x: Tensor, factor: int) -> Tensor:
    """U x U^T: corners aligned, contiguous, (B, K, h, h) to (B, K, f(h - 1) + 1, f(h - 1) + 1)."""
    steps = _bilinear_steps(x.shape[-1], factor, x.device, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return steps @ (x.contiguous() @ steps.T)


@cache
def _bilinear_steps(num_points: int, factor: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """U, (f(h - 1) + 1, h), h = `num_points`: row i has the weights of the two points that i / f lies between.

    All are kept: a CUDA graph reads them at each replay.
    """
    with torch.inference_mode(False):  # kept, also for calls that learn
        rows = torch.arange(factor * (num_points - 1) + 1, device=device, dtype=dtype)
        points = factor * torch.arange(num_points, device=device, dtype=dtype)
        return (1 - (rows[:, None] - points).abs() / factor).clamp(min=0)
