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
from jointseg.evaluation import Prediction
from jointseg.presets import demo
from jointseg.published import ROW_NAMES
from jointseg.resuming import begin
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline import evaluation_files as files
from pipeline import report
from pipeline.evaluate import Part, extremes
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
    found = {row: part(store, guesses(store, wrong, depth=row != "unary_sem")) for row, wrong in WRONG.items()}
    best, worst = extremes(found[report.WITH_CRF].frames, most=2)
    files.save_evaluation(
        place,
        found,
        demo(),
        floors={**metrics(total(store, floor_guesses(store))), "class": 0.0, "mean_depth": 2.534},
        pictures={"first": list(store.test), "best": best, "worst": worst},
        origin={},
    )
    trained = begin(with_overrides(demo(), {"network.width": 0.01}), STAGES["stage3"], place=Place(), start=None)
    save_checkpoint(place.out / "checkpoint", trained.checkpoint([{"cpu": None, "cuda": None}]))
    save_final(place.final(STAGES["stage3"]), place.out / "checkpoint")
    return place


def part(store: Store, drawn: dict[int, Prediction]) -> Part:
    alone = {number: total(store, {number: own}) for number, own in drawn.items()}
    frames = [{"frame": number, **metrics(sums)} for number, sums in alone.items()]
    confusions = [sums.segmentation.confusion for sums in alone.values()]
    return Part(total(store, drawn), totals_by_rule(store, drawn), frames, confusions, drawn)


@pytest.fixture
def place(evaluated: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy to change, without predictions, and figures that are not rendered: that is most of a report's time."""
    monkeypatch.setattr(report, "save_png", lambda figure, path: path.write_bytes(b""))
    place = Workspace(shutil.copytree(evaluated.out, tmp_path / "small"))
    for row in ROW_NAMES:
        np.savez(place.evaluation / f"predictions_{row}.npz")
    path = place.evaluation / files.METRICS
    path.write_text(json.dumps({**json.loads(path.read_text()), "pictures": {"first": [], "best": [], "worst": []}}))
    return place


@pytest.fixture(scope="session")
def written(evaluated: Workspace, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same folder after the report; only read."""
    place = Workspace(shutil.copytree(evaluated.out, tmp_path_factory.mktemp("written") / "small"))
    report.write(demo(), place, store)
    return place
