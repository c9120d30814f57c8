"""How functions are compiled: without Python's lock, and kept on disk for later processes, if numba can.

Not here: the functions.
"""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from inspect import signature
from pathlib import Path
from typing import Any

import numba
from numba.core import config

from jointseg.errors import InputError

try:
    from numba.core.caching import IndexDataCacheFile
except ImportError:  # it is numba's own, and may be gone from a later one
    IndexDataCacheFile = object

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


_TAKEN = {"__init__": 4, "save": 3, "load": 2, "_save_data": 3, "_load_data": 2}
"""What `KeptCode` counts on: methods, and how many arguments they take."""


@cache
def _check_numba() -> None:
    for method, count in _TAKEN.items():
        if len(signature(getattr(IndexDataCacheFile, method)).parameters) != count:
            raise AttributeError(f"IndexDataCacheFile.{method} takes other arguments")


@cache
def _warn(reason: str) -> None:
    known = "keeps compiled code in another way than jointseg.crf knows"
    warnings.warn(f"numba {numba.__version__} {known} ({reason}): each process compiles for itself", stacklevel=2)


def _keep(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Have `KeptCode` keep what is compiled.

    Numba keeps it until the function's own file is touched, and would miss that what it calls has changed. Each version of this
    folder has files of its own: another's may name classes that are no more.

    Raises:
        AttributeError: this numba does not do it as others did.
    """
    _check_numba()
    kept_by = dispatcher._cache
    kept = KeptCode(_folder(kept_by._cache_path), kept_by._impl.filename_base, _stamp(function))
    if not isinstance(kept_by._cache_file, IndexDataCacheFile):
        raise AttributeError("its _cache_file is another")
    kept_by._cache_file = kept


def _kept(function: Callable[..., Any], **options: Any) -> Any:
    anew = numba.njit(nogil=True, error_model="numpy", **options)
    try:
        dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # no folder that it may write to, beside this one or in the user's home: each process compiles anew
        return anew(function)
    if config.DISABLE_JIT:  # NUMBA_DISABLE_JIT: it is the function itself
        return dispatcher
    try:
        _keep(dispatcher, function)
    except AttributeError as error:
        _warn(str(error))
        return anew(function)
    return dispatcher


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls.

    Where NUMBA_DISABLE_JIT is set it raises InputError once it is called: Python has no vectors to do it with.
    """
    return _refused(function) if config.DISABLE_JIT else _kept(function)


def _refused(function: Callable[..., Any]) -> Any:
    @wraps(function)
    def refused(*_: Any) -> None:
        raise InputError("NUMBA_DISABLE_JIT is set, but this has to be compiled; allowed: without it, or filter='exact'")

    refused.compile = refused  # type: ignore[attr-defined]  # what `resolved` calls
    return refused


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
