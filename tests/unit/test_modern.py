"""Laws of what the paper did not have: accumulation, warm-up, running means, balanced classes, bfloat16.

Not here: frozen layers (test_frozen.py), online views (test_augment.py), the loop itself (test_training.py), more than one
process (tests/integration).
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from jointseg import hardware
from jointseg.averaging import RunningMean
from jointseg.batches import Place
from jointseg.config import StageConfig
from jointseg.errors import InputError
from jointseg.losses import balancing_weights, semantic_loss
from jointseg.model import build_model
from jointseg.optimizer import build_optimizer, rates, set_rate
from jointseg.resuming import begin, resume
from jointseg.settings import with_overrides
from jointseg.stages import ONE_STAGE, STAGES
from jointseg.training import class_weights, train, validate

ALONE = Place()


def fit(config, rooms, views, *, stage="stage1", save_to=None, run=None, validation=(), place=ALONE):
    run = run or begin(config, STAGES[stage], place=place, start=None)
    reports = []

    def report(one):
        reports.append(one)
        if save_to is not None and one.save is not None:
            one.save(save_to / str(one.step))

    train(run, rooms, views, place=place, report=report, validation=validation)
    return run, [one.metrics for one in reports]


def largest_difference(one, other):
    one, other = one.model.state_dict(), other.model.state_dict()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# Accumulation


@pytest.fixture
def in_float64():
    """Rounding in float32 grows over steps, on some processors beyond 1e-5."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_passes_a_step_are_one_with_twice_the_batch(rooms, views, small, stage):
    changes = {f"{stage}.iterations": 20, "network.dropout": 0, f"{stage}.optimizer": "sgd", f"{stage}.lr": 3e-4}
    large = with_overrides(small, {**changes, f"{stage}.batch_size": 4})
    in_two = with_overrides(small, {**changes, f"{stage}.batch_size": 2, f"{stage}.accumulate": 2})
    (one, losses), (two, others) = fit(large, rooms, views, stage=stage), fit(in_two, rooms, views, stage=stage)
    assert largest_difference(one, begin(large, STAGES[stage], place=ALONE, start=None)) > 1e-3
    assert one.model.network.mean_bgr.dtype == torch.float64
    assert largest_difference(one, two) <= 1e-12
    assert [row["loss/total"] for row in others] == pytest.approx([row["loss/total"] for row in losses], rel=1e-12)
    assert len(others) == 20


def test_accumulating_goes_on_bit_for_bit(rooms, views, small, tmp_path):
    config = with_overrides(small, {"stage1.accumulate": 3, "stage1.batch_size": 1})
    left_alone, _ = fit(config, rooms, views, save_to=tmp_path)
    resumed = resume(config, STAGES["stage1"], tmp_path / "2", place=ALONE)
    fit(config, rooms, views, run=resumed)
    assert largest_difference(left_alone, resumed) == 0


# Rates


def test_the_rate_rises_through_the_warm_up_and_falls_to_nothing_after(small):
    settings = StageConfig(iterations=10, warmup=4, schedule="cosine", lr=1.0, optimizer="adamw", momentum=0.9)
    optimizer = build_optimizer(build_model(small), settings)
    found = []
    for step in range(10):
        set_rate(optimizer, settings, step=step)
        found.append(rates(optimizer)["lr/network"])
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4] == 1.0
    assert found[4:] == pytest.approx([(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])


@pytest.mark.parametrize(("iterations", "expected"), [(1, [1]), (2, [0.5, 1]), (5, [1 / 3, 2 / 3, 1, 1, 1])])
def test_a_stage_shorter_than_its_warm_up_gets_to_its_rate(small, iterations, expected):
    settings = StageConfig(iterations=iterations, warmup=50, lr=1.0)
    optimizer = build_optimizer(build_model(small), settings)
    found = []
    for step in range(iterations):
        set_rate(optimizer, settings, step=step)
        found.append(rates(optimizer)["lr/network"])
    assert found == pytest.approx(expected)


def test_the_trunks_convolutions_have_a_rate_of_their_own(small):
    settings = StageConfig(lr=1.0, trunk_lr_multiplier=0.1, bias_lr_multiplier=2.0)
    model = build_model(small)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in build_optimizer(model, settings).param_groups}
    assert groups["trunk"]["lr"] == pytest.approx(0.1)
    assert groups["trunk_bias"]["lr"] == pytest.approx(0.2)
    trunk = {names[id(parameter)].split(".")[1] for parameter in groups["trunk"]["params"]}
    assert trunk == {f"conv{block}_{i}" for block, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1)}


def test_of_the_papers_table_those_that_start_from_vggs_convolutions_have_it(small):
    model = build_model(with_overrides(small, {"network.variant": "table1_literal"}))
    groups = {group["name"]: group for group in build_optimizer(model, StageConfig(trunk_lr_multiplier=0.1)).param_groups}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trunk = {names[id(parameter)].split(".")[1] for parameter in groups["trunk"]["params"]}
    assert trunk == {f"conv{block}-{i}" for block in range(1, 6) for i in (1, 2)}


# The running mean of the weights


def test_the_kept_weights_are_the_running_mean_of_those_in_training(rooms, views, small):
    plain = with_overrides(small, {"network.dropout": 0, "stage1.schedule": "constant"})
    each = [begin(plain, STAGES["stage1"], place=ALONE, start=None)]
    for iterations in (1, 2, 3, 4):  # a constant rate: the first steps of a longer run are those of a shorter one
        each.append(fit(with_overrides(plain, {"stage1.iterations": iterations}), rooms, views)[0])
    mean, *after = (run.model.network.conv1_1.weight.detach().clone() for run in each)
    for weight, decay in zip(after, (0.1, 2 / 11, 0.2, 0.2), strict=True):  # (1 + n) / (10 + n), up to 0.2
        mean = decay * mean + (1 - decay) * weight
    run, _ = fit(with_overrides(plain, {"stage1.ema": 0.2}), rooms, views)
    assert torch.equal(run.model.network.conv1_1.weight, after[-1])
    torch.testing.assert_close(run.kept_model.network.conv1_1.weight, mean)
    assert not torch.allclose(mean, after[-1], atol=1e-5)


def test_a_short_stage_keeps_little_of_the_weights_it_began_with(small):
    model = build_model(small)
    mean = RunningMean(model, 0.998)
    for parameter in (*model.parameters(), *mean.model.parameters()):
        parameter.data.zero_()
    for parameter in model.parameters():
        parameter.data.fill_(1)
    for _ in range(60):
        mean.update(model)
    left = 1 - float(mean.model.network.conv1_1.weight.min())
    assert 0 < left < 1e-6


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_averaged_run_goes_on_bit_for_bit_and_keeps_the_mean(rooms, views, small, tmp_path, optimizer):
    config = with_overrides(small, {"stage1.ema": 0.9, "stage1.optimizer": optimizer})
    left_alone, _ = fit(config, rooms, views, save_to=tmp_path)
    resumed = resume(config, STAGES["stage1"], tmp_path / "2", place=ALONE)
    fit(config, rooms, views, run=resumed, save_to=tmp_path / "again")
    assert largest_difference(left_alone, resumed) == 0
    kept = resume(config, STAGES["stage1"], tmp_path / "again" / "4", place=ALONE)
    for run in (resumed, kept):
        means = left_alone.kept_model.state_dict(), run.kept_model.state_dict()
        assert all(torch.equal(mean, means[1][name]) for name, mean in means[0].items())


def test_the_mean_is_what_is_validated(rooms, views, small):
    config = with_overrides(small, {"stage1.ema": 0.9, "stage1.lr": 1e-2})
    run, rows = fit(config, rooms, views, validation=rooms.train)
    twin = begin(with_overrides(config, {"stage1.ema": 0}), STAGES["stage1"], place=ALONE, start=None)
    twin.model.load_state_dict(run.kept_model.state_dict())
    said = {name: value for name, value in rows[-1].items() if name.startswith("validation/")}
    assert validate(twin, rooms, rooms.train, place=ALONE) == said
    twin.model.load_state_dict(run.model.state_dict())
    assert validate(twin, rooms, rooms.train, place=ALONE) != said


# Balanced classes


def test_balancing_weights_by_hand():
    pixels = torch.tensor([16, 4, 0])
    weights = balancing_weights(pixels, power=0.5)  # 1/4 : 1/2 : 1/2, and 16 w0 + 4 w1 = 20
    assert weights.tolist() == pytest.approx([5 / 6, 5 / 3, 5 / 3])
    assert balancing_weights(pixels, power=0).tolist() == [1, 1, 1]
    whole = balancing_weights(pixels, power=1)
    assert float(whole[0] * 16) == pytest.approx(float(whole[1] * 4))


def test_a_class_weighs_what_it_is_given_in_the_semantic_loss():
    logits = torch.zeros(1, 3, 1, 4)
    labels = torch.tensor([[[0, 1, 1, 255]]])
    assert float(semantic_loss(logits, labels, class_weights=torch.tensor([2.0, 0.5, 9.0]))) == pytest.approx(3 * math.log(3))


def test_class_weights_are_of_the_frames_trained_on(rooms, views, small):
    assert class_weights(rooms, views, small) is None
    with pytest.raises(InputError, match=r"loss\.class_balance: no frame that is trained on has a labelled pixel"):
        class_weights(rooms, (), with_overrides(small, {"loss.class_balance": 0.5}))
    config = with_overrides(small, {"loss.class_balance": 0.5})
    of_one = [view for view in views if view.frame == rooms.train[0]]
    counts = np.bincount(rooms.frame(rooms.train[0]).labels.ravel(), minlength=256)[:40]
    expected = balancing_weights(torch.from_numpy(counts), power=0.5)
    assert torch.equal(class_weights(rooms, of_one, config), expected)
    rooms_without_pictures = copy.copy(rooms)
    rooms_without_pictures._arrays = {"labels": rooms._arrays["labels"]}
    assert torch.equal(class_weights(rooms_without_pictures, of_one, config), expected)
    assert not torch.equal(class_weights(rooms, views, config), expected)


def test_balancing_changes_what_is_learned(rooms, views, small):
    (one, _), (other, _) = (fit(with_overrides(small, {"loss.class_balance": p}), rooms, views) for p in (0, 1))
    assert largest_difference(one, other) > 1e-4


# Precision and layout


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_bfloat16_trains_as_float32_does_up_to_its_precision(rooms, views, small, stage, monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)  # a processor that is not made for it computes it, too
    plain = with_overrides(small, {"network.dropout": 0})
    half = with_overrides(plain, {"training.precision": "bfloat16"})
    (one, losses), (other, halved) = fit(plain, rooms, views, stage=stage), fit(half, rooms, views, stage=stage)
    assert [row["loss/total"] for row in halved] == pytest.approx([row["loss/total"] for row in losses], rel=0.05)
    assert largest_difference(one, other) > 0
    assert {weight.dtype for weight in other.model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("stage", ["stage1", "stage3"])
def test_a_processor_that_is_not_made_for_bfloat16_trains_in_float32(rooms, views, small, stage, monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)
    half = with_overrides(small, {"training.precision": "bfloat16"})
    (one, losses), (other, same) = fit(small, rooms, views, stage=stage), fit(half, rooms, views, stage=stage)
    assert largest_difference(one, other) == 0
    assert [row["loss/total"] for row in same] == [row["loss/total"] for row in losses]


def test_channels_last_changes_rounding_alone_and_goes_on_bit_for_bit(rooms, views, small, tmp_path):
    plain_config = with_overrides(small, {"network.dropout": 0})  # which units drop out goes by the layout, too
    config = with_overrides(plain_config, {"training.channels_last": True})
    (one, losses), (_, plain) = fit(config, rooms, views, save_to=tmp_path), fit(plain_config, rooms, views)
    assert [row["loss/total"] for row in losses] == pytest.approx([row["loss/total"] for row in plain], rel=1e-4)
    resumed = resume(config, STAGES["stage1"], tmp_path / "2", place=ALONE)
    fit(config, rooms, views, run=resumed)
    assert largest_difference(one, resumed) == 0


# Both tasks from the start


def test_one_stage_trains_both_tasks_from_the_starting_weights(rooms, views, small):
    config = with_overrides(small, {"one_stage.iterations": 3, "one_stage.batch_size": 2, "one_stage.loss_unit": "mean"})
    run = begin(config, ONE_STAGE, place=ALONE, start=None)
    _, metrics = fit(config, rooms, views, run=run)
    assert metrics[-1].keys() >= {"loss/semantic", "loss/depth"}
    assert config.one_stage.iterations == run.step
    assert type(config)().one_stage.iterations == type(config)().stage1.iterations + type(config)().stage2.iterations


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_no_step_waits_for_the_gpu(rooms, views, small, stage):
    changes = {"training.precision": "bfloat16", "training.channels_last": True, f"{stage}.ema": 0.9, f"{stage}.accumulate": 2}
    quiet = {"training.log_every": 100, "training.checkpoint_every": 100, f"{stage}.iterations": 6}
    config = with_overrides(small, {**changes, **quiet, "loss.class_balance": 0.3})
    place = Place(device=torch.device("cuda"))
    run = begin(config, STAGES[stage], place=place, start=None)
    update = run.optimizer.step

    def step(*given):  # from the first step's end to the last one's beginning: reading losses at the end waits
        torch.cuda.set_sync_debug_mode("error" if run.step < 4 else "default")
        return update(*given)

    run.optimizer.step = step
    try:
        fit(config, rooms, views, run=run, stage=stage, place=place)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.step == 6
