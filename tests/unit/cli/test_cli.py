"""Laws of the command line: help, exit codes, what reaches the pipeline. Not here: what it refuses (test_cli_refusals.py), how
it ends (test_cli_endings.py), runs that start Ray (integration tests).
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.run
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.workspace import Workspace
from tests.commands import COMMANDS

# Help


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_exits_0_and_says_each_option_and_what_it_is(jointseg, words):
    code, out, _ = jointseg(*words, "--help")
    assert code == 0
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "option":
            assert all(name in out for name in parameter.opts)
        assert parameter.help, f"{words} {parameter.name} has no help"
        assert " ".join(parameter.help.split()[:4]) in out


def test_help_names_every_command_and_how_to_begin(jointseg):
    code, out, _ = jointseg("--help")
    assert code == 0
    assert "jointseg run --preset demo --out runs/demo" in out
    assert all(words[0] in out for words in COMMANDS)


def test_the_commands_are_these():
    assert {" ".join(words) for words in COMMANDS} == {
        "data rooms", "data check", "data prepare", "run", "train", "search", "evaluate", "predict", "reproduce", "score", "ui",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run"], "--out"),
        (["train", "--out", "x"], "--stage"),
        (["run", "--out", "x", "--colour"], "--colour"),
        (["fly"], "fly"),
        (["data", "rooms", "--out", "x", "--frames", "1"], "--frames"),
        (["data", "rooms", "--out", "x", "--seed", "-1"], "--seed"),
        (["data", "check"], "FOLDER"),
        (["data"], "Missing command"),
        (["search", "--out", "x", "--trials", "many"], "--trials"),
        (["ui", "--out", "x", "--port", "0"], "--port"),
    ],
)
def test_a_command_that_cannot_be_read_exits_2_and_names_the_word_in_one_line(mistake, words, named):
    said = mistake(*words)
    assert named.lower() in said.lower()
    assert said.endswith("--help says more)")


def test_version_says_what_numbers_come_from(jointseg):
    code, out, err = jointseg("--version")
    assert (code, err) == (0, "")
    assert out.startswith(f"jointseg {metadata.version('jointseg')}, python ")
    assert {"torch", "numba", "ray", "optuna", "mlflow", "commit"} <= set(out.replace(",", " ").split())
    assert len(out.splitlines()) == 1


def test_no_command_shows_the_help(jointseg):
    code, out, err = jointseg()
    assert (code, err) == (0, "")
    assert "Usage: jointseg" in out


# What reaches the pipeline

TRAIN = ("train", "--stage", "1")


@pytest.fixture
def given(jointseg, monkeypatch):
    """The config, folder and phases that a command would run."""
    kept = []
    monkeypatch.setattr(pipeline.run, "run_phases", lambda config, place, phases, **_: kept.append((config, place, phases)))
    monkeypatch.setattr(
        pipeline.run, "run_search_command", lambda config, place, **_: kept.append((config, place, ("search",)))
    )

    def run(*words):
        assert jointseg(*words)[0] == 0
        return kept[-1]

    return run


def test_without_a_preset_a_new_folder_gets_the_demo_and_an_old_one_its_own(given, tmp_path):
    assert given(*TRAIN, "--out", "x")[0] == demo()
    own = with_overrides(demo(), {"seed": 9})
    Workspace(tmp_path / "run").adopt_config(own)
    assert given(*TRAIN, "--out", "run")[0] == given("search", "--out", "run")[0] == own
    assert given(*TRAIN, "--out", "run", "--preset", "demo")[0] == demo()


def test_paths_do_not_hang_on_where_the_command_was_called(given, tmp_path):
    (tmp_path / "nyu").mkdir()
    for words in (["--data", "nyu"], ["--set", "data.source=nyu"]):
        config, place, _ = given("train", "--stage", "1", "--out", "runs/../x", *words)
        assert config.data.source == tmp_path / "nyu"
        assert place.out == tmp_path / "x"
    config, _, _ = given(*TRAIN, "--out", "x", "--set", "network.weights=~/vgg.safetensors")
    assert config.network.weights == Path.home() / "vgg.safetensors"
    config, _, _ = given("search", "--out", "x", "--space", "mine.py:draw", "--start", "best.json")
    assert config.search.space == f"{tmp_path / 'mine.py'}:draw"
    assert config.search.start == tmp_path / "best.json"
    config, _, _ = given("search", "--out", "x", "--set", "search.node_folder=node")
    assert config.search.node_folder == tmp_path / "node"
    config, _, _ = given(*TRAIN, "--out", "x", "--set", "search.settings=a/crf_settings.json")
    assert config.search.settings == tmp_path / "a" / "crf_settings.json"


def test_a_searchs_own_options_are_settings(given):
    words = ("--space", "crf_weights", "--trials", "7", "--concurrent", "2", "--objective", "miou,seconds")
    found = given("search", "--out", "x", *words, "--set", "search.folds=3")[0]
    settings = {"space": "crf_weights", "trials": 7, "concurrent": 2, "objective": "miou,seconds", "folds": 3}
    assert found == with_overrides(demo(), {f"search.{name}": value for name, value in settings.items()})


def test_a_searchs_option_stands_over_its_setting_and_data_over_its_own(given, tmp_path):
    assert given("search", "--out", "x", "--trials", "7", "--set", "search.trials=9")[0].search.trials == 7
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert given(*TRAIN, "--out", "x", "--data", "one", "--set", "data.source=two")[0].data.source == tmp_path / "one"


@pytest.mark.parametrize(
    ("stage", "name"), [("1", "stage1"), ("stage2", "stage2"), ("3", "stage3"), ("3_sem_crf", "stage3_sem_crf")]
)
def test_a_stage_runs_itself_and_the_data_it_needs(given, stage, name):
    assert given("train", "--out", "x", "--stage", stage)[2] == ("data", name)


def test_an_evaluation_ends_with_its_report(given, monkeypatch):
    monkeypatch.setattr("pipeline.report.summary", lambda place: "")
    assert given("evaluate", "--out", "x")[2] == ("evaluate", "report")


@pytest.fixture
def called(jointseg, monkeypatch):
    """Runs a command whose work, a function, comes to this: its exit code, and what the function was given."""

    def run(work, *words, comes_to=None):
        kept = []
        monkeypatch.setattr(work, lambda *given, **named: kept.append((given, named)) or comes_to)
        code, *_ = jointseg(*words)
        return code, *kept[-1]

    return run


def test_settings_are_scored_on_the_validation_frames_unless_the_test_split_is_asked_for(called, monkeypatch):
    monkeypatch.setattr("pipeline.score.score_table", lambda *_, **__: "")
    for words, split in (((), "validation"), (("--split", "test"), "test")):
        code, (_, _, files), named = called("pipeline.score.score_settings", "score", "--out", "x", "a.json", *words)
        assert (code, files, named["split"]) == (0, [Path("a.json")], split)


def test_a_score_may_go_by_other_rules_than_the_run_and_by_no_other_settings(called, mistake, tmp_path, small):
    Workspace(tmp_path / "run").adopt_config(small)
    rules = ("--set", "evaluation.scales=[1,1.25]", "--set", "evaluation.crop=eigen")
    code, (config, *_), _ = called("pipeline.score.score_settings", "score", "--out", "run", *rules, comes_to={})
    assert (code, config.evaluation.scales, config.evaluation.crop) == (0, (1, 1.25), "eigen")
    said = mistake("score", "--out", "run", "--set", "network.dropout=0.4")
    assert "was made with another config: network.dropout is" in said


def test_predictions_go_to_a_folder_of_their_stage_unless_another_is_named(called, tmp_path):
    place = Workspace(tmp_path / "run")
    for stage in ("stage1", "stage3"):
        place.finish(stage, seconds=1)
    for words, stage in (((), "stage3"), (("--stage", "1"), "stage1")):
        _, (final, pictures, to), _ = called("pipeline.predict.predict_files", "predict", "--out", "run", "a.jpg", *words)
        assert (final, to) == (place.out / stage / "final", place.out / "predictions" / stage)
        assert pictures == [Path("a.jpg")]
    words = ("predict", "--out", "run", "--to", "t", "a.jpg")
    _, given, named = called("pipeline.predict.predict_files", *words)
    assert (given[2], named["one_view"]) == (Path("t"), False)
    assert called("pipeline.predict.predict_files", *words, "--one-view")[2]["one_view"]


@pytest.mark.parametrize(("equal", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_a_result_came_out_again(called, equal, code):
    words = ("reproduce", "trial.json", "--tolerance", "0.001", "--data", "d", "--out", "o")
    found, (what,), named = called("pipeline.reproduce.reproduce", *words, comes_to=equal)
    assert (found, what, named["tolerance"], named["data"], named["out"]) == (code, "trial.json", 0.001, Path("d"), Path("o"))
    assert called("pipeline.reproduce.reproduce", "reproduce", "trial.json", comes_to=equal)[2]["tolerance"] == 0


@pytest.mark.parametrize(("frames", "train", "test"), [(2, 1, 1), (3, 2, 1), (80, 60, 20)])
def test_three_quarters_of_the_rooms_are_to_train_on(called, frames, train, test):
    words = ("data", "rooms", "--out", "r", "--frames", str(frames), "--seed", "7")
    _, _, named = called("pipeline.commands.data.write_rooms", *words)
    assert (named["num_train"], named["num_test"], named["seed"]) == (train, test, 7)


def test_rooms_are_rendered_on_all_cpus_up_to_eight(called, monkeypatch):
    for cpus, processes in ((3, 3), (64, 8), (1, 1)):
        monkeypatch.setattr("jointseg.data.rooms.usable_cpus", lambda cpus=cpus: cpus)
        assert called("pipeline.commands.data.write_rooms", "data", "rooms", "--out", "r")[2]["num_processes"] == processes


def test_the_ui_listens_to_this_machine_alone(jointseg, monkeypatch, tmp_path):
    Workspace(tmp_path / "run").adopt_config(demo())
    monkeypatch.setattr("pipeline.tracking.Tracker.open", lambda out: SimpleNamespace(experiment_id="5"))
    kept = []
    monkeypatch.setattr(os, "execv", lambda program, words: kept.append(words))
    monkeypatch.setattr("pipeline.commands.results._refuse_taken", lambda *_: None)
    assert jointseg("ui", "--out", "run")[0] == 0
    assert kept[0][kept[0].index("--host") + 1] == "127.0.0.1"


def test_there_are_two_splits_to_score_on(mistake):
    assert mistake("score", "--out", "x", "--split", "train").startswith("--split: 'train' is not a split; allowed: test, ")


def test_workers_that_the_cluster_has_no_room_for_are_refused_before_a_folder_is_made(mistake, monkeypatch):
    def refuse(config):
        raise InputError(f"no room for {config.training.num_workers}")

    monkeypatch.setattr("pipeline.run.connected", lambda **_: nullcontext())
    monkeypatch.setattr("pipeline.run.require_resources", refuse)
    words = ("train", "--stage", "1", "--preset", "demo", "--out", "run", "--set", "training.num_workers=500")
    assert mistake(*words) == "no room for 500"
    assert not Path("run").exists()
