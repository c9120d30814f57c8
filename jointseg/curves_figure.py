"""How training went: losses and validation scores of every stage, one after the other. Needs matplotlib.

Not here: the other figures (figures.py), where the file goes (pipeline/report.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jointseg.stages import TRAININGS

DPI = 130
PANELS = {
    "loss/semantic": "semantic loss, training",
    "loss/depth": "depth loss, training",
    "validation/mean_iou": "mean IoU, validation",
    "validation/rmse": "RMSE of depth, validation, m",
}
"""What is drawn, by its name in a stage's log."""
LEAST_SPAN = 0.05
"""Of a panel's heights, beside the values: so that noise looks like noise."""
COLOURS = {"one_stage": "#6b46c1", "stage1": "#2b6cb0", "stage2": "#c0392b", "stage3_sem_crf": "#b7791f", "stage3": "#2f855a"}


def training_curves(reports: Mapping[str, Sequence[Mapping[str, float]]], *, title: str = "") -> Figure:
    """A panel for each loss and score that was reported, steps to the right: a stage begins where the one it starts from ended,
    so that both stages 3 lie over each other.

    Args:
        reports: by the stage's name: what each told on its way, in step order, with its `step` from 1.
        title: stands above.
    """
    begins: dict[str | None, float] = {}
    ends: dict[str | None, float] = {}
    for stage in sorted(reports, key=lambda name: TRAININGS[name].num_before):
        begins[stage] = ends.get(TRAININGS[stage].starts_from, 0)
        ends[stage] = begins[stage] + (reports[stage][-1]["step"] if reports[stage] else 0)
    panels = [name for name in PANELS if any(name in own for lines in reports.values() for own in lines)]
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(6.0 * columns, 3.0 * rows + 0.6), dpi=DPI, layout="constrained")
    drawn: dict[str, Line2D] = {}
    for place, name in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for stage, lines in reports.items():
            points = [(begins[stage] + own["step"], own[name]) for own in lines if name in own]
            if points:
                mark = "o-" if name.startswith("validation/") or len(points) == 1 else "-"
                (line,) = axes.plot(*zip(*points, strict=True), mark, color=COLOURS.get(stage), linewidth=1.4, markersize=5)
                drawn.setdefault(stage, line)
        low, high = axes.get_ylim()
        middle, half = (low + high) / 2, max(high - low, LEAST_SPAN * (low + high) / 2) / 2
        axes.set_ylim(middle - half, middle + half)
        if name == "validation/mean_iou":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.set_xlim(0, 1.02 * max(1, *ends.values()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(PANELS[name], loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    if drawn:
        figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
