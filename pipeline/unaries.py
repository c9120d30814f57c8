"""The unaries of the validation subset: computed once on Ray, kept in memory-mapped files, shared by every trial.

Not here: the trials (search.py), the network's forward pass (jointseg/evaluation.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from jointseg.checkpoint import digest, load_final
from jointseg.config import Config
from jointseg.data.store import Store
from jointseg.errors import InputError
from jointseg.evaluation import Unaries, compute_unaries
from jointseg.model import trained_model
from jointseg.whole import appearing_whole
from pipeline.cluster import result_of, uses_gpu

DESCRIPTION = "unaries.json"
ARRAYS = ("image", "logits", "depth")
FRAMES_A_TASK = 6  # at full size 200 MB of logits


@dataclass(frozen=True)
class UnaryCache:
    """Unaries of the subset on disk, one array a kind, one row a frame, read through memory maps."""

    folder: Path
    frames: tuple[int, ...]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The memory maps: image (n, 3, h, w) uint8, logits (n, C, h, w) float32, depth (n, h, w) float32 metres."""
        # "c", not "r": PyTorch warns of arrays that it must not write. Nothing here writes; what did would not reach the file.
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}


def row_of(arrays: dict[str, NDArray[Any]], row: int) -> Unaries:
    """One frame's unaries: tensors in the memory map."""
    return Unaries(*(torch.from_numpy(arrays[name][row]) for name in ARRAYS))


def cached_unaries(
    config: Config, store: Path, start: Path, folder: Path, *, frames: tuple[int, ...], progress: Callable[[int], None]
) -> UnaryCache:
    """The unaries in `folder`, computed first where there are none.

    Raises:
        InputError: those there are of another checkpoint or of other frames, or their files were altered.
    """
    _, checkpoint = load_final(start)
    stamp = {"checkpoint": checkpoint, "frames": list(frames)}
    if (folder / DESCRIPTION).is_file():
        _refuse_other(folder, stamp)
        progress(len(frames))
        return UnaryCache(folder, frames)
    gpu = uses_gpu(config)
    task = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=1)(_compute)
    pending = {
        task.remote(config, store, start, frames[row : row + FRAMES_A_TASK], "cuda" if gpu else "cpu"): row
        for row in range(0, len(frames), FRAMES_A_TASK)
    }
    with appearing_whole(folder, replace=True) as partial:
        arrays: dict[str, np.memmap[Any, Any]] = {}
        waiting, done = list(pending), 0
        while waiting:
            ready, waiting = ray.wait(waiting)
            for row, unaries in enumerate(result_of(ready[0]), start=pending[ready[0]]):
                for name in ARRAYS:
                    values = getattr(unaries, name).numpy()
                    if name not in arrays:
                        shape = (len(frames), *values.shape)
                        arrays[name] = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", values.dtype, shape)
                    arrays[name][row] = values
                done += 1
            progress(done)
        for array in arrays.values():
            array.flush()
        digests = {name: digest(partial / f"{name}.npy") for name in ARRAYS}
        (partial / DESCRIPTION).write_text(json.dumps({**stamp, "sha256": digests}))
    return UnaryCache(folder, frames)


def _refuse_other(folder: Path, stamp: dict[str, Any]) -> None:
    remove = f"remove {folder} to compute them again"
    try:
        there = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        checkpoint, frames, digests = there["checkpoint"], there["frames"], dict(there["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / DESCRIPTION}: damaged ({error!r}); {remove}") from None
    if checkpoint != stamp["checkpoint"]:
        raise InputError(
            f"{folder}: unaries of checkpoint {checkpoint[:12]}, but stage 2's is {stamp['checkpoint'][:12]}; {remove}"
        )
    if frames != stamp["frames"]:
        raise InputError(f"{folder}: unaries of {len(frames)} other frames than the {len(stamp['frames'])} asked for; {remove}")
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        if not path.is_file() or digest(path) != digests.get(name):
            raise InputError(f"{path}: missing or altered since it was written; {remove}")


def _compute(config: Config, store: Path, start: Path, frames: tuple[int, ...], device: str) -> list[Unaries]:
    torch.set_num_threads(1)
    where = torch.device(device)
    weights, _ = load_final(start)
    model = trained_model(config, weights, device=where)
    frames_of = Store.open(store)
    return [compute_unaries(model, frames_of.frame(number), config, device=where) for number in frames]


def subset_labels(store: Path, frames: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    """The true labels of the subset, (H, W) each, in the order of `frames`."""
    opened = Store.open(store)
    missing = set(frames) - set(opened.train)
    if missing:
        raise InputError(f"{store}: validation frames {sorted(missing)} are not in its train split")
    return [opened.frame(number).labels for number in frames]
