"""A convolution, its bias and its ReLU as one kernel on CUDA, and their gradient.

PyTorch itself takes three: cuDNN's convolution, then the bias is added and the ReLU taken over the whole map, which at full
size and in half precision costs more than a tenth of a training step. cuDNN has one kernel for all three, of which PyTorch
knows no gradient.

Not here: the layer that it is for (network.py), which takes PyTorch's own path wherever `is_fusible` says no.
"""

# B images, H x W and H' x W' pixels

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

Pair = tuple[int, ...]
Geometry = tuple[Pair, Pair, Pair]
"""Stride, padding and dilation."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def is_fusible(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolution_relu` takes this: on NVIDIA's GPUs, with cuDNN, and not where torch.compile fuses by itself."""
    return (
        x.is_cuda
        and x.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and torch.version.cuda is not None
        and torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cudnn.enabled
        and not torch.backends.cudnn.deterministic  # which the one kernel does not go by
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )


def convolution_relu(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """`convolution(x).relu()`, under autocast in its precision. (B, channels in, H, W) to (B, channels out, H', W')."""
    weight, bias = convolution.weight, convolution.bias
    geometry = convolution.stride, cast(Pair, convolution.padding), convolution.dilation
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return cast(Tensor, _ConvolutionReLU.apply(x, weight, bias, geometry))  # type: ignore[no-untyped-call]
    dtype = torch.get_autocast_dtype(kind)
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        return cast(Tensor, _ConvolutionReLU.apply(x, weight, bias, geometry))  # type: ignore[no-untyped-call]


class _ConvolutionReLU(torch.autograd.Function):
    """Keeps its input and its output, which is not 0 exactly where the ReLU let something through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        y = _convolution_relu(x, weight, bias, geometry)
        ctx.save_for_backward(x, weight, y)
        ctx.geometry = geometry
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        (grad,) = grads
        through = torch.ops.aten.threshold_backward(grad, y, 0)
        needed = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.convolution_backward(
            through, x, weight, [weight.shape[0]], *ctx.geometry, False, [0, 0], 1, needed
        )
        return *found, None


def _convolution_relu(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    return cast(Tensor, torch.ops.aten.cudnn_convolution_relu(x, weight, bias, *geometry, 1))
