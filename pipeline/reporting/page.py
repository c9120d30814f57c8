"""The report as a Markdown page, and as what the command line prints at the end.

Not here: what it says (tables.py), the files (pipeline/report.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from jointseg.published import ROW_NAMES
from pipeline.provenance import hardware_line, versions_line
from pipeline.reporting.confusions import confusion_table
from pipeline.reporting.search import crf_table, fold_note, fold_table, search_finding, search_note, was_searched
from pipeline.reporting.tables import (
    Finding,
    Report,
    Table,
    data_line,
    depth_table,
    findings,
    frames_line,
    protocol,
    rules_table,
    segmentation_table,
    views_line,
)

ROWS = (
    ("unary_sem", "the network alone, stage 1: classes only"),
    ("unary_sem_depth", "the network alone, stage 2: classes and depth"),
    ("sem_crf", "with the CRF on colour and position, its own stage 3"),
    ("sem_crf_plus", "with the CRF on colour, position and estimated depth, its own stage 3"),
)


def markdown(report: Report, *, name: str, figures: Mapping[str, str]) -> str:
    """The page, ending in a newline.

    Args:
        report: the contents of report.json.
        name: of the run, for the title.
        figures: caption of each picture, by its path from the page.
    """
    rows = "; ".join(f"**{ROW_NAMES[row]}** {meaning}" for row, meaning in ROWS if row in report["table3"])
    sections = [
        f"# Results of `{name}`",
        data_line(report),
        *_section("Table 3: semantic segmentation, %", _grid(segmentation_table(report, rivals=True))),
        f"{rows}.",
        *_section("Table 2: depth", _grid(depth_table(report, rivals=True))),
        "↑ higher, ↓ lower is better; si: scale-invariant.",
        *_section("Classes that the paper names as confused", _grid(confusion_table(report))),
        *_section("How they were taken", _bullets(protocol(report))),
        *(_section("The same predictions by other rules", _grid(rules_table(report))) if report["rules"] else ()),
        *_section("What the numbers say", _bullets(_marked(report))),
        *_section("CRF settings", _grid(crf_table(report), text_columns=3)),
        search_note(report),
        *((_grid(fold_table(report)), fold_note(report)) if was_searched(report) else ()),
        *_section("Pictures", "\n\n".join(f"![{caption}]({path})\n\n*{caption}*" for path, caption in figures.items())),
        *_section("Seconds", f"A phase that was interrupted counts from where it last went on.\n\n{_grid(_seconds(report))}"),
        *_section("Where it comes from", _provenance(report)),
    ]
    return "\n\n".join(sections) + "\n"


def description(report: Report) -> str:
    """The two tables, what the numbers say and the CRF settings, in Markdown that stands alone."""
    sections = [
        data_line(report),
        frames_line(report),
        *filter(None, [views_line(report)]),
        *_section("Table 3: semantic segmentation, %", _grid(segmentation_table(report, rivals=False))),
        *_section("Table 2: depth", _grid(depth_table(report, rivals=False))),
        *_section("What the numbers say", _bullets(_marked(report))),
        *_section("CRF settings", _grid(crf_table(report), text_columns=3)),
        "Protocol, pictures and where the numbers come from: `report.html` among the artifacts.",
    ]
    return "\n\n".join(sections)


def terminal(report: Report, *, out: str, page: str = "report.html", mlflow: str | None = None) -> RenderableType:
    """The two tables with their floors, the CRF settings, what speaks against them, and where to look next.

    Args:
        report: the contents of report.json.
        out: the run's folder, as the reader would type it.
        page: the file there with the whole report.
        mlflow: where MLflow's runs are, if no command of ours shows them.
    """
    said = [data_line(report).replace("`", ""), frames_line(report), views_line(report)]
    parts: list[RenderableType] = [Text(line, style="dim") for line in filter(None, said)]
    parts += [_rich(segmentation_table(report)), _rich(depth_table(report)), _rich(crf_table(report), text_columns=3)]
    for finding in _all_findings(report):
        parts.append(Text(f"{'!' if finding.against else '·'} {finding.text}", style="yellow" if finding.against else ""))
    places = {
        f"{out}/{page}": "these tables with all notes and pictures",
        f"{out}/figures/": "predictions beside the truth, and the search",
        mlflow or f"jointseg ui --out {shlex.quote(out)}": "every curve, trial and file, in MLflow",
    }
    look = Text("\nWhere to look next", style="bold")
    for place, what in places.items():
        look.append(f"\n  {place.ljust(max(map(len, places)))}", style="not bold cyan").append(f"  {what}", style="not bold")
    return Group(*parts, look)


def _section(title: str, body: str) -> tuple[str, str]:
    return f"## {title}", body


def _grid(table: Table, *, text_columns: int = 1) -> str:
    rule = ["---" if column < text_columns else "---:" for column in range(len(table.header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.rows))


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _all_findings(report: Report) -> list[Finding]:
    return [*findings(report), search_finding(report)]


def _marked(report: Report) -> list[str]:
    return [f"**{finding.text}**" if finding.against else finding.text for finding in _all_findings(report)]


def _seconds(report: Report) -> Table:
    seconds = report["seconds"]
    rows = [(phase, f"{value:.1f}") for phase, value in seconds.items()]
    return Table("Seconds", ("phase", "s"), (*rows, ("together", f"{sum(seconds.values()):.1f}")))


def _provenance(report: Report) -> str:
    found: Mapping[str, Any] = report["provenance"]
    others = {phase: commit for phase, commit in report["commits"].items() if commit != found["commit"]}
    lines = {
        "commit": f"`{found['commit']}`" if found["commit"] else "not known (the code does not lie in its git repository)",
        **({"other commits": ", ".join(f"{phase} `{commit}`" for phase, commit in others.items())} if others else {}),
        "versions": versions_line(found["versions"]),
        "hardware": hardware_line(found["hardware"]),
        "seeds": ", ".join(f"{path} {seed}" for path, seed in found["seeds"].items()),
        "data": f"`{report['data']['digest']}`",
        "config": "`config.json` beside this page",
    }
    bullets = [*(f"{name}: {text}" for name, text in lines.items()), *report.get("notes", [])]  # which older reports have not
    again = "Again, on that commit:" if found["commit"] else "Again:"
    if str(found["commit"]).endswith("-dirty"):
        again = "Again, though the code had changes that are in no commit:"
    return f"{_bullets(bullets)}\n\n{again}\n\n```\n{found['command']}\n```"


def _rich(table: Table, *, text_columns: int = 1) -> RenderableType:
    grid = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, title in enumerate(table.header):
        papers = title == "paper"
        grid.add_column(
            title.replace("+Depth", "\n+Depth") if column else title,  # which 80 columns have no room for in one line
            justify="left" if column < text_columns else "right",
            style="dim" if papers else "",
            no_wrap=column == 0,
        )
    for cells in table.rows:
        grid.add_row(*cells, style="dim" if cells[0].startswith("floor") else "")
    return Padding(grid, (1, 0, 0, 0))
