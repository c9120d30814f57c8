"""What a depth sensor of Kinect's kind loses of a room, and what annotators leave unlabelled.

Not here: the true depth (ray_cast.py), the colour camera (light.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jointseg.data.synthetic.face import noise_tile
from jointseg.data.synthetic.ray_cast import FOCAL_X, HEIGHT, WIDTH, Floats

BASELINE = 0.075
"""From the sensor's projector to its camera, metres."""
RANGE = 8.0
"""It sees nothing beyond, metres."""
DISPARITY_STEP = 0.125
"""It measures disparity in eighths of a pixel, so that the step in depth grows with depth squared."""


def sensed_depth(depth: Floats, *, glossy: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """Raw depth (480, 640), metres, 0 = missing, from the true z-depth and where surfaces are glossy."""
    disparity = FOCAL_X * BASELINE / depth
    noisy = disparity + rng.normal(0, 0.06, depth.shape)
    measured = np.round(noisy / DISPARITY_STEP) * DISPARITY_STEP
    raw = (FOCAL_X * BASELINE / np.maximum(measured, DISPARITY_STEP)).astype(np.float32)
    raw[missing_depth(depth, glossy=glossy, rng=rng)] = 0
    return raw


def missing_depth(depth: Floats, *, glossy: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where nothing is measured: the projector's shadow, edges, most of what is glossy or far, speckle, the frame's border."""
    missing = projector_shadow(depth)
    jump = np.zeros_like(missing)
    jump[:, 1:] |= np.abs(np.diff(depth, axis=1)) > 0.05 * depth[:, 1:]
    jump[1:] |= np.abs(np.diff(depth, axis=0)) > 0.05 * depth[1:]
    missing |= widen(jump, 1) & (rng.random(depth.shape, np.float32) < 0.8)
    patchy = _patches(rng)
    missing |= glossy & (patchy > -0.9)
    missing |= depth > RANGE + 0.3 * patchy
    missing |= patchy > 2.6
    missing |= rng.random(depth.shape, np.float32) < 0.003
    top, bottom, left, right = rng.integers(4, 14, 4)
    missing[:top] = missing[HEIGHT - bottom :] = True
    missing[:, :left] = missing[:, WIDTH - right :] = True
    return missing


def projector_shadow(depth: Floats) -> NDArray[np.bool_]:
    """Where a nearer surface hides the projector's light: a band on one side of every step in depth.

    The projector stands `BASELINE` to the side, so it sees column u of depth z at u - f b / z. Along a row that place
    must grow; where it falls back behind the farthest place so far, something nearer is in the way.
    """
    seen_at = np.arange(WIDTH, dtype=np.float32) + FOCAL_X * BASELINE / depth
    farthest = np.maximum.accumulate(seen_at, axis=1)
    return seen_at < farthest - 0.75


def unlabelled(labels: NDArray[np.uint16], instances: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where annotators leave void (480, 640): the frame's border, and thin seams between things."""
    seam = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = (np.diff(labels.astype(np.int32), axis=axis) != 0) | (np.diff(instances, axis=axis) != 0)
        if axis == 0:
            seam[1:] |= differs
        else:
            seam[:, 1:] |= differs
    patchy = _patches(rng)
    return (seam & (patchy < 1.2)) | (widen(seam, 1) & (patchy > -0.2)) | (widen(seam, 3) & (patchy > 1.3))


def white_border(rng: np.random.Generator) -> NDArray[np.bool_]:
    """The frame's border (480, 640) that undistortion leaves white: some pixels wide, uneven from side to side."""
    border = np.ones((HEIGHT, WIDTH), bool)
    top, bottom, left, right = rng.integers(5, 10, 4)
    border[top : HEIGHT - bottom, left : WIDTH - right] = False
    return border


def widen(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask, grown by a square of 2 `pixels` + 1."""
    grown = mask.copy()
    for _ in range(pixels):
        grown[1:] |= grown[:-1].copy()
        grown[:-1] |= grown[1:].copy()
        grown[:, 1:] |= grown[:, :-1].copy()
        grown[:, :-1] |= grown[:, 1:].copy()
    return grown


def _patches(rng: np.random.Generator) -> Floats:
    """Smooth noise over the frame, mean 0 and spread about 1."""
    tile = np.roll(noise_tile(), tuple(rng.integers(0, 256, 2)), (0, 1))
    return np.tile(tile, (1, 2)).repeat(2, 0)[:HEIGHT].repeat(2, 1)[:, :WIDTH]
