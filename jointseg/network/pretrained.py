"""Starting weights into the network: matched to its parameters by name and shape, with an account of every one.

Not here: the files (weight_files.py), the names a parameter answers to (table.py), going on with a training (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from jointseg.config import NetworkConfig
from jointseg.errors import InputError
from jointseg.network.network import IMAGE_CHANNELS, JointNetwork, build_network
from jointseg.network.rescale import rescale_features
from jointseg.network.weight_files import StartingWeights, read_weights
from jointseg.settings import SettingsError


@dataclass(frozen=True)
class LoadReport:
    """What became of every parameter of the network, and of every tensor of the file."""

    source: str
    """The file, what it is, and what is taken off the image for its weights."""
    loaded: tuple[str, ...]
    """Parameters that now have the file's values."""
    reduced: tuple[str, ...]
    """Those of them that are VGG-16's fully connected layers as DeepLab cuts them down."""
    initialised: tuple[str, ...]
    """Parameters left as they were: the file has no tensor of that name and shape."""
    misfits: tuple[str, ...]
    """Both shapes, for those of them that the file has a tensor of another shape for."""
    unused: tuple[str, ...]
    """Names in the file that no parameter took, for their name or for their shape."""

    def table(self) -> str:
        """The source, and a line for each group: how many tensors, and which layers."""
        groups = {name: getattr(self, name) for name in ("loaded", "reduced", "initialised", "unused")}
        rows = [(group, len(names), _layers(names)) for group, names in groups.items()]
        rows.append(("other shape", len(self.misfits), [*self.misfits]))
        lines = [f"{group:<12}{count:>4}  {', '.join(listed) or '-'}" for group, count, listed in rows]
        return "\n".join([f"{'weights':<12}      {self.source}", *lines])


def load_pretrained(network: JointNetwork, path: Path) -> LoadReport:
    """Copies what fits from a file of weights into the network, in place, in the network's own precision and device.

    The network's `mean_bgr` becomes the weights' own, and layers that read the image are converted from the file's channel
    order and scale to the network's, so that they see what they were trained on, zero padding included.

    Args:
        network: with any weights, on any device; on `meta`, the file is checked and nothing is loaded.
        path: a file or folder that `read_weights` reads.

    Raises:
        InputError: the file cannot be read, nothing in it fits, or what fits is not finite; the network is then as it was.
    """
    weights = read_weights(path)
    report, values = _match(network, weights, path)
    if all(name.startswith("heads.") for name in report.loaded):  # the scores' biases fit a network of any width
        raise InputError(f"{path}: no tensor fits the network by name and shape; {_first_names(network, weights)}")
    with torch.no_grad():
        for name, value in values.items():
            network.get_parameter(name).copy_(value)
        network.mean_bgr.copy_(torch.tensor(weights.image.mean_bgr))
    return report


def load_starting_weights(network: JointNetwork, config: NetworkConfig) -> LoadReport | None:
    """Give the network what `config.weights` names, if anything, rescaled if `config.unit_features` says so.

    Raises:
        InputError: as `load_pretrained`.
    """
    if config.weights is None:
        return None
    report = load_pretrained(network, config.weights)
    if config.unit_features:
        rescale_features(network, loaded=frozenset(report.loaded))
    return report


def check_pretrained(config: NetworkConfig) -> None:
    """Read `config.weights`, if there are any, and see that they fit the network of `config`; loads and makes nothing.

    Raises:
        SettingsError: as `load_pretrained`, or there are none and layers are frozen: they would stay random.
    """
    if config.weights is None:
        if config.frozen_until is not None:
            raise SettingsError(
                "network.weights",
                f"none is given, and network.frozen_until keeps layers up to {config.frozen_until} as they begin: they would "
                "stay random",
            )
        return
    with torch.device("meta"):
        network = build_network(config, seed=0)
    try:
        load_pretrained(network, config.weights)
    except InputError as error:
        raise SettingsError("network.weights", str(error)) from None


def _match(network: JointNetwork, weights: StartingWeights, path: Path) -> tuple[LoadReport, dict[str, Tensor]]:
    """What goes where: a tensor of the parameter's own name first, else of the name of the layer that it starts from."""
    starting_names = network.starting_names()
    values: dict[str, Tensor] = {}
    taken: dict[str, str] = {}
    misfits = []
    for name, parameter in network.named_parameters():
        sources = [source for source in dict.fromkeys((name, starting_names[name])) if source in weights.tensors]
        for source in sources:
            tensor = weights.tensors[source]
            if tensor.shape == parameter.shape:
                values[name], taken[name] = _converted(tensor, parameter, weights, place=f"{path}: {source}"), source
                break
        if sources and name not in taken:
            source = f"{sources[-1]}, reduced," if sources[-1] in weights.reduced else sources[-1]
            there = tuple(weights.tensors[sources[-1]].shape)
            misfits.append(f"{name} is {tuple(parameter.shape)}, the file's {source} is {there}")
    used = set(taken.values())
    mean = ", ".join(f"{level:g}" for level in weights.image.mean_bgr)
    report = LoadReport(
        source=f"{path}: {weights.kind}; the image as BGR less ({mean})",
        loaded=tuple(taken),
        reduced=tuple(name for name, source in taken.items() if source in weights.reduced),
        initialised=tuple(name for name, _ in network.named_parameters() if name not in taken),
        misfits=tuple(misfits),
        unused=tuple(name for name in weights.tensors if name not in used),
    )
    return report, values


def _converted(tensor: Tensor, parameter: nn.Parameter, weights: StartingWeights, *, place: str) -> Tensor:
    """The tensor as the network wants it, on the CPU."""
    if not tensor.is_floating_point():
        raise InputError(f"{place} is of {tensor.dtype}; allowed: floating point")
    value = tensor.detach().to(parameter.dtype)
    if parameter.ndim == 4 and parameter.shape[1] == IMAGE_CHANNELS:
        value = weights.image.adapt(value)
    if not value.isfinite().all():
        raise InputError(f"{place} has values that are not finite")
    return value


def _first_names(network: JointNetwork, weights: StartingWeights) -> str:
    def listed(shapes: Mapping[str, torch.Size]) -> str:
        return ", ".join(f"{name[:40]} {tuple(shape)}" for name, shape in list(shapes.items())[:2])

    names = network.starting_names()
    needed = {names[name]: own.shape for name, own in network.named_parameters() if not name.startswith("heads.")}
    there = {name: tensor.shape for name, tensor in weights.tensors.items()}
    return f"it has {listed(there)}, ...; needed: {listed(needed)}, ... (network.width 1 is VGG-16's)"


def _layers(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
