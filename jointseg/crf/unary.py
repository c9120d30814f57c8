"""Logits for the CRF out of what is not logits: labels that somebody gave, probabilities. Not here: the CRF."""

# B images, C classes

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from jointseg.crf.inputs import finite_range, refuse_others
from jointseg.errors import InputError

ROUNDING = 1e-3
"""What a softmax may be above 1, in half precision."""


def logits_from_labels(labels: Tensor, num_classes: int, *, confidence: float = 0.7, ignore_index: int = 255) -> Tensor:
    """Logits of a probability of `confidence` at each pixel's label and the rest of it shared by the others.

    As pydensecrf's `unary_from_labels`, whose label 0 is `ignore_index` here.

    Args:
        labels: (B, H, W), integers: 0..C-1, or `ignore_index` where nothing is known: there all classes are as likely.
        num_classes: C, at least 2.
        confidence: above 0, below 1.
        ignore_index: which label is none.

    Returns:
        (B, C, H, W), float32.

    Raises:
        InputError: labels of another shape, dtype or range, or a number that is not as above.
    """
    refuse_others("labels", labels)
    refuse_others("num_classes", num_classes, Integral, "a whole number, at least 2")
    refuse_others("confidence", confidence, Real, "a number between 0 and 1")
    refuse_others("ignore_index", ignore_index, Integral, "a whole number, of which there may be no label")
    if labels.ndim != 3 or labels.dtype.is_floating_point or labels.dtype in {torch.bool, torch.complex64, torch.complex128}:
        raise InputError(f"labels are {tuple(labels.shape)} {labels.dtype}; allowed: (B, H, W), of integers")
    if not (num_classes >= 2 and 0 < confidence < 1):
        raise InputError(f"num_classes is {num_classes}, confidence {confidence}; allowed: at least 2, between 0 and 1")
    wide = labels.long()
    known = wide != ignore_index
    wrong = known & ((wide < 0) | (wide >= num_classes))
    if bool(wrong.any()):
        allowed = f"0..{num_classes - 1}, or ignore_index, {ignore_index}"
        raise InputError(f"labels: {int(wrong.sum())} are out of range, as {int(wide[wrong][0])}; allowed: {allowed}")
    likely, other, any_class = (math.log(p) for p in (confidence, (1 - confidence) / (num_classes - 1), 1 / num_classes))
    logits = torch.full((labels.shape[0], num_classes, *labels.shape[1:]), other, dtype=torch.float32, device=labels.device)
    logits.scatter_(1, wide.masked_fill(~known, 0)[:, None], likely)
    return logits.masked_fill_(~known[:, None], any_class)


def logits_from_probabilities(probabilities: Tensor, *, least: float = 1e-5) -> Tensor:
    """Their logarithm, as pydensecrf's `unary_from_softmax`.

    Args:
        probabilities: of classes, (B, C, H, W), 0..1.
        least: what less than this counts as, between 0 and 1.

    Returns:
        Their shape and dtype.

    Raises:
        InputError: probabilities that are none or no floating-point numbers in 0..1, or `least` is not as above.
    """
    refuse_others("probabilities", probabilities)
    refuse_others("least", least, Real, "a number between 0 and 1")
    if not probabilities.is_floating_point():
        raise InputError(f"probabilities are {probabilities.dtype}; allowed: of a floating point")
    if probabilities.numel() == 0:
        raise InputError(f"probabilities have shape {tuple(probabilities.shape)}; allowed: (B, C, H, W), not empty")
    if not 0 < least < 1:
        raise InputError(f"least is {least}; allowed: between 0 and 1")
    low, high = finite_range("probabilities", probabilities, allowed="0..1")
    if low < 0 or high > 1 + ROUNDING:
        raise InputError(f"probabilities have values in {low:g}..{high:g}; allowed: 0..1 (logits need nothing done)")
    return probabilities.clamp(min=max(least, torch.finfo(probabilities.dtype).tiny)).log()
