"""Logits out of labels and of probabilities. Not here: what the CRF does with them."""

import numpy as np
import pytest
import torch

from jointseg.crf import InputError, logits_from_labels, logits_from_probabilities

LABELS = torch.randint(0, 5, (2, 7, 9), generator=torch.Generator().manual_seed(0))


def test_a_label_has_the_confidence_and_the_others_share_the_rest():
    labels = LABELS.clone()
    labels[1, 2:4] = 255
    q = logits_from_labels(labels, 5, confidence=0.6).softmax(1)
    known = labels != 255
    at = q.gather(1, labels.where(known, 0)[:, None])[:, 0]
    torch.testing.assert_close(at[known], torch.full_like(at[known], 0.6))
    torch.testing.assert_close(q.sort(1).values[:, :-1].movedim(1, -1)[known], torch.full((int(known.sum()), 4), 0.1))
    torch.testing.assert_close(q.movedim(1, -1)[~known], torch.full((18, 5), 0.2))


def test_labels_of_any_integers_and_any_index_for_none():
    expected = logits_from_labels(LABELS.where(LABELS != 0, 255), 5)
    bytes_of = LABELS.byte().where(LABELS != 0, 255)
    assert torch.equal(logits_from_labels(bytes_of, 5), expected)
    assert torch.equal(logits_from_labels(LABELS.int().where(LABELS != 0, -1), 5, ignore_index=-1), expected)
    with pytest.raises(InputError, match=r"as 255; allowed: 0..4, or ignore_index, -1"):
        logits_from_labels(bytes_of, 5, ignore_index=-1)


def test_both_are_pydensecrfs():
    utils = pytest.importorskip("pydensecrf.utils", reason="needs pydensecrf2")
    labels = LABELS.where(LABELS != 3, 255)
    theirs = -utils.unary_from_labels((LABELS[0].where(LABELS[0] != 3, -1) + 1).numpy(), 5, gt_prob=0.7, zero_unsure=True)
    ours = logits_from_labels(labels, 5)[0].flatten(1)
    np.testing.assert_allclose(ours, theirs.reshape(5, -1), rtol=1e-6)
    probabilities = torch.rand(1, 5, 7, 9).softmax(1)
    probabilities[0, 2, 3, 4] = 0
    theirs = -utils.unary_from_softmax(probabilities[0].numpy())
    np.testing.assert_allclose(logits_from_probabilities(probabilities)[0].flatten(1), theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((LABELS[0], 5), r"labels are \(7, 9\) torch.int64; allowed: \(B, H, W\)"),
        ((LABELS.float(), 5), "labels are .* torch.float32; allowed: .* of integers"),
        ((LABELS.numpy(), 5), "labels is a ndarray"),
        ((LABELS, 4), r"labels: \d+ are out of range, as 4; allowed: 0..3, or ignore_index, 255"),
        ((LABELS - 1, 5), "as -1"),
        ((LABELS, 1), "num_classes is 1"),
        ((LABELS, 5.0), "num_classes is a float; allowed: a whole number"),
    ],
)
def test_other_labels_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        logits_from_labels(*given)


def test_a_confidence_is_a_number():
    with pytest.raises(InputError, match="confidence is a str; allowed: a number"):
        logits_from_labels(LABELS, 5, confidence="a")


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_no_label_is_certain(confidence):
    with pytest.raises(InputError, match=f"confidence {confidence}; allowed: .* between 0 and 1"):
        logits_from_labels(LABELS, 5, confidence=confidence)


@pytest.mark.parametrize(
    ("given", "least", "message"),
    [
        (torch.ones(1, 2, 3, 3), 0, "least is 0; allowed: between 0 and 1"),
        (torch.ones(1, 2, 3, 3), 2.0, "least is 2.0"),
        (torch.ones(1, 2, 3, 3), "a", "least is a str; allowed: a number"),
        (np.ones((1, 2, 3, 3)), 1e-5, "probabilities is a ndarray; allowed: torch.Tensor"),
        (torch.ones(1, 2, 3, 3, dtype=torch.uint8), 1e-5, "probabilities are torch.uint8; allowed: of a floating point"),
        (torch.tensor([-3.0, 0.5]), 1e-5, r"probabilities have values in -3..0.5; allowed: 0..1"),
        (torch.tensor([0.0, 50.0]), 1e-5, r"probabilities have values in 0..50"),
        (torch.tensor([0.0, float("nan")]), 1e-5, "1 of 2 values are NaN"),
    ],
)
def test_what_are_no_probabilities_is_refused(given, least, message):
    with pytest.raises(InputError, match=message):
        logits_from_probabilities(given, least=least)


def test_logits_of_labels_are_float32_whatever_torchs_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert logits_from_labels(LABELS, 5).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_probabilities_are_refused_and_none_is_too_small_for_its_dtype():
    with pytest.raises(InputError, match=r"probabilities have shape \(0, 5, 7, 9\); allowed: .*, not empty"):
        logits_from_probabilities(torch.empty(0, 5, 7, 9))
    assert logits_from_probabilities(torch.tensor([0.0, 1.0]).half()[None, :, None, None], least=1e-8).isfinite().all()
