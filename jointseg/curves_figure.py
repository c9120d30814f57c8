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
        reports: by the stage's name: what each told on its way, with its `step` from 1. Of a step told twice, by a run that was
            resumed, the first counts.
        title: stands above.
    """
    told = {stage: {int(own["step"]): own for own in reversed(lines)} for stage, lines in reports.items()}
    begins: dict[str, int] = {}
    for stage in sorted(told, key=lambda name: TRAININGS[name].num_before):
        before = TRAININGS[stage].starts_from
        begins[stage] = begins[before] + max(told[before], default=0) if before in told else 0
    end = max((begins[stage] + max(by_step, default=0) for stage, by_step in told.items()), default=0)
    panels = [name for name in PANELS if any(name in own for by_step in told.values() for own in by_step.values())]
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(6.0 * columns, 3.0 * rows + 0.6), dpi=DPI, layout="constrained")
    drawn: dict[str, Line2D] = {}
    for place, name in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for stage, by_step in told.items():
            points = [(begins[stage] + step, own[name]) for step, own in sorted(by_step.items()) if name in own]
            if points:
                mark = "o-" if name.startswith("validation/") or len(points) == 1 else "-"
                (line,) = axes.plot(*zip(*points, strict=True), mark, color=COLOURS.get(stage), linewidth=1.4, markersize=5)
                drawn.setdefault(stage, line)
        low, high = axes.get_ylim()
        middle, half = (low + high) / 2, max(high - low, LEAST_SPAN * (low + high) / 2) / 2
        axes.set_ylim(middle - half, middle + half)
        if name == "validation/mean_iou":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.set_xlim(0, 1.02 * max(end, 1))
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
