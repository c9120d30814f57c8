"""Features that tests of the block-sparse filter share; on a CPU its kernels run in Triton's interpreter.

Needs the triton package: what imports this is skipped without it.
"""

import os
from functools import cache

import pytest
import torch
from torch import Tensor

from jointseg.crf.filters.block_sparse import BlockSparseFilter
from jointseg.crf.filters.features import Features

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are imported, which is when the first filter is built
pytest.importorskip("triton", reason="the block-sparse filter needs the triton package")

B, H, W = 2, 16, 50
TOLERANCES = pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
ROUNDING = {1e-3: 1e-3, 1e-6: 3e-6}


def features_of(values_BPF: Tensor, valid_BP: Tensor | None = None) -> Features:
    valid_BP = None if valid_BP is None else valid_BP.to(DEVICE)
    return Features(values_BPF=values_BPF.float().to(DEVICE), size=(1, values_BPF.shape[1]), valid_BP=valid_BP)


def draw(*shape: int, seed: int) -> Tensor:
    """Multiples of 1/64 in [-1, 1): tf32 holds them exactly, so that no rounding of values hides in a result."""
    return (torch.randint(-64, 64, shape, generator=torch.Generator().manual_seed(seed)) / 64).to(DEVICE)


@cache
def wide() -> Features:
    """Pixels along 25 bandwidths, a few hundred neighbours each, and two colours 80 levels apart; a sixth is not valid."""
    maker = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    position = torch.stack([x / 2, y / 10], -1).reshape(1, -1, 2).expand(B, -1, -1)
    colour = torch.randint(0, 2, (B, H * W, 1), generator=maker) * 80 / 3 + torch.rand(B, H * W, 1, generator=maker)
    return features_of(torch.cat([position, colour], -1), torch.rand(B, H * W, generator=maker) > 1 / 6)


@cache
def built(tolerance: float) -> BlockSparseFilter:
    block = BlockSparseFilter(wide(), tolerance=tolerance, tile_size=64)
    assert block.row_sums.isfinite().all()
    return block


def plain_matrix(features: Features) -> Tensor:
    values_BPF = features.values_BPF.double()
    matrix_BPP = (-0.5 * (values_BPF[:, :, None] - values_BPF[:, None]).square().sum(-1)).exp()
    if features.valid_BP is None:
        return matrix_BPP
    return matrix_BPP * features.valid_BP[:, :, None] * features.valid_BP[:, None]


def share_of_pairs(block: BlockSparseFilter) -> float:
    return len(block._pairs.columns_E) * block._tiles.num_images / len(block._tiles.pixels_GT) ** 2
