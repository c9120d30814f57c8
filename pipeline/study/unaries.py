"""The unaries of the validation subset: computed once on Ray, kept in memory-mapped files, shared by every trial of a node.

Not here: the trials (trial.py), the network's forward pass (jointseg/evaluation.py).
"""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jointseg.checkpoint import digest, final_digest, load_final
from jointseg.config import Config
from jointseg.data.frame import FRAME_SIZE
from jointseg.data.store import Store
from jointseg.data.views import content_size
from jointseg.errors import DiskError, InputError
from jointseg.evaluation import Unaries, compute_unaries
from jointseg.evaluation_config import EvaluationConfig
from jointseg.labels import NUM_CLASSES
from jointseg.mapped import new_array
from jointseg.model import trained_model
from jointseg.whole import appearing_whole, check_space
from pipeline.shares import shared_out, shares_of

DESCRIPTION = "unaries.json"
ARRAYS = ("image", "logits", "depth")
_LAYOUT = "n h w C"
"""Of the logits: as the CRF works on them."""


@dataclass(frozen=True)
class UnaryCache:
    """Unaries of the subset on disk, one array a kind, one row a frame, read through memory maps."""

    folder: Path
    frames: tuple[int, ...]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The memory maps: image (n, 3, h, w) uint8, logits (n, h, w, C) float32, depth (n, h, w) float32 metres.

        Raises:
            InputError: this node does not have the files.
        """
        # "c", not "r": PyTorch warns of arrays that it must not write. Nothing here writes; what did would not reach the file.
        with _seen_from_here(self.folder):
            return {name: np.load(self.folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}


@contextmanager
def _seen_from_here(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        where = f"{error.filename} is not there on node {socket.gethostname()}"
        raise InputError(f"{folder}: {where}; --out must lie where all nodes see it, under one path") from None


def row_of(arrays: dict[str, NDArray[Any]], row: int) -> Unaries:
    """One frame's unaries: tensors in the memory map, the logits channels last."""
    image, logits, depth = (torch.from_numpy(arrays[name][row]) for name in ARRAYS)
    return Unaries(image, logits.permute(2, 0, 1), depth)


def rows_of(unaries: Unaries) -> dict[str, NDArray[Any]]:
    """What of one frame is kept, by array: image (3, h, w), logits (h, w, C), depth (h, w)."""
    image, logits, depth = unaries
    return {"image": image.numpy(), "logits": logits.permute(1, 2, 0).numpy(), "depth": depth.numpy()}


class UnariesOnDevice:
    """The unaries of some frames together, on a device. On a GPU they stay for the next trial, as far as there is room."""

    def __init__(self, arrays: dict[str, NDArray[Any]], device: torch.device, room: int) -> None:
        """Start with none.

        Args:
            arrays: those of a `UnaryCache`.
            device: where they are asked for. On the CPU they stay in the memory map.
            room: bytes that may stay on a GPU.
        """
        self._arrays, self._device, self._room = arrays, device, room
        self._kept: dict[tuple[int, ...], Unaries] = {}

    def of(self, rows: tuple[int, ...]) -> Unaries:
        """Image (B, 3, h, w), logits (B, C, h, w) and depth (B, h, w) of these rows. Not to be written to."""
        if rows in self._kept:
            return self._kept[rows]
        if self._device.type == "cpu" and len(rows) == 1:
            return Unaries(*(values[None] for values in row_of(self._arrays, rows[0])))
        image, logits, depth = (torch.from_numpy(self._arrays[name][list(rows)]).to(self._device) for name in ARRAYS)
        together = Unaries(image, logits.permute(0, 3, 1, 2).contiguous(), depth)
        taken = sum(values.numel() * values.element_size() for values in together)
        if taken <= self._room:
            self._room -= taken
            self._kept[rows] = together
        return together


def cached_unaries(
    config: Config,
    store: Path,
    start: Path,
    folder: Path,
    *,
    frames: tuple[int, ...],
    progress: Callable[[int], None],
    say: Callable[[str], None],
) -> UnaryCache:
    """The unaries in `folder`, computed first where there are none.

    Args:
        config: the whole config.
        store: the prepared frames.
        start: the `final/` of stage 2.
        folder: where the unaries are kept.
        frames: the subset.
        progress: told how many frames are done.
        say: called with a line for people while no node has room.

    Raises:
        InputError: those there are of another checkpoint or of other frames, or their files were altered; or the disk has too
            little room.
    """
    checkpoint = final_digest(start)
    stamp = {"checkpoint": checkpoint, "frames": list(frames), "views": config.evaluation.views, "logits": _LAYOUT}
    if (folder / DESCRIPTION).is_file():
        _refuse_other(folder, stamp)
        progress(len(frames))
        return UnaryCache(folder, frames)
    check_space(folder, needed=len(frames) * _bytes_a_frame(config))
    shares, done = shares_of(frames), 0
    first_row = dict(enumerate(accumulate(map(len, shares), initial=0)))
    arrays: dict[str, np.memmap[Any, Any]] = {}
    with appearing_whole(folder, replace=True) as unfinished:
        for place, found in shared_out(partial(_computing, config, store, start), shares, config=config, say=say):
            for row, unaries in enumerate(found, start=first_row[place]):
                for name, values in rows_of(unaries).items():
                    if name not in arrays:
                        shape = (len(frames), *values.shape)
                        arrays[name] = new_array(unfinished / f"{name}.npy", values.dtype, shape)
                    arrays[name][row] = values
            done += len(found)
            progress(done)
        for array in arrays.values():
            array.flush()
        digests = {name: digest(unfinished / f"{name}.npy") for name in ARRAYS}
        (unfinished / DESCRIPTION).write_text(json.dumps({**stamp, "sha256": digests}))
    return UnaryCache(folder, frames)


def _bytes_a_frame(config: Config) -> int:
    """What the arrays of one frame take: the image's 3 bytes a pixel, 4 for each logit and for the depth."""
    h, w = content_size(*FRAME_SIZE, config.network.input_size, config.network.resize)
    return h * w * (3 + 4 * NUM_CLASSES + 4)


def _refuse_other(folder: Path, stamp: dict[str, Any]) -> None:
    remove = f"remove {folder} to compute them again"
    try:
        there = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        checkpoint, frames, digests = there["checkpoint"], there["frames"], dict(there["sha256"])
        seen = EvaluationConfig(**there.get("views", {}))  # earlier versions wrote none
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(f"{folder / DESCRIPTION}: damaged ({error!r}); {remove}") from None
    if checkpoint != stamp["checkpoint"]:
        raise InputError(
            f"{folder}: unaries of checkpoint {checkpoint[:12]}, but stage 2's is {stamp['checkpoint'][:12]}; {remove}"
        )
    if frames != stamp["frames"]:
        raise InputError(f"{folder}: unaries of {len(frames)} other frames than the {len(stamp['frames'])} asked for; {remove}")
    asked = EvaluationConfig(**stamp["views"])
    if seen.views != asked.views:
        raise InputError(
            f"{folder}: unaries of {seen.views_said} of each picture, but evaluation asks for {asked.views_said}; {remove}"
        )
    if there.get("logits") != stamp["logits"]:
        raise InputError(f"{folder}: unaries as an earlier version laid them out; {remove}")
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        if not path.is_file() or digest(path) != digests.get(name):
            raise InputError(f"{path}: missing or altered since it was written; {remove}")


def on_this_node(cache: UnaryCache, node_folder: Path | None) -> UnaryCache:
    """The unaries as processes of this node are to read them: where they are, or from a copy on a disk of the node's own.

    The first process to ask makes the copy, the others wait for it. It is named after its digests and stays for other studies.

    Args:
        cache: those of the run.
        node_folder: where the node keeps its copy (`search.node_folder`); None: no copy.

    Raises:
        DiskError: there is no room for the copy, or no copy can be made there.
    """
    if node_folder is None:
        return cache
    with _seen_from_here(cache.folder):
        description = (cache.folder / DESCRIPTION).read_bytes()
    copy = node_folder / f"unaries-{digest(cache.folder / DESCRIPTION)[:16]}"
    try:
        node_folder.mkdir(parents=True, exist_ok=True)
        with (node_folder / f"{copy.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_copied(cache.folder, copy):
                with appearing_whole(copy, replace=True) as unfinished:
                    _copy(cache.folder, unfinished, json.loads(description)["sha256"])
    except DiskError:
        raise
    except (OSError, InputError) as error:
        raise DiskError(f"search.node_folder: {node_folder}: no copy of the unaries can be made here: {error}") from None
    return UnaryCache(copy, cache.frames)


def _is_copied(folder: Path, copy: Path) -> bool:
    """A copy appears whole, but whatever tidies such folders may have taken files of it since."""
    names = [f"{name}.npy" for name in ARRAYS]
    return all((copy / name).is_file() and (copy / name).stat().st_size == (folder / name).stat().st_size for name in names)


def _copy(folder: Path, copy: Path, digests: dict[str, str]) -> None:
    for name in ARRAYS:
        path = copy / f"{name}.npy"
        shutil.copyfile(folder / path.name, path)
        if digest(path) != digests[name]:
            raise InputError(f"{folder / path.name}: altered since it was written, or on its way here")


def _computing(config: Config, store: Path, start: Path, device: torch.device) -> Callable[[tuple[int, ...]], list[Unaries]]:
    model, opened = trained_model(config, load_final(start), device=device), Store.open(store)
    return lambda frames: [compute_unaries(model, opened.frame(number), config, device=device) for number in frames]


def subset_labels(store: Path, frames: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    """The true labels of the subset, (H, W) each, in the order of `frames`."""
    opened = Store.open(store)
    missing = set(frames) - set(opened.train)
    if missing:
        raise InputError(f"{store}: validation frames {sorted(missing)} are not in its train split")
    return [opened.frame(number).labels for number in frames]
