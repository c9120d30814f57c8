"""Every setting of the pipeline: its unit, symbol, source and allowed values.

Not here: those of the CRF (crf/settings.py), of the search (search_config.py) and of evaluation (evaluation_config.py), whole
sets of values (presets.py), how settings are checked, overridden and compared (settings.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from jointseg.crf.settings import CrfSettings
from jointseg.evaluation_config import EvaluationConfig
from jointseg.network.table import VARIANTS
from jointseg.search_config import SearchConfig
from jointseg.settings import Count, Seed, Settings, SettingsError
from jointseg.units import LossUnit

Fraction = Annotated[float, Field(gt=0, le=1)]
MIN_SIZE = 65
"""Of the network's input, pixels."""


class NetworkConfig(Settings):
    """The joint network (PAPER section 3.1, Table 1)."""

    variant: Literal["table1_literal", "vgg16_msc", "deeplab_msc"] = "vgg16_msc"
    """Which table the network is built from; the paper leaves it open."""
    width: float = Field(1.0, gt=0, le=8)
    """Multiplies every hidden layer's number of channels; 1 is the paper's."""
    input_size: int = Field(513, ge=MIN_SIZE)
    """Side of the square input, pixels; 8k + 1, so that every pooled map has whole steps. 513 is the paper's."""
    resize: Literal["fit", "stretch"] = "fit"
    """480 x 640 to the square: `fit` keeps the aspect and pads below, `stretch` does not. The paper does not say."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout after fc6 and fc7 (DeepLab), and inside the heads of `deeplab_msc`."""
    num_depth_bins: int = Field(50, ge=2)
    """N_d, the number of depth bins (paper, 4.2)."""
    depth_bin: float = Field(0.14, gt=0)
    """l, the length of a depth bin in metres (paper, 4.2)."""
    weights: Path | None = None
    """Starting weights, known by their content. Of VGG-16, DeepLab-LargeFOV or DeepLab-MSc: a `.caffemodel`; a PyTorch state
    dict or safetensors, with Caffe's names (conv1_1.weight, ...) or torchvision's (features.0.weight, ...). Of jointseg: the
    folder of a checkpoint, such as a stage's `final/`, or its weights.safetensors. The image's channel order, mean and scale
    follow the weights; VGG-16's own fc6 and fc7 are cut down as DeepLab did. `loaded.txt` says what was loaded. None: He
    initialisation."""
    unit_features: bool = False
    """Rescale starting weights so that every layer's features have a root mean square near 1, which changes nothing else: new
    layers then begin and learn at the size that they expect. Not the paper's, whose rates are for Caffe's sizes."""
    frozen_until: str | None = None
    """A layer, such as conv4_3: it and all layers it is computed from keep their starting weights. None: all are trained."""

    def scaled_size(self, scale: float) -> int:
        """The allowed `input_size` next to `scale` times this one."""
        return 8 * round((self.input_size * scale - 1) / 8) + 1

    @field_validator("input_size")
    @classmethod
    def _whole_steps(cls, size: int) -> int:
        if size % 8 != 1:
            raise ValueError(f"{size} is not allowed; allowed: 8k + 1, such as 65, 129, 257, 513")
        return size

    @model_validator(mode="after")
    def _known_layer(self) -> Self:
        layers = [layer.name for branch in VARIANTS[self.variant] for layer in branch.layers]
        if self.frozen_until is not None and self.frozen_until not in layers:
            raise SettingsError(
                "frozen_until", f"{self.variant} has no layer {self.frozen_until!r}; allowed: {', '.join(layers)}"
            )
        return self


class DataConfig(Settings):
    """Where frames come from, and which views of them are trained on (paper, 4.1)."""

    source: Path | None = None
    """Folder with nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat, or of frames as pictures (data/frame_folder.py),
    or a store that was prepared from one. None: synthetic rooms are made."""
    rooms_train: Count = 60
    """Synthetic rooms in the train split, where `source` is None."""
    rooms_test: Count = 20
    """Synthetic rooms in the test split, where `source` is None."""
    rooms_seed: Seed = 0
    """Seed of the synthetic rooms."""
    num_crops: int = Field(4, ge=0)
    """Crops of each frame beside the frame and its mirror; 4 in the paper: six views."""
    crop_scale_min: Fraction = 0.5
    """Smallest crop, as a share of the frame's side. The paper does not say."""
    crop_scale_max: Fraction = 0.9
    """Largest crop, as a share of the frame's side. The paper does not say."""
    views: Literal["offline", "online"] = "offline"
    """`offline` is the paper's: crops, frame and mirror listed once, shuffled once, walked round and round. `online`: each
    visit of a frame cuts, mirrors and colours it anew, in a new order each round, and in each stage otherwise than in those
    before; `num_crops` and `crop_scale_max` have no part in it: crops go up to the whole frame."""
    color_jitter: float = Field(0.0, ge=0, lt=1)
    """Online views' brightness, contrast and saturation are each multiplied by 1 - this .. 1 + this."""
    cache_features: bool = False
    """Compute the features of the frozen layers (`network.frozen_until`) once for each view and train on those, kept in
    half precision in the run's folder. Needs offline views."""
    views_seed: Seed = 0
    """Seed of the crops, of the shuffle, and of online views."""
    train_depth: Literal["raw", "filled"] = "raw"
    """Depth trained on: `raw` is the sensor's, with holes left out (paper, 4.2)."""
    validation_frames: Count = 100
    """Frames of the train split drawn for validation and for the CRF search (paper, 4.1: 100)."""
    validation_by: Literal["frame", "scene"] = "frame"
    """What is drawn: single frames, as in the paper, whose neighbours are trained on; or whole runs of consecutive numbers,
    which in NYUv2 are one scene after the other, so that none of a run that is validated on is trained on; another run may show
    the same house. Folds and the resamples of intervals are of whole scenes then too."""
    validation_seed: Seed = 0
    """Seed of that draw."""
    train_on_validation: bool = False
    """Keep the validation frames in training. Only the `paper` preset does: its 4770 views are all 795 frames."""

    @model_validator(mode="after")
    def _colours_that_change(self) -> Self:
        if self.color_jitter and self.views == "offline":
            raise SettingsError(
                "color_jitter", f"{self.color_jitter} needs data.views=online: offline views are the frames' own"
            )
        return self

    @model_validator(mode="after")
    def _ordered_scales(self) -> Self:
        if self.views == "offline" and self.crop_scale_min > self.crop_scale_max:
            raise ValueError(f"crop_scale_min is {self.crop_scale_min}; allowed: up to crop_scale_max = {self.crop_scale_max}")
        return self


class LossConfig(Settings):
    """The joint loss, Eq 1: L = lambda L_sem + L_depth."""

    lambda_semantic: float = Field(1e-6, gt=0)
    """lambda, the weight of the semantic loss beside the depth loss (paper, 4.1: 1e-6)."""
    lambda_unit: Literal["sum", "mean"] = "sum"
    """What lambda weighs: `sum`, the semantic loss summed over pixels, is the paper's; `mean` is that over the input's pixels,
    void or not, so that one lambda weighs the same at any `network.input_size`."""
    class_balance: float = Field(0.0, ge=0, le=1)
    """p: a pixel of class c weighs f_c^-p in the semantic loss, f_c the class's share of the training pixels, scaled so that
    the mean weight of a pixel is 1. 0 is the paper's: all weigh the same."""
    crf_temperature: float = Field(1.0, gt=0)
    """T: in the semantic loss the CRF's logits are divided by it. The CRF is surer than it is right, because it counts what
    neighbours have in common once for each; at 1, the paper's, its training is mostly about being less sure."""
    depth_invariance: float = Field(1.0, ge=0, le=1)
    """1 is Eq 4, which leaves the depth's overall scale free; below 1 the scale is learned too (Eigen et al. 2014: 0.5)."""


class StageConfig(Settings):
    """One training stage (paper, 4.1)."""

    iterations: Count = 10_000
    """Optimiser steps."""
    batch_size: Count = 1
    """Images a pass on each worker; 1 in the paper."""
    accumulate: Count = 1
    """Passes whose gradients a step adds up: the same step as with a batch so many times as large, in less memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with coupled decay is Caffe's; `adamw` needs far fewer steps from random weights."""
    loss_unit: LossUnit = "sum"
    """What the rates are quoted on: `sum` L' = L_sem + L_depth / lambda, `joint` L = lambda L', `mean` L' / pixels. With `sgd`
    another unit wants another rate and decay: `jointseg.units.convert_rate` says which."""
    lr: float = Field(1e-10, gt=0)
    """Learning rate of the network. The paper's 1e-10 (4.1) is taken to be on the `sum` unit, and stage 2's to be stage 1's: it
    says neither."""
    crf_lr: float = Field(1e-13, gt=0)
    """Learning rate of the CRF's weights and compatibility (stage 3)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """`constant` is the paper's; `cosine` falls from the rate to 0."""
    warmup: int = Field(0, ge=0)
    """Steps over which the rate first rises from 0, linearly; half of `iterations` where it is more than that, so that a stage
    that is cut short, such as a trial of `search.finetune_iterations`, gets to its rate."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Momentum of `sgd`; the first beta of `adamw`."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay, of `sgd` in the same unit as the rate; biases and the CRF's weights have none."""
    bias_lr_multiplier: float = Field(2.0, gt=0)
    """Rate of biases over that of weights (DeepLab)."""
    head_lr_multiplier: float = Field(10.0, gt=0)
    """Rate of the score layers over `lr` (DeepLab)."""
    trunk_lr_multiplier: float = Field(1.0, gt=0)
    """Rate of VGG-16's convolutions (conv1_1 .. conv5_3) over `lr`: below 1 it spares what starting weights know."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the running mean of the weights, which is validated and kept at the end; 0: the weights themselves are. After n
    steps it is at most (1 + n) / (10 + n): a short stage keeps little of the weights that it began with."""


class TrainingConfig(Settings):
    """How training runs: workers, reports and checkpoints."""

    num_workers: Count = 1
    """Ray Train workers, one process each."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU for each worker where the cluster has them."""
    cpus_per_worker: Count = 1
    """CPUs asked of Ray for each worker, and the threads it uses."""
    log_every: Count = 10
    """Steps between reports of the losses."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; the last step always writes one."""
    async_checkpoints: bool = True
    """Write checkpoints while training goes on, from a copy in the CPU's memory; a stage ends when the last one is whole."""
    validate_every: Count = 500
    """Steps between validations, each on all validation frames; the last step always has one."""
    loader_workers: int = Field(0, ge=0)
    """Processes that cut views for each worker; 0 cuts them in the training process."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's passes in training (autocast); a worker whose device is not made for bfloat16 trains in float32, and
    that is said. Weights, losses, the CRF and all evaluation stay in float32; in float32 PyTorch's convolutions on GPUs round
    their factors to TF32 unless `torch.backends.cudnn.allow_tf32` is off."""
    channels_last: bool = False
    """Lay feature maps out with channels innermost: faster convolutions on CPUs, and on GPUs in half precision."""
    compile: bool = False
    """Compile the network with torch.compile: a minute at the start, then fewer and larger GPU kernels; see docs/training.md
    first."""
    recompute: bool = False
    """Compute the network's layers again in the backward pass instead of keeping what lies between: less memory, slower."""
    cuda_graphs: bool = False
    """Record the network's passes once and replay them, one launch each, where a stage has no CRF: for batches so small that
    launching kernels takes longer than they do. On a GPU, with one worker; other units may drop out than without."""
    max_failures: int = Field(0, ge=0)
    """Lost workers or nodes that a stage gets over by itself; beyond them it stops, and `run` again goes on."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept of each stage."""

    @model_validator(mode="after")
    def _passes_that_can_be_recorded(self) -> Self:
        for name in ("compile", "recompute"):
            if self.cuda_graphs and getattr(self, name):
                raise SettingsError("cuda_graphs", f"true is not allowed with training.{name}=true")
        return self


class Config(Settings):
    """Everything a run is made of. Its paths (`crf.theta_beta`) name settings everywhere: command line, search, MLflow."""

    preset: str = "paper"
    """The preset this began as; a name for people."""
    seed: Seed = 0
    """Seed of the weights' initialisation and of dropout."""
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    crf: CrfSettings = CrfSettings()
    crf_reference_size: int = Field(513, ge=1)
    """Input size at which the CRF's position bandwidths are quoted; at another they scale with `network.input_size`."""
    crf_train_iterations: Count = 5
    """Mean-field iterations in stage 3, which trains the CRF: without one it would have nothing to learn. Those of testing are
    `crf.num_iterations` (CRF-as-RNN: 5 and 10)."""
    stage1: StageConfig = StageConfig(iterations=160_000)
    stage2: StageConfig = StageConfig()
    stage3: StageConfig = StageConfig(lr=1e-16)
    one_stage: StageConfig = StageConfig(iterations=170_000)
    """Both tasks from the start, instead of stages 1 and 2; the paper found that it falls faster and ends worse (4.1)."""
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def lambda_of_sum(self) -> float:
        """The lambda of Eq 1, which weighs the summed semantic loss, whatever the unit that it is given in."""
        num_pixels = self.network.input_size**2
        return self.loss.lambda_semantic / (num_pixels if self.loss.lambda_unit == "mean" else 1)

    @model_validator(mode="after")
    def _sizes_that_differ(self) -> Self:
        sizes = [self.network.scaled_size(scale) for scale in self.evaluation.scales]
        if len(set(sizes)) < len(sizes) or min(sizes) < MIN_SIZE:
            listed = ", ".join(f"{scale:g} is {size}" for scale, size in zip(self.evaluation.scales, sizes, strict=True))
            raise SettingsError(
                "evaluation.scales",
                f"sizes of the input come out as: {listed}; allowed: different ones (8k + 1) from {MIN_SIZE} up",
            )
        return self

    @model_validator(mode="after")
    def _features_that_can_be_kept(self) -> Self:
        if self.data.cache_features and (self.network.frozen_until is None or self.data.views == "online"):
            raise SettingsError(
                "data.cache_features",
                "needs network.frozen_until, and data.views=offline: features are kept of views that recur",
            )
        if self.data.cache_features and self.training.cuda_graphs:
            raise SettingsError("training.cuda_graphs", "true is not allowed with data.cache_features=true")
        return self


OPERATIONAL = frozenset(
    {f"training.{name}" for name in ("async_checkpoints", "loader_workers", "max_failures", "keep_checkpoints")}
    | {"search.concurrent", "search.filter_cache", "search.node_folder", "evaluation.processes_per_gpu"}
)
"""Paths of the settings that change no number a run comes to: a run may go on under others."""
