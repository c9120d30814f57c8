"""A whole run as a submitted job, on real frames where they are at hand, and what other commands make of it.

Not here: the same killed again and again (test_killed_pipeline.py).
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from jointseg.checkpoint import load_final
from jointseg.cross_validation import mean_iou
from jointseg.data.store import Store
from pipeline.evaluation_files import load_predictions
from pipeline.log_lines import read_lines
from pipeline.study.trial_record import read_confusions
from pipeline.tracking import KEY_TAG
from pipeline.workspace import Workspace
from tests.integration.command_line import CommandLine
from tests.integration.conftest import TINY, Head
from tests.integration.whole_runs import STAGES, all_runs, check_that_mlflow_has_each_run_once, finished_files


@pytest.fixture(scope="module")
def whole(head: Head, tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> tuple[Workspace, str]:
    """A run that is left alone, submitted as a job: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    command = str(Path(sys.executable).with_name("jointseg"))
    run = shlex.join([command, "run", "--preset", "demo", "--out", str(out), *options])
    # First one that is refused: its job runs in a folder that is gone with it.
    done = head.submit("sh", "-c", f"{command} train --stage 1 --out runs/lost; echo code $?; exec {run}")
    assert done.returncode == 0, done.stdout + done.stderr
    return Workspace(out), done.stdout


@pytest.fixture(scope="module")
def place(whole: tuple[Workspace, str]) -> Workspace:
    """Its folder."""
    return whole[0]


def test_a_job_with_a_relative_out_is_refused(whole: tuple[Workspace, str]) -> None:
    refused, _, rest = whole[1].partition("code 2\n")
    assert "give an absolute path" in refused
    assert "Table 3" in rest


def test_a_finished_run_says_so_and_repeats_nothing(whole: tuple[Workspace, str], jointseg: CommandLine) -> None:
    place, first = whole
    before = finished_files(place)
    second = jointseg("run", "--out", str(place.out))
    assert "nothing to do" in second
    assert "Table 3" in first and "Table 3" in second
    assert finished_files(place) == before


def test_what_the_starting_weights_gave_is_said_once_and_their_mean_lasts(
    whole: tuple[Workspace, str],
) -> None:
    place, said = whole
    table = (place.out / "stage1" / "loaded.txt").read_text()
    assert table.splitlines()[1].startswith("loaded        34  conv1_1, conv1_2, ")
    assert said.count(table) == 1
    for stage in STAGES:
        mean = load_final(place.out / stage / "final")["network.mean_bgr"]
        assert mean.tolist() == pytest.approx([103.53, 116.28, 123.675])
    assert not (place.out / "stage2" / "loaded.txt").exists()


def test_another_config_is_refused_by_field(place: Workspace, jointseg: CommandLine) -> None:
    said = jointseg("run", "--out", str(place.out), "--set", "crf.theta_beta=4", code=2)
    assert said.count("\n") == 1
    assert "crf.theta_beta is 3.0 there and 4.0 here" in said


def test_the_folder_holds_what_readme_promises(place: Workspace) -> None:
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


def test_mlflow_has_each_run_once(place: Workspace) -> None:
    check_that_mlflow_has_each_run_once(place)


@pytest.mark.slow
def test_another_study_has_a_folder_of_its_own_and_leaves_what_stage_3_began_from(
    place: Workspace, jointseg: CommandLine
) -> None:
    before, study = place.crf_settings.read_bytes(), place.study()
    said = jointseg("search", "--out", str(place.out), "--space", "crf_weights", "--trials", "2")
    assert f"{place.crf_settings} stays: stage3_sem_crf and stage3 began from study {study.name}" in said
    assert place.crf_settings.read_bytes() == before
    (other,) = (path for path in place.search.iterdir() if path.name not in {study.name, "unaries"})
    result = json.loads((other / "crf_settings.json").read_text())
    assert (result["study"], result["trials"], len(result["searched"])) == (other.name, 2, 3)


def test_the_winner_and_the_four_rows_come_out_again_to_the_last_digit(place: Workspace, jointseg: CommandLine) -> None:
    client = MlflowClient(f"sqlite:///{place.out / 'mlflow.db'}")
    search = next(run for run in all_runs(client, place) if run.data.tags[KEY_TAG] == f"search/{place.study().name}")
    said = jointseg("reproduce", f"mlflow:{search.info.run_id}", "--out", str(place.out))
    assert "to the last digit" in said
    assert "to the last digit" in jointseg("reproduce", str(place.out / "report.json"))


@pytest.mark.slow
def test_with_other_instructions_the_winner_comes_out_within_the_tolerance_stated(
    place: Workspace, jointseg: CommandLine
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
    command = [sys.executable, "-c", program, "reproduce", str(place.crf_settings), "--tolerance", "0.001"]
    environment = {**jointseg.environment, **least}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("DEFAULT generic\n")
    assert "within 0.001" in done.stdout


@pytest.mark.slow
def test_a_search_in_the_background_ends_on_sigterm_as_on_ctrl_c(place: Workspace, jointseg: CommandLine) -> None:
    """As `timeout` and schedulers end it, which signal all of its group: Ray's own processes are to hear nothing of it."""
    words = ("search", "--out", str(place.out), "--space", "crf_bandwidths", "--trials", "500")
    with jointseg.in_background(*words) as (process, printed):
        deadline = time.monotonic() + 400
        while not any(len(read_lines(log)) >= 2 for log in place.search.glob("crf_bandwidths-*/log.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline, printed.read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=180)
        said = printed.read_text()
    assert process.returncode == 130, said
    assert "interrupted; the same command goes on" in said
    runs = all_runs(MlflowClient(f"sqlite:///{place.out / 'mlflow.db'}"), place)
    (study,) = place.search.glob("crf_bandwidths-*")
    assert {run.info.run_name for run in runs if run.info.status != "FINISHED"} == {f"search {study.name}"}


def test_the_winner_and_the_papers_point_score_what_the_search_said(place: Workspace, jointseg: CommandLine) -> None:
    said = jointseg("score", "--out", str(place.out), str(place.crf_settings))
    found = json.loads(place.crf_settings.read_text())
    (path,) = (place.search / "scores").glob("validation-*.json")
    record = json.loads(path.read_text())
    scores = record["scores"]
    rows, confusion_NCC = read_confusions(path.parent / record["confusions"][str(place.crf_settings)])
    assert [row["frame"] for row in rows] == record["frames"]
    assert mean_iou(confusion_NCC.sum(0), absent=record["absent_classes"]) == found["score"]
    assert scores[str(place.crf_settings)]["mean_iou"] == found["score"]
    assert scores["the paper's settings"]["mean_iou"] == found["paper_score"]
    assert scores["the paper's settings"]["gain"] == {"difference": 0, "low": 0, "high": 0}
    assert scores[str(place.crf_settings)]["gain"] == {name: found["gain"][name] for name in ("difference", "low", "high")}
    assert f"{100 * found['score']:.2f}" in said
    runs = all_runs(MlflowClient(f"sqlite:///{place.out / 'mlflow.db'}"), place)
    (run,) = [run for run in runs if run.info.run_name.startswith("score validation-")]
    assert run.data.metrics["settings_1/mean_iou"] == found["score"]
    assert run.data.tags["settings_1"] == str(place.crf_settings)


def test_a_picture_is_predicted_as_the_evaluation_did(place: Workspace, jointseg: CommandLine, tmp_path: Path) -> None:
    for row, stage in (("sem_crf_plus", "3"), ("unary_sem", "1")):
        ((number, expected),) = list(load_predictions(place, row).items())[:1]
        picture = tmp_path / f"{row}.png"
        Image.fromarray(Store.open(place.store).frame(number).image).save(picture)
        jointseg("predict", "--out", str(place.out), "--stage", stage, "--to", str(tmp_path / "to"), str(picture))
        with Image.open(tmp_path / "to" / f"{row}.classes.png") as classes:
            assert (np.asarray(classes) == expected.labels).mean() > 0.999  # on other threads it may round otherwise


def test_real_frames_have_the_papers_numbers_beside_their_own(place: Workspace, shared: Path) -> None:
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
