"""Mean-field inference for the fully connected CRF (Kraehenbuehl & Koltun 2011, Algorithm 1; the paper's Eq 5-7).

Not here: how messages are filtered (filters/), which kernels the paper uses (kernels.py).
"""

# B images, C classes, P pixels (H*W, row-major), K kernels

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from jointseg.crf.derivatives import differentiable_once
from jointseg.crf.filters import GaussianFilter, SummedFilter, blend
from jointseg.crf.uncompiled import uncompiled
from jointseg.needs import has_triton

_MAX_CLASSES = 512
"""That one kernel takes: of more, a program would read too few neighbouring pixels."""


def pairwise_matrices(weights_KCC: Tensor, compatibility_CC: Tensor, *, form: Literal["crfrnn", "hadamard"]) -> Tensor:
    """A_k (K, C, C) such that the pairwise term is sum_k A_k message_k.

    `crfrnn`: A_k = M W_k, matrices multiplied (CRF-as-RNN). `hadamard`: A_k = mu * w(k), entry by entry (Eq 6-7 to the letter).
    """
    compatibility_KCC = compatibility_CC.expand_as(weights_KCC)
    return product(compatibility_KCC, weights_KCC) if form == "crfrnn" else compatibility_KCC * weights_KCC


def mean_field(
    unary_logits_BCP: Tensor,
    filters: Sequence[GaussianFilter],
    *,
    matrices_KCC: Tensor,
    num_iterations: int,
    log_bandwidths: Sequence[Tensor] | None = None,
) -> Tensor:
    """Run parallel updates from q = softmax(unary logits). Returns logits (B, C, P); softmax over C gives the last q.

    `log_bandwidths`: of each kernel, the logarithm of the bandwidth of each of its F features, to differentiate by; the filters
    must have been built for their values, and have `bandwidth_gradient`.
    """
    if num_iterations == 0 or not filters:
        return unary_logits_BCP
    unary_logits_BCP = unary_logits_BCP.contiguous()
    matrices: Sequence[Tensor | None] = list(matrices_KCC)
    if num_iterations > 1 and log_bandwidths is None:
        filters, matrices = merge_terms(filters, matrices_KCC)
    messages = [partial(message, gaussian=gaussian) for gaussian in filters]
    if log_bandwidths is not None:
        pairs = zip(filters, log_bandwidths, strict=True)
        messages = [partial(message_by_bandwidths, gaussian=gaussian, log_bandwidths_F=log_F) for gaussian, log_F in pairs]
    q_BCP = unary_logits_BCP.softmax(1)
    for _ in range(num_iterations - 1):
        q_BCP = softmax_of_difference(*mean_field_step(q_BCP, unary_logits_BCP, messages, matrices=matrices))
    left_BCP, last_BCP = mean_field_step(q_BCP, unary_logits_BCP, messages, matrices=matrices)
    return left_BCP - last_BCP


def mean_field_step(
    q_BCP: Tensor,
    unary_logits_BCP: Tensor,
    messages: Sequence[Callable[[Tensor], Tensor]],
    *,
    matrices: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """One parallel update: U - sum_k A_k message_k. Returns two whose difference is the logits; softmax over C gives the
    next q.

    A_k mixes classes and a filter mixes pixels, so A_k message_k(q) = message_k(A_k q). Mixing first, autograd has
    only q to keep: the messages are in no derivative.
    """
    left_BCP, last_BCP = unary_logits_BCP, None
    for message_of, matrix_CC in zip(messages, matrices, strict=True):
        mixed_BCP = q_BCP if matrix_CC is None else product(matrix_CC.expand(len(q_BCP), -1, -1), q_BCP)
        left_BCP = left_BCP if last_BCP is None else left_BCP - last_BCP
        last_BCP = message_of(mixed_BCP)
    assert last_BCP is not None
    return left_BCP, last_BCP


def softmax_of_difference(left_BCP: Tensor, right_BCP: Tensor) -> Tensor:
    """(left - right).softmax(1), on CUDA in one pass where nothing is recorded."""
    if _takes_kernels(left_BCP, right_BCP):
        q_BCP: Tensor = import_module("jointseg.crf.mean_field_kernels").softmax_of_difference(left_BCP, right_BCP)
        return q_BCP
    return (left_BCP - right_BCP).softmax(1)


def softmax_of_any(logits: Tensor) -> Tensor:
    """Over classes (B, C, ...), of logits that may be no numbers: their NaN stay where they are, and are in no gradient."""
    with torch.no_grad():
        none = logits.softmax(1).isnan().any(1, keepdim=True)
    return logits.masked_fill(none, 0).softmax(1).masked_fill(none, float("nan"))


def _takes_kernels(*values: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and any(each.requires_grad for each in values)
    plain = all(each.is_cuda and each.dtype == torch.float32 and each.is_contiguous() for each in values)
    return plain and not recorded and values[0].shape[1] <= _MAX_CLASSES and has_triton()


def merge_terms(
    filters: Sequence[GaussianFilter], matrices_KCC: Tensor
) -> tuple[Sequence[GaussianFilter], Sequence[Tensor | None]]:
    """One term in place of K where every A_k is a multiple s_k of one A, as it is until weights are learned.

    Then sum_k A_k message_k(q) = A (sum_k s_k message_k)(q), which a filter may be able to do at once, and classes are mixed
    once; on a GPU not at all where A is a multiple of I: it is given as None, and every s_k is multiplied by that multiple. It
    is left as it is where weights are being learned: looking at A_k waits for a GPU.
    """
    learning = torch.is_grad_enabled() and matrices_KCC.requires_grad
    if learning or len(filters) < 2:
        return filters, list(matrices_KCC)
    on_cpu_KCC = matrices_KCC.detach().cpu()
    peaks_K = on_cpu_KCC.flatten(1).abs().amax(1)
    reference = int(peaks_K.argmax())
    if not peaks_K.any():
        return filters[:1], [matrices_KCC[0]]
    reference_CC = on_cpu_KCC[reference]
    at = int(reference_CC.abs().argmax())
    scales_K = on_cpu_KCC.flatten(1)[:, at] / reference_CC.flatten()[at]
    rounding_K = 4 * torch.finfo(matrices_KCC.dtype).eps * peaks_K
    misfit_KCC = (on_cpu_KCC - scales_K[:, None, None] * reference_CC).abs()
    if not bool((misfit_KCC.flatten(1).amax(1) <= rounding_K).all()):
        return filters, list(matrices_KCC)
    blended: GaussianFilter | None = blend(filters, scales_K.tolist())
    if blended is None and matrices_KCC.device.type != "cpu":
        factor = reference_CC[0, 0]
        if torch.equal(reference_CC, factor * torch.eye(len(reference_CC)).to(reference_CC)):
            return [SummedFilter(filters, (factor * scales_K).tolist())], [None]
        blended = SummedFilter(filters, scales_K.tolist())
    return (filters, list(matrices_KCC)) if blended is None else ([blended], [matrices_KCC[reference]])


def product(left: Tensor, right: Tensor) -> Tensor:
    """torch.bmm, whose derivative is of full precision also where backward() runs inside autocast."""
    result: Tensor = _Product.apply(left, right)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """The product of matrices, one by one."""

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return left.bmm(right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            by_left = product(grad, right.mT) if ctx.needs_input_grad[0] else None
            by_right = product(left.mT, grad) if ctx.needs_input_grad[1] else None
        return by_left, by_right


def message(values_BCP: Tensor, gaussian: GaussianFilter) -> Tensor:
    """filter(v) / filter(1), self included. Differentiable by the values through the filter's own transpose."""
    filtered_BCP: Tensor = _Filtered.apply(values_BCP, gaussian, False)  # type: ignore[no-untyped-call]
    return filtered_BCP if getattr(gaussian, "is_normalised", False) else filtered_BCP / gaussian.row_sums[:, None, :]


class _Filtered(torch.autograd.Function):
    """A filter as a linear map: its backward pass is the transposed map, whose own is the map again."""

    @staticmethod
    def forward(values_BCP: Tensor, gaussian: GaussianFilter, transposed: bool) -> Tensor:
        return gaussian.apply_transposed(values_BCP) if transposed else gaussian.apply(values_BCP)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, GaussianFilter, bool], output: Tensor) -> None:  # noqa: ARG004
        _, ctx.gaussian, ctx.transposed = inputs

    @staticmethod
    @uncompiled
    def backward(ctx: Any, grad_BCP: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(grad_BCP.device.type, enabled=False):
            return _Filtered.apply(grad_BCP, ctx.gaussian, not ctx.transposed), None, None  # type: ignore[no-untyped-call]


def message_by_bandwidths(values_BCP: Tensor, gaussian: GaussianFilter, log_bandwidths_F: Tensor) -> Tensor:
    """As `message`, differentiable once, also by the logarithms of the features' bandwidths."""
    result: Tensor = _MessageByBandwidths.apply(values_BCP, log_bandwidths_F, gaussian)  # type: ignore[no-untyped-call]
    return result


class _MessageByBandwidths(torch.autograd.Function):
    """m = (K v) / (K 1): d m = (d K v - m d K 1) / (K 1), so both derivatives are one sum, with a channel of ones beside v."""

    @staticmethod
    def forward(ctx: Any, values_BCP: Tensor, log_bandwidths_F: Tensor, gaussian: GaussianFilter) -> Tensor:  # noqa: ARG004
        message_BCP = gaussian.apply(values_BCP) / gaussian.row_sums[:, None, :]
        ctx.gaussian = gaussian
        ctx.save_for_backward(values_BCP, message_BCP)
        return message_BCP

    @staticmethod
    @differentiable_once("filter='exact', without learned bandwidths, for second ones")
    def backward(ctx: Any, grad_BCP: Tensor) -> tuple[Tensor, Tensor | None, None]:
        values_BCP, message_BCP = ctx.saved_tensors
        scaled_BCP = grad_BCP / ctx.gaussian.row_sums[:, None, :]
        by_bandwidths_F = None
        with torch.autocast(grad_BCP.device.type, enabled=False):
            if ctx.needs_input_grad[1]:
                by_row_sum_B1P = -(scaled_BCP * message_BCP).sum(1, keepdim=True)
                y_BCP = torch.cat([scaled_BCP, by_row_sum_B1P], 1)
                v_BCP = torch.cat([values_BCP, torch.ones_like(by_row_sum_B1P)], 1)
                by_bandwidths_F = ctx.gaussian.bandwidth_gradient(y_BCP, v_BCP).sum(0)
            return ctx.gaussian.apply_transposed(scaled_BCP), by_bandwidths_F, None
