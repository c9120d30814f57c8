"""Laws of the report's files: sums, tables, report.json, pictures, and what the terminal shows. Not here: the page."""

from __future__ import annotations

import base64
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointseg.checkpoint import final_digest
from jointseg.data.store import Store
from jointseg.errors import InputError
from jointseg.evaluation import Sums
from jointseg.labels import CLASS_NAMES
from jointseg.metrics import DEPTH_SUMS, DepthSums, SegmentationSums
from jointseg.presets import demo
from jointseg.published import ROW_NAMES, TABLE2_METRICS, TABLE3_METRICS
from jointseg.settings import flatten
from jointseg.stages import STAGES
from pipeline import report
from pipeline.evaluate import Part, extremes
from pipeline.evaluation_files import METRICS, SUMS, load_predictions, save_evaluation
from pipeline.other_rules import other_rules
from pipeline.reporting import html as report_html
from pipeline.reporting.page import markdown
from pipeline.row_gains import row_gains
from pipeline.run_store import VARIABLE, run_store
from pipeline.study.trial_record import read_confusions
from pipeline.workspace import Workspace
from tests.made_up_runs import guesses, metrics, total
from tests.reports import SCORES, WRONG, cells, contents, edit_metrics, edit_search, on_terminal, page


def test_the_evaluations_sums_and_predictions_come_back(evaluated: Workspace, store: Store) -> None:
    stored = json.loads((evaluated.evaluation / SUMS).read_text())
    for row, wrong in WRONG.items():
        drawn = guesses(store, wrong, depth=row != "unary_sem")
        expected = total(store, drawn)
        np.testing.assert_array_equal(stored[row]["segmentation"]["confusion"], expected.segmentation.confusion)
        if expected.depth is None:
            assert stored[row]["depth"] is None
        else:
            np.testing.assert_array_equal(stored[row]["depth"]["images"], expected.depth.images)
        for number, prediction in load_predictions(evaluated, row).items():
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
    path = place.evaluation / METRICS
    older = json.loads(path.read_text())
    del older["pictures"]
    path.write_text(json.dumps(older))
    report.write(demo(), place, store)
    assert cells(place, "Sem-CRF+")
    assert not (place.figures / "best_and_worst.png").exists()


def test_the_confusion_names_its_classes(evaluated: Workspace, store: Store) -> None:
    table = pq.read_table(evaluated.evaluation / "confusion_sem_crf.parquet")
    assert table["truth"].to_pylist() == list(CLASS_NAMES) == table.column_names[1:]
    confusion = total(store, guesses(store, WRONG["sem_crf"], depth=True)).segmentation.confusion
    assert table["floor"].to_pylist() == confusion[:, CLASS_NAMES.index("floor")].tolist()


def test_each_frames_matrix_is_kept_and_the_gains_are_of_them(written: Workspace, store: Store) -> None:
    matrices = {}
    for row, wrong in WRONG.items():
        kept, matrices[row] = read_confusions(written.evaluation / f"confusions_{row}.parquet")
        drawn = guesses(store, wrong, depth=row != "unary_sem")
        assert [own["frame"] for own in kept] == list(drawn) == list(store.test)
        for own_CC, (number, guess) in zip(matrices[row], drawn.items(), strict=True):
            assert (own_CC == total(store, {number: guess}).segmentation.confusion).all()
    gains = contents(written)["gains"]
    assert {row: list(others) for row, others in gains.items()} == {
        "unary_sem_depth": ["unary_sem"], "sem_crf": ["unary_sem_depth"], "sem_crf_plus": ["unary_sem_depth", "sem_crf"],
    }  # fmt: skip
    rows = contents(written)["table3"]
    for row, others in gains.items():
        for other, gain in others.items():
            assert gain["difference"] == pytest.approx(rows[row]["mean_iou"] - rows[other]["mean_iou"])
            assert gain["low"] <= gain["difference"] <= gain["high"]
    one_frame = {row: own_NCC[:1] for row, own_NCC in matrices.items()}
    assert row_gains(one_frame, store.test[:1], demo()) == {}, "of one frame there is nothing to resample"


def test_report_json_has_every_promised_key(written: Workspace) -> None:
    found = contents(written)
    promised = {"table2", "table3", "search", "data", "provenance", "seconds", "commits", "floors", "paper"}
    promised |= {"confusions", "checkpoints", "rules", "gains", "notes"}
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


def test_phases_of_another_commit_than_the_reports_are_named_and_the_checkpoints_digests(written: Workspace) -> None:
    assert contents(written)["commits"] == {"data": "data's", "stage1": "stage1's", "evaluate": "evaluate's"}
    assert contents(written)["checkpoints"] == {"stage3": final_digest(written.final(STAGES["stage3"]))}
    assert "- other commits: data `data's`, stage1 `stage1's`, evaluate `evaluate's`" in page(written)


def test_the_headline_is_each_rows_scores_without_those_that_have_no_value(place: Workspace, store: Store) -> None:
    edit_metrics(place, {"mean_iou": math.nan}, row="sem_crf")
    report.write(demo(), place, store)
    found, tables = report.headline(place), contents(place)
    names = {f"test/{row}/{name}" for row in ROW_NAMES for name in ("mean_iou", "pixel_accuracy")} - {"test/sem_crf/mean_iou"}
    assert set(found) == names | {f"test/{row}/{name}" for row in list(ROW_NAMES)[1:] for name in ("delta1", "rmse")}
    assert found["test/sem_crf_plus/mean_iou"] == tables["table3"]["sem_crf_plus"]["mean_iou"]
    assert found["test/unary_sem_depth/rmse"] == tables["table2"]["unary_sem_depth"]["rmse"]


def test_figures_of_a_study_are_shown_where_they_are_of_the_result_that_stage_3_began_from(
    place: Workspace, store: Store
) -> None:
    """A study may have been extended since, and its figures drawn anew."""
    result, own = json.loads(place.crf_settings.read_text()), place.study() / "crf_settings.json"
    (place.study() / "figures").mkdir()
    (place.study() / "figures" / "slices.png").write_bytes(b"drawn")
    for content, shown in ((result, True), ({**result, "trials": 64}, False), ({**result, "settings": {}}, False)):
        own.write_text(json.dumps(content))
        report.write(demo(), place, store)
        assert (place.figures / "search_slices.png").is_file() == shown
        assert ("search_slices.png" in page(place)) == shown


def test_a_metric_without_a_value_is_a_dash_and_null(place: Workspace, store: Store) -> None:
    unlabelled = Sums(SegmentationSums(np.zeros((40, 40), np.int64)), DepthSums(np.zeros((1, len(DEPTH_SUMS)))))
    others = dict.fromkeys(other_rules(demo().evaluation), unlabelled)
    found = {row: Part(unlabelled, others, [{"frame": 3}], [unlabelled.segmentation.confusion], {}) for row in ROW_NAMES}
    floors = {**dict.fromkeys((*TABLE3_METRICS, *TABLE2_METRICS), math.nan), "class": 0.0, "mean_depth": math.nan}
    nothing = {"first": (), "best": (), "worst": ()}
    save_evaluation(place, found, demo(), floors=floors, pictures=nothing, origin={})
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
    for name in (
        "report.md",
        "report.html",
        "report.json",
        *(f"figures/{picture.name}" for picture in written.figures.iterdir()),
    ):
        assert (again.out / name).read_bytes() == (written.out / name).read_bytes()


def test_every_picture_on_the_page_is_a_png_with_something_in_it(written: Workspace) -> None:
    linked = [line.partition("](")[2].rstrip(")") for line in page(written).splitlines() if line.startswith("![")]
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in written.figures.iterdir())
    assert len(linked) == 5
    for name in linked:
        picture = Image.open(written.out / name)
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").reduce(4).getcolors(10**7)) > 100


class _Sources(HTMLParser):
    """What a page's tags name by `src` and `href`, and the rows of its tables."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


def test_the_html_page_has_its_pictures_inside_and_the_same_tables(written: Workspace) -> None:
    read = _Sources()
    read.feed(written.report_html.read_text())
    start = "data:image/png;base64,"
    assert {source[: len(start)] for source in read.sources} == {start}
    inside = [base64.b64decode(source.removeprefix(start)) for source in read.sources]
    assert sorted(inside) == sorted(path.read_bytes() for path in written.figures.iterdir())
    for name in ("Unary-Sem+Depth", "Sem-CRF+"):
        assert cells(written, name) in read.rows


def test_a_name_is_text_in_the_html_page_whatever_it_looks_like(written: Workspace) -> None:
    name = "<script>a</script> & `![b](c.png)`"
    found = report_html.page(markdown(contents(written), name=name, figures={}), folder=written.out)
    assert "<script" not in found
    assert "<title>Results of &lt;script&gt;a&lt;/script&gt; &amp; ![b](c.png)</title>" in found


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


def test_the_terminal_shows_the_tables_and_where_to_look_next(written: Workspace) -> None:
    shown = on_terminal(written)
    for said in (*ROW_NAMES.values(), "floor: all “wall”", "theta_beta", "report.html", "figures/", "jointseg ui --out"):
        assert said in shown


def test_of_a_run_that_ended_before_there_was_an_html_page_the_other_is_named(written: Workspace, tmp_path: Path) -> None:
    old = Workspace(shutil.copytree(written.out, tmp_path / "old"))
    old.report_html.unlink()
    assert "report.md" in (shown := on_terminal(old))
    assert "report.html" not in shown


def test_runs_that_a_server_has_are_looked_for_there(place: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "https://me:secret@server")
    report.write(demo(), place, store)
    begun = run_store(place.out)
    begun.remember()
    shown = on_terminal(place)
    assert f"https://server, experiment {begun.experiment}" in shown
    assert "jointseg ui" not in shown


def test_no_summary_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report\.json: not found"):
        report.summary(Workspace(tmp_path))
