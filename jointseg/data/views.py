"""The six views of each training frame (paper, 4.1), or the frame alone where views are drawn at each visit; and the tensors
that a view or a whole image is rendered to.

Not here: how frames are read (store.py) or the list of views is kept on disk (manifest.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jointseg.config import DataConfig, NetworkConfig
from jointseg.data.frame import FRAME_SIZE, Frame, valid_depth
from jointseg.labels import VOID
from jointseg.network.network import CAFFE_MEAN_BGR
from jointseg.settings import SettingsError

_MOST_DRAWS = 100

MEAN_PIXEL = tuple(round(level) for level in reversed(CAFFE_MEAN_BGR))
"""RGB of the padding, (123, 117, 104): DeepLab's mean, rounded. Those of VGG-16 and of torchvision are within a level of it."""

Kind = Literal["crop", "original", "mirror"]


@dataclass(frozen=True)
class View:
    """One view of a frame: a rectangle of its pixels, perhaps mirrored."""

    frame: int
    """1-based number of the frame."""
    kind: Kind
    top: int
    left: int
    height: int
    width: int
    zoom: float
    """Side of the frame over side of the rectangle; the view is that much nearer than the frame."""
    mirror: bool
    """Left and right change places after resizing."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What the network trains on. S is `network.input_size`; the view lies top left, padding right and below."""

    image: Tensor
    """(3, S, S) uint8, RGB; padding is MEAN_PIXEL."""
    labels: Tensor
    """(S, S) uint8, 0..39 or VOID; padding is VOID."""
    depth: Tensor
    """(S, S) float32, metres, a whole number of depth bins; 0 = missing, and padding."""


def make_views(numbers: Sequence[int], config: DataConfig) -> tuple[View, ...]:
    """The views of these frames that are listed before training.

    Offline: all that are trained on, shuffled once. The crops of a frame depend on `config.views_seed` and its number alone,
    not on which other frames there are. Online: each frame whole and once, ascending; what is trained on is drawn from those at
    each visit (augment.py), and neither `num_crops` nor `crop_scale_max` has a part in it.

    Args:
        numbers: 1-based frame numbers, none of them twice.
        config: views; and num_crops, crop_scale_min, crop_scale_max and views_seed of offline ones.
    """
    assert len(set(numbers)) == len(numbers)
    if config.views == "online":
        return tuple(_whole(number) for number in sorted(numbers))
    views = [view for number in numbers for view in _views_of(number, config)]
    order = np.random.default_rng(config.views_seed).permutation(len(views))
    return tuple(views[i] for i in order)


def _views_of(number: int, config: DataConfig) -> list[View]:
    random = np.random.default_rng([config.views_seed, number])
    scale = config.crop_scale_min, config.crop_scale_max
    views = [random_crop(number, random, scale=scale) for _ in range(config.num_crops)]
    original = _whole(number)
    return [*views, original, replace(original, kind="mirror", mirror=True)]


def _whole(number: int) -> View:
    return View(number, "original", 0, 0, *FRAME_SIZE, zoom=1.0, mirror=False)


def random_crop(number: int, random: np.random.Generator, *, scale: tuple[float, float]) -> View:
    """A crop of the frame's own aspect, its side uniform in `scale` times the frame's, its place uniform."""
    height, width = FRAME_SIZE
    # A whole number of steps of the aspect, (3, 4) pixels: the zoom is one number, exactly.
    steps = math.gcd(height, width)
    side = max(1, round(steps * random.uniform(*scale)))
    h, w = height // steps * side, width // steps * side
    top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
    return View(number, "crop", top, left, h, w, zoom=steps / side, mirror=False)


def draw_validation(train: Sequence[int], config: DataConfig) -> tuple[int, ...]:
    """Frames of the train split drawn for validation, ascending (paper, 4.1: 100 of 795).

    Raises:
        SettingsError: there are not as many, or none would be left to train on, or not so many are in whole scenes.
    """
    num_frames, seed = config.validation_frames, config.validation_seed
    most = len(train) if config.train_on_validation else len(train) - 1
    if num_frames > most:
        raise SettingsError(
            "data.validation_frames", f"{num_frames} is not allowed; allowed: up to {most} of the {len(train)} train frames"
        )
    generator = np.random.default_rng(seed)
    if config.validation_by == "scene":
        return _draw_runs(sorted(train), num_frames, generator)
    drawn = generator.choice(sorted(train), size=num_frames, replace=False)
    return tuple(sorted(drawn.tolist()))


def _draw_runs(train: Sequence[int], num_frames: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Whole runs of consecutive numbers, in random order, each that still fits; drawn again where they do not add up."""
    runs = consecutive_runs(train)
    for _ in range(_MOST_DRAWS):
        drawn: list[int] = []
        for place in generator.permutation(len(runs)):
            if len(drawn) + len(runs[place]) <= num_frames:
                drawn += runs[place]
        if len(drawn) == num_frames:
            return tuple(sorted(drawn))
    raise SettingsError(
        "data.validation_by",
        f"'scene' finds no {num_frames} frames in {len(runs)} whole run(s) of consecutive numbers; allowed here: 'frame', "
        "or another data.validation_frames",
    )


def consecutive_runs(numbers: Sequence[int]) -> list[Sequence[int]]:
    """Rising frame numbers in runs without a gap: NYU's frames of one room follow each other."""
    starts = [place for place, number in enumerate(numbers) if not place or number != numbers[place - 1] + 1]
    return [numbers[start:stop] for start, stop in pairwise([*starts, len(numbers)])]


def scenes_of(numbers: Sequence[int], config: DataConfig) -> tuple[int, ...] | None:
    """The scene of each frame, rising: its place among `consecutive_runs`. Neighbouring scenes may be one.

    None where they are not known: the config does not draw by scene, or all are one run.
    """
    runs = consecutive_runs(numbers)
    if config.validation_by != "scene" or len(runs) < 2:
        return None
    return tuple(place for place, run in enumerate(runs) for _ in run)


def subset_digest(numbers: Iterable[int], seed: int, store_digest: str) -> str:
    """SHA-256 that names a drawn subset: which frames, by which seed, of which store."""
    identity = {"numbers": sorted(numbers), "seed": seed, "store": store_digest}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def content_size(height: int, width: int, input_size: int, resize: Literal["fit", "stretch"]) -> tuple[int, int]:
    """Height and width that an image takes inside the square input; 480 x 640 in 513 is (385, 513), or all of it."""
    if resize == "stretch":
        return input_size, input_size
    longer = max(height, width)
    # Half rounds up, in whole numbers.
    return max(1, (2 * height * input_size + longer) // (2 * longer)), max(1, (2 * width * input_size + longer) // (2 * longer))


def render_view(
    frame: Frame,
    view: View,
    *,
    network: NetworkConfig,
    depth: Literal["raw", "filled"],
    recolour: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> Sample:
    """Cut, resize, mirror and pad one view of `frame`; its depth is divided by the zoom, then clipped, then rounded.

    `recolour` changes the colours of the resized picture, (h, w, 3) RGB.
    """
    assert frame.number == view.frame
    rows, columns = slice(view.top, view.top + view.height), slice(view.left, view.left + view.width)
    height, width = content_size(view.height, view.width, network.input_size, network.resize)
    metres = frame.raw_depth if depth == "raw" else frame.filled_depth
    image = _resized(frame.image[rows, columns], height, width)
    if recolour is not None:
        image = recolour(image)
    labels = _nearest(frame.labels[rows, columns], height, width)
    near = _nearest(metres[rows, columns], height, width) / np.float32(view.zoom)
    if view.mirror:
        image, labels, near = image[:, ::-1], labels[:, ::-1], near[:, ::-1]
    target = depth_target(
        torch.from_numpy(np.ascontiguousarray(near)), depth_bin=network.depth_bin, num_bins=network.num_depth_bins
    )
    return Sample(
        image=_padded_image(image, network.input_size),
        labels=_padded(torch.from_numpy(np.ascontiguousarray(labels)), network.input_size, VOID),
        depth=_padded(target, network.input_size, 0),
    )


def render_input(image: NDArray[np.uint8], *, network: NetworkConfig) -> Tensor:
    """A whole RGB image (H, W, 3) as the network's input, (3, S, S) uint8, padded as a view is."""
    height, width = content_size(image.shape[0], image.shape[1], network.input_size, network.resize)
    return _padded_image(_resized(image, height, width), network.input_size)


def depth_target(depth: Tensor, *, depth_bin: float, num_bins: int) -> Tensor:
    """Depth clipped at the last bin and rounded to the nearest, half a bin up: clip(floor(d/l + 1/2), 1, N) l (4.2).

    Args:
        depth: metres, any shape, 0 = missing.
        depth_bin: l, metres.
        num_bins: N.

    Returns:
        float32, metres; 0 where the depth is missing.
    """
    # float32 keeps some half bins a little below the half: the width of that error, in bins, is added back.
    slack = num_bins * torch.finfo(torch.float32).eps
    bins = torch.floor(depth.double() / depth_bin + (0.5 + slack)).clamp_(1, num_bins)
    return torch.where(valid_depth(depth), (bins * depth_bin).float(), 0.0)


def _resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _nearest(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The value under the centre of each new pixel; labels and depths must not be mixed."""
    rows = ((np.arange(height) + 0.5) * (values.shape[0] / height)).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * (values.shape[1] / width)).astype(np.intp)
    picked: NDArray[Any] = values[rows[:, None], columns]
    return picked


def _padded(content: Tensor, size: int, padding: int) -> Tensor:
    canvas = torch.full((size, size), padding, dtype=content.dtype)
    canvas[: content.shape[0], : content.shape[1]] = content
    return canvas


def _padded_image(image: NDArray[np.uint8], size: int) -> Tensor:
    canvas = torch.tensor(MEAN_PIXEL, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    canvas[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return canvas
