"""Laws of a network that is compiled. Not here: what compiling is worth (benchmarks/training.py)."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from jointseg.batches import Place
from jointseg.network.network import build_network
from jointseg.resuming import begin
from jointseg.settings import with_overrides
from jointseg.stages import STAGES


def test_a_network_is_compiled_where_that_is_asked_for(small):
    for asked in (False, True):
        run = begin(with_overrides(small, {"training.compile": asked}), STAGES["stage1"], place=Place(), start=None)
        assert (run.model.network._compiled_call_impl is not None) == asked


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="torch.compile needs g++ and Python's headers on CPUs",
)
def test_every_part_of_a_compiled_network_has_the_same_gradient(small):
    """At a width at which Inductor loses some of them when it compiles the upsampling too; few layers, as it takes long."""
    changes = {"network.width": 0.0625, "network.dropout": 0, "network.frozen_until": "fc7"}
    network = build_network(with_overrides(small, changes).network, seed=0)
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 33, 33), generator=draw, dtype=torch.uint8)
    features = network.frozen_features(image)

    def gradients():
        network.zero_grad()
        draw.manual_seed(1)
        parts = [(scores * torch.randn(scores.shape, generator=draw)).sum() for scores in network(image, features=features)]
        torch.stack(parts).sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    eager = gradients()
    network.compile()
    compiled = gradients()
    assert compiled.keys() == eager.keys() >= {f"heads.{branch.name}.segmentation.weight" for branch in network.branches}
    assert all(gradient.any() for gradient in eager.values())
    for name, gradient in eager.items():
        assert float((compiled[name] - gradient).abs().max() / gradient.abs().max()) < 1e-5, name
