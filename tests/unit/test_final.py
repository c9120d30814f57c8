"""Laws of final/, what a finished stage leaves: whole or not there, made of whole weights alone, read back or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jointseg.checkpoint import final_digest, load_final, save_checkpoint, save_final
from jointseg.config import Config
from jointseg.errors import InputError
from tests.checkpoints import UNUSUAL, a_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "step_00000030", a_checkpoint())
    return tmp_path / "step_00000030"


def test_final_holds_the_weights_what_they_are_and_no_more(folder, tmp_path):
    final = tmp_path / "stage2" / "final"
    save_final(final, folder)
    weights, sha256 = load_final(final), final_digest(final)
    assert all(torch.equal(weights[name], value) for name, value in a_checkpoint().weights.items())
    description = json.loads((final / "checkpoint.json").read_text())
    assert {key: description[key] for key in ("stage", "step", "metrics")} == {
        "stage": "stage2",
        "step": 30,
        "metrics": {"loss/total": 1.5},
    }
    assert Config(**description["config"]) == UNUSUAL
    assert description["sha256"] == {"weights.safetensors": sha256}
    assert sorted(path.name for path in final.iterdir()) == ["checkpoint.json", "weights.safetensors"]
    assert [path.name for path in final.parent.iterdir()] == ["final"]


def test_final_made_again_is_the_new_one(folder, tmp_path):
    """A run that stops between a stage's end and the record of it makes `final/` a second time."""
    final = tmp_path / "final"
    save_final(final, folder)
    once = final_digest(final)
    save_final(final, folder)
    assert final_digest(final) == once
    save_checkpoint(folder, a_checkpoint(seed=1))
    save_final(final, folder)
    assert final_digest(final) != once


def test_final_is_never_made_of_altered_weights(folder, tmp_path):
    (folder / "weights.safetensors").write_bytes(b"altered")
    with pytest.raises(InputError, match=r"weights\.safetensors: missing or altered"):
        save_final(tmp_path / "final", folder)
    assert not (tmp_path / "final").exists()


def test_final_is_never_made_of_half_a_checkpoint(folder, tmp_path):
    (folder / "checkpoint.json").unlink()
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        save_final(tmp_path / "final", folder)
    assert not (tmp_path / "final").exists()


def test_final_after_an_interrupted_attempt_is_whole(folder, tmp_path):
    left = tmp_path / ".final.partial"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    save_final(tmp_path / "final", folder)
    assert load_final(tmp_path / "final").keys() == a_checkpoint().weights.keys()
    assert not left.exists()


@pytest.mark.parametrize("name", ["checkpoint.json", "weights.safetensors"])
@pytest.mark.parametrize("change", ["missing", "cut", "altered"])
def test_a_damaged_final_is_refused_by_file(folder, tmp_path, name, change):
    final = tmp_path / "final"
    save_final(final, folder)
    path = final / name
    whole = path.read_bytes()
    path.write_bytes(whole[:40] if change == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if change == "missing":
        path.unlink()
    with pytest.raises(InputError) as caught:
        load_final(final)
    assert str(path) in str(caught.value)
