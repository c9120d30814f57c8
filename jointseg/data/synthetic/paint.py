"""Paints: looks with their colours drawn.

Not here: which looks there are (looks.py), how a texture lays a paint out (textures.py).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from jointseg.data.synthetic.looks import Look
from jointseg.data.synthetic.ray_cast import Floats


@dataclass(frozen=True)
class Paint:
    """A look with its colours drawn: linear RGB (3,) each; `offset` shifts its pattern."""

    look: Look
    colour: Floats
    accent: Floats
    offset: float


def draw_paint(rng: np.random.Generator, look: Look, *, like: Paint | None = None) -> Paint:
    """One of the look's colours, varied a little; or the colour of the paint it shall be `like`."""
    accent = _vary(rng, _linear(rng.choice(look.accents)), by=0.08)
    colour = _linear(rng.choice(look.colours))
    if like is not None:
        colour = like.colour
    return Paint(look, _vary(rng, colour, by=0.12), accent, float(rng.uniform(0, 8)))


def _linear(text: str) -> Floats:
    values = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array(values, np.float32) ** 2  # pictures are stored with a square root (light.py)


def _vary(rng: np.random.Generator, colour: Floats, *, by: float) -> Floats:
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in colour))
    hue += rng.normal(0, by / 10)
    saturation *= np.exp(rng.normal(0, by))
    value *= np.exp(rng.normal(0, by))
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(saturation, 1.0), min(value, 0.92)), np.float32)
