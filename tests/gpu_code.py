"""Kernels as machine code for a GPU that need not be there; prints what each takes of it, as JSON.

The CRF's filters' and the network's (`python -m tests.gpu_code 90`), in a process of its own: Triton must not have been
imported for its interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from jointseg.crf import mean_field_kernels
from jointseg.crf.filters import block_sparse_kernels as kernels
from jointseg.crf.filters import exponents, kd_tree, matrix_kernels, pair_kernels
from jointseg.crf.filters.cell_items import CellItems
from jointseg.crf.filters.tile_pairs import TilePairs, cut_into_items
from jointseg.crf.filters.tiles import Tiles
from jointseg.network import upsample_kernels

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
    """Registers and stack of a thread (a stack is for what registers do not hold), bytes of shared memory of a program,
    and the accesses to memory of 16 bytes.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (registers,), (stack,) = re.findall(r"REG:(\d+)", said), re.findall(r"STACK:(\d+)", said)
    matrix = sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.]*", kernel.asm["ptx"])))
    return {
        "kernel": kernel.metadata.name, "registers": int(registers), "stack": int(stack), "shared": kernel.metadata.shared,
        "matrix": matrix, "vectors": len(re.findall(r"(?:ld|st)\.global[\w.]*\.v4\.b32", kernel.asm["ptx"])),
    }  # fmt: skip


def main(capability: int) -> None:
    """Every kernel, of the filters and of the network."""
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    )
    rows = {"filters": filter_kernels(capability), "network": network_kernels()}
    print(json.dumps({of: [resources(kernel) for kernel in found] for of, found in rows.items()}))  # noqa: T201


def tiles_of(T: int) -> Tiles:
    """Twelve tiles of T pixels."""
    features_GFT = torch.rand(12, 5, T)
    return Tiles(
        features_GFT=features_GFT, pixels_GT=torch.arange(12 * T, dtype=torch.int32).view(12, T), low_GF=features_GFT.amin(2),
        high_GF=features_GFT.amax(2), compared_GRT=features_GFT, num_images=1, num_pixels=12 * T,
    )  # fmt: skip


def filter_kernels(capability: int) -> list[Any]:
    """For an image of 12 tiles with five features: as many channels as a launch carries, and fewer."""
    kernels.is_hopper = lambda device: capability // 10 == 9  # type: ignore[assignment]
    rows = compiled(lambda: kd_tree.kd_order(torch.rand(12 * 64, 5), 64, 1))
    tiles = tiles_of(64)
    rows += compiled(lambda: pair_kernels.near_tiles(tiles.low_GF, tiles.high_GF, torch.rand(12), slice(3, None), sure=0.1))
    of_half = tiles_of(kernels.tile_size("float16", torch.device("cuda")))
    rows += compiled(lambda: exponents.factors(of_half, torch.rand(1, 5)))
    of_factors = replace(of_half, compared_GRT=torch.zeros(12, 2 * 32, of_half.pixels_GT.shape[1], dtype=torch.float16))
    ways = (("float16", of_factors, (1, 40, 150)), ("float16", of_half, (40,)), ("tf32x3", tiles, (40,)))
    cut: list[TilePairs] = []
    rows_E, columns_E = torch.arange(12).repeat_interleave(12), torch.arange(12).repeat(12)
    rows += compiled(lambda: cut.append(cut_into_items(rows_E, columns_E, 12, 4, longest_first=False)))
    (pairs,) = cut
    for precision, given, channels in ways:
        v_BCP = torch.rand(1, 150, given.num_pixels)
        scales_GT = torch.rand(given.pixels_GT.shape)
        rows += compiled(partial(pair_kernels.largest_shares, given, pairs, scales_GT, precision=precision))
        for C in channels:
            rows += compiled(partial(kernels.apply_pairs, given, pairs, v_BCP[:, :C], precision=precision))
        rows += compiled(partial(kernels.moments_of_pairs, given, pairs, v_BCP[:, :40], v_BCP[:, :40], precision=precision))
    return rows + matrix_rows()


def matrix_rows() -> list[Any]:
    """A step's softmax, and the blur and the grid's writing and reading alone and added to a sum, of 40 classes."""
    values_BCHW, grid_GC = torch.rand(1, 40, 60, 70), torch.rand(500, 40)
    band, wide_BCHW = matrix_kernels.band_of(torch.rand(16)), torch.rand(1, 40, 60, 513)
    rows = compiled(lambda: mean_field_kernels.softmax_of_difference(*torch.rand(2, 1, 40, 4200)))
    corners_PV, weights_PV = torch.zeros(4200, 8, dtype=torch.int64), torch.rand(4200, 8)
    items = CellItems.of(corners_PV, 500, None)
    rows += compiled(partial(matrix_kernels.splat, values_BCHW[0].flatten(1), weights_PV, items))
    for given_BCHW in (values_BCHW, wide_BCHW):
        rows += compiled(partial(matrix_kernels.blur_into, given_BCHW, given_BCHW, band, band, given_BCHW[:, 0], added=True))
    for factors_P, added in ((None, False), (torch.rand(4200), True)):
        blur = partial(matrix_kernels.blur_into, values_BCHW, values_BCHW, band, band, None, added=added)
        out_CP = torch.empty(40, 4200)
        read = partial(matrix_kernels.read_grid, out_CP, grid_GC, corners_PV, weights_PV, factors_P, added=added)
        rows += compiled(blur) + compiled(read)
    return rows


def network_kernels() -> list[Any]:
    """With a score and without, of a small map from a score layer and of one that is a sum; first 40 scores and steps of 2."""
    rows = []
    for (K, factor), dtype in product([(40, 2), (40, 4), (50, 8)], [torch.bfloat16, torch.float32]):
        H = factor * 8 + 1
        small, score, grad = torch.empty(1, K, 9, 9, dtype=dtype), torch.empty(1, K, H, H), torch.empty(1, K, H, H)
        score = score.to(torch.bfloat16, memory_format=torch.channels_last)
        if dtype == torch.bfloat16:
            small = small.to(memory_format=torch.channels_last)
        rows += compiled(partial(upsample_kernels.upsampled, small, factor, score))
        rows += compiled(partial(upsample_kernels.upsampled, small, factor, None))
        rows += compiled(partial(upsample_kernels.gradients, grad, factor, small, score))
        rows += compiled(partial(upsample_kernels.gradients, grad, factor, small, None))
    return rows


if __name__ == "__main__":
    main(int(sys.argv[1]))
