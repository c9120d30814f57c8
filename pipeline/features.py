"""The features of the frozen layers for every view, computed once on Ray, trained on by all stages.

Not here: what they are and how they are kept (jointseg/data/features.py), who trains on them (worker.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ray
import torch

from jointseg.config import Config
from jointseg.data import features
from jointseg.data.manifest import read_manifest
from jointseg.data.store import Store, check_space
from jointseg.network.network import JointNetwork, build_network
from jointseg.network.pretrained import load_starting_weights
from jointseg.whole import appearing_whole
from pipeline.cluster import result_of, uses_gpu

VIEWS_A_TASK = 64


def cached_features(
    config: Config, *, store: Path, views: Path, folder: Path, progress: Callable[[int], None]
) -> features.FeatureStore:
    """The features in `folder`, computed first where they are not those of these weights, views and frames.

    Raises:
        InputError: the disk has too little room, or half precision cannot hold them.
    """
    network = _frozen_network(config, torch.device("cpu"))
    listed = read_manifest(views)
    stamp = features.stamp(network, config, listed, Store.open(store))
    description = folder / features.DESCRIPTION
    if description.is_file() and json.loads(description.read_text()) == stamp:
        return features.FeatureStore.open(folder)
    size = config.network.input_size
    check_space(folder, needed=len(listed) * features.bytes_per_view(network, size))
    gpu = uses_gpu(config)
    task = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=1)(_compute)
    with appearing_whole(folder, replace=True) as partial:
        features.create(partial, network, size=size, num_views=len(listed))
        last, device = len(listed), "cuda" if gpu else "cpu"
        waiting = [
            task.remote(config, store, views, partial, rows=range(first, min(first + VIEWS_A_TASK, last)), device=device)
            for first in range(0, last, VIEWS_A_TASK)
        ]
        done = 0
        while waiting:
            ready, waiting = ray.wait(waiting)
            done += result_of(ready[0])
            progress(done)
        (partial / features.DESCRIPTION).write_text(json.dumps(stamp, indent=1))
    return features.FeatureStore.open(folder)


def _compute(config: Config, store: Path, views: Path, folder: Path, *, rows: range, device: str) -> int:
    torch.set_num_threads(1)
    where = torch.device(device)
    network = _frozen_network(config, where)
    features.compute(network, Store.open(store), read_manifest(views), config, rows=rows, folder=folder, device=where)
    return len(rows)


def _frozen_network(config: Config, device: torch.device) -> JointNetwork:
    """The network as stage 1 begins with it."""
    network = build_network(config.network, seed=config.seed)
    load_starting_weights(network, config.network)
    network.to(device).eval()
    if config.training.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
