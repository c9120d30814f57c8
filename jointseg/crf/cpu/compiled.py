"""How functions are compiled: without Python's lock, and kept on disk for later processes, if numba can.

Not here: the functions.
"""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import IndexDataCacheFile

_HERE = b"\0".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))


def _stamp(function: Callable[..., Any]) -> str:
    """Changes with any file of this folder, with the function's own, and with numba."""
    parts = (numba.__version__.encode(), _HERE, Path(function.__code__.co_filename).read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


class KeptCode(IndexDataCacheFile):
    """A function's compiled versions on disk, a file each, named by what it was compiled for.

    Numba numbers the files and has an index, which it reads, changes and writes: of two processes that compile at the same time
    both may take one number, and a later one would load the other's code.
    """

    def __init__(self, folder: str, function: str, stamp: str) -> None:
        super().__init__(folder, f"{function}-{stamp}", stamp)
        self._function, self._stamp = function, stamp

    def save(self, key: Any, data: Any) -> None:
        """Keep it, and throw away what earlier versions of the package kept of this function; not where the disk is full."""
        with suppress(OSError):
            self._save_data(self._file_of(key), (key, data))
            for file in Path(self._cache_path).glob(f"{glob.escape(self._function)}-*.nb[ci]"):
                if not file.name.startswith(f"{self._function}-{self._stamp}."):
                    file.unlink(missing_ok=True)

    def load(self, key: Any) -> Any:
        """What was kept for this key, or None; so also where a machine that went down has left half a file."""
        try:
            kept_key, data = self._load_data(self._file_of(key))
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        return data if kept_key == key else None

    def _file_of(self, key: Any) -> str:
        return f"{self._function}-{self._stamp}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"


def _folder(numbas: str) -> str:
    """Where code is kept: where numba would, but not beside an installed package.

    Uninstalling it would leave that there, as a package without files that may hide a later installation.
    """
    if config.CACHE_DIR or not {"site-packages", "dist-packages"} & set(Path(numbas).parts):
        return numbas
    package = Path(__file__).parent
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jointseg"
        kept /= hashlib.sha256(bytes(package)).hexdigest()[:12]
        kept.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or no room in it
        return numbas
    return str(kept) if os.access(kept, os.W_OK) else numbas


def _kept(function: Callable[..., Any], **options: Any) -> Any:
    try:
        dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # no folder that it may write to, beside this one or in the user's home: each process compiles anew
        return numba.njit(nogil=True, error_model="numpy", **options)(function)
    cache: Any = getattr(dispatcher, "_cache", None)
    if cache is None:  # NUMBA_DISABLE_JIT: it is the function itself
        return dispatcher
    # Numba keeps what it compiled until the function's own file is touched, and would miss that what it calls has changed. Each
    # version of this folder has files of its own: another's may name classes that are no more.
    cache._cache_file = KeptCode(_folder(cache._cache_path), cache._impl.filename_base, _stamp(function))
    return dispatcher


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls."""
    return _kept(function)


_entries: dict[tuple[Any, ...], Callable[..., Any]] = {}


def resolved(function: Any, *arguments: Any) -> Callable[..., Any]:
    """The version of a compiled function for arguments of these types: to look at them again takes half a millisecond.

    What is known is not asked of numba again: it takes a lock for it, and a child forked meanwhile would wait for ever.
    """
    types = tuple(map(numba.typeof, arguments))
    if (function, types) not in _entries:
        _entries[function, types] = function.compile(types)
    return _entries[function, types]


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled ones call: in half the time."""
    return _kept(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)
