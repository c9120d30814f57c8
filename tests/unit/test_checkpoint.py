"""Laws of checkpoints: back as they were written, or refused by name. Not here: when one is written (test_training.py),
final/ (test_final.py).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jointseg.checkpoint import (
    DamagedCheckpointError,
    digest,
    load_checkpoint,
    refuse_other_config,
    save_checkpoint,
)
from jointseg.config import OPERATIONAL, Config
from jointseg.errors import InputError
from jointseg.settings import differences, with_overrides
from tests.checkpoints import UNUSUAL, a_checkpoint

FILES = ("checkpoint.json", "weights.safetensors", "optimizer.pt", "random.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "step_00000030", a_checkpoint())
    return tmp_path / "step_00000030"


def refusal(folder: Path, *, config: Config = UNUSUAL, stage: str = "stage2") -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder, config=config, stage=stage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let the checkpoint say something else, as another version would have written it: with the digest of what it says."""
    path = folder / "checkpoint.json"
    description = json.loads(path.read_text())
    del description["seal"]
    change(description)
    seal = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**description, "seal": seal}))


def test_a_checkpoint_comes_back_bit_for_bit(folder):
    written, read = a_checkpoint(), load_checkpoint(folder, config=UNUSUAL, stage="stage2")
    assert (read.stage, read.step, read.config) == (written.stage, written.step, written.config)
    assert read.weights.keys() == written.weights.keys()
    assert all(torch.equal(read.weights[name], written.weights[name]) for name in written.weights)
    assert read.optimizer["param_groups"] == written.optimizer["param_groups"]
    for parameter, state in written.optimizer["state"].items():
        assert all(torch.equal(read.optimizer["state"][parameter][name], value) for name, value in state.items())
    for one, other in zip(read.random_states, written.random_states, strict=True):
        assert torch.equal(one["cpu"], other["cpu"])
        assert one["cuda"] is None


def test_the_metrics_of_its_step_come_back_where_they_are_finite(folder):
    assert load_checkpoint(folder, config=UNUSUAL, stage="stage2").metrics == {"loss/total": 1.5}


def test_an_optimiser_of_a_gpu_is_read_where_there_is_none(folder):
    path = folder / "optimizer.pt"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"))
    rewrite(folder, lambda description: description["sha256"].update({"optimizer.pt": digest(path)}))
    assert b"cuda:0" in path.read_bytes()
    read, written = (
        load_checkpoint(folder, config=UNUSUAL, stage="stage2").optimizer["state"],
        a_checkpoint().optimizer["state"],
    )
    for parameter, state in written.items():
        for name, value in state.items():
            assert read[parameter][name].device.type == "cpu"
            assert torch.equal(read[parameter][name], value)


def test_a_snapshot_is_not_changed_by_what_training_does_next():
    weight, in_dict, in_list, in_tuple = (torch.ones(2) for _ in range(4))
    optimizer = {"state": {0: {"step": in_dict}}, "list": [in_list], "tuple": (in_tuple,)}
    kept = replace(a_checkpoint(), weights={"w": weight}, optimizer=optimizer).snapshot()
    for tensor in (weight, in_dict, in_list, in_tuple):
        tensor.zero_()
    assert kept.weights["w"].all()
    assert kept.optimizer["state"][0]["step"].all()
    assert kept.optimizer["list"][0].all()
    assert kept.optimizer["tuple"][0].all()
    assert isinstance(kept.optimizer["tuple"], tuple)


def test_a_checkpoint_written_over_an_older_one_is_the_new_one(folder):
    save_checkpoint(folder, a_checkpoint(seed=1, step=40))
    read = load_checkpoint(folder, config=UNUSUAL, stage="stage2")
    assert read.step == 40
    assert torch.equal(read.weights["weight"], a_checkpoint(seed=1).weights["weight"])


def test_another_config_is_refused_with_each_field_and_both_values(folder):
    other = with_overrides(UNUSUAL, {"crf.theta_beta": 4, "stage2.lr": 1e-3, "data.source": None})
    message = refusal(folder, config=other)
    assert message.startswith(f"{folder}: was made with another config: ")
    assert "crf.theta_beta is 0.30000000000000004 there and 4.0 here" in message
    assert "stage2.lr is 1e-10 there and 0.001 here" in message
    assert "data.source is 'a/folder' there and None here" in message
    assert "stage1.lr" not in message


def test_equal_configs_are_not_refused():
    refuse_other_config(
        UNUSUAL, with_overrides(Config(), {"data.source": "a/folder", "crf.theta_beta": 0.1 + 0.2}), place=Path()
    )


def test_a_run_goes_on_under_settings_that_change_no_number(folder):
    training = {"max_failures": 3, "loader_workers": 2, "keep_checkpoints": 1, "async_checkpoints": False}
    search = {"concurrent": 3, "filter_cache": 0, "node_folder": "/elsewhere"}
    changes = {f"training.{name}": value for name, value in training.items()}
    changes |= {f"search.{name}": value for name, value in search.items()}
    other = with_overrides(UNUSUAL, changes | {"evaluation.processes_per_gpu": 5})
    assert set(differences(UNUSUAL, other)) == OPERATIONAL
    assert load_checkpoint(folder, config=other, stage="stage2").config == other
    message = refusal(folder, config=with_overrides(other, {"training.log_every": 7}))
    assert message == f"{folder}: was made with another config: training.log_every is 10 there and 7 here"
    many = {f"crf.{name}": 0.5 for name in ("theta_alpha", "theta_beta", "theta_gamma", "theta_zeta", "theta_tau")}
    many |= {f"crf.{name}": 0.25 for name in ("w_appearance", "w_depth", "w_smoothness")}
    assert refusal(folder, config=with_overrides(other, many)).endswith("; and 2 more")


def test_a_training_goes_on_whatever_the_search_asks_for_by_now_and_a_runs_folder_does_not(folder):
    other = with_overrides(UNUSUAL, {"search.trials": 64, "search.seed": 1, "search.finetune_iterations": 7})
    assert load_checkpoint(folder, config=other, stage="stage2").step == 30
    with pytest.raises(InputError, match=r"search\.trials is 40 there and 64 here"):
        refuse_other_config(UNUSUAL, other, place=Path())


def test_another_stage_is_refused(folder):
    assert refusal(folder, stage="stage3") == f"{folder}: is a checkpoint of 'stage2'; needed: 'stage3'"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, name, share):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_file_of_which_one_bit_changed_is_named(folder, name, share):
    whole = bytearray((folder / name).read_bytes())
    whole[int(share * len(whole))] ^= 1
    (folder / name).write_bytes(whole)
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_what_a_disk_did_to_a_file_is_told_from_what_the_user_did_to_the_config(folder, name):
    (folder / name).write_bytes(b"altered")
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(folder, config=with_overrides(UNUSUAL, {"stage2.lr": 1}), stage="stage2")


@pytest.mark.parametrize(("key", "value"), [("step", 31), ("stage", "stage3"), ("metrics", {"loss/total": 0.5})])
def test_an_altered_description_is_refused(folder, key, value):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert refusal(folder) == f"{path}: altered since it was written"


def test_a_checkpoint_of_another_format_is_not_taken_for_a_damaged_one(folder):
    rewrite(folder, lambda description: description.update({"format": 3}))
    with pytest.raises(InputError, match=r"checkpoint\.json: a checkpoint of format 3; this version reads format 2") as caught:
        load_checkpoint(folder, config=UNUSUAL, stage="stage2")
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize(
    "description",
    [b"{}", b"[]", b"null", b'{"format": 1}', b'{"format": 2}', b"\xff\xfe{", b"", b'{"format": 2, "stage": "stage2"}'],
)
def test_a_description_that_is_none_is_named(folder, description):
    (folder / "checkpoint.json").write_bytes(description)
    assert str(folder / "checkpoint.json") in refusal(folder)


def test_a_folder_where_the_description_should_be_is_named(folder):
    path = folder / "checkpoint.json"
    path.unlink()
    path.mkdir()
    assert refusal(folder) == f"{path}: cannot be read: Is a directory"


def test_a_config_that_this_version_does_not_know_is_named_with_its_file(folder):
    path = folder / "checkpoint.json"
    rewrite(folder, lambda description: description["config"]["crf"].update({"theta_omega": 1.0}))
    message = refusal(folder)
    assert message.startswith(f"{path}: crf.theta_omega: unknown setting")


def test_a_checkpoint_without_its_last_file_is_none(folder, tmp_path):
    """The description is written last: what a killed process leaves has none, or has the older one's digests."""
    half = tmp_path / "half"
    half.mkdir()
    for name in FILES[1:]:
        (half / name).write_bytes((folder / name).read_bytes())
    assert "holds no whole checkpoint" in refusal(half)


def test_half_of_a_newer_checkpoint_over_an_older_one_is_refused(folder, tmp_path):
    save_checkpoint(tmp_path / "newer", a_checkpoint(seed=1, step=40))
    (folder / "weights.safetensors").write_bytes((tmp_path / "newer" / "weights.safetensors").read_bytes())
    assert f"{folder / 'weights.safetensors'}: missing or altered since it was written (sha256 " in refusal(folder)


def test_no_folder_is_no_checkpoint(tmp_path):
    assert "holds no whole checkpoint" in refusal(tmp_path / "nowhere")


def test_weights_that_are_views_of_others_are_written_as_they_look(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    save_checkpoint(tmp_path, replace(a_checkpoint(), weights={"turned": base.mT, "column": base[:, 1]}))
    read = load_checkpoint(tmp_path, config=UNUSUAL, stage="stage2").weights
    assert torch.equal(read["turned"], base.mT)
    assert torch.equal(read["column"], base[:, 1])
