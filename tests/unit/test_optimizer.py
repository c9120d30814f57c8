"""Laws of the rates: which parameter learns at which, and at which step. Not here: units (test_units.py), the loop."""

from __future__ import annotations

import pytest
import torch

from jointseg.config import StageConfig
from jointseg.model import build_model
from jointseg.network.table import VARIANTS, layers_up_to
from jointseg.optimizer import build_optimizer, freeze_for, set_rate
from jointseg.optimizer import rates as told
from jointseg.settings import with_overrides
from jointseg.stages import STAGES, Kernels

DEEPLAB = {"bias_lr_multiplier": 2.0, "head_lr_multiplier": 10.0}


@pytest.fixture(scope="module")
def model(small):
    return build_model(small)


def rates(model, stage, settings):
    """Rate and decay of each parameter that learns."""
    freeze_for(STAGES[stage], model)
    optimizer = build_optimizer(model, settings)
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {
        name: (group_of[id(parameter)]["lr"], group_of[id(parameter)]["weight_decay"])
        for name, parameter in model.named_parameters()
        if id(parameter) in group_of
    }


def test_deeplabs_multipliers_and_no_decay_of_biases(model):
    found = rates(model, "stage2", StageConfig(lr=1e-10, weight_decay=5e-4, **DEEPLAB))
    for name, (lr, decay) in found.items():
        head, bias = ".heads." in name, name.endswith(".bias")
        assert lr == pytest.approx(1e-10 * (10 if head else 1) * (2 if bias else 1)), name
        assert decay == (0 if bias else 5e-4), name
    kinds = {(".heads." in name, name.endswith(".bias")) for name in found}
    assert len(kinds) == 4


def test_the_crf_has_a_rate_of_its_own_and_no_decay(model):
    found = rates(model, "stage3", StageConfig(lr=1e-16, crf_lr=1e-13, **DEEPLAB))
    crf = {name: rate for name, rate in found.items() if name.startswith("crf.")}
    assert crf == dict.fromkeys(
        ["crf.compatibility", "crf.weights.appearance", "crf.weights.depth", "crf.weights.smoothness"], (1e-13, 0.0)
    )
    assert found["network.fc6.weight"] == (1e-16, 5e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_exactly_the_parameters_with_gradients_learn(model, stage):
    found = rates(model, stage, StageConfig())
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("stage", STAGES)
def test_no_layer_that_is_frozen_learns_and_every_other_that_learnt_does(model, small, stage):
    frozen = rates(build_model(with_overrides(small, {"network.frozen_until": "conv4_3"})), stage, StageConfig())
    trunk = layers_up_to(VARIANTS["vgg16_msc"], "conv4_3")
    assert frozen.keys() == {name for name in rates(model, stage, StageConfig()) if name.split(".")[1] not in trunk}


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_that_learns_has_a_gradient(model, stage):
    """Else ranks would wait for a gradient that never comes."""
    freeze_for(STAGES[stage], model)
    model.zero_grad(set_to_none=True)
    image = torch.randint(0, 256, (1, 3, 65, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    output = model(image, kernels=STAGES[stage].kernels, with_depth=STAGES[stage].with_depth, num_iterations=2)
    (output.logits.square().mean() + (0 if output.depth is None else output.depth.mean())).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_rates_are_told_by_group(model):
    settings = StageConfig(lr=1e-3, crf_lr=1e-5, schedule="cosine", iterations=100, **DEEPLAB)
    network = {
        "lr/trunk": 1e-3,
        "lr/trunk_bias": 2e-3,
        "lr/network": 1e-3,
        "lr/network_bias": 2e-3,
        "lr/heads": 1e-2,
        "lr/heads_bias": 2e-2,
    }
    for stage, expected in (("stage1", network), ("stage3", network | {"lr/crf": 1e-5})):
        freeze_for(STAGES[stage], model)
        optimizer = build_optimizer(model, settings)
        assert told(optimizer) == pytest.approx(expected)
        set_rate(optimizer, settings, step=50)
        assert told(optimizer) == pytest.approx({name: lr / 2 for name, lr in expected.items()})


def test_sgd_steps_as_caffe_does(model):
    settings = StageConfig(
        optimizer="sgd", momentum=0.99, lr=0.1, weight_decay=5e-4, bias_lr_multiplier=1, head_lr_multiplier=1
    )
    freeze_for(STAGES["stage1"], model)
    parameter = model.network.fc6.weight
    optimizer = build_optimizer(model, settings)
    at_start = expected = parameter.detach().double()
    velocity = torch.zeros_like(expected)
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        velocity = 0.99 * velocity + 0.1 * (1 + 5e-4 * expected)  # Caffe: the rate inside the velocity
        expected = expected - velocity
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        parameter.copy_(at_start)


def test_a_constant_rate_stays(model):
    settings = StageConfig(lr=1e-4, iterations=100)
    optimizer = build_optimizer(model, settings)
    for step in (0, 50, 99):
        set_rate(optimizer, settings, step=step)
        assert all(group["lr"] == group["base_lr"] for group in optimizer.param_groups)


def test_a_cosine_falls_from_the_rate_to_nothing_in_every_group(model):
    freeze_for(STAGES["stage3"], model)
    settings = StageConfig(lr=1e-4, iterations=100, schedule="cosine")
    optimizer = build_optimizer(model, settings)
    for step, share in ((0, 1.0), (25, 0.8535534), (50, 0.5), (100, 0.0)):
        set_rate(optimizer, settings, step=step)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(share * group["base_lr"])


def test_a_rate_is_a_function_of_its_step_alone(model):
    settings = StageConfig(lr=1e-4, iterations=100, schedule="cosine")
    optimizer = build_optimizer(model, settings)
    set_rate(optimizer, settings, step=30)
    rate = optimizer.param_groups[0]["lr"]
    for step in (99, 3, 30):
        set_rate(optimizer, settings, step=step)
    assert optimizer.param_groups[0]["lr"] == rate


def test_adamw_takes_the_momentum_as_its_first_beta(model):
    optimizer = build_optimizer(model, StageConfig(optimizer="adamw", momentum=0.8))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.999)}


def test_stages_without_a_crf_come_before_those_with_one():
    """Each starts from one that comes earlier in the table, and depth is never taken away again."""
    known: dict[str, bool] = {}
    for name, stage in STAGES.items():
        assert stage.starts_from is None or stage.starts_from in known
        assert stage.with_depth >= known.get(stage.starts_from or "", False)
        known[name] = stage.with_depth
    assert [name for name, stage in STAGES.items() if stage.kernels is Kernels.NONE] == ["stage1", "stage2"]
