"""What belongs in each kind of room, and where, as data.

Not here: the things themselves (furniture.py), how places are found (furnisher.py).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jointseg.data.synthetic.furniture import Span

How = Literal["wall", "hang", "free", "beside", "front", "around", "on", "over", "cover", "flank", "ceiling"]


class Step(NamedTuple):
    """Put `what` somewhere.

    `how`: against a `wall`; `hang` on one; `free` on the floor; on the `ceiling`. Or by the last thing called `of`:
    `beside` it at the wall, in `front` facing it, `around` it, `on` top, `over` it at the wall, `cover` it, at both `flank`s.
    `height` is that of the lower edge, metres, for what hangs; with `over` it counts from the top of `of`.
    """

    what: str
    how: How
    of: str = ""
    chance: float = 1.0
    times: tuple[int, int] = (1, 1)
    height: Span = (1.2, 1.5)
    y: Span | None = None
    """With `on`: where from back to front of `of`, as fractions; its own `top` where None."""


class Recipe(NamedTuple):
    """One kind of room: its share of all rooms, looks of its shell, and its steps in order."""

    share: float
    floors: tuple[str, ...]
    walls: tuple[str, ...]
    steps: tuple[Step, ...]


WINDOW = (
    Step("window", "hang", chance=0.65, height=(0.85, 1.0)),
    Step("blinds", "cover", "window", chance=0.45),
    Step("curtain", "flank", "window", chance=0.6),
)
LEFTOVERS = (
    Step("door", "wall", chance=0.85),
    Step("box", "free", chance=0.25),
    Step("bookshelf", "wall", chance=0.25),
    Step("shelves", "wall", chance=0.3),
    Step("cabinet", "wall", chance=0.4),
    Step("fireplace", "wall", chance=0.08),
    Step("bench", "wall", chance=0.2),
    Step("plant", "wall", chance=0.3),
    Step("cube", "hang", chance=0.25, height=(1.6, 1.9)),
    Step("bag", "free", chance=0.4),
    Step("garbage bin", "wall", chance=0.4),
    Step("person", "free", chance=0.02),
    Step("ceiling light", "ceiling", chance=0.5),
    Step("air vent", "hang", chance=0.25, height=(2.0, 2.15)),
    Step("switch", "hang", chance=0.6, height=(1.1, 1.2)),
    Step("column", "wall", chance=0.1),
    Step("oddment", "free", chance=0.3),
    Step("picture", "hang", chance=0.6, times=(1, 3)),
)

RECIPES: dict[str, Recipe] = {
    "bedroom": Recipe(0.27, ("carpet", "carpet", "planks"), ("wall",), (
        Step("bed", "wall"),
        Step("pillow", "on", "bed", times=(2, 3), y=(0.03, 0.06)),
        Step("clothes", "on", "bed", chance=0.35),
        Step("night stand", "beside", "bed", chance=0.85, times=(1, 2)),
        Step("lamp", "on", "night stand", chance=0.8),
        Step("cube", "on", "night stand", chance=0.5),
        Step("picture", "over", "bed", chance=0.6, height=(0.25, 0.5)),
        *WINDOW,
        Step("floor mat", "front", "bed", chance=0.35),
        Step("dresser", "wall", chance=0.85),
        Step("television", "on", "dresser", chance=0.6),
        Step("mirror", "over", "dresser", chance=0.45, height=(0.1, 0.3)),
        Step("bottle", "on", "dresser", chance=0.6, times=(1, 3)),
        Step("bookshelf", "wall", chance=0.25),
        Step("desk", "wall", chance=0.2),
        Step("chair", "front", "desk", chance=0.8),
        Step("book pile", "on", "desk", chance=0.6),
        Step("hung clothes", "hang", chance=0.35, times=(1, 2), height=(0.8, 1.0)),
        Step("clothes", "free", chance=0.2),
        Step("bench", "free", chance=0.15),
        *LEFTOVERS,
    )),
    "living_room": Recipe(0.2, ("planks", "carpet"), ("wall",), (
        Step("sofa", "wall"),
        Step("pillow", "on", "sofa", chance=0.9, times=(1, 3), y=(0.36, 0.42)),
        Step("coffee table", "front", "sofa", chance=0.8),
        Step("floor mat", "front", "sofa", chance=0.5),
        Step("book pile", "on", "coffee table", chance=0.5),
        Step("bottle", "on", "coffee table", chance=0.4),
        Step("papers", "on", "coffee table", chance=0.3),
        Step("picture", "over", "sofa", chance=0.7, height=(0.3, 0.6)),
        Step("fireplace", "wall", chance=0.25),
        Step("bottle", "on", "fireplace", chance=0.7, times=(1, 3)),
        Step("tv stand", "wall", chance=0.7),
        Step("television", "on", "tv stand", chance=0.95),
        *WINDOW,
        Step("bookshelf", "wall", chance=0.5),
        Step("floor lamp", "wall", chance=0.4),
        Step("armchair", "free", chance=0.5),
        Step("bench", "free", chance=0.25),
        Step("plant", "wall", chance=0.35),
        Step("cabinet", "wall", chance=0.25),
        *LEFTOVERS,
    )),
    "kitchen": Recipe(0.18, ("floor tiles", "planks"), ("wall",), (
        Step("sink counter", "wall"),
        Step("wall cabinet", "over", "sink counter", chance=0.75, height=(0.5, 0.6)),
        Step("stove", "beside", "sink counter", chance=0.7),
        Step("counter", "beside", "sink counter", chance=0.8),
        Step("refridgerator", "wall", chance=0.85),
        Step("counter", "wall", chance=0.5),
        Step("wall cabinet", "over", "counter", chance=0.7, height=(0.5, 0.6)),
        Step("bottle", "on", "counter", chance=0.7, times=(1, 3)),
        Step("bowl", "on", "counter", chance=0.5),
        Step("cube", "on", "counter", chance=0.6),
        Step("towel", "hang", chance=0.25, height=(0.9, 1.1)),
        *WINDOW,
        Step("dining table", "free", chance=0.35),
        Step("chair", "around", "dining table", times=(2, 4)),
        Step("bowl", "on", "dining table", chance=0.6),
        Step("cabinet", "wall", chance=0.4),
        Step("shelves", "wall", chance=0.25),
        Step("wall paper", "hang", chance=0.4, times=(1, 3)),
        *LEFTOVERS,
    )),
    "bathroom": Recipe(0.13, ("floor tiles",), ("wall tiles", "wall"), (
        Step("bathtub", "wall", chance=0.65),
        Step("vanity", "wall"),
        Step("mirror", "over", "vanity", chance=0.95, height=(0.25, 0.4)),
        Step("bottle", "on", "vanity", chance=0.9, times=(2, 3)),
        Step("toilet", "wall"),
        Step("bathtub", "wall", chance=0.5),
        Step("shower curtain", "front", "bathtub", chance=0.8),
        Step("towel", "hang", chance=0.9, times=(1, 2), height=(0.9, 1.2)),
        Step("bath mat", "free", chance=0.7),
        Step("cabinet", "wall", chance=0.3),
        Step("window", "hang", chance=0.3, height=(1.1, 1.2)),
        Step("blinds", "cover", "window", chance=0.5),
        Step("garbage bin", "wall", chance=0.5),
        Step("clothes", "free", chance=0.15),
        Step("door", "wall", chance=0.5),
        Step("picture", "hang", chance=0.3),
        Step("ceiling light", "ceiling", chance=0.3),
    )),
    "office": Recipe(0.15, ("carpet", "carpet", "planks"), ("wall",), (
        Step("desk", "wall", times=(1, 2)),
        Step("monitor", "on", "desk", chance=0.9),
        Step("keyboard", "on", "desk", chance=0.5),
        Step("papers", "on", "desk", chance=0.8),
        Step("book pile", "on", "desk", chance=0.5),
        Step("lamp", "on", "desk", chance=0.3),
        Step("office chair", "front", "desk", chance=0.95),
        Step("whiteboard", "hang", chance=0.75, height=(0.95, 1.1)),
        Step("wall paper", "hang", chance=0.9, times=(2, 5)),
        Step("bookshelf", "wall", chance=0.7),
        Step("shelves", "wall", chance=0.55),
        *WINDOW,
        Step("cabinet", "wall", chance=0.35),
        Step("office chair", "free", chance=0.4),
        Step("box", "free", chance=0.5, times=(1, 2)),
        Step("person", "free", chance=0.1),
        *LEFTOVERS,
    )),
    "dining_room": Recipe(0.07, ("planks", "carpet"), ("wall",), (
        Step("dining table", "free"),
        Step("chair", "around", "dining table", times=(3, 4)),
        Step("bowl", "on", "dining table", chance=0.7),
        Step("bottle", "on", "dining table", chance=0.7, times=(1, 2)),
        Step("cabinet", "wall", chance=0.8),
        *WINDOW,
        Step("shelves", "wall", chance=0.3),
        Step("plant", "wall", chance=0.4),
        Step("floor lamp", "wall", chance=0.3),
        *LEFTOVERS,
    )),
}  # fmt: skip
"""Kinds of room by NYU's scene type."""
