"""Laws of scoring the same predictions by other rules than the run's."""

from __future__ import annotations

import numpy as np
import pytest

from jointseg.evaluation import Prediction, score
from jointseg.evaluation_config import EvaluationConfig
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.evaluate import RowJob, evaluate_rows
from pipeline.other_rules import metrics_by_rule, other_rules, sums_by_rule
from tests.checkpoints import untrained_final


def test_each_rule_changes_one_switch_and_none_is_the_runs_own():
    own = EvaluationConfig(crop="eigen")
    rules = other_rules(own)
    assert list(rules) == [
        "evaluation.crop=none", "evaluation.crop=gupta", "evaluation.depth_truth=raw",
        "evaluation.absent_classes=zero", "evaluation.absent_classes=gt_present", "evaluation.depth_pooling=images",
    ]  # fmt: skip
    for rule in rules.values():
        assert sum(getattr(rule, name) != getattr(own, name) for name in EvaluationConfig.model_fields) == 1


def test_the_metrics_are_those_of_a_run_with_that_rule(rooms, small):
    generator = np.random.default_rng(0)
    frames = [rooms.frame(number) for number in rooms.test]
    guesses = [
        Prediction(generator.integers(0, 40, frame.labels.shape).astype(np.uint8), frame.filled_depth * np.float32(1.3))
        for frame in frames
    ]

    def totals(evaluation):
        first, *rest = (score(frame, guess, evaluation) for frame, guess in zip(frames, guesses, strict=True))
        for one in rest:
            first = first.plus(one)
        return first

    first, *rest = (sums_by_rule(frame, guess, small.evaluation) for frame, guess in zip(frames, guesses, strict=True))
    for one in rest:
        first = {rule: sums.plus(one[rule]) for rule, sums in first.items()}
    found = metrics_by_rule({"row": (totals(small.evaluation), first)}, small)
    for rule, evaluation in other_rules(small.evaluation).items():
        assert found[rule]["row"] == pytest.approx(totals(evaluation).metrics(evaluation), nan_ok=True), rule
    assert found["evaluation.crop=eigen"]["row"]["pixel_accuracy"] != found["evaluation.crop=gupta"]["row"]["pixel_accuracy"]


@pytest.mark.usefixtures("last_share_first")
def test_an_evaluation_counts_them_on_the_way(rooms, small, tmp_path):
    untrained_final("stage1", small, tmp_path / "final")
    stage = STAGES["stage1"]

    def found(config):
        job = RowJob(config, stage.name, rooms.path, tmp_path / "final")
        return evaluate_rows({stage: job}, rooms.test, drawn=(), progress=lambda _: None, say=print)[stage.row]

    whole = found(small)
    by_rule = metrics_by_rule({stage.row: (whole.sums, whole.others)}, small)
    for crop in ("eigen", "gupta"):
        own = with_overrides(small, {"evaluation.crop": crop})
        assert by_rule[f"evaluation.crop={crop}"] == {stage.row: found(own).sums.metrics(own.evaluation)}
