"""Laws of report.md: its tables, and what it says of the rows and of where they come from."""

from __future__ import annotations

import dataclasses
import io

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jointseg.data.store import Store
from jointseg.labels import CLASS_NAMES
from jointseg.presets import demo
from jointseg.published import ROW_NAMES, TABLE2_METRICS, TABLE3_METRICS
from pipeline import report
from pipeline.notation import percent
from pipeline.reporting.page import description, terminal
from pipeline.workspace import Workspace
from tests.made_up_runs import guesses, total
from tests.reports import WRONG, cells, contents, edit_metrics, on_terminal, page, page_of


def test_the_best_and_the_worst_frame_are_drawn_with_how_good_they_are(written: Workspace, store: Store) -> None:
    rows = pq.read_table(written.evaluation / "frames_sem_crf_plus.parquet").to_pylist()
    ends = [f"{100 * choose(row['pixel_accuracy'] for row in rows):.0f}" for choose in (max, min)]
    assert f"whose pixels it labels best ({ends[0]} % rightly) and worst ({ends[1]} %)" in page(written)
    assert (written.figures / "best_and_worst.png").is_file()


def test_the_confusions_that_the_paper_names_are_shares_of_the_true_class(written: Workspace, store: Store) -> None:
    confusion = total(store, guesses(store, WRONG["sem_crf"], depth=True)).segmentation.confusion
    truth, predicted = CLASS_NAMES.index("books"), CLASS_NAMES.index("bookshelf")
    shares = contents(written)["confusions"]["books > bookshelf"]
    assert shares["sem_crf"] == pytest.approx(confusion[truth, predicted] / confusion[truth].sum())
    assert list(shares) == list(ROW_NAMES)
    assert f"| books > bookshelf | {shares['unary_sem']:.1%} |" in page(written)


def test_the_tables_show_the_metrics_in_the_papers_units(written: Workspace) -> None:
    found = contents(written)
    own = found["table3"]["sem_crf"]
    assert cells(written, "Sem-CRF")[1::2] == [f"{100 * own[name]:.1f}" for name in TABLE3_METRICS]
    assert cells(written, "RMSE, m ↓")[1] == f"{found['table2']['unary_sem_depth']['rmse']:.3f}"
    assert cells(written, "theta_beta") == ["theta_beta", "θβ", "RGB levels", "6", "3"]
    assert cells(written, "theta_alpha")[3:] == ["160 (held)", "160"]


def test_the_rows_by_other_rules_stand_below_those_by_the_runs_own(written: Workspace) -> None:
    found = contents(written)
    assert list(found["rules"])[:2] == ["evaluation.crop=eigen", "evaluation.crop=gupta"]
    for name, rows, depth in (
        ("as above", found["table3"], found["table2"]["sem_crf_plus"]),
        *((f"`{rule}`", own, own["sem_crf_plus"]) for rule, own in found["rules"].items()),
    ):
        shown = [f"{100 * rows[row]['mean_iou']:.1f}" for row in ROW_NAMES]
        assert cells(written, name)[1:] == [*shown, f"{depth['delta1']:.3f}", f"{depth['rmse']:.3f}"]


def test_an_evaluation_of_an_earlier_version_has_no_other_rules(written: Workspace) -> None:
    assert "by other rules" in page(written)
    assert "by other rules" not in page_of({**contents(written), "rules": {}})


def test_what_rounds_to_nothing_has_no_minus(written: Workspace) -> None:
    found = contents(written)
    found["gains"]["sem_crf"]["unary_sem_depth"] = {"difference": -1e-5, "low": -1e-3, "high": -1e-6}
    assert "%: +0.00 [-0.10, +0.00])" in page_of(found)
    assert percent(-1e-6, 2) == "0.00"


def test_floors_stand_beside_the_rows(written: Workspace) -> None:
    floors = contents(written)["floors"]
    assert cells(written, "floor: all “wall”")[1] == f"{100 * floors['mean_iou']:.1f}"
    assert cells(written, "RMSE, m ↓")[-1] == f"{floors['rmse']:.3f}"
    assert "floor: each pixel's mean depth" in page(written)
    of_earlier = {**contents(written), "floors": {**floors, "depth": 2.53}}
    assert "floor: constant 2.53 m" in page_of(of_earlier)


def test_without_a_depth_in_the_train_split_no_floor_of_it_is_made_up(written: Workspace) -> None:
    found = contents(written)
    left = {name: value for name, value in found["floors"].items() if name not in TABLE2_METRICS}
    found["floors"] = left | {"mean_depth": None}
    text = page_of(found)
    line = next(line for line in text.splitlines() if line.startswith("| RMSE, m ↓ |"))
    assert line.endswith("| – |")
    assert "| floor: – |" in text
    assert "commonest class; none for depth, of which that split has none." in text
    assert "– m" not in text
    assert "in RMSE than the floor" not in text


def test_the_papers_columns_are_empty_for_other_data(written: Workspace) -> None:
    assert contents(written)["paper"] is None
    for row in ROW_NAMES.values():
        assert cells(written, row)[2::2] == ["–"] * 3
    assert cells(written, "RMSE, m ↓")[4] == "–"
    assert "Synthetic rooms" in page(written)
    assert "FCN, RGB" not in page(written)


def test_the_papers_numbers_stand_beside_real_data(place: Workspace, store: Store) -> None:
    real = Store.open(store.path)
    real.info = dataclasses.replace(store.info, real=True)
    report.write(demo(), place, real)
    assert cells(place, "Sem-CRF+")[2::2] == ["39.2", "52.3", "68.6"]
    assert cells(place, "RMSE, m ↓")[4] == "0.816"
    assert cells(place, "FCN, RGB") == ["FCN, RGB", "–", "29.2", "–", "42.2", "–", "60.0"]
    assert contents(place)["paper"]["table3"]["sem_crf_plus"]["mean_iou"] == 0.392
    assert "over all 654 test frames, these over 2" in page(place)
    assert "39.2" in on_terminal(place)


def test_a_crf_row_below_its_unary_row_is_said(written: Workspace) -> None:
    assert WRONG["sem_crf_plus"] > WRONG["unary_sem_depth"] > WRONG["sem_crf"]
    assert "- **Sem-CRF+ is below Unary-Sem+Depth in mean IoU" in page(written)
    assert "- Sem-CRF is above Unary-Sem+Depth in mean IoU" in page(written)
    assert "! Sem-CRF+ is below Unary-Sem+Depth" in on_terminal(written)


def test_rows_are_read_beside_the_one_they_add_to(written: Workspace) -> None:
    said = [line.lstrip("- *") for line in page(written).splitlines() if " in mean IoU" in line and " is " in line]
    pairs = [(text.partition(" is ")[0], text.partition(" in mean IoU")[0].rpartition(" ")[2]) for text in said[:4]]
    assert pairs == [
        ("Unary-Sem+Depth", "Unary-Sem"),
        ("Sem-CRF", "Unary-Sem+Depth"),
        ("Sem-CRF+", "Unary-Sem+Depth"),
        ("Sem-CRF+", "Sem-CRF"),
    ]


def test_a_row_below_its_floor_is_said(place: Workspace, store: Store) -> None:
    edit_metrics(place, {"rmse": 9.0}, row="sem_crf")
    report.write(demo(), place, store)
    assert "**No better in RMSE than the floor of each pixel's mean depth" in page(place)
    assert "Every row is better in mean IoU than the floor of all “wall”" in page(place)


def test_a_row_that_only_equals_its_floor_is_no_better(written: Workspace) -> None:
    found = contents(written)
    found["table2"]["sem_crf"]["rmse"] = found["floors"]["rmse"]
    assert "**No better in RMSE than the floor of each pixel's mean depth" in page_of(found)


def test_the_scale_of_the_crfs_pixels_is_that_of_the_input(written: Workspace) -> None:
    assert "513 × 513 input; at this run's 65 × 65 they count × 0.127." in page(written)


def test_the_phases_seconds_are_added_up(written: Workspace) -> None:
    assert cells(written, "together")[1:] == ["6.8"]


@pytest.mark.parametrize(
    ("commit", "said"),
    [
        ("abc", "Again, on that commit:"),
        ("abc-dirty", "though the code had changes that are in no commit"),
        (None, "Again:"),
    ],
)
def test_changes_that_are_in_no_commit_are_said(written: Workspace, commit: str | None, said: str) -> None:
    found = contents(written)
    found["provenance"]["commit"] = commit
    assert said in page_of(found)


def test_whether_validation_frames_were_trained_on_is_said(written: Workspace) -> None:
    found = contents(written)
    assert "of the train frames for validation and the search, left out of training" in page_of(found)
    found["provenance"]["config"]["data.train_on_validation"] = True
    assert "of the train frames for validation and the search, also trained on" in page_of(found)


@pytest.mark.parametrize(
    ("crop", "said"),
    [
        ("none", "the whole frame (no crop)"),
        ("eigen", "rows 45–470, columns 41–600"),
        ("gupta", "rows 45–469, columns 40–599"),
    ],
)
def test_the_part_that_is_scored_is_said_by_its_first_and_last_rows(written: Workspace, crop: str, said: str) -> None:
    found = contents(written)
    found["provenance"]["config"]["evaluation.crop"] = crop
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal(found, out="runs/x"))
    for text in (page_of(found), description(found), console.export_text()):
        assert text.count(said) == 1


def test_views_of_a_picture_are_said_wherever_the_tables_are_and_one_is_not(written: Workspace) -> None:
    found = contents(written)
    config = found["provenance"]["config"]
    said = "The network sees 4 views (input × 1, 1.25, each mirrored too) of each picture"
    for views, times in (({"scales": [1.0, 1.25], "mirror": True}, 1), ({"scales": [1.0], "mirror": False}, 0), ({}, 0)):
        for name in ("scales", "mirror"):
            config.pop(f"evaluation.{name}", None)  # reports of earlier versions have neither
        config |= {f"evaluation.{name}": value for name, value in views.items()}
        console = Console(width=400, record=True, file=io.StringIO())
        console.print(terminal(found, out="runs/x"))
        for text in (page_of(found), description(found), console.export_text()):
            assert text.count(said) == times


def test_the_description_has_the_tables_and_findings_and_names_no_picture(written: Workspace) -> None:
    said, whole = report.description(written), page(written)
    for row in (*ROW_NAMES.values(), "RMSE, m ↓", "w_appearance"):
        assert next(line for line in whole.splitlines() if line.startswith(f"| {row} |")) in said.splitlines()
    assert "Sem-CRF+ is below Unary-Sem+Depth in mean IoU" in said
    assert "![" not in said
