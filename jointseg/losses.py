"""The training losses, one function per equation of the paper.

Not here: the learning rates that suit a unit of the loss (units.py), what counts as a valid depth (data/frame.py).

Everything is computed in float32 at least: sums over 513 x 513 pixels and softmaxes do not survive bfloat16.
"""

# B images, C classes, N depth bins, (H, W) pixels

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from jointseg.data.frame import valid_depth
from jointseg.labels import VOID
from jointseg.units import LossUnit, unit_scale


class JointLoss(NamedTuple):
    """The loss of a batch and its two terms, `total = semantic + depth`; scalars in the unit that was asked for."""

    total: Tensor
    semantic: Tensor
    depth: Tensor


def semantic_loss(logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Eq 2: the sum over pixels of -log p(label), void pixels left out. Not a mean: FCN's `normalize: false`.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W), whole numbers, 0..C-1 or VOID.
        class_weights: (C,), what a pixel of each class counts for; None: 1, which is the paper's.

    Returns:
        (B,), nats; 0 for an image that is all void.
    """
    each = cross_entropy(_at_least_float32(logits), labels.long(), weight=class_weights, ignore_index=VOID, reduction="none")
    return each.sum((1, 2))


def balancing_weights(class_pixels: Tensor, *, power: float) -> Tensor:
    """w_c proportional to f_c^-power, f_c the class's share of the pixels, scaled so that the mean weight of a pixel is 1.

    Args:
        class_pixels: (C,), pixels of each class in the training frames. A class without any weighs as the rarest with some.
        power: 0 weighs all alike, 1 gives every class the same share of the loss.

    Returns:
        (C,), float32.
    """
    counts = class_pixels.double()
    assert counts.sum() > 0
    counts = counts.clamp(min=float(counts[counts > 0].min()))
    weights = counts.pow(-power)
    return (weights * class_pixels.sum() / (weights * class_pixels).sum()).float()


def expected_depth(depth_logits: Tensor, *, depth_bin: float) -> Tensor:
    """Eq 3: d = sum over b = 1..N of b l p(b), l = `depth_bin` metres. (B, N, H, W) to (B, H, W), metres, l to N l."""
    p = torch.softmax(_at_least_float32(depth_logits), dim=1)
    bins = torch.arange(1, p.shape[1] + 1, device=p.device, dtype=p.dtype) * depth_bin
    return _sum_of_bins(p, bins) if p.is_cuda else (p * bins.view(1, -1, 1, 1)).sum(1)


def scale_invariant_loss(log_depth: Tensor, target_depth: Tensor, *, invariance: float = 1.0) -> Tensor:
    """Eq 4, the mean squared difference of differences over all pairs of pixels, as 2 Var(r), r = log d - log d*.

    Args:
        log_depth: (B, H, W), natural logarithm of metres.
        target_depth: (B, H, W), metres; pixels that are not a valid depth are left out, image by image.
        invariance: i in 2 (mean(r^2) - i mean(r)^2). 1 is Eq 4, blind to the depth's overall scale; at 0 that counts in
            full; Eigen et al. (2014, their Eq 4, lambda) take 0.5.

    Returns:
        (B,); 0, with gradient 0, for an image with fewer than two valid pixels.
    """
    valid = valid_depth(target_depth)
    n = valid.sum((1, 2))
    valid = valid & (n > 1).view(-1, 1, 1)
    n = n.clamp(min=1)
    target = torch.where(valid, target_depth, 1.0)  # where, not *: 0 * log 0 is NaN, and so is its gradient
    r = torch.where(valid, _at_least_float32(log_depth) - target.log(), 0.0)
    mean = r.sum((1, 2)) / n
    deviation = torch.where(valid, r - mean.view(-1, 1, 1), 0.0)
    return 2 * (deviation.square().sum((1, 2)) / n + (1 - invariance) * mean.square())


def joint_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    depth: Tensor | None,
    target_depth: Tensor,
    lambda_semantic: float,
    unit: LossUnit,
    invariance: float = 1.0,
    class_weights: Tensor | None = None,
) -> JointLoss:
    """Eq 1, the mean over the images of a batch.

    Args:
        logits: (B, C, H, W), of the network or of the CRF behind it.
        labels: (B, H, W), 0..C-1 or VOID.
        depth: (B, H, W), metres, by `expected_depth`; None for the semantic loss alone (stage 1).
        target_depth: (B, H, W), metres; pixels that are not a valid depth are left out.
        lambda_semantic: lambda of Eq 1.
        unit: `sum` is L_sem + L_depth / lambda; `joint` lambda times that, which is Eq 1 as printed; `mean` that over
            H W, void or not, so that units convert into each other exactly.
        invariance: of the depth loss, see `scale_invariant_loss`; 1 is the paper's.
        class_weights: of the semantic loss, see `semantic_loss`.
    """
    scale = unit_scale(unit, lambda_semantic=lambda_semantic, num_pixels=labels.shape[-2] * labels.shape[-1])
    semantic = scale * semantic_loss(logits, labels, class_weights=class_weights).mean()
    if depth is None:
        return JointLoss(semantic, semantic, torch.zeros_like(semantic))
    invariant = scale_invariant_loss(_at_least_float32(depth).log(), target_depth, invariance=invariance).mean()
    weighted = scale / lambda_semantic * invariant
    return JointLoss(semantic + weighted, semantic, weighted)


def _sum_of_bins(p: Tensor, bins: Tensor) -> Tensor:
    """The sum over b of bins(b) p(b) as one product, without a map of the terms: for GPUs. (B, N, H, W) to (B, H, W)."""
    with torch.autocast(p.device.type, enabled=False):  # it would round both factors
        return (bins @ p.flatten(2)).view(p.shape[0], *p.shape[2:])


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
