"""The argmax of an upsampled map, held to PyTorch's own upsampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from jointseg.evaluation import _labels_on_device, labels_at_full_size
from jointseg.upsampling import argmax_upsampled


@pytest.mark.parametrize(
    ("map_size", "frame_size"),
    [
        ((65, 65), (480, 640)),
        ((49, 65), (480, 640)),
        ((61, 90), (40, 33)),
        ((61, 90), (20, 33)),
        ((30, 40), (30, 40)),
        ((1, 1), (5, 7)),
        ((3, 1), (1, 4)),
    ],
    ids=["stretched", "fit", "smaller", "a third", "same", "one pixel", "one column to one row"],
)
def test_labels_are_those_of_upsampling_and_argmax(map_size: tuple[int, int], frame_size: tuple[int, int]) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(40, *map_size)).astype(np.float32))
    upsampled = interpolate(logits[None].double(), size=frame_size, mode="bilinear", align_corners=False)[0]
    first, second = upsampled.topk(2, dim=0).values
    clear = (first - second > 1e-5).numpy()
    assert clear.mean() > 0.99, "too few pixels are clear for the comparison to say anything"
    labels = argmax_upsampled(logits.numpy(), frame_size)
    assert labels.dtype == np.uint8 and labels.shape == frame_size
    np.testing.assert_array_equal(labels[clear], upsampled.argmax(0).numpy()[clear])
    by_device = _labels_on_device(logits, frame_size)  # the way of a GPU, which any device can go
    assert by_device.dtype == np.uint8 and by_device.shape == frame_size
    np.testing.assert_array_equal(by_device[clear], labels[clear])


@pytest.mark.parametrize("C", [1, 8, 21, 150, 256])
def test_labels_of_any_number_of_classes_are_the_same_in_either_layout(C: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(C, 9, 14)).astype(np.float32))
    labels = argmax_upsampled(logits.numpy(), (31, 40))
    last = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    np.testing.assert_array_equal(argmax_upsampled(last.numpy(), (31, 40)), labels)
    upsampled = interpolate(logits[None], size=(31, 40), mode="bilinear", align_corners=False)[0]
    assert (labels == upsampled.argmax(0).numpy()).mean() > 0.999
    assert labels.max() > 0.9 * C - 1


def test_the_first_of_tied_classes_is_taken() -> None:
    logits = np.zeros((4, 3, 3), np.float32)
    logits[[1, 3]] = 2.0
    assert (argmax_upsampled(logits, (6, 5)) == 1).all()


def test_a_part_of_a_map_is_taken_as_it_is() -> None:
    """The network's output without its padding is a view that skips numbers."""
    whole = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 9, 9)).astype(np.float32))
    part = whole[:, :7, :]
    np.testing.assert_array_equal(labels_at_full_size(part), labels_at_full_size(part.clone()))


def test_classes_far_below_0_are_labels_too() -> None:
    logits = np.full((3, 2, 2), -1e30, np.float32)
    logits[2] = -1e29
    assert (argmax_upsampled(logits, (4, 4)) == 2).all()
