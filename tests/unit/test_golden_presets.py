"""What each preset sets otherwise than the defaults, against what was written down: whether a preset has moved.

`python -m tests.unit.test_golden_presets` writes them anew; say in the commit why they moved. Not here: whose numbers the
paper's are (test_presets.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jointseg.config import Config
from jointseg.presets import PRESETS
from jointseg.settings import differences

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "presets.json"
RENEW = "where that is meant, `python -m tests.unit.test_golden_presets` writes it down, and the commit says why"


def set_by(name: str) -> dict[str, Any]:
    """By path, what the preset sets otherwise than the defaults."""
    return {path: own for path, (_, own) in sorted(differences(Config(), PRESETS[name]()).items())}


def test_every_preset_is_written_down():
    assert list(json.loads(GOLDEN.read_text())) == list(PRESETS), RENEW


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_one_written_down(name):
    golden, found = json.loads(GOLDEN.read_text())[name], set_by(name)
    moved = {
        path: (golden.get(path, "the default"), found.get(path, "the default"))
        for path in sorted({**golden, **found})
        if golden.get(path, "the default") != found.get(path, "the default")
    }
    assert not moved, f"{name} has moved, by path (written down, now): {moved}; {RENEW}"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: set_by(name) for name in PRESETS}, indent=1) + "\n")
