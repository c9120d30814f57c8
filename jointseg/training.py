"""The training loop of a stage, in plain torch: one process of one or many.

Not here: Ray (pipeline/worker.py), what a stage trains (stages.py), losses (losses.py), evaluation (evaluation.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from jointseg.checkpoint import Checkpoint, load_checkpoint, load_final, save_checkpoint
from jointseg.config import Config
from jointseg.data.store import Store
from jointseg.data.views import Sample, View, render_view
from jointseg.errors import InputError
from jointseg.evaluation import Sums, predict, score
from jointseg.losses import JointLoss, joint_loss
from jointseg.metrics import depth_metrics, segmentation_metrics
from jointseg.model import JointModel, build_model
from jointseg.network.pretrained import LoadReport, load_pretrained
from jointseg.optimizer import build_optimizer, freeze_for, rates, set_rate
from jointseg.stages import Stage


class TrainingDivergedError(InputError):
    """A loss is not finite any more."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Batch(NamedTuple):
    """Samples stacked: image (B, 3, S, S) uint8, labels (B, S, S) uint8, depth (B, S, S) metres, 0 = missing."""

    image: Tensor
    labels: Tensor
    depth: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass
class Run:
    """A stage in training: what its checkpoint holds, and what it began with."""

    config: Config
    stage: Stage
    model: JointModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    loaded: LoadReport | None = None
    """What `network.weights` gave the network; None where the stage began otherwise, or was resumed."""

    def checkpoint(
        self, random_states: list[dict[str, Tensor | None]], *, metrics: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """Everything that going on from this step needs, and the metrics reported at it."""
        weights, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        return Checkpoint(self.stage.name, self.step, self.config, weights, optimizer, random_states, dict(metrics or {}))


@dataclass(frozen=True)
class Report:
    """What the loop says every `log_every` steps. `save` writes the checkpoint that is due with it, if one is: before the
    report returns or, with `training.async_checkpoints`, whenever and in whichever thread one likes.
    """

    step: int
    metrics: dict[str, float]
    save: Callable[[Path], None] | None


class ViewDataset(Dataset[Sample]):
    """The views of a store, rendered when asked for."""

    def __init__(self, store: Store, views: Sequence[View], config: Config) -> None:
        self.store = store
        self.views = views
        self.config = config

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Sample:
        view = self.views[index]
        return render_view(self.store.frame(view.frame), view, network=self.config.network, depth=self.config.data.train_depth)


def batches(dataset: ViewDataset, run: Run, place: Place) -> Iterator[Batch]:
    """This rank's share of every step that is left, walking the shuffled views round and round.

    Step s of W ranks takes the views s*W*B .. (s+1)*W*B, rank r the r-th B of them: W ranks see what one rank with W
    times the batch sees.
    """
    settings = run.stage.config(run.config)
    size = settings.batch_size
    steps = range(run.step, settings.iterations)
    indices = [[((step * place.world_size + place.rank) * size + i) % len(dataset) for i in range(size)] for step in steps]
    loader = DataLoader(
        dataset,
        batch_sampler=indices,
        collate_fn=_stack,
        num_workers=run.config.training.loader_workers,
        multiprocessing_context="forkserver" if run.config.training.loader_workers else None,
        pin_memory=place.device.type == "cuda",
        generator=torch.Generator(),  # its own, so that making a loader does not move the random state of dropout
    )
    for batch in loader:
        yield batch.to(place.device)


def _stack(samples: list[Sample]) -> Batch:
    return Batch(*(torch.stack([getattr(sample, name) for sample in samples]) for name in Batch._fields))


def begin(config: Config, stage: Stage, *, place: Place, start: Path | None) -> Run:
    """A stage at step 0: weights from `start` (the `final/` of the stage it starts from), or from `network.weights`.

    `Run.loaded` says what was and was not loaded from the latter.
    """
    model = build_model(config)
    loaded: LoadReport | None = None
    if start is not None:
        weights, _ = load_final(start)
        # The CRF starts from this config's settings, which the search may have changed, not from the earlier stage's.
        model.network.load_state_dict({n.removeprefix("network."): w for n, w in weights.items() if n.startswith("network.")})
    elif config.network.weights is not None:
        loaded = load_pretrained(model.network, config.network.weights)
    torch.manual_seed(config.seed * 1_000_003 + place.rank)
    run = _run(config, stage, model, place)
    run.loaded = loaded
    return run


def _run(config: Config, stage: Stage, model: JointModel, place: Place) -> Run:
    model.to(place.device)
    freeze_for(stage, model)
    return Run(config, stage, model, build_optimizer(model, stage.config(config)))


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
    run.optimizer.load_state_dict(checkpoint.optimizer)
    run.step = checkpoint.step
    states = checkpoint.random_states[place.rank]
    assert states["cpu"] is not None
    torch.set_rng_state(states["cpu"])
    if place.device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], place.device)
    return run


def train(
    run: Run,
    store: Store,
    views: Sequence[View],
    *,
    place: Place,
    report: Callable[[Report], None],
    validation: Sequence[int] = (),
    wrap: Callable[[JointModel], nn.Module] = lambda model: model,
) -> None:
    """Train `run` to its last step, reporting on the way. Every rank calls it, and reports equally often.

    Args:
        run: the stage, at step 0 or resumed.
        store: the prepared frames.
        views: the shuffled views to train on.
        place: this process's rank and device.
        report: told of losses every `log_every` steps, and given the checkpoint when one is due.
        validation: numbers of the frames to validate on.
        wrap: what makes the model a distributed one (Ray Train's `prepare_model`).

    Raises:
        TrainingDivergedError: a loss is not finite; the message says which half and which step.
    """
    settings, pace = run.stage.config(run.config), run.config.training
    model = wrap(run.model)
    losses: list[Tensor] = []
    window = time.perf_counter()
    for step, batch in enumerate(batches(ViewDataset(store, views, run.config), run, place), start=run.step):
        model.train()
        set_rate(run.optimizer, settings, step=step)
        loss = _loss_of(model, batch, run)
        run.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        run.optimizer.step()
        run.step = step + 1
        losses.append(torch.stack([loss.total, loss.semantic, loss.depth]).detach())
        last = run.step == settings.iterations
        due = last or run.step % pace.checkpoint_every == 0
        look = bool(validation) and (last or run.step % pace.validate_every == 0)
        if due or look or run.step % pace.log_every == 0:
            metrics = _read_losses(losses, run, place)
            metrics |= rates(run.optimizer)
            metrics["images_per_second"] = len(losses) * settings.batch_size * place.world_size / (time.perf_counter() - window)
            if due or look:
                _refuse_spoiled_weights(run, batch)
            if look:
                metrics |= validate(run, store, validation, place=place)
            report(Report(run.step, metrics, _checkpoint_writer(run, place, metrics) if due else None))
            losses, window = [], time.perf_counter()


def _loss_of(model: nn.Module, batch: Batch, run: Run) -> JointLoss:
    config, stage = run.config, run.stage
    output = model(batch.image, kernels=stage.kernels, with_depth=stage.with_depth, num_iterations=config.crf_train_iterations)
    return joint_loss(
        output.logits,
        batch.labels,
        depth=output.depth,
        target_depth=batch.depth,
        lambda_semantic=config.loss.lambda_semantic,
        invariance=config.loss.depth_invariance,
        unit=stage.config(config).loss_unit,
    )


def _read_losses(losses: Sequence[Tensor], run: Run, place: Place) -> dict[str, float]:
    """Losses since the last report, meaned over steps and ranks: the one place where the loop waits for the device."""
    table = torch.stack(list(losses)).double()
    if place.world_size > 1:
        dist.all_reduce(table)
    table = table.cpu() / place.world_size
    for row, (_, semantic, depth) in enumerate(table.tolist()):
        _stop_unless_finite(run, semantic, depth, when=f"at step {run.step - len(losses) + row + 1}")
    total, semantic, depth = table.mean(0).tolist()
    metrics = {"loss/total": total, "loss/semantic": semantic}
    return {**metrics, "loss/depth": depth} if run.stage.with_depth else metrics


@torch.no_grad()
def _refuse_spoiled_weights(run: Run, batch: Batch) -> None:
    """Look at weights before they are kept or validated: a step's loss is that of the weights before the step."""
    run.model.eval()  # without dropout, which would draw random numbers
    loss = _loss_of(run.model, batch, run)
    _stop_unless_finite(run, loss.semantic.item(), loss.depth.item(), when=f"after step {run.step}")


def _stop_unless_finite(run: Run, semantic: float, depth: float, *, when: str) -> None:
    for half, value in (("segmentation", semantic), ("depth", depth)):
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"{run.stage.name}: the {half} loss is {value} {when}; "
                f"{run.stage.settings}.lr is {run.stage.config(run.config).lr:g}, try a smaller one"
            )


def _checkpoint_writer(run: Run, place: Place, metrics: Mapping[str, float]) -> Callable[[Path], None]:
    """Gather every rank's random state now; the returned function writes the checkpoint (rank 0 calls it)."""
    cuda = torch.cuda.get_rng_state(place.device) if place.device.type == "cuda" else None
    own: dict[str, Tensor | None] = {"cpu": torch.get_rng_state(), "cuda": cuda}
    states = [own] * place.world_size
    if place.world_size > 1:
        dist.all_gather_object(states, own)
    checkpoint = run.checkpoint(states, metrics=metrics)
    if run.config.training.async_checkpoints and place.rank == 0:
        checkpoint = checkpoint.snapshot()
    return lambda folder: save_checkpoint(folder, checkpoint)


def validate(run: Run, store: Store, numbers: Sequence[int], *, place: Place) -> dict[str, float]:
    """The metrics of Tables 2 and 3 on the given frames, shared out over the ranks, under `validation/`."""
    frames = (store.frame(number) for number in numbers[place.rank :: place.world_size])
    evaluation = run.config.evaluation
    own: Sums | None = None
    for frame, prediction in predict(
        run.model, frames, run.config, kernels=run.stage.kernels, with_depth=run.stage.with_depth, device=place.device
    ):
        sums = score(frame, prediction, evaluation)
        own = sums if own is None else own.plus(sums)
    parts: list[Sums | None] = [own] * place.world_size
    if place.world_size > 1:
        dist.all_gather_object(parts, own)
    whole = [part for part in parts if part is not None]
    total = whole[0]
    for part in whole[1:]:
        total = total.plus(part)
    metrics = segmentation_metrics(total.segmentation, absent=evaluation.absent_classes)
    if total.depth is not None:
        metrics |= depth_metrics(total.depth, pooling=evaluation.depth_pooling)
    return {f"validation/{name}": value for name, value in metrics.items()}
