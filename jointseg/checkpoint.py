"""Checkpoints: weights, optimiser, step, random states and the whole config in one folder, each file digested.

Not here: when one is written and how many are kept (training.py, pipeline/train.py), weights made elsewhere
(network/pretrained.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jointseg.config import OPERATIONAL, Config
from jointseg.errors import InputError
from jointseg.settings import differences
from jointseg.whole import appearing_whole

FORMAT = 2  # 1 was without the mean that the network takes off the image
DESCRIPTION = "checkpoint.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
RANDOM = "random.pt"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, in memory."""

    stage: str
    step: int
    config: Config
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random_states: list[dict[str, Tensor | None]]
    """One entry a rank: {"cpu": state, "cuda": state or None}."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was reported at its step. On disk those alone that are finite: JSON knows no others."""


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder`, its description last: a folder without one is not a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}, folder / WEIGHTS)
    torch.save(checkpoint.optimizer, folder / OPTIMIZER)
    torch.save(checkpoint.random_states, folder / RANDOM)
    description = {
        "format": FORMAT,
        "stage": checkpoint.stage,
        "step": checkpoint.step,
        "sha256": {name: digest(folder / name) for name in (WEIGHTS, OPTIMIZER, RANDOM)},
        "config": checkpoint.config.model_dump(mode="json"),
        "metrics": {name: value for name, value in checkpoint.metrics.items() if math.isfinite(value)},
    }
    write_atomically(folder / DESCRIPTION, json.dumps(description, indent=1))


def load_checkpoint(folder: Path, *, config: Config, stage: str) -> Checkpoint:
    """Read a checkpoint back, for going on with the same stage under the same config, operational settings aside.

    Raises:
        InputError: a file is missing or altered, or the checkpoint is of another stage or config; the message names
            the file, or the fields that differ with both values.
    """
    description = _read_description(folder)
    for name in (WEIGHTS, OPTIMIZER, RANDOM):
        _refuse_altered(folder / name, description["sha256"].get(name))
    if description["stage"] != stage:
        raise InputError(f"{folder}: is a checkpoint of {description['stage']!r}; needed: {stage!r}")
    try:
        there = Config(**description["config"])
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION}: {error}") from None
    refuse_other_config(there, config, place=folder)
    return Checkpoint(
        stage=stage,
        step=description["step"],
        config=config,
        weights=load_file(folder / WEIGHTS),
        # Each is moved to where it is needed later; the machine that goes on may lack the device of the one that wrote.
        optimizer=torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu"),
        random_states=torch.load(folder / RANDOM, weights_only=True, map_location="cpu"),
        metrics=description["metrics"],
    )


def refuse_other_config(there: Config, given: Config, *, place: Path) -> None:
    """Raise InputError, naming every field that differs, unless the two configs come to the same numbers.

    They may differ in the settings of `config.OPERATIONAL`, such as `training.max_failures`.
    """
    different = {path: values for path, values in differences(there, given).items() if path not in OPERATIONAL}
    if different:
        fields = "; ".join(f"{path} is {old!r} there and {new!r} here" for path, (old, new) in different.items())
        raise InputError(f"{place}: was made with another config: {fields}")


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {folder} holds no whole checkpoint") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); the checkpoint is damaged") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of format {FORMAT}")
    missing = {"stage", "step", "config", "sha256", "metrics"} - description.keys()
    if missing:
        raise InputError(f"{path}: has no {', '.join(sorted(missing))}; the checkpoint is damaged")
    return description


def _refuse_altered(path: Path, expected: str | None) -> None:
    """Raise InputError unless the file is there with the digest it was written with."""
    found = digest(path) if path.is_file() else "nothing"
    if found != expected:
        raise InputError(f"{path}: missing or altered since it was written (sha256 {found[:12]})")


def save_final(folder: Path, source: Path) -> None:
    """Make `folder` (a stage's `final/`) from the checkpoint `source`: its weights and what they are, all or nothing.

    A `final/` that is there already, of a run that stopped before it could say so, gives way.

    Raises:
        InputError: the checkpoint is not whole, or its weights were altered.
    """
    description = _read_description(source)
    _refuse_altered(source / WEIGHTS, description["sha256"].get(WEIGHTS))
    final = {key: description[key] for key in ("format", "stage", "step", "config", "metrics")}
    final["sha256"] = {WEIGHTS: description["sha256"][WEIGHTS]}
    with appearing_whole(folder, replace=True) as partial:
        shutil.copyfile(source / WEIGHTS, partial / WEIGHTS)
        (partial / DESCRIPTION).write_text(json.dumps(final, indent=1), encoding="utf-8")


def load_final(folder: Path) -> tuple[dict[str, Tensor], str]:
    """The weights of a finished stage's `final/` and their digest.

    Raises:
        InputError: the stage has not finished, or the file is damaged.
    """
    description = _read_description(folder)
    path, expected = folder / WEIGHTS, description["sha256"].get(WEIGHTS)
    _refuse_altered(path, expected)
    try:
        return load_file(path), expected
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from None
