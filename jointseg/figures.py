"""The paper's figures 2 and 3 and an overview of a prediction, as matplotlib figures, and PNG files of them. Needs matplotlib.

Not here: a search's (search_figures.py), which frames are drawn and where the files go (pipeline/report.py), the
colours of classes (labels.py).
"""

# H x W a frame; sizes on the sheet are inches, (0, 0) its lower left corner

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from jointseg.data.frame import Frame, valid_depth
from jointseg.evaluation import Prediction
from jointseg.labels import CLASS_NAMES, PALETTE, VOID, colourise
from jointseg.whole import replacing_whole

Draw: TypeAlias = Callable[[Axes, Frame], object]
Labels: TypeAlias = NDArray[np.uint8]
Depth: TypeAlias = NDArray[np.float32]

DPI = 150
PANEL_WIDTH, MAX_PANEL_HEIGHT, GAP, MARGIN = 2.5, 7.5, 0.07, 0.3
NAME_SIZE = 6.5  # points
LEGEND_CELL, LEGEND_LINE, BAR_ROOM = 1.4, 0.21, 0.75
INK, FAINT, OURS, PAPERS = "#1b1b1b", "#9a9a9a", "#2b6cb0", "#c0392b"


def qualitative(frames: Sequence[Frame], predictions: Mapping[int, Prediction], *, title: str = "") -> Figure:
    """The paper's Fig 2: a frame a line; image, true and predicted classes, raw and estimated depth.

    Depths share one colour scale; missing depth and unlabelled pixels are black. Predictions without depth leave out its
    two columns.

    Args:
        frames: at least one, of one size.
        predictions: by frame number.
        title: stands above the columns' names.
    """
    predicted = [predictions[frame.number] for frame in frames]
    columns: dict[str, Draw] = {
        "image": lambda axes, frame: axes.imshow(frame.image),
        "true classes": lambda axes, frame: _draw_classes(axes, frame.labels),
        "predicted classes": lambda axes, frame: _draw_classes(axes, predictions[frame.number].labels),
    }
    shown = [frame.labels for frame in frames] + [prediction.labels for prediction in predicted]
    estimated = [prediction.depth for prediction in predicted if prediction.depth is not None]
    if len(estimated) < len(frames):
        return _sheet(frames, columns, shown, title=title)
    scale = _depth_scale([frame.raw_depth for frame in frames] + estimated)
    columns["raw depth"] = lambda axes, frame: _draw_depth(axes, frame.raw_depth, scale)
    columns["estimated depth"] = lambda axes, frame: _draw_depth(axes, predictions[frame.number].depth, scale)
    return _sheet(frames, columns, shown, title=title, scale=scale)


def with_and_without_crf(
    frames: Sequence[Frame], with_crf: Mapping[int, Prediction], without_crf: Mapping[int, Prediction], *, title: str = ""
) -> Figure:
    """The paper's Fig 3: a frame a line; image, true classes, classes with the CRF, classes without it.

    Args:
        frames: at least one, of one size.
        with_crf: predictions by frame number.
        without_crf: predictions by frame number.
        title: stands above the columns' names.
    """
    return side_by_side(frames, {"with CRF": with_crf, "without CRF": without_crf}, title=title)


def side_by_side(frames: Sequence[Frame], predictions: Mapping[str, Mapping[int, Prediction]], *, title: str = "") -> Figure:
    """A frame a line; image, true classes, then the classes of each set of predictions.

    Args:
        frames: at least one, of one size.
        predictions: by frame number, by the name of their column.
        title: stands above the columns' names.
    """

    def classes_of(own: Mapping[int, Prediction]) -> Draw:
        return lambda axes, frame: _draw_classes(axes, own[frame.number].labels)

    columns: dict[str, Draw] = {
        "image": lambda axes, frame: axes.imshow(frame.image),
        "true classes": lambda axes, frame: _draw_classes(axes, frame.labels),
        **{name: classes_of(own) for name, own in predictions.items()},
    }
    shown = [frame.labels for frame in frames]
    shown += [own[frame.number].labels for own in predictions.values() for frame in frames]
    return _sheet(frames, columns, shown, title=title)


def prediction_sheet(image: NDArray[np.uint8], prediction: Prediction) -> Figure:
    """One picture, (H, W, 3) RGB, the classes predicted for it, and the depth where there is one.

    Of a large one only each second, third, ... row and column is drawn, and counts for the legend and the depth's scale.
    """
    step = _pixels_to_one_drawn(*image.shape[:2])
    image = np.asarray(Image.fromarray(image).reduce(step))  # means of step x step; classes and depths must not be mixed
    depth = None if prediction.depth is None else prediction.depth[::step, ::step]
    prediction = Prediction(prediction.labels[::step, ::step], depth)
    nothing = np.full(image.shape[:2], VOID, np.uint8)
    no_depth = np.zeros(image.shape[:2], np.float32)
    frame = Frame(0, image, nothing, no_depth, no_depth)
    columns: dict[str, Draw] = {
        "image": lambda axes, frame: axes.imshow(frame.image),
        "classes": lambda axes, _: _draw_classes(axes, prediction.labels),
    }
    if prediction.depth is None:
        return _sheet([frame], columns, [prediction.labels], title="", names=[""])
    scale = _depth_scale([prediction.depth])
    columns["depth"] = lambda axes, _: _draw_depth(axes, prediction.depth, scale)
    return _sheet([frame], columns, [prediction.labels], title="", scale=scale, names=[""])


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure so that `path` holds a whole PNG or what it held before.

    Raises:
        DiskError: the disk is full.
    """
    with replacing_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, facecolor="white")


def _sheet(
    frames: Sequence[Frame],
    columns: Mapping[str, Draw],
    labels: Sequence[Labels],
    *,
    title: str,
    scale: ScalarMappable | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Panels of one size, a frame a line, above a legend of the classes in `labels`; `scale` gets a colour bar.

    `names` stand beside the lines; None: the frames' numbers.
    """
    assert frames, "no frame to draw"
    height, width = frames[0].labels.shape
    high = min(PANEL_WIDTH * height / width, MAX_PANEL_HEIGHT)
    wide = max(min(high * width / height, PANEL_WIDTH), PANEL_WIDTH / 8)
    across, down = wide + GAP, high + GAP
    sheet_width = MARGIN + len(columns) * across + (BAR_ROOM if scale is not None else GAP)
    entries = _legend_entries(labels)
    cells = max(1, int(sheet_width / LEGEND_CELL))
    legend_height = 0.2 + LEGEND_LINE * math.ceil(len(entries) / cells)
    top = 0.6 if title else 0.3
    sheet_height = legend_height + len(frames) * down + top
    figure = Figure(figsize=(sheet_width, sheet_height), dpi=DPI)

    def place(left: float, bottom: float, length: float, rise: float) -> Axes:
        return figure.add_axes((left / sheet_width, bottom / sheet_height, length / sheet_width, rise / sheet_height))

    names = names or [f"frame {frame.number}" for frame in frames]
    for line, frame in enumerate(frames):
        bottom = sheet_height - top - (line + 1) * down + GAP
        for column, (name, draw) in enumerate(columns.items()):
            axes = place(MARGIN + column * across, bottom, wide, high)
            draw(axes, frame)
            axes.set_axis_off()
            axes.set_aspect("auto")
            if line == 0:
                axes.set_title(f"({'abcdefgh'[column]}) {name}", fontsize=10, color=INK, pad=5)
        figure.text(
            0.5 * MARGIN / sheet_width, (bottom + (down - GAP) / 2) / sheet_height, names[line],
            rotation=90, ha="center", va="center", fontsize=8, color=INK,
        )  # fmt: skip
    if title:
        figure.text(MARGIN / sheet_width, 1 - 0.12 / sheet_height, title, ha="left", va="top", fontsize=12, color=INK)
    if scale is not None:
        bar = place(sheet_width - BAR_ROOM + 0.02, legend_height + GAP, 0.13, len(frames) * down - GAP)
        figure.colorbar(scale, cax=bar).set_label("depth, m (black: missing)", fontsize=8.5, color=INK)
        bar.invert_yaxis()
        bar.tick_params(labelsize=8, length=2)
    figure.legend(
        handles=entries, loc="upper center", bbox_to_anchor=(0.5, (legend_height - 0.05) / sheet_height), ncols=cells,
        frameon=False, fontsize=8, handlelength=1.3, handleheight=1.0, columnspacing=1.2, borderaxespad=0,
    )  # fmt: skip
    return figure


def _pixels_to_one_drawn(height: int, width: int) -> int:
    """Of a picture, along each side: so many that two, or a little more, are left to each pixel of its panel."""
    return max(1, int(width // (2 * PANEL_WIDTH * DPI)), int(height // (2 * MAX_PANEL_HEIGHT * DPI)))


def _legend_entries(labels: Sequence[Labels]) -> list[Patch]:
    counts = sum(np.bincount(one.ravel(), minlength=VOID + 1) for one in labels)
    classes = np.flatnonzero(np.atleast_1d(counts)[: len(CLASS_NAMES)]).tolist()
    entries = [Patch(facecolor=PALETTE[c] / 255, edgecolor="#555555", linewidth=0.4, label=CLASS_NAMES[c]) for c in classes]
    if any((one == VOID).any() for one in labels):
        entries.append(Patch(facecolor="black", label="unlabelled"))
    return entries


def _draw_classes(axes: Axes, labels: Labels) -> None:
    """The class map, its larger regions named: forty colours are too many to look up."""
    axes.imshow(colourise(labels), interpolation="nearest")
    for name, column, row in _names_on(labels):
        axes.text(
            column, row, name, color="white", fontsize=NAME_SIZE, ha="center", va="center",
            path_effects=[withStroke(linewidth=1.6, foreground="#00000099")],
        )  # fmt: skip


def _names_on(labels: Labels) -> list[tuple[str, float, float]]:
    """Names of classes that have room for one, with its centre in pixels (column, row): where the class is widest."""
    step = max(1, labels.shape[1] // 160)
    small = labels[step // 2 :: step, step // 2 :: step]
    pixels_per_point = labels.shape[1] / (72 * PANEL_WIDTH)
    counts = np.bincount(small[small != VOID], minlength=len(CLASS_NAMES))
    placed: list[tuple[str, float, float]] = []
    for label in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts > 0.02 * small.size)].tolist():
        room = distance_transform_edt(np.pad(small == label, 1))
        row, column = np.unravel_index(int(room.argmax()), room.shape)
        if room[row, column] * step < 0.6 * NAME_SIZE * pixels_per_point:
            continue
        name = CLASS_NAMES[label]
        half = _half_width(name) * pixels_per_point
        x = min(max((column - 0.5) * step, half), labels.shape[1] - half)
        y = (row - 0.5) * step
        clear = 1.2 * NAME_SIZE * pixels_per_point
        if all(abs(y - v) > clear or abs(x - u) > half + _half_width(other) * pixels_per_point for other, u, v in placed):
            placed.append((name, x, y))
    return placed


def _half_width(name: str) -> float:
    """Half the width of a name on the sheet, in points, with a little room."""
    return 0.3 * NAME_SIZE * (len(name) + 1)


def _depth_scale(depths: Sequence[Depth]) -> ScalarMappable:
    """One scale over all valid depths, its ends on half metres."""
    valid = np.concatenate([depth[valid_depth(depth)] for depth in depths])
    nearest, farthest = (float(valid.min()), float(valid.max())) if valid.size else (0.0, 1.0)
    low, high = math.floor(nearest * 2) / 2, math.ceil(farthest * 2) / 2
    # The dark end is cut off, so that far is not taken for missing.
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.0, 0.92, 256)), name="depth").with_extremes(bad="black")
    return ScalarMappable(Normalize(low, max(high, low + 0.5)), colours)


def _draw_depth(axes: Axes, depth: Any, scale: ScalarMappable) -> None:
    picture = np.ma.masked_where(~valid_depth(depth), depth)
    (low, high), colours = scale.get_clim(), scale.get_cmap()
    axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
