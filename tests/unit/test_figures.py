"""Laws of the figures: what is drawn is read back from the figure's own artists."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from jointseg.crf_figure import learned_matrices
from jointseg.curves_figure import training_curves
from jointseg.data.frame import Frame
from jointseg.evaluation import Prediction
from jointseg.figures import (
    DPI,
    MAX_PANEL_HEIGHT,
    PANEL_WIDTH,
    prediction_sheet,
    qualitative,
    save_png,
    with_and_without_crf,
)
from jointseg.labels import CLASS_NAMES, VOID, colourise

SIZE = (48, 64)
WALL, SOFA, LAMP = (CLASS_NAMES.index(name) for name in ("wall", "sofa", "lamp"))


def frame(number: int) -> Frame:
    generator = np.random.default_rng(number)
    labels = np.full(SIZE, WALL, np.uint8)
    labels[24:, 32:] = SOFA
    labels[:, 0] = VOID
    depth = generator.uniform(1.2, 3.7, SIZE).astype(np.float32)
    raw = depth.copy()
    raw[:8, 8:16] = 0
    return Frame(number, generator.integers(0, 256, (*SIZE, 3), np.uint8), labels, raw, depth)


def predict(drawn: Frame, *, label: int = LAMP, depth: float | None = 5.2) -> Prediction:
    labels = np.where(drawn.labels == SOFA, label, WALL).astype(np.uint8)
    return Prediction(labels, None if depth is None else np.full(SIZE, depth, np.float32))


FRAMES = [frame(7), frame(9)]
PREDICTIONS = {one.number: predict(one) for one in FRAMES}


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def legend(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_frame_is_a_line_of_the_papers_figure_2() -> None:
    figure = qualitative(FRAMES, PREDICTIONS)
    assert titles(figure) == [
        "(a) image", "(b) true classes", "(c) predicted classes", "(d) raw depth", "(e) estimated depth",
    ]  # fmt: skip
    shown = [axes.images[0].get_array() for axes in panels(figure)]
    assert len(shown) == 2 * 5
    for line, drawn in enumerate(FRAMES):
        image, truth, predicted, raw, estimated = shown[5 * line : 5 * line + 5]
        np.testing.assert_array_equal(image, drawn.image)
        np.testing.assert_array_equal(truth, colourise(drawn.labels))
        np.testing.assert_array_equal(predicted, colourise(PREDICTIONS[drawn.number].labels))
        np.testing.assert_array_equal(np.ma.filled(raw, 0), drawn.raw_depth)
        np.testing.assert_array_equal(estimated, PREDICTIONS[drawn.number].depth)
    assert {"frame 7", "frame 9"} <= {text.get_text() for text in figure.texts}


def test_all_depths_share_one_scale_in_metres_and_missing_depth_is_black() -> None:
    figure = qualitative(FRAMES, PREDICTIONS)
    depths = [axes.images[0] for axes in panels(figure) if axes.images[0].get_array().ndim == 2]
    assert len(depths) == 4
    assert {image.get_clim() for image in depths} == {(1.0, 5.5)}
    assert "depth, m" in figure.axes[-1].get_ylabel()
    raw = depths[0]
    colours = raw.to_rgba(raw.get_array())
    missing = FRAMES[0].raw_depth == 0
    assert (colours[missing] == (0, 0, 0, 1)).all()
    assert (colours[~missing][:, :3].sum(axis=1) > 0.3).all()


def test_the_legend_lists_the_classes_that_occur_and_no_other() -> None:
    assert legend(qualitative(FRAMES, PREDICTIONS)) == {"wall", "sofa", "lamp", "unlabelled"}
    without_lamp = {one.number: predict(one, label=SOFA) for one in FRAMES}
    assert legend(qualitative(FRAMES, without_lamp)) == {"wall", "sofa", "unlabelled"}
    assert legend(with_and_without_crf(FRAMES, without_lamp, PREDICTIONS)) == {"wall", "sofa", "lamp", "unlabelled"}


@pytest.mark.parametrize(("height", "width"), [(2000, 1), (1, 2000), (300, 10)])
def test_a_picture_of_any_shape_is_drawn_on_a_sheet_of_reasonable_size(height: int, width: int, tmp_path: Path) -> None:
    nothing = np.zeros((height, width))
    drawn = Frame(1, np.zeros((height, width, 3), np.uint8), nothing.astype(np.uint8), nothing, nothing)
    save_png(qualitative([drawn], {1: Prediction(drawn.labels, None)}, title=""), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert max(sheet.size) < 3000


def test_a_sheet_shows_the_picture_and_what_is_said_of_it() -> None:
    drawn, said = FRAMES[0], PREDICTIONS[7]
    image, classes, depth = (axes.images[0].get_array() for axes in panels(prediction_sheet(drawn.image, said)))
    np.testing.assert_array_equal(image, drawn.image)
    np.testing.assert_array_equal(classes, colourise(said.labels))
    np.testing.assert_array_equal(depth, said.depth)


def test_of_a_large_picture_the_sheet_is_that_of_the_picture_made_smaller() -> None:
    def sheet(times: int) -> Figure:
        image, labels, depth = (a.repeat(times, 0).repeat(times, 1) for a in (FRAMES[0].image, *PREDICTIONS[7]))
        return prediction_sheet(image, Prediction(labels, depth))

    large, small = sheet(48), sheet(12)  # 3072 and 768 pixels wide
    assert legend(large) == legend(small)
    for ours, theirs in zip(panels(large), panels(small), strict=True):
        np.testing.assert_array_equal(ours.images[0].get_array(), theirs.images[0].get_array())
        assert ours.images[0].get_clim() == theirs.images[0].get_clim()
        assert ours.get_position().bounds == theirs.get_position().bounds


@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (4001, 2999), (1, 40_000), (40_000, 1), (20_000, 50)])
def test_no_more_of_a_picture_is_drawn_than_a_few_pixels_for_each_of_the_sheets(height: int, width: int) -> None:
    said = Prediction(np.zeros((height, width), np.uint8), np.ones((height, width), np.float32))
    figure = prediction_sheet(np.zeros((height, width, 3), np.uint8), said)
    for axes in panels(figure):
        rows, columns = axes.images[0].get_array().shape[:2]
        assert 1 <= rows <= 4 * MAX_PANEL_HEIGHT * DPI
        assert 1 <= columns <= 4 * PANEL_WIDTH * DPI


def test_predictions_without_depth_leave_out_its_columns() -> None:
    figure = qualitative(FRAMES, {one.number: predict(one, depth=None) for one in FRAMES})
    assert titles(figure) == ["(a) image", "(b) true classes", "(c) predicted classes"]
    assert len(figure.axes) == 2 * 3


def test_figure_3_shows_the_crf_before_the_network_alone() -> None:
    without = {one.number: predict(one, label=WALL) for one in FRAMES}
    figure = with_and_without_crf(FRAMES, PREDICTIONS, without)
    assert titles(figure) == ["(a) image", "(b) true classes", "(c) with CRF", "(d) without CRF"]
    shown = [axes.images[0].get_array() for axes in panels(figure)]
    np.testing.assert_array_equal(shown[2], colourise(PREDICTIONS[7].labels))
    np.testing.assert_array_equal(shown[3], colourise(without[7].labels))


@pytest.mark.parametrize("start", [0.0, 6.75])
def test_figure_4_shows_what_was_learned_beside_one_value_everywhere(start: float) -> None:
    """Off the diagonal `crfrnn` begins at 0, `hadamard` at the weight."""
    learned = torch.linspace(-0.01, 0.03, 9).reshape(3, 3).fill_diagonal_(7 - start) + start
    parameters: dict[str, Tensor] = {"compatibility": learned.T, "weights.appearance": learned}
    panels = [axes for axes in learned_matrices(parameters, ("a", "b", "c")).axes if axes.get_title()]
    assert [axes.get_title().split(";")[0] for axes in panels] == ["compatibility μ", "w⁽¹⁾, appearance"]
    (image,) = panels[1].get_images()
    np.testing.assert_allclose(image.get_array(), learned)
    white = start and float(learned[~torch.eye(3, dtype=torch.bool)].median())
    assert sum(image.get_clim()) / 2 == pytest.approx(white, abs=6e-3)
    off = learned[~torch.eye(3, dtype=torch.bool)]
    assert image.get_clim()[1] - image.get_clim()[0] <= 2 * float(off.max() - off.min()) + 0.03
    assert ("white: 6.76" in panels[1].get_title()) == bool(start)


def test_curves_lie_one_after_the_other_and_both_stages_3_over_each_other() -> None:
    losses = {"stage1": (2.0, 1.5), "stage2": (1.0,), "stage3_sem_crf": (0.9,), "stage3": (0.8, 0.7)}
    reports = {
        stage: [{"step": 10.0 * (place + 1), "loss/semantic": loss, "lr/heads": 1.0} for place, loss in enumerate(own)]
        for stage, own in losses.items()
    }
    reports["stage2"][-1] |= {"loss/depth": 0.3, "validation/mean_iou": 0.25}
    semantic, depth, mean_iou = training_curves(reports).axes
    lines = [np.asarray(line.get_xydata()).tolist() for line in semantic.get_lines()]
    assert lines == [[[10, 2.0], [20, 1.5]], [[30, 1.0]], [[40, 0.9]], [[40, 0.8], [50, 0.7]]]
    assert [np.asarray(axes.get_lines()[0].get_xydata()).tolist() for axes in (depth, mean_iou)] == [[[30, 0.3]], [[30, 0.25]]]
    assert len({line.get_color() for line in semantic.get_lines()}) == 4
    low, high = mean_iou.get_ylim()
    assert high - low >= 0.05 * 0.25 - 1e-9


@pytest.mark.parametrize(
    "reports",
    [{}, {"stage1": []}, {"stage2": [{"step": 2, "loss/depth": math.nan}]}, {"one_stage": [{"step": 1, "loss/depth": 1}]}],
)
def test_curves_of_any_stages_can_be_drawn(reports: dict[str, list[dict[str, float]]], tmp_path: Path) -> None:
    save_png(training_curves(reports), tmp_path / "training.png")
    assert Image.open(tmp_path / "training.png").format == "PNG"


def test_names_on_a_class_map_lie_inside_it_on_their_own_class() -> None:
    axes = panels(qualitative(FRAMES[:1], PREDICTIONS))[1]
    named = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(named) == {"wall", "sofa"}
    for name, (column, row) in named.items():
        assert FRAMES[0].labels[round(row), round(column)] == CLASS_NAMES.index(name)


def test_a_saved_figure_is_a_whole_png_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "qualitative.png"
    figure = qualitative(FRAMES, PREDICTIONS, title="a title")
    save_png(figure, path)
    picture = Image.open(path)
    picture.load()
    assert picture.size == pytest.approx(tuple(DPI * side for side in figure.get_size_inches()), abs=1)
    assert [one.name for one in path.parent.iterdir()] == ["qualitative.png"]
    first = path.read_bytes()
    save_png(qualitative(FRAMES, PREDICTIONS, title="a title"), path)
    assert path.read_bytes() == first
