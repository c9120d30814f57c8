"""Laws of the 40 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from jointseg.errors import InputError
from jointseg.labels import CLASS_NAMES, NUM_CLASSES, PALETTE, VOID, class_table, colourise


def test_there_are_forty_classes_each_with_a_name_and_a_colour_of_its_own() -> None:
    assert NUM_CLASSES == len(set(CLASS_NAMES)) == len({tuple(c) for c in PALETTE.tolist()}) == 40
    assert (0, 0, 0) not in {tuple(c) for c in PALETTE.tolist()}


def test_names_are_in_the_order_of_the_official_mapping(shared: Path) -> None:
    official = loadmat(shared / "nyuv2" / "classMapping40.mat")["className"].ravel()
    assert tuple(str(name[0]) for name in official) == CLASS_NAMES


def test_void_is_black_and_a_class_has_its_colour() -> None:
    picture = colourise(np.array([[0, 39, VOID]], np.uint8))
    np.testing.assert_array_equal(picture, [[PALETTE[0], PALETTE[39], (0, 0, 0)]])


def test_label_zero_is_void_and_every_other_is_its_class_less_one() -> None:
    mapping = np.arange(894) % 40 + 1
    table = class_table(mapping)
    assert table[0] == VOID
    np.testing.assert_array_equal(table[1:], mapping - 1)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (np.ones(893), "893 entries"),
        (np.r_[np.ones(893), 41], "entry 894: 41"),
        (np.r_[0, np.ones(893)], "entry 1: 0"),
        (np.r_[1.5, np.ones(893)], r"entry 1: 1\.5"),
        (np.full(894, np.nan), "entry 1: nan"),
        (np.full(894, "wall"), "whole numbers"),
    ],
)
def test_a_wrong_mapping_is_named(mapping: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_table(mapping)
