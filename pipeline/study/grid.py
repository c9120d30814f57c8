"""The points of a grid over a space. Not here: who asks for them (samplers.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from jointseg.errors import InputError
from pipeline.study.spaces import Space

MAX_GRID_POINTS = 10**6


def grid(space: Space, *, levels: int, seed: int) -> list[dict[str, Any]]:
    """Optuna's parameters at every point of a grid, in an order drawn by `seed`.

    Raises:
        InputError: what the space draws depends on what it drew before, or there are too many points.
    """
    if space.distributions is None:
        raise InputError(f"search.sampler: a grid over {space.name} is not possible: what it draws is conditional")
    many = f"search.grid_levels: {levels} levels of {space.name} are"
    if levels > MAX_GRID_POINTS:
        raise InputError(f"{many} too many points; allowed: {MAX_GRID_POINTS}")
    values = [_levels(own, levels) for own in space.distributions.values()]
    number = math.prod(map(len, values))
    if number > MAX_GRID_POINTS:
        raise InputError(f"{many} {number} points; allowed: {MAX_GRID_POINTS}")
    points = [dict(zip(space.distributions, point, strict=True)) for point in product(*values)]
    return [points[place] for place in np.random.default_rng(seed).permutation(len(points))]


def _levels(own: BaseDistribution, levels: int) -> Sequence[Any]:
    if isinstance(own, CategoricalDistribution):
        return own.choices
    assert isinstance(own, FloatDistribution | IntDistribution)
    spaced = (np.geomspace if own.log else np.linspace)(own.low, own.high, levels)
    if own.step is not None and not own.log:
        steps = sorted({round((value - own.low) / own.step) for value in spaced.tolist()})
        return [own.low + step * own.step for step in steps]
    if isinstance(own, IntDistribution):
        return sorted({round(value) for value in spaced.tolist()})
    inner: list[float] = spaced[1:-1].tolist()
    return list(dict.fromkeys([own.low, *inner, own.high]))  # the ends as they are: geomspace rounds them
