"""What the command line refuses, in one line and before anything is made: settings, folders.

Not here: words that cannot be read (test_cli.py), data (test_cli_data.py).
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.workspace import Workspace
from tests.commands import CONFIGURABLE

# Settings


def test_an_unknown_preset_lists_the_known_ones(mistake):
    assert (
        mistake("run", "--out", "x", "--preset", "huge")
        == "--preset: 'huge' is not a preset; allowed: demo, small, modern, paper"
    )


@pytest.mark.parametrize("words", CONFIGURABLE, ids=" ".join)
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("crf.theta_bta=4", "crf.theta_bta: unknown setting; known under crf: theta_alpha, theta_beta,"),
        ("colour=4", "colour: unknown setting; known at the top: preset, seed,"),
        ("crf=4", "crf: names a group, not a setting; its settings: theta_alpha,"),
        ("crf.theta_beta=-4", "crf.theta_beta: -4 is not allowed; allowed: a number > 0"),
        ("crf.theta_beta=wide", "crf.theta_beta: 'wide' is not allowed; allowed: a number > 0"),
        ("crf.theta_beta", "crf.theta_beta: not an override; write PATH=VALUE, such as crf.theta_beta=4"),
        ("=4", "=4: not an override; write PATH=VALUE"),
        ("network.input_size=66", "network.input_size: 66 is not allowed; allowed: 8k + 1"),
        ("data.crop_scale_min=0.95", "data: crop_scale_min is 0.95; allowed: up to crop_scale_max = 0.9"),
    ],
)
def test_a_bad_override_is_named_by_every_command_that_takes_them(mistake, words, override, said):
    stage = ("--stage", "1") if words == ("train",) else ()
    assert mistake(*words, "--out", "x", *stage, "--set", override).startswith(said)
    assert not Path("x").exists()


def test_a_bad_number_is_told_what_is_allowed_and_no_more(mistake):
    said = mistake("run", "--out", "x", "--set", "crf.theta_beta=wide")
    assert said == "crf.theta_beta: 'wide' is not allowed; allowed: a number > 0"


def test_a_relative_path_is_no_setting_where_the_folder_one_is_in_is_not_text(mistake, monkeypatch, tmp_path):
    (tmp_path / "a\udce9").mkdir()
    monkeypatch.chdir(tmp_path / "a\udce9")
    said = mistake("run", "--out", tmp_path / "x", "--set", "data.source=nyu")
    assert said == f"data.source: {tmp_path}/a?/nyu is not allowed; allowed: UTF-8"


@pytest.mark.parametrize("words", [("run", "--out", ""), ("run", "--out", "x", "--data", ""), ("data", "rooms", "--out", "")])
def test_an_empty_path_is_not_the_folder_one_is_in(mistake, words, tmp_path):
    assert "is empty; allowed: a path" in mistake(*words)
    assert not list(tmp_path.iterdir())


def test_the_last_of_two_overrides_of_one_path_stands(mistake):
    assert "-2 is not allowed" in mistake("run", "--out", "x", "--set", "crf.w_depth=4", "--set", "crf.w_depth=-2")


def test_an_option_is_taken_whatever_its_value(mistake):
    assert mistake("search", "--out", "x", "--trials", "0").startswith("search.trials: 0 is not allowed")


# Predictions


def test_a_stage_that_is_none_or_has_not_finished_predicts_nothing(mistake, tmp_path):
    allowed = "allowed: 1, 2, 3_sem_crf, 3, one_stage"
    assert mistake("predict", "--out", "x", "--stage", "4", "a.jpg") == f"--stage: '4' is not a stage; {allowed}"
    said = f"{tmp_path / 'x'}: no such folder; predict needs one in which stage3 has finished"
    assert mistake("predict", "--out", "x", "a.jpg") == said
    assert not (tmp_path / "x").exists()


# The folder


def test_a_file_is_no_folder_of_a_run(mistake, tmp_path):
    (tmp_path / "notes.txt").touch()
    for words in (["run"], ["search"], ["evaluate"]):
        said = f"--out: {tmp_path / 'notes.txt'} is a file; allowed: a folder, or a path where nothing is"
        assert mistake(*words, "--out", "notes.txt") == said


def test_the_ui_is_refused_what_is_no_name_of_a_machine(mistake, tmp_path):
    Workspace(tmp_path / "run").adopt_config(demo())
    said = "--host 127.0..1 --port 5000: cannot be listened on: no name of a machine; allowed: a free port"
    assert mistake("ui", "--out", "run", "--host", "127.0..1") == said


def test_the_ui_is_refused_a_port_where_another_listens(mistake, tmp_path):
    Workspace(tmp_path / "run").adopt_config(demo())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = f"--host 127.0.0.1 --port {port}: cannot be listened on: Address already in use; allowed: a free port"
        assert mistake("ui", "--out", "run", "--port", str(port)) == said


@pytest.mark.parametrize("words", CONFIGURABLE, ids=" ".join)
def test_a_folder_with_files_of_its_own_is_refused(mistake, tmp_path, words):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    stage = ("--stage", "1") if words == ("train",) else ()
    message = mistake(*words, "--out", "thesis", *stage)
    assert message.startswith(f"{tmp_path / 'thesis'}: holds files but no config.json; ")


@pytest.mark.parametrize("name", ["a%20b", "run?x=1", "a\udce9b"])
def test_a_folder_that_mlflow_could_not_have_its_store_in_is_refused(mistake, tmp_path, name):
    said = mistake("run", "--out", name)
    assert said.startswith("--out: ")
    assert "is not allowed; allowed: " in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("run", "--data", "a\udce9"), "--data"),
        (("run", "--set", "data.source=a\udce9"), "data.source"),
        (("run", "--set", 'network.weights="a\\ud800"'), "network.weights"),
        (("run", "--set", "search.settings=a\udce9"), "search.settings"),
        (("search", "--space", "a\udce9.py:draw"), "search.space"),
        (("search", "--space", "a\udce9"), "search.space"),
        (("run", "--set", "preset=a\udce9"), "preset"),
        (("search", "--start", "a\udce9"), "search.start"),
        (("score", "a\udce9"), "FILES"),
    ],
)
def test_a_name_that_is_not_text_is_no_setting(mistake, tmp_path, words, name):
    (tmp_path / "a\udce9").mkdir()
    said = mistake(*words, "--out", "x")
    assert said.startswith(f"{name}: ")
    assert "a?" in said
    assert said.endswith(" is not allowed; allowed: UTF-8")
    assert not (tmp_path / "x").exists()


def test_another_config_is_refused_by_field(mistake, tmp_path):
    Workspace(tmp_path / "run").adopt_config(demo())
    message = mistake("run", "--out", "run", "--set", "crf.theta_beta=4")
    assert message == f"{tmp_path / 'run'}: was made with another config: crf.theta_beta is 3.0 there and 4.0 here"
    assert "preset is 'demo' there and 'paper' here; network.width is 0.25" in mistake(
        "run", "--out", "run", "--preset", "paper"
    )


def test_a_damaged_config_is_named(mistake, tmp_path):
    Workspace(tmp_path / "run").adopt_config(demo())
    (tmp_path / "run" / "config.json").write_text("{")
    assert mistake("run", "--out", "run").startswith(f"{tmp_path / 'run' / 'config.json'}: not a config (")


@pytest.mark.parametrize("stage", ["7", "", "stage7", "3_crf", "stage"])
def test_an_unknown_stage_lists_the_known_ones(mistake, stage):
    assert mistake("train", "--out", "x", "--stage", stage) == (
        f"--stage: {stage!r} is not a stage; allowed: 1, 2, 3_sem_crf, 3, one_stage"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--stage", "2"], "stage2 needs one in which stage1"),
        (["train", "--stage", "3"], "stage3 needs one in which search"),
        (["train", "--stage", "3_sem_crf"], "stage3_sem_crf needs one in which search"),
        (["search"], "search needs one in which stage2"),
        (["evaluate"], "evaluate needs one in which stage1"),
    ],
)
def test_a_missing_earlier_phase_is_named_and_leaves_no_folder(mistake, tmp_path, words, said):
    message = mistake(*words, "--out", "x")
    assert message == f"{tmp_path / 'x'}: no such folder; {said} has finished"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("missing", ["stage1", "stage2", "stage3_sem_crf", "stage3"])
def test_an_evaluation_needs_every_row(mistake, tmp_path, missing):
    place = Workspace(tmp_path / "run")
    place.adopt_config(demo())
    for phase in ("data", "stage1", "stage2", "search", "stage3_sem_crf", "stage3"):
        if phase != missing:
            place.finish(phase, seconds=1)
    assert f"evaluate needs {missing}, which has not finished" in mistake("evaluate", "--out", "run")


def test_a_search_may_have_settings_of_its_own_beside_the_folders_config_and_no_others(mistake, tmp_path):
    Workspace(tmp_path / "run").adopt_config(demo())
    assert "search needs stage2" in mistake("search", "--out", "run", "--space", "crf_weights", "--trials", "3")
    assert "crf.theta_beta is 3.0 there and 4.0 here" in mistake("search", "--out", "run", "--set", "crf.theta_beta=4")


def test_an_unknown_search_space_is_named_before_anything_is_made(mistake, tmp_path):
    message = mistake("run", "--out", "x", "--set", "search.space=all")
    assert message.startswith("search.space: 'all' is not in tune_spaces/; allowed: crf, crf_bandwidths, crf_weights")
    assert not (tmp_path / "x").exists()


def test_a_finished_phase_is_said_to_be_finished(jointseg, tmp_path):
    place = Workspace(tmp_path / "run")
    place.adopt_config(demo())
    for phase in ("data", "stage1"):
        place.finish(phase, seconds=1)
    code, out, _ = jointseg("train", "--out", "run", "--stage", "1")
    assert (code, out) == (0, f"{place.out}: data, stage1 finished already; nothing to do\n")


def test_more_folds_than_frames_are_refused_before_anything_is_made(mistake, tmp_path):
    message = mistake("run", "--out", "x", "--set", "data.validation_frames=4")
    assert message == "search.folds: 5 folds of 4 frames (data.validation_frames); allowed: 2..4"
    assert not (tmp_path / "x").exists()


def test_one_validation_frame_is_too_few_for_a_search(mistake, tmp_path):
    message = mistake("run", "--out", "x", "--set", "data.validation_frames=1", "--set", "search.folds=2")
    assert message == "data.validation_frames: 1 is too few for the folds of the search; allowed: from 2 up"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("out", ["nowhere", "."])
def test_the_store_of_what_is_no_run_is_neither_shown_nor_made(mistake, tmp_path, out):
    folder = (tmp_path / out).resolve()
    assert mistake("ui", "--out", out) == f"{folder / 'config.json'}: not found; {folder} is not the folder of a run"
    assert list(tmp_path.iterdir()) == []


def test_runs_that_a_server_has_are_looked_at_there(mistake, monkeypatch, tmp_path):
    Workspace(tmp_path / "run").adopt_config(demo())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert (
        mistake("ui", "--out", "run") == f"--out: the runs of {tmp_path / 'run'} are at http://server:5000; look at them there"
    )


def test_a_job_needs_an_absolute_folder(mistake, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert mistake("run", "--out", "x").startswith("--out: x is relative, and a job's working directory is a copy")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nyu"), "--data: nyu is relative, and a job's"),
        (("--set", "network.weights=vgg16.pth"), "network.weights: vgg16.pth is relative, and a job's"),
        (("--set", "search.space=mine.py:draw"), "search.space: mine.py:draw is relative, and a job's"),
    ],
)
def test_a_job_takes_no_relative_path(mistake, monkeypatch, tmp_path, words, said):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert mistake("run", "--out", tmp_path / "run", *words).startswith(said)


def test_a_jobs_pictures_go_to_no_relative_folder(mistake, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    said = mistake("predict", "--out", tmp_path / "run", "--to", "there", tmp_path / "a.png")
    assert said.startswith("--to: there is relative, and a job's")


def test_a_store_that_would_keep_nothing_is_refused_before_anything_is_made(mistake, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    assert mistake("run", "--out", "x").startswith("MLFLOW_TRACKING_URI: sqlite:// is no file")
    assert list(tmp_path.iterdir()) == []


def test_ray_client_is_refused(mistake, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    message = mistake("run", "--out", "x")
    assert message.startswith(
        "RAY_ADDRESS: 'ray://127.0.0.1:10001' is Ray Client's; allowed: HOST:6379 from one of its nodes, or"
    )


def test_a_space_that_is_gone_matters_no_more_once_the_search_is_over(jointseg, tmp_path):
    place = Workspace(tmp_path / "run")
    place.out.mkdir()
    config = with_overrides(demo(), {"search.space": str(tmp_path / "gone.py")})
    place.adopt_config(config)
    for phase in ("data", "stage1", "stage2", "search", "stage3_sem_crf"):
        place.finish(phase, seconds=1.0)
    code, *printed = jointseg("train", "--stage", "3_sem_crf", "--out", place.out)
    assert (code, "stage3_sem_crf finished already; nothing to do" in "".join(printed)) == (0, True)
