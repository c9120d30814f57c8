"""The numbers of the presets: the paper's by its sections, and what the demo must be. Not here: what they mean (config.py)."""

import pytest

from jointseg.config import Config, StageConfig
from jointseg.data.views import draw_validation, make_views
from jointseg.presets import PRESETS, demo, paper, small
from jointseg.settings import differences, flatten, with_overrides
from jointseg.units import convert_rate

PAPER = {
    # 3.1: the network's input and outputs
    "network.input_size": 513,
    "network.width": 1.0,
    "network.num_depth_bins": 50,
    "network.depth_bin": 0.14,
    # 4.1: the loss and the three trainings
    "loss.lambda_semantic": 1e-6,
    "loss.lambda_unit": "sum",
    "loss.depth_invariance": 1.0,
    "stage1.iterations": 160_000,
    "stage2.iterations": 10_000,
    "stage3.iterations": 10_000,
    **{
        f"stage{n}.{name}": value
        for n in (1, 2, 3)
        for name, value in {
            "batch_size": 1,
            "optimizer": "sgd",
            "schedule": "constant",
            "momentum": 0.99,
            "weight_decay": 5e-4,
            "loss_unit": "sum",
            "bias_lr_multiplier": 2.0,
            "head_lr_multiplier": 10.0,
        }.items()
    },
    "stage1.lr": 1e-10,
    "stage2.lr": 1e-10,
    "stage3.lr": 1e-16,
    "stage3.crf_lr": 1e-13,
    # 4.1: the views, and the frames the CRF is searched on
    "data.num_crops": 4,
    "data.train_depth": "raw",
    "data.validation_frames": 100,
    "data.train_on_validation": True,
    # 4.1: the CRF that the search found, and CRF-as-RNN's iterations
    "crf.theta_alpha": 160.0,
    "crf.theta_beta": 3.0,
    "crf.theta_gamma": 50.0,
    "crf.theta_zeta": 0.2,
    "crf.theta_tau": 3.0,
    "crf.w_appearance": 7.0,
    "crf.w_depth": 4.0,
    "crf.w_smoothness": 3.0,
    "crf.num_iterations": 10,
    "crf_train_iterations": 5,
    "crf_reference_size": 513,
    "crf.pairwise": "crfrnn",
    # 4.2: raw numbers are taken without a crop, over all pixels
    "evaluation.crop": "none",
    "evaluation.absent_classes": "ignore",
    "evaluation.depth_pooling": "pixels",
}


def test_the_paper_preset_has_the_papers_numbers():
    found = flatten(paper())
    assert {path: found[path] for path in PAPER} == PAPER


@pytest.mark.parametrize(
    ("stage", "joint", "mean"),
    [("stage1", 1e-4, 2.632e-5), ("stage2", 1e-4, 2.632e-5), ("stage3", 1e-10, 2.632e-11)],
)
def test_the_papers_rates_in_the_other_units(stage, joint, mean):
    settings: StageConfig = getattr(paper(), stage)
    converted = {
        unit: convert_rate(
            settings.lr, settings.weight_decay, from_unit="sum", to_unit=unit, lambda_semantic=1e-6, num_pixels=513**2
        )
        for unit in ("joint", "mean")
    }
    assert converted["joint"].lr == pytest.approx(joint)
    assert converted["mean"].lr == pytest.approx(mean, rel=1e-3)
    assert converted["mean"].weight_decay == pytest.approx(1.90e-9, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "at_its_own_size", "of_the_mean"),
    [("demo", 0.2 / 65**2, 0.2), ("small", 1 / 257**2, 1), ("modern", 1 / 513**2, 1), ("paper", 1e-6, None)],
)
@pytest.mark.parametrize("size", [65, 257, 513])
def test_the_depth_loss_weighs_the_same_at_any_input_size(name, at_its_own_size, of_the_mean, size):
    """Beside the mean semantic loss, that is, but for the paper's, whose lambda is of the sum."""
    assert PRESETS[name]().lambda_of_sum == at_its_own_size
    elsewhere = with_overrides(PRESETS[name](), {"network.input_size": size}).lambda_of_sum
    assert elsewhere == (1e-6 if of_the_mean is None else of_the_mean / size**2)


def test_a_config_written_before_lambda_had_a_unit_means_what_it_did():
    tree = small().model_dump(mode="json")
    tree["loss"] = {"lambda_semantic": 1 / 257**2, "class_balance": 0.3, "depth_invariance": 0.5}
    assert Config(**tree).lambda_of_sum == small().lambda_of_sum


def test_the_paper_trains_on_4770_views_of_795_frames():
    assert len(make_views(range(1, 796), paper().data)) == 4770


def test_the_paper_validates_on_100_of_the_train_frames():
    data = paper().data
    drawn = draw_validation(range(1, 796), data)
    assert len(set(drawn)) == 100
    assert set(drawn) <= set(range(1, 796))


def test_the_paper_preset_is_the_defaults_but_for_training_on_all_frames_and_its_pace():
    changed = differences(Config(), paper())
    assert changed.pop("data.train_on_validation") == (False, True)
    assert set(changed) == {
        f"training.{name}" for name in ("checkpoint_every", "loader_workers", "log_every", "validate_every")
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_its_name(name):
    assert PRESETS[name]().preset == name


def test_the_demo_keeps_validation_out_of_training():
    assert not demo().data.train_on_validation


def test_the_demo_starts_the_crf_from_the_papers_point():
    assert demo().crf == paper().crf
