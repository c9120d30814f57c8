"""Furniture as data: what each thing is made of, how large it is, and which looks its parts may have.

Not here: the looks (looks.py), where things stand (recipes.py, furnisher.py).
"""

# Blocks are given in fractions of the thing's box: x along its width, y from its back to its front, z up.

from __future__ import annotations

from typing import NamedTuple

from jointseg.data.synthetic.looks import WOODS
from jointseg.data.synthetic.ray_cast import Shape

Span = tuple[float, float]


class Block(NamedTuple):
    """One solid of a thing. `label`: a fine class of its own; `lean`: degrees its top leans back."""

    slot: str
    x: Span = (0.0, 1.0)
    y: Span = (0.0, 1.0)
    z: Span = (0.0, 1.0)
    shape: Shape = "box"
    label: str = ""
    lean: float = 0.0


class Furniture(NamedTuple):
    """A thing: its fine classes, sizes in metres, looks for each slot, blocks, and where things are put on it."""

    labels: tuple[str, ...]
    width: Span
    depth: Span
    height: Span
    looks: dict[str, tuple[str, ...]]
    blocks: tuple[Block, ...] = (Block("body"),)
    blend: float = 0.0
    """Chance that it takes the colour of what it lies on."""
    alike: tuple[str, str] | None = None
    """A slot that often takes the colour of another one."""
    top: tuple[Span, Span, float] = ((0.08, 0.92), (0.1, 0.9), 1.0)


def legs(slot: str, top: float, thick: float = 0.07) -> tuple[Block, ...]:
    """Four legs from the floor to `top`."""
    ends = ((0.0, thick), (1 - thick, 1.0))
    return tuple(Block(slot, x, y, (0.0, top)) for x in ends for y in ends)


def boards(num_shelves: int, *, filling: str, back: bool) -> tuple[Block, ...]:
    """A frame with shelves; each holds a row of `filling` (books or boxes), set back from the edge."""
    frame = [Block("body", (0.0, 0.04)), Block("body", (0.96, 1.0)), Block("body", z=(0.98, 1.0))]
    if back:
        frame.append(Block("body", y=(0.0, 0.06)))
    for k in range(num_shelves):
        low = 0.04 + 0.95 * k / num_shelves
        high = low + 0.95 / num_shelves
        frame.append(Block("body", z=(low - 0.025, low)))
        end = 0.95 - 0.45 * ((5 * k + 3) % 7) / 7
        if filling == "books":
            frame.append(Block("books", (0.05, end), (0.08, 0.75), (low, high - 0.06), label="books"))
        else:
            frame.append(Block("box", (0.08, 0.4), (0.15, 0.85), (low, high - 0.09), label=filling))
            frame.append(Block("prop", (0.55, 0.55 + end / 4), (0.2, 0.7), (low, high - 0.12), "cylinder", "jar"))
    return tuple(frame)


SOFA = (
    *(Block("body", x, (0.0, 1.0), (0.04, 0.72)) for x in ((0.0, 0.11), (0.89, 1.0))),
    Block("body", (0.1, 0.9), (0.0, 0.95), (0.04, 0.38)),
    *(Block("body", x, (0.28, 1.0), (0.36, 0.54), "cushion") for x in ((0.11, 0.5), (0.5, 0.89))),
    *(Block("body", x, (0.06, 0.36), (0.45, 1.0), "cushion", lean=8) for x in ((0.11, 0.5), (0.5, 0.89))),
    Block("body", (0.02, 0.98), (0.0, 0.16), (0.04, 0.85)),
)
CHAIR = (
    *legs("frame", 0.46),
    Block("seat", z=(0.46, 0.51)),
    *(Block("frame", x, (0.0, 0.08), (0.5, 1.0)) for x in ((0.0, 0.09), (0.91, 1.0))),
    Block("seat", (0.05, 0.95), (0.01, 0.07), (0.66, 0.97)),
)
OFFICE_CHAIR = (
    Block("frame", (0.44, 0.56), (0.44, 0.56), (0.05, 0.45), "cylinder"),
    *(Block("frame", x, y, (0.0, 0.06)) for x, y in (((0.0, 1.0), (0.45, 0.55)), ((0.45, 0.55), (0.0, 1.0)))),
    Block("seat", (0.05, 0.95), (0.1, 1.0), (0.42, 0.52), "cushion"),
    Block("seat", (0.08, 0.92), (0.0, 0.14), (0.55, 1.0), "cushion", lean=8),
)
BASIN = (
    *(Block("body", x, z=(0.0, 0.955)) for x in ((0.0, 0.32), (0.68, 1.0))),
    Block("body", (0.32, 0.68), z=(0.0, 0.78)),
    Block("body", (0.32, 0.68), (0.86, 1.0), (0.7, 0.955)),
    *(Block("top", x, (0.0, 1.04), (0.955, 1.0), label="counter") for x in ((0.0, 0.32), (0.68, 1.0))),
    *(Block("top", (0.32, 0.68), y, (0.955, 1.0), label="counter") for y in ((0.0, 0.16), (0.84, 1.04))),
    *(Block("sink", x, (0.16, 0.84), (0.78, 1.006), label="sink") for x in ((0.32, 0.335), (0.665, 0.68))),
    *(Block("sink", (0.32, 0.68), y, (0.78, 1.006), label="sink") for y in ((0.16, 0.18), (0.82, 0.84))),
    Block("sink", (0.33, 0.67), (0.18, 0.82), (0.76, 0.8), label="sink"),
    Block("tap", (0.485, 0.515), (0.07, 0.11), (1.0, 1.24), "cylinder", "faucet"),
    Block("tap", (0.49, 0.51), (0.07, 0.4), (1.2, 1.24), label="faucet"),
)
PERSON = (
    Block("trousers", (0.1, 0.48), (0.3, 0.75), (0.0, 0.5), "cylinder"),
    Block("trousers", (0.52, 0.9), (0.3, 0.75), (0.0, 0.5), "cylinder"),
    Block("shirt", (0.1, 0.9), (0.15, 0.85), (0.46, 0.83), "cushion"),
    *(Block("shirt", x, (0.3, 0.75), (0.45, 0.81), "cushion") for x in ((-0.08, 0.14), (0.86, 1.08))),
    Block("skin", (0.42, 0.58), (0.4, 0.7), (0.8, 0.88), "cylinder"),
    Block("skin", (0.3, 0.7), (0.2, 0.85), (0.85, 0.995), "ellipsoid"),
    Block("hair", (0.28, 0.72), (0.12, 0.75), (0.89, 1.01), "ellipsoid"),
)

FURNITURE: dict[str, Furniture] = {
    "bed": Furniture(
        ("bed",), (1.0, 1.9), (1.95, 2.1), (0.85, 1.15),
        {"frame": WOODS, "cover": ("duvet", "duvet plaid", "duvet stripes"), "sheet": ("sheet",)},
        (
            Block("frame", y=(0.0, 0.03), label="headboard"),
            Block("frame", (0.02, 0.98), (0.03, 1.0), (0.05, 0.28)),
            Block("sheet", (0.02, 0.98), (0.03, 0.99), (0.28, 0.5)),
            Block("cover", (-0.01, 1.01), (0.32, 1.01), (0.14, 0.54)),
        ),
        top=((0.04, 0.96), (0.5, 0.95), 0.54),
    ),
    "pillow": Furniture(("pillow",), (0.5, 0.7), (0.16, 0.22), (0.34, 0.44),
        {"body": ("cushion", "cushion plain", "cushion plain")},
                        (Block("body", shape="cushion", lean=28),), blend=0.35),
    "sofa": Furniture(("sofa", "couch"), (1.5, 2.3), (0.8, 0.95), (0.75, 0.95),
        {"body": ("sofa", "sofa", "sofa floral")}, SOFA,
                      top=((0.15, 0.85), (0.3, 0.6), 0.54)),
    "armchair": Furniture(("armchair",), (0.8, 0.95), (0.8, 0.9), (0.8, 0.95),
        {"body": ("sofa", "seat dark", "sofa floral")}, SOFA),
    "chair": Furniture(("chair",), (0.42, 0.5), (0.42, 0.5), (0.85, 1.0),
                       {"seat": ("walnut", "cherry", "seat blue", "seat dark"), "frame": ("walnut", "cherry",
                       "black")}, CHAIR),
    "office chair": Furniture(("office chair",), (0.55, 0.65), (0.55, 0.65), (0.9, 1.1),
        {"seat": ("seat blue", "seat dark"), "frame": ("black",)},
                              OFFICE_CHAIR),
    "dining table": Furniture(("dining table",), (1.3, 2.0), (0.8, 1.0), (0.72, 0.78), {"top": WOODS},
        (Block("top", z=(0.94, 1.0)), *legs("top", 0.95))),
    "coffee table": Furniture(("coffee table", "table"), (0.8, 1.2), (0.5, 0.65), (0.38, 0.48), {"top": WOODS},
                              (Block("top", z=(0.9, 1.0)), Block("top", (0.06, 0.94), (0.06, 0.94), (0.3, 0.36)),
                              *legs("top", 0.92))),
    "desk": Furniture(("desk",), (1.2, 1.7), (0.6, 0.75), (0.72, 0.77),
        {"top": ("oak", "cherry"), "side": ("cherry drawers", "walnut drawers")},
                      (Block("top", z=(0.95, 1.0)), Block("side", (0.0, 0.3), (0.03, 0.96), (0.0, 0.95)),
                      Block("top", (0.96, 1.0), z=(0.0, 0.95)),
                       Block("top", (0.3, 0.96), (0.03, 0.06), (0.4, 0.95)))),
    "cabinet": Furniture(("cabinet",), (0.8, 1.6), (0.4, 0.55), (0.8, 1.9),
        {"body": ("oak doors", "cherry doors", "white doors")}),
    "wall cabinet": Furniture(("kitchen cabinet",), (1.2, 2.4), (0.32, 0.38), (0.65, 0.8),
        {"body": ("oak doors", "cherry doors", "white doors")}),
    "counter": Furniture(("cabinet",), (1.4, 2.8), (0.58, 0.65), (0.88, 0.94),
                         {"body": ("oak doors", "cherry doors", "white doors"), "top": ("granite", "counter cream")},
                         (Block("body", z=(0.0, 0.955)), Block("top", y=(0.0, 1.04), z=(0.955, 1.0), label="counter"),
                         Block("top", y=(0.0, 0.04), z=(1.0, 1.14), label="counter"))),
    "sink counter": Furniture(("cabinet",), (1.3, 1.9), (0.56, 0.65), (0.84, 0.92),
                              {"body": ("oak doors", "white doors", "cherry doors"), "top": ("granite", "counter cream"),
                               "sink": ("steel", "porcelain", "counter cream"), "tap": ("metal",)}, BASIN, alike=("sink",
                                   "top"), top=((0.02, 0.98), (0.02, 0.12), 1.0)),
    "vanity": Furniture(("cabinet",), (0.8, 1.15), (0.48, 0.56), (0.8, 0.88),
                        {"body": ("oak doors", "white doors", "cherry doors"), "top": ("granite", "counter cream"),
                         "sink": ("porcelain", "porcelain", "counter cream"), "tap": ("metal",)}, BASIN, alike=("sink",
                             "top"), top=((0.02, 0.98), (0.02, 0.12), 1.0)),
    "refridgerator": Furniture(("refridgerator",), (0.7, 0.9), (0.65, 0.75), (1.65, 1.85),
        {"body": ("fridge white", "fridge white", "fridge steel")}),
    "stove": Furniture(("stove",), (0.6, 0.76), (0.62, 0.66), (0.9, 0.95),
        {"body": ("white", "black"), "glass": ("screen",), "top": ("black",)},
                       (Block("body", z=(0.0, 0.98)), Block("top", z=(0.98, 1.0)),
                       Block("glass", (0.12, 0.88), (1.0, 1.015), (0.25, 0.65)))),
    "bookshelf": Furniture(("bookshelf",), (0.8, 1.6), (0.28, 0.36), (1.5, 2.1), {"body": WOODS, "books": ("books",)},
                           boards(5, filling="books", back=True)),
    "shelves": Furniture(("shelves",), (0.8, 1.4), (0.35, 0.5), (1.4, 2.0),
                         {"body": ("metal", "white", "oak"), "box": ("cardboard", "prop"),
                         "prop": ("prop",)}, boards(4, filling="box", back=False)),
    "dresser": Furniture(("dresser", "chest of drawers"), (0.9, 1.5), (0.45, 0.52), (0.75, 1.1),
        {"body": ("walnut drawers", "cherry drawers", "white drawers")}),
    "night stand": Furniture(("night stand",), (0.42, 0.58), (0.38, 0.45), (0.52, 0.65),
        {"body": ("walnut drawers", "cherry drawers"), "top": ("walnut",)},
                             (Block("body", z=(0.08, 0.96)), Block("top", (-0.02, 1.02), (0.0, 1.03), (0.95, 1.0)),
                             *legs("top", 0.1))),
    "tv stand": Furniture(("tv stand",), (1.1, 1.7), (0.42, 0.5), (0.45, 0.65),
        {"body": ("walnut", "black", "cherry doors")}),
    "television": Furniture(("television",), (0.75, 1.15), (0.07, 0.2), (0.52, 0.72),
        {"body": ("screen",), "foot": ("black",)},
                            (Block("body", y=(0.3, 1.0), z=(0.08, 1.0)), Block("foot", (0.35, 0.65), z=(0.0, 0.1)))),
    "monitor": Furniture(("monitor",), (0.45, 0.6), (0.16, 0.2), (0.4, 0.48), {"body": ("monitor",), "foot": ("black",)},
                         (Block("body", y=(0.5, 0.75), z=(0.22, 1.0)),
                         Block("foot", (0.4, 0.6), (0.1, 0.9), (0.0, 0.04)),
                         Block("foot", (0.46, 0.54), (0.4, 0.5), (0.0, 0.5)))),
    "lamp": Furniture(("lamp", "table lamp"), (0.26, 0.36), (0.26, 0.36), (0.45, 0.62),
        {"shade": ("shade",), "stem": ("metal", "prop", "walnut")},
                      (Block("stem", (0.3, 0.7), (0.3, 0.7), (0.0, 0.05), "cylinder"),
                      Block("stem", (0.4, 0.6), (0.4, 0.6), (0.0, 0.6), "ellipsoid"),
                      Block("shade", z=(0.55, 1.0), shape="cylinder"))),
    "floor lamp": Furniture(("floor lamp",), (0.36, 0.46), (0.36, 0.46), (1.45, 1.75),
        {"shade": ("shade",), "stem": ("metal", "black")},
                            (Block("stem", (0.15, 0.85), (0.15, 0.85), (0.0, 0.02), "cylinder"),
                            Block("stem", (0.46, 0.54), (0.46, 0.54), (0.0, 0.85), "cylinder"),
                            Block("shade", z=(0.8, 1.0), shape="cylinder"))),
    "door": Furniture(("door",), (0.8, 0.95), (0.04, 0.06), (2.0, 2.1),
        {"body": ("door white", "door oak"), "frame": ("white", "oak")},
                      (Block("body", z=(0.0, 1.0)), Block("frame", (-0.09, 0.0), (0.0, 1.3), (0.0, 1.0)),
                      Block("frame", (1.0, 1.09), (0.0, 1.3), (0.0, 1.0)),
                      Block("frame", (-0.09, 1.09), (0.0, 1.3), (1.0, 1.04)))),
    "window": Furniture(("window",), (0.9, 1.8), (0.03, 0.05), (1.0, 1.4),
        {"body": ("pane", "pane", "pane night"), "sill": ("white", "oak")},
                        (Block("body"), Block("sill", (-0.04, 1.04), (0.0, 2.4), (-0.05, 0.0)))),
    "blinds": Furniture(("blinds",), (1.0, 1.6), (0.06, 0.08), (1.1, 1.5), {"body": ("blinds",)}),
    "curtain": Furniture(("curtain",), (0.35, 0.75), (0.1, 0.16), (1.3, 2.2), {"body": ("curtain",), "rod": ("black",)},
                         (*(Block("body", (k / 4, k / 4 + 0.25), (0.2 * (k % 2), 0.8 + 0.2 * (k % 2)), (0.0, 0.98),
                         "cylinder") for k in range(4)), Block("rod", (-0.1, 1.1), (0.4, 0.6), (0.98, 1.0)))),
    "picture": Furniture(("picture", "poster"), (0.35, 0.9), (0.02, 0.04), (0.35, 0.7), {"body": ("poster",)}),
    "mirror": Furniture(("mirror",), (0.7, 1.4), (0.02, 0.03), (0.7, 1.0), {"body": ("mirror",)}),
    "whiteboard": Furniture(("whiteboard",), (1.2, 2.2), (0.02, 0.04), (0.9, 1.2), {"body": ("whiteboard",)}),
    "wall paper": Furniture(("paper", "notice"), (0.2, 0.42), (0.004, 0.006), (0.28, 0.45), {"body": ("paper",)}),
    "floor mat": Furniture(("floor mat", "rug"), (1.4, 2.4), (1.0, 1.7), (0.012, 0.02), {"body": ("rug",)}),
    "bath mat": Furniture(("floor mat",), (0.7, 0.95), (0.45, 0.6), (0.015, 0.025), {"body": ("bath mat",)}),
    "bathtub": Furniture(("bathtub",), (1.5, 1.7), (0.7, 0.78), (0.5, 0.58), {"body": ("porcelain",)},
                         (Block("body", z=(0.0, 0.3)), Block("body", y=(0.0, 0.12)), Block("body", y=(0.88, 1.0)),
                         Block("body", (0.0, 0.06)), Block("body", (0.94, 1.0)))),
    "shower curtain": Furniture(("shower curtain",), (0.5, 1.1), (0.08, 0.12), (1.75, 1.9),
        {"body": ("shower",), "rod": ("metal",)},
                                (*(Block("body", (k / 5, k / 5 + 0.2), (0.25 * (k % 2), 0.75 + 0.25 * (k % 2)), (0.0, 0.99),
                                "cylinder") for k in range(5)), Block("rod", (-0.3, 1.3), (0.4, 0.6), (0.985, 1.0)))),
    "toilet": Furniture(("toilet",), (0.38, 0.44), (0.66, 0.72), (0.72, 0.8), {"body": ("porcelain",)},
                        (Block("body", (0.0, 1.0), (0.0, 0.28), (0.5, 0.97)),
                        Block("body", (-0.03, 1.03), (0.0, 0.3), (0.96, 1.0)),
                         Block("body", (0.22, 0.78), (0.1, 0.8), (0.0, 0.45), "cylinder"),
                         Block("body", (0.04, 0.96), (0.28, 1.0), (0.4, 0.56), "cylinder"))),
    "towel": Furniture(("towel",), (0.4, 0.6), (0.04, 0.06), (0.5, 0.75), {"body": ("towel",), "bar": ("metal",)},
                       (Block("body", z=(0.0, 0.97), y=(0.3, 1.0)),
                       Block("bar", (-0.12, 1.12), (0.3, 0.8), (0.96, 1.0), label="rod"))),
    "box": Furniture(("box",), (0.3, 0.55), (0.28, 0.45), (0.22, 0.45), {"body": ("cardboard",)}),
    "bag": Furniture(("bag", "backpack"), (0.35, 0.5), (0.2, 0.3), (0.4, 0.55), {"body": ("bag",)},
                     (Block("body", z=(0.0, 0.85), shape="cushion"),
                     Block("body", (0.15, 0.85), (0.7, 1.1), (0.08, 0.45), "cushion"),
                     Block("body", (0.4, 0.6), (0.4, 0.6), (0.8, 1.0)))),
    "clothes": Furniture(("clothes",), (0.45, 0.8), (0.35, 0.55), (0.1, 0.2), {"body": ("clothes",), "other": ("clothes",)},
                         (Block("body", shape="ellipsoid"), Block("other", (0.3, 1.1), (0.2, 0.9), (0.0, 0.7), "ellipsoid"))),
    "hung clothes": Furniture(("clothes",), (0.35, 0.55), (0.12, 0.2), (0.85, 1.1),
        {"body": ("clothes", "shirt"), "other": ("clothes",)},
                              (Block("body", (0.0, 0.7), shape="cushion"),
                              Block("other", (0.45, 1.0), z=(0.15, 0.95), shape="cushion"))),
    "person": Furniture(("person",), (0.44, 0.52), (0.28, 0.34), (1.55, 1.85),
        {"shirt": ("shirt",), "trousers": ("jeans",), "skin": ("skin",), "hair": ("hair",)}, PERSON),
    "papers": Furniture(("paper",), (0.22, 0.42), (0.28, 0.36), (0.006, 0.02), {"body": ("paper",)}),
    "book pile": Furniture(("books",), (0.2, 0.28), (0.24, 0.3), (0.06, 0.16),
        {"one": ("book",), "two": ("book",), "three": ("book",)},
                           (Block("one", z=(0.0, 0.35)), Block("two", (0.05, 0.95), (0.0, 0.93), (0.35, 0.7)),
                           Block("three", (0.02, 0.9), (0.08, 1.0), (0.7, 1.0)))),
    "bottle": Furniture(("bottle", "vase", "jar"), (0.07, 0.11), (0.07, 0.11), (0.2, 0.32), {"body": ("prop",)},
                        (Block("body", z=(0.0, 0.7), shape="cylinder"),
                        Block("body", (0.3, 0.7), (0.3, 0.7), (0.6, 1.0), "cylinder"))),
    "bowl": Furniture(("bowl", "plate"), (0.2, 0.3), (0.2, 0.3), (0.07, 0.1), {"body": ("prop", "white")},
        (Block("body", shape="ellipsoid"),)),
    "cube": Furniture(("clock", "toaster", "radio", "unknown"), (0.15, 0.3), (0.12, 0.2), (0.12, 0.2),
        {"body": ("prop", "black", "metal")}),
    "keyboard": Furniture(("keyboard",), (0.4, 0.46), (0.14, 0.18), (0.02, 0.03), {"body": ("black", "white")}),
    "plant": Furniture(("plant",), (0.4, 0.6), (0.4, 0.6), (0.7, 1.2), {"leaves": ("plant",), "pot": ("prop", "brick")},
                       (Block("pot", (0.25, 0.75), (0.25, 0.75), (0.0, 0.3), "cylinder", "flower pot"),
                       Block("leaves", z=(0.3, 1.0), shape="ellipsoid"))),
    "garbage bin": Furniture(("garbage bin",), (0.26, 0.36), (0.26, 0.36), (0.32, 0.6), {"body": ("bin",)},
        (Block("body", shape="cylinder"),)),
    "bench": Furniture(("bench", "ottoman"), (0.6, 1.1), (0.4, 0.55), (0.4, 0.46),
        {"body": ("sofa", "seat dark"), "frame": WOODS},
                       (Block("body", z=(0.6, 1.0), shape="cushion"), Block("frame", z=(0.5, 0.65)), *legs("frame", 0.55))),
    "fireplace": Furniture(("fireplace",), (1.3, 1.6), (0.25, 0.4), (1.1, 1.3),
        {"body": ("brick",), "hole": ("black",), "mantel": ("white", "walnut")},
                           (Block("body", (0.0, 0.25), z=(0.0, 0.92)), Block("body", (0.75, 1.0), z=(0.0, 0.92)),
                           Block("body", (0.25, 0.75), z=(0.62, 0.92)),
                            Block("hole", (0.25, 0.75), (0.0, 0.1), (0.0, 0.62)),
                            Block("mantel", (-0.04, 1.04), (0.0, 1.15), (0.92, 1.0), label="mantel"))),
    "column": Furniture(("column",), (0.3, 0.5), (0.3, 0.5), (3.2, 3.2), {"body": ("wall",)}),
    "ceiling light": Furniture(("light",), (0.5, 1.2), (0.3, 0.6), (0.06, 0.1), {"body": ("panel light",)}),
    "air vent": Furniture(("air vent",), (0.3, 0.5), (0.02, 0.03), (0.2, 0.3), {"body": ("metal", "white")}),
    "switch": Furniture(("electrical outlet",), (0.08, 0.12), (0.008, 0.012), (0.12, 0.14), {"body": ("white",)}),
    "oddment": Furniture(("",), (0.12, 0.3), (0.1, 0.25), (0.1, 0.3), {"body": ("prop",)}, (Block("body", shape="cushion"),)),
}  # fmt: skip
"""Everything that can stand in a room. The empty fine class is left unlabelled, as annotators did with small things."""
