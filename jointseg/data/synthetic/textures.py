"""Procedural textures: the albedo of a surface from where on its face a pixel lies.

Not here: what a face is (face.py), light (light.py), which material has which texture (looks.py).
"""

# s, t: the place on a face as fractions 0..1 of its width and height; u, v: in metres.

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jointseg.data.synthetic.face import Face, hash_of
from jointseg.data.synthetic.ray_cast import Floats

SPINES = np.array(
    [[0.35, 0.05, 0.04], [0.05, 0.1, 0.3], [0.06, 0.2, 0.08], [0.5, 0.4, 0.2], [0.03, 0.03, 0.03], [0.6, 0.6, 0.55]],
    np.float32,
)
"""Colours of books."""


def _within(x: Floats, low: float | Floats, high: float) -> Floats:
    return np.asarray((x > low) & (x < high), np.float32)


def _edge(face: Face, metres: float) -> Floats:
    """1 within `metres` of the face's edge."""
    inside = _within(face.u, metres, face.width - metres) * _within(face.v, metres, face.height - metres)
    return 1 - inside


def plain(face: Face) -> Floats:
    """One colour, hardly uneven."""
    return face.shade(1 + 0.05 * face.noise(3, 3))


def fabric(face: Face) -> Floats:
    """Cloth: a fine weave."""
    return face.shade(1 + 0.12 * face.speckle(0.006) + 0.1 * face.noise(1.2, 1.2))


def carpet(face: Face) -> Floats:
    """Pile: a coarse weave."""
    return face.shade(1 + 0.22 * face.speckle(0.012) + 0.1 * face.noise(2.5, 2.5))


def wood(face: Face) -> Floats:
    """Grain along the longer side."""
    along = (2.5, 0.35) if face.width >= face.height else (0.35, 2.5)
    grain = face.noise(*along)
    return face.shade(1 + 0.16 * grain + 0.08 * np.cos(6 * grain))


def planks(face: Face) -> Floats:
    """Floor boards, each of its own shade."""
    row = np.floor(face.v / 0.11)
    column = np.floor(face.u / 1.1 + 0.37 * row)
    seam = (_within(face.v / 0.11 - row, 0, 0.05)) * face.fade(0.05)
    return face.shade((0.82 + 0.36 * hash_of(row, column)) * (1 + 0.12 * face.noise(2.5, 0.3)) * (1 - 0.5 * seam))


def stripes(face: Face) -> Floats:
    """Soft stripes."""
    return face.mix(0.5 + 0.5 * face.wave(face.u, 0.16)) * (1 + 0.06 * face.speckle(0.006))[:, None]


def plaid(face: Face) -> Floats:
    """Checks of two colours."""
    return face.mix(0.5 + 0.25 * (np.sign(face.wave(face.u, 0.22)) + np.sign(face.wave(face.v, 0.22))))


def floral(face: Face) -> Floats:
    """Blots of the accent."""
    return face.mix(np.clip(face.noise(0.8, 0.8) * 3 - 1, 0, 1)) * (1 + 0.08 * face.speckle(0.006))[:, None]


def tiles(face: Face, size: float = 0.3) -> Floats:
    """Square tiles with joints in the accent."""
    row, column = np.floor(face.v / size), np.floor(face.u / size)
    line = 1 - _within(face.v / size - row, 0.03, 1) * _within(face.u / size - column, 0.03, 1)
    albedo = face.mix(line * face.fade(0.1 * size + 0.01))
    return albedo * (0.92 + 0.16 * hash_of(row, column) + 0.03 * face.noise(1, 1))[:, None]


def small_tiles(face: Face) -> Floats:
    """Tiles of 12 cm."""
    return tiles(face, size=0.12)


def granite(face: Face) -> Floats:
    """Speckled stone."""
    return face.mix(np.clip(0.35 + 0.35 * face.noise(0.4, 0.4) + 0.4 * face.speckle(0.008), 0, 1))


def folds(face: Face) -> Floats:
    """Cloth that hangs in folds."""
    bend = face.u + 0.01 * face.noise(2, 4)
    return face.shade(0.78 + 0.22 * face.wave(bend, 0.13) + 0.06 * face.noise(3, 6))


def patterned_folds(face: Face) -> Floats:
    """Folds with dots in the accent."""
    dots = _within(face.wave(face.u, 0.14) + face.wave(face.v, 0.14), 0.9, 3)
    return face.mix(dots) * (0.82 + 0.18 * face.wave(face.u, 0.13))[:, None]


def slats(face: Face) -> Floats:
    """Blinds: slats with two cords."""
    phase = face.v / 0.05 - np.floor(face.v / 0.05)
    lines = np.where(phase < 0.25, 0.45, 0.8 + 0.3 * phase)
    seen = face.fade(0.04)
    cord = _within(np.abs(face.s - 0.5), 0.3, 0.31)
    return face.shade((lines * seen + 0.85 * (1 - seen)) * (1 - 0.3 * cord))


def books(face: Face) -> Floats:
    """Spines of many colours side by side, of uneven height."""
    spine = np.floor(face.u / 0.034 + 0.4 * np.sin(face.u * 31))
    level = np.floor(face.offset * 97) + 0 * spine
    hue = hash_of(spine, level)
    albedo = SPINES[(hue * 5.99).astype(int)] * 0.75 + 0.25 * face.colour
    gap = _within(face.t, 0.8 + 0.25 * hash_of(spine, level + 1), 2)
    band = _within(face.t, 0.62, 0.72) * (hash_of(spine, level + 2) > 0.5)
    return np.asarray(albedo * (1 - 0.85 * gap)[:, None] + 0.2 * band[:, None], np.float32)


def panels(face: Face) -> Floats:
    """Cupboard doors about 45 cm wide, each with a sunken panel and a handle."""
    return _doors(face, max(1, round(face.width / 0.45)), 1)


def door(face: Face) -> Floats:
    """One door with three panels and a knob."""
    return _doors(face, 1, 3, knob=0.92)


def drawers(face: Face) -> Floats:
    """Drawers with knobs, two columns where it is wide."""
    return _doors(face, max(1, round(face.width / 0.7)), max(2, round(face.height / 0.24)))


def _doors(face: Face, columns: int, rows: int, knob: float = 0.5) -> Floats:
    x, y = face.s * columns, face.t * rows
    x, y = x - np.floor(x), y - np.floor(y)
    wide, high = face.width / columns, face.height / rows
    from_edge = np.minimum(np.minimum(x, 1 - x) * wide, np.minimum(y, 1 - y) * high)
    gap, groove = _within(from_edge, -1, 0.008), _within(from_edge, 0.055, 0.07)
    handle = _within(np.hypot((x - knob) * wide, (y - 0.5) * high), -1, 0.022)
    if columns * rows > 3 and rows == 1:
        handle = _within(np.abs(x - 0.9) * wide, -1, 0.012) * _within(np.abs(y - 0.6) * high, -1, 0.06)
    shade = (1 + 0.1 * face.noise(0.4, 2.5)) * (1 - 0.65 * gap - 0.35 * groove)
    return face.shade(shade) * (1 - handle)[:, None] + face.accent * handle[:, None]


def pane(face: Face) -> Floats:
    """A window: white frame and bars, behind it sky above trees."""
    frame = np.maximum(_edge(face, 0.06), np.maximum(_within(face.s, 0.48, 0.52), _within(face.t, 0.48, 0.51)))
    trees = np.clip((0.35 + 0.08 * face.noise(1.5, 1.5) - face.t) * 12, 0, 1)[:, None]
    outside = face.colour * (1 - trees) + np.array([0.1, 0.16, 0.06], np.float32) * trees
    return np.where(frame[:, None] > 0, np.float32(0.45), outside).astype(np.float32)


def poster(face: Face) -> Floats:
    """A frame in the accent, a pale margin and a picture inside."""
    frame, margin = _edge(face, 0.035), _edge(face, 0.08)
    blobs = np.stack([face.noise(scale, scale) for scale in (1.1, 1.3, 1.7)], 1)
    picture = np.clip(face.colour * (1 + 0.8 * np.sign(blobs[:, :1]) * np.abs(blobs[:, :1]) ** 0.3) + 0.08 * blobs, 0.01, 0.9)
    albedo = np.where(margin[:, None] > 0, np.float32(0.7), picture)
    return np.asarray(np.where(frame[:, None] > 0, face.accent, albedo), np.float32)


def screen(face: Face) -> Floats:
    """A dark screen with some shine, in a bezel."""
    bezel = _edge(face, 0.03)
    shine = 0.02 + 0.06 * np.clip(face.s + face.t - 0.9, 0, 1) + 0.015 * face.noise(3, 3)
    return np.where(bezel[:, None] > 0, face.accent, face.colour + shine[:, None]).astype(np.float32)


def glass(face: Face) -> Floats:
    """A mirror: blurred light and dark bands of a room that is not there, in a frame."""
    room = 0.75 + 0.25 * np.tanh(3 * face.noise(5, 5)) + 0.35 * (face.t - 0.5)
    streak = 0.15 * _within(face.s + 0.6 * face.t, 0.7, 0.8)
    return np.where(_edge(face, 0.03)[:, None] > 0, face.accent, face.shade(room + streak)).astype(np.float32)


def scribble(face: Face) -> Floats:
    """A whiteboard with writing on it, in a metal frame."""
    line = np.floor(face.v / 0.11)
    wiggle = 0.02 * np.sin(face.u * 90 + 9 * line) + 0.03 * np.sin(face.u * 23 + line)
    ink = _within(np.abs(face.v - (line + 0.5) * 0.11 - wiggle), -1, 0.006) * (hash_of(line, np.floor(face.u / 0.35)) > 0.55)
    ink *= _within(face.t, 0.3, 0.9) * face.fade(0.02)
    albedo = face.shade(1 - 0.75 * ink)
    return np.where(_edge(face, 0.03)[:, None] > 0, face.accent, albedo).astype(np.float32)


def rug(face: Face) -> Floats:
    """A bordered rug with a medallion."""
    border = _edge(face, 0.14) - _edge(face, 0.06)
    diamond = np.abs(face.s - 0.5) + np.abs(face.t - 0.5)
    pattern = np.clip(border + (np.cos(diamond * 40) > 0.3) * 0.7, 0, 1).astype(np.float32)
    return face.mix(pattern) * (1 + 0.18 * face.speckle(0.012))[:, None]


def text(face: Face) -> Floats:
    """Paper with lines of print."""
    line = (np.cos(face.v * 2 * np.pi / 0.02) > 0.3) * _within(face.s, 0.1, 0.88) * _within(face.t, 0.1, 0.9)
    return face.shade(1 - 0.45 * line * np.maximum(face.fade(0.02), 0.35))


def cardboard(face: Face) -> Floats:
    """A carton with a strip of tape in the accent."""
    tape = _within(np.abs(face.s - 0.5) * face.width, -1, 0.03)
    return face.mix(0.7 * tape) * (1 + 0.08 * face.noise(1, 1))[:, None]


def fridge(face: Face) -> Floats:
    """Two doors, one above the other, with long handles."""
    seam = _within(np.abs(face.t - 0.68) * face.height, -1, 0.008)
    handle = _within(face.s, 0.08, 0.12) * (_within(face.t, 0.35, 0.62) + _within(face.t, 0.72, 0.9))
    return face.shade((1 - 0.7 * seam) * (1 + 0.04 * face.noise(2, 4))) * (1 - 0.75 * handle)[:, None]


def leaves(face: Face) -> Floats:
    """Foliage."""
    return face.shade(np.clip(0.9 + 0.5 * face.noise(0.25, 0.25) + 0.4 * face.speckle(0.02), 0.15, 2))


def crumpled(face: Face) -> Floats:
    """A heap of cloth of two colours."""
    return face.mix(np.clip(np.sign(face.noise(1.5, 1.5)), 0, 1) * 0.8) * (1 + 0.25 * face.noise(0.5, 0.5))[:, None]


Texture = Callable[[Face], Floats]

FRONT_TEXTURES: dict[str, tuple[Texture, Texture]] = {
    "panels": (panels, wood),
    "door": (door, wood),
    "drawers": (drawers, wood),
    "pane": (pane, plain),
    "poster": (poster, plain),
    "screen": (screen, plain),
    "glass": (glass, plain),
    "scribble": (scribble, plain),
    "fridge": (fridge, plain),
    "books": (books, fabric),
    "slats": (slats, plain),
}
"""Textures that belong on the front of a thing, each with the one its other faces have."""

TEXTURES: dict[str, Texture] = {
    "plain": plain,
    "fabric": fabric,
    "carpet": carpet,
    "wood": wood,
    "planks": planks,
    "stripes": stripes,
    "plaid": plaid,
    "floral": floral,
    "tiles": tiles,
    "small_tiles": small_tiles,
    "granite": granite,
    "folds": folds,
    "patterned_folds": patterned_folds,
    "rug": rug,
    "text": text,
    "cardboard": cardboard,
    "leaves": leaves,
    "crumpled": crumpled,
}
"""Textures that all faces of a thing have."""
