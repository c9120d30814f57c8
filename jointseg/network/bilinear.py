"""Bilinear upsampling by 2, 4 or 8 and the addition of a finer map as one kernel on CUDA, and their gradients.

PyTorch itself reads and writes the large map for each of the two, adds the gradient up atomically and so in no fixed order,
and, with channels innermost, leaves a layout that losses copy.

Not here: the kernels (upsample_kernels.py, in Triton); which steps are taken, and PyTorch's own way wherever `is_one_kernel`
says no (network.py).
"""

# B images, K scores, h side of the small map, H = factor (h - 1) + 1

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jointseg.needs import has_triton

FACTORS = (2, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def is_one_kernel(small: Tensor, factor: int, score: Tensor | None) -> bool:
    """Whether `upsample_and_add` takes this: on GPUs, with Triton, and not where torch.compile fuses by itself."""
    return (
        small.is_cuda
        and factor in FACTORS
        and all(x is None or x.dtype in DTYPES for x in (small, score))
        and not torch.compiler.is_compiling()
        and has_triton()
    )


def upsample_and_add(small: Tensor, factor: int, score: Tensor | None) -> Tensor:
    """The small map upsampled, corners aligned, plus the score if there is one; float32, contiguous, also under autocast.

    (B, K, h, h) and (B, K, H, H) to (B, K, H, H).
    """
    return cast(Tensor, _UpsampleAndAdd.apply(small, score, factor))  # type: ignore[no-untyped-call]


class _UpsampleAndAdd(torch.autograd.Function):
    """Linear: of what comes in, it keeps layouts and dtypes alone."""

    @staticmethod
    def forward(ctx: Any, small: Tensor, score: Tensor | None, factor: int) -> Tensor:
        small, score = _dense(small), None if score is None else _dense(score)
        ctx.factor, ctx.like_small, ctx.like_score = factor, _blank(small), None if score is None else _blank(score)
        return cast(Tensor, _kernels().upsampled(small, factor, score))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad = _dense(grad)
        by_small = _empty(ctx.like_small, grad.device) if ctx.needs_input_grad[0] else None
        by_score = grad if ctx.needs_input_grad[1] else None
        if by_score is None or _blank(grad) == ctx.like_score:  # nothing to convert
            if by_small is not None:
                _kernels().gradients(grad, ctx.factor, by_small, None)
        else:
            by_score = _empty(ctx.like_score, grad.device)
            _kernels().gradients(grad, ctx.factor, by_small, by_score)
        return by_small, by_score, None


Blank = tuple[torch.Size, torch.dtype, torch.memory_format]
"""What another tensor of the same layout is made from."""


def _blank(x: Tensor) -> Blank:
    return x.shape, x.dtype, torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _empty(blank: Blank, device: torch.device) -> Tensor:
    shape, dtype, layout = blank
    return torch.empty(shape, dtype=dtype, device=device, memory_format=layout)


def _dense(x: Tensor) -> Tensor:
    """The map itself if it is contiguous or channels_last, and a contiguous copy otherwise."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _kernels() -> ModuleType:
    return import_module("jointseg.network.upsample_kernels")  # triton is not there everywhere
