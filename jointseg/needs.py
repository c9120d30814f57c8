"""What parts that are optional need of a machine, and whether it is there.

Not here: the kernels that need it (crf/filters/, network/upsample_kernels.py).
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def missing_for_triton() -> str | None:
    """What Triton needs and is missing: the package, which torch's CUDA builds bring; for its launcher a C compiler and
    Python's headers; a folder for what it has compiled.

    None where all is there.
    """
    if find_spec("triton") is None:
        return "the triton package"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):
        return "a C compiler for Triton (gcc, clang, or what CC names)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does for Debian's Python
    headers = Path(sysconfig.get_paths(scheme)["include"])
    if not (headers / "Python.h").is_file():
        return f"Python's headers for Triton (no {headers / 'Python.h'}; on Debian the package python3-dev)"
    kept = _triton_cache()
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"a folder for Triton's code ({kept}: {error.strerror}; TRITON_CACHE_DIR names another)"
    return None


def _triton_cache() -> Path:
    own = os.environ.get("TRITON_CACHE_DIR")
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path's raises where there is none
    return Path(own) if own else Path(home) / ".triton" / "cache"


@cache
def has_triton() -> bool:
    """Whether Triton runs here; looked up once."""
    return missing_for_triton() is None
