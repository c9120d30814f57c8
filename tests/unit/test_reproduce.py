"""Laws of computing a result again: what is compared.

Not here: what it was made from (test_evidence.py), all of it on Ray (integration tests).
"""

from __future__ import annotations

import copy
import json
import math
from contextlib import nullcontext

import pytest

from jointseg.checkpoint import final_digest
from jointseg.errors import InputError
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from pipeline import evaluate, reproduce
from pipeline.provenance import own_commit
from pipeline.reproduce import compare_rows, compare_trials
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace
from tests.checkpoints import untrained_final
from tests.made_up_runs import RECORD


def changed(**frame):
    record = copy.deepcopy(RECORD)
    record["by_frame"][1] |= frame
    return record


# What is compared


def test_the_same_trial_is_equal():
    found = compare_trials(RECORD, copy.deepcopy(RECORD), tolerance=0)
    assert found.equal
    assert found.compared == 2 + 2 + 2 * 2


def test_a_score_that_differs_in_its_last_digit_is_said_with_both_and_by_how_much():
    found = compare_trials(RECORD, {**RECORD, "score": math.nextafter(0.5, 1)}, tolerance=0)
    assert found.lines == ("mean IoU: 0.5 then and 0.5000000000000001 now, by +1.11e-16",)


def test_a_frame_that_differs_is_named():
    found = compare_trials(RECORD, changed(pixel_accuracy=0.5, confusion="cc"), tolerance=0)
    assert found.lines == ("frame 12, pixel accuracy: 0.75 then and 0.5 now, by -0.25",)


def test_a_frame_whose_classes_came_out_otherwise_differs_whatever_is_tolerated_of_its_pixels():
    found = compare_trials(RECORD, changed(mean_iou=0.25, confusion="cc"), tolerance=0.01)
    assert found.lines == ("frame 12, mean iou: 0.75 then and 0.25 now, by -0.5",)


def test_a_frame_with_as_many_pixels_right_but_other_labels_differs_unless_that_is_tolerated():
    assert compare_trials(RECORD, changed(confusion="cc"), tolerance=0).lines[0].startswith("frame 12: other pixels")
    assert compare_trials(RECORD, changed(confusion="cc"), tolerance=0.001).equal


@pytest.mark.parametrize(("by", "equal"), [(0.0009, True), (0.0011, False)])
def test_differences_up_to_the_tolerance_are_equal(by, equal):
    assert compare_trials(RECORD, {**RECORD, "score": 0.5 - by}, tolerance=0.001).equal is equal


def test_every_metric_of_every_row_is_compared_and_no_number_equals_no_number():
    then = {"sem_crf": {"mean_iou": 0.5, "rmse": None}, "unary_sem": {"mean_iou": 0.25}}
    now = {"sem_crf": {"mean_iou": 0.5, "rmse": math.nan}, "unary_sem": {"mean_iou": 0.5}}
    found = compare_rows(then, now, tolerance=0)
    assert found.compared == 3
    assert found.lines == ("unary_sem, mean_iou: 0.25 then and 0.5 now, by +0.25",)


@pytest.mark.parametrize("now", [{"rmse": 0.5}, {}])
def test_a_number_and_no_number_differ_whatever_is_tolerated(now):
    then = {"sem_crf": {"rmse": None if now else 0.5}}
    assert not compare_rows(then, {"sem_crf": now}, tolerance=0.001).equal


def test_boundaries_are_compared():
    found = compare_trials({**RECORD, "boundary_f1": 0.5}, {**RECORD, "boundary_f1": 0.25}, tolerance=0)
    assert found.lines == ("boundary F1: 0.5 then and 0.25 now, by -0.25",)


# Computed again


@pytest.fixture
def again(monkeypatch, last_share_first, rooms, tmp_path, capsys):
    """Computes a record again without Ray, on the rooms: whether it came out equal, and what was said."""

    def run(record, place=None):
        (tmp_path / "record.json").write_text(json.dumps(record))
        out = None if place is None else place.out
        equal = reproduce.reproduce(
            str(tmp_path / "record.json"), data=rooms.path, out=out, tolerance=0, screen=Terminal(), verbose=False
        )
        return equal, capsys.readouterr().out.replace("\n", "")

    monkeypatch.setattr(reproduce, "connected", lambda **_: nullcontext())
    return run


def test_both_tables_of_a_run_are_compared_each_row_under_its_own_settings(again, rooms, small, tmp_path):
    place, found = Workspace(tmp_path / "run"), with_overrides(small, {"crf.theta_beta": 30.0, "crf.w_appearance": 50.0})
    jobs = {}
    for name, stage in STAGES.items():
        untrained_final(name, small, place.final(stage))
        config = found if stage.settings == "stage3" else small
        jobs[stage] = evaluate.RowJob(config, name, rooms.path, place.final(stage))
    found_now = evaluate.evaluate_rows(jobs, rooms.test, drawn=(), progress=lambda _: None, say=print)
    rows = {row: part.sums.metrics(small.evaluation) for row, part in found_now.items()}
    record = {
        "table3": {row: {"mean_iou": metrics["mean_iou"]} for row, metrics in rows.items()},
        "table2": {row: {"rmse": metrics["rmse"]} for row, metrics in rows.items() if row != "unary_sem"},
        "search": {"best": {"settings": {"crf.theta_beta": 30.0, "crf.w_appearance": 50.0}}},
        "provenance": {"config": flatten(small), "commit": None},
        "data": {"digest": rooms.digest},
    }
    equal, said = again(record, place)
    assert (equal, "7 numbers, to the last digit" in said) == (True, True)
    record["table2"]["sem_crf"]["rmse"] += 1
    equal, said = again(record, place)
    assert (equal, "differs: sem_crf, rmse: " in said) == (False, True)
    assert "sem_crf_plus" not in said
    with pytest.raises(InputError, match="with the stages' weights, is not found; give it as --out"):
        again(record)


def trial_of(small, rooms, tmp_path, changes):
    """A trial's record, whose scores are made up, of a run that has come to stage 2."""
    place = Workspace(tmp_path / "run")
    untrained_final("stage2", small, place.final(STAGES["stage2"]))
    checkpoint = final_digest(place.final(STAGES["stage2"]))
    record = {**RECORD, "data": rooms.digest, "frames": list(rooms.train[:2]), "checkpoint": checkpoint}
    record["by_frame"] = [{**own, "frame": frame} for own, frame in zip(RECORD["by_frame"], record["frames"], strict=True)]
    return {**record, "config": flatten(small), **changes}, place


def test_a_trial_that_fails_here_is_said_to(again, rooms, small, tmp_path):
    record, place = trial_of(small, rooms, tmp_path, {"settings": {"crf.w_appearance": 3e38, "crf.w_depth": 3e38}})
    with pytest.raises(InputError, match="the trial fails here: the CRF's logits are NaN or infinite"):
        again(record, place)


def test_a_trial_that_does_not_come_out_again_is_told_by_number_and_commit(again, rooms, small, tmp_path, monkeypatch):
    record, place = trial_of(small, rooms, tmp_path, {"settings": {"crf.w_depth": 4.0}, "commit": "another"})
    found = {}

    def kept(then, now, **options):
        found.update(now)
        return compare_trials(then, now, **options)

    monkeypatch.setattr(reproduce, "compare_trials", kept)
    assert not again(record, place)[0], "the scores were made up"
    record |= {name: found[name] for name in ("score", "fold_scores", "boundary_f1", "by_frame")}
    assert again(record, place)[0]
    equal, said = again({**record, "score": record["score"] + 0.01}, place)
    assert not equal
    assert f"differs: mean IoU: {record['score'] + 0.01!r} then and {record['score']!r} now, by -0.01" in said
    assert said.count("differs") == 1
    assert f"it was scored at commit another; this is {own_commit()}" in said


def test_what_a_gpu_scored_is_computed_where_there_is_none(again, rooms, small, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = with_overrides(small, {"search.gpus_per_trial": 0.5, "training.device": "cuda"})
    record, place = trial_of(given, rooms, tmp_path, {"settings": {"crf.w_depth": 4.0}})
    equal, said = again(record, place)
    assert not equal, "the scores were made up"
    assert "it came from a GPU and this machine has none" in said
    assert "differs: mean IoU" in said
    for device in ("auto", "cpu"):
        config = flatten(with_overrides(small, {"training.device": device}))
        assert "from a GPU" not in again({**record, "config": config}, place)[1]
