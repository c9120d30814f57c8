"""Laws of upsampling and adding in one kernel, held to PyTorch's own in float64; on a CPU Triton's interpreter runs it.

Not here: its machine code (test_gpu_code.py), its speed, the network around it (test_network.py).
"""

from __future__ import annotations

import os
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jointseg.config import NetworkConfig
from jointseg.network import network as networks
from jointseg.network.bilinear import is_one_kernel, upsample_and_add
from jointseg.network.network import build_network

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are imported, which is at the first call
pytest.importorskip("triton", reason="the kernels need the triton package")

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
FIRST, LAST = torch.contiguous_format, torch.channels_last
LAYOUTS = list(product([FIRST, LAST], repeat=3))
"""Of the small map, the score and the gradient."""
SIZES = list(product([2, 4, 8], [2, 3, 9], [1, 3, 40, 70]))
if DEVICE == "cpu":  # the interpreter is slow: each step and side, and each number of scores
    SIZES = [
        (2, 2, 1), (2, 2, 70), (2, 3, 40), (2, 9, 3), (4, 2, 40), (4, 3, 70), (4, 9, 1), (8, 2, 3), (8, 2, 40), (8, 3, 1),
    ]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OF_LAYOUTS = [
    (*layouts, dtype)
    for number, layouts in enumerate(LAYOUTS)
    for dtype in (DTYPES if DEVICE == "cuda" else [DTYPES[number % 3]])
]
HALF = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
"""What rounding to bfloat16 may change, relatively; the interpreter cuts."""


def draw(shape: tuple[int, ...], layout=FIRST, dtype=torch.float32, *, seed: int) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(DEVICE, dtype).contiguous(memory_format=layout).requires_grad_()


def plain(small: Tensor, factor: int, score: Tensor | None) -> Tensor:
    """In float64."""
    side = (small.shape[-1] - 1) * factor + 1
    upsampled = interpolate(small.double(), size=(side, side), mode="bilinear", align_corners=True)
    return upsampled if score is None else upsampled + score.double()


def check(small: Tensor, factor: int, score: Tensor | None, grad: Tensor) -> None:
    """The output and each gradient: their values, dtypes and layouts."""
    inputs = [small] if score is None else [small, score]
    want = plain(small, factor, score)
    found = upsample_and_add(small, factor, score)
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
    torch.testing.assert_close(found.double(), want, rtol=0, atol=3e-6)
    expected = torch.autograd.grad(want, [x for x in inputs if x.requires_grad], grad.double())
    got = torch.autograd.grad(found, [x for x in inputs if x.requires_grad], grad)
    for x, mine, theirs in zip([x for x in inputs if x.requires_grad], got, expected, strict=True):
        assert (mine.dtype, mine.stride()) == (x.dtype, x.stride())
        rounded = 0.0 if x.dtype == torch.float32 else HALF
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=rounded, atol=factor**2 * 1e-6)


@pytest.mark.parametrize(("factor", "side", "scores"), SIZES)
def test_it_is_interpolation_and_addition_and_so_are_its_gradients(factor, side, scores):
    small_layout, score_layout, grad_layout = LAYOUTS[(factor + side + scores) % len(LAYOUTS)]
    full = factor * (side - 1) + 1
    small = draw((1, scores, side, side), small_layout, seed=0)
    score = draw((1, scores, full, full), score_layout, torch.bfloat16, seed=1)
    check(small, factor, score, draw((1, scores, full, full), grad_layout, seed=2).detach())


@pytest.mark.slow
@pytest.mark.parametrize(("small_layout", "score_layout", "grad_layout", "dtype"), OF_LAYOUTS)
def test_every_layout_of_several_images(small_layout, score_layout, grad_layout, dtype):
    small, score = draw((2, 5, 4, 4), small_layout, dtype, seed=0), draw((2, 5, 7, 7), score_layout, dtype, seed=1)
    grad = draw((2, 5, 7, 7), grad_layout, seed=2).detach()
    check(small, 2, score, grad)
    check(small, 2, None, grad)


@pytest.mark.slow
def test_maps_that_are_wider_than_what_a_program_takes():
    small, score = draw((1, 2, 36, 36), seed=0), draw((1, 2, 71, 71), LAST, torch.bfloat16, seed=1)
    check(small, 2, score, draw((1, 2, 71, 71), seed=2).detach())


@pytest.mark.parametrize("learnt", [(True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_wanted_is_left_out(learnt, dtype):
    small, score = draw((1, 3, 3, 3), seed=0), draw((1, 3, 9, 9), LAST, dtype, seed=1)
    small.requires_grad_(learnt[0])
    score.requires_grad_(learnt[1])
    check(small, 4, score, draw((1, 3, 9, 9), seed=2).detach())


def test_strided_maps_and_gradients_and_a_single_pixel():
    small, score = draw((2, 6, 3, 6), seed=0), draw((5, 2, 5, 3), seed=1)
    found = upsample_and_add(small[:, ::2, :, ::2], 2, score.permute(1, 3, 0, 2))
    want = plain(small[:, ::2, :, ::2], 2, score.permute(1, 3, 0, 2))
    torch.testing.assert_close(found.double(), want, rtol=0, atol=3e-6)
    got, expected = (torch.autograd.grad(output.sum(), (small, score)) for output in (found, want))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    check(draw((2, 3, 1, 1), seed=0), 8, draw((2, 3, 1, 1), seed=1), draw((2, 3, 1, 1), seed=2).detach())


def test_it_stays_in_float32_under_autocast_and_learns_after_inference():
    small, score = draw((1, 2, 3, 3), seed=0), draw((1, 2, 5, 5), LAST, torch.bfloat16, seed=1)
    with torch.inference_mode():
        alone = upsample_and_add(small, 2, score)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = upsample_and_add(small, 2, score)
        found.sum().backward()
    assert torch.equal(found, alone)
    assert (small.grad.dtype, score.grad.dtype) == (torch.float32, torch.bfloat16)


def test_the_network_takes_it_where_it_may(monkeypatch):
    """Where there is no step up, maps are added as ever."""
    scores = [(f, draw((1, 3, 16 // f + 1, 16 // f + 1), seed=f)) for f in (8, 4, 4, 2)]
    want = networks._sum_at_full_size(scores)
    taken = []

    def counted(small, factor, score):
        taken.append((factor, score is not None))
        return upsample_and_add(small, factor, score)

    monkeypatch.setattr(networks, "is_one_kernel", lambda small, factor, score: factor > 1)
    monkeypatch.setattr(networks, "upsample_and_add", counted)
    torch.testing.assert_close(networks._sum_at_full_size(scores), want, rtol=1e-5, atol=1e-5)
    assert taken == [(2, True), (2, True), (2, False)]


def test_it_is_not_for_cpus_nor_for_other_factors_and_dtypes():
    assert not is_one_kernel(torch.zeros(1, 2, 3, 3), 2, None)
    small = torch.zeros(1, 2, 3, 3, device=DEVICE)
    assert is_one_kernel(small, 2, None) == (DEVICE == "cuda")
    assert not is_one_kernel(small, 3, None)
    assert not is_one_kernel(small, 1, small)
    assert not is_one_kernel(small.double(), 2, None)
    assert not is_one_kernel(small, 2, torch.zeros(1, 2, 5, 5, dtype=torch.float64, device=DEVICE))


@ON_CUDA
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("variant", ["table1_literal", "vgg16_msc", "deeplab_msc"])
def test_on_a_gpu_the_network_and_its_gradients_are_as_without_the_kernel(monkeypatch, variant, half):
    config = NetworkConfig(variant=variant, width=0.25, input_size=65, dropout=0.0)
    network = build_network(config, seed=0).cuda().to(memory_format=LAST)
    image = torch.randint(0, 256, (2, 3, 65, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).cuda()
    weights = torch.randn((2, 40, 65, 65), generator=torch.Generator().manual_seed(1)).cuda()
    parameters = list(network.heads.parameters())

    def scores_and_gradients():
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            output = network(image)
        sums = (output.logits.float() * weights).sum() + (output.depth_logits.float()[:, :40] * weights).sum()
        return output.logits, output.depth_logits, *torch.autograd.grad(sums, parameters)

    found, again = scores_and_gradients(), scores_and_gradients()
    assert found[0].is_contiguous()
    assert torch.equal(found[0], again[0])
    monkeypatch.setattr(networks, "is_one_kernel", lambda small, factor, score: False)
    for mine, theirs in zip(found, scores_and_gradients(), strict=True):
        assert (mine - theirs).norm() <= (2e-2 if half else 1e-4) * theirs.norm()


@ON_CUDA
def test_on_a_gpu_it_is_captured_as_a_graph_and_has_one_gradient():
    small, score = draw((2, 40, 17, 17), LAST, seed=0), draw((2, 40, 33, 33), LAST, torch.bfloat16, seed=1)
    grad = draw((2, 40, 33, 33), seed=2).detach()

    def step():
        output = upsample_and_add(small, 2, score)
        return output.detach(), *torch.autograd.grad(output, (small, score), grad)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        want = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, want, strict=True))
