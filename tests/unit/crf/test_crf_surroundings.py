"""Laws of the CRF inside what people put it in: torch.compile, inference mode, forked processes, half precision.

Not here: threads (test_crf_one_pass.py), processes that compile (test_crf_processes.py).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import jointseg
from jointseg.crf import CrfSettings, DenseCRF, Kernel
from jointseg.crf.cpu.engine import Engine
from jointseg.crf.filters import FILTERS, Features
from jointseg.errors import InputError
from tests.crf_scenes import scene

SIDE = 72
"""More pixels than are summed over exactly."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.crf = nn.Conv2d(3, 3, 1), DenseCRF(3, CrfSettings(num_iterations=2))

    def forward(self, image):
        return 2 * self.crf(self.conv(image / 255), image=image)


@pytest.mark.parametrize("learning", [True, False])
def test_a_compiled_network_has_it_as_it_is(learning):
    _, image, _ = scene(H=SIDE, W=SIDE, dtype=torch.float32)
    net = Net()
    expected = net(image)
    with torch.set_grad_enabled(learning):
        found = torch.compile(net, backend="eager")(image)
    torch.testing.assert_close(found, expected)
    if learning:
        (by_weight,) = torch.autograd.grad(expected.square().sum(), [net.conv.weight])
        found.square().sum().backward()
        torch.testing.assert_close(net.conv.weight.grad, by_weight)


@pytest.mark.parametrize("made", [{}, {"filter": "exact"}, {"filter": "exact", "learn_bandwidths": True}], ids=str)
def test_nothing_of_it_is_compiled_with_a_step_of_training(made):
    """torch.compile leaves `backward` to autograd, and would compile what that calls."""
    side = 12 if made else SIDE
    logits, image, _ = scene(H=side, W=side, dtype=torch.float32)
    crf = DenseCRF(3, CrfSettings(num_iterations=2), **made)
    prepared, compiled = crf.prepare(image=image), []

    def noting(graph, _):
        compiled.append(graph.code)
        return graph

    def step(logits):
        crf(2 * logits, prepared=prepared).square().mean().backward()

    step(logits.requires_grad_())
    expected, logits.grad = logits.grad, None
    torch.compile(step, backend=noting)(logits)
    torch.testing.assert_close(logits.grad, expected)
    assert len(compiled) == 2, "what comes before it, and what after"


def test_images_are_prepared_within_a_compiled_function():
    _, image, _ = scene(H=SIDE, W=SIDE, dtype=torch.float32)
    crf = DenseCRF(3)
    prepared = torch.compile(lambda image: crf.prepare(image=image), backend="eager")(image)
    assert prepared.filter_names == crf.prepare(image=image).filter_names


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [12, SIDE])
def test_what_follows_may_write_into_the_result(layout, side):
    logits, image, _ = scene(H=side, W=side, dtype=torch.float32)
    logits = logits.clone(memory_format=layout).requires_grad_()
    crf = DenseCRF(3, CrfSettings(num_iterations=2))
    (expected,) = torch.autograd.grad(crf(logits, image=image).relu().square().sum(), [logits])
    (found,) = torch.autograd.grad(crf(logits, image=image).relu_().square().sum(), [logits])
    assert torch.equal(found, expected)


def test_what_was_first_used_in_inference_mode_serves_training():
    logits, image, _ = scene(H=9, W=12, dtype=torch.float32)

    def partly(features: Features):
        return FILTERS["separable" if features.values_BPF.shape[2] == 2 else "exact"](features)

    crf = DenseCRF(3, filter=partly)
    prepared = crf.prepare(image=image)
    with torch.inference_mode():
        crf(logits, prepared=prepared)
    crf(logits.requires_grad_(), prepared=prepared).square().sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("learning", [True, False])
def test_q_of_the_iterations_is_kept_for_a_backward_pass_alone(learning, monkeypatch):
    kept, run = [], Engine.mean_field

    def noting(self, *arguments, keep, **options):
        kept.append(keep)
        return run(self, *arguments, keep=keep, **options)

    monkeypatch.setattr(Engine, "mean_field", noting)
    logits, image, _ = scene(H=SIDE, W=SIDE, dtype=torch.float32)
    with torch.set_grad_enabled(learning):
        DenseCRF(3, CrfSettings(num_iterations=1))(logits.requires_grad_(), image=image)
    assert kept == [learning]


def test_the_least_of_logits_are_a_distribution_too():
    logits, image, _ = scene(C=21, H=SIDE, W=SIDE, dtype=torch.float32)
    logits[:, :, :4, :4] = torch.finfo(torch.float32).min
    with torch.no_grad():
        q = DenseCRF(21, CrfSettings(num_iterations=2))(logits, image=image, probabilities=True)
    torch.testing.assert_close(q.sum(1), torch.ones(1, SIDE, SIDE), rtol=0, atol=1e-5)


def test_gradients_by_weights_keep_their_digits_on_large_images():
    logits, image, _ = scene(H=700, W=900, dtype=torch.float32)
    kernels = (Kernel(name="near", weight=3.0, position=2.0),)
    found = []
    for dtype in (torch.float32, torch.float64):
        crf = DenseCRF(3, CrfSettings(num_iterations=1), kernels=kernels).to(dtype)
        crf(logits.to(dtype), image=image.to(dtype)).logsumexp(1).sum().backward()
        found.append(crf.weights["near"].grad.double())
    assert ((found[0] - found[1]).abs().max() / found[1].abs().max()).item() <= 3e-6


FORKING = """
import os, threading, time, torch
from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.cpu import scratch
from numba.core.compiler_lock import global_compiler_lock

torch.set_num_threads(2)
logits, image = torch.randn(1, 2, 200, 200), torch.randint(0, 256, (1, 3, 200, 200), dtype=torch.uint8)
crf = DenseCRF(2, CrfSettings(num_iterations=1))

def call():
    with torch.no_grad():
        crf(logits, image=image)

call()
taken, over = threading.Event(), threading.Event()

def hold():
    with global_compiler_lock, scratch._lock:
        taken.set()
        over.wait()

threading.Thread(target=hold).start()
taken.wait()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as docs/crf.md says: it has no other
    call()
    os._exit(7)
deadline = time.monotonic() + 60
ended = 0
while not ended and time.monotonic() < deadline:
    ended, status = os.waitpid(child, os.WNOHANG)
    time.sleep(0.01)
print(os.waitstatus_to_exitcode(status) if ended else "hangs")
if not ended:
    os.kill(child, 9)
over.set()
"""


def test_a_child_forked_while_another_thread_is_inside_does_not_hang():
    environment = os.environ | {"PYTHONPATH": str(Path(jointseg.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stdout.strip() == "7", ended.stderr


IMAGE, DEPTH = torch.zeros(1, 3, 9, 12), torch.ones(1, 9, 12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing to prepare: give image (B, 3, H, W), depth or guides; for positions alone mask (B, H, W)"),
        ({"image": IMAGE[0]}, "image has shape (3, 9, 12); allowed: (B, 3, H, W), not empty"),
        ({"image": IMAGE[:0]}, "image has shape (0, 3, 9, 12); allowed: (B, 3, H, W), not empty"),
        ({"depth": DEPTH[0]}, "depth has shape (9, 12); allowed: (B, H, W)"),
        ({"depth": DEPTH[:0]}, "depth has shape (0, 9, 12); allowed: (B, H, W), not empty"),
    ],
)
def test_what_cannot_be_prepared_is_named(given, said):
    with pytest.raises(InputError) as caught:
        DenseCRF(3).prepare(**given)
    assert str(caught.value) == said


def test_nothing_is_prepared_in_half_precision():
    with pytest.raises(InputError, match=r"weights are torch\.float16; allowed: torch\.float32, torch\.float64"):
        DenseCRF(3).half().prepare(image=IMAGE)


@pytest.mark.parametrize("name", ["training", "_keys", "keys", "a.b", ""])
def test_a_kernel_that_a_module_could_not_hold_is_refused(name):
    with pytest.raises(InputError, match="allowed: a name without dots"):
        DenseCRF(3, kernels=(Kernel(name=name, weight=1.0, position=3.0),))


@pytest.mark.parametrize("pairwise", ["crfrnn", "hadamard"])
def test_it_can_be_made_without_memory_and_filled_later(pairwise):
    """As deferred initialisation and FSDP do."""
    made = {"settings": CrfSettings(pairwise=pairwise), "learn_bandwidths": True}
    expected = DenseCRF(3, **made)
    with torch.device("meta"):
        later = DenseCRF(3, **made)
    assert "kernel 'appearance': position 160, image 3" in repr(later)
    later.to_empty(device="cpu")
    for parameter in later.parameters():
        torch.nn.init.constant_(parameter, -7.0)
    later.reset_parameters()
    for name, own in expected.named_parameters():
        assert torch.equal(later.get_parameter(name), own), name
    assert nn.utils.skip_init(DenseCRF, 3, **made).compatibility.shape == (3, 3)


def test_parameters_are_made_of_the_dtype_that_is_asked_for():
    assert {own.dtype for own in DenseCRF(3, learn_bandwidths=True, dtype=torch.float64).parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_half_precision_is_refused_and_says_what_that_lost(dtype):
    logits, image, _ = scene(H=8, W=8, dtype=torch.float32)
    with pytest.raises(
        InputError, match=r"the CRF's weights are torch.bfloat16; allowed: .* \(crf.float\(\) does not bring back"
    ):
        DenseCRF(3).bfloat16()(logits.to(dtype), image=image)
