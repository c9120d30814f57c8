"""Parameters that FSDP has spread over processes. Not here: what is put into them (dense_crf.py)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor


def put(parameter: Any, values: Tensor) -> None:
    """`parameter.copy_(values)`; of one that is spread, each process puts its part, and waits for no other."""
    if hasattr(parameter, "placements"):
        values = import_module("torch.distributed.tensor").distribute_tensor(
            values.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    parameter.copy_(values)
