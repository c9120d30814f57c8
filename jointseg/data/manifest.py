"""The list of training views kept as a Parquet file: the very views that a run trained on; or, where views are drawn at each
visit, the frames that they were drawn from, which with the seeds beside them and the config say the same.

Not here: how views are made or rendered (views.py), which are drawn at a visit (augment.py). Needs pyarrow, which nothing else
in this package does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jointseg.data.views import View
from jointseg.errors import InputError, one_line
from jointseg.whole import replacing_whole

_SCHEMA = pa.schema(
    {
        "frame": pa.int32(),
        "kind": pa.string(),
        "top": pa.int32(),
        "left": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "zoom": pa.float64(),
        "mirror": pa.bool_(),
        "order": pa.int32(),
    }
)
_ORIGIN = b"jointseg"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a list of views comes from."""

    seeds: Mapping[str, int]
    """Every seed that had a part in it, by its config path."""
    store_digest: str
    """Digest of the store whose frames they are views of."""


def write_manifest(views: Sequence[View], path: Path, *, seeds: Mapping[str, int], store_digest: str) -> None:
    """Write the views in training order (column `order`); the file appears whole or not at all.

    Raises:
        InputError: the disk is full, failing or read-only.
    """
    columns: dict[str, list[Any]] = {
        field.name: [getattr(view, field.name) for view in views] for field in dataclasses.fields(View)
    }
    columns["order"] = list(range(len(views)))
    origin = json.dumps({"seeds": dict(seeds), "store_digest": store_digest}).encode()
    table = pa.table(columns, schema=_SCHEMA.with_metadata({_ORIGIN: origin}))
    with replacing_whole(path) as partial:
        pq.write_table(table, partial)


def read_manifest(path: Path) -> tuple[View, ...]:
    """The views in training order, equal to those that were written.

    Raises:
        InputError: there is no such file, or it is no list of views.
    """
    rows = _read(path).sort_by("order").drop_columns("order").to_pylist()
    return tuple(View(**row) for row in rows)


def read_origin(path: Path) -> Origin:
    """The seeds and the store digest kept with the views.

    Raises:
        InputError: there is no such file, or it is no list of views.
    """
    return Origin(**json.loads(_read(path).schema.metadata[_ORIGIN]))


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {one_line(error)}") from None
    if not table.schema.equals(_SCHEMA) or _ORIGIN not in (table.schema.metadata or {}):
        raise InputError(f"{path}: not a list of views; its columns: {', '.join(table.schema.names)}")
    return table
