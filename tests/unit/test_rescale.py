"""Laws of features of unit size. Not here: where starting weights come from (test_pretrained.py)."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from jointseg.batches import Place
from jointseg.config import NetworkConfig
from jointseg.network.network import build_network
from jointseg.network.rescale import _noise, rescale_features
from jointseg.network.table import VARIANTS, Conv
from jointseg.resuming import begin
from jointseg.settings import with_overrides
from jointseg.stages import STAGES


def odd_network(variant="vgg16_msc"):
    """Weights as starting weights are: sizes that grow and shrink from layer to layer, and biases."""
    network = build_network(NetworkConfig(variant=variant, width=0.0625, input_size=65), seed=0).double().eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("heads."):
                parameter.mul_(float(torch.rand(1, generator=random) * 5 + 0.2))
                if name.endswith("bias"):
                    parameter.add_(torch.rand(parameter.shape, generator=random).double())
    return network


def picture():
    return torch.rand(2, 3, 65, 65, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 255


def features(network, image=None):
    """The output of every convolution, and of the whole."""
    found, hooks = {}, []
    for name, module in network.named_children():
        if hasattr(module, "weight"):
            hooks.append(module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out.detach()})))
    with torch.no_grad():
        output = network(picture() if image is None else image)
    for hook in hooks:
        hook.remove()
    return found, output


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_feature_is_what_it_was_times_one_number(variant):
    network = odd_network(variant)
    before, _ = features(network)
    factors = rescale_features(network)
    after, _ = features(network)
    convs = {layer.name for branch in VARIANTS[variant] for layer in branch.layers if isinstance(layer, Conv)}
    assert before.keys() == factors.keys() == convs
    for name, factor in factors.items():
        assert torch.equal(after[name], factor * before[name])  # powers of 2: nothing is rounded


def test_features_of_a_picture_are_of_unit_size_up_to_the_picture():
    network = odd_network()
    rescale_features(network)
    after, _ = features(network)
    sizes = [float(feature.square().mean().sqrt()) for feature in after.values()]
    assert all(0.2 < size < 5 for size in sizes)


def test_features_of_the_picture_of_noise_are_within_half_a_power_of_2_of_unit_size():
    network = odd_network()
    rescale_features(network)
    after, _ = features(network, _noise(129))
    sizes = [float(feature.square().mean().sqrt()) for feature in after.values()]
    assert all(0.70 < size < 1.42 for size in sizes)


def test_scores_of_loaded_heads_stay_the_same():
    network = odd_network()
    _, before = features(network)
    rescale_features(network, loaded=frozenset(name for name, _ in network.named_parameters()))
    _, after = features(network)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.depth_logits, before.depth_logits)


def test_rescaling_twice_changes_nothing_more():
    network = odd_network()
    rescale_features(network)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    rescale_features(network)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, before[name])


def test_a_run_rescales_its_starting_weights_where_it_is_asked_to(small, tmp_path):
    path = tmp_path / "weights.safetensors"
    conv = begin(small, STAGES["stage1"], place=Place(), start=None).model.network.conv1_1
    save_file({"conv1_1.weight": 7 * conv.weight.detach(), "conv1_1.bias": conv.bias.detach() + 3}, path)
    plain = with_overrides(small, {"network.weights": str(path)})
    as_given, rescaled = (
        begin(with_overrides(plain, {"network.unit_features": asked}), STAGES["stage1"], place=Place(), start=None)
        for asked in (False, True)
    )
    assert torch.equal(as_given.model.network.conv1_1.weight, 7 * conv.weight)
    expected = as_given.model.network
    rescale_features(expected, loaded=frozenset(as_given.loaded.loaded))
    assert torch.equal(rescaled.model.network.conv1_1.weight, expected.conv1_1.weight)
