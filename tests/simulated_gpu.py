"""A device that is not there: tensors on it are computed on the CPU, and an operation that mixes the two raises, as on CUDA.

It stays in the process that asks for it: PyTorch takes such a device for an accelerator from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "gpu"
COPIES = {"aten.copy_", "aten._to_copy"}
INDEXED = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}
"""CUDA takes indices on the CPU for a tensor of its own."""
waits: list[str] = []
"""Operations whose result a program on a real device would have waited for, since this was last cleared."""


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@cache
def registered() -> torch.device:
    """The device, made known to PyTorch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())  # type: ignore[no-untyped-call]
    return torch.device(NAME, 0)


class SimulatedTensor(Tensor):
    """A tensor that says it is on the device; `held` has its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> SimulatedTensor:
        layout: dict[str, Any] = {"layout": held.layout}
        if held.layout is torch.strided:
            layout |= {"strides": held.stride(), "storage_offset": held.storage_offset()}
        device = torch.device(NAME, 0)
        simulated = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=device, **layout)  # type: ignore[attr-defined]
        simulated.held = held
        return simulated

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})

    def tolist(self) -> Any:  # of a subclass PyTorch has none
        waits.append("tolist")
        return self.held.tolist()

    def new_tensor(self, values: Any, **_: Any) -> SimulatedTensor:
        return SimulatedTensor(self.held.new_tensor(values))


class SimulatedGpu(TorchDispatchMode):
    """Within it, what is made on the device is simulated."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})


def moved(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                held = SimulatedTensor(parameter.detach().clone())
                part._parameters[name] = nn.Parameter(held, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = SimulatedTensor(buffer.clone())
    return module


def unwrapped(value: Any) -> Any:
    """The values that a tensor holds; anything else as it is."""
    return value.held if isinstance(value, SimulatedTensor) else value


def refuse_others(name: str, values: Any) -> None:
    """Raise RuntimeError where a tensor with dimensions is not on the device."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.dim() and not isinstance(value, SimulatedTensor):
            raise RuntimeError(f"{name}: takes tensors on {torch.device(NAME, 0)}, and one is on {value.device}")


def _computed(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = str(operation).rpartition(".")[0]
    simulated = [value for value in tree_leaves((args, kwargs)) if isinstance(value, SimulatedTensor)]
    looked_at = (args[0], args[2:]) if name in INDEXED else (args, kwargs)
    if simulated and name not in COPIES:
        refuse_others(name, looked_at)
    plain = dict(tree_map(unwrapped, kwargs))
    there = bool(simulated)
    if plain.get("device") is not None:
        there = torch.device(plain["device"]).type == NAME
        plain["device"] = torch.device("cpu")
    result = operation(*tree_map(unwrapped, args), **plain)
    if simulated and _waits(name, args, to_host=not there):
        waits.append(name)
    if name == "aten.copy_":
        return args[0]
    in_place = {id(value.held): value for value in simulated}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        return in_place[id(value)] if id(value) in in_place else SimulatedTensor(value)

    return tree_map(wrapped, result)


def _waits(name: str, args: Sequence[Any], *, to_host: bool) -> bool:
    """Whether the host needs to know values of the device: a number, a copy, or how large the result is."""
    masks = args[1] if name in INDEXED else ()
    return (
        name in {"aten._local_scalar_dense", "aten.nonzero"}
        or (name == "aten._to_copy" and to_host)
        or (name == "aten.copy_" and not isinstance(args[0], SimulatedTensor))
        or any(mask is not None and mask.dtype in {torch.bool, torch.uint8} for mask in masks)
    )
