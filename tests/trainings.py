"""Trainings of a few steps, for tests of the loop. Not here: the rooms and the config they have (tests/unit/conftest.py)."""

from __future__ import annotations

import torch

from jointseg.batches import Place
from jointseg.resuming import begin
from jointseg.stages import STAGES

ALONE = Place()


class InterruptedRunError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def fresh(config, stage="stage1", *, place=ALONE, start=None):
    return begin(config, STAGES[stage], place=place, start=start)


def copied(weights):
    return {name: tensor.clone() for name, tensor in weights.items()}


def moved(before, after):
    """The names of the weights that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
