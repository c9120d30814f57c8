"""What tells a tensor's values from others, computed on its own device: a few sums of products with pseudo-random numbers.

Not here: what is told apart by it (inputs.py).
"""

# N words, K sums, R rows of up to W words

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_NUM_SUMS = 4
_WIDTH = 4096
_LEVELS = 5
"""Enough for 4096^5 words."""
_ROWS_AT_ONCE = 256
"""Their products take 32 MB."""


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By name, what depends on a tensor's dtype, shape and the bits of its values, not on strides. Waits once for the device.

    The tensors are on one device. Equal ones have equal fingerprints. Where a single value of up to 32 bits differs, they
    always differ; of any others two are the same with a chance of about 2^-120, for what multiplies is drawn at random.
    """
    if not tensors:
        return {}
    sums_NK = torch.stack([_sums(_words(tensor)) for tensor in tensors.values()]).tolist()
    named = zip(tensors.items(), sums_NK, strict=True)
    return {name: f"{tensor.dtype} {tuple(tensor.shape)} {sums_K}" for (name, tensor), sums_K in named}


def _words(tensor: Tensor) -> Tensor:
    """(N,): its bits as whole numbers of at most 32: the upper half of a product modulo 2^64 then depends on all of them."""
    flat_N = tensor.detach().contiguous().flatten()
    return flat_N.view(torch.int32 if flat_N.element_size() % 4 == 0 else torch.uint8)


def _sums(words_N: Tensor) -> Tensor:
    """(K,), int64: sums of products modulo 2^64, of rows, then of their sums with other multipliers, until one is left. In
    whatever order they are added, they come out the same.
    """
    sums_KN = words_N[None]
    for level in range(_LEVELS):
        N = sums_KN.shape[1]
        width = min(N, _WIDTH)
        rows_KRW = pad(sums_KN, (0, -N % width)).view(len(sums_KN), -1, width)
        multipliers_K1W = _multipliers(words_N.device)[level, :, None, :width]
        parts = [(rows * multipliers_K1W).sum(2) for rows in torch.split(rows_KRW, _ROWS_AT_ONCE, 1)]
        sums_KN = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        if sums_KN.shape[1] == 1:
            break
    return sums_KN[:, 0]


@lru_cache(maxsize=8)
def _multipliers(device: torch.device) -> Tensor:
    """(levels, K, W), int64: odd, so that no product is 0 modulo 2^64 but with 0."""
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**63), 2**63 - 1, (_LEVELS, _NUM_SUMS, _WIDTH), generator=draw, device="cpu")
    return (numbers | 1).to(device)
