"""Laws of the training loop in plain torch, one process. Not here: going on from a checkpoint
(test_resuming.py), rates and parameter groups (test_optimizer.py), Ray.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from jointseg.batches import Batch, Place
from jointseg.checkpoint import save_final
from jointseg.metrics import DepthSums, depth_metrics
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import TrainingDivergedError, _loss_of, validate
from jointseg.units import convert_rate
from tests.trainings import ALONE, copied, fresh, moved

# Learning


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_loss_falls(small, fit, stage):
    longer = with_overrides(small, {f"{stage}.iterations": 20, f"{stage}.lr": 3e-3, "network.dropout": 0})
    losses = [report.metrics["loss/total"] for report in fit(fresh(longer, stage))]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(small, fit):
    weights = []
    for _ in range(2):
        run = fresh(small)
        fit(run)
        weights.append(run.model.state_dict())
        torch.rand(3)
    assert moved(*weights) == set()


def test_another_seed_gives_other_weights(small):
    one, other = (fresh(with_overrides(small, {"seed": seed})).model.state_dict() for seed in (0, 1))
    assert {name for name in one if name.endswith("weight") and name.startswith("network.")} <= moved(one, other)


def test_ranks_begin_with_equal_weights_and_drop_out_different_units(small):
    weights, draws = [], []
    for rank in (0, 1):
        weights.append(fresh(small, place=Place(rank=rank, world_size=2)).model.state_dict())
        draws.append(torch.rand(4))
    assert moved(*weights) == set()
    assert not torch.equal(*draws)


@pytest.mark.parametrize("unit", ["joint", "mean"])
def test_rates_in_another_unit_take_the_same_steps(small, fit, unit):
    sgd = {f"stage2.{name}": value for name, value in {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1.0}.items()}
    in_sum = with_overrides(small, {**sgd, "stage2.loss_unit": "sum", "stage2.lr": 1e-7, "network.dropout": 0})
    rate = convert_rate(
        in_sum.stage2.lr,
        in_sum.stage2.weight_decay,
        from_unit="sum",
        to_unit=unit,
        lambda_semantic=in_sum.lambda_of_sum,
        num_pixels=in_sum.network.input_size**2,
    )
    changes = {"stage2.loss_unit": unit, "stage2.lr": rate.lr, "stage2.weight_decay": rate.weight_decay}
    one, other = fresh(in_sum, "stage2"), fresh(with_overrides(in_sum, changes), "stage2")
    at_start = copied(one.model.state_dict())
    fit(one)
    fit(other)
    assert any(name.startswith("network.") for name in moved(at_start, one.model.state_dict()))
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict())


def test_lambda_of_the_mean_is_that_of_the_sum_over_the_pixels(small, fit):
    changes = {"network.dropout": 0, "stage2.iterations": 1, "stage2.loss_unit": "joint"}
    first = [
        fit(fresh(with_overrides(small, {**changes, "loss.lambda_semantic": value, "loss.lambda_unit": unit}), "stage2"))[0]
        for value, unit in ((0.5, "mean"), (0.5 / small.network.input_size**2, "sum"))
    ]
    losses = [{name: value for name, value in report.metrics.items() if name.startswith("loss/")} for report in first]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stage", STAGES)
def test_the_crfs_logits_are_divided_by_their_temperature_in_the_loss_alone(small, rooms, stage):
    changes = {"network.dropout": 0, "loss.crf_temperature": 4.0}
    run = fresh(with_overrides(small, changes), stage)
    labels = torch.zeros(2, 65, 65, dtype=torch.int64)
    batch = Batch(torch.randn(2, 3, 65, 65), labels, torch.ones(2, 65, 65), None)
    run.model.eval()
    with torch.no_grad():
        output = run.model(batch.image, kernels=run.stage.kernels, num_iterations=run.config.crf_train_iterations)
        loss = _loss_of(run.model, batch, run, None)
    divided, whole = (float(cross_entropy(output.logits / by, labels)) for by in (4, 1))
    assert divided != pytest.approx(whole, rel=1e-4)
    assert float(loss.semantic) == pytest.approx(divided if "stage3" in stage else whole, rel=1e-5)


# Which parts a stage trains


def parts(names):
    """Trunk, segmentation heads, depth heads, and each weight of the CRF."""
    found = set()
    for name in names:
        if name.startswith("crf."):
            found.add(name)
        else:
            found.add(name.split(".")[3] if ".heads." in name else "trunk")
    return found


NETWORK = {"trunk", "segmentation", "depth"}
CRF = {"crf.compatibility", "crf.weights.appearance", "crf.weights.depth", "crf.weights.smoothness"}


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("stage1", {"trunk", "segmentation"}),
        ("stage2", NETWORK),
        ("stage3_sem_crf", NETWORK | CRF - {"crf.weights.depth"}),
        ("stage3", NETWORK | CRF),
    ],
)
def test_a_stage_trains_its_parts_and_leaves_the_others(small, fit, stage, trained):
    run = fresh(small, stage)
    before = copied(run.model.state_dict())
    fit(run)
    assert parts(moved(before, run.model.state_dict())) == trained


def test_a_stage_starts_from_the_earlier_ones_network_and_its_own_configs_crf(small, fit, tmp_path):
    earlier = fresh(small, "stage2")
    fit(earlier, save_to=tmp_path)
    save_final(tmp_path / "final", tmp_path / "4")
    found = with_overrides(small, {"crf.w_appearance": 1.5, "crf.theta_beta": 9, "seed": 5})
    run = fresh(found, "stage3", start=tmp_path / "final")
    assert moved(earlier.model.network.state_dict(), run.model.network.state_dict()) == set()
    assert torch.equal(run.model.crf.weights["appearance"], 1.5 * torch.eye(40))
    assert run.model.crf.settings.theta_beta == 9
    assert run.step == 0


def test_each_stage_sees_views_of_its_own_where_they_are_drawn_at_each_visit(small, fit):
    seen = []
    for stage in ("stage1", "stage2", "stage3"):
        run = fresh(with_overrides(small, {"data.views": "online"}), stage)
        run.model.network.register_forward_pre_hook(lambda _, given: seen.append(given[0][:1]))
        fit(run)
    assert len({image.numpy().tobytes() for image in seen}) >= 4 + 4 + 2


def test_stage_3_learns_through_crf_train_iterations_whatever_inference_takes(small, fit):
    def first_loss(*, training, inference):
        changes = {"crf_train_iterations": training, "crf.num_iterations": inference, "stage3.iterations": 1}
        return fit(fresh(with_overrides(small, changes), "stage3"))[0].metrics["loss/total"]

    expected = first_loss(training=1, inference=1)
    assert first_loss(training=1, inference=3) == expected
    assert first_loss(training=3, inference=1) != expected


# Reports


def test_reports_come_when_they_are_due(small, fit, rooms):
    pace = {"training.log_every": 2, "training.checkpoint_every": 5, "training.validate_every": 3, "stage1.iterations": 7}
    reports = fit(fresh(with_overrides(small, pace)), validation=rooms.train[:1])
    assert [report.step for report in reports] == [2, 3, 4, 5, 6, 7]
    assert [report.step for report in reports if report.save is not None] == [5, 7]
    assert [report.step for report in reports if "validation/mean_iou" in report.metrics] == [3, 6, 7]


def test_without_validation_frames_nothing_is_validated(small, fit):
    pace = {"training.log_every": 2, "training.checkpoint_every": 4, "training.validate_every": 3}
    reports = fit(fresh(with_overrides(small, pace)))
    assert [report.step for report in reports] == [2, 4]
    assert not any(name.startswith("validation/") for report in reports for name in report.metrics)


def test_a_reports_losses_are_the_mean_since_the_last_one(small, fit):
    each = [report.metrics["loss/total"] for report in fit(fresh(small))]
    pairs = [report.metrics["loss/total"] for report in fit(fresh(with_overrides(small, {"training.log_every": 2})))]
    assert pairs == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2])


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (3, 1), (2, 2)])
def test_images_a_second_are_those_of_the_steps_since_the_last_report(small, fit, monkeypatch, batch_size, accumulate):
    """On a clock by which a step takes a second."""
    changes = {"training.log_every": 2, "stage1.batch_size": batch_size, "stage1.accumulate": accumulate}
    run = fresh(with_overrides(small, changes))
    seconds, update = [], run.optimizer.step

    def step():
        seconds.append(1)
        return update()

    run.optimizer.step = step
    monkeypatch.setattr("jointseg.training.time.perf_counter", lambda: float(sum(seconds)))
    assert [report.metrics["images_per_second"] for report in fit(run)] == [batch_size * accumulate] * 2


@pytest.mark.parametrize(("stage", "halves"), [("stage1", {"semantic"}), ("stage2", {"semantic", "depth"})])
def test_a_stage_reports_the_halves_it_has(small, fit, stage, halves):
    for report in fit(fresh(small, stage)):
        losses = {name.removeprefix("loss/"): value for name, value in report.metrics.items() if name.startswith("loss/")}
        assert losses.keys() == halves | {"total"}
        assert losses["total"] == pytest.approx(sum(losses[half] for half in halves))
        assert all(isinstance(value, float) and math.isfinite(value) for value in report.metrics.values())


def test_a_report_says_the_rate_of_its_step(small, fit):
    reports = fit(fresh(small))
    assert [report.metrics["lr/network"] for report in reports] == pytest.approx(
        [1e-3 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    )


def test_stage_3_reports_the_rates_of_the_network_and_of_the_crf(small, fit):
    first = fit(fresh(with_overrides(small, {"stage3.lr": 1e-6, "stage3.crf_lr": 1e-4}), "stage3"))[0]
    assert (first.metrics["lr/network"], first.metrics["lr/crf"]) == pytest.approx((1e-6, 1e-4))


def test_a_checkpoint_has_the_metrics_of_the_report_it_came_with(small, fit, rooms, tmp_path):
    last = fit(fresh(small), save_to=tmp_path, validation=rooms.train[:1])[-1]
    description = json.loads((tmp_path / "4" / "checkpoint.json").read_text())
    assert description["metrics"] == {name: value for name, value in last.metrics.items() if math.isfinite(value)}
    assert "validation/mean_iou" in description["metrics"]


def test_validation_has_both_tables_where_the_stage_has_depth(small, rooms):
    names = {stage: validate(fresh(small, stage), rooms, rooms.train[:1], place=ALONE).keys() for stage in ("stage1", "stage2")}
    table3 = ("mean_iou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou")
    assert names["stage1"] == {f"validation/{name}" for name in table3}
    table2 = {f"validation/{name}" for name in depth_metrics(DepthSums(torch.ones(1, 10).numpy()))}
    assert names["stage2"] == names["stage1"] | table2


def test_validation_divides_as_the_evaluation_is_set(small, rooms):
    def validated(**changes):
        run = fresh(with_overrides(small, {f"evaluation.{name}": value for name, value in changes.items()}), "stage2")
        return validate(run, rooms, rooms.train[:2], place=ALONE)

    plain, zero, images = validated(), validated(absent_classes="zero"), validated(depth_pooling="images")
    assert validated(mirror=True)["validation/rmse"] != plain["validation/rmse"]
    assert zero["validation/mean_iou"] < plain["validation/mean_iou"]
    assert images["validation/rmse"] != plain["validation/rmse"]
    assert images["validation/mean_iou"] == plain["validation/mean_iou"]


def test_validating_changes_no_weight_and_no_later_step(small, fit, rooms):
    weights = []
    for validation in ((), rooms.train[:1]):
        run = fresh(with_overrides(small, {"training.validate_every": 1}))
        fit(run, validation=validation)
        weights.append(run.model.state_dict())
    assert moved(*weights) == set()


# Stopping


def diverge(config, stage, fit, **options):
    with pytest.raises(TrainingDivergedError) as caught:
        fit(fresh(config, stage), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{stage}: ")
    return message


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_a_rate_too_large_stops_the_run_by_half_and_step(small, fit, stage):
    settings = STAGES[stage].settings
    message = diverge(with_overrides(small, {f"{settings}.lr": 1e12}), stage, fit)
    assert "the segmentation loss is nan at step 2" in message or "the segmentation loss is inf at step 2" in message
    also = " and stage3.crf_lr 0.01" if stage == "stage3" else ""
    assert f"{settings}.lr is 1e+12{also}, try a smaller one in a new folder" in message


def test_the_step_is_the_first_bad_one_and_not_the_one_it_was_noticed_at(small, fit):
    config = with_overrides(small, {"stage1.lr": 1e12, "training.log_every": 4, "training.checkpoint_every": 4})
    assert " at step 2;" in diverge(config, "stage1", fit)


def test_the_depth_half_is_told_from_the_segmentation_half(small, fit):
    run = fresh(small, "stage2")
    with torch.no_grad():
        run.model.network.depth_parameters()[1].fill_(math.inf)
    with pytest.raises(TrainingDivergedError, match=r"^stage2: the depth loss is nan at step 1;"):
        fit(run)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_weights_that_the_last_step_spoiled_are_neither_validated_nor_kept(small, fit, rooms, tmp_path, stage):
    """The loss of a step is that of the weights before it."""
    settings = STAGES[stage].settings
    config = with_overrides(small, {f"{settings}.lr": 1e30, f"{settings}.iterations": 1})
    message = diverge(config, stage, fit, validation=rooms.train[:1], save_to=tmp_path)
    assert "the segmentation loss is nan after step 1;" in message
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_step_spoiled_are_not_validated_where_no_checkpoint_is_due(small, fit, rooms):
    pace = {"training.log_every": 100, "training.checkpoint_every": 100, "training.validate_every": 1, "stage1.lr": 1e30}
    assert "after step 1;" in diverge(with_overrides(small, pace), "stage1", fit, validation=rooms.train[:1])
