"""What a worker is fed: the dataset of views, and its own share of them, pass after pass.

Not here: how a view is cut (data/views.py, data/augment.py), what is done with a batch (training.py).
"""

# B images, S side of the square input

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from jointseg.config import Config, StageConfig
from jointseg.data.augment import coloured, view_of_visit
from jointseg.data.features import FeatureStore
from jointseg.data.store import Store
from jointseg.data.views import Sample, View, render_view
from jointseg.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Batch(NamedTuple):
    """Samples stacked. Its loader pins a tuple in memory by itself."""

    image: Tensor
    """(B, 3, S, S) uint8, RGB."""
    labels: Tensor
    """(B, S, S) uint8, 0..39 or VOID."""
    depth: Tensor
    """(B, S, S) float32, metres, 0 = missing."""
    features: Mapping[str, Tensor] | None
    """By frozen layer, (B, channels, h, w) float16; None where the network computes them itself."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; from pinned memory, without waiting for it."""
        image, labels, depth = (tensor.to(device, non_blocking=True) for tensor in (self.image, self.labels, self.depth))
        kept = self.features
        features = None if kept is None else {name: t.to(device, non_blocking=True) for name, t in kept.items()}
        return Batch(image, labels, depth, features)


class ViewDataset(Dataset[tuple[Sample, Mapping[str, Tensor] | None]]):
    """The pictures that are trained on, by the number of the visit: how many came before, over all workers.

    Offline views recur in the order they are listed in; online ones are drawn from the frames that the list names, in whatever
    order and however often it names them, others in each stage (`stages_before`).
    """

    def __init__(
        self,
        store: Store,
        views: Sequence[View],
        config: Config,
        features: FeatureStore | None = None,
        *,
        stages_before: int = 0,
    ) -> None:
        self.store = store
        self.views = views
        self.numbers = tuple(sorted({view.frame for view in views}))
        self.config = config
        self.features = features
        self.stages_before = stages_before

    def __getitem__(self, visit: int) -> tuple[Sample, Mapping[str, Tensor] | None]:
        data, network = self.config.data, self.config.network
        if data.views == "online":
            view, colour = view_of_visit(self.numbers, visit, data, stages_before=self.stages_before)
            recolour = partial(coloured, colour=colour) if data.color_jitter else None
            frame = self.store.frame(view.frame)
            return render_view(frame, view, network=network, depth=data.train_depth, recolour=recolour), None
        row = visit % len(self.views)
        view = self.views[row]
        sample = render_view(self.store.frame(view.frame), view, network=network, depth=data.train_depth)
        return sample, None if self.features is None else self.features.row(row)


def visits_of(place: Place, settings: StageConfig, *, steps: range) -> list[list[int]]:
    """The visits of each pass of this rank, over the given steps.

    Step s of W ranks, A passes a step and B images a pass takes the visits s*W*A*B .. (s+1)*W*A*B, in order of pass and then
    of rank: however they are shared out, a step sees the same pictures.
    """
    ranks, passes, size = place.world_size, settings.accumulate, settings.batch_size
    firsts = (((step * passes + each) * ranks + place.rank) * size for step in steps for each in range(passes))
    return [list(range(first, first + size)) for first in firsts]


def batches(
    dataset: ViewDataset, settings: StageConfig, place: Place, *, first_step: int, loader_workers: int
) -> Iterator[Batch]:
    """This rank's batches from step `first_step` to the last, `settings.accumulate` a step, on its device.

    Raises:
        InputError: as `Store.frame`.
    """
    processes = get_context("forkserver") if loader_workers else None
    if processes is not None:
        processes.set_forkserver_preload([__name__])  # torch and the like are imported once, not by each process
    loader = DataLoader(
        dataset,
        batch_sampler=visits_of(place, settings, steps=range(first_step, settings.iterations)),
        collate_fn=_stack,
        num_workers=loader_workers,
        multiprocessing_context=processes,
        pin_memory=place.device.type == "cuda",
        generator=torch.Generator(),  # its own, so that making a loader does not move the random state of dropout
    )
    try:
        for batch in loader:
            yield batch.to(place.device)
    except InputError as error:
        if not loader_workers:
            raise
        kind = type(error)  # a loader's process puts its traceback before what it says
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].rstrip()) from None


def _stack(rows: list[tuple[Sample, Mapping[str, Tensor] | None]]) -> Batch:
    samples = [sample for sample, _ in rows]
    # Within a loader's process default_collate stacks into shared memory, and says where there is too little of it. What sends
    # a batch that is not there yet would say nothing, and the batch be waited for without end.
    image, labels, depth = (default_collate([getattr(s, name) for s in samples]) for name in ("image", "labels", "depth"))
    kept = [features for _, features in rows if features is not None]
    features = {name: default_collate([each[name] for each in kept]) for name in kept[0]} if kept else None
    return Batch(image, labels, depth, features)
