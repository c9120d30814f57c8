"""The block-sparse filter's kernels as machine code for a GPU that need not be there; prints what each takes of it, as JSON.

A process of its own (`python -m tests.gpu_code 90`): Triton must not have been imported for its interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from jointseg.crf.filters import block_sparse_kernels as kernels
from jointseg.crf.filters.block_sparse import cut_into_items, sort_into_tiles, with_squares
from jointseg.crf.filters.features import Features

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(launch: Callable[[], object]) -> list[Any]:
    """Call what launches kernels, with tensors on the CPU: they are compiled for just these arguments, and not run."""
    found: list[Any] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(run(self, *args, grid=grid, warmup=True, **options))

    run = JITFunction.run
    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
    return found


def resources(kernel: Any) -> dict[str, Any]:
    """Registers and stack of a thread (a stack is for what registers do not hold), bytes of shared memory of a program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (registers,), (stack,) = re.findall(r"REG:(\d+)", said), re.findall(r"STACK:(\d+)", said)
    matrix = sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.]*", kernel.asm["ptx"])))
    return {
        "kernel": kernel.metadata.name, "registers": int(registers), "stack": int(stack), "shared": kernel.metadata.shared,
        "matrix": matrix,
    }  # fmt: skip


def main(capability: int) -> None:
    """Every kernel, for an image of 12 tiles with five features: as many channels as a launch carries, and fewer."""
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    )
    kernels.is_hopper = lambda device: capability // 10 == 9  # type: ignore[assignment]
    tiles = sort_into_tiles(Features(values_BPF=torch.rand(1, 12 * 64, 5), size=(24, 32), valid_BP=None), 64)
    expanded = with_squares(tiles)
    G = len(tiles.pixels_GT)
    pairs = cut_into_items(torch.arange(G).repeat_interleave(G), torch.arange(G).repeat(G), G, 4)
    scales_GT = torch.rand(G, 64)
    v_BCP = torch.rand(1, 150, 12 * 64)
    rows = compiled(lambda: kernels.near_tiles(tiles.low_GF, tiles.high_GF, torch.rand(G), slice(0, G), sure=0.1))
    ways = (("float16", expanded, (1, 40, 150)), ("float16", tiles, (40,)), ("tf32x3", tiles, (40,)))
    for precision, given, channels in ways:
        rows += compiled(partial(kernels.largest_shares, given, pairs, scales_GT, precision=precision))
        for C in channels:
            rows += compiled(partial(kernels.apply_pairs, given, pairs, v_BCP[:, :C], precision=precision))
        rows += compiled(partial(kernels.moments_of_pairs, given, pairs, v_BCP[:, :40], v_BCP[:, :40], precision=precision))
    print(json.dumps([resources(kernel) for kernel in rows]))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
