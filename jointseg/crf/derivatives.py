"""Backward passes that have no derivative of their own, and say so. Not here: what they compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from jointseg.crf.uncompiled import uncompiled
from jointseg.errors import InputError


def differentiable_once(instead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For an autograd function's `backward`: PyTorch's own `once_differentiable` lets some second derivatives through, as if
    what it returns were constant.

    Args:
        instead: what has second derivatives, for the message.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        once = once_differentiable(backward)

        @uncompiled
        @wraps(backward)
        def checked(ctx: Any, *grads: Any) -> Any:
            if torch.is_grad_enabled():  # in a backward pass: its own operations are to be differentiated
                raise InputError(f"create_graph is True for the CRF, which has first derivatives here; allowed: {instead}")
            return once(ctx, *grads)

        return checked

    return decorate
