"""What parts that are optional need of a machine, and whether it is there.

Not here: the kernels that need it (crf/filters/, network/upsample_kernels.py).
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.util import find_spec


def missing_for_triton() -> str | None:
    """What Triton needs and is missing: the package, which torch's CUDA builds bring, or a C compiler for its launcher.

    None where all is there.
    """
    if find_spec("triton") is None:
        return "the triton package"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not os.environ.get("CC") and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "a C compiler for Triton (cc, gcc or clang)"
    return None


@cache
def has_triton() -> bool:
    """Whether Triton runs here; looked up once."""
    return missing_for_triton() is None
