"""The metrics of Tables 2 and 3 as sums that add, and the crops of the frame they are taken over.

Not here: what the paper reached (published.py), the loop over the test frames (pipeline/evaluate.py).

Batches, ranks and folds combine by `+`, and are divided once at the end; a mean of their means would be wrong.
"""

# C classes, M images, K sums an image; arrays may be tensors on any device, sums are kept in numpy

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointseg.data.frame import FRAME_SIZE, valid_depth
from jointseg.errors import InputError
from jointseg.labels import VOID

Array: TypeAlias = Tensor | NDArray[Any]
AnyArray = TypeVar("AnyArray", Tensor, NDArray[Any])
Absent: TypeAlias = Literal["ignore", "zero", "gt_present"]
Pooling: TypeAlias = Literal["pixels", "images"]
Crop: TypeAlias = Literal["none", "eigen", "gupta"]

CROPS: Mapping[str, tuple[slice, slice]] = {
    "none": (slice(None), slice(None)),
    "eigen": (slice(45, 471), slice(41, 601)),
    "gupta": (slice(45, 470), slice(40, 600)),
}
"""Rows and columns of a 480 x 640 frame that others have scored; the paper names none."""
_LEVELS = 256
"""Of labels in a byte."""


def crop(array: AnyArray, name: Crop) -> AnyArray:
    """The part (..., h, w) of an array (..., 480, 640) that is scored; `none` takes any size.

    Raises:
        InputError: the array is not 480 x 640 and the crop is not `none`.
    """
    if name != "none" and tuple(array.shape[-2:]) != FRAME_SIZE:
        raise InputError(f"crop {name}: frame is {tuple(array.shape[-2:])}; allowed: {FRAME_SIZE}, or crop none at any size")
    rows, columns = CROPS[name]
    return array[..., rows, columns]


@dataclass(frozen=True, eq=False)
class SegmentationSums:
    """Pixels of each true class (rows) by predicted class (columns): (C, C) int64, void left out."""

    confusion: NDArray[np.int64]

    @classmethod
    def from_labels(cls, prediction: Array, truth: Array, num_classes: int) -> Self:
        """Counts of labels of equal shape, any number of images; `prediction` 0..C-1, `truth` 0..C-1 or VOID."""
        predicted, true = _tensor(prediction), _tensor(truth)
        assert predicted.shape == true.shape, f"prediction is {tuple(predicted.shape)} but truth is {tuple(true.shape)}"
        for name, labels in (("truth", true), ("prediction", predicted)):
            in_a_byte = labels.dtype == torch.uint8 or labels.numel() == 0 or 0 <= labels.min() <= labels.max() < _LEVELS
            assert in_a_byte, f"{name} has a label outside 0..{num_classes - 1}"
        pairs = torch.bincount((true.int() * _LEVELS + predicted).flatten(), minlength=_LEVELS**2).view(_LEVELS, _LEVELS)
        assert not pairs[num_classes:VOID].any(), f"truth has a label outside 0..{num_classes - 1}"
        assert not pairs[:num_classes, num_classes:].any(), f"prediction has a label outside 0..{num_classes - 1}"
        return cls(pairs[:num_classes, :num_classes].contiguous().cpu().numpy())

    def __add__(self, other: Self) -> Self:
        return type(self)(self.confusion + other.confusion)

    @property
    def pixel_accuracy(self) -> float:
        """Share of pixels labelled rightly; NaN without a pixel."""
        return float(_divide(np.trace(self.confusion), self.confusion.sum()))

    @property
    def class_iou(self) -> NDArray[np.float64]:
        """(C,), intersection over union; NaN for a class in neither truth nor prediction."""
        hits = np.diag(self.confusion)
        return _divide(hits, self.confusion.sum(1) + self.confusion.sum(0) - hits)

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """(C,), share of a class's true pixels labelled rightly; NaN for a class that is not in the truth."""
        return _divide(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of the IoU over true pixels, each with its class's (FCN's fourth metric); NaN without a pixel."""
        pixels = self.confusion.sum(1)
        return float(_divide(np.nansum(pixels * self.class_iou), pixels.sum()))

    def mean_iou(self, *, absent: Absent = "ignore") -> float:
        """Mean over classes of the IoU; NaN without a pixel."""
        return self._mean(self.class_iou, absent)

    def mean_accuracy(self, *, absent: Absent = "ignore") -> float:
        """Mean over classes of the class accuracy; NaN without a pixel."""
        return self._mean(self.class_accuracy, absent)

    def _mean(self, values: NDArray[np.float64], absent: Absent) -> float:
        in_truth = self.confusion.sum(1) > 0
        kept = {"ignore": values[~np.isnan(values)], "zero": np.nan_to_num(values), "gt_present": values[in_truth]}[absent]
        return float(kept.mean()) if in_truth.any() else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain lists of whole numbers, for JSON."""
        return {"confusion": self.confusion.tolist()}


DEPTH_SUMS = ("pixels", "delta1", "delta2", "delta3", "abs_rel", "sq_rel", "square", "log", "log_square", "log_abs")
"""The columns of `DepthSums.images`, each a sum over the valid pixels of one image; logarithms are natural."""


@dataclass(frozen=True, eq=False)
class DepthSums:
    """For each image its sums over valid pixels: (M, K) float64, columns DEPTH_SUMS.

    Adding puts the images of both together, so that the mean over images stays possible; totals over pixels are rounded
    once (`math.fsum`) and come out the same to the last bit in whatever order images were added.
    """

    images: NDArray[np.float64]

    @classmethod
    def from_depth(cls, prediction: Array, truth: Array) -> Self:
        """Sums of depths in metres: (B, H, W), B images, or with fewer axes one image.

        Where `truth` is not a valid depth nothing is counted; `prediction` is a valid depth wherever `truth` is.
        """
        predicted, true = _tensor(prediction), _tensor(truth)
        assert predicted.shape == true.shape, f"prediction is {tuple(predicted.shape)} but truth is {tuple(true.shape)}"
        if true.ndim < 3:
            predicted, true = predicted[None], true[None]
        rows = [_image_sums(p, t) for p, t in zip(predicted, true, strict=True)]
        return cls(np.array(rows, dtype=np.float64).reshape(-1, len(DEPTH_SUMS)))

    def __add__(self, other: Self) -> Self:
        return type(self)(np.concatenate([self.images, other.images]))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists of numbers, for JSON."""
        return {"images": self.images.tolist()}


def segmentation_metrics(sums: SegmentationSums, *, absent: Absent = "ignore") -> dict[str, float]:
    """Table 3, and the frequency-weighted IoU, which it lacks, as shares of 1; NaN without a pixel.

    Args:
        sums: of the whole test set.
        absent: classes without a value (for the IoU: in neither truth nor prediction; for the accuracy: not in the truth)
            are left out (`ignore`, as FCN) or count as 0 (`zero`); `gt_present` keeps the classes of the truth alone.
    """
    return {
        "mean_iou": sums.mean_iou(absent=absent),
        "mean_accuracy": sums.mean_accuracy(absent=absent),
        "pixel_accuracy": sums.pixel_accuracy,
        "frequency_weighted_iou": sums.frequency_weighted_iou,
    }


def depth_metrics(sums: DepthSums, *, pooling: Pooling = "pixels") -> dict[str, float]:
    """Table 2 (paper, 4.2), and the mean absolute difference of decimal logarithms; NaN without a pixel.

    delta1..3 are the shares of pixels with max(d/d*, d*/d) < 1.25, 1.25^2, 1.25^3. rmse is in metres, sq_rel = mean of
    (d - d*)^2 / d* too. si_log_std and si_log_var are the standard deviation and the variance of log d - log d*: what the
    paper prints as "RMSE (log, scale invariant)" can only be the variance.

    Args:
        sums: of the whole test set.
        pooling: `pixels` of all images weigh alike, or each metric is taken of an image and averaged over `images`; images
            without a valid pixel are left out.
    """
    if pooling == "pixels":
        return _metrics_of(np.array([math.fsum(column) for column in sums.images.T]))
    each = [_metrics_of(row) for row in sums.images if row[0] > 0]
    names = _metrics_of(np.zeros(len(DEPTH_SUMS)))
    return {name: math.fsum(one[name] for one in each) / len(each) if each else math.nan for name in names}


def _image_sums(prediction: Tensor, truth: Tensor) -> list[float]:
    valid = valid_depth(truth)
    d, true = torch.where(valid, prediction, 1.0), torch.where(valid, truth, 1.0)  # 1 and 1: no error; picking out is slow
    assert bool(valid_depth(d).all()), "a predicted depth is not a valid depth"
    quotient = d / true
    ratio = torch.maximum(quotient, quotient.reciprocal())
    error, r = (d - true).abs(), quotient.log()
    counts = [valid, *(valid & (ratio < 1.25**power) for power in (1, 2, 3))]
    terms = [error / true, error.square() / true, error.square(), r, r.square(), r.abs()]
    sums = [torch.count_nonzero(count).double() for count in counts] + [term.sum(dtype=torch.float64) for term in terms]
    row: list[float] = torch.stack(sums).tolist()  # one trip from the device
    return row


def _metrics_of(row: NDArray[np.float64]) -> dict[str, float]:
    mean = dict(zip(DEPTH_SUMS, _divide(row, row[0]).tolist(), strict=True))
    variance = max(mean["log_square"] - mean["log"] ** 2, 0.0) if row[0] > 0 else math.nan
    return {
        "delta1": mean["delta1"],
        "delta2": mean["delta2"],
        "delta3": mean["delta3"],
        "abs_rel": mean["abs_rel"],
        "sq_rel": mean["sq_rel"],
        "rmse": math.sqrt(mean["square"]),
        "rmse_log": math.sqrt(mean["log_square"]),
        "si_log_std": math.sqrt(variance),
        "si_log_var": variance,
        "log10": mean["log_abs"] / math.log(10),
    }


def _tensor(array: Array) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array.copy())  # copied: mirrored and read-only ones too


def _divide(sums: Any, counts: Any) -> NDArray[np.float64]:
    """`sums / counts`, NaN where a count is 0."""
    with np.errstate(invalid="ignore"):
        quotient: NDArray[np.float64] = np.divide(sums, counts, dtype=np.float64)
        return quotient
