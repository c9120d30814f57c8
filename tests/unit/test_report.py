"""Laws of the report: made from hand-made predictions on a small store, without Ray and without a network."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jointseg.batches import Place
from jointseg.checkpoint import load_final, save_checkpoint, save_final
from jointseg.data.store import Store, prepare
from jointseg.errors import InputError
from jointseg.evaluation import Prediction
from jointseg.labels import CLASS_NAMES
from jointseg.metrics import DepthSums, SegmentationSums
from jointseg.presets import demo
from jointseg.published import ROW_NAMES, TABLE2_METRICS, TABLE3_METRICS
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from jointseg.training import begin
from pipeline import report
from pipeline.evaluate import Evaluated, extremes
from pipeline.report_page import markdown
from pipeline.workspace import Workspace
from tests.made_up_runs import floor_guesses, guesses, metrics, save_search, total

# Share of pixels that each row gets wrong: the full CRF below the rows before it.
WRONG = {"unary_sem": 0.6, "unary_sem_depth": 0.5, "sem_crf": 0.4, "sem_crf_plus": 0.55}
SCORES = [0.105, 0.110, None, 0.120]


@pytest.fixture(scope="module")
def store(small_nyu: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(small_nyu, tmp_path_factory.mktemp("report") / "data")


@pytest.fixture(scope="module")
def evaluated(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run's folder as the evaluation and the search leave it."""
    place = Workspace(tmp_path_factory.mktemp("runs") / "small")
    save_search(place, SCORES)
    place.validation.write_text(json.dumps({"frames": [1, 4], "seed": 0, "digest": "d" * 64, "in_training": False}))
    for phase, seconds in {"data": 1.5, "stage1": 2.0, "evaluate": 3.25}.items():
        place.finish(phase, seconds=seconds, commit=f"{phase}'s")
    predictions = {row: guesses(store, wrong, depth=row != "unary_sem") for row, wrong in WRONG.items()}
    sums = {row: total(store, drawn) for row, drawn in predictions.items()}
    floors = {**metrics(total(store, floor_guesses(store))), "class": 0.0, "depth": 2.534}
    rows = {row: metrics(one) for row, one in sums.items()}
    frames = {
        row: [{"frame": number, **metrics(total(store, {number: own}))} for number, own in drawn.items()]
        for row, drawn in predictions.items()
    }
    best, worst = extremes(frames[report.WITH_CRF], most=2)
    pictures = {"first": list(store.test), "best": best, "worst": worst}
    report.save_evaluation(place, Evaluated(sums, frames, predictions), rows=rows, floors=floors, pictures=pictures)
    trained = begin(with_overrides(demo(), {"network.width": 0.01}), STAGES["stage3"], place=Place(), start=None)
    save_checkpoint(place.out / "checkpoint", trained.checkpoint([{"cpu": None, "cuda": None}]))
    save_final(place.final(STAGES["stage3"]), place.out / "checkpoint")
    return place


@pytest.fixture
def place(evaluated: Workspace, tmp_path: Path) -> Workspace:
    """A copy to change, without predictions: drawing is most of a report's time."""
    place = Workspace(shutil.copytree(evaluated.out, tmp_path / "small"))
    for row in ROW_NAMES:
        np.savez(place.evaluation / f"predictions_{row}.npz")
    path = place.evaluation / report.METRICS
    path.write_text(json.dumps({**json.loads(path.read_text()), "pictures": {"first": [], "best": [], "worst": []}}))
    return place


@pytest.fixture(scope="module")
def written(evaluated: Workspace, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same folder after the report; only read."""
    place = Workspace(shutil.copytree(evaluated.out, tmp_path_factory.mktemp("written") / "small"))
    report.write(demo(), place, store)
    return place


def edit_metrics(place: Workspace, change: dict[str, Any], *, row: str) -> None:
    path = place.evaluation / report.METRICS
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


def test_the_evaluations_sums_and_predictions_come_back(evaluated: Workspace, store: Store) -> None:
    stored = json.loads((evaluated.evaluation / report.SUMS).read_text())
    for row, wrong in WRONG.items():
        drawn = guesses(store, wrong, depth=row != "unary_sem")
        expected = total(store, drawn)
        np.testing.assert_array_equal(
            SegmentationSums.from_dict(stored[row]["segmentation"]).confusion, expected.segmentation.confusion
        )
        if expected.depth is None:
            assert stored[row]["depth"] is None
        else:
            np.testing.assert_array_equal(DepthSums.from_dict(stored[row]["depth"]).images, expected.depth.images)
        for number, prediction in report.load_predictions(evaluated, row).items():
            np.testing.assert_array_equal(prediction.labels, drawn[number].labels)
            assert (prediction.depth is None) == (row == "unary_sem")
            if prediction.depth is not None:
                np.testing.assert_array_equal(prediction.depth, drawn[number].depth)


def test_every_frames_own_scores_are_kept(evaluated: Workspace, store: Store) -> None:
    rows = pq.read_table(evaluated.evaluation / "frames_sem_crf_plus.parquet").to_pylist()
    assert [row["frame"] for row in rows] == list(store.test)
    drawn = guesses(store, WRONG["sem_crf_plus"], depth=True)
    for row in rows:
        alone = metrics(total(store, {row["frame"]: drawn[row["frame"]]}))
        assert (row["pixel_accuracy"], row["rmse"]) == (alone["pixel_accuracy"], alone["rmse"])


@pytest.mark.parametrize(
    ("most", "best", "worst"), [(0, [], []), (1, [], []), (2, [7], [4]), (5, [7, 2], [4, 9]), (99, [7, 2], [4, 9])]
)
def test_the_extreme_frames_are_the_most_extreme_first_and_none_twice(most: int, best: list[int], worst: list[int]) -> None:
    accuracy = {4: 0.1, 2: 0.8, 5: math.nan, 9: 0.2, 7: 0.9, 3: 0.5}
    frames = [{"frame": number, "pixel_accuracy": share} for number, share in accuracy.items()]
    assert extremes(frames, most=most) == (best, worst)


def test_an_older_evaluation_has_its_report(place: Workspace, store: Store) -> None:
    path = place.evaluation / report.METRICS
    older = json.loads(path.read_text())
    del older["pictures"]
    path.write_text(json.dumps(older))
    report.write(demo(), place, store)
    assert cells(place, "Sem-CRF+")
    assert not (place.figures / "best_and_worst.png").exists()


def test_the_best_and_the_worst_frame_are_drawn_with_how_good_they_are(written: Workspace, store: Store) -> None:
    rows = pq.read_table(written.evaluation / "frames_sem_crf_plus.parquet").to_pylist()
    ends = [f"{100 * choose(row['pixel_accuracy'] for row in rows):.0f}" for choose in (max, min)]
    assert f"whose pixels it labels best ({ends[0]} % rightly) and worst ({ends[1]} %)" in page(written)
    assert (written.figures / "best_and_worst.png").is_file()


def test_the_confusion_names_its_classes(evaluated: Workspace, store: Store) -> None:
    table = pq.read_table(evaluated.evaluation / "confusion_sem_crf.parquet")
    assert table["truth"].to_pylist() == list(CLASS_NAMES) == table.column_names[1:]
    confusion = total(store, guesses(store, WRONG["sem_crf"], depth=True)).segmentation.confusion
    assert table["floor"].to_pylist() == confusion[:, CLASS_NAMES.index("floor")].tolist()


def test_the_confusions_that_the_paper_names_are_shares_of_the_true_class(written: Workspace, store: Store) -> None:
    confusion = total(store, guesses(store, WRONG["sem_crf"], depth=True)).segmentation.confusion
    truth, predicted = CLASS_NAMES.index("books"), CLASS_NAMES.index("bookshelf")
    shares = contents(written)["confusions"]["books > bookshelf"]
    assert shares["sem_crf"] == pytest.approx(confusion[truth, predicted] / confusion[truth].sum())
    assert list(shares) == list(ROW_NAMES)
    assert f"| books > bookshelf | {shares['unary_sem']:.1%} |" in page(written)


def test_report_json_has_every_promised_key(written: Workspace) -> None:
    found = contents(written)
    promised = {"table2", "table3", "search", "data", "provenance", "seconds", "commits", "floors", "paper"}
    promised |= {"confusions", "checkpoints"}
    assert set(found) == promised
    assert list(found["table3"]) == list(ROW_NAMES)
    assert list(found["table2"]) == ["unary_sem_depth", "sem_crf", "sem_crf_plus"]
    assert all(set(metrics) == set(TABLE3_METRICS) for metrics in found["table3"].values())
    assert all(set(metrics) == set(TABLE2_METRICS) for metrics in found["table2"].values())
    assert found["search"]["best"] == {
        "score": 0.120,
        "settings": {**found["search"]["paper"]["settings"], "crf.theta_beta": 6.0},
    }
    assert found["search"]["paper"]["score"] == 0.105
    assert (found["search"]["trials"], found["search"]["failed"]) == (4, 1)
    assert found["seconds"] == {"data": 1.5, "stage1": 2.0, "evaluate": 3.25}


def test_report_json_says_what_data_and_where_from(written: Workspace, store: Store) -> None:
    found = contents(written)
    data, provenance = found["data"], found["provenance"]
    assert (data["digest"], data["num_train"], data["num_test"], data["real"]) == (store.digest, 4, 2, False)
    assert tuple(data["class_pixels"].values()) == store.info.class_pixels
    assert data["void_share"] == store.info.void_share
    assert data["validation"]["frames"] == 2
    assert set(provenance) == {"commit", "command", "versions", "hardware", "seeds", "config"}
    assert {"python", "torch", "ray", "optuna", "mlflow", "numpy"} <= set(provenance["versions"])
    assert {"cpu", "cpus", "memory_gb", "gpus"} <= set(provenance["hardware"])
    assert provenance["config"] == flatten(demo())
    assert provenance["seeds"]["data.validation_seed"] == 0


def test_the_tables_show_the_metrics_in_the_papers_units(written: Workspace) -> None:
    found = contents(written)
    own = found["table3"]["sem_crf"]
    assert cells(written, "Sem-CRF")[1::2] == [f"{100 * own[name]:.1f}" for name in TABLE3_METRICS]
    assert cells(written, "RMSE, m ↓")[1] == f"{found['table2']['unary_sem_depth']['rmse']:.3f}"
    assert cells(written, "theta_beta") == ["theta_beta", "θβ", "RGB levels", "6", "3"]
    assert cells(written, "theta_alpha")[3:] == ["160 (held)", "160"]


def test_floors_stand_beside_the_rows(written: Workspace) -> None:
    floors = contents(written)["floors"]
    assert cells(written, "floor: all “wall”")[1] == f"{100 * floors['mean_iou']:.1f}"
    assert cells(written, "RMSE, m ↓")[-1] == f"{floors['rmse']:.3f}"
    assert "floor: constant 2.53 m" in page(written)


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
    assert "**No better in RMSE than the floor of constant 2.53 m" in page(place)
    assert "Every row is better in mean IoU than the floor of all “wall”" in page(place)


def test_a_row_that_only_equals_its_floor_is_no_better(written: Workspace) -> None:
    found = contents(written)
    found["table2"]["sem_crf"]["rmse"] = found["floors"]["rmse"]
    assert "**No better in RMSE than the floor of constant 2.53 m" in page_of(found)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            SCORES,
            "The search's best has 12.00 % mean IoU on the 2 validation frames, the paper's CRF settings 10.50 % "
            "(4 trials, 1 of them failed): a gain of 1.50 points, 95 % interval 1.00 to 2.00, beyond the noise",
        ),
        ([0.2, 0.1], "**The search found nothing better than the paper's CRF settings: 20.00 %"),
        ([None, 0.1], "**The paper's CRF settings have no score"),
    ],
)
def test_what_the_search_gained_is_said(place: Workspace, store: Store, scores: list[float | None], said: str) -> None:
    save_search(place, scores)
    report.write(demo(), place, store)
    assert f"- {said}" in page(place)


def test_a_winner_within_noise_of_the_papers_point_is_said_to_be_so(place: Workspace, store: Store) -> None:
    result = json.loads(place.crf_settings.read_text())
    result["gain"] |= {"low": -0.01, "within_noise": True}
    place.crf_settings.write_text(json.dumps(result))
    report.write(demo(), place, store)
    assert "**The search's best has 12.00 % mean IoU" in page(place)
    assert "95 % interval -1.00 to 2.00, within noise of the paper's." in page(place)


def test_a_search_that_only_found_as_good_settings_found_nothing_better(written: Workspace) -> None:
    found = contents(written)
    found["search"]["best"]["score"] = found["search"]["paper"]["score"]
    assert "**The search found nothing better than the paper's CRF settings: 10.50 %" in page_of(found)


def test_trials_that_were_stopped_are_not_said_to_have_failed(written: Workspace) -> None:
    found = contents(written)
    found["search"]["stopped"] = 2
    assert "(4 trials, 1 of them failed, 2 of them stopped early)" in page_of(found)


def test_settings_that_were_not_searched_are_the_runs_own_beside_the_papers(place: Workspace, store: Store) -> None:
    report.write(with_overrides(demo(), {"crf.theta_alpha": 80.0, "crf.theta_beta": 9.0}), place, store)
    papers = contents(place)["search"]["paper"]["settings"]
    assert (papers["crf.theta_alpha"], papers["crf.theta_beta"]) == (80.0, 3.0)
    assert cells(place, "theta_alpha")[-1] == "160 (held at 80)"
    assert cells(place, "theta_beta")[-1] == "3"


def test_the_command_makes_the_search_that_stage_3_began_from(place: Workspace, store: Store) -> None:
    edit_search(place, {"search": {**flatten(demo().search), "seed": 77}})
    report.write(demo(), place, store)
    found = contents(place)["provenance"]
    assert "--set search.seed=77" in found["command"]
    assert found["seeds"]["search.seed"] == 77


def test_the_history_is_of_the_results_trials_in_their_order(
    place: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study may have been gone on with since."""
    drawn, draw = [], report.search_history

    def noting(scores: list[float | None], **own: Any) -> Any:
        drawn.append(scores)
        return draw(scores, **own)

    monkeypatch.setattr(report, "search_history", noting)
    pq.write_table(pq.read_table(place.trials()).sort_by([("trial", "descending")]), place.trials())
    edit_search(place, {"trials": 3})
    report.write(demo(), place, store)
    assert drawn == [SCORES[:3]]


def test_the_scale_of_the_crfs_pixels_is_that_of_the_input(written: Workspace) -> None:
    assert "513 × 513 input; at this run's 65 × 65 they count × 0.127." in page(written)


def test_the_folds_stand_beside_each_other_with_the_nested_estimate(place: Workspace, store: Store) -> None:
    report.write(demo(), place, store)
    assert cells(place, "found")[1:] == ["11.50", "10.50", "11.00 ± 0.50", "12.00"]
    assert cells(place, "chosen on the other folds")[1:] == ["10.00", "11.60", "", "10.80"]
    assert "folds are balanced by scene type" in page(place)


def test_phases_of_another_commit_than_the_reports_are_named_and_the_checkpoints_digests(written: Workspace) -> None:
    assert contents(written)["commits"] == {"data": "data's", "stage1": "stage1's", "evaluate": "evaluate's"}
    assert contents(written)["checkpoints"] == {"stage3": load_final(written.final(STAGES["stage3"]))[1]}
    assert "- other commits: data `data's`, stage1 `stage1's`, evaluate `evaluate's`" in page(written)


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
    assert said in page_of(found)


def test_the_headline_is_each_rows_scores_without_those_that_have_no_value(place: Workspace, store: Store) -> None:
    edit_metrics(place, {"mean_iou": math.nan}, row="sem_crf")
    report.write(demo(), place, store)
    found, tables = report.headline(place), contents(place)
    names = {f"{row}/{name}" for row in ROW_NAMES for name in ("mean_iou", "pixel_accuracy")} - {"sem_crf/mean_iou"}
    assert set(found) == names | {f"{row}/{name}" for row in list(ROW_NAMES)[1:] for name in ("delta1", "rmse")}
    assert found["sem_crf_plus/mean_iou"] == tables["table3"]["sem_crf_plus"]["mean_iou"]
    assert found["unary_sem_depth/rmse"] == tables["table2"]["unary_sem_depth"]["rmse"]


def test_the_description_has_the_tables_and_findings_and_names_no_picture(written: Workspace) -> None:
    said, whole = report.description(written), page(written)
    for row in (*ROW_NAMES.values(), "RMSE, m ↓", "w_appearance"):
        assert next(line for line in whole.splitlines() if line.startswith(f"| {row} |")) in said.splitlines()
    assert "Sem-CRF+ is below Unary-Sem+Depth in mean IoU" in said
    assert "![" not in said


def test_a_metric_without_a_value_is_a_dash_and_null(place: Workspace, store: Store) -> None:
    rows = {row: dict.fromkeys((*TABLE3_METRICS, *TABLE2_METRICS), math.nan) for row in ROW_NAMES}
    predictions: dict[str, dict[int, Prediction]] = {row: {} for row in ROW_NAMES}
    floors = {**rows["sem_crf"], "class": 0.0, "depth": math.nan}
    nothing = {"first": (), "best": (), "worst": ()}
    report.save_evaluation(place, Evaluated({}, {}, predictions), rows=rows, floors=floors, pictures=nothing)
    report.write(demo(), place, store)
    assert contents(place)["table3"]["sem_crf"]["mean_iou"] is None
    assert set(cells(place, "Sem-CRF")[1:]) == {"–"}
    assert "nan" not in page(place).lower()
    assert "–" in on_terminal(place)
    assert sorted(path.name for path in place.figures.iterdir()) == ["crf_weights.png", "search.png"]


def test_written_again_it_is_the_same(written: Workspace, store: Store, tmp_path: Path) -> None:
    again = Workspace(shutil.copytree(written.out, tmp_path / "small"))
    again.finish("report", seconds=1.0)
    report.write(demo(), again, store)
    for name in ("report.md", "report.json", *(f"figures/{picture.name}" for picture in written.figures.iterdir())):
        assert (again.out / name).read_bytes() == (written.out / name).read_bytes()


def test_every_picture_on_the_page_is_a_png_with_something_in_it(written: Workspace) -> None:
    linked = [line.partition("](")[2].rstrip(")") for line in page(written).splitlines() if line.startswith("![")]
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in written.figures.iterdir())
    assert len(linked) == 5
    for name in linked:
        picture = Image.open(written.out / name)
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").reduce(4).getcolors(10**7)) > 100


def test_the_terminal_shows_the_tables_and_where_to_look_next(written: Workspace) -> None:
    shown = on_terminal(written)
    for said in (*ROW_NAMES.values(), "floor: all “wall”", "theta_beta", "report.md", "figures/", "jointseg ui --out"):
        assert said in shown


def test_no_summary_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report\.json: not found"):
        report.summary(Workspace(tmp_path))
