"""Laws of what the report says of the search."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jointseg.data.store import Store
from jointseg.presets import demo
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from pipeline import report
from pipeline.workspace import Workspace
from tests.made_up_runs import save_search
from tests.reports import SCORES, cells, contents, edit_search, on_terminal, page, page_of


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            SCORES,
            "The search's best has 12.00 % mean IoU on the 2 validation frames, the paper's CRF settings 10.50 % "
            "(4 trials, 1 of them failed): a gain of 1.50 points, 95 % interval 1.00 to 2.00, beyond the noise",
        ),
        ([0.2, 0.1], "**The search found nothing better than the paper's CRF settings: 20.00 %"),
        ([None, 0.1], "**The paper's CRF settings have no score"),
    ],
)
def test_what_the_search_gained_is_said(place: Workspace, store: Store, scores: list[float | None], said: str) -> None:
    save_search(place, scores)
    report.write(demo(), place, store)
    assert f"- {said}" in page(place)
    above = "scored on that one, it has 10.80 %, 0.30 above the paper's (0.10 to 0.50). The tables"
    assert (above in page(place)) == (scores == SCORES)


def test_settings_of_an_earlier_search_are_said_to_be_so_with_the_frames_of_it(place: Workspace, store: Store) -> None:
    edit_search(place, {"taken_from": "/runs/one/crf_settings.json", "frames": [3, 5, 7], "subset": "e" * 64})
    report.write(demo(), place, store)
    whose = "3 validation frames and the network of an earlier run (`/runs/one/crf_settings.json`)"
    assert f"The search's best has 12.00 % mean IoU on the {whose}, the paper's" in page(place)
    assert f"Mean IoU over {whose} (digest `{'e' * 16}`) of the CRF alone" in page(place)
    assert "--set search.settings=/runs/one/crf_settings.json" in contents(place)["provenance"]["command"]


def test_a_report_of_an_earlier_version_says_the_runs_own_frames(written: Workspace) -> None:
    found = contents(written)
    for name in ("taken_from", "frames", "subset"):
        del found["search"][name]
    assert f"Mean IoU over 2 validation frames (digest `{'d' * 16}`) of the CRF alone" in page_of(found)


def test_folds_of_whole_scenes_and_trials_that_were_stopped_on_them_are_said(written: Workspace) -> None:
    found = contents(written)
    found["search"] |= {"balanced_by": "whole scenes", "stopped": 3}
    assert "folds are made of whole scenes, so that no two have frames of one." in page_of(found)
    stopped = "so have the 3 trials that were stopped early on the first of these frames, and cannot be chosen."
    assert stopped in page_of(found)
    assert "stopped early on" not in page(written)


def test_a_winner_within_noise_of_the_papers_point_is_said_to_be_so(place: Workspace, store: Store) -> None:
    result = json.loads(place.crf_settings.read_text())
    result["gain"] |= {"low": -0.01, "within_noise": True}
    place.crf_settings.write_text(json.dumps(result))
    report.write(demo(), place, store)
    assert "**The search's best has 12.00 % mean IoU" in page(place)
    assert "95 % interval -1.00 to 2.00, within noise of the paper's." in page(place)


@pytest.mark.parametrize(("gain", "said"), [(0.01, "1.00 above the paper's"), (-0.0004, "0.04 below the paper's")])
def test_what_the_choice_on_other_folds_has_is_above_or_below_the_papers(written: Workspace, gain: float, said: str) -> None:
    found = contents(written)
    found["search"]["nested"]["gain"] = {"difference": gain, "low": gain - 0.01, "high": gain + 0.01}
    assert said in page_of(found)


def test_settings_that_the_run_held_otherwise_than_the_paper_are_not_called_the_papers(written: Workspace) -> None:
    found = contents(written)
    found["search"]["paper_held"] = {"crf.num_iterations": 3}
    said = "the paper's values of what was searched (the run's own of crf.num_iterations)"
    assert said in page_of(found)
    assert said not in page(written)


def test_a_search_that_only_found_as_good_settings_found_nothing_better(written: Workspace) -> None:
    found = contents(written)
    found["search"]["best"]["score"] = found["search"]["paper"]["score"]
    assert "**The search found nothing better than the paper's CRF settings: 10.50 %" in page_of(found)


def test_trials_that_were_stopped_are_not_said_to_have_failed(written: Workspace) -> None:
    found = contents(written)
    found["search"]["stopped"] = 2
    assert "(4 trials, 1 of them failed, 2 of them stopped early)" in page_of(found)


def test_settings_that_were_not_searched_are_the_runs_own_beside_the_papers(place: Workspace, store: Store) -> None:
    report.write(with_overrides(demo(), {"crf.theta_alpha": 80.0, "crf.theta_beta": 9.0}), place, store)
    papers = contents(place)["search"]["paper"]["settings"]
    assert (papers["crf.theta_alpha"], papers["crf.theta_beta"]) == (80.0, 3.0)
    assert cells(place, "theta_alpha")[-1] == "160 (held at 80)"
    assert cells(place, "theta_beta")[-1] == "3"


def test_what_the_paper_does_not_print_is_not_said_to_be_its(place: Workspace, store: Store) -> None:
    report.write(with_overrides(demo(), {"crf.num_iterations": 5}), place, store)
    assert cells(place, "num_iterations")[-1] == "10 (ours) (held at 5)"
    assert cells(place, "pairwise")[-1] == "crfrnn (ours)"


def test_settings_that_the_papers_point_did_not_draw_are_the_runs_own(place: Workspace, store: Store) -> None:
    """Of a space that draws some settings under others only."""
    edit_search(place, {"searched": [*json.loads(place.crf_settings.read_text())["searched"], "crf.num_iterations"]})
    table = pq.read_table(place.trials())
    drawn = pa.array([None, *[7] * (len(table) - 1)], pa.int64())
    pq.write_table(table.append_column("crf.num_iterations", drawn), place.trials())
    report.write(with_overrides(demo(), {"crf.num_iterations": 5}), place, store)
    assert contents(place)["search"]["paper"]["settings"]["crf.num_iterations"] == 5


def test_settings_that_were_given_stand_beside_the_papers_without_a_score(place: Workspace, store: Store) -> None:
    given = {"settings": {"crf.theta_alpha": 109.0}, "study": None, "taken_from": "given.json"}
    place.crf_settings.write_text(json.dumps(given))
    report.write(with_overrides(demo(), {"crf.theta_beta": 9.0, "search.settings": "given.json"}), place, store)
    assert cells(place, "theta_alpha")[-2:] == ["109", "160"]
    assert cells(place, "theta_beta")[-2:] == ["9 (held)", "3"]
    text = page(place)
    assert "Nothing was searched: stage 3 began with the CRF settings of `given.json`." in text
    assert "“(held)”: not in the file, this run’s own." in text
    assert "Mean IoU by fold" not in text
    assert "chosen on the other folds" not in text
    assert not [path.name for path in place.figures.iterdir() if "search" in path.name]
    assert "Nothing was searched" in on_terminal(place)
    assert "Nothing was searched" in report.description(place)
    assert "--set search.settings=given.json" in contents(place)["provenance"]["command"]


def test_what_the_workers_said_stands_by_where_the_numbers_come_from(place: Workspace, store: Store) -> None:
    notes = place.notes(STAGES["stage2"])
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text('{"said": "stage2: trains in float32: X is not made for bfloat16"}\n' * 2)  # as a stage that went on
    report.write(demo(), place, store)
    said = "- stage2: trains in float32: X is not made for bfloat16\n"
    assert page(place).partition("## Where it comes from")[2].count(said) == 1


def test_the_command_makes_the_search_that_stage_3_began_from(place: Workspace, store: Store) -> None:
    edit_search(place, {"search": {**flatten(demo().search), "seed": 77}})
    report.write(demo(), place, store)
    found = contents(place)["provenance"]
    assert "--set search.seed=77" in found["command"]
    assert found["seeds"]["search.seed"] == 77


def test_the_folds_stand_beside_each_other_with_the_nested_estimate(place: Workspace, store: Store) -> None:
    report.write(demo(), place, store)
    assert cells(place, "found")[1:] == ["11.50", "10.50", "11.00 ± 0.50", "12.00"]
    assert cells(place, "chosen on the other folds")[1:] == ["10.00", "11.60", "", "10.80"]
    assert "folds are balanced by scene type" in page(place)
