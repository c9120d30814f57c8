"""The training loop of a stage, in plain torch: one process of one or many.

Not here: how a stage begins and goes on (resuming.py), Ray (pipeline/worker.py), what a stage trains (stages.py), losses
(losses.py), evaluation (evaluation.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from jointseg.batches import Batch, Place, ViewDataset, batches
from jointseg.checkpoint import save_checkpoint
from jointseg.config import Config
from jointseg.data.features import FeatureStore
from jointseg.data.store import Store
from jointseg.data.views import View
from jointseg.errors import InputError, OutOfRangeError
from jointseg.evaluation import Sums, predict, score
from jointseg.graphs import GraphedModel, own_gradients
from jointseg.hardware import trains_in_bfloat16
from jointseg.labels import NUM_CLASSES
from jointseg.losses import JointLoss, balancing_weights, joint_loss
from jointseg.model import JointModel
from jointseg.optimizer import rates, set_rate
from jointseg.resuming import Run
from jointseg.stages import Kernels


class TrainingDivergedError(OutOfRangeError):
    """A loss is not finite any more."""


@dataclass(frozen=True)
class Report:
    """What the loop says every `log_every` steps, and where it validates or a checkpoint is due.

    `save` writes that checkpoint, if one is due: before the report returns or, with `training.async_checkpoints`, whenever and
    in whichever thread one likes.
    """

    step: int
    metrics: dict[str, float]
    save: Callable[[Path], None] | None


def train(
    run: Run,
    store: Store,
    views: Sequence[View],
    *,
    place: Place,
    report: Callable[[Report], None],
    validation: Sequence[int] = (),
    features: FeatureStore | None = None,
    wrap: Callable[[JointModel], nn.Module] = lambda model: model,
) -> None:
    """Train `run` to its last step, reporting on the way. Every rank calls it, and reports equally often.

    Args:
        run: the stage, at step 0 or resumed.
        store: the prepared frames.
        views: those to train on, in their order; of online views, the frames to draw from.
        place: this process's rank and device.
        report: told of losses every `log_every` steps, and given the checkpoint when one is due.
        validation: numbers of the frames to validate on.
        features: what the frozen layers say of each view, where that was computed before (`data.cache_features`).
        wrap: what makes the model a distributed one (Ray Train's `prepare_model`).

    Raises:
        TrainingDivergedError: a loss is not finite; the message says which half and which step.
        InputError: the features are of other weights than the frozen layers of `run` have.
    """
    settings, pace = run.stage.config(run.config), run.config.training
    if features is not None:
        features.refuse_other_weights(run.model.network)
    graphed = pace.cuda_graphs and run.stage.kernels is Kernels.NONE
    model = GraphedModel(run.model, run.config, run.stage, device=place.device) if graphed else wrap(run.model)
    weights = class_weights(store, views, run.config)
    weights = None if weights is None else weights.to(place.device)
    dataset = ViewDataset(store, views, run.config, features, stages_before=run.stage.num_before)
    fed = batches(dataset, settings, place, first_step=run.step, loader_workers=pace.loader_workers)
    losses: list[Tensor] = []
    window = time.perf_counter()
    for step in range(run.step, settings.iterations):
        model.train()
        set_rate(run.optimizer, settings, step=step)
        run.optimizer.zero_grad(set_to_none=True)
        for number in range(1, settings.accumulate + 1):
            batch = next(fed)
            with _ranks_apart(model, apart=number < settings.accumulate):
                loss = _loss_of(model, batch, run, weights)
                (loss.total / settings.accumulate).backward()  # type: ignore[no-untyped-call]
            if graphed and number == 1 < settings.accumulate:
                own_gradients(run.model.parameters())
            losses.append(torch.stack([loss.total, loss.semantic, loss.depth]).detach())
            del loss  # it holds the CRF of this pass, which would stay through the next
        run.optimizer.step()
        if run.average is not None:
            run.average.update(run.model)
        run.step = step + 1
        last = run.step == settings.iterations
        due = last or run.step % pace.checkpoint_every == 0
        look = bool(validation) and (last or run.step % pace.validate_every == 0)
        if due or look or run.step % pace.log_every == 0:
            metrics = _read_losses(losses, run, place)
            metrics |= rates(run.optimizer)
            metrics["images_per_second"] = len(losses) * settings.batch_size * place.world_size / (time.perf_counter() - window)
            if due or look:
                _refuse_spoiled_weights(run, batch, weights)
            if look:
                metrics |= validate(run, store, validation, place=place)
            losses, window = [], time.perf_counter()  # what reporting takes counts, what validating takes does not
            report(Report(run.step, metrics, _checkpoint_writer(run, place, metrics) if due else None))


def class_weights(store: Store, views: Sequence[View], config: Config) -> Tensor | None:
    """The weight of each class in the semantic loss, (C,), by its share of the frames that are trained on."""
    if not config.loss.class_balance:
        return None
    counts = np.zeros(NUM_CLASSES, np.int64)
    for number in dict.fromkeys(view.frame for view in views):
        counts += np.bincount(store.labels(number).ravel(), minlength=256)[:NUM_CLASSES]
    if not counts.sum():
        raise InputError("loss.class_balance: no frame that is trained on has a labelled pixel; allowed there: 0")
    return balancing_weights(torch.from_numpy(counts), power=config.loss.class_balance)


def _ranks_apart(model: nn.Module, *, apart: bool) -> AbstractContextManager[None]:
    """Where `apart`, gradients stay on their rank: those of a step's earlier passes are summed over ranks with its last."""
    if apart and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def _loss_of(model: nn.Module, batch: Batch, run: Run, weights: Tensor | None) -> JointLoss:
    config, stage = run.config, run.stage
    half = trains_in_bfloat16(config.training, batch.image.device)
    with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=half):
        output = model(
            batch.image,
            kernels=stage.kernels,
            with_depth=stage.with_depth,
            num_iterations=config.crf_train_iterations,
            features=_unpacked(batch.features, config, half=half),
        )
    with_crf = stage.kernels is not Kernels.NONE
    return joint_loss(
        output.logits / config.loss.crf_temperature if with_crf else output.logits,
        batch.labels,
        depth=output.depth,
        target_depth=batch.depth,
        lambda_semantic=config.lambda_of_sum,
        invariance=config.loss.depth_invariance,
        class_weights=weights,
        unit=stage.config(config).loss_unit,
    )


def _unpacked(features: Mapping[str, Tensor] | None, config: Config, *, half: bool) -> dict[str, Tensor] | None:
    """Kept features in the precision and the layout that the network computes in."""
    if features is None:
        return None
    dtype = torch.bfloat16 if half else torch.float32
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
    return {name: kept.to(dtype).contiguous(memory_format=layout) for name, kept in features.items()}


def _read_losses(losses: Sequence[Tensor], run: Run, place: Place) -> dict[str, float]:
    """Losses since the last report, meaned over steps and ranks. A step waits here and where CRF filters are built."""
    table = torch.stack(list(losses)).double()
    if place.world_size > 1:
        dist.all_reduce(table)
    table = table.cpu() / place.world_size
    passes = run.stage.config(run.config).accumulate
    first = run.step - len(losses) // passes + 1
    for row, (_, semantic, depth) in enumerate(table.tolist()):
        _stop_unless_finite(run, semantic, depth, when=f"at step {first + row // passes}")
    total, semantic, depth = table.mean(0).tolist()
    metrics = {"loss/total": total, "loss/semantic": semantic}
    return {**metrics, "loss/depth": depth} if run.stage.with_depth else metrics


@torch.no_grad()
def _refuse_spoiled_weights(run: Run, batch: Batch, weights: Tensor | None) -> None:
    """Look at weights before they are kept or validated: a step's loss is that of the weights before the step."""
    run.model.eval()  # without dropout, which would draw random numbers
    loss = _loss_of(run.model, batch, run, weights)
    _stop_unless_finite(run, loss.semantic.item(), loss.depth.item(), when=f"after step {run.step}")


def _stop_unless_finite(run: Run, semantic: float, depth: float, *, when: str) -> None:
    settings, name = run.stage.config(run.config), run.stage.settings
    tried = f"{name}.lr is {settings.lr:g}"
    if run.stage.kernels is not Kernels.NONE:
        tried += f" and {name}.crf_lr {settings.crf_lr:g}"
    for half, value in (("segmentation", semantic), ("depth", depth)):
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"{run.stage.name}: the {half} loss is {value} {when}; {tried}, try a smaller one in a new folder"
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
    predictions = predict(
        run.kept_model, frames, run.config, kernels=run.stage.kernels, with_depth=run.stage.with_depth, device=place.device
    )
    own = [score(frame, prediction, evaluation) for frame, prediction in predictions]
    parts = [own] * place.world_size
    if place.world_size > 1:
        dist.all_gather_object(parts, own)
    total = reduce(Sums.plus, chain.from_iterable(parts))
    return {f"validation/{name}": value for name, value in total.metrics(evaluation).items()}
