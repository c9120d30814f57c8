"""How often each row takes one class for another, of the pairs that the paper names.

Not here: the whole confusion matrices (evaluation/confusion_ROW.parquet, written by pipeline/report.py), how a page shows them.
"""

from __future__ import annotations

import pyarrow.parquet as pq

from jointseg.published import ROW_NAMES
from pipeline.notation import NONE
from pipeline.reporting.tables import Report, Table
from pipeline.workspace import Workspace

NAMED_PAIRS = (("pillow", "sofa"), ("books", "bookshelf"), ("sink", "counter"))
"""What the paper says that depth tells apart (1, and 4.2 on Fig 4)."""


def confusion_name(row: str) -> str:
    """What a row's whole matrix is called in the evaluation's folder."""
    return f"confusion_{row}.parquet"


def named_confusions(place: Workspace) -> dict[str, dict[str, float | None]]:
    """For each `true class > predicted class`, by row: the share of the true class's pixels that go to the other.

    None where the true class has no pixel.
    """
    found: dict[str, dict[str, float | None]] = {}
    for row in ROW_NAMES:
        path = place.evaluation / confusion_name(row)
        if not path.is_file():
            continue
        table = pq.read_table(path).to_pydict()
        line = {name: i for i, name in enumerate(table.pop("truth"))}
        for pair in NAMED_PAIRS:
            for truth, predicted in (pair, pair[::-1]):
                whole = sum(column[line[truth]] for column in table.values())
                share = table[predicted][line[truth]] / whole if whole else None
                found.setdefault(f"{truth} > {predicted}", {})[row] = share
    return found


def confusion_table(report: Report) -> Table:
    """Those shares, a pair a line and a row of Table 3 a column."""
    rows = [row for row in ROW_NAMES if any(row in shares for shares in report["confusions"].values())]
    lines = [
        (pair, *(NONE if shares.get(row) is None else f"{shares[row]:.1%}" for row in rows))
        for pair, shares in report["confusions"].items()
    ]
    return Table("Confusions", ("true > predicted", *(ROW_NAMES[row] for row in rows)), tuple(lines))
