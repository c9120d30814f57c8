"""Laws of the joint network and of its three tables.

Not here: starting weights from a file (test_pretrained.py), the fused convolution (test_fused.py), upsampling and adding
in one kernel (test_bilinear.py).
"""

import math

import pytest
import torch
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from jointseg.config import NetworkConfig
from jointseg.errors import InputError
from jointseg.losses import semantic_loss
from jointseg.network.network import ConvReLU, _sum_at_full_size, build_network
from jointseg.network.table import VARIANTS, Conv, MaxPool

SIZE = 65


def small(variant="vgg16_msc", *, seed=0, **changes):
    return build_network(NetworkConfig(variant=variant, width=0.05, input_size=SIZE, **changes), seed=seed)


def image(*, images=2, side=SIZE, seed=0):
    return torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(VARIANTS))
def variant(request):
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SPECIFIED = {  # parameters in millions, multiply-adds in thousands of millions, sizes after the pools at 513
    "table1_literal": (11.44, 153.1, [257, 129, 129, 65]),
    "vgg16_msc": (21.47, 153.2, [257, 129, 65, 65, 65]),
    "deeplab_msc": (21.83, 134.2, [257, 129, 65, 65, 65]),
}


def test_parameters_work_and_sizes_are_those_of_the_specification(variant):
    with torch.device("meta"):
        network = build_network(NetworkConfig(variant=variant), seed=0)
        sizes = []
        for branch in VARIANTS[variant]:
            for layer in branch.layers:
                if isinstance(layer, MaxPool):
                    network.get_submodule(layer.name).register_forward_hook(lambda *call: sizes.append(call[2].shape[-1]))
        with FlopCounterMode(display=False) as flops:
            output = network(torch.empty(1, 3, 513, 513))
    parameters, multiply_adds, pooled = SPECIFIED[variant]
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == parameters
    assert round(flops.get_total_flops() / 2e9, 1) == multiply_adds
    assert sizes == pooled
    assert output.logits.shape == (1, 40, 513, 513)
    assert output.depth_logits.shape == (1, 50, 513, 513)


def test_floor_and_ceil_pooling_agree_at_every_allowed_size():
    for k in range(8, 65):
        size = 8 * k + 1
        for _ in range(3):
            floor, ceil = (size + 2 - 3) // 2 + 1, -(-(size + 2 - 3) // 2) + 1
            assert floor == ceil
            size = floor
        assert size == k + 1


OF_DEEPLAB = {"conv5_1": 2, "conv5_2": 2, "conv5_3": 2, "fc6": 12}
DILATED = {"table1_literal": {"conv5-3": 12}, "vgg16_msc": OF_DEEPLAB, "deeplab_msc": OF_DEEPLAB}


def test_dilations_are_those_of_deeplab_and_all_other_layers_have_none(variant):
    convs = [layer for branch in VARIANTS[variant] for layer in branch.layers if isinstance(layer, Conv)]
    assert {conv.name: conv.dilation for conv in convs if conv.dilation != 1} == DILATED[variant]


def test_padding_counts_as_zeros_in_an_average():
    averaged = small("vgg16_msc").get_submodule("pool5a")(torch.ones(1, 1, 3, 3))
    assert (9 * averaged[0, 0]).round().tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(variant):
    one, same, other = (small(variant, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith(".weight"))


def test_building_leaves_the_global_random_state_alone(variant):
    before = torch.get_rng_state()
    small(variant)
    assert torch.equal(before, torch.get_rng_state())


def test_score_layers_start_small_and_biases_at_zero():
    network = build_network(NetworkConfig(input_size=SIZE), seed=0)
    weights = torch.cat([p.flatten() for p in network.heads.parameters() if p.ndim == 4])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith(".bias"))


def test_an_untrained_network_is_nearly_ignorant(variant):
    network = build_network(NetworkConfig(variant=variant, width=0.25, input_size=SIZE), seed=0).eval()
    with torch.no_grad():
        logits = network(image()).logits
    assert semantic_loss(logits, torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)).mean() / SIZE**2 == pytest.approx(
        math.log(40), rel=0.2
    )


def test_score_and_depth_parameters_are_those_of_the_heads(variant):
    network = small(variant)
    names = {id(p): name for name, p in network.named_parameters()}
    score = {names[id(p)] for p in network.heads.parameters()}
    assert score == {name for name in names.values() if name.startswith("heads.")}
    assert len(score) == 4 * len(VARIANTS[variant])
    assert {names[id(p)] for p in network.depth_parameters()} == {name for name in score if ".depth." in name}


def test_the_output_is_the_sum_over_branches_of_their_upsampled_scores(variant):
    network = small(variant).double().eval()
    maps = {"segmentation": [], "depth": []}
    for head in network.heads.values():
        for task, layer in head.items():
            layer.register_forward_hook(lambda *call, task=task: maps[task].append(call[2]))
    with torch.no_grad():
        output = network(image())
    for task, got in (("segmentation", output.logits), ("depth", output.depth_logits)):
        assert len(maps[task]) == len(VARIANTS[variant])
        want = sum(interpolate(m, size=(SIZE, SIZE), mode="bilinear", align_corners=True) for m in maps[task])
        torch.testing.assert_close(got, want, rtol=0, atol=4e-13 * want.abs().max().item())


def test_adding_scores_equals_classifying_the_concatenated_features(variant):
    network = small(variant).double().eval()
    features = {}
    for name, head in network.heads.items():
        head["depth"].register_forward_hook(lambda *call, name=name: features.update({name: call[1][0]}))
    with torch.no_grad():
        got = network(image()).depth_logits
        full = [interpolate(features[name], size=(SIZE, SIZE), mode="bilinear", align_corners=True) for name in features]
        weight = torch.cat([network.heads[name]["depth"].weight for name in features], dim=1)
        want = torch.conv2d(torch.cat(full, dim=1), weight)
    torch.testing.assert_close(got, want, rtol=0, atol=4e-13 * want.abs().max().item())


def test_without_depth_the_scores_of_classes_are_the_same_and_depth_heads_have_no_gradient(variant):
    network = small(variant).eval()
    output = network(image(), with_depth=False)
    assert output.depth_logits is None
    torch.testing.assert_close(output.logits, network(image()).logits, rtol=0, atol=0)
    output.logits.sum().backward()
    depth = {id(p) for p in network.depth_parameters()}
    assert all((p.grad is None) == (id(p) in depth) for p in network.parameters())


def test_uint8_and_float_images_score_alike(variant):
    network = small(variant).eval()
    torch.testing.assert_close(network(image()).logits, network(image().float()).logits, rtol=0, atol=0)


def test_the_mean_colour_scores_zero_before_training_and_channels_are_bgr_inside():
    network = small().eval()
    rgb = torch.tensor([122.675, 116.669, 104.008]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    assert not network(rgb).logits.any()
    assert network(rgb.flip(1)).logits.any()


def test_images_of_a_batch_do_not_meet(variant):
    network = small(variant).double().eval()
    both = image(images=2)
    alone = torch.cat([network(both[:1]).logits, network(both[1:]).logits])
    torch.testing.assert_close(network(both).logits, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 3, 67, 67), (1, 3, 69, 69), (1, 3, 65, 73), (1, 4, 65, 65), (3, 65, 65)])
def test_another_shape_is_refused_and_named(shape):
    with pytest.raises(InputError, match=r"8k \+ 1") as error:
        small()(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_width_multiplies_hidden_channels_in_eights_and_leaves_the_outputs(variant):
    network = build_network(NetworkConfig(variant=variant, width=0.2, input_size=SIZE), seed=0)
    whole = build_network(NetworkConfig(variant=variant, input_size=SIZE), seed=0)
    for name, module in network.named_modules():
        if isinstance(module, ConvReLU):
            assert module.out_channels % 8 == 0
            assert abs(module.out_channels - 0.2 * whole.get_submodule(name).out_channels) <= 4
    assert {head[task].out_channels for head in network.heads.values() for task in head} == {40, 50}


def test_gradients_reach_every_parameter(variant):
    network = small(variant, dropout=0.0)
    output = network(image())
    (output.logits.square().sum() + output.depth_logits.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_dropout_is_as_the_config_says(variant):
    rates = {module.p for module in small(variant, dropout=0.3).modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.3}


def test_channels_last_and_bfloat16_give_nearly_the_same_scores(variant):
    network = small(variant).eval()
    want = network(image()).logits
    last = network.to(memory_format=torch.channels_last)(image().to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(image()).logits
    assert (half.float() - want).abs().max() < 0.1 * want.abs().max()


def test_names_in_a_table_are_unique_and_taps_exist(variant):
    names = [layer.name for branch in VARIANTS[variant] for layer in branch.layers]
    assert len(names) == len(set(names))
    assert {branch.reads for branch in VARIANTS[variant]} <= {"data", *names}


def test_wide_steps_of_bfloat16_scores_are_taken_in_float32():
    """Their gradients add up hundreds of terms a pixel."""
    scores = [(8, torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)), (1, torch.ones(1, 2, 17, 17, dtype=torch.bfloat16))]
    assert _sum_at_full_size(scores).dtype == torch.float32
    assert _sum_at_full_size([(2, scores[0][1]), (1, torch.ones(1, 2, 5, 5, dtype=torch.bfloat16))]).dtype == torch.bfloat16
