"""Mean field over all kernels in one pass an iteration, as one step of autograd.

Not here: the passes (engine.py, passes.py).
"""

# B images, C channels, P pixels (H*W, row-major), K kernels

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointseg.crf.cpu.abreast import each_image
from jointseg.crf.cpu.engine import Engine
from jointseg.crf.cpu.layout import padded_width
from jointseg.crf.cpu.scratch import borrowed
from jointseg.crf.cpu.transpose import are_rows, from_rows, into_rows
from jointseg.crf.derivatives import differentiable_once

_NEVER = -np.inf
"""Logit of the channels that only fill a vector: their q is 0."""


@contextmanager
def as_rows(values_CP: Tensor, padding: float, num_threads: int, *, place_CP: Tensor | None = None) -> Iterator[NDArray[Any]]:
    """(C, P) as rows of pixels, (P, C) with C padded to whole vectors.

    They lie in `place_CP` where that can hold them, being channels last without padding, else in memory that is another call's
    after the block.
    """
    C, P = values_CP.shape
    values = values_CP.detach().numpy()
    values = values if are_rows(values) else np.ascontiguousarray(values)
    width = padded_width(C)
    with ExitStack() as borrowing:
        if place_CP is not None and are_rows(place_CP.numpy()) and width == C:
            rows_PC = place_CP.numpy().T
        else:
            rows_PC = borrowing.enter_context(borrowed(P * width, dtype=values.dtype))[0].reshape(P, width)
        into_rows(values, rows_PC, padding, num_threads)
        yield rows_PC


def empty_like(values: Tensor) -> Tensor:
    """A tensor of this shape (..., C, P), not set: channels last where these are, else contiguous. Numpy asks for large pages;
    torch waits many times longer for its memory. It is a view of no other: autograd lets nobody write into a view that one of
    its functions returned.
    """
    given = values.detach().numpy()
    if are_rows(given):
        return torch.from_numpy(np.empty_like(given.swapaxes(-1, -2), order="C").swapaxes(-1, -2))
    return torch.from_numpy(np.empty(given.shape, given.dtype))


def fused_mean_field(
    unary_logits_BCP: Tensor,
    engines: Sequence[Engine],
    *,
    matrices_KCC: Tensor,
    num_iterations: int,
    probabilities: bool = False,
    symmetric: bool = False,
) -> Tensor:
    """As mean_field.mean_field, for engines of the same K kernels, one an image. Differentiable once.

    `probabilities`: return softmax over C of the logits, which costs nothing where no gradient is recorded. `symmetric`: divide
    by the roots of the row sums before and after.
    """
    learning = torch.is_grad_enabled() and (unary_logits_BCP.requires_grad or matrices_KCC.requires_grad)
    result: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
        unary_logits_BCP, matrices_KCC, engines, num_iterations, learning, probabilities and not learning, symmetric
    )
    return result.softmax(1) if probabilities and learning else result


class _Fused(torch.autograd.Function):
    """Keeps q of each iteration, and no messages."""

    @staticmethod
    def forward(
        ctx: Any,
        unary_BCP: Tensor,
        matrices_KCC: Tensor,
        engines: Sequence[Engine],
        num_iterations: int,
        learning: bool,
        probabilities: bool,
        symmetric: bool,
    ) -> Tensor:
        matrices = _padded_matrices(matrices_KCC.detach())
        ctx.engines, ctx.symmetric = engines, symmetric
        out_BCP = empty_like(unary_BCP)
        images = list(zip(unary_BCP.detach(), engines, out_BCP, strict=True))

        def inferred(i: int) -> NDArray[Any]:
            unary_CP, engine, out_CP = images[i]
            with as_rows(unary_CP, _NEVER, engine.num_threads, place_CP=out_CP) as unary_PC:
                rows_PC, kept_TN = engine.mean_field(
                    unary_PC, matrices, num_iterations, keep=learning, probabilities=probabilities, symmetric=symmetric
                )
                if not np.may_share_memory(rows_PC, out_CP.numpy()):
                    from_rows(rows_PC, out_CP.numpy(), engine.num_threads)
            return kept_TN

        kept = each_image(inferred, len(images), threads_each=engines[0].num_threads)
        ctx.save_for_backward(matrices_KCC, *(map(torch.from_numpy, kept) if learning else ()))
        return out_BCP

    @staticmethod
    @differentiable_once("filter='exact', without learned bandwidths, for second ones")
    def backward(ctx: Any, grad_BCP: Tensor) -> tuple[Tensor | None, ...]:
        matrices_KCC, *kept = ctx.saved_tensors
        matrices = _padded_matrices(matrices_KCC.detach())
        by_unary_BCP = empty_like(grad_BCP)
        by_matrices_KCC = torch.zeros_like(matrices_KCC) if ctx.needs_input_grad[1] else None
        images: list[tuple[Tensor, Engine, Tensor, Tensor]] = list(zip(grad_BCP, ctx.engines, kept, by_unary_BCP, strict=True))

        def differentiated(i: int) -> NDArray[Any] | None:
            grad_CP, engine, kept_TN, out_CP = images[i]
            with as_rows(grad_CP, 0.0, engine.num_threads) as grad_PC:
                rows_PC, sums = engine.mean_field_backward(
                    grad_PC, kept_TN.numpy(), matrices, by_matrices=by_matrices_KCC is not None, symmetric=ctx.symmetric
                )
            from_rows(rows_PC, out_CP.numpy(), engine.num_threads)
            return sums

        C = grad_BCP.shape[1]
        for sums in each_image(differentiated, len(images), threads_each=ctx.engines[0].num_threads):
            if by_matrices_KCC is not None and sums is not None:
                by_matrices_KCC += torch.from_numpy(sums)[:, :C, :C]
        return by_unary_BCP, by_matrices_KCC, None, None, None, None, None


def _padded_matrices(matrices_KCC: Tensor) -> NDArray[Any]:
    """(K,) where every matrix is a multiple of the identity, as before learning; else (K, C, C), 0 in the padding."""
    K, C, _ = matrices_KCC.shape
    matrices = matrices_KCC.numpy()
    multiples = matrices[:, 0, 0]
    if np.array_equal(matrices, multiples[:, None, None] * np.eye(C, dtype=matrices.dtype)):
        return multiples.copy()
    width = padded_width(C)
    padded = np.zeros((K, width, width), matrices.dtype)
    padded[:, :C, :C] = matrices
    return padded
