"""A face of a solid as textures see it: where its pixels lie, noise, and patterns that fade before they alias.

Not here: the textures (textures.py), which pixels see a face (ray_cast.py).
"""

# N pixels of one part. u, v: metres along the face. s, t: the same as fractions 0..1. Colours are linear RGB.

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from jointseg.data.synthetic.ray_cast import Floats

TILE = 256


@dataclass(frozen=True)
class Face:
    """Where N pixels lie on a face `width` x `height` metres, and the two colours (3,) it is painted with.

    `footprint` (N,) is the size of a pixel on the surface in metres: detail finer than that fades out.
    """

    u: Floats
    v: Floats
    s: Floats
    t: Floats
    width: float
    height: float
    footprint: Floats
    colour: Floats
    accent: Floats
    offset: float

    def noise(self, u_scale: float, v_scale: float) -> Floats:
        """Smooth noise (N,), mean 0 and spread about 1; a scale is the metres one tile of 256 cells covers."""
        tile = noise_tile()
        x, y = (self.u / u_scale + self.offset) * TILE, (self.v / v_scale + 1.7 * self.offset) * TILE
        column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
        fx, fy = x - column, y - row
        c0, c1, r0, r1 = column & 255, (column + 1) & 255, row & 255, (row + 1) & 255
        above = tile[r0, c0] * (1 - fx) + tile[r0, c1] * fx
        below = tile[r1, c0] * (1 - fx) + tile[r1, c1] * fx
        return np.asarray(above * (1 - fy) + below * fy, np.float32)

    def speckle(self, cell: float) -> Floats:
        """White noise (N,), -1..1, on cells of `cell` metres, faded where a cell is below a pixel."""
        value = hash_of(np.floor(self.u / cell), np.floor(self.v / cell)) * 2 - 1
        return np.asarray(value * self.fade(2 * cell))

    def fade(self, period: float) -> Floats:
        """1 (N,) where a pattern of this period in metres can be seen, 0 where it would alias."""
        return np.asarray(np.clip(period / self.footprint / 2 - 0.75, 0, 1))

    def wave(self, x: Floats, period: float) -> Floats:
        """A cosine of x, -1..1, faded where it would alias."""
        return np.asarray(np.cos(x * (2 * np.pi / period)) * self.fade(period))

    def shade(self, brightness: Floats) -> Floats:
        """The main colour times `brightness` (N,): (N, 3)."""
        return self.colour * brightness[:, None]

    def mix(self, weight: Floats) -> Floats:
        """From the main colour at 0 to the accent at 1: (N, 3)."""
        return self.colour + (self.accent - self.colour) * weight[:, None]


@cache
def noise_tile() -> Floats:
    """One tile of noise with a 1/f spectrum that repeats without a seam, (256, 256), mean 0, spread 1."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None])
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((TILE, TILE))) / frequency**1.1)
    return np.asarray((tile - tile.mean()) / tile.std(), np.float32)


def hash_of(row: Floats, column: Floats) -> Floats:
    """A fixed random number 0..1 for each pair of whole numbers."""
    mixed = row.astype(np.int32) * np.int32(73856093) ^ column.astype(np.int32) * np.int32(19349663)
    mixed = (mixed ^ (mixed >> 13)) * np.int32(1274126177)
    return np.asarray(((mixed >> 8) & 0xFFFF) / np.float32(65535), np.float32)
