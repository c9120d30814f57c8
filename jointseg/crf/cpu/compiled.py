"""How functions are compiled: without Python's lock, and kept on disk for later processes, if numba can.

Not here: the functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile

_HERE = b"\0".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))


def _stamp(function: Callable[..., Any]) -> str:
    """Changes with any file of this folder, and with the function's own."""
    return hashlib.sha256(_HERE + b"\0" + Path(function.__code__.co_filename).read_bytes()).hexdigest()


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
    stamp = _stamp(function)
    cache._cache_file = IndexDataCacheFile(cache._cache_path, f"{cache._impl.filename_base}-{stamp[:12]}", stamp)
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
