"""The 894 fine classes of the synthetic files, made up, and the class of the 40 each belongs to.

Not here: the 40 classes themselves (jointseg/labels.py), the real dataset's map (its own classMapping40.mat).
"""

from __future__ import annotations

import numpy as np

from jointseg.labels import CLASS_NAMES, NUM_NYU_CLASSES

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "cabinet": ("kitchen cabinet", "tv stand"),
    "chair": ("armchair", "office chair"),
    "sofa": ("couch",),
    "table": ("coffee table", "dining table"),
    "picture": ("poster",),
    "dresser": ("chest of drawers",),
    "floor mat": ("rug",),
    "paper": ("notice",),
    "lamp": ("floor lamp", "table lamp"),
    "bag": ("backpack",),
    "otherstructure": ("column", "light", "air vent", "fireplace", "mantel"),
    "otherfurniture": ("garbage bin", "bench", "ottoman", "headboard", "flower pot"),
    "otherprop": (
        "bottle", "bowl", "clock", "electrical outlet", "faucet", "jar", "keyboard", "monitor", "plant", "plate",
        "radio", "rod", "stove", "toaster", "unknown", "vase",
    ),
}  # fmt: skip


def _classes_of_names() -> dict[str, str]:
    """The 40 names in alphabetical order, so that no label is its own class by chance; then synonyms; then fillers."""
    classes = {name: name for name in sorted(CLASS_NAMES)}
    classes |= {fine: name for name, synonyms in _SYNONYMS.items() for fine in synonyms}
    for number in range(len(classes), NUM_NYU_CLASSES):
        kind = ("structure", "furniture", "prop", "prop", "prop")[number % 5]
        classes[f"{kind} {number + 1}"] = f"other{kind}"
    return classes


_CLASSES = _classes_of_names()
FINE_NAMES: tuple[str, ...] = tuple(_CLASSES)
"""Name of each fine class; the label of `FINE_NAMES[i]` is i + 1, and 0 is unlabelled."""
MAP_CLASS = np.array([1 + CLASS_NAMES.index(name) for name in _CLASSES.values()], np.uint8)
"""(894,) the class 1..40 of each fine class, as `mapClass` of classMapping40.mat."""
_LABELS = {name: label for label, name in enumerate(FINE_NAMES, 1)} | {"": 0}


def fine_label(name: str) -> int:
    """The label 1..894 of a fine class; 0 for the empty name, which stays unlabelled."""
    return _LABELS[name]
