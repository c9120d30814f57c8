"""Laws of a training that goes on: from its own checkpoint, from the stage before it, from starting weights.

Not here: runs that are killed (test_killed_training.py), which checkpoint is taken (test_checkpoint_folder.py).
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from jointseg.batches import Place
from jointseg.checkpoint import load_checkpoint, save_checkpoint, save_final
from jointseg.errors import InputError
from jointseg.model import build_model
from jointseg.resuming import resume
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import train
from tests.starting_weights import torchvision_vgg16
from tests.trainings import ALONE, InterruptedRunError, fresh, moved


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_an_interrupted_run_ends_bit_for_bit_as_one_that_was_not(small, fit, tmp_path, stage, optimizer):
    config = with_overrides(small, {f"{stage}.optimizer": optimizer})
    left_alone = fresh(config, stage)
    fit(left_alone)
    with pytest.raises(InterruptedRunError):
        fit(fresh(config, stage), stop_at=3, save_to=tmp_path)
    torch.rand(7)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    resumed = resume(config, STAGES[stage], tmp_path / "2", place=ALONE)
    assert resumed.step == 2
    fit(resumed)
    assert moved(left_alone.model.state_dict(), resumed.model.state_dict()) == set()
    states = left_alone.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_stage_that_is_gone_on_with_sees_the_online_views_it_would_have_seen(small, fit, tmp_path):
    config = with_overrides(small, {"data.views": "online"})
    left_alone = fresh(config, "stage2")
    fit(left_alone, save_to=tmp_path)
    resumed = resume(config, STAGES["stage2"], tmp_path / "2", place=ALONE)
    fit(resumed)
    assert moved(left_alone.model.state_dict(), resumed.model.state_dict()) == set()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_checkpoint_of_an_optimiser_fused_on_a_gpu_goes_on_here_as_its_own(small, fit, tmp_path, optimizer):
    config = with_overrides(small, {"stage1.optimizer": optimizer})
    left_alone = fresh(config)
    fit(left_alone, save_to=tmp_path)
    checkpoint = load_checkpoint(tmp_path / "2", config=config, stage="stage1")
    for group in checkpoint.optimizer["param_groups"]:
        assert group["fused"] is None
        group["fused"] = True
    save_checkpoint(tmp_path / "fused", checkpoint)
    resumed = resume(config, STAGES["stage1"], tmp_path / "fused", place=ALONE)
    assert {group["fused"] for group in resumed.optimizer.param_groups} == {None}
    fit(resumed)
    assert moved(left_alone.model.state_dict(), resumed.model.state_dict()) == set()


def test_stage_3_goes_on_with_the_crf_it_has_learned(small, fit, tmp_path):
    config = with_overrides(small, {"training.checkpoint_every": 1})
    left_alone = fresh(config, "stage3")
    fit(left_alone, save_to=tmp_path)
    resumed = resume(config, STAGES["stage3"], tmp_path / "1", place=ALONE)
    fit(resumed)
    assert moved(left_alone.model.state_dict(), resumed.model.state_dict()) == set()


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_a_checkpoint_in_the_background_is_that_of_its_step_whenever_it_is_written(small, rooms, views, tmp_path, stage):
    written = {}
    for in_background in (False, True):
        config = with_overrides(small, {"training.async_checkpoints": in_background, "training.checkpoint_every": 1})
        run, reports = fresh(config, stage), []
        at_once = tmp_path / f"{in_background}"

        def report(one, in_background=in_background, reports=reports, at_once=at_once):
            reports.append(one)
            if not in_background:
                one.save(at_once / str(one.step))

        train(run, rooms, views, place=ALONE, report=report)
        for one in reports if in_background else []:
            one.save(at_once / str(one.step))
        checkpoints = [load_checkpoint(at_once / str(one.step), config=config, stage=stage) for one in reports]
        written[in_background] = [(each.weights, each.optimizer["state"], each.random_states) for each in checkpoints]
    assert moved(written[True][0][0], written[True][1][0]), "nothing was trained, so equality would say nothing"
    for one, other in zip(written[False], written[True], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_another_number_of_workers_is_refused(small, tmp_path):
    run = fresh(small)
    save_checkpoint(tmp_path / "one", run.checkpoint([{"cpu": torch.get_rng_state(), "cuda": None}]))
    with pytest.raises(InputError, match=r"one: was made by 1 workers; training has 2"):
        resume(small, STAGES["stage1"], tmp_path / "one", place=Place(rank=0, world_size=2))


def test_another_config_and_another_stage_are_refused(small, tmp_path):
    save_checkpoint(tmp_path, fresh(small).checkpoint([{"cpu": torch.get_rng_state(), "cuda": None}]))
    with pytest.raises(InputError, match=r"stage1\.lr is 0\.001 there and 0\.002 here"):
        resume(with_overrides(small, {"stage1.lr": 2e-3}), STAGES["stage1"], tmp_path, place=ALONE)
    with pytest.raises(InputError, match="is a checkpoint of 'stage1'; needed: 'stage2'"):
        resume(small, STAGES["stage2"], tmp_path, place=ALONE)


def test_going_on_needs_the_checkpoint_alone_and_not_the_starting_weights(small, tmp_path):
    gone = with_overrides(small, {"network.weights": str(tmp_path / "gone.safetensors")})
    model = build_model(gone)
    run = fresh(small)
    run.config = gone
    save_checkpoint(tmp_path / "2", run.checkpoint([{"cpu": torch.get_rng_state(), "cuda": None}]))
    resumed = resume(gone, STAGES["stage1"], tmp_path / "2", place=ALONE)
    assert moved(model.state_dict(), resumed.model.state_dict()) == set()


def test_starting_weights_that_are_not_there_are_named(small, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        fresh(with_overrides(small, {"network.weights": str(tmp_path / "nowhere.safetensors")}))


def test_a_run_knows_what_its_starting_weights_gave_it(small, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv5_3.bias": fresh(small).model.network.conv5_3.bias.detach() + 1, "fc8.bias": torch.zeros(3)}, path)
    loaded = fresh(with_overrides(small, {"network.weights": str(path)})).loaded
    assert (loaded.loaded, loaded.unused) == (("conv5_3.bias",), ("fc8.bias",))
    assert fresh(small).loaded is None


def test_the_mean_of_the_starting_weights_lasts_through_checkpoints_and_stages(small, tmp_path):
    torch.save(torchvision_vgg16(small.network.width), tmp_path / "vgg16.pth")
    config = with_overrides(small, {"network.weights": str(tmp_path / "vgg16.pth")})
    run = fresh(config)
    save_checkpoint(tmp_path / "step", run.checkpoint([{"cpu": torch.get_rng_state(), "cuda": None}]))
    save_final(tmp_path / "final", tmp_path / "step")
    resumed = resume(config, STAGES["stage1"], tmp_path / "step", place=ALONE)
    following = fresh(config, "stage2", start=tmp_path / "final")
    for each in (run, resumed, following):
        assert each.model.network.mean_bgr.tolist() == pytest.approx([103.53, 116.28, 123.675])
    restarted = fresh(with_overrides(small, {"network.weights": str(tmp_path / "final")}))
    assert restarted.loaded is not None
    assert restarted.loaded.initialised == ()
    assert moved(run.model.state_dict(), restarted.model.state_dict()) == set()
