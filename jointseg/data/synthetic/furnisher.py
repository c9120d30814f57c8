"""Finds free places for furniture in a room, one recipe step after another.

Not here: the recipes (recipes.py), what things are made of (furniture.py), the room itself (room_plan.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jointseg.data.synthetic.fine_classes import fine_label
from jointseg.data.synthetic.furniture import FURNITURE, Block, Furniture
from jointseg.data.synthetic.looks import LOOKS
from jointseg.data.synthetic.paint import Paint, draw_paint
from jointseg.data.synthetic.ray_cast import Camera, Floats, Solid
from jointseg.data.synthetic.recipes import Step

CLEARANCE = 0.6
"""Nothing stands nearer to the camera than this, metres."""
VIEW = 0.45
"""Half the angle in which places are looked for first, radians."""
TRIES = 36
FLAT = 0.03
"""Things lower than this (rugs, papers) may lie under or on others, metres."""


@dataclass(frozen=True)
class Part:
    """One solid of one thing: its fine label, its paint, and the number of the thing."""

    solid: Solid
    label: int
    paint: Paint
    thing: int


@dataclass(frozen=True)
class Place:
    """A box that stands in the room: middle of its back's lower edge, turn about z (radians), width, depth, height (metres)."""

    foot: Floats
    turn: float
    size: Floats

    def axes(self) -> Floats:
        """Its axes in the world, one a column: along its width, to its front, up."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)

    def world(self, x: float, y: float, z: float) -> Floats:
        """The point `x` along its width from the middle, `y` in front of its back, `z` above its foot."""
        return np.asarray(self.foot + self.axes() @ np.array([x, y, z], np.float32), np.float32)

    def bounds(self) -> tuple[Floats, Floats]:
        """Its lowest and highest coordinates in the world, (3,) each."""
        w, d, h = (float(side) for side in self.size)
        corners = np.stack([self.world(x, y, z) for x in (-w / 2, w / 2) for y in (0, d) for z in (0, h)])
        return corners.min(0), corners.max(0)


@dataclass(frozen=True)
class Thing:
    """What stands at a place: its kind, its paints by slot."""

    kind: Furniture
    place: Place
    paints: dict[str, Paint]


class Furnisher:
    """A room while it fills. Follow the steps in order, then take `parts`."""

    def __init__(self, rng: np.random.Generator, *, room: Floats, camera: Camera, yaw: float) -> None:
        self.parts: list[Part] = []
        self._rng, self._room, self._yaw = rng, room, yaw
        self._eye = camera.position
        self._last: dict[str, Thing] = {}
        self._bounds: list[tuple[Floats, Floats]] = []

    def follow(self, step: Step) -> None:
        """Puts the step's things where there is room; what finds none is left out."""
        rng = self._rng
        wanted = rng.random() < step.chance
        if not wanted or (step.of and step.of not in self._last):
            return
        by = self._last.get(step.of)
        count = 2 if step.how == "flank" else int(rng.integers(step.times[0], step.times[1] + 1))
        for number in range(count):
            kind = FURNITURE[step.what]
            size = np.array([rng.uniform(*span) for span in (kind.width, kind.depth, kind.height)], np.float32)
            place = self._find(step, size, by, number / count)
            if place is not None:
                self._put(step.what, place, by if step.how == "on" else None)

    def _find(self, step: Step, size: Floats, by: Thing | None, turn_taken: float) -> Place | None:
        for attempt in range(TRIES):
            place = self._propose(step, size, by, turn_taken)
            beside_parent = None if by is None else by.place.bounds()
            if self._is_free(place, beside_parent) and (attempt > 5 * TRIES / 6 or self._in_view(place)):
                return place
        return None

    def _propose(self, step: Step, size: Floats, by: Thing | None, turn_taken: float) -> Place:
        place = self._propose_alone(step, size) if by is None else self._propose_by(step, size, by, turn_taken)
        height = min(float(place.size[2]), float(self._room[2] - place.foot[2]) - 0.01)
        return Place(place.foot, place.turn, np.array([place.size[0], place.size[1], height], np.float32))

    def _propose_alone(self, step: Step, size: Floats) -> Place:
        rng, (wide, long, high) = self._rng, (float(side) for side in self._room)
        front = float(self._eye[1]) + 0.2
        if step.how in ("free", "ceiling"):
            foot = [rng.uniform(0.3, wide - 0.3), rng.uniform(front + 0.5, long - 0.5), 0.0]
            if step.how == "ceiling":
                foot[2] = high - size[2] - 0.011
                return Place(np.array(foot, np.float32), 0.0, size)
            return Place(np.array(foot, np.float32), rng.choice(4) * np.pi / 2 + rng.normal(0, 0.3), size)
        lean_left = float(np.sin(self._yaw))
        weights = np.array([1.0, 0.5 + 2 * max(lean_left, 0), 0.5 + 2 * max(-lean_left, 0)])
        wall = rng.choice(3, p=weights / weights.sum())
        along = rng.uniform(size[0] / 2, (wide if wall == 0 else long) - size[0] / 2) if size[0] < wide else wide / 2
        gap = 0.002 if step.how == "hang" or size[1] < 0.1 else rng.uniform(0.005, 0.04)
        x, y, turn = ((along, long - gap, np.pi), (gap, along, -np.pi / 2), (wide - gap, along, np.pi / 2))[wall]
        z = rng.uniform(*step.height) if step.how == "hang" else 0.0
        return Place(np.array([x, y, z], np.float32), turn, size)

    def _propose_by(self, step: Step, size: Floats, by: Thing, turn_taken: float) -> Place:
        if step.how in ("front", "around", "on"):
            return self._propose_near(step, size, by, turn_taken)
        rng, place = self._rng, by.place
        w, d, h = (float(side) for side in size)
        pw, pd, ph = (float(side) for side in place.size)
        x, y, z = 0.0, -0.003, 0.0
        match step.how:
            case "beside":
                x = rng.choice((-1, 1)) * (pw / 2 + w / 2 + rng.uniform(0.005, 0.05))
                y = 0.0
            case "over":
                x, z = rng.normal(0, 0.08), ph + rng.uniform(*step.height)
            case "cover":
                size = np.array([pw * 1.06, d, ph * rng.uniform(0.5, 1.08)], np.float32)
                y, z = pd, ph * 1.04 - float(size[2])
            case _:
                assert step.how == "flank"
                x, y = (pw / 2 + w * 0.3) * (1 if turn_taken else -1), pd + 0.05
                z = max(ph + 0.12 - h, 0.03 - float(place.foot[2]))
        return Place(place.world(x, y, z), place.turn, size)

    def _propose_near(self, step: Step, size: Floats, by: Thing, turn_taken: float) -> Place:
        rng, place = self._rng, by.place
        w, d, h = (float(side) for side in size)
        pw, pd, ph = (float(side) for side in place.size)
        x, y, z, turn = 0.0, 0.0, 0.0, 0.0
        match step.how:
            case "front" if step.what == "shower curtain":
                x, y, z = rng.uniform(-0.3, 0.3) * pw, pd - 0.013, 0.12
            case "front" if h < FLAT:
                x, y = rng.uniform(-0.3, 0.3) * pw, pd + 0.1
            case "front":
                gap = -0.05 if "chair" in step.what else 0.15
                x, y, turn = rng.uniform(-0.15, 0.2) * pw, pd + d + gap, np.pi + rng.normal(0, 0.1)
            case "around":
                side = round(turn_taken * 4) % 4
                quarter = side * np.pi / 2
                reach = (pd if side % 2 == 0 else pw) / 2 + rng.uniform(-0.15, 0.1) + d
                shift = rng.uniform(-0.2, 0.2)
                x = shift * np.cos(quarter) - reach * np.sin(quarter)
                y = pd / 2 + shift * np.sin(quarter) + reach * np.cos(quarter)
                turn = quarter + np.pi + rng.normal(0, 0.12)
            case _:
                assert step.how == "on"
                (left, right), back_to_front, top = by.kind.top
                start = left + turn_taken * (right - left)
                x = (rng.uniform(start, start + (right - left) / step.times[1]) - 0.5) * max(pw - w, 0)
                y = rng.uniform(*(step.y or back_to_front)) * max(pd - (0 if step.y else d), 0)
                z, turn = top * ph + 0.001, rng.normal(0, 0.08)
        return Place(place.world(x, y, z), place.turn + turn, size)

    def _in_view(self, place: Place) -> bool:
        x, y = (sum(place.bounds()) / 2 - self._eye)[:2]
        return bool(abs(np.arctan2(-x, y) - self._yaw) < VIEW)

    def _is_free(self, place: Place, by: tuple[Floats, Floats] | None) -> bool:
        low, high = place.bounds()
        if (low < -0.02).any() or (high > self._room + 0.02).any():
            return False
        if place.size[2] < FLAT:
            return True
        nearest = np.clip(self._eye[:2], low[:2], high[:2])
        if np.hypot(*(nearest - self._eye[:2])) < CLEARANCE and high[2] > 0.1:
            return False
        for other_low, other_high in self._bounds:
            if by is not None and np.array_equal(other_low, by[0]):
                continue
            if (low < other_high - 0.01).all() and (high > other_low + 0.01).all():
                return False
        return True

    def _put(self, name: str, place: Place, on: Thing | None) -> None:
        rng, kind = self._rng, FURNITURE[name]
        paints: dict[str, Paint] = {}
        blended = rng.random() < kind.blend
        for slot, looks in kind.looks.items():
            like = None
            if kind.alike and kind.alike[0] == slot and rng.random() < 0.4:
                like = paints[kind.alike[1]]
            if blended and on is not None:
                like = on.paints.get("cover") or next(iter(on.paints.values()))
            paints[slot] = draw_paint(rng, LOOKS[rng.choice(looks)], like=like)
        label = str(rng.choice(kind.labels))
        number = len(self._bounds)
        for block in kind.blocks:
            name_here = block.label or label
            self.parts.append(Part(_solid(block, place), fine_label(name_here), paints[block.slot], number))
        self._bounds.append(place.bounds())
        self._last[name] = Thing(kind, place, paints)


def _solid(block: Block, place: Place) -> Solid:
    low = np.array([block.x[0] - 0.5, block.y[0], block.z[0]], np.float32) * place.size
    high = np.array([block.x[1] - 0.5, block.y[1], block.z[1]], np.float32) * place.size
    middle = (low + high) / 2
    lean = np.deg2rad(block.lean)
    back = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]], np.float32)
    half = np.maximum((high - low) / 2, 0.001)
    return Solid(place.world(*(float(m) for m in middle)), half, place.axes() @ back, block.shape)
