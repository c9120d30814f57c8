"""The features of the frozen layers for every view, computed once on Ray, trained on by all stages.

Not here: what they are and how they are kept (jointseg/data/features.py), who trains on them (worker.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jointseg.checkpoint import load_network
from jointseg.config import Config
from jointseg.data import features
from jointseg.data.manifest import read_manifest
from jointseg.data.store import Store
from jointseg.errors import InputError
from jointseg.network.network import JointNetwork, build_network
from jointseg.network.pretrained import load_starting_weights
from jointseg.stages import STAGES
from jointseg.whole import appearing_whole, check_space
from pipeline.shares import shared_out
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace

VIEWS_A_SHARE = 8  # features up to conv4_3 at 257 x 257: 40 MB


def ready_features(config: Config, place: Workspace, *, store: Path, screen: Terminal) -> None:
    """Have a run's features there, and those of this config, where `data.cache_features` asks for them."""
    if config.data.cache_features:
        with screen.bar("features", len(read_manifest(place.views))) as progress:
            stage1 = place.final(STAGES["stage1"])
            where = {"store": store, "views": place.views, "folder": place.features}
            cached_features(config, stage1, **where, progress=progress, say=screen.say)


def cached_features(
    config: Config,
    stage1: Path,
    *,
    store: Path,
    views: Path,
    folder: Path,
    progress: Callable[[int], None],
    say: Callable[[str], None],
) -> features.FeatureStore:
    """The features in `folder`, computed first where they are not those of these weights, views and frames, or damaged.

    Args:
        config: the whole config.
        stage1: the `final/` of stage 1, whether it is there yet or not.
        store: the prepared frames.
        views: the manifest of the views.
        folder: where the features are kept.
        progress: told how many views are done.
        say: called with a line for people while no node has room.

    Raises:
        InputError: the disk has too little room, or half precision cannot hold them.
    """
    network = _frozen_network(config, stage1, torch.device("cpu"))
    listed = read_manifest(views)
    stamp = features.stamp(network, config, listed, Store.open(store))
    if features.description(folder) == stamp:
        with suppress(InputError):
            return features.FeatureStore.open(folder)
    size = config.network.input_size
    check_space(folder, needed=len(listed) * features.bytes_per_view(network, size))
    shares = [range(first, min(first + VIEWS_A_SHARE, len(listed))) for first in range(0, len(listed), VIEWS_A_SHARE)]
    done = 0
    with appearing_whole(folder, replace=True) as unfinished:
        arrays = features.create(unfinished, network, size=size, num_views=len(listed))
        for place, found in shared_out(partial(_computing, config, stage1, store, views), shares, config=config, say=say):
            rows = shares[place]
            for layer, values in found.items():
                arrays[layer][rows.start : rows.stop] = values
            done += len(rows)
            progress(done)
        for array in arrays.values():
            array.flush()
        (unfinished / features.DESCRIPTION).write_text(json.dumps(stamp, indent=1))
    return features.FeatureStore.open(folder)


def _computing(
    config: Config, stage1: Path, store: Path, views: Path, device: torch.device
) -> Callable[[range], dict[str, NDArray[np.float16]]]:
    network, opened, listed = _frozen_network(config, stage1, device), Store.open(store), read_manifest(views)
    return lambda rows: features.compute(network, opened, listed[rows.start : rows.stop], config, device=device)


def _frozen_network(config: Config, stage1: Path, device: torch.device) -> JointNetwork:
    """The network as stage 1 left it, or as it will begin with it: the frozen layers are the same.

    What `network.weights` names may be gone, or another file, once stage 1 has ended.
    """
    network = build_network(config.network, seed=config.seed)
    if stage1.is_dir():
        load_network(network, stage1)
    else:
        load_starting_weights(network, config.network)
    network.to(device).eval()
    if config.training.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
