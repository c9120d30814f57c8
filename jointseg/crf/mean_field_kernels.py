"""A step of mean field in Triton: what is left of the logits, and their softmax, in one pass.

Not here: the equations (mean_field.py). It needs triton: import it when needed.
"""

# B images, C classes, P pixels

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 4096
"""That a program takes at once: all classes of some pixels."""


@triton.jit
def _softmax_of_difference(left, right, out, P, C: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Softmax over C of left - right, all (B, C, P)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.arange(0, BLOCK_C)
    place = (tl.program_id(1).to(tl.int64) * C + c)[:, None] * P + pixel[None, :]
    inside = (c[:, None] < C) & (pixel[None, :] < P)
    logits = tl.load(left + place, mask=inside, other=0.0) - tl.load(right + place, mask=inside, other=0.0)
    logits = tl.where(c[:, None] < C, logits, -float("inf"))
    exponential = tl.exp(logits - tl.max(logits, 0)[None, :])
    tl.store(out + place, exponential / tl.sum(exponential, 0)[None, :], mask=inside)


def softmax_of_difference(left_BCP: Tensor, right_BCP: Tensor) -> Tensor:
    """(left - right).softmax(1), (B, C, P); float32, contiguous, up to `VALUES` classes. Not recorded by autograd."""
    B, C, P = left_BCP.shape
    out_BCP = torch.empty_like(left_BCP)
    block_c = triton.next_power_of_2(C)
    pixels = VALUES // block_c
    with torch.cuda.device_of(left_BCP):
        _softmax_of_difference[(triton.cdiv(P, pixels), B)](
            left_BCP, right_BCP, out_BCP, P, C=C, PIXELS=pixels, BLOCK_C=block_c, num_warps=4, enable_fp_fusion=True
        )
    return out_BCP
