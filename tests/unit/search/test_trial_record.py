"""What is kept of a trial: its scores, the matrix of each frame, digests. Not here: the trial (test_trial.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jointseg.boundary import BoundarySums
from jointseg.errors import DiskError, InputError
from jointseg.metrics import SegmentationSums
from pipeline.study.trial_record import FrameSums, confusion_file, digest_of, read_confusions, scores_of, write_confusions


def sums_at(*matrices, boundary=None):
    return [FrameSums(SegmentationSums(np.pad(np.array(own), (0, 38))), boundary) for own in matrices]


RIGHT, HALF = [[4, 0], [0, 4]], [[2, 2], [0, 4]]


def test_scores_are_of_pooled_matrices_over_all_frames_and_over_each_fold(small):
    found = scores_of(sums_at(RIGHT, HALF, HALF), (0, 1, 1), small.evaluation)
    assert found["mean_iou"] == pytest.approx((8 / 12 + 12 / 16) / 2)
    assert found["fold_scores"] == pytest.approx([1, 7 / 12])
    assert found["boundary_f1"] is None


def test_boundaries_are_pooled_too(small):
    one, other = BoundarySums(8, 8, 8, 8), BoundarySums(24, 0, 8, 8)
    sums = [*sums_at(RIGHT, boundary=one), *sums_at(RIGHT, boundary=other)]
    assert scores_of(sums, (0, 1), small.evaluation)["boundary_f1"] == pytest.approx(2 * 0.25 * 1 / 1.25)


def test_confusion_matrices_come_back_whole(tmp_path):
    path, kept = confusion_file(tmp_path, 7), sums_at(RIGHT, [[0, 0], [0, 0]], HALF)
    write_confusions(path, 7, (3, 1, 2), (0, 1, 0), kept, absent="ignore")
    rows, confusion_NCC = read_confusions(path)
    assert [(row["trial"], row["frame"], row["fold"]) for row in rows] == [(7, 3, 0), (7, 1, 1), (7, 2, 0)]
    assert (confusion_NCC == np.stack([own.segmentation.confusion for own in kept])).all()
    assert [row["pixel_accuracy"] for row in rows if row["frame"] != 1] == [1, 0.75]
    assert [path.name for path in path.parent.iterdir()] == ["trial-0007.parquet"]


def test_a_frames_mean_iou_is_over_the_classes_that_are_asked_for(tmp_path):
    one_of_three = sums_at([[3, 1], [0, 0]])  # the second class is predicted, and not there
    for absent in ("ignore", "zero", "gt_present"):
        path = confusion_file(tmp_path / absent, 0)
        write_confusions(path, 0, (3,), (0,), one_of_three, absent=absent)
        (row,) = read_confusions(path)[0]
        assert row["mean_iou"] == one_of_three[0].segmentation.mean_iou(absent=absent)
    assert row["mean_iou"] == 0.75


def test_a_cell_may_hold_every_pixel_of_a_frame(tmp_path):
    pixels = 480 * 640
    write_confusions(confusion_file(tmp_path, 0), 0, (3,), (0,), sums_at([[pixels, 0], [0, 1]]), absent="ignore")
    assert read_confusions(confusion_file(tmp_path, 0))[1][0, 0, 0] == pixels


def test_matrices_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(table, where, **_):
        Path(where).write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.study.trial_record.pq.write_table", full)
    path = confusion_file(tmp_path, 7)
    with pytest.raises(DiskError):
        write_confusions(path, 7, (3,), (0,), sums_at(HALF), absent="ignore")
    assert not path.exists()


def test_a_damaged_file_of_matrices_is_named(tmp_path):
    path = tmp_path / "trial-0000.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=f"{path}: missing or damaged: "):
        read_confusions(path)


def test_a_digest_is_of_the_values_alone():
    one = np.arange(9).reshape(3, 3)
    assert digest_of(one) == digest_of(np.asfortranarray(one.astype(np.int32)))
    assert digest_of(one) != digest_of(one.T)
