"""What a whole run leaves behind, in its folder and in MLflow. Not here: how it is run."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
from mlflow import MlflowClient

from jointseg.checkpoint import digest
from jointseg.settings import flatten
from pipeline.provenance import own_commit
from pipeline.report import headline
from pipeline.run_store import run_store
from pipeline.tracking import KEY_TAG, PARENT_TAG
from pipeline.workspace import Workspace
from tests.integration.conftest import TINY

STAGES = ("stage1", "stage2", "stage3_sem_crf", "stage3")


def finished_files(place: Workspace) -> dict[str, tuple[int, str]]:
    """When each finished part was written, and its digest: what a restart must leave alone."""
    finals = [place.out / stage / "final" / "weights.safetensors" for stage in STAGES]
    parts = [*finals, place.crf_settings, *place.search.glob("*/*.parquet"), place.views, place.store / "store.json"]
    return {str(path): (path.stat().st_mtime_ns, digest(path)) for path in parts if path.is_file()}


def outcomes(place: Workspace) -> list[dict[str, Any]]:
    """The table of trials without when they were and how long they took."""
    rows: list[dict[str, Any]] = pq.read_table(place.trials()).drop_columns(["started", "seconds"]).to_pylist()
    return rows


def all_runs(client: MlflowClient, place: Workspace) -> list[Any]:
    experiment = client.get_experiment_by_name(run_store(place.out).experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def check_that_mlflow_has_each_run_once(place: Workspace) -> None:
    """With every parameter, no point twice, and the files of each."""
    client = MlflowClient(f"sqlite:///{place.out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(run_store(place.out).experiment)
    assert experiment is not None
    runs = {run.data.tags[KEY_TAG]: run for run in client.search_runs([experiment.experiment_id], max_results=1000)}
    trials = [f"trial-{number:04d}" for number in range(TINY["search.trials"])]  # type: ignore[call-overload]
    search = f"search/{place.study().name}"
    phases = [*STAGES, search, "evaluation"]
    assert sorted(runs) == sorted(["pipeline", *phases, *trials])
    assert len(client.search_runs([experiment.experiment_id], max_results=1000)) == len(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.source.git.commit"] for run in runs.values()} == {own_commit()}
    assert runs["pipeline"].data.metrics == headline(place)
    assert "## Table 3" in runs["pipeline"].data.tags["mlflow.note.content"]
    assert "| crf.theta_beta | " in runs[search].data.tags["mlflow.note.content"]
    assert {runs[name].data.tags[PARENT_TAG] for name in phases} == {runs["pipeline"].info.run_id}
    assert {runs[name].data.tags[PARENT_TAG] for name in trials} == {runs[search].info.run_id}
    config = place.load_config()
    assert config is not None
    expected = {path: str(value) for path, value in flatten(config).items()}
    assert runs["pipeline"].data.params == expected
    assert runs["pipeline"].data.tags["folder"] == str(place.out)
    for stage, steps in {"stage1": [2, 4, 6, 8], "stage2": [2, 4], "stage3": [2], "stage3_sem_crf": [2]}.items():
        history = client.get_metric_history(runs[stage].info.run_id, "loss/total")
        assert [point.step for point in history] == steps, stage
        times = [point.timestamp for point in history]
        assert times == sorted(set(times)), "when each step was reported"
        assert runs[stage].info.start_time < times[0], stage
    bests = sorted(client.get_metric_history(runs[search].info.run_id, "best_so_far"), key=lambda point: point.step)
    assert [point.step for point in bests] == list(range(len(trials)))
    for values in ([point.value for point in bests], [point.timestamp for point in bests]):
        assert values == sorted(values), "each once it and all before it had ended"
    assert all(len(runs[name].inputs.dataset_inputs) == 1 for name in ("pipeline", *phases))
    _has(client, runs["pipeline"], "report.json", "report.md", "report.html", "figures", "views.parquet", "validation.json")
    _has(client, runs["stage1"], "loaded.txt")
    _has(client, runs[search], "crf_settings.json", "trials.parquet", "journal.log", "confusions", "figures")
    for name in trials:
        _has(client, runs[name], "trial.json")
    for stage in STAGES:
        assert client.list_artifacts(runs[stage].info.run_id, "checkpoint")
    assert {runs[stage].data.tags.get("study") for stage in STAGES} == {None, place.study().name}


def _has(client: MlflowClient, run: Any, *names: str) -> None:
    assert set(names) <= {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
