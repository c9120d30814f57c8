"""The CRF's derivatives, held to finite differences in float64. Not here: its values."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.filters import ExactFilter
from jointseg.errors import InputError

SHAPE = (2, 3, 2, 3)
FORMS = pytest.mark.parametrize("form", ["crfrnn", "hadamard"])


def make(form: str, *, budget_bytes: int = 2**20) -> DenseCRF:
    build = partial(ExactFilter, budget_bytes=budget_bytes)
    settings = CrfSettings(pairwise=form, num_iterations=2, w_appearance=0.7, w_depth=0.4, w_smoothness=0.3)
    crf = DenseCRF(3, settings, filter=build).double()
    draw = torch.Generator().manual_seed(1)
    for parameter in crf.parameters():
        parameter.data += 0.1 * torch.randn(3, 3, generator=draw, dtype=torch.float64)
    return crf


def scene() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    B, C, H, W = SHAPE
    random = partial(torch.rand, generator=draw, dtype=torch.float64)
    return 2 * random(B, C, H, W), 100 + 6 * random(B, 3, H, W), 1 + 0.3 * random(B, H, W)


@FORMS
@pytest.mark.parametrize("budget_bytes", [2**20, 100], ids=["kept", "chunked"])
def test_gradients_by_logits_weights_and_compatibility(form, budget_bytes):
    crf, (logits, image, depth) = make(form, budget_bytes=budget_bytes), scene()
    names, parameters = zip(*crf.named_parameters(), strict=True)

    def q(logits: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return functional_call(crf, state, (logits,), {"image": image, "depth": depth}).softmax(1)

    assert len(parameters) == 4
    assert torch.autograd.gradcheck(q, (logits.requires_grad_(), *parameters))


@FORMS
def test_gradient_by_logits_with_frozen_blended_kernels(form):
    crf, (logits, image, depth) = DenseCRF(3, CrfSettings(pairwise=form, num_iterations=2)).double(), scene()
    crf.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda x: crf(x, image=image, depth=depth).softmax(1), logits.requires_grad_())


def test_second_derivative_by_logits():
    crf, (logits, image, depth) = make("crfrnn"), scene()
    assert torch.autograd.gradgradcheck(
        lambda x: crf(x, image=image[:1], depth=depth[:1]).softmax(1), logits[:1].clone().requires_grad_()
    )


@FORMS
@pytest.mark.parametrize("learn_bandwidths", [False, True])
def test_an_open_autocast_does_not_lower_the_precision_of_gradients(form, learn_bandwidths):
    logits, image, depth = (part.float() for part in scene())
    grads = []
    for is_open in (False, True):
        crf = DenseCRF(3, CrfSettings(pairwise=form, num_iterations=2), filter="exact", learn_bandwidths=learn_bandwidths)
        loss = crf(logits.requires_grad_(), image=image, depth=depth).square().mean()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_open):
            grads.append(torch.autograd.grad(loss, [logits, *crf.parameters()]))
    assert all(torch.equal(inside, outside) for outside, inside in zip(*grads, strict=True))


def test_image_and_depth_get_no_gradient():
    logits, image, depth = scene()
    image.requires_grad_(), depth.requires_grad_()
    make("crfrnn")(logits, image=image, depth=depth).sum().backward()
    assert image.grad is None
    assert depth.grad is None


def test_autograd_keeps_one_q_an_iteration_and_none_of_the_messages():
    crf, (logits, image, depth) = make("crfrnn"), scene()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() >= logits.numel():
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = crf(logits, image=image, depth=depth, num_iterations=5)
    assert out.requires_grad
    assert sum(kept.values()) == 5 * logits.numel()


def test_a_small_step_against_the_gradient_lowers_the_loss():
    crf, (logits, image, depth) = make("hadamard"), scene()
    truth = torch.randint(0, 3, (2, 2, 3), generator=torch.Generator().manual_seed(2))

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(crf(logits, image=image, depth=depth), truth)

    before = loss()
    before.backward()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    assert loss() < before


@pytest.mark.parametrize(("filter", "learned"), [("permutohedral", False), ("exact", True)])
@pytest.mark.parametrize("by", ["grad", "backward"])
@pytest.mark.filterwarnings("ignore:Using backward")  # a leak, which the error prevents
def test_where_there_is_no_second_derivative_none_is_returned(filter, learned, by):
    """PyTorch's own `once_differentiable` returns one here that takes the first derivative for a constant."""
    logits, image, depth = scene()
    crf = DenseCRF(3, CrfSettings(num_iterations=2), filter=filter, learn_bandwidths=learned, dtype=torch.float64)
    refined = crf(torch.tanh(logits.requires_grad_()), image=image, depth=depth)
    total = (refined * torch.arange(3.0)[:, None, None]).sum()
    derive = total.backward if by == "backward" else partial(torch.autograd.grad, total, logits)
    with pytest.raises(InputError, match=r"create_graph is True .* first derivatives here; allowed: filter='exact'"):
        derive(create_graph=True)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_is_no_second_derivative(use_reentrant):
    logits, image, depth = scene()
    crf = DenseCRF(3, CrfSettings(num_iterations=2), filter="permutohedral", dtype=torch.float64)
    found, refine = [], partial(crf, image=image, depth=depth)
    for run in (refine, partial(checkpoint, refine, use_reentrant=use_reentrant)):
        leaf = logits.clone().requires_grad_()
        run(leaf).square().sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)
