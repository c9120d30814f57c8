"""Laws of the convolution that is fused with its ReLU. On CPUs PyTorch's own two stand for cuDNN's one kernel.

Not here: the network (test_network.py), how long it takes (benchmarks/).
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from jointseg.config import NetworkConfig
from jointseg.network.fused import convolution_relu, is_fusible
from jointseg.network.network import ConvReLU, build_network
from jointseg.network.table import VARIANTS

GEOMETRIES = [{"padding": 1}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}, {}]
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets layers on the CPU take the fused path, and counts them."""
    taken = []

    def stand_in(x, weight, bias, geometry):
        taken.append(x.dtype)
        return conv2d(x, weight, bias, *geometry).relu()

    monkeypatch.setattr("jointseg.network.fused._convolution_relu", stand_in)
    monkeypatch.setattr("jointseg.network.network.is_fusible", lambda convolution, x: True)
    return taken


def layer(geometry, *, dtype=torch.float64, **options):
    torch.manual_seed(0)
    made = ConvReLU(3, 4, 3, **geometry, **options).to(dtype)
    return made, torch.randn(2, 3, 9, 9, dtype=dtype, requires_grad=True)


def gradients(output, *inputs):
    draw = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return torch.autograd.grad((output * draw).sum(), inputs)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution_and_its_relu_and_so_is_its_gradient(on_cpu, geometry, bias):
    conv, x = layer(geometry, bias=bias)
    inputs = (x, *conv.parameters())
    plain, fused = torch.nn.Conv2d.forward(conv, x).relu(), conv(x)
    assert torch.equal(fused, plain)
    for found, expected in zip(gradients(fused, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert on_cpu == [torch.float64]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_those_of_finite_differences(geometry):
    conv, x = layer(geometry)

    def call(x, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, (x, conv.weight, conv.bias))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("still", ["x", "weight", "bias"])
def test_what_does_not_learn_has_no_gradient_and_changes_no_others(still):
    conv, x = layer({"padding": 1})
    inputs = {"x": x, "weight": conv.weight, "bias": conv.bias}
    expected = dict(zip(inputs, gradients(conv(x), *inputs.values()), strict=True))
    inputs.pop(still).requires_grad_(False)
    for name, found in zip(inputs, gradients(conv(x), *inputs.values()), strict=True):
        assert torch.equal(found, expected[name])
    with torch.no_grad():
        assert not conv(x).requires_grad


@pytest.mark.usefixtures("on_cpu")
def test_a_layer_used_twice_has_the_sum_of_both_gradients():
    conv, x = layer({"padding": 1})
    other = x.detach().flip(3)
    once = [torch.autograd.grad(conv(each).square().sum(), conv.weight)[0] for each in (x, other)]
    both = torch.autograd.grad(conv(x).square().sum() + conv(other).square().sum(), conv.weight)[0]
    torch.testing.assert_close(both, once[0] + once[1])
    assert not torch.equal(*once)


def test_under_autocast_it_computes_in_half_precision_and_weights_have_whole_gradients(on_cpu):
    conv, x = layer({"padding": 1}, dtype=torch.float32)
    inputs = (x, *conv.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        plain, fused = torch.nn.Conv2d.forward(conv, x).relu(), conv(x)
    assert on_cpu == [torch.bfloat16]
    assert fused.dtype == torch.bfloat16
    assert torch.equal(fused, plain)
    for found, expected in zip(gradients(fused, *inputs), gradients(plain, *inputs), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("half", [False, True])
def test_the_networks_scores_and_gradients_are_the_same_fused(on_cpu, monkeypatch, variant, half):
    config = NetworkConfig(variant=variant, width=0.05, input_size=65, dropout=0)
    network = build_network(config, seed=0).to(memory_format=torch.channels_last)
    image = torch.randint(0, 256, (1, 3, 65, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def scores():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return torch.cat(network(image), dim=1)

    fused = scores()
    assert len(on_cpu) == sum(isinstance(module, ConvReLU) for module in network.modules())
    monkeypatch.setattr("jointseg.network.network.is_fusible", lambda convolution, x: False)
    plain = scores()
    assert torch.equal(fused, plain)
    parameters = tuple(network.parameters())
    for found, expected in zip(gradients(fused, *parameters), gradients(plain, *parameters), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_nothing_is_fused_on_a_cpu():
    conv, x = layer({"padding": 1}, dtype=torch.float32)
    assert not is_fusible(conv, x)


# On a GPU


@ON_CUDA
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cudnn_fuses_every_layer_of_the_tables_at_full_width(variant, half, layout):
    network = build_network(NetworkConfig(variant=variant), seed=0).cuda().to(memory_format=layout)
    for name, conv in network.named_modules():
        if not isinstance(conv, ConvReLU):
            continue
        x = torch.randn(2, conv.in_channels, 33, 33, device="cuda").to(memory_format=layout).requires_grad_()
        inputs = (x, *conv.parameters())
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            assert is_fusible(conv, x)
            plain, fused = torch.nn.Conv2d.forward(conv, x).relu(), convolution_relu(conv, x)
        assert fused.dtype == plain.dtype
        assert fused.is_contiguous(memory_format=layout), name
        both = (fused, *gradients(fused, *inputs)), (plain, *gradients(plain, *inputs))
        for found, expected in zip(*both, strict=True):
            assert (found - expected).norm() <= 2e-2 * expected.norm(), name


@ON_CUDA
def test_double_precision_and_a_convolution_without_cudnn_are_not_fused():
    conv, x = layer({"padding": 1})
    conv, x = conv.cuda(), x.detach().cuda()
    assert not is_fusible(conv, x)
    assert is_fusible(conv.float(), x.float())
    with torch.backends.cudnn.flags(enabled=False):
        assert not is_fusible(conv, x.float())
