"""Time, memory and error of the dense CRF with each choice of filter, against pydensecrf2, and pykeops where it is installed.

Not here: correctness, which tests hold to the specification; the plots of what this writes (plot_crf.py).

    python benchmarks/crf.py [--sizes 65x65 257x257 513x513] [--classes 40] [--threads 2] [--repeats 5] [--device cpu]
                             [--batch 1] [--frame IMAGE DEPTH]... [--errors] [--json FILE]

All candidates run interleaved in one process on the same picture, so read the ratios; times are medians in milliseconds,
set-up included, for 10 iterations of the paper's three kernels, or, last, of one kernel alone by the filter that is for it.
Memory is the rise of the process's peak (CUDA: of the allocator's), each run in a process of its own. Without --frame the
picture is made up; `--batch` has it so many times, which pydensecrf2 takes one by one. `--errors` adds, over all frames given,
the distance from the exact mean field on the middle 128 x 128 pixels: mean |dq|, and the share of labels that differ; it needs
5 GB.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF, Kernel
from jointseg.crf.cpu.scratch import release
from jointseg.crf.filters import ExactFilter, FilterName
from jointseg.crf.kernels import kernel_features, paper_kernels
from jointseg.hardware import cpu_model

NUM_ITERATIONS, REFERENCE_SIZE, CROP = 10, 513, 128
SAME_WORK = ("pydensecrf2", "auto", "auto, prepared", "permutohedral", "exact", "pykeops, exact")
"""What has a ratio to pydensecrf2: all but steps of training and single kernels ("prepared" is without the set-up)."""
Scene = tuple[Tensor, Tensor, Tensor]
Frame = tuple[str, str]


def scene(size: tuple[int, int], C: int, frame: Frame | None, device: str = "cpu", *, batch: int = 1) -> Scene:
    """Logits, image and depth: of the given picture, or planes in a few colours with noise, as rooms have; `batch` times."""
    H, W = size
    draw = torch.Generator().manual_seed(0)
    planes = torch.nn.functional.interpolate(torch.rand(1, 4, 5, 7, generator=draw), size, mode="nearest")
    image = (255 * planes[:, :3] + 4 * torch.randn(1, 3, H, W, generator=draw)).clamp(0, 255)
    depth = 1 + 5 * planes[:, 3] + 0.05 * torch.rand(1, H, W, generator=draw)
    if frame is not None:
        pixels = np.asarray(Image.open(frame[0]).convert("RGB").resize((W, H), Image.Resampling.BILINEAR), np.float32)
        levels = np.asarray(Image.open(frame[1]).resize((W, H), Image.Resampling.NEAREST), np.float32)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
        depth = torch.from_numpy((levels + 0.5) / 25.5 if levels.max() <= 255 else levels / 1000)[None]
    coarse = torch.randn(1, C, H // 24 + 2, W // 24 + 2, generator=draw)
    logits = 2 * torch.nn.functional.interpolate(coarse, size, mode="nearest") + 0.7 * torch.randn(1, C, H, W, generator=draw)
    logits, image, depth = (part.to(device).repeat(batch, *[1] * (part.ndim - 1)) for part in (logits, image, depth))
    return logits, image, depth


def pydensecrf(logits: Tensor, image: Tensor, depth: Tensor, settings: CrfSettings) -> Tensor:
    """The same inference by pydensecrf2, image by image: q (B, C, H, W)."""
    from pydensecrf import densecrf  # noqa: PLC0415

    B, C, H, W = logits.shape
    if B > 1:
        images = zip(logits.split(1), image.split(1), depth.split(1), strict=True)
        return torch.cat([pydensecrf(*one, settings) for one in images])
    crf = densecrf.DenseCRF(H * W, C)
    crf.setUnaryEnergy(np.ascontiguousarray(-logits[0].flatten(1).numpy()))
    for kernel in paper_kernels(settings):
        features_PF = kernel_features(kernel, {"image": image, "depth": depth[:, None]}, like=logits)[0]
        crf.addPairwiseEnergy(
            np.ascontiguousarray(features_PF.T.numpy()), compat=kernel.weight, normalization=densecrf.NORMALIZE_AFTER
        )
    return torch.from_numpy(np.array(crf.inference(NUM_ITERATIONS))).reshape(1, C, H, W)


def keops(logits: Tensor, image: Tensor, depth: Tensor, settings: CrfSettings) -> Tensor:
    """The same inference by exact sums of pykeops: q (1, C, H, W)."""
    from pykeops.torch import LazyTensor  # noqa: PLC0415

    unary_PC = logits[0].flatten(1).T.contiguous()
    ones_P1 = torch.ones_like(unary_PC[:, :1])
    sums = []
    for kernel in paper_kernels(settings):
        features_PF = kernel_features(kernel, {"image": image, "depth": depth[:, None]}, like=logits)[0].contiguous()
        squares = ((LazyTensor(features_PF[:, None]) - LazyTensor(features_PF[None])) ** 2).sum(-1)
        lazy = (-0.5 * squares).exp()
        sums.append((kernel.weight, lazy, lazy @ ones_P1))
    now_PC = unary_PC
    for _ in range(NUM_ITERATIONS):
        q_PC = now_PC.softmax(1)
        now_PC = unary_PC + sum(weight * (lazy @ q_PC) / row_sums for weight, lazy, row_sums in sums)
    return now_PC.softmax(1).T.reshape(logits.shape)


def candidates(parts: Scene) -> dict[str, Callable[[], Tensor]]:
    """What is compared on one picture, by name; each gives q, or what its backward pass left."""
    logits, image, depth = parts
    B, C, H, W = logits.shape
    device = logits.device.type
    settings = CrfSettings(num_iterations=NUM_ITERATIONS).scaled(H / REFERENCE_SIZE)

    def inference(filter: FilterName, *kernels: Kernel) -> Callable[[], Tensor]:
        """With all of the paper's kernels, or with those given alone."""
        crf = DenseCRF(C, settings, kernels=kernels or None, filter=filter).to(device).requires_grad_(False)
        compared = {name for kernel in crf.kernels for name in kernel.guides}
        guides = {name: guide for name, guide in {"image": image, "depth": depth}.items() if name in compared}
        return lambda: crf(logits, **guides, probabilities=True)

    crf, learning = (DenseCRF(C, settings).to(device) for _ in range(2))
    crf.requires_grad_(False)
    prepared = crf.prepare(image=image, depth=depth)
    prepared.mean_field(logits.flatten(2), matrices_KCC=torch.zeros(3, C, C, device=device), num_iterations=1)

    def step() -> Tensor:
        out: Tensor = learning(logits, image=image, depth=depth, num_iterations=5)
        torch.autograd.backward(out.square().mean())
        return out.detach()

    runs: dict[str, Callable[[], Tensor]] = {}
    if device == "cpu" and importlib.util.find_spec("pydensecrf") is not None:
        runs["pydensecrf2"] = lambda: pydensecrf(logits, image, depth, settings)
    runs |= {"auto": inference("auto"), "auto, prepared": lambda: crf(logits, prepared=prepared, probabilities=True)}
    runs["auto, training step of 5"] = step
    if device == "cpu":
        runs["permutohedral"] = inference("permutohedral")
    # One kernel each:
    general: FilterName = "permutohedral" if device == "cpu" else "block_sparse"
    alone: dict[str, FilterName] = {"appearance": general, "depth": "bilateral_grid", "smoothness": "separable"}
    for kernel in paper_kernels(settings):
        runs[f"{alone[kernel.name]}, {kernel.name}"] = inference(alone[kernel.name], kernel)
    if H * W <= 5000 or device == "cuda":
        runs["exact"] = inference("exact")
    if B == 1 and importlib.util.find_spec("pykeops") is not None and (H * W <= 17000 or device == "cuda"):
        runs["pykeops, exact"] = lambda: keops(logits, image, depth, settings)
    return runs


def errors(frames: list[Frame | None], C: int, device: str) -> dict[str, tuple[float, float]]:
    """Mean |dq| and the share of labels that differ from the exact mean field, over the middles of all frames."""
    sums: dict[str, list[tuple[float, float]]] = {}
    settings = CrfSettings(num_iterations=NUM_ITERATIONS)
    for frame in frames:
        parts = scene((REFERENCE_SIZE, REFERENCE_SIZE), C, frame, device)
        middle = slice((REFERENCE_SIZE - CROP) // 2, (REFERENCE_SIZE + CROP) // 2)
        logits, image, depth = (part[..., middle, middle].contiguous() for part in parts)
        exact = partial(ExactFilter, budget_bytes=5 * CROP**4)

        def q_of(filter: FilterName | Callable[..., ExactFilter], parts: Scene = (logits, image, depth)) -> Tensor:
            crf = DenseCRF(C, settings, filter=filter).to(device).requires_grad_(False)
            return crf(parts[0], image=parts[1], depth=parts[2], probabilities=True)

        truth = q_of(exact)
        found = {"auto": q_of("auto")}
        if device == "cpu":
            found["permutohedral"] = q_of("permutohedral")
        if device == "cpu" and importlib.util.find_spec("pydensecrf") is not None:
            found["pydensecrf2"] = pydensecrf(logits, image, depth, settings)
        for name, q in found.items():
            labels = float((q.argmax(1) != truth.argmax(1)).float().mean())
            sums.setdefault(name, []).append((float((q - truth).abs().mean()), labels))
    return {name: (statistics.mean(dq for dq, _ in rows), statistics.mean(n for _, n in rows)) for name, rows in sums.items()}


def peak_rise(parts: Callable[..., Scene], C: int, *, name: str, threads: int, device: str) -> float:
    """MiB by which one run over `parts()` raises this process's peak; call it in a fresh process."""
    torch.set_num_threads(threads)
    candidates(scene((70, 70), C, None, device)).get(name, lambda: None)()  # code loads at the first run
    run = candidates(parts())[name]
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    release()
    before_mib = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
    run()
    return resident("VmHWM") - before_mib


def resident(field: str) -> float:
    """MiB of memory of this process (Linux). Not `ru_maxrss`: a child begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def processor(device: str) -> str:
    """The device's name."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_model()


def measure(runs: dict[str, Callable[[], Tensor]], repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds of each run, interleaved, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def versions() -> str:
    """Of what is compared."""
    names = {"torch": "torch", "numba": "numba", "triton": "triton", "pydensecrf": "pydensecrf2", "pykeops": "pykeops"}
    installed = [package for module, package in names.items() if importlib.util.find_spec(module) is not None]
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in installed)


def a_size(text: str) -> str:
    """A size as the command line takes it."""
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 257x513")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, memory and error of the dense CRF.")
    parser.add_argument(
        "--sizes", nargs="+", type=a_size, default=["65x65", "257x257", "513x513"], metavar="HEIGHTxWIDTH", help="pixels"
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[40])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1, help="images in a call")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--frame", nargs=2, action="append", metavar=("IMAGE", "DEPTH"), help="depth: 16 bit in mm, or NYU's 8 bit"
    )
    parser.add_argument("--errors", action="store_true", help="measure the error against the exact mean field")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    frames: list[Frame | None] = [tuple(frame) for frame in arguments.frame or []] or [None]
    machine = f"{processor(arguments.device)}, {arguments.threads} threads, a batch of {arguments.batch}"
    print(f"{machine}; {versions()}; {NUM_ITERATIONS} iterations, three kernels, float32\n")
    print(f"{'size':>9} {'C':>4}  {'run':<28}{'ms':>9}{'peer/this':>11}{'peak MiB':>10}")
    rows = []
    processes = multiprocessing.get_context("spawn")
    for C in arguments.classes:
        for size in arguments.sizes:
            H, W = map(int, size.split("x"))
            parts = partial(scene, (H, W), C, frames[0], arguments.device, batch=arguments.batch)
            medians = measure(candidates(parts()), arguments.repeats, arguments.device)
            for name, median in medians.items():
                with processes.Pool(1) as alone:
                    how = {"name": name, "threads": arguments.threads, "device": arguments.device}
                    peak = alone.apply(peak_rise, (parts, C), how)
                ratio = medians.get("pydensecrf2", float("nan")) / median if name in SAME_WORK else float("nan")
                row = {"size": size, "classes": C, "run": name, "ms": median, "peer_over_this": ratio, "peak_mib": peak}
                rows.append({**row, "machine": machine})
                print(f"{size:>9} {C:>4}  {name:<28}{median:>9.1f}{ratio:>11.2f}{peak:>10.0f}", flush=True)
        for name, (dq, labels) in errors(frames, C, arguments.device).items() if arguments.errors else ():
            middle = f"{CROP}x{CROP} of {REFERENCE_SIZE}"
            rows.append({"size": middle, "classes": C, "run": name, "mean_dq": dq, "labels_differ": labels, "machine": machine})
            print(f"{middle}, {C}  {name:<26}mean |dq| {dq:.2e}, labels {labels:.2%}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
