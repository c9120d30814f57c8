"""Laws of a run that takes the settings that an earlier search found: what it takes, and what it refuses."""

from __future__ import annotations

import json

import pytest

from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.phases import Pipeline, search_settings
from pipeline.study.earlier import earlier_study, take_settings
from pipeline.study.settings_file import load_settings
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace
from tests.made_up_runs import save_search


class Noting:
    def __init__(self):
        self.noted = []

    def log_artifact(self, run, path, folder=None):
        self.noted.append((run, folder, path.name))

    def tag(self, run, tags):
        self.noted.append((run, tags))


@pytest.fixture
def earlier(tmp_path):
    place = Workspace(tmp_path / "earlier")
    save_search(place, [0.1, 0.12])
    return place


@pytest.fixture
def later(tmp_path):
    return Workspace(tmp_path / "later")


def taking(path, **changes):
    return with_overrides(demo(), {"search.settings": str(path), **changes})


def copies(place):
    return {path.name: path.read_bytes() for path in place.study().iterdir()}


@pytest.mark.parametrize("of_the_study", [False, True])
def test_stage_3_starts_from_what_was_found_and_the_report_has_its_trials(earlier, later, of_the_study):
    path = earlier.crf_settings
    if of_the_study:
        path = earlier.study() / path.name
        path.write_bytes(earlier.crf_settings.read_bytes())
    before, config = copies(earlier), taking(path)
    assert take_settings(config, later, screen=Terminal()) == earlier.study().name
    found = json.loads(later.crf_settings.read_text())
    assert found.pop("taken_from") == str(path)
    assert found == json.loads(earlier.crf_settings.read_text())
    assert load_settings(later.crf_settings, config).crf == load_settings(path, config).crf
    assert copies(later) == before == copies(earlier)
    assert later.trials().is_file()


def test_the_phase_searches_nothing_says_what_it_takes_and_leaves_it_in_mlflow(earlier, later, capsys):
    notes = Noting()
    search_settings(Pipeline(taking(earlier.crf_settings), later, notes, "top", Terminal(), False))
    assert notes.noted == [("top", {"study": earlier.study().name}), ("top", "earlier_search", "crf_settings.json")]
    said = capsys.readouterr().out.replace("\n", " ")
    assert "stage 3 starts from it, nothing is searched; best mean IoU 12.00 %" in said


GIVEN = {"settings": {"crf.theta_alpha": 109.0, "crf.num_iterations": 7}, "found": "by hand"}


def test_settings_alone_are_taken_without_a_study_and_the_rest_is_the_runs_own(later, tmp_path, capsys):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(GIVEN))
    notes, config = Noting(), taking(path, **{"crf.theta_beta": 9.0})
    for _ in range(2):
        search_settings(Pipeline(config, later, notes, "top", Terminal(), False))
    assert notes.noted == [("top", "earlier_search", "crf_settings.json")] * 2
    crf = load_settings(later.crf_settings, config).crf
    assert (crf.theta_alpha, crf.num_iterations, crf.theta_beta) == (109.0, 7, 9.0)
    assert not later.has_study()
    assert not later.search.exists()
    with pytest.raises(InputError, match=f"^{later.crf_settings}: its settings were given, no search found them$"):
        later.study()
    said = capsys.readouterr().out.replace("\n", " ")
    assert "stage 3 starts from it, nothing is searched; crf.theta_alpha, crf.num_iterations" in said


def test_settings_that_a_run_was_given_are_given_on(later, tmp_path):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(GIVEN))
    take_settings(taking(path), later, screen=Terminal())
    third = Workspace(tmp_path / "third")
    take_settings(taking(later.crf_settings), third, screen=Terminal())
    given, on = (json.loads(place.crf_settings.read_text()) for place in (later, third))
    assert on == {**given, "taken_from": str(later.crf_settings)}


@pytest.mark.parametrize("settings", [{"crf.num_iterations": 7.0}, {"crf.num_iterations": "7"}, None])
def test_settings_alone_are_kept_as_the_config_has_them(later, tmp_path, settings):
    path = tmp_path / "given.json"
    path.write_text(json.dumps({"settings": settings} if settings else {"crf.num_iterations": 7}))
    take_settings(taking(path), later, screen=Terminal())
    assert '"crf.num_iterations": 7\n' in later.crf_settings.read_text()


def test_taken_again_after_a_kill_it_is_the_same(earlier, later):
    config = taking(earlier.crf_settings)
    for _ in range(2):
        take_settings(config, later, screen=Terminal())
    assert copies(later) == copies(earlier)


def edit(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


WRONG = {
    "crf_settings.json: no JSON: ": lambda place: place.crf_settings.write_text("{broken"),
    "holds no settings; allowed: a search's crf_settings.json": lambda place: place.crf_settings.write_text("{}"),
    "No such file or directory; allowed: a search's crf_settings.json": lambda place: place.crf_settings.unlink(),
    "not the whole result of a search: it has no study, gain": lambda place: edit(
        place.crf_settings, lambda found: [found.pop(name) for name in ("study", "gain")]
    ),
    "seed is not a setting of the CRF": lambda place: edit(
        place.crf_settings, lambda found: found["settings"].update({"seed": 3})
    ),
    "the trials of its study own-tpe-0 are not beside it": lambda place: place.trials().unlink(),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_taken_is_refused_by_file_before_anything_is_made(earlier, later, said):
    WRONG[said](earlier)
    for refused in (earlier_study, lambda config: take_settings(config, later, screen=Terminal())):
        with pytest.raises(InputError) as caught:
            refused(taking(earlier.crf_settings))
        assert said in str(caught.value)
        assert str(earlier.crf_settings) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not later.out.exists()


def test_trials_in_a_folder_of_another_name_are_not_those_of_its_study(earlier):
    trials = earlier.trials()
    beside = earlier.out / trials.name
    beside.write_bytes(trials.read_bytes())
    assert earlier_study(taking(earlier.crf_settings))[1] == trials.parent
    trials.unlink()
    with pytest.raises(InputError, match="the trials of its study own-tpe-0 are not beside it"):
        earlier_study(taking(earlier.crf_settings))


def test_a_run_is_refused_before_it_has_a_folder(mistake, earlier, tmp_path):
    earlier.trials().unlink()
    out = tmp_path / "new"
    message = mistake("run", "--out", out, "--set", f"search.settings={earlier.crf_settings}")
    assert message.startswith(f"search.settings: {earlier.crf_settings}: the trials of its study own-tpe-0 are not beside it")
    assert not out.exists()


def test_a_study_in_its_folder_is_refused_unless_it_is_asked_for_all_the_same(mistake, earlier, later):
    later.adopt_config(taking(earlier.crf_settings))
    assert mistake("search", "--out", later.out).startswith(
        f"search.settings: this run takes what was found before, {earlier.out}"
    )
    asked = mistake("search", "--out", later.out, "--set", "search.settings=null")
    assert asked.startswith(f"{later.out}: search needs stage2")
