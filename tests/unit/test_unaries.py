"""Laws of the unaries on disk: which are taken and which refused. Not here: the network that makes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jointseg.checkpoint import Checkpoint, digest, load_final, save_checkpoint, save_final
from jointseg.errors import InputError
from pipeline.unaries import ARRAYS, UnaryCache, cached_unaries


@pytest.fixture
def kept(tmp_path, small):
    """Unaries on disk as they are described, of a stage that has finished."""
    save_checkpoint(tmp_path / "last", Checkpoint("stage2", 1, small, {"weight": torch.zeros(1)}, {}, []))
    save_final(tmp_path / "final", tmp_path / "last")
    folder = tmp_path / "unaries"
    folder.mkdir()
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", np.zeros(3))
    digests = {name: digest(folder / f"{name}.npy") for name in ARRAYS}
    stamp = {"checkpoint": load_final(tmp_path / "final")[1], "frames": [1, 2], "sha256": digests}
    (folder / "unaries.json").write_text(json.dumps(stamp))
    return folder, stamp


def unaries_of(folder, config):
    final = folder.parent / "final"
    return cached_unaries(config, folder.parent, final, folder, frames=(1, 2), progress=lambda _: None)


def test_unaries_of_this_checkpoint_and_these_frames_are_taken(kept, small):
    assert unaries_of(kept[0], small) == UnaryCache(kept[0], (1, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": "0" * 64}, r"unaries of checkpoint 000000000000, but stage 2's is [0-9a-f]{12}; remove .* to compute"),
        ({"frames": [1, 3]}, "unaries of 2 other frames than the 2 asked for"),
        ({"sha256": {}}, "image.npy: missing or altered since it was written"),
        ({"sha256": 4}, "unaries.json: damaged"),
    ],
)
def test_unaries_of_anything_else_are_refused(kept, small, change, said):
    folder, stamp = kept
    (folder / "unaries.json").write_text(json.dumps({**stamp, **change}))
    with pytest.raises(InputError, match=said):
        unaries_of(folder, small)
