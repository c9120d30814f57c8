"""Methods that torch.compile leaves alone: it cannot trace threads and compiled code, nor need it.

Not here: what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Made = TypeVar("Made")


def uncompiled(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """As `torch.compiler.disable`, which takes a second to import, but only where torch.compile is at work."""

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        if torch.compiler.is_compiling():
            result: Made = torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
            return result
        return function(*args, **kwargs)

    return called
