"""Predictions at full resolution, and the sums that Tables 2 and 3 are divided from.

Not here: the metrics themselves (metrics.py), which rows are evaluated and where (pipeline/evaluate.py).
"""

# C classes, h x w the part of the network's input that shows the frame, H x W the frame

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from jointseg.config import Config
from jointseg.crf import DenseCRF
from jointseg.crf.inputs import least_and_greatest
from jointseg.data.frame import FRAME_SIZE, Frame
from jointseg.errors import OutOfRangeError
from jointseg.evaluation_config import EvaluationConfig
from jointseg.labels import NUM_CLASSES
from jointseg.metrics import DepthSums, SegmentationSums, crop, depth_metrics, segmentation_metrics
from jointseg.model import JointModel
from jointseg.stages import Kernels
from jointseg.tta import network_says
from jointseg.upsampling import argmax_upsampled

LARGE = 2**22
"""Pixels of a picture whose scores, upsampled, would take a GPU's memory: 40 classes, 0.7 GB."""


class Prediction(NamedTuple):
    """What a model says of one frame, at the frame's own size."""

    labels: NDArray[np.uint8]
    """(H, W), 0..C-1."""
    depth: NDArray[np.float32] | None
    """(H, W), metres; None where the depth heads did not run."""


class Sums(NamedTuple):
    """Sums over any set of frames; sets add."""

    segmentation: SegmentationSums
    depth: DepthSums | None

    def plus(self, other: Sums) -> Sums:
        """The sums over both sets."""
        assert (self.depth is None) == (other.depth is None)
        depth = None if self.depth is None or other.depth is None else self.depth + other.depth
        return Sums(self.segmentation + other.segmentation, depth)

    def metrics(self, evaluation: EvaluationConfig) -> dict[str, float]:
        """The metrics of Tables 3 and 2, by its switches."""
        metrics = segmentation_metrics(self.segmentation, absent=evaluation.absent_classes)
        if self.depth is not None:
            metrics |= depth_metrics(self.depth, pooling=evaluation.depth_pooling)
        return metrics


class Unaries(NamedTuple):
    """What the CRF starts from, for one frame, on the h x w part of the input that shows it."""

    image: Tensor
    """(3, h, w), uint8 RGB."""
    logits: Tensor
    """(C, h, w)."""
    depth: Tensor
    """(h, w), metres, estimated."""

    def to(self, device: torch.device) -> Unaries:
        """The same on a device."""
        return Unaries(*(values.to(device) for values in self))


def labels_at_full_size(logits: Tensor, size: tuple[int, int] = FRAME_SIZE, *, of: str = "network") -> NDArray[np.uint8]:
    """The likeliest class of each pixel of the frame: (C, h, w) logits, upsampled bilinearly, to (H, W) labels.

    Raises:
        OutOfRangeError: the logits are not all finite; the message says whose they are, `of`.
    """
    _refuse_nonfinite(logits, f"the {of}'s logits")
    if logits.device.type == "cpu" or size[0] * size[1] > LARGE:
        return argmax_upsampled(logits.float().cpu().numpy(), size)
    return _labels_on_device(logits, size)


def _labels_on_device(logits: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """`argmax_upsampled` on the device of the logits, which holds all scores at full size at once."""
    full = interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    labels: NDArray[np.uint8] = full.argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def depth_at_full_size(depth: Tensor, size: tuple[int, int] = FRAME_SIZE) -> NDArray[np.float32]:
    """(h, w) metres to (H, W) metres, bilinearly.

    Raises:
        OutOfRangeError: they are not all finite.
    """
    _refuse_nonfinite(depth, "the network's depths")
    full: NDArray[np.float32] = (
        interpolate(depth[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    )
    return full


def _refuse_nonfinite(values: Tensor, what: str) -> None:
    """Raise OutOfRangeError unless all values are finite: NaN would silently be class 0, and infinity the likeliest class."""
    if not math.isfinite(sum(bound.item() for bound in least_and_greatest(values))):
        raise OutOfRangeError(f"{what} are NaN or infinite; its weights are too large")


@torch.no_grad()
def predict(
    model: JointModel, frames: Iterable[Frame], config: Config, *, kernels: Kernels, with_depth: bool, device: torch.device
) -> Iterator[tuple[Frame, Prediction]]:
    """Each frame with the model's prediction for it, one at a time.

    Raises:
        OutOfRangeError: a frame's logits or depths are not all finite; the message names the frame.
    """
    for frame in frames:
        try:
            found = predict_image(model, frame.image, config, kernels=kernels, with_depth=with_depth, device=device)
        except OutOfRangeError as error:
            raise OutOfRangeError(f"frame {frame.number}: {error}") from None
        yield frame, found


@torch.no_grad()
def predict_image(
    model: JointModel, image: NDArray[np.uint8], config: Config, *, kernels: Kernels, with_depth: bool, device: torch.device
) -> Prediction:
    """The model's prediction for a picture of any size, (H, W, 3) RGB.

    Raises:
        OutOfRangeError: its logits or depths are not all finite.
    """
    model.eval()
    H, W = image.shape[:2]
    seen = network_says(model, image, config, with_depth=with_depth, device=device)
    depth = None if seen.depth is None else depth_at_full_size(seen.depth[0], (H, W))
    if kernels is Kernels.NONE:
        return Prediction(labels_at_full_size(seen.logits[0], (H, W)), depth)
    logits = model.refined(seen.logits, seen.image, seen.depth, kernels=kernels)
    return Prediction(labels_at_full_size(logits[0], (H, W), of="network's or the CRF"), depth)


@torch.no_grad()
def compute_unaries(model: JointModel, frame: Frame, config: Config, *, device: torch.device) -> Unaries:
    """The network's logits and depth for one frame: what a trial of the search runs its CRF on.

    Raises:
        OutOfRangeError: they are not all finite.
    """
    model.eval()
    image, logits, depth = network_says(model, frame.image, config, with_depth=True, device=device)
    assert depth is not None
    _refuse_nonfinite(logits, f"frame {frame.number}: the network's logits")
    _refuse_nonfinite(depth, f"frame {frame.number}: the network's depths")
    return Unaries(image[0].cpu(), logits[0].cpu(), depth[0].cpu())


def score(frame: Frame, prediction: Prediction, evaluation: EvaluationConfig) -> Sums:
    """The sums of one frame, on the part of it that `evaluation.crop` names, against the depth it names."""
    truth = frame.filled_depth if evaluation.depth_truth == "filled" else frame.raw_depth
    segmentation = score_labels(prediction.labels, frame.labels, evaluation)
    depth = None
    if prediction.depth is not None:
        depth = DepthSums.from_depth(crop(prediction.depth, evaluation.crop), crop(truth, evaluation.crop))
    return Sums(segmentation, depth)


@torch.no_grad()
def refined_labels(unaries: Unaries, crf: DenseCRF, *, size: tuple[int, int] = FRAME_SIZE) -> NDArray[np.uint8]:
    """The classes of one frame after the CRF alone, (H, W); the search takes several frames at once (pipeline/study/trial.py).

    Args:
        unaries: what the CRF starts from.
        crf: with the settings to try.
        size: H, W.

    Raises:
        OutOfRangeError: the CRF's logits are not all finite.
    """
    refined = crf(unaries.logits[None], image=unaries.image[None], depth=unaries.depth[None])
    return labels_at_full_size(refined[0], size, of="CRF")


def score_labels(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], evaluation: EvaluationConfig) -> SegmentationSums:
    """The sums of one frame's classes (H, W) against its true ones, on the part that `evaluation.crop` names."""
    return SegmentationSums.from_labels(crop(predicted, evaluation.crop), crop(truth, evaluation.crop), NUM_CLASSES)
