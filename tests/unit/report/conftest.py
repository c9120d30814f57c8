"""A run's folder from hand-made predictions on a small store, without Ray and without a network, and its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jointseg.batches import Place
from jointseg.checkpoint import save_checkpoint, save_final
from jointseg.data.store import Store, prepare
from jointseg.presets import demo
from jointseg.published import ROW_NAMES
from jointseg.resuming import begin
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline import report
from pipeline.evaluate import Evaluated, extremes
from pipeline.other_rules import metrics_by_rule
from pipeline.row_gains import row_gains
from pipeline.workspace import Workspace
from tests.made_up_runs import floor_guesses, guesses, metrics, save_search, total, totals_by_rule
from tests.reports import SCORES, WRONG


@pytest.fixture(scope="session")
def store(small_nyu: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(small_nyu, tmp_path_factory.mktemp("report") / "data")


@pytest.fixture(scope="session")
def evaluated(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run's folder as the evaluation and the search leave it."""
    place = Workspace(tmp_path_factory.mktemp("runs") / "small")
    save_search(place, SCORES)
    place.validation.write_text(json.dumps({"frames": [1, 4], "seed": 0, "digest": "d" * 64, "in_training": False}))
    for phase, seconds in {"data": 1.5, "stage1": 2.0, "evaluate": 3.25}.items():
        place.finish(phase, seconds=seconds, commit=f"{phase}'s")
    predictions = {row: guesses(store, wrong, depth=row != "unary_sem") for row, wrong in WRONG.items()}
    sums = {row: total(store, drawn) for row, drawn in predictions.items()}
    floors = {**metrics(total(store, floor_guesses(store))), "class": 0.0, "mean_depth": 2.534}
    rows = {row: metrics(one) for row, one in sums.items()}
    frames = {
        row: [{"frame": number, **metrics(total(store, {number: own}))} for number, own in drawn.items()]
        for row, drawn in predictions.items()
    }
    best, worst = extremes(frames[report.WITH_CRF], most=2)
    pictures = {"first": list(store.test), "best": best, "worst": worst}
    others = {row: totals_by_rule(store, drawn) for row, drawn in predictions.items()}
    confusions = {
        row: [total(store, {number: own}).segmentation.confusion for number, own in drawn.items()]
        for row, drawn in predictions.items()
    }
    found = Evaluated(sums, frames, confusions, predictions, others)
    rules = metrics_by_rule(sums, others, demo())
    gains = row_gains({row: np.stack(own) for row, own in confusions.items()}, store.test, demo())
    report.save_evaluation(place, found, rows=rows, rules=rules, gains=gains, floors=floors, pictures=pictures)
    trained = begin(with_overrides(demo(), {"network.width": 0.01}), STAGES["stage3"], place=Place(), start=None)
    save_checkpoint(place.out / "checkpoint", trained.checkpoint([{"cpu": None, "cuda": None}]))
    save_final(place.final(STAGES["stage3"]), place.out / "checkpoint")
    return place


@pytest.fixture
def place(evaluated: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy to change, without predictions, and figures that are not rendered: that is most of a report's time."""
    monkeypatch.setattr(report, "save_png", lambda figure, path: path.write_bytes(b""))
    place = Workspace(shutil.copytree(evaluated.out, tmp_path / "small"))
    for row in ROW_NAMES:
        np.savez(place.evaluation / f"predictions_{row}.npz")
    path = place.evaluation / report.METRICS
    path.write_text(json.dumps({**json.loads(path.read_text()), "pictures": {"first": [], "best": [], "worst": []}}))
    return place


@pytest.fixture(scope="session")
def written(evaluated: Workspace, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same folder after the report; only read."""
    place = Workspace(shutil.copytree(evaluated.out, tmp_path_factory.mktemp("written") / "small"))
    report.write(demo(), place, store)
    return place
