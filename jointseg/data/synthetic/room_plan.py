"""A whole room drawn from a seed: its size, kind, camera, walls and furniture.

Not here: how furniture finds its place (furnisher.py), the picture (light.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jointseg.data.synthetic.fine_classes import fine_label
from jointseg.data.synthetic.furnisher import Furnisher, Part
from jointseg.data.synthetic.looks import LOOKS
from jointseg.data.synthetic.paint import Paint, draw_paint
from jointseg.data.synthetic.ray_cast import SHELL, Camera, Floats
from jointseg.data.synthetic.recipes import RECIPES

GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class Plan:
    """A furnished room.

    Attributes:
        room: (3,) its size in metres.
        shell: the paints of its six inner faces, in the order of `ray_cast.SHELL`.
        parts: its furniture.
        camera: what looks at it.
        tilt: roll, yaw and pitch of the camera, radians.
    """

    room: Floats
    shell: tuple[Paint, ...]
    parts: list[Part]
    camera: Camera
    tilt: tuple[float, float, float]


def room_kind(seed: int, index: int) -> str:
    """The kind of a room. Golden-ratio steps keep the shares even in short runs and need no other room."""
    start = np.random.default_rng(seed).random()
    ends = np.cumsum([recipe.share for recipe in RECIPES.values()])
    return list(RECIPES)[int(np.searchsorted(ends, (start + index * GOLDEN_RATIO) % 1 * ends[-1], side="right"))]


def shell_label(face: int) -> int:
    """The fine label of an inner face of the room."""
    return fine_label(SHELL[face] if SHELL[face] in ("floor", "ceiling") else "wall")


def plan_room(rng: np.random.Generator, *, kind: str) -> Plan:
    """Draws a room of this kind and furnishes it."""
    recipe = RECIPES[kind]
    nearest, farthest = (2.0, 3.0) if kind == "bathroom" else (2.0, 7.6)
    ahead = nearest * (farthest / nearest) ** rng.uniform(0, 1)
    long = ahead + rng.uniform(0.2, 1.2)
    wide = float(np.clip(long * rng.uniform(0.75, 1.15), 2.5, 6.0))
    room = np.array([wide, long, rng.uniform(2.4, 2.9)], np.float32)
    eye = np.array([wide * rng.uniform(0.28, 0.72), long - ahead, rng.uniform(1.2, 1.6)], np.float32)
    yaw = float(np.arctan2(eye[0] - wide * rng.uniform(0.25, 0.75), long - eye[1]) + rng.uniform(-0.35, 0.35))
    pitch, roll = float(rng.normal(-0.2, 0.08)), float(rng.normal(0, 0.025))
    camera = Camera.looking(eye, yaw=yaw, pitch=pitch, roll=roll)
    furnisher = Furnisher(rng, room=room, camera=camera, yaw=yaw)
    for step in recipe.steps:
        furnisher.follow(step)
    walls, floor, ceiling = (draw_paint(rng, LOOKS[rng.choice(looks)]) for looks in (recipe.walls, recipe.floors, ("ceiling",)))
    return Plan(room, (walls,) * 4 + (floor, ceiling), furnisher.parts, camera, (roll, yaw, pitch))
