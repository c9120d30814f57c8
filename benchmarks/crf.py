"""Time, memory and error of the dense CRF with each choice of filter, against pydensecrf2 where it is installed.

Not here: correctness, which tests hold to the specification.

    python benchmarks/crf.py [--sizes 257x257 513x513] [--threads 2] [--repeats 5] [--frame IMAGE DEPTH] [--json FILE]

All candidates run interleaved in one process on the same picture, so read the ratios; times are medians in milliseconds, set-up
included, for 10 iterations and 40 classes. Memory is the rise of the process's peak, each run in a process of its own. With
`--errors` (minutes), also the error against the exact mean field on the middle 128 x 128 pixels: mean |dq|, and the share of
labels that differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.kernels import kernel_features, paper_kernels

NUM_CLASSES, NUM_ITERATIONS, REFERENCE_SIZE, CROP = 40, 10, 513, 128
Scene = tuple[Tensor, Tensor, Tensor]


def scene(H: int, W: int, frame: list[str] | None) -> Scene:
    """Logits, image and depth: of the given picture, or planes in a few colours with noise, as rooms have."""
    draw = torch.Generator().manual_seed(0)
    planes = torch.nn.functional.interpolate(torch.rand(1, 4, 5, 7, generator=draw), (H, W), mode="nearest")
    image = (255 * planes[:, :3] + 4 * torch.randn(1, 3, H, W, generator=draw)).clamp(0, 255)
    depth = 1 + 5 * planes[:, 3] + 0.05 * torch.rand(1, H, W, generator=draw)
    if frame is not None:
        pixels = np.asarray(Image.open(frame[0]).convert("RGB").resize((W, H), Image.Resampling.BILINEAR), np.float32)
        levels = np.asarray(Image.open(frame[1]).resize((W, H), Image.Resampling.NEAREST), np.float32)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
        depth = torch.from_numpy((levels + 0.5) / 25.5 if levels.max() <= 255 else levels / 1000)[None]
    coarse = torch.randn(1, NUM_CLASSES, H // 24 + 2, W // 24 + 2, generator=draw)
    logits = 2 * torch.nn.functional.interpolate(coarse, (H, W), mode="nearest")
    return logits + 0.7 * torch.randn(logits.shape, generator=draw), image, depth


def peer(logits: Tensor, image: Tensor, depth: Tensor, settings: CrfSettings) -> Tensor:
    """The same inference by pydensecrf2: q (1, C, H, W)."""
    from pydensecrf.densecrf import NORMALIZE_AFTER  # noqa: PLC0415
    from pydensecrf.densecrf import DenseCRF as Peer  # noqa: PLC0415

    _, C, H, W = logits.shape
    crf = Peer(H * W, C)
    crf.setUnaryEnergy(np.ascontiguousarray(-logits[0].flatten(1).numpy()))
    for kernel in paper_kernels(settings):
        features_PF = kernel_features(kernel, {"image": image, "depth": depth[:, None]}, like=image)[0]
        crf.addPairwiseEnergy(np.ascontiguousarray(features_PF.T.numpy()), compat=kernel.weight, normalization=NORMALIZE_AFTER)
    return torch.from_numpy(np.array(crf.inference(NUM_ITERATIONS))).reshape(1, C, H, W)


def candidates(parts: Scene) -> dict[str, Callable[[], Tensor]]:
    """What is compared on one picture, by name; each gives q."""
    logits, image, depth = parts
    settings = CrfSettings(num_iterations=NUM_ITERATIONS).scaled(logits.shape[2] / REFERENCE_SIZE)
    frozen = {name: DenseCRF(NUM_CLASSES, settings, filter=name).requires_grad_(False) for name in ("auto", "permutohedral")}
    learning = DenseCRF(NUM_CLASSES, settings)
    prepared = frozen["auto"].prepare(image=image, depth=depth)

    def step() -> Tensor:
        out: Tensor = learning(logits, image=image, depth=depth, num_iterations=5)
        torch.autograd.backward(out.square().mean())
        return out.detach()

    runs: dict[str, Callable[[], Tensor]] = {
        "auto": lambda: frozen["auto"](logits, image=image, depth=depth).softmax(1),
        "auto, prepared": lambda: frozen["auto"](logits, prepared=prepared).softmax(1),
        "auto, training step of 5": step,
        "permutohedral": lambda: frozen["permutohedral"](logits, image=image, depth=depth).softmax(1),
    }
    if importlib.util.find_spec("pydensecrf") is not None:
        runs = {"pydensecrf2": lambda: peer(logits, image, depth, settings), **runs}
    return runs


def errors(parts: Scene) -> dict[str, tuple[float, float]]:
    """Mean |dq| and the share of labels that differ from the exact mean field, on the middle of the picture."""
    top, left = ((length - CROP) // 2 for length in parts[0].shape[2:])
    logits, image, depth = (part[..., top : top + CROP, left : left + CROP].contiguous() for part in parts)
    settings = CrfSettings(num_iterations=NUM_ITERATIONS)
    found = {}
    with torch.no_grad():
        exact = DenseCRF(NUM_CLASSES, settings, filter="exact")(logits, image=image, depth=depth).softmax(1)
        runs = {
            name: DenseCRF(NUM_CLASSES, settings, filter=name)(logits, image=image, depth=depth).softmax(1)
            for name in ("auto", "permutohedral")
        }
    if importlib.util.find_spec("pydensecrf") is not None:
        runs["pydensecrf2"] = peer(logits, image, depth, settings)
    for name, q in runs.items():
        found[name] = (float((q - exact).abs().mean()), float((q.argmax(1) != exact.argmax(1)).float().mean()))
    return found


def peak_rise(size: tuple[int, int], frame: list[str] | None, name: str, threads: int) -> float:
    """MiB by which one run raises this process's peak; call it in a fresh process."""
    torch.set_num_threads(threads)
    candidates(scene(70, 70, None))[name]()  # code loads at the first run
    run = candidates(scene(*size, frame))[name]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
    run()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB of memory of this process (Linux). Not `ru_maxrss`: a child begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def processor() -> str:
    """The processor's name as Linux gives it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def measure(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each run, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, memory and error of the dense CRF.")
    parser.add_argument("--sizes", nargs="+", default=["257x257", "513x513"], help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--frame", nargs=2, metavar=("IMAGE", "DEPTH"), help="a picture, and its depth: 16 bit in mm, or NYU's 8 bit"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--errors", action="store_true", help="measure the error against the exact mean field")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"C = {NUM_CLASSES}, {NUM_ITERATIONS} iterations, three kernels, float32\n")
    print(f"{'size':>9}  {'run':<28}{'ms':>9}{'peer/this':>11}{'peak MiB':>10}{'mean |dq|':>12}{'labels':>9}")
    rows = []
    processes = multiprocessing.get_context("spawn")
    for size in arguments.sizes:
        H, W = map(int, size.split("x"))
        parts = scene(H, W, arguments.frame)
        error = errors(parts) if arguments.errors else {}
        medians = measure(candidates(parts), arguments.repeats)
        for name, median in medians.items():
            with processes.Pool(1) as alone:
                peak = alone.apply(peak_rise, ((H, W), arguments.frame, name, arguments.threads))
            ratio = medians.get("pydensecrf2", float("nan")) / median
            dq, labels = error.get(name, (float("nan"), float("nan")))
            row = {"size": size, "run": name, "ms": median, "peer_over_this": ratio, "peak_mib": peak, "mean_dq": dq}
            rows.append({**row, "labels_differ": labels, "threads": arguments.threads})
            print(f"{size:>9}  {name:<28}{median:>9.1f}{ratio:>11.2f}{peak:>10.0f}{dq:>12.2e}{labels:>9.2%}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
