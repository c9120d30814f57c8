"""The 40 classes of NYUv2-40: their names, their colours, and the map from NYU's 894 classes to them.

Not here: how label maps are read (data/nyu.py, data/frame_folder.py) or scored (metrics.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jointseg.errors import InputError

CLASS_NAMES: tuple[str, ...] = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door",
    "window", "bookshelf", "picture", "counter", "blinds", "desk", "shelves", "curtain",
    "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books", "refridgerator",
    "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
"""In the order of classMapping40.mat, its spelling kept; a label is the index into this."""

NUM_CLASSES = len(CLASS_NAMES)
NUM_NYU_CLASSES = 894
"""Classes of the labelled dataset before they are merged; its label maps hold 1..894, and 0 where unlabelled."""
VOID = 255
"""Label of a pixel that is neither trained on nor scored."""

_COLOURS = """
a9b8c8 b08d67 d2b48c d96a7b 3f7fbf 7a5ea8 e0a03c 8a5a3c
7fd0e6 b6f589 537714 feb6f5 14fed1 14535c 921465 4fa58c
654153 38ad5c 536541 f5e380 bfecbf e4e8ec c0392b fe9b77
ec6eb6 feb6bf 896e14 adadfe ad80a4 ad5c14 921d38 9bb665
41f5f5 c880e3 146e38 1465c8 1492a4 14bffe 414a77 ada42f
"""  # the common surfaces by hand; the others each as far as could be from all before them, in CIELAB
PALETTE: NDArray[np.uint8] = np.frombuffer(bytes.fromhex(_COLOURS), np.uint8).reshape(NUM_CLASSES, 3)
"""(40, 3) RGB, one colour a class; no two are closer than 14 in CIELAB."""

_COLOUR_OF_BYTE = np.zeros((256, 3), np.uint8)
_COLOUR_OF_BYTE[:NUM_CLASSES] = PALETTE


def colourise(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels (H, W), 0..39 or VOID, as an RGB picture (H, W, 3); void is black."""
    return _COLOUR_OF_BYTE[labels]


def class_table(map_class: ArrayLike) -> NDArray[np.uint8]:
    """The 894 -> 40 map as a table: `table[label]` is 0..39, and VOID for label 0.

    Args:
        map_class: `mapClass` of classMapping40.mat: 894 numbers 1..40, in any shape.

    Raises:
        InputError: not 894 of them, or one that is not a whole number 1..40.
    """
    given = np.asarray(map_class).ravel()
    if given.size != NUM_NYU_CLASSES:
        raise InputError(f"mapClass has {given.size} entries; allowed: {NUM_NYU_CLASSES}, one for each NYU class")
    if given.dtype.kind not in "uif":
        raise InputError(f"mapClass holds {given.dtype}; allowed: whole numbers 1..{NUM_CLASSES}")
    wrong = np.flatnonzero(~np.isin(given, np.arange(1, NUM_CLASSES + 1)))
    if wrong.size:
        at = int(wrong[0])
        raise InputError(f"mapClass, entry {at + 1}: {given[at].item()}; allowed: whole numbers 1..{NUM_CLASSES}")
    return np.concatenate([[VOID], given - 1]).astype(np.uint8)
