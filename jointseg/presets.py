"""Whole configurations, each a function. Not here: what a setting means (config.py)."""

from __future__ import annotations

from collections.abc import Callable

from jointseg.config import Config, DataConfig, LossConfig, NetworkConfig, StageConfig, TrainingConfig
from jointseg.evaluation_config import EvaluationConfig
from jointseg.search_config import SearchConfig


def paper() -> Config:
    """The paper to the letter: 513 x 513, batch 1, 160k + 10k + 10k iterations, all 4770 views."""
    return Config(
        preset="paper",
        data=DataConfig(train_on_validation=True),
        training=TrainingConfig(loader_workers=4, log_every=100, checkpoint_every=5000, validate_every=5000),
    )


def demo() -> Config:
    """Minutes on two cores: a quarter of the width at 65 x 65, hundreds of steps, rates that suit random weights.

    The depth loss weighs five times the mean semantic loss, and half of it holds the overall scale of depth, which Eq 4
    leaves free: in so few steps the depth would not get past a constant.
    """
    stage = StageConfig(
        iterations=250, batch_size=8, optimizer="adamw", loss_unit="mean", lr=1e-3, crf_lr=1e-2, schedule="cosine",
        momentum=0.9, weight_decay=1e-4, bias_lr_multiplier=1.0, head_lr_multiplier=1.0,
    )  # fmt: skip
    return Config(
        preset="demo",
        network=NetworkConfig(width=0.25, input_size=65, dropout=0.1),
        data=DataConfig(rooms_train=56, rooms_test=16, validation_frames=10),
        loss=LossConfig(lambda_semantic=0.2, lambda_unit="mean", depth_invariance=0.5),
        stage1=stage,
        stage2=stage.model_copy(update={"iterations": 150}),
        stage3=stage.model_copy(update={"iterations": 16, "batch_size": 2, "lr": 1e-4}),
        one_stage=stage.model_copy(update={"iterations": 400}),
        training=TrainingConfig(cpus_per_worker=2, checkpoint_every=200, validate_every=200),
        search=SearchConfig(trials=16, startup_trials=6),
        evaluation=EvaluationConfig(num_figures=4),
    )


def modern() -> Config:
    """What one would do with the paper's network and its three stages today, on a GPU: mean losses, AdamW, warm-up and cosine,
    16 images a step in bfloat16, online views, classes balanced a little, the running mean of the weights.

    For starting weights from ImageNet; without a line of COCO or VOC. The depth loss weighs as much as the semantic one.
    Trials of the search run on the GPU, four at a time. Validation frames are whole scenes: beside frames that it was
    trained on, the network looks better than it is. Classes that they lack count for nothing, whoever names them: a stray
    pixel would cost a fortieth of the score. The test split has all.
    """
    stage = StageConfig(
        iterations=2200, batch_size=16, optimizer="adamw", loss_unit="mean", lr=4e-4, crf_lr=1e-3, schedule="cosine",
        warmup=100, momentum=0.9, weight_decay=1e-2, bias_lr_multiplier=1.0, head_lr_multiplier=1.0, trunk_lr_multiplier=0.25,
        ema=0.995,
    )  # fmt: skip
    return Config(
        preset="modern",
        network=NetworkConfig(input_size=513, unit_features=True),
        data=DataConfig(views="online", crop_scale_min=0.6, color_jitter=0.3, validation_by="scene"),
        loss=LossConfig(lambda_semantic=1, lambda_unit="mean", depth_invariance=0.5, class_balance=0.3),
        stage1=stage,
        stage2=stage.model_copy(update={"iterations": 1200}),
        stage3=stage.model_copy(update={"iterations": 60, "batch_size": 8, "lr": 2e-5, "warmup": 10, "ema": 0.98}),
        one_stage=stage.model_copy(update={"iterations": 3400}),
        training=TrainingConfig(
            cpus_per_worker=4,
            loader_workers=12,
            log_every=50,
            checkpoint_every=1000,
            validate_every=1200,
            precision="bfloat16",
            channels_last=True,
        ),
        search=SearchConfig(trials=20, startup_trials=6, gpus_per_trial=0.25),
        evaluation=EvaluationConfig(scales=(1.0, 1.25), mirror=True, absent_classes="gt_present", processes_per_gpu=4),
    )


def small() -> Config:
    """An hour on two cores, for NYUv2 and ImageNet weights: the trunk up to conv4_3 is frozen and its features are computed
    once for each view; 257 x 257 pixels that the whole frame is stretched over.

    Needs `network.weights`.
    """
    stage = StageConfig(
        iterations=900, batch_size=4, optimizer="adamw", loss_unit="mean", lr=5e-4, crf_lr=3e-3, schedule="cosine", warmup=50,
        momentum=0.9, weight_decay=1e-2, bias_lr_multiplier=1.0, head_lr_multiplier=1.0, trunk_lr_multiplier=0.2, ema=0.98,
    )  # fmt: skip
    return Config(
        preset="small",
        network=NetworkConfig(input_size=257, resize="stretch", dropout=0.25, unit_features=True, frozen_until="conv4_3"),
        data=DataConfig(num_crops=1, crop_scale_min=0.6, cache_features=True),
        loss=LossConfig(lambda_semantic=1, lambda_unit="mean", depth_invariance=0.5, class_balance=0.3),
        stage1=stage,
        stage2=stage.model_copy(update={"iterations": 500}),
        stage3=stage.model_copy(update={"iterations": 60, "batch_size": 2, "lr": 3e-5, "warmup": 10}),
        one_stage=stage.model_copy(update={"iterations": 1400}),
        training=TrainingConfig(
            cpus_per_worker=2, log_every=20, checkpoint_every=300, validate_every=900, precision="bfloat16", channels_last=True
        ),
        search=SearchConfig(trials=20, startup_trials=6),
    )


PRESETS: dict[str, Callable[[], Config]] = {"demo": demo, "small": small, "modern": modern, "paper": paper}
