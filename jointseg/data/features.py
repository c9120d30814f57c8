"""Features of the frozen layers, computed once for each view and kept in memory-mapped files.

Not here: which layers those are (network/network.py), where they are computed (pipeline/features.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointseg.config import Config
from jointseg.data.store import Store
from jointseg.data.views import View, render_view
from jointseg.errors import InputError
from jointseg.hardware import trains_in_bfloat16
from jointseg.mapped import new_array
from jointseg.network.network import JointNetwork

DESCRIPTION = "features.json"
KIND = np.float16


class FeatureStore:
    """Features of every view, open for reading. Pickles as its path, so that each process maps the files itself."""

    def __init__(self, path: Path, arrays: Mapping[str, NDArray[Any]], weights: str) -> None:
        self.path = path
        self._arrays = arrays
        self._weights = weights

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open what `create` made, once it is filled; nothing is read yet.

        Raises:
            InputError: there is none, or it is damaged.
        """
        described = description(path)
        if described is None:
            raise InputError(f"{path}: no features: no sound {DESCRIPTION} in it")
        arrays = {}
        for layer in described["layers"]:
            file = path / f"{layer}.npy"
            try:
                arrays[layer] = np.load(file, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{file}: missing or cut short: {error}; remove {path} to compute features again") from None
        return cls(path, arrays, described["weights"])

    def __reduce__(self) -> tuple[Callable[[Path], FeatureStore], tuple[Path]]:
        return type(self).open, (self.path,)

    def row(self, row: int) -> dict[str, Tensor]:
        """The features of the view in this row of the manifest: by layer, (channels, h, w), float16."""
        return {layer: torch.from_numpy(np.array(array[row])) for layer, array in self._arrays.items()}

    def refuse_other_weights(self, network: JointNetwork) -> None:
        """Raise InputError unless the frozen layers of `network` have the weights that the features were computed with."""
        if frozen_digest(network) != self._weights:
            raise InputError(
                f"{self.path}: features of other weights than the frozen layers have that are trained on: the file that "
                "network.weights names has changed since; put back the one that this run began with, or begin in a new folder"
            )


def description(folder: Path) -> dict[str, Any] | None:
    """What the features in a folder depend on, as `stamp` said; None where there are none, or their description is damaged."""
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"layers", "weights"} <= found.keys() else None


def stamp(network: JointNetwork, config: Config, views: Sequence[View], store: Store) -> dict[str, Any]:
    """What the features depend on: the frozen weights, how pictures are made, the views and the frames.

    Not the processor: one that is not made for bfloat16 computes them in float32.
    """
    listed = hashlib.sha256(json.dumps([vars(view) for view in views]).encode())
    return {
        "layers": list(network.frozen_outputs()),
        "weights": frozen_digest(network),
        "views": listed.hexdigest(),
        "store": store.digest,
        "input_size": config.network.input_size,
        "resize": config.network.resize,
        "precision": config.training.precision,
    }


def frozen_digest(network: JointNetwork) -> str:
    """SHA-256 of the frozen layers' weights and of the mean that is taken off the image, in hexadecimal."""
    weights = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name.rpartition(".")[0] in network.frozen or name == "mean_bgr":
            weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return weights.hexdigest()


def bytes_per_view(network: JointNetwork, size: int) -> int:
    """Bytes that the features of one view take."""
    return sum(int(np.prod(shape)) for shape in _shapes(network, size).values()) * np.dtype(KIND).itemsize


def create(folder: Path, network: JointNetwork, *, size: int, num_views: int) -> dict[str, np.memmap[Any, Any]]:
    """Make the empty arrays, by layer, (views, channels, h, w) each, for what `compute` returns.

    One process alone is to write them: over NFS a page of a map goes back whole, with what another wrote beside it undone.

    Raises:
        OSError: the disk has too little room.
    """
    shapes = _shapes(network, size)
    return {layer: new_array(folder / f"{layer}.npy", KIND, (num_views, *shape)) for layer, shape in shapes.items()}


@torch.no_grad()
def compute(
    network: JointNetwork, store: Store, views: Sequence[View], config: Config, *, device: torch.device
) -> dict[str, NDArray[np.float16]]:
    """The features of some views, in the precision that `device` trains the network in.

    Returns:
        by layer, (views, channels, h, w).

    Raises:
        InputError: a feature is too large for half precision, or not a number.
    """
    rows: dict[str, list[NDArray[np.float16]]] = {layer: [] for layer in network.frozen_outputs()}
    half_precision = trains_in_bfloat16(config.training, device)
    for view in views:
        image = render_view(store.frame(view.frame), view, network=config.network, depth=config.data.train_depth).image
        with torch.autocast(device.type, torch.bfloat16, enabled=half_precision):
            found = network.frozen_features(image[None].to(device))
        for layer, features in found.items():
            half = features[0].half().cpu()
            if not bool(torch.isfinite(half).all()):
                raise InputError(
                    f"data.cache_features: layer {layer} on frame {view.frame} reaches {float(features.abs().max()):.3g}, "
                    "which half precision cannot hold (up to 65504); allowed for these weights: false"
                )
            rows[layer].append(half.numpy())
    return {layer: np.stack(own) for layer, own in rows.items()}


@torch.no_grad()
def _shapes(network: JointNetwork, size: int) -> dict[str, tuple[int, ...]]:
    device = next(network.parameters()).device
    picture = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    return {layer: tuple(features.shape[1:]) for layer, features in network.frozen_features(picture).items()}
