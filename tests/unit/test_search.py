"""Laws of a study's result in a run's folder: when there is one, and whether stage 3 starts from it. Not here: the study."""

from __future__ import annotations

import json

import pytest

from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from pipeline import search
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace

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
        "gain": None,
    }  # fmt: skip
    study.folder.mkdir(parents=True)
    (study.folder / "crf_settings.json").write_text(json.dumps(result))
    return result


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path / "run")


def test_a_study_has_a_result_once_it_has_the_trials_asked_for_or_more(place):
    assert search.finished_result(study_of(place)) is None
    result = result_of(study_of(place))
    for trials, found in ((TRIALS, result), (2, result), (TRIALS + 1, None)):
        assert search.finished_result(study_of(place, trials=trials)) == found
    assert search.finished_result(study_of(place, resamples=99)) is None
    assert search.finished_result(study_of(place, resamples=99, trials=1)) == result


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
    monkeypatch.setattr(search.ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in nodes)])
    config = with_overrides(demo(), {f"search.{name}": value for name, value in wanted.items()})
    if said is None:
        search._require_room(config)
    else:
        with pytest.raises(InputError, match=said):
            search._require_room(config)


def test_a_finished_study_is_the_one_that_stage_3_starts_from_until_it_has(place, capsys):
    one, other = study_of(place), study_of(place, name="crf-tpe-1")
    for study in (one, other, one):
        result = json.loads((study.folder / "crf_settings.json").read_text()) if study.folder.is_dir() else result_of(study)
        search.take_over(result, study, place, Terminal())
        assert json.loads(place.crf_settings.read_text()) == result
    place.stage(STAGES["stage3"]).mkdir(parents=True)
    search.take_over(
        result_of(study_of(place, name="crf-tpe-2")) | {"settings": {}}, study_of(place, name="crf-tpe-2"), place, Terminal()
    )
    assert json.loads(place.crf_settings.read_text())["study"] == "crf-tpe-0"
    assert "stays: stage3 began from study crf-tpe-0" in capsys.readouterr().out
