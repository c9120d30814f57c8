"""Checkpoints: weights, optimiser, step, random states and the whole config in one folder, each file digested.

Not here: a stage's checkpoints together, and which of them is gone on from (checkpoint_folder.py), when one is due
(training.py), weights made elsewhere (network/pretrained.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from jointseg.config import OPERATIONAL, Config
from jointseg.data.files import is_file_to_read, unreadable
from jointseg.errors import InputError
from jointseg.settings import differences
from jointseg.whole import appearing_whole

FORMAT = 2  # 1 had neither the mean that the network takes off the image nor a seal
DESCRIPTION = "checkpoint.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
RANDOM = "random.pt"


class DamagedCheckpointError(InputError):
    """A file of a checkpoint is missing, cut short or altered. An older checkpoint may do in its place."""


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

    def snapshot(self) -> Checkpoint:
        """A copy in the CPU's memory, which training on cannot change; the original shares the model's tensors."""
        return replace(self, weights=_copied(self.weights), optimizer=_copied(self.optimizer))


def _copied(value: Any) -> Any:
    """`value` with every tensor in it copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` as `folder`: all of it appears, on the disk too, or nothing. A `folder` that is there gives way.

    Raises:
        InputError: the folder cannot be made, or the disk is full.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    contents: dict[str, Callable[[], bytes | memoryview]] = {
        WEIGHTS: partial(safetensors_bytes, weights),
        OPTIMIZER: partial(_torch_bytes, checkpoint.optimizer),
        RANDOM: partial(_torch_bytes, checkpoint.random_states),
    }
    digests = {}
    with appearing_whole(folder, replace=True) as unfinished:
        for name, serialized in contents.items():  # in memory first: torch and safetensors hide what a disk says
            data = serialized()
            digests[name] = hashlib.sha256(data).hexdigest()
            (unfinished / name).write_bytes(data)
        description = {
            "format": FORMAT,
            "stage": checkpoint.stage,
            "step": checkpoint.step,
            "sha256": digests,
            "config": checkpoint.config.model_dump(mode="json"),
            "metrics": {name: value for name, value in checkpoint.metrics.items() if math.isfinite(value)},
        }
        _write_description(unfinished, description)


def _torch_bytes(value: Any) -> memoryview:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def _write_description(folder: Path, description: dict[str, Any]) -> None:
    sealed = {**description, "seal": _seal(description)}
    (folder / DESCRIPTION).write_text(json.dumps(sealed, indent=1), encoding="utf-8")


def _seal(description: dict[str, Any]) -> str:
    """The digest of what a description says."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def load_checkpoint(folder: Path, *, config: Config, stage: str) -> Checkpoint:
    """Read a checkpoint back, for going on with the same stage under the same config, operational settings and `search` aside.

    Raises:
        DamagedCheckpointError, InputError: as `check_checkpoint`.
    """
    description = check_checkpoint(folder, config=config, stage=stage)
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


def check_checkpoint(folder: Path, *, config: Config, stage: str) -> dict[str, Any]:
    """The description of the checkpoint in `folder`, once every file is as it was written, and made for this.

    Raises:
        DamagedCheckpointError: a file is missing, cut short or altered; the message names it.
        InputError: the checkpoint is of another stage, config or format; the message names the fields that differ, with
            both values. Or a file of it may not be read.
    """
    description = _read_description(folder)
    for name in (WEIGHTS, OPTIMIZER, RANDOM):
        _refuse_altered(folder / name, description["sha256"].get(name))
    if description["stage"] != stage:
        raise InputError(f"{folder}: is a checkpoint of {description['stage']!r}; needed: {stage!r}")
    there = _config_in(description, folder)
    # No setting of the search reaches a training, and a study that trains goes on with more trials.
    refuse_other_config(there.model_copy(update={"search": config.search}), config, place=folder)
    return description


_NAMED = 6
"""Fields of two configs that a refusal names."""


def refuse_other_config(there: Config, given: Config, *, place: Path, free: Collection[str] = ()) -> None:
    """Raise InputError, naming the fields that differ, the first few of many, unless the two configs come to the same numbers.

    They may differ in the settings of `config.OPERATIONAL`, such as `training.max_failures`, and in those of `free`.
    """
    may_differ = {*OPERATIONAL, *free}
    different = {path: values for path, values in differences(there, given).items() if path not in may_differ}
    if different:
        fields = [f"{path} is {old!r} there and {new!r} here" for path, (old, new) in different.items()]
        more = f"; and {len(fields) - _NAMED} more" if len(fields) > _NAMED else ""
        raise InputError(f"{place}: was made with another config: {'; '.join(fields[:_NAMED])}{more}")


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path}: not found; {folder} holds no whole checkpoint") from None
    except IsADirectoryError as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: not JSON ({error}); the checkpoint is damaged") from None
    if not isinstance(description, dict) or "format" not in description:
        raise DamagedCheckpointError(f"{path}: does not describe a checkpoint; it is damaged")
    seal = description.pop("seal", None)
    if seal != _seal(description) and (seal is not None or description["format"] == FORMAT):  # format 1 had no seal
        raise DamagedCheckpointError(f"{path}: altered since it was written")
    if description["format"] != FORMAT:
        raise InputError(f"{path}: a checkpoint of format {description['format']!r}; this version reads format {FORMAT}")
    return description


def _config_in(description: dict[str, Any], folder: Path) -> Config:
    """The config in the description of `folder`; InputError where it is of a version that knows other settings."""
    try:
        return Config(**description["config"])
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION}: {error}") from None


def _refuse_altered(path: Path, expected: str | None) -> None:
    """Raise DamagedCheckpointError unless the file is there with the digest it was written with; one that may not be read is
    not damaged.
    """
    try:
        found = digest(path) if is_file_to_read(path) else "nothing"
    except OSError as error:
        raise unreadable(path, error) from None
    if found != expected:
        digests = f"sha256 {found[:12]}, was {(expected or 'nothing')[:12]}"
        raise DamagedCheckpointError(f"{path}: missing or altered since it was written ({digests})")


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
    with appearing_whole(folder, replace=True) as unfinished:
        shutil.copyfile(source / WEIGHTS, unfinished / WEIGHTS)
        _write_description(unfinished, final)


def describe_final(folder: Path) -> tuple[str, Config]:
    """The stage and the config that a finished stage's `final/` was trained as and with.

    Raises:
        InputError: the stage has not finished, or the description is damaged or of another version.
    """
    description = _read_final(folder)
    return description["stage"], _config_in(description, folder)


def _read_final(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.exists():
        raise InputError(f"{path}: not found; allowed: the final/ of a finished stage, such as runs/demo/stage3/final")
    return _read_description(folder)


def final_digest(folder: Path) -> str:
    """SHA-256 of the weights in a finished stage's `final/`, in hexadecimal, once they are as they were written.

    Raises:
        InputError: the stage has not finished, or the file is damaged.
    """
    expected: str = _read_final(folder)["sha256"].get(WEIGHTS)
    _refuse_altered(folder / WEIGHTS, expected)
    return expected


def load_final(folder: Path) -> dict[str, Tensor]:
    """The weights in a finished stage's `final/`.

    Raises:
        InputError: as `final_digest`.
    """
    final_digest(folder)
    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS}: not a safetensors file ({error})") from None


def load_network(network: nn.Module, folder: Path) -> None:
    """Give a network the weights that it has in a finished stage's `final/`; those of the CRF stay there.

    Raises:
        InputError: as `load_final`.
    """
    weights = load_final(folder)
    network.load_state_dict({n.removeprefix("network."): w for n, w in weights.items() if n.startswith("network.")})
