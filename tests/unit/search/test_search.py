"""Laws of a study in a run's folder: which it is, when it has a result, and whether stage 3 starts from that.

Not here: its trials (test_study.py), what a result says of them (test_search_result.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.search_config import SearchConfig
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from pipeline import cluster, search
from pipeline.study import trial
from pipeline.study.room import require_room
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace
from tests.checkpoints import untrained_final

TRIALS = 6


def study_of(place, *, trials=TRIALS, name="crf-tpe-0", resamples=50):
    config = with_overrides(demo(), {"search.trials": trials, "search.resamples": resamples})
    return search.Study(config, None, (), (), place.search / name, {})


def result_of(study):
    """What a study leaves as its last act."""
    folds = {"mean": 0.3, "standard_error": 0.1}
    result = {
        "study": study.folder.name, "settings": {"crf.theta_beta": 3.0}, "search": flatten(study.config.search), "score": 0.3,
        "paper_score": 0.3, "trial": 0, "trials": study.config.search.trials, "folds": folds, "nested": {"score": 0.3},
        "gain": None, "failed": 0, "stopped": 0,
    }  # fmt: skip
    study.folder.mkdir(parents=True)
    (study.folder / "crf_settings.json").write_text(json.dumps(result))
    return result


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path / "run")


# Which study it is


def at_stage_2(folder, rooms, config, frames):
    """A run's folder whose stage 2 has finished."""
    place = Workspace(folder)
    place.final(STAGES["stage2"]).parent.mkdir(parents=True)
    untrained_final("stage2", config, place.final(STAGES["stage2"]))
    place.store.symlink_to(rooms.path)
    place.validation.write_text(json.dumps({"frames": frames, "seed": 0, "digest": f"digest of {frames}"}))
    return place


@pytest.fixture(scope="module")
def stage_2(rooms, small, tmp_path_factory):
    return at_stage_2(tmp_path_factory.mktemp("run") / "run", rooms, small, rooms.train)


def folder_of(small, place, changes=None):
    return search.open_study(with_overrides(small, {"search.folds": 2, **(changes or {})}), place).folder.name


SAME = {
    "search.trials": 7, "search.resamples": 9, "search.concurrent": 2, "search.filter_cache": 0, "search.node_folder": "/tmp/n",
    "search.settings": "/tmp/crf_settings.json",
}  # fmt: skip
OTHER = {
    "search.batch": 3, "search.seed": 1, "search.early_stop": True, "search.startup_trials": 3, "search.sampler": "random",
    "search.space": "crf_weights", "search.objective": "miou,boundary_f1", "search.fidelity": "finetune",
    "search.finetune_iterations": 7, "search.folds": 3, "search.grid_levels": 4, "search.cpus_per_trial": 2,
    "search.gpus_per_trial": 0.5, "search.start": "start.json",
    "crf.theta_beta": 4.0, "evaluation.crop": "eigen", "evaluation.absent_classes": "zero",
    "evaluation.mirror": True, "evaluation.scales": [1, 1.25],
}  # fmt: skip


def test_every_setting_of_the_search_is_either_of_the_same_study_or_of_another():
    of_the_search = [path for path in (*SAME, *OTHER) if path.startswith("search.")]
    assert sorted(of_the_search) == sorted(f"search.{name}" for name in SearchConfig.model_fields)


@pytest.mark.parametrize("path", SAME)
def test_what_changes_no_trial_is_the_same_study(stage_2, small, path):
    assert folder_of(small, stage_2, {path: SAME[path]}) == folder_of(small, stage_2)


@pytest.mark.parametrize("path", OTHER)
def test_whatever_trials_hang_on_makes_another_study(stage_2, small, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("start.json").write_text('{"crf.theta_beta": 4.0}')
    digests = {folder_of(small, stage_2, own)[-8:] for own in ({}, {path: OTHER[path]})}
    assert len(digests) == 2


def test_of_the_start_the_point_counts_and_not_the_file(stage_2, small, tmp_path):
    found = []
    for name, value in (("one", 4.0), ("other", 4.0), ("third", 5.0)):
        (tmp_path / name).write_text(json.dumps({"crf.theta_beta": value}))
        found.append(folder_of(small, stage_2, {"search.start": str(tmp_path / name)}))
    assert found[0] == found[1] != found[2]


def test_other_frames_by_their_digest_make_another_study(stage_2, small, monkeypatch):
    found = []
    for digest in ("one", "other"):
        monkeypatch.setattr(search.Store, "open", lambda _, own=digest: SimpleNamespace(scene_types=None, digest=own))
        found.append(folder_of(small, stage_2))
    assert found[0] != found[1]


@pytest.mark.parametrize(("objective", "num_studies"), [("miou,boundary_f1", 2), ("miou", 1)])
def test_boundaries_of_another_definition_make_another_study_where_they_are_scored(
    stage_2, small, monkeypatch, objective, num_studies
):
    found = set()
    for definition in (1, 2):
        monkeypatch.setattr(search.boundary, "DEFINITION", definition)
        found.add(folder_of(small, stage_2, {"search.objective": objective}))
    assert len(found) == num_studies


def test_other_weights_and_other_frames_make_another_study(stage_2, rooms, small, tmp_path):
    weights = at_stage_2(tmp_path / "weights", rooms, with_overrides(small, {"seed": 1}), rooms.train)
    frames = at_stage_2(tmp_path / "frames", rooms, small, rooms.train[1:])
    assert len({folder_of(small, place) for place in (stage_2, weights, frames)}) == 3


def test_folds_are_the_seeds_and_balanced_by_the_scene_types_of_their_own_frames(rooms, small, tmp_path, monkeypatch):
    """Frames are numbered from 1."""
    place = at_stage_2(tmp_path / "run", rooms, small, (2, 4, 6, 8))
    types = ("attic", "bath", "attic", "bath", "attic", "hall", "attic", "hall", "attic")
    monkeypatch.setattr(search.Store, "open", lambda _: SimpleNamespace(scene_types=types, digest="d"))
    drawn = set()
    for seed in range(8):
        study = search.open_study(with_overrides(small, {"search.folds": 2, "search.seed": seed}), place)
        assert study.folds[0] != study.folds[1]
        assert study.folds[2] != study.folds[3]
        drawn.add(study.folds)
    assert len(drawn) > 1
    assert study.identity["balanced_by"] == "scene type"


def test_folds_are_whole_scenes_where_validation_is(rooms, small, tmp_path):
    place = at_stage_2(tmp_path / "run", rooms, small, (2, 3, 4, 6, 8, 9))
    scenes = with_overrides(small, {"data.validation_by": "scene", "search.folds": 3})
    study = search.open_study(scenes, place)
    assert study.folds[0] == study.folds[1] == study.folds[2]
    assert study.folds[4] == study.folds[5]
    assert len({study.folds[0], study.folds[3], study.folds[4]}) == 3
    assert study.identity["balanced_by"] == "whole scenes"
    with pytest.raises(InputError, match=r"^search\.folds: 4 folds of 3 scenes \(data\.validation_by=scene\); allowed"):
        search.open_study(with_overrides(scenes, {"search.folds": 4}), place)


def test_as_many_folds_as_frames_are_allowed():
    search.check_search(with_overrides(demo(), {"data.validation_frames": 5, "search.folds": 5}))


# Its result


def test_a_study_has_a_result_once_it_has_the_trials_asked_for_or_more(place):
    assert search.finished_result(study_of(place)) is None
    result = result_of(study_of(place))
    for trials, found in ((TRIALS, result), (2, result), (TRIALS + 1, None)):
        assert search.finished_result(study_of(place, trials=trials)) == found
    assert search.finished_result(study_of(place, resamples=99)) is None
    assert search.finished_result(study_of(place, resamples=99, trials=1)) == result
    (study_of(place).folder / search.UNTOLD).touch()
    assert search.finished_result(study_of(place)) is None, "MLflow was gone: the same command tells it"
    assert search.finished_result(study_of(place, trials=1)) == result, "fewer would take its place"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"cpus_per_trial": 16}, None),
        ({"cpus_per_trial": 2, "gpus_per_trial": 1}, None),
        ({"cpus_per_trial": 17}, r"search\.cpus_per_trial: 17 CPU are asked for; allowed: up to 16, the most that a node has"),
        ({"cpus_per_trial": 8, "gpus_per_trial": 1}, "8 CPU and 1 GPU are asked for, and no node has both"),
    ],
)
def test_a_trial_that_no_node_has_room_for_is_refused(monkeypatch, wanted, said):
    """A node has it all: Ray would wait for ever for CPUs of one and a GPU of another."""
    nodes = [{"CPU": 16.0}, {"CPU": 2.0, "GPU": 1.0}]
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in nodes)])
    config = with_overrides(demo(), {f"search.{name}": value for name, value in wanted.items()})
    if said is None:
        require_room(config)
    else:
        with pytest.raises(InputError, match=said):
            require_room(config)


@pytest.mark.parametrize(
    ("cpus", "gigabytes", "cpus_per_trial", "megabytes"), [(2, 24, 1, 1536), (8, 16, 1, 512), (8, 16, 4, 1536), (1, 2, 4, 512)]
)
def test_filters_of_all_processes_take_no_more_than_a_quarter_of_the_memory(
    monkeypatch, cpus, gigabytes, cpus_per_trial, megabytes
):
    monkeypatch.setattr(trial, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(trial, "usable_memory", lambda: gigabytes * 2**30)
    settings = with_overrides(demo(), {"search.cpus_per_trial": cpus_per_trial}).search
    assert trial.kept_bytes(settings, 0) == (megabytes * 2**20, 0)


def test_why_trials_failed_is_said_once_for_each_reason(place, monkeypatch, capsys):
    errors = [None, "crf.theta_beta: -5.0 is not allowed", "crf.theta_beta: -1.25e-07 is not allowed", "no"]
    own = {"mean_iou": None, "state": "failed", "point": {}}
    lines = [{"trial": number, "error": error, **own} for number, error in enumerate(errors)]
    monkeypatch.setattr(search, "run_study", lambda *_, tell, **__: [tell(line) for line in lines])
    asker, gone = SimpleNamespace(limit=lambda trials: trials), SimpleNamespace(is_gone=True)
    search._run_trials(study_of(place), None, asker, tracker=gone, run="r", screen=Terminal(), verbose=False)
    said = "trial 1 failed: crf.theta_beta: -5.0 is not allowed\ntrial 3 failed: no\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("content", ["{broken", "[]", "{}", '{"search": {}}'])
def test_a_result_that_is_damaged_is_named(place, content):
    study, other = study_of(place), study_of(place, name="crf-tpe-1")
    search.take_over(result_of(study), study, place, Terminal())
    path = study.folder / "crf_settings.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"^{path}: damaged \(.*; remove it, and jointseg search writes it again$"):
        search.finished_result(study)
    place.stage(STAGES["stage3"]).mkdir(parents=True)
    place.crf_settings.write_text(content)
    with pytest.raises(InputError, match=f"^{place.crf_settings}: damaged"):
        search.take_over(result_of(other), other, place, Terminal())


def test_a_finished_study_is_the_one_that_stage_3_starts_from_until_it_has(place, capsys):
    one, other = study_of(place), study_of(place, name="crf-tpe-1")
    for study in (one, other, one):
        result = json.loads((study.folder / "crf_settings.json").read_text()) if study.folder.is_dir() else result_of(study)
        assert search.take_over(result, study, place, Terminal())
        assert json.loads(place.crf_settings.read_text()) == result
    place.stage(STAGES["stage3"]).mkdir(parents=True)
    third = study_of(place, name="crf-tpe-2")
    assert not search.take_over(result_of(third) | {"settings": {}}, third, place, Terminal())
    assert json.loads(place.crf_settings.read_text())["study"] == "crf-tpe-0"
    assert "stays: stage3 began from study crf-tpe-0" in capsys.readouterr().out


def test_settings_that_were_given_stay_once_stage_3_has_begun_from_them(place, capsys):
    study, given = study_of(place), {"settings": {"crf.theta_alpha": 109.0}, "study": None, "taken_from": "given.json"}
    result = result_of(study)
    place.crf_settings.write_text(json.dumps(given))
    place.stage(STAGES["stage3"]).mkdir(parents=True)
    assert not search.take_over(result, study, place, Terminal())
    assert json.loads(place.crf_settings.read_text()) == given
    assert "stays: stage3 began from settings that were given" in capsys.readouterr().out.replace("\n", " ")


def test_a_study_that_went_on_to_another_winner_does_not_replace_what_stage_3_began_from(place, capsys):
    study = study_of(place)
    first = result_of(study)
    search.take_over(first, study, place, Terminal())
    place.stage(STAGES["stage3"]).mkdir(parents=True)
    other = {**first, "settings": {"crf.theta_beta": 5.0}}
    (study.folder / "crf_settings.json").write_text(json.dumps(other))
    search.take_over(other, study, place, Terminal())
    assert json.loads(place.crf_settings.read_text()) == first
    assert "stays: stage3 began from study crf-tpe-0" in capsys.readouterr().out.replace("\n", " ")


def test_a_report_of_a_study_that_went_on_is_written_again(place, capsys):
    study = study_of(place)
    first = result_of(study)
    search.take_over(first, study, place, Terminal())
    place.stage(STAGES["stage3"]).mkdir(parents=True)
    place.finish("report", seconds=1)
    search.take_over(first, study, place, Terminal())
    assert place.finished("report"), "it says what there is"
    extended = {**first, "trials": first["trials"] + 4}
    (study.folder / "crf_settings.json").write_text(json.dumps(extended))
    search.take_over(extended, study, place, Terminal())
    assert not place.finished("report")
    said = f"{place.report}: of the study as it was; `jointseg evaluate --out {place.out}` writes it anew"
    assert said in capsys.readouterr().out.replace("\n", "")


RESULT = {
    "score": 0.5, "paper_score": 0.4, "trial": 3, "trials": 6,
    "nested": {"score": 0.45, "optimism": 0.05, "gain": {"difference": 0.05, "low": -0.25, "high": 0.2}},
    "failed": 0, "stopped": 0,
    "folds": {"mean": 0.48, "standard_error": 0.02, "scores": []},
    "gain": {"difference": 0.1, "low": -0.2, "high": 0.3, "within_noise": True},
}  # fmt: skip
NO_PAPER = {**RESULT, "paper_score": None, "gain": None, "nested": {**RESULT["nested"], "gain": None}}


def test_a_result_in_one_line():
    best = "best mean IoU 50.00 % (trial 3 of 6; over folds 48.00 ± 2.00; nested 45.00)"
    gain = "; at the paper's point 40.00 %, a gain of +10.00 [-20.00, +30.00] points, nested +5.00 [-25.00, +20.00]"
    assert search.said(RESULT) == f"{best}{gain}: within noise"
    assert search.said({**RESULT, "gain": {**RESULT["gain"], "within_noise": False}}) == f"{best}{gain}"
    assert search.said(NO_PAPER) == f"{best}; at the paper's point: no score"
    ended = "; 2 of 6 failed; 1 of 6 stopped early"
    assert search.said({**RESULT, "failed": 2, "stopped": 1}) == f"{best}{gain}: within noise{ended}"
    assert search.said({**NO_PAPER, "failed": 1}) == f"{best}; at the paper's point: no score; 1 of 6 failed"
    older = {**RESULT, "nested": {"score": 0.45, "optimism": 0.05}}
    assert search.said(older) == f"{best}{gain.partition(', nested')[0]}: within noise"


def test_a_results_numbers_have_their_names_in_mlflow_and_without_a_papers_score_there_is_none_of_it():
    found = {"best_mean_iou": 0.5, "nested_mean_iou": 0.45, "optimism": 0.05, "folds/mean": 0.48, "folds/standard_error": 0.02}
    found |= {"best_trial": 3, "trials": 6, "failed": 0, "stopped": 0}
    gain = {"gain/difference": 0.1, "gain/low": -0.2, "gain/high": 0.3}
    gain |= {"nested_gain/difference": 0.05, "nested_gain/low": -0.25, "nested_gain/high": 0.2}
    assert search._summary(RESULT) == {**found, "paper_mean_iou": 0.4, **gain}
    assert search._summary(NO_PAPER) == found
