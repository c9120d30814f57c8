"""Starting weights from a file: matched to the network's parameters by name and shape.

Not here: the names a parameter answers to (table.py), checkpoints of our own training (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jointseg.errors import InputError
from jointseg.network.network import JointNetwork


@dataclass(frozen=True)
class LoadReport:
    """What became of every parameter of the network, and of every tensor of the file."""

    loaded: tuple[str, ...]
    """Parameters that now have the file's values."""
    initialised: tuple[str, ...]
    """Parameters left as they were: the file has no tensor of that name and shape."""
    unused: tuple[str, ...]
    """Names in the file that no parameter took, for their name or for their shape."""

    def table(self) -> str:
        """One line for each of the three groups: how many, and which layers."""
        groups = {"loaded": self.loaded, "initialised": self.initialised, "unused": self.unused}
        return "\n".join(f"{group:<12}{len(names):>4}  {', '.join(_layers(names)) or '-'}" for group, names in groups.items())


def load_pretrained(network: JointNetwork, path: Path) -> LoadReport:
    """Copies what fits from a safetensors file into the network, in place, in the network's own precision and device.

    The file has Caffe's names and layout: `conv1_1.weight`, (out, in, height, width), for BGR input in levels 0..255 with
    a mean subtracted, as the network feeds itself.

    Raises:
        InputError: the file is missing or not safetensors, or nothing in it fits.
    """
    report = assign(network, read_safetensors(path))
    if not report.loaded:
        wanted = ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in list(network.named_parameters())[:2])
        raise InputError(f"{path}: no tensor fits the network by name and shape (width 1 is VGG-16's); expected {wanted}, ...")
    return report


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; allowed: a safetensors file with Caffe names")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); allowed: safetensors with Caffe names") from error


def assign(network: JointNetwork, tensors: Mapping[str, Tensor]) -> LoadReport:
    """Copies every tensor into the parameters that start from its name and have its shape."""
    sources = network.starting_names()
    loaded, initialised, used = [], [], set()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            source = sources[name]
            if source in tensors and tensors[source].shape == parameter.shape:
                parameter.copy_(tensors[source])
                loaded.append(name)
                used.add(source)
            else:
                initialised.append(name)
    return LoadReport(tuple(loaded), tuple(initialised), tuple(name for name in tensors if name not in used))


def _layers(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
