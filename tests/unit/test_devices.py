"""Training on a GPU mixes no devices, as far as a simulated one shows. Not here: numbers on a real one (test_*gpu*.py)."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import import_module
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from jointseg.batches import Batch
from jointseg.config import Config
from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.filters import FILTERS, ExactFilter, Features
from jointseg.crf.mean_field import merge_terms
from jointseg.model import build_model
from jointseg.optimizer import build_optimizer, freeze_for
from jointseg.resuming import Run
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import _loss_of

simulated_gpu = pytest.importorskip(
    "tests.simulated_gpu", reason="this PyTorch takes no device written in Python", exc_type=ImportError
)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the other tests run on it")


def structured(features: Features):
    """What `auto` takes on CUDA for smoothness and depth; the exact sum for appearance."""
    return FILTERS[{2: "separable", 3: "bilateral_grid"}.get(features.values_BPF.shape[2], "exact")](features)


@pytest.fixture(scope="module")
def child():
    """Another process: one that has the simulated device keeps it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def test_the_block_sparse_crf_keeps_to_its_device(child):
    pytest.importorskip("triton")
    assert child.submit(a_crf, simulated=True).result() == pytest.approx(
        child.submit(a_crf, simulated=False).result(), rel=1e-5
    )


def test_preparing_waits_for_the_device_only_where_what_comes_next_depends_on_it(child):
    """The guides' ranges, fingerprints and holes; the grid's extents; the positions' bandwidths; whether distances are
    expanded; and of pairs of tiles, those that are sure, are doubtful and are kept, and how they are cut.
    """
    pytest.importorskip("triton")
    assert len(child.submit(waits_of_preparing).result()) <= 10


@pytest.mark.parametrize("chosen", ["exact", structured])
def test_a_step_of_training_keeps_to_its_device(child, small, chosen):
    here = child.submit(a_step, small, chosen, simulated=False)
    there = child.submit(a_step, small, chosen, simulated=True)
    assert there.result() == pytest.approx(here.result(), rel=1e-5)


def test_the_simulated_gpu_refuses_a_mix(child):
    for mixing in (add, look_up):
        with pytest.raises(RuntimeError, match=r"takes tensors on gpu:0, and one is on cpu"):
            child.submit(mixing).result()


def test_inference_on_a_device_does_not_ask_which_one_is_the_default(child):
    assert child.submit(merged_terms).result() == (1, [None])


def merged_terms() -> tuple[int, list[None]]:
    """How many filters multiples of the identity are merged into, and the matrices left."""
    device = simulated_gpu.registered()
    filters = [ExactFilter(Features(values_BPF=torch.zeros(1, 4, 2), size=(2, 2)), budget_bytes=1) for _ in range(2)]
    with simulated_gpu.SimulatedGpu(), torch.device("meta"):
        matrices_KCC = torch.stack([torch.eye(3, device="cpu"), 2 * torch.eye(3, device="cpu")]).to(device)
        left, matrices = merge_terms(filters, matrices_KCC)
    return len(left), list(matrices)


def add() -> None:
    device = simulated_gpu.registered()
    with simulated_gpu.SimulatedGpu():
        _ = torch.ones(3, device=device) + torch.ones(3)


def look_up() -> None:
    device = simulated_gpu.registered()
    with simulated_gpu.SimulatedGpu():
        assert torch.arange(3, device=device)[torch.tensor([2])].item() == 2  # as on CUDA
        _ = torch.arange(3)[torch.tensor([2]).to(device)]


def a_step(small: Config, chosen, *, simulated: bool) -> list[float]:
    """The loss of one step of stage 3, and the sum of squares of each gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = with_overrides(small, {"loss.class_balance": 0.3, "training.channels_last": True})
    stage, size = STAGES["stage3"], config.network.input_size
    image = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    labels, depth = torch.randint(0, 40, (2, size, size), dtype=torch.uint8), 1 + torch.rand(2, size, size)
    model = build_model(config).eval()  # without dropout
    model.crf = DenseCRF(40, config.crf.scaled(size / config.crf_reference_size), filter=chosen)
    with where(model, simulated=simulated) as device:
        batch = Batch(image.to(device), labels.to(device), depth.to(device), None)
        freeze_for(stage, model)
        run = Run(config, stage, model, build_optimizer(model, stage.config(config)))
        loss = _loss_of(model, batch, run, torch.ones(40).to(device))
        loss.total.backward()
        run.optimizer.step()
        return [loss.total.item(), *squares_of_gradients(model)]


def a_crf(*, simulated: bool) -> list[float]:
    """What the CRF says of a small picture with holes in its depth, and the sum of squares of each gradient."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.manual_seed(0)
    logits, depth = torch.randn(1, 5, 7, 8), torch.rand(1, 7, 8) * 3
    image, mask = torch.randint(0, 256, (1, 3, 7, 8), dtype=torch.uint8), torch.rand(1, 7, 8) > 0.1
    depth[:, :3, :3] = 0
    crf = DenseCRF(5, CrfSettings(num_iterations=1), filter="block_sparse", learn_bandwidths=True)
    with kernels_handed_what_tensors_hold() if simulated else nullcontext(), where(crf, simulated=simulated) as device:
        refined = crf(logits.to(device), image=image.to(device), depth=depth.to(device), mask=mask.to(device))
        refined.square().mean().backward()
        return [refined.double().sum().item(), *squares_of_gradients(crf)]


def waits_of_preparing() -> list[str]:
    """What makes the host wait while the three kernels of a picture are prepared, a second time, as on CUDA."""
    os.environ["TRITON_INTERPRET"] = "1"
    names = {2: "separable", 3: "bilateral_grid", 5: "block_sparse"}
    crf = DenseCRF(5, filter=lambda features: FILTERS[names[features.values_BPF.shape[2]]](features))
    image, depth = 255 * torch.rand(1, 3, 9, 8), 1 + torch.rand(1, 9, 8)
    with kernels_handed_what_tensors_hold(), where(crf, simulated=True) as device:
        for _ in range(2):
            simulated_gpu.waits.clear()
            prepared = crf.prepare(image=image.to(device), depth=depth.to(device))
        assert type(prepared.filters[1]).__name__ == "GridMatrices"
    return simulated_gpu.waits


def squares_of_gradients(module: nn.Module) -> list[float]:
    return [own.grad.double().square().sum().item() for own in module.parameters() if own.grad is not None]


@contextmanager
def where(module: nn.Module, *, simulated: bool):
    """The device, with the module on it: the CPU, or one simulated for the length of the block."""
    device = simulated_gpu.registered()  # before autograd first runs: it counts the devices then
    if not simulated:
        yield torch.device("cpu")
        return
    simulated_gpu.moved(module)
    with simulated_gpu.SimulatedGpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jointseg.crf.inputs.DEVICES", (simulated_gpu.NAME,))
        yield device


@contextmanager
def kernels_handed_what_tensors_hold():
    """Triton's interpreter reads memory: it gets the tensors on the CPU, and what it returns is on the device again."""
    kernels = import_module("jointseg.crf.filters.block_sparse_kernels")

    def held(value):
        if dataclasses.is_dataclass(value):
            parts = {part.name: held(getattr(value, part.name)) for part in dataclasses.fields(value)}
            return dataclasses.replace(value, **parts)
        simulated_gpu.refuse_others("a kernel", value)
        return simulated_gpu.unwrapped(value)

    def handed(kernel):
        def run(*args, **kwargs) -> Tensor | tuple[Tensor, ...]:
            with _disable_current_modes():
                result = kernel(*map(held, args), **kwargs)
            if isinstance(result, tuple):
                return tuple(map(simulated_gpu.SimulatedTensor, result))
            return simulated_gpu.SimulatedTensor(result)

        return run

    with pytest.MonkeyPatch.context() as patch:
        tree = import_module("jointseg.crf.filters.kd_tree")
        patch.setattr(tree, "kd_order", handed(tree.kd_order))
        distances = import_module("jointseg.crf.filters.exponents")
        patch.setattr(distances, "factors", handed(distances.factors))
        choosing = import_module("jointseg.crf.filters.pair_kernels")
        names_of = {kernels: ("apply_pairs", "moments_of_pairs"), choosing: ("near_tiles", "largest_shares", "cut")}
        for module, names in names_of.items():
            for name in names:
                patch.setattr(module, name, handed(getattr(module, name)))
        yield
