"""The test split scored by other rules than the run's: the same predictions, one switch of `evaluation` changed at a time.

Not here: the run's own rules and rows (evaluate.py), the table (reporting/tables.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from jointseg.config import Config
from jointseg.data.frame import Frame
from jointseg.evaluation import Prediction, Sums, score
from jointseg.evaluation_config import EvaluationConfig

COUNTED = ("crop", "depth_truth")
"""Switches that say which pixels are counted; the others say what is made of the counts."""
SWITCHES = (*COUNTED, "absent_classes", "depth_pooling")


def other_rules(evaluation: EvaluationConfig) -> dict[str, EvaluationConfig]:
    """Every rule but the run's own, by the setting that makes it, such as `evaluation.crop=eigen`."""
    rules = {}
    for switch in SWITCHES:
        for value in get_args(EvaluationConfig.model_fields[switch].annotation):
            if value != getattr(evaluation, switch):
                rules[f"evaluation.{switch}={value}"] = evaluation.model_copy(update={switch: value})
    return rules


def sums_by_rule(frame: Frame, prediction: Prediction, evaluation: EvaluationConfig) -> dict[str, Sums]:
    """The sums of one frame by each rule that counts other pixels than the run's."""
    return {
        rule: score(frame, prediction, own)
        for rule, own in other_rules(evaluation).items()
        if any(getattr(own, switch) != getattr(evaluation, switch) for switch in COUNTED)
    }


def metrics_by_rule(
    rows: Mapping[str, tuple[Sums, Mapping[str, Sums]]], config: Config
) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of each row by each other rule.

    Args:
        rows: of each, its sums by the run's own rules, and what `sums_by_rule` gave, added up.
        config: the run's.
    """
    return {
        rule: {row: others.get(rule, sums).metrics(own) for row, (sums, others) in rows.items()}
        for rule, own in other_rules(config.evaluation).items()
    }
