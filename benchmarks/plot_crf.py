"""The plots of docs/crf.md: time against pixels and classes, and error against tolerance.

Not here: the timing itself, whose files this reads (crf.py --json).

    python benchmarks/plot_crf.py SIZES.json CLASSES.json --frame IMAGE DEPTH --out docs
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: the GPU filter's arithmetic on the CPU

matplotlib.use("Agg")
from crf import REFERENCE_SIZE, Frame, scene
from matplotlib import pyplot

from jointseg.crf import CrfSettings
from jointseg.crf.filters import BlockSparseFilter, ExactFilter, Features, GaussianFilter
from jointseg.crf.filters.structured import bilateral_grid
from jointseg.crf.kernels import kernel_features, paper_kernels

RUNS = ("pydensecrf2", "auto", "auto, prepared", "permutohedral", "exact")


def time_plots(sizes: Path, classes: Path, out: Path) -> None:
    """crf_time.png: milliseconds against pixels, and against classes."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for axes, rows, value, name in (
        (left, json.loads(sizes.read_text()), lambda row: pixels_of(row["size"]), "pixels"),
        (right, json.loads(classes.read_text()), lambda row: row["classes"], "classes"),
    ):
        for run in RUNS:
            points = sorted((value(row), row["ms"]) for row in rows if row["run"] == run and "ms" in row)
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=run)
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="ms")
        axes.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    figure.savefig(out / "crf_time.png", dpi=110)


def pixels_of(size: str) -> int:
    """513x513 as a number of pixels."""
    H, W = map(int, size.split("x"))
    return H * W


def message_error(features: Features, build: Callable[[Features], GaussianFilter]) -> float:
    """The greatest |message - exact message| over pixels, for 16 channels of 0 and 1."""
    draw = torch.Generator().manual_seed(0)
    B, P, _ = features.values_BPF.shape
    values = (torch.rand(B, 16, P // 16, generator=draw) > 0.5).float().repeat_interleave(16, 2)
    exact = ExactFilter(Features(values_BPF=features.values_BPF.double(), size=features.size))
    truth = exact.apply(values.double()) / exact.row_sums[:, None]
    gaussian = build(features)
    message = gaussian.apply(values.to(gaussian.row_sums.device)) / gaussian.row_sums[:, None]
    return float((message.cpu() - truth).abs().max())


def tolerance_plot(frame: Frame, out: Path) -> None:
    """crf_error.png: what the bilateral grid and the block-sparse sum are off by, against the tolerance they were given."""
    figure, axes = pyplot.subplots(figsize=(4.6, 3.4), constrained_layout=True)
    _, image, depth = scene((REFERENCE_SIZE, REFERENCE_SIZE), 2, frame)
    kernels = {kernel.name: kernel for kernel in paper_kernels(CrfSettings())}
    for label, name, side, tolerances, build in (
        ("bilateral grid, depth", "depth", 96, (2e-3, 3e-3, 5e-3, 7e-3, 1e-2), bilateral_grid),
        ("block-sparse, appearance", "appearance", 32, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), small_tiles),
    ):
        middle = slice((REFERENCE_SIZE - side) // 2, (REFERENCE_SIZE + side) // 2)
        guides = {"image": image[..., middle, middle], "depth": depth[:, None, middle, middle]}
        values_BPF = kernel_features(kernels[name], guides, like=guides["image"])
        features = Features(values_BPF=values_BPF, size=(side, side))
        errors = [message_error(features, lambda f, t=t, b=build: b(f, tolerance=t)) for t in tolerances]
        axes.plot(tolerances, errors, marker="o", markersize=3, label=label)
    limits = (5e-8, 2e-1)
    axes.plot(limits, limits, color="grey", linewidth=0.7)
    axes.set(xscale="log", yscale="log", xlabel="tolerance", ylabel="greatest error of a message", xlim=limits, ylim=limits)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out / "crf_error.png", dpi=110)


def small_tiles(features: Features, *, tolerance: float) -> BlockSparseFilter:
    """Tiles of 16, so that a small picture has many; on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moved = Features(values_BPF=features.values_BPF.to(device), size=features.size)
    return BlockSparseFilter(moved, tolerance=tolerance, tile_size=16)


def main() -> None:
    parser = argparse.ArgumentParser(description="The plots of docs/crf.md.")
    parser.add_argument("sizes", type=Path)
    parser.add_argument("classes", type=Path)
    parser.add_argument("--frame", nargs=2, metavar=("IMAGE", "DEPTH"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    time_plots(arguments.sizes, arguments.classes, arguments.out)
    tolerance_plot(tuple(arguments.frame), arguments.out)


if __name__ == "__main__":
    main()
