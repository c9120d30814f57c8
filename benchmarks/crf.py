"""Time and memory of the dense CRF with each filter, against the same inference by plain dense matrices in torch.

Not here: accuracy, which tests hold to the specification.

    python benchmarks/crf.py [--sizes 33x45 49x65] [--threads 1] [--repeats 5]

Both run interleaved in one process on the same synthetic scene, so read the ratios; times are medians in milliseconds.
Memory is the rise of the process's peak, each run in a process of its own. From about 8192 pixels on the exact filter keeps no
matrix; see that with `--sizes 97x129 --repeats 1` (minutes, and 3 GB for the plain one).
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.kernels import kernel_features, paper_kernels

NUM_CLASSES, NUM_ITERATIONS, REFERENCE_HEIGHT = 40, 10, 385


def scene(H: int, W: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, image and depth of planes in a few colours with noise, as rooms have."""
    draw = torch.Generator().manual_seed(0)
    planes = torch.nn.functional.interpolate(torch.rand(1, 4, 5, 7, generator=draw), (H, W), mode="nearest")
    image = (255 * planes[:, :3] + 4 * torch.randn(1, 3, H, W, generator=draw)).clamp(0, 255)
    logits = 2 * torch.randn(1, NUM_CLASSES, H, W, generator=draw)
    return logits, image, 1 + 5 * planes[:, 3] + 0.05 * torch.rand(1, H, W, generator=draw)


def plain(logits: Tensor, image: Tensor, depth: Tensor, settings: CrfSettings) -> Tensor:
    """The inference as one would first write it: a dense matrix a kernel, normalised, one product each."""
    H, W = logits.shape[2:]
    unary_PC = logits[0].flatten(1).T
    kernels = []
    for kernel in paper_kernels(settings):
        features_PF = kernel_features(kernel, {"image": image, "depth": depth[:, None]}, size=(H, W))[0]
        squares = torch.cdist(features_PF, features_PF, compute_mode="donot_use_mm_for_euclid_dist").square()
        weights = (-0.5 * squares).exp()
        kernels.append((kernel.weight, weights / weights.sum(1, keepdim=True)))
    now_PC = unary_PC
    for _ in range(NUM_ITERATIONS):
        q_PC = now_PC.softmax(1)
        now_PC = unary_PC + sum(weight * (matrix @ q_PC) for weight, matrix in kernels)
    return now_PC.T.reshape(logits.shape)


def runs(H: int, W: int) -> dict[str, Callable[[], Tensor]]:
    """What is compared at one size, by name."""
    logits, image, depth = scene(H, W)
    settings = CrfSettings(num_iterations=NUM_ITERATIONS).scaled(H / REFERENCE_HEIGHT)
    crf = DenseCRF(NUM_CLASSES, settings, filter="exact").requires_grad_(False)
    learning = DenseCRF(NUM_CLASSES, settings, filter="exact")

    def step() -> Tensor:
        out: Tensor = learning(logits, image=image, depth=depth, num_iterations=5)
        torch.autograd.backward(out.square().mean())
        return out.detach()

    return {
        "plain torch": lambda: plain(logits, image, depth, settings),
        "exact": lambda: crf(logits, image=image, depth=depth),
        "exact, set-up": lambda: crf(logits, image=image, depth=depth, num_iterations=1),
        "exact, kernels apart": lambda: learning(logits, image=image, depth=depth).detach(),
        "exact, training step of 5": step,
    }


def peak_rise(H: int, W: int, name: str, threads: int) -> float:
    """MiB by which one run raises this process's peak; call it in a fresh process."""
    torch.set_num_threads(threads)
    runs(9, 9)[name]()  # libraries load at the first run
    run = runs(H, W)[name]
    before = peak_mib()
    run()
    return peak_mib() - before


def peak_mib() -> float:
    """Peak resident memory of this process (Linux). Not `ru_maxrss`: a child begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def processor() -> str:
    """The processor's name as Linux gives it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def measure(H: int, W: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of each run, interleaved."""
    candidates = runs(H, W)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the dense CRF.")
    parser.add_argument("--sizes", nargs="+", default=["33x45", "49x65"], help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"C = {NUM_CLASSES}, {NUM_ITERATIONS} iterations, three kernels, float32\n")
    print(f"{'size':>9}  {'run':<28}{'ms':>9}{'plain/this':>12}{'peak MiB':>10}")
    processes = multiprocessing.get_context("spawn")
    for size in arguments.sizes:
        H, W = map(int, size.split("x"))
        medians = measure(H, W, arguments.repeats)
        for name, median in medians.items():
            with processes.Pool(1) as alone:
                peak = alone.apply(peak_rise, (H, W, name, arguments.threads))
            print(f"{size:>9}  {name:<28}{median:>9.1f}{medians['plain torch'] / median:>12.2f}{peak:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
