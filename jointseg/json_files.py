"""JSON as it is written everywhere, readable by any parser: it has no NaN, which becomes null.

Not here: files of one JSON line a record (pipeline/log_lines.py), what is in a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jointseg.errors import InputError, one_line
from jointseg.whole import write_atomically


def as_json(content: Any) -> str:
    """Text of plain values, mappings and sequences, NaN as null."""
    return json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write `as_json`, all or nothing.

    Raises:
        DiskError: the disk is full.
    """
    write_atomically(path, as_json(content))


def read_json(path: Path) -> Any:
    """What is in a file.

    Raises:
        InputError: it is missing, may not be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON: {one_line(error)}") from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
