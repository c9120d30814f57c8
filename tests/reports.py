"""What a test reads from a run's report, and changes beneath it. Not here: the runs themselves (made_up_runs.py)."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from pipeline import report
from pipeline.evaluation_files import METRICS
from pipeline.reporting.page import markdown
from pipeline.workspace import Workspace

# Share of pixels that each row gets wrong: the full CRF below the rows before it.
WRONG = {"unary_sem": 0.6, "unary_sem_depth": 0.5, "sem_crf": 0.4, "sem_crf_plus": 0.55}
SCORES = [0.105, 0.110, None, 0.120]


def edit_metrics(place: Workspace, change: dict[str, Any], *, row: str) -> None:
    path = place.evaluation / METRICS
    content = json.loads(path.read_text())
    content["rows"][row].update(change)
    path.write_text(json.dumps(content))


def edit_search(place: Workspace, change: dict[str, Any]) -> None:
    place.crf_settings.write_text(json.dumps(json.loads(place.crf_settings.read_text()) | change))


def contents(place: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.out / "report.json").read_text())
    return found


def page(place: Workspace) -> str:
    return (place.out / "report.md").read_text()


def page_of(found: dict[str, Any]) -> str:
    """The page of such contents."""
    return markdown(found, name="small", figures={})


def cells(place: Workspace, name: str) -> list[str]:
    """The cells of the page's first table line that begins with this name."""
    line = next(line for line in page(place).splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def on_terminal(place: Workspace) -> str:
    screen = io.StringIO()
    Console(width=100, file=screen).print(report.summary(place))
    return screen.getvalue()
