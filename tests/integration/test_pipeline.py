"""A whole run as a submitted job, on real frames where they are at hand; and the same on a Ray of its own, killed again
and again: between phases, inside a stage and inside the search.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from jointseg.checkpoint import digest, load_final
from jointseg.cross_validation import mean_iou
from jointseg.data.store import Store
from jointseg.settings import flatten
from pipeline.log_lines import read_lines
from pipeline.provenance import own_commit
from pipeline.report import headline, load_predictions
from pipeline.run_store import run_store
from pipeline.tracking import KEY_TAG, PARENT_TAG
from pipeline.trial_record import read_confusions
from pipeline.workspace import Workspace
from tests.integration.command_line import CommandLine
from tests.integration.conftest import TINY, Head, as_options
from tests.starting_weights import torchvision_vgg16

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
STAGES = ("stage1", "stage2", "stage3_sem_crf", "stage3")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight and three of NYU's own frames, in its own layout; synthetic rooms where the frames are not at hand. Stage 1 starts
    from weights with torchvision's names.
    """
    folder = tmp_path_factory.mktemp("nyu")
    torch.save(torchvision_vgg16(TINY["network.width"]), folder / "vgg16.pth")  # type: ignore[arg-type]
    weights = ["--set", f"network.weights={folder / 'vgg16.pth'}"]
    if not (SHARED / "nyuv2").is_dir():
        return as_options(TINY) + weights
    script = SHARED / "nyuv2" / "build_mat.py"
    subprocess.run([sys.executable, script, "--out", folder, "--train", "8", "--test", "3"], check=True, capture_output=True)
    shutil.copy(SHARED / "nyuv2" / "classMapping40.mat", folder)
    own = {path: value for path, value in TINY.items() if not path.startswith("data.rooms")}
    return ["--data", str(folder), *as_options(own), *weights]


@pytest.fixture(scope="module")
def job(
    head: Head, tmp_path_factory: pytest.TempPathFactory, options: list[str]
) -> Iterator[tuple[Workspace, Future[subprocess.CompletedProcess[str]]]]:
    """A run that is left alone, submitted as a job: its folder, and what comes of it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with ThreadPoolExecutor(1) as beside:
        command = str(Path(sys.executable).with_name("jointseg"))
        whole = shlex.join([command, "run", "--preset", "demo", "--out", str(out), *options])
        # First one that is refused: its job runs in a folder that is gone with it.
        words = ("sh", "-c", f"{command} train --stage 1 --out runs/lost; echo code $?; exec {whole}")
        yield Workspace(out), beside.submit(head.submit, *words)


@pytest.fixture(scope="module")
def whole(job: tuple[Workspace, Future[subprocess.CompletedProcess[str]]]) -> tuple[Workspace, str]:
    """The same at its end, and what it printed."""
    place, done = job[0], job[1].result()
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done.stdout


@pytest.fixture(scope="module")
def killed(job: object, jointseg: CommandLine, tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Workspace:
    """The same run, killed in the middle of stage 1 and of the search, and between phases: a process of each kind of work. The
    other goes on beside it, on a Ray of its own.
    """
    place = Workspace(tmp_path_factory.mktemp("killed") / "run")
    command = ("run", "--preset", "demo", "--out", str(place.out), *options)
    for moment in (
        (place.out / "stage1" / "step_00000004" / "checkpoint.json").is_file,
        lambda: any(len(read_lines(log)) >= 2 for log in place.search.glob("*/log.jsonl")),
        partial(place.finished, "evaluate"),
    ):
        jointseg.kill_when(moment, *command)
    before = _finished_files(place)
    jointseg(*command)
    assert {path: value for path, value in _finished_files(place).items() if path in before} == before
    return place


def _finished_files(place: Workspace) -> dict[str, tuple[int, str]]:
    """When each finished part was written, and its digest: what a restart must leave alone."""
    finals = [place.out / stage / "final" / "weights.safetensors" for stage in STAGES]
    parts = [*finals, place.crf_settings, *place.search.glob("*/*.parquet"), place.views, place.store / "store.json"]
    return {str(path): (path.stat().st_mtime_ns, digest(path)) for path in parts if path.is_file()}


def test_a_run_killed_again_and_again_ends_as_one_left_alone(killed: Workspace, whole: tuple[Workspace, str]) -> None:
    place, _ = whole
    for stage in STAGES:
        weights = Path(stage) / "final" / "weights.safetensors"
        assert digest(killed.out / weights) == digest(place.out / weights), stage
    assert _outcomes(killed) == _outcomes(place)
    ours, theirs = (json.loads((run.out / "report.json").read_text()) for run in (killed, place))
    for part in ("table2", "table3", "search", "floors"):
        assert ours[part] == theirs[part]


def _outcomes(place: Workspace) -> list[dict[str, Any]]:
    """The table of trials without when they were and how long they took."""
    rows: list[dict[str, Any]] = pq.read_table(place.trials()).drop_columns(["started", "seconds"]).to_pylist()
    return rows


def test_a_job_with_a_relative_out_is_refused(whole: tuple[Workspace, str]) -> None:
    refused, _, rest = whole[1].partition("code 2\n")
    assert "give an absolute path" in refused
    assert "Table 3" in rest


def test_a_finished_run_says_so_and_repeats_nothing(whole: tuple[Workspace, str], jointseg: CommandLine) -> None:
    place, first = whole
    before = _finished_files(place)
    second = jointseg("run", "--out", str(place.out))
    assert "nothing to do" in second
    assert "Table 3" in first and "Table 3" in second
    assert _finished_files(place) == before


def test_what_the_starting_weights_gave_is_said_once_and_their_mean_lasts(
    whole: tuple[Workspace, str], killed: Workspace
) -> None:
    place, said = whole
    table = (place.out / "stage1" / "loaded.txt").read_text()
    assert table.splitlines()[1].startswith("loaded        34  conv1_1, conv1_2, ")
    assert said.count(table) == 1
    for stage in STAGES:
        mean = load_final(killed.out / stage / "final")["network.mean_bgr"]
        assert mean.tolist() == pytest.approx([103.53, 116.28, 123.675])
    assert not (place.out / "stage2" / "loaded.txt").exists()


def test_another_config_is_refused_by_field(whole: tuple[Workspace, str], jointseg: CommandLine) -> None:
    place, _ = whole
    said = jointseg("run", "--out", str(place.out), "--set", "crf.theta_beta=4", code=2)
    assert said.count("\n") == 1
    assert "crf.theta_beta is 3.0 there and 4.0 here" in said


def test_the_folder_holds_what_readme_promises(whole: tuple[Workspace, str]) -> None:
    place, _ = whole
    files = ["config.json", "data/store.json", "crf_settings.json", "mlflow.db"]
    files += ["report.json", "report.md", "report.html", "views.parquet", "validation.json", "phases.json"]
    finals = [f"{stage}/final/weights.safetensors" for stage in STAGES]
    assert [name for name in files + finals if not (place.out / name).is_file()] == []
    assert (place.out / "figures" / "training.png").is_file()
    trials = pq.read_table(place.trials()).to_pylist()
    assert [row["trial"] for row in trials] == list(range(TINY["search.trials"]))  # type: ignore[arg-type]
    settings = json.loads(place.crf_settings.read_text())
    scores = [row["mean_iou"] for row in trials]
    assert settings["score"] == max(scores) >= settings["paper_score"] == scores[0]
    study = {path.name for path in place.study().iterdir()}
    assert study == {"study.json", "log.jsonl", "journal.log", "trials.parquet", "crf_settings.json", "confusions", "figures"}
    assert trials[0]["crf.theta_alpha"] == 160.0


def test_mlflow_has_each_run_once_with_every_parameter_and_no_point_twice(killed: Workspace) -> None:
    client = MlflowClient(f"sqlite:///{killed.out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(run_store(killed.out).experiment)
    assert experiment is not None
    runs = {run.data.tags[KEY_TAG]: run for run in client.search_runs([experiment.experiment_id], max_results=1000)}
    trials = [f"trial-{number:04d}" for number in range(TINY["search.trials"])]  # type: ignore[call-overload]
    search = f"search/{killed.study().name}"
    phases = [*STAGES, search, "evaluation"]
    assert sorted(runs) == sorted(["pipeline", *phases, *trials])
    assert len(client.search_runs([experiment.experiment_id], max_results=1000)) == len(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.source.git.commit"] for run in runs.values()} == {own_commit()}
    assert runs["pipeline"].data.metrics == headline(killed)
    assert "## Table 3" in runs["pipeline"].data.tags["mlflow.note.content"]
    assert "| crf.theta_beta | " in runs[search].data.tags["mlflow.note.content"]
    assert {runs[name].data.tags[PARENT_TAG] for name in phases} == {runs["pipeline"].info.run_id}
    assert {runs[name].data.tags[PARENT_TAG] for name in trials} == {runs[search].info.run_id}
    config = killed.load_config()
    assert config is not None
    expected = {path: str(value) for path, value in flatten(config).items()}
    assert runs["pipeline"].data.params == expected
    assert runs["pipeline"].data.tags["folder"] == str(killed.out)
    for stage, steps in {"stage1": [2, 4, 6, 8], "stage2": [2, 4], "stage3": [2], "stage3_sem_crf": [2]}.items():
        history = client.get_metric_history(runs[stage].info.run_id, "loss/total")
        assert [point.step for point in history] == steps, stage
    assert all(len(runs[name].inputs.dataset_inputs) == 1 for name in ("pipeline", *phases))
    _has(client, runs["pipeline"], "report.json", "report.md", "report.html", "figures", "views.parquet", "validation.json")
    _has(client, runs["stage1"], "loaded.txt")
    _has(client, runs[search], "crf_settings.json", "trials.parquet", "journal.log", "confusions", "figures")
    for name in trials:
        _has(client, runs[name], "trial.json")
    for stage in STAGES:
        assert client.list_artifacts(runs[stage].info.run_id, "checkpoint")
    assert {runs[stage].data.tags.get("study") for stage in STAGES} == {None, killed.study().name}


def _has(client: MlflowClient, run: Any, *names: str) -> None:
    assert set(names) <= {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def test_another_study_has_a_folder_of_its_own_and_leaves_what_stage_3_began_from(
    whole: tuple[Workspace, str], jointseg: CommandLine
) -> None:
    place, _ = whole
    before, study = place.crf_settings.read_bytes(), place.study()
    said = jointseg("search", "--out", str(place.out), "--space", "crf_weights", "--trials", "2")
    assert f"{place.crf_settings} stays: stage3_sem_crf and stage3 began from study {study.name}" in said
    assert place.crf_settings.read_bytes() == before
    (other,) = (path for path in place.search.iterdir() if path.name not in {study.name, "unaries"})
    result = json.loads((other / "crf_settings.json").read_text())
    assert (result["study"], result["trials"], len(result["searched"])) == (other.name, 2, 3)


def test_the_winner_and_the_four_rows_come_out_again_to_the_last_digit(killed: Workspace, jointseg: CommandLine) -> None:
    client = MlflowClient(f"sqlite:///{killed.out / 'mlflow.db'}")
    search = next(run for run in _all_runs(client, killed) if run.data.tags[KEY_TAG] == f"search/{killed.study().name}")
    said = jointseg("reproduce", f"mlflow:{search.info.run_id}", "--out", str(killed.out))
    assert "to the last digit" in said
    assert "to the last digit" in jointseg("reproduce", str(killed.out / "report.json"))


def test_with_other_instructions_the_winner_comes_out_within_the_tolerance_stated(
    killed: Workspace, jointseg: CommandLine
) -> None:
    """As on another machine: with the least of vector instructions, PyTorch and the CRF's compiled steps add up otherwise."""
    least = {"NUMBA_CPU_NAME": "generic", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    program = """
import numba, sys, torch
from pipeline.__main__ import main

print(torch.backends.cpu.get_cpu_capability(), numba.config.CPU_NAME, flush=True)
sys.argv = ["jointseg", *sys.argv[1:]]
main()
"""
    command = [sys.executable, "-c", program, "reproduce", str(killed.crf_settings), "--tolerance", "0.001"]
    environment = {**jointseg.environment, **least}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("DEFAULT generic\n")
    assert "within 0.001" in done.stdout


def test_a_search_in_the_background_ends_on_sigterm_as_on_ctrl_c(killed: Workspace, jointseg: CommandLine) -> None:
    """As `timeout` and schedulers end it, which signal all of its group: Ray's own processes are to hear nothing of it."""
    words = ("search", "--out", str(killed.out), "--space", "crf_weights", "--trials", "500")
    with jointseg.in_background(*words) as (process, printed):
        deadline = time.monotonic() + 400
        while not any(len(read_lines(log)) >= 2 for log in killed.search.glob("crf_weights-*/log.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline, printed.read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=180)
        said = printed.read_text()
    assert process.returncode == 130, said
    assert "interrupted; the same command goes on" in said
    runs = _all_runs(MlflowClient(f"sqlite:///{killed.out / 'mlflow.db'}"), killed)
    (study,) = killed.search.glob("crf_weights-*")
    assert {run.info.run_name for run in runs if run.info.status != "FINISHED"} == {f"search {study.name}"}


def test_the_winner_and_the_papers_point_score_what_the_search_said(killed: Workspace, jointseg: CommandLine) -> None:
    said = jointseg("score", "--out", str(killed.out), str(killed.crf_settings))
    found = json.loads(killed.crf_settings.read_text())
    (path,) = (killed.search / "scores").glob("validation-*.json")
    record = json.loads(path.read_text())
    scores = record["scores"]
    rows, confusion_NCC = read_confusions(path.parent / record["confusions"][str(killed.crf_settings)])
    assert [row["frame"] for row in rows] == record["frames"]
    assert mean_iou(confusion_NCC.sum(0), absent=record["absent_classes"]) == found["score"]
    assert scores[str(killed.crf_settings)]["mean_iou"] == found["score"]
    assert scores["the paper's settings"]["mean_iou"] == found["paper_score"]
    assert scores["the paper's settings"]["gain"] == {"difference": 0, "low": 0, "high": 0}
    assert scores[str(killed.crf_settings)]["gain"] == {name: found["gain"][name] for name in ("difference", "low", "high")}
    assert f"{100 * found['score']:.2f}" in said
    runs = _all_runs(MlflowClient(f"sqlite:///{killed.out / 'mlflow.db'}"), killed)
    (run,) = [run for run in runs if run.info.run_name == "score validation"]
    assert run.data.metrics["settings_1/mean_iou"] == found["score"]
    assert run.data.tags["settings_1"] == str(killed.crf_settings)


def test_a_picture_is_predicted_as_the_evaluation_did(killed: Workspace, jointseg: CommandLine, tmp_path: Path) -> None:
    for row, stage in (("sem_crf_plus", "3"), ("unary_sem", "1")):
        ((number, expected),) = list(load_predictions(killed, row).items())[:1]
        picture = tmp_path / f"{row}.png"
        Image.fromarray(Store.open(killed.store).frame(number).image).save(picture)
        jointseg("predict", "--out", str(killed.out), "--stage", stage, "--to", str(tmp_path / "to"), str(picture))
        with Image.open(tmp_path / "to" / f"{row}.classes.png") as classes:
            assert (np.asarray(classes) == expected.labels).mean() > 0.999  # on other threads it may round otherwise


def _all_runs(client: MlflowClient, place: Workspace) -> list[Any]:
    experiment = client.get_experiment_by_name(run_store(place.out).experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def test_real_frames_have_the_papers_numbers_beside_their_own(whole: tuple[Workspace, str], shared: Path) -> None:
    place, _ = whole
    report = json.loads((place.out / "report.json").read_text())
    assert report["data"]["real"]
    assert set(report["table3"]) == {"unary_sem", "unary_sem_depth", "sem_crf", "sem_crf_plus"}
    assert report["paper"]["table3"]["sem_crf_plus"]["mean_iou"] == 0.392
    assert "39.2" in (place.out / "report.md").read_text()
    assert all(0 < row["pixel_accuracy"] < 1 for row in report["table3"].values())


def test_check_counts_real_frames(jointseg: CommandLine, options: list[str], shared: Path) -> None:
    said = jointseg("data", "check", options[options.index("--data") + 1])
    assert "11: 8 train, 3 test" in said
    assert "NYU Depth v2" in said
