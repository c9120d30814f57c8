"""Looks as data: the texture of each material, and the colours it comes in.

Not here: what has which look (furniture.py), what a texture is (textures.py), drawing one of the colours (paint.py).
"""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """A texture with the colours to draw from; `glow` adds its own light, `glossy` blinds the depth sensor."""

    texture: str
    colours: tuple[str, ...]
    accents: tuple[str, ...] = ("#3a3530",)
    glow: float = 0.0
    glossy: bool = False


WOODS = ("oak", "walnut", "cherry")

LOOKS: dict[str, Look] = {
    "oak": Look("wood", ("#b98a52", "#a87c48", "#c49a63")),
    "walnut": Look("wood", ("#5a3a22", "#4a2e1c", "#6b4527")),
    "cherry": Look("wood", ("#7d3f22", "#8a4a2a", "#6f3720")),
    "oak doors": Look("panels", ("#b98a52", "#a87c48"), ("#c9c4b8",)),
    "cherry doors": Look("panels", ("#7d4022", "#6f3a20", "#8d5530"), ("#c0b090",)),
    "white doors": Look("panels", ("#d8d4c8", "#e0ddd4"), ("#8a8780",)),
    "walnut drawers": Look("drawers", ("#5a3620", "#452818"), ("#c0a860",)),
    "cherry drawers": Look("drawers", ("#7d3f22", "#8a4a2a"), ("#c8b070",)),
    "white drawers": Look("drawers", ("#d4cfc2",), ("#706a60",)),
    "door white": Look("door", ("#dcd8cc", "#e4e0d8", "#cfcabd"), ("#b09a50",)),
    "door oak": Look("door", ("#b0793c", "#9a6830"), ("#c8c0a8",)),
    "metal": Look("plain", ("#8d8f92", "#6f7174", "#a5a7aa")),
    "black": Look("plain", ("#1c1b1a", "#262422")),
    "white": Look("plain", ("#e4e2dc", "#dcdad2")),
    "porcelain": Look("plain", ("#f0efea", "#ebe8de")),
    "seat blue": Look("fabric", ("#24395c", "#2c4a6e")),
    "seat dark": Look("fabric", ("#2a2828", "#3a2626")),
    "sofa": Look("fabric", ("#9a8468", "#6d6258", "#5a4636", "#a89a84", "#45484e", "#7a3a30")),
    "sofa floral": Look("floral", ("#b8a888", "#a89c8c"), ("#7a5048", "#5a6a50")),
    "cushion": Look("floral", ("#a03c30", "#c09048", "#4a5a78", "#d8d0bc"), ("#e0d8c0", "#602820")),
    "cushion plain": Look("fabric", ("#e6e2d8", "#d8cfc0", "#b84a3a", "#c8a060")),
    "duvet": Look("floral", ("#5a6a94", "#8a3c44", "#6a7a5c", "#b0a0b8"), ("#c8c0b0", "#34405c")),
    "duvet plaid": Look("plaid", ("#3c4c78", "#7c2c30", "#d0c8b4"), ("#a0a8b8", "#c8b890")),
    "duvet stripes": Look("stripes", ("#c8c4bc", "#4c6078"), ("#7888a8", "#b0a890")),
    "sheet": Look("fabric", ("#dedad0", "#d0c8b8")),
    "granite": Look("granite", ("#6b6258", "#8a7c68", "#3c3a38"), ("#b0a490", "#201e1c")),
    "counter cream": Look("granite", ("#d0c6b0", "#c8bca4"), ("#b8a888",)),
    "steel": Look("plain", ("#9a9da0", "#b4b6b8")),
    "fridge white": Look("fridge", ("#e4e4e0", "#dcdcd8")),
    "fridge steel": Look("fridge", ("#8c9094", "#a0a4a8"), glossy=True),
    "pane": Look("pane", ("#a8c4e8", "#d8e4f0", "#8ab0e0"), glow=1.6, glossy=True),
    "pane night": Look("pane", ("#0c1018", "#101622"), glow=0.3, glossy=True),
    "blinds": Look("slats", ("#e8e2d0", "#dcd0b4", "#b08c60"), glow=0.35),
    "curtain": Look("folds", ("#a87848", "#8c3c34", "#c8b890", "#6c7c60", "#50607c"), glow=0.06),
    "shower": Look("patterned_folds", ("#e0e8ec", "#d8e8e0", "#e8dcd8"), ("#6090b8", "#70a888", "#c07878")),
    "poster": Look("poster", ("#4c6c8c", "#8c5c3c", "#5c7c4c", "#a88c4c", "#7c4c6c"), ("#2c2018", "#8a6a30", "#101010")),
    "mirror": Look("glass", ("#8c989c", "#a0a49c"), ("#6a5030", "#b0b0b0", "#2a2420"), glossy=True),
    "screen": Look("screen", ("#0c0c0e", "#101216"), ("#1c1c1e",), glossy=True),
    "monitor": Look("screen", ("#3c5c8c", "#0e1014", "#8098b0"), ("#1a1a1c",), glow=0.25, glossy=True),
    "whiteboard": Look("scribble", ("#eef0f0", "#e6eaea"), ("#9a9c9e",)),
    "rug": Look("rug", ("#7a2c2c", "#2c3c5c", "#8c7448", "#4c5c48"), ("#c8b088", "#281c28", "#d0c8b8")),
    "bath mat": Look("carpet", ("#5c7ca0", "#a05c6c", "#d0c8b8", "#5c8c7c")),
    "paper": Look("text", ("#f2f0ea", "#ece8dc")),
    "books": Look("books", ("#6a4a30", "#7c5c3c", "#50586c")),
    "book": Look("plain", ("#8c2c2c", "#2c4c7c", "#3c6c4c", "#c0a050")),
    "towel": Look("carpet", ("#c86c5c", "#5c88a8", "#e0d0a8", "#78a078", "#e8e4dc")),
    "cardboard": Look("cardboard", ("#a87c4c", "#b08858", "#94683c"), ("#c8b088",)),
    "bag": Look("fabric", ("#282c38", "#3c2c24", "#6c2c2c", "#3c4c34")),
    "clothes": Look("crumpled", ("#5c2c3c", "#2c3c6c", "#808890", "#a8a098", "#38503c"), ("#1c2438", "#c0b8b0", "#883c3c")),
    "skin": Look("plain", ("#c89878", "#a87050", "#7c5038")),
    "hair": Look("plain", ("#241a14", "#4c3420")),
    "shirt": Look("fabric", ("#8c3030", "#34548c", "#d0d0cc", "#486848")),
    "jeans": Look("fabric", ("#2c3850", "#20242c")),
    "shade": Look("plain", ("#f0e0b8", "#e8d4a0", "#f4ecd8"), glow=1.3),
    "plant": Look("leaves", ("#3c5c2c", "#48702c", "#2c4c24")),
    "prop": Look("plain", ("#b03c2c", "#2c6c8c", "#c8a02c", "#4c8c4c", "#d8d0c0", "#703c7c", "#3c3c40")),
    "brick": Look("small_tiles", ("#7c4434", "#8c5444"), ("#a89c90",)),
    "panel light": Look("plain", ("#ffffff",), glow=2.2),
    "bin": Look("plain", ("#4c5054", "#2c2c30", "#a8a8a0")),
    "wall": Look("plain", ("#c9c1ae", "#d4cdbb", "#b9b39c", "#c4c8c0", "#c8b48c", "#aeb6b8", "#d0c4b4", "#b8a888")),
    "wall tiles": Look("small_tiles", ("#d8d4c8", "#c8d4d8", "#d8c8b0"), ("#b0a898",)),
    "ceiling": Look("plain", ("#e0ddd4", "#d8d4c8")),
    "planks": Look("planks", ("#9a6a3c", "#7c4c28", "#b48a58")),
    "carpet": Look("carpet", ("#a09078", "#8c8478", "#b0a08c", "#74685c")),
    "floor tiles": Look("tiles", ("#b8a88c", "#a8a49c", "#c4b8a4"), ("#807464",)),
}
"""Every material, by name. Colours are sRGB."""
