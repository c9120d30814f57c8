"""The units a loss is quoted in, and the one conversion of learning rate and weight decay between them.

Not here: the loss itself (losses.py) and the optimiser (optimizer.py).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

LossUnit: TypeAlias = Literal["sum", "joint", "mean"]
"""`sum` L' = L_sem + L_depth / lambda; `joint` L = lambda L' (Eq 1); `mean` L' / N with N the pixels of the input."""


class Rate(NamedTuple):
    """A learning rate and the weight decay that goes with it."""

    lr: float
    weight_decay: float


def unit_scale(unit: LossUnit, *, lambda_semantic: float, num_pixels: int) -> float:
    """s, where the loss in `unit` is s L'. `num_pixels` is that of the square input, the same for every image."""
    return {"sum": 1.0, "joint": lambda_semantic, "mean": 1.0 / num_pixels}[unit]


def convert_rate(
    lr: float, weight_decay: float, *, from_unit: LossUnit, to_unit: LossUnit, lambda_semantic: float, num_pixels: int
) -> Rate:
    """The rate and decay on `to_unit` under which training takes the steps it takes with these on `from_unit`.

    SGD with coupled decay steps by lr (gradient + decay weight), momentum or not. On s times the loss, with lr / s and
    s decay, that is the same step. AdamW's steps do not feel the scale of the loss, and its decay is not coupled: for it
    there is nothing to convert.
    """
    scale = unit_scale(to_unit, lambda_semantic=lambda_semantic, num_pixels=num_pixels) / unit_scale(
        from_unit, lambda_semantic=lambda_semantic, num_pixels=num_pixels
    )
    return Rate(lr / scale, weight_decay * scale)
