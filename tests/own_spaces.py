"""Spaces of a user's own, and how they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jointseg.config import Config
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.study.spaces import Space, load_space

WEIGHTS = {"crf.w_appearance": 7.0, "crf.w_depth": 4.0, "crf.w_smoothness": 3.0}


def config_with(**search: Any) -> Config:
    return with_overrides(demo(), {f"search.{name}": value for name, value in search.items()})


def space_named(name: object) -> Space:
    return load_space(config_with(space=str(name)))


def fixed(distributions: str, function: str = "space") -> str:
    """The text of a file with such a space."""
    return f"from optuna.distributions import *\ndef {function}(): return {distributions}"


def refusal(act: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        act(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)
