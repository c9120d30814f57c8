"""The scene type of each frame (kitchen, office, ...), where NYU's file has them. Not here: the frames (nyu.py)."""

from __future__ import annotations

import h5py
import numpy as np

DATASET = "sceneTypes"


def read_scene_types(mat: h5py.File, num_frames: int) -> tuple[str, ...] | None:
    """The scene type of each frame, in order; None where the file has none, or not one for each frame.

    They only balance folds, so a file without them is as good.
    """
    try:
        references = np.asarray(mat[DATASET]).ravel()
        if len(references) != num_frames or references.dtype != h5py.ref_dtype:
            return None
        return tuple("".join(map(chr, np.asarray(mat[reference]).ravel().tolist())) for reference in references)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError):
        return None
