"""A stage in training: how it begins, what of it a checkpoint holds, and how it goes on from one.

Not here: the loop (training.py), what a stage trains (stages.py), checkpoints as files (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jointseg.averaging import RunningMean
from jointseg.batches import Place
from jointseg.checkpoint import Checkpoint, load_checkpoint, load_network
from jointseg.config import Config
from jointseg.errors import InputError
from jointseg.graphs import refuse_where_there_are_no_graphs
from jointseg.model import JointModel, build_model
from jointseg.network.pretrained import LoadReport, load_starting_weights
from jointseg.optimizer import build_optimizer, freeze_for
from jointseg.stages import Stage

IN_TRAINING = "weights_in_training"
NUM_AVERAGED = "num_averaged"
"""What a checkpoint's optimiser state has beside the optimiser's own, where the weights are averaged."""


@dataclass
class Run:
    """A stage in training: what its checkpoint holds, and what it began with."""

    config: Config
    stage: Stage
    model: JointModel
    optimizer: torch.optim.Optimizer
    average: RunningMean | None = None
    """The running mean of the weights, where the stage has one (`ema`)."""
    step: int = 0
    loaded: LoadReport | None = None
    """What `network.weights` gave the network; None where the stage began otherwise, or was resumed."""

    @property
    def kept_model(self) -> JointModel:
        """The model to validate and to keep: with the mean of the weights where there is one."""
        return self.model if self.average is None else self.average.model

    def checkpoint(
        self, random_states: list[dict[str, Tensor | None]], *, metrics: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """Everything that going on from this step needs, and the metrics reported at it.

        Its weights are those that are kept at the end; where that is their mean, the weights in training go with the
        optimiser's state.
        """
        optimizer = self.optimizer.state_dict()
        if self.average is not None:
            optimizer = {**optimizer, IN_TRAINING: self.model.state_dict(), NUM_AVERAGED: torch.tensor(self.average.count)}
        weights = self.kept_model.state_dict()
        return Checkpoint(self.stage.name, self.step, self.config, weights, optimizer, random_states, dict(metrics or {}))


def begin(config: Config, stage: Stage, *, place: Place, start: Path | None) -> Run:
    """A stage at step 0: weights from `start` (the `final/` of the stage it starts from), or from `network.weights`.

    `Run.loaded` says what was and was not loaded from the latter.
    """
    model = build_model(config)
    loaded: LoadReport | None = None
    if start is not None:
        # The CRF starts from this config's settings, which the search may have changed, not from the earlier stage's.
        load_network(model.network, start)
    else:
        loaded = load_starting_weights(model.network, config.network)
    torch.manual_seed(config.seed * 1_000_003 + place.rank)
    run = _run(config, stage, model, place)
    run.loaded = loaded
    return run


def _run(config: Config, stage: Stage, model: JointModel, place: Place) -> Run:
    settings, pace = stage.config(config), config.training
    if pace.cuda_graphs:
        refuse_where_there_are_no_graphs(place)
    model.to(place.device)
    if pace.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.network.recompute = pace.recompute
    freeze_for(stage, model)
    run = Run(config, stage, model, build_optimizer(model, settings))
    if settings.ema:
        run.average = RunningMean(model, settings.ema)
    if pace.compile:
        model.network.compile()
    return run


def resume(config: Config, stage: Stage, folder: Path, *, place: Place) -> Run:
    """A stage at the step of the checkpoint in `folder`, random states included.

    Raises:
        InputError: the checkpoint is damaged, of another config or of another number of workers.
    """
    checkpoint = load_checkpoint(folder, config=config, stage=stage.name)
    if len(checkpoint.random_states) != place.world_size:
        raise InputError(f"{folder}: was made by {len(checkpoint.random_states)} workers; training has {place.world_size}")
    model = build_model(config)
    model.load_state_dict(checkpoint.weights)
    run = _run(config, stage, model, place)
    optimizer = dict(checkpoint.optimizer)
    if run.average is not None:  # it was copied from the model, which has the mean so far
        model.load_state_dict(optimizer.pop(IN_TRAINING))
        run.average.count = int(optimizer.pop(NUM_AVERAGED))
    for saved, own in zip(optimizer["param_groups"], run.optimizer.param_groups, strict=True):
        saved["fused"] = own["fused"]  # it goes by the device, which may be another now
    run.optimizer.load_state_dict(optimizer)
    run.step = checkpoint.step
    states = checkpoint.random_states[place.rank]
    assert states["cpu"] is not None
    torch.set_rng_state(states["cpu"])
    if place.device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], place.device)
    return run
