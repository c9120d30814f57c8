"""Online views: a new crop, mirror and colour for each visit of a frame, a function of seed, stage and visit alone.

Not here: the offline views of the paper and how any view is rendered (views.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jointseg.config import DataConfig
from jointseg.data.views import View, random_crop

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of R, G and B in a pixel's brightness (BT.601)."""


@dataclass(frozen=True)
class Colour:
    """What a picture's brightness, contrast and saturation are multiplied by."""

    brightness: float
    contrast: float
    saturation: float


def view_of_visit(numbers: Sequence[int], visit: int, config: DataConfig, *, stages_before: int = 0) -> tuple[View, Colour]:
    """The view and the colours of the `visit`-th picture that is trained on, from 0.

    A round visits every frame once, in an order of its own. The crop's side is uniform between `crop_scale_min` and the whole
    frame, its place uniform, half are mirrored, and colours are uniform within `color_jitter`.

    Args:
        numbers: the frames that are trained on.
        visit: how many pictures came before, over all workers.
        config: views_seed, crop_scale_min, color_jitter.
        stages_before: how many stages came before this one, which sees other views than they did.
    """
    turn, place = divmod(visit, len(numbers))
    number = numbers[_order(len(numbers), turn, config.views_seed, stages_before)[place]]
    random = np.random.default_rng([config.views_seed, visit, 0, stages_before])  # no order has 0 for its length
    view = random_crop(number, random, scale=(config.crop_scale_min, 1.0))
    brightness, contrast, saturation = random.uniform(1 - config.color_jitter, 1 + config.color_jitter, 3).tolist()
    return replace(view, mirror=bool(random.integers(2))), Colour(brightness, contrast, saturation)


@lru_cache(maxsize=2)
def _order(length: int, turn: int, seed: int, stages_before: int) -> NDArray[np.intp]:
    return np.random.default_rng([seed, turn, length, stages_before]).permutation(length)


def coloured(image: NDArray[np.uint8], colour: Colour) -> NDArray[np.uint8]:
    """The picture (H, W, 3), RGB, with its brightness, then its contrast, then its saturation changed, clipped to 0..255."""
    pixels = image.astype(np.float32) * colour.brightness
    mean = (pixels @ LUMA).mean()
    pixels = mean + colour.contrast * (pixels - mean)
    grey = (pixels @ LUMA)[..., None]
    pixels = grey + colour.saturation * (pixels - grey)
    levels: NDArray[np.uint8] = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    return levels
