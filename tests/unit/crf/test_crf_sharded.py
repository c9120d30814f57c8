"""The CRF's parameters spread over two processes by FSDP. Not here: inside anything else (test_crf_surroundings.py)."""

import multiprocessing

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from jointseg.crf import CrfSettings, DenseCRF
from tests.crf_scenes import scene

PROCESSES = multiprocessing.get_context("forkserver")
LEARNING = {"filter": "exact", "learn_bandwidths": True}


def filled_later(rank: int, meeting: str, pairwise: str) -> None:
    """Made without memory, spread, filled, and then as one that was made at once."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    logits, image, depth = scene(H=8, W=9, dtype=torch.float32)
    settings = CrfSettings(pairwise=pairwise, num_iterations=2)
    whole = DenseCRF(3, settings, **LEARNING)
    with torch.device("meta"):
        spread = DenseCRF(3, settings, **LEARNING)
    fully_shard(spread, mesh=init_device_mesh("cpu", (2,)))
    spread.to_empty(device="cpu")
    spread.reset_parameters()
    results = [crf(logits, image=image, depth=depth) for crf in (whole, spread)]
    assert torch.equal(*results)
    for result in results:
        result.square().mean().backward()
    for own, parts in zip(whole.parameters(), spread.parameters(), strict=True):
        assert torch.equal(parts.full_tensor(), own)
        torch.testing.assert_close(parts.grad.full_tensor(), own.grad)
    dist.destroy_process_group()


@pytest.mark.parametrize("pairwise", ["crfrnn", "hadamard"])
def test_a_layer_that_was_spread_without_memory_is_filled_as_one_made_at_once(tmp_path, pairwise):
    meeting = (tmp_path / "meeting").as_uri()
    ranks = [PROCESSES.Process(target=filled_later, args=(rank, meeting, pairwise)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
