"""Pictures of a search's trials as matplotlib figures: history, slices, parallel coordinates, importance, folds, front.

Not here: pictures of frames (figures.py), which trials there are (pipeline/study/figures.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from jointseg.figures import DPI, FAINT, INK, OURS, PAPERS

SHADES = colormaps["viridis"]
Value = float | int | str


@dataclass(frozen=True)
class Axis:
    """One parameter of the search."""

    name: str
    values: Sequence[Value | None]
    """Of each trial; None where it was not drawn."""
    log: bool
    """Whether it was searched on a log scale."""
    paper: Value | None
    """The paper's value; None where it has none."""

    @property
    def choices(self) -> list[str] | None:
        """The choices in order, where the values are no numbers."""
        if all(isinstance(value, int | float) for value in self.values if value is not None):
            return None
        return sorted({str(value) for value in self.values if value is not None})

    def places(self, values: Sequence[Value | None]) -> NDArray[np.float64]:
        """Where values lie on the axis: numbers as they are, choices at 0, 1, 2..; NaN where there is none."""
        choices = self.choices
        found = [math.nan if v is None else float(v) if choices is None else float(choices.index(str(v))) for v in values]
        return np.array(found, dtype=np.float64)


def search_history(scores: Sequence[float | None], *, stopped: Collection[int] = (), title: str = "") -> Figure:
    """Mean IoU of each trial in the order they were asked for, the best so far, and the paper's point, which is trial 0.

    Args:
        scores: shares of 1; None or NaN for a trial that failed, which is a cross on the lower edge.
        stopped: those without a score that did not fail but were stopped early: a triangle there.
        title: stands above the plot.
    """
    values = _numbers(scores)
    trials, scored = np.arange(len(values)), np.isfinite(values)
    figure = Figure(figsize=(8.0, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(trials[scored], values[scored], "o", color=OURS, alpha=0.45, markersize=5, markeredgewidth=0, label="trial")
    axes.step(trials, np.fmax.accumulate(values), where="post", color=OURS, linewidth=1.8, label="best so far")
    if scored.any():
        best = int(np.nanargmax(values))
        axes.plot(best, values[best], "o", color=OURS, markersize=9, markeredgecolor="white", label=f"best: {values[best]:.2%}")
    if scored[:1].any():
        papers = values[0]
        axes.axhline(papers, color=PAPERS, linewidth=1, linestyle=(0, (5, 3)), alpha=0.7)
        axes.plot(0, papers, "D", color=PAPERS, markersize=7, markeredgecolor="white", label=f"paper's point: {papers:.2%}")
    early = ~scored & np.isin(trials, list(stopped))
    for of, mark, name in ((~scored & ~early, "x", "failed"), (early, "v", "stopped early")):
        if of.any():
            edge = axes.get_xaxis_transform()
            axes.plot(trials[of], np.zeros(of.sum()), mark, color=FAINT, label=name, clip_on=False, transform=edge)
    axes.set_xlim(-0.5, max(len(values) - 0.5, 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    axes.set_xlabel("trial")
    axes.set_ylabel("mean IoU on the validation subset")
    _plain(axes, title)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def slices(axes: Sequence[Axis], scores: Sequence[float | None], *, title: str = "") -> Figure:
    """Mean IoU against each parameter, later trials darker, the paper's value marked.

    Args:
        axes: at least one parameter.
        scores: of each trial, shares of 1; None for one that failed.
        title: stands above the panels.
    """
    columns = min(4, len(axes))
    rows = math.ceil(len(axes) / columns)
    figure = Figure(figsize=(max(7.0, 2.9 * columns), 2.5 * rows + 0.4), dpi=DPI, layout="constrained")  # the title is as wide
    values, order = _numbers(scores), np.arange(len(scores))
    for place, axis in enumerate(axes):
        panel = figure.add_subplot(rows, columns, place + 1)
        panel.scatter(axis.places(axis.values), values, c=order, cmap="Blues", vmin=-len(scores) / 2, s=16, edgecolors="none")
        if axis.paper is not None and (axis.choices is None or str(axis.paper) in axis.choices):
            panel.axvline(float(axis.places([axis.paper])[0]), color=PAPERS, linewidth=1.2, linestyle=(0, (4, 2)))
        _scale(panel, axis)
        panel.set_xlabel(axis.name, fontsize=9)
        panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        _plain(panel)
    figure.suptitle(f"{title}  (dashed: the paper's value; darker: later)".strip(), x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def parallel_coordinates(axes: Sequence[Axis], scores: Sequence[float | None], *, title: str = "") -> Figure:
    """A line a trial through all parameters, coloured by mean IoU; the best on top, the paper's point in red.

    Args:
        axes: at least one parameter.
        scores: of each trial; those that failed are left out.
        title: stands above the plot.
    """
    figure = Figure(figsize=(max(5.0, 1.35 * len(axes) + 1.5), 4.2), dpi=DPI, layout="constrained")
    panel = figure.add_subplot()
    values = _numbers(scores)
    scored = np.flatnonzero(np.isfinite(values))
    low, high = (float(values[scored].min()), float(values[scored].max())) if len(scored) else (0.0, 1.0)
    shade = ScalarMappable(Normalize(low, max(high, low + 1e-6)), SHADES)
    heights = np.stack([_heights(axis) for axis in axes], axis=1)
    for trial in scored[np.argsort(values[scored])]:
        drawn = np.flatnonzero(np.isfinite(heights[trial]))  # a line goes on over what a trial did not draw
        own, colour = heights[trial][drawn], shade.to_rgba(values[trial])
        panel.plot(drawn, own, color=colour, linewidth=1.2, alpha=0.8, marker="o", markersize=2)
    papers = [_height_of(axis, axis.paper) for axis in axes]
    panel.plot(papers, color=PAPERS, linewidth=1.6, linestyle=(0, (5, 2)), marker="D", markersize=4, label="the paper's point")
    panel.set_xticks(range(len(axes)), [axis.name for axis in axes], fontsize=8)
    panel.set_yticks([])
    for place, axis in enumerate(axes):
        for height, text in _ends(axis):
            panel.annotate(text, (place, height), fontsize=7, ha="center", va="bottom" if height else "top", color=INK)
    panel.set_ylim(-0.09, 1.12)
    _plain(panel, title, grid=False)
    figure.colorbar(shade, ax=panel, format=PercentFormatter(xmax=1)).set_label("mean IoU", fontsize=9)
    panel.legend(loc="upper center", frameon=False, fontsize=8)
    return figure


def importance_bars(importance: Mapping[str, tuple[float, float]], *, left_out: Sequence[str] = (), title: str = "") -> Figure:
    """Share of the score's variance that each parameter explains by itself, and how far it moves from resample to resample.

    Args:
        importance: mean and standard deviation by parameter.
        left_out: parameters that have none, for not every trial draws them.
        title: stands above the bars.
    """
    names = sorted(importance, key=lambda name: importance[name][0])
    figure = Figure(figsize=(7.0, 0.34 * len(names) + 1.1), dpi=DPI, layout="constrained")
    panel = figure.add_subplot()
    means, deviations = zip(*(importance[name] for name in names), strict=True)
    panel.barh(names, means, xerr=deviations, color=OURS, alpha=0.8, error_kw={"ecolor": INK, "elinewidth": 1})
    left = f"\nnot drawn by every trial, and left out: {', '.join(left_out)}" if left_out else ""
    said = "share of the variance of mean IoU by itself (fANOVA); bars: ± one deviation over resampled trials"
    panel.set_xlabel(said + left, fontsize=8.5)
    panel.tick_params(labelsize=8.5)
    panel.set_xlim(left=0)
    _plain(panel, title, grid=False)
    return figure


def fold_spread(trials: Sequence[tuple[str, Sequence[float]]], *, title: str = "") -> Figure:
    """The folds' mean IoU of a few trials beside each other; one fold has one colour, the bar is the mean ± standard error.

    Args:
        trials: name and fold scores of each, in the order to show.
        title: stands above the plot.
    """
    figure = Figure(figsize=(max(5.0, 0.75 * len(trials) + 1.5), 3.8), dpi=DPI, layout="constrained")
    panel = figure.add_subplot()
    scores_TK = np.array([folds for _, folds in trials], dtype=np.float64)
    places, K = np.arange(len(trials)), scores_TK.shape[1]
    for fold in range(K):
        panel.plot(
            places, scores_TK[:, fold], "-o", color=SHADES(fold / max(K - 1, 1)), linewidth=0.7, alpha=0.75, markersize=4,
            label=f"fold {fold}",
        )  # fmt: skip
    error = scores_TK.std(1, ddof=1) / math.sqrt(K)
    panel.errorbar(places, scores_TK.mean(1), error, fmt="s", color=INK, capsize=4, markersize=5, label="mean ± standard error")
    panel.set_xticks(places, [name for name, _ in trials], fontsize=8)
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    panel.set_ylabel("mean IoU of a fold")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=math.ceil((K + 1) / 2))
    _plain(panel, title)
    return figure


def pareto(
    trials: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float]],
    *,
    paper: tuple[float, float] | None,
    second: str,
    title: str = "",
) -> Figure:
    """Two objectives against each other, and the front that no trial beats.

    Args:
        trials: mean IoU and the second objective of each finished trial.
        front: those of the front.
        paper: those of the paper's point; None where it has none.
        second: what the second objective is called.
        title: stands above the plot.
    """
    figure = Figure(figsize=(6.0, 4.2), dpi=DPI, layout="constrained")
    panel = figure.add_subplot()
    panel.plot(*_turned(trials), "o", color=FAINT, markersize=4, label="trial")
    panel.plot(*_turned(sorted(front, key=lambda point: point[1])), "-o", color=OURS, markersize=6, label="front")
    if paper is not None:
        panel.plot(*_turned([paper]), "D", color=PAPERS, markersize=7, label="the paper's point")
    panel.set_xlabel(second)
    panel.set_ylabel("mean IoU")
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    panel.legend(frameon=False, fontsize=8)
    _plain(panel, title)
    return figure


def _turned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [second for _, second in points], [first for first, _ in points]


def _numbers(scores: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if score is None else score for score in scores], dtype=np.float64)


def _ranged(axis: Axis, places: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(places) if axis.log else places


def _heights(axis: Axis) -> NDArray[np.float64]:
    """Where each trial crosses the axis, 0..1 over the values drawn."""
    low, high = _range(axis)
    heights: NDArray[np.float64] = (_ranged(axis, axis.places(axis.values)) - low) / (high - low)
    return heights


def _range(axis: Axis) -> tuple[float, float]:
    values = [*axis.values, *([axis.paper] if axis.choices is None else [])]
    found = _ranged(axis, axis.places(values))
    low, high = float(np.nanmin(found)), float(np.nanmax(found))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _height_of(axis: Axis, value: Value | None) -> float:
    if value is None or (axis.choices is not None and str(value) not in axis.choices):
        return math.nan
    low, high = _range(axis)
    return float((_ranged(axis, axis.places([value]))[0] - low) / (high - low))


def _ends(axis: Axis) -> list[tuple[float, str]]:
    choices = axis.choices
    if choices is not None:
        return [(_height_of(axis, choice), choice) for choice in choices]
    low, high = _range(axis)
    return [(height, f"{math.exp(end) if axis.log else end:.3g}") for height, end in ((0.0, low), (1.0, high))]


def _scale(panel: Axes, axis: Axis) -> None:
    if axis.log:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    if axis.choices is not None:
        panel.set_xticks(range(len(axis.choices)), axis.choices, fontsize=8)
    panel.tick_params(labelsize=8)


def _plain(panel: Axes, title: str = "", *, grid: bool = True) -> None:
    panel.set_title(title, loc="left", fontsize=11, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
    if grid:
        panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
