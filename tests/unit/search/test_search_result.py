"""Laws of what a study comes to: the winner, what its score is worth, and the settings that stage 3 takes."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from jointseg.crf.settings import CrfSettings
from jointseg.errors import DiskError, InputError
from jointseg.metrics import SegmentationSums
from jointseg.presets import demo
from jointseg.settings import differences, flatten, with_overrides
from pipeline.study.result import best_so_far, pareto_front, said, save_result, trial_record
from pipeline.study.settings_file import load_settings
from pipeline.study.trial_record import FrameSums, confusion_file, scores_of, write_confusions

FRAMES, FOLDS = (11, 12, 13, 14), (0, 1, 0, 1)
IDENTITY = {
    "study": "crf-tpe-0",
    "data": "d",
    "frames": [11, 12, 13, 14],
    "subset": "s",
    "checkpoint": "c",
    "balanced_by": None,
}


def config_with(**search):
    return with_overrides(demo(), {"search.folds": 2, "search.resamples": 50, **{f"search.{k}": v for k, v in search.items()}})


def right(share):
    """A frame of two classes of 100 pixels each, this share of them labelled rightly."""
    hits = round(100 * share)
    return FrameSums(SegmentationSums(np.pad(np.array([[hits, 100 - hits], [100 - hits, hits]]), (0, 38))), None)


def line_of(folder, number, point, shares=None, *, frames=FRAMES):
    """A trial that is right in these shares on the four frames; None: it failed."""
    scores = {"mean_iou": None, "fold_scores": None, "boundary_f1": None}
    if shares is not None:
        sums = [right(share) for share in shares]
        write_confusions(confusion_file(folder, number), number, frames, FOLDS, sums, absent="ignore")
        scores = scores_of(sums, FOLDS, demo().evaluation)
    state = "failed" if shares is None else "finished"
    when = {"seconds": 1.0, "started": "2016-04-25T12:00:00+00:00"}
    return {"trial": number, "state": state, **scores, **when, "error": None if shares else "it failed", "point": point}


def study(folder, shares, **search):
    lines = [line_of(folder, number, {"crf.theta_beta": 3.0 + number}, own) for number, own in enumerate(shares)]
    return save_result(lines, config_with(**search), folder, identity=IDENTITY), lines


SHARES = [(0.5, 0.5, 0.5, 0.5), None, (0.9, 0.8, 0.9, 0.8), (0.9, 0.8, 0.9, 0.8)]


def iou(share):
    return share / (2 - share)


# The winner


def test_the_best_trial_is_the_result_the_first_among_equals_and_all_are_kept(tmp_path):
    found, lines = study(tmp_path, SHARES)
    assert json.loads(json.dumps(found)) == found
    assert found["settings"] == {f"crf.{name}": value for name, value in flatten(CrfSettings(theta_beta=5.0)).items()}
    assert (found["trial"], found["trials"], found["failed"], found["searched"]) == (2, 4, 1, ["crf.theta_beta"])
    assert found["score"] == pytest.approx(iou(0.85))
    assert found["paper_score"] == pytest.approx(iou(0.5))
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["crf.theta_beta"] for row in table] == [3.0, 4.0, 5.0, 6.0]
    assert [row["mean_iou"] for row in table] == [line["mean_iou"] for line in lines]
    assert [row["state"] for row in table] == ["finished", "failed", "finished", "finished"]
    assert table[1]["error"] == "it failed"


def test_a_run_that_holds_other_settings_than_the_paper_does_not_call_its_first_trial_the_papers_point(tmp_path):
    _, lines = study(tmp_path, SHARES)
    held = save_result(lines, with_overrides(config_with(), {"crf.num_iterations": 3}), tmp_path, identity=IDENTITY)
    papers = save_result(lines, config_with(), tmp_path, identity=IDENTITY)
    assert (held["paper_held"], papers["paper_held"]) == ({"crf.num_iterations": 3}, {})
    assert "; at the paper's values of what is searched (crf.num_iterations as in this run) 33.33 %, a gain" in said(held)
    assert "; at the paper's point 33.33 %, a gain" in said(papers)


def test_the_best_so_far_only_rises_and_passes_over_failures(tmp_path):
    _, lines = study(tmp_path, SHARES)
    assert best_so_far(lines) == [lines[0]["mean_iou"], lines[0]["mean_iou"], lines[2]["mean_iou"], lines[2]["mean_iou"]]
    assert best_so_far(lines[1:2]) == [-math.inf]


def test_trials_that_were_stopped_are_counted_and_win_nothing(tmp_path):
    _, lines = study(tmp_path, SHARES)
    lines[2] |= {"state": "stopped", "mean_iou": None, "partial_mean_iou": 1.0}
    found = save_result(lines, config_with(), tmp_path, identity=IDENTITY)
    assert (found["trials"], found["failed"], found["stopped"], found["trial"]) == (4, 1, 1, 3)


def test_the_table_of_trials_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    _, lines = study(tmp_path, SHARES)
    before = (tmp_path / "trials.parquet").read_bytes()

    def full(table, where, **_):
        where.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.study.result.pq.write_table", full)
    with pytest.raises(DiskError, match=r"trials\.parquet: cannot be written: No space left"):
        save_result(lines, config_with(), tmp_path, identity=IDENTITY)
    assert (tmp_path / "trials.parquet").read_bytes() == before


def test_a_study_in_which_every_trial_failed_is_no_result(tmp_path):
    with pytest.raises(InputError, match="search: none of 2 trials has a score; the first says: it failed"):
        study(tmp_path, [None, None])
    assert not (tmp_path / "crf_settings.json").exists()


# What its score is worth


def test_over_folds_it_has_a_mean_and_a_standard_error(tmp_path):
    found, _ = study(tmp_path, SHARES)
    scores = [iou(0.9), iou(0.8)]
    assert found["folds"]["scores"] == pytest.approx(scores)
    assert found["folds"]["mean"] == pytest.approx(sum(scores) / 2)
    assert found["folds"]["standard_error"] == pytest.approx(abs(scores[0] - scores[1]) / 2)
    assert found["paper_folds"]["standard_error"] == 0


def test_a_trial_that_is_lucky_on_one_fold_is_found_out_by_the_nested_estimate(tmp_path):
    found, _ = study(tmp_path, [(0.5, 0.5, 0.5, 0.5), None, (0.9, 0.2, 0.9, 0.2), (0.1, 0.9, 0.1, 0.9)])
    assert found["trial"] == 2
    assert found["nested"]["chosen"] == [3, 2]
    assert found["nested"]["score"] == pytest.approx(iou(0.15))
    assert found["nested"]["optimism"] == pytest.approx(found["score"] - iou(0.15))
    assert found["nested"]["gain"]["difference"] == pytest.approx(iou(0.15) - iou(0.5))


def test_a_winner_that_only_its_own_choice_lifts_above_noise_is_within_it(tmp_path):
    """Each of two trials is best on the frames of a fold, and no better than the paper's on the other's."""
    found, _ = study(tmp_path, [(0.5, 0.5, 0.5, 0.5), (0.9, 0.52, 0.9, 0.52), (0.4, 0.8, 0.4, 0.8)])
    assert found["trial"] == 1
    assert found["gain"]["low"] > 0
    assert found["nested"]["gain"]["low"] < 0
    assert found["gain"]["within_noise"]


def test_a_gain_on_every_frame_is_beyond_noise_and_one_on_half_of_them_within(tmp_path):
    found, _ = study(tmp_path / "one", SHARES)
    assert found["gain"]["difference"] == pytest.approx(found["score"] - found["paper_score"])
    assert found["gain"]["low"] > 0
    assert not found["gain"]["within_noise"]
    found, _ = study(tmp_path / "two", [(0.5, 0.6, 0.5, 0.6), (0.95, 0.2, 0.9, 0.2)])
    assert found["gain"]["within_noise"]


def test_intervals_are_over_whole_scenes_where_validation_is(tmp_path):
    """Of four frames in two scenes, the first scene gains and the second loses."""
    shares = [(0.5, 0.5, 0.5, 0.5), (0.95, 0.95, 0.3, 0.3)]
    lines = [
        line_of(tmp_path, number, {"crf.theta_beta": 3.0 + number}, own, frames=(11, 12, 21, 22))
        for number, own in enumerate(shares)
    ]
    gains = {}
    for by in ("frame", "scene"):
        config = with_overrides(config_with(), {"data.validation_by": by})
        gains[by] = save_result(lines, config, tmp_path, identity=IDENTITY)["gain"]
    assert (gains["frame"]["over"], gains["scene"]["over"]) == ("frames", "whole scenes")
    assert gains["scene"]["difference"] == gains["frame"]["difference"] > 0
    assert gains["scene"]["low"] == pytest.approx(iou(0.3) - iou(0.5)), "of 50 resamples some have the second scene alone"
    assert gains["scene"]["high"] == pytest.approx(iou(0.95) - iou(0.5))


def test_the_interval_is_the_seeds_and_of_as_many_resamples_as_asked_for(tmp_path):
    shares = [(0.5, 0.62, 0.44, 0.71), (0.95, 0.23, 0.87, 0.31)]
    settings = ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"resamples": 20})
    gains = [study(tmp_path / str(place), shares, **own)[0]["gain"] for place, own in enumerate(settings)]
    assert gains[0] == gains[1]
    assert gains[2]["low"] != gains[0]["low"] != gains[3]["low"]


def test_all_statistics_follow_the_rule_for_absent_classes(tmp_path):
    config = with_overrides(config_with(), {"evaluation.absent_classes": "zero"})
    _, lines = study(tmp_path, SHARES)
    found = save_result(lines, config, tmp_path, identity=IDENTITY)
    assert found["nested"]["score"] == pytest.approx(2 * iou(0.85) / 40)
    assert found["gain"]["difference"] == pytest.approx(2 * (iou(0.85) - iou(0.5)) / 40)


def test_without_a_score_at_the_papers_point_there_is_no_gain(tmp_path):
    found, _ = study(tmp_path, [None, (0.5, 0.5, 0.5, 0.5)])
    assert found["gain"] is found["paper_folds"] is found["paper_score"] is None


def test_a_front_holds_those_that_no_other_beats_in_both(tmp_path):
    lines = [line_of(tmp_path, number, {}, [share] * 4) for number, share in enumerate((0.5, 0.9, 0.7, 0.8))]
    lines.append(line_of(tmp_path, 4, {}))
    for line, seconds in zip(lines, (1.0, 4.0, 3.0, 2.0, 0.5), strict=True):
        line["seconds"] = seconds
    assert [line["trial"] for line in pareto_front(lines, "miou,seconds")] == [1, 3, 0]
    assert [line["trial"] for line in pareto_front(lines, "miou")] == [1]
    config = config_with(objective="miou,seconds")
    found = save_result(lines, config, tmp_path, identity=IDENTITY)
    assert found["front"][0] == {"trial": 1, "mean_iou": found["score"], "seconds": 4.0, "point": {}}
    assert found["trial"] == 1
    assert said(found).endswith(f"; {len(found['front'])} on the Pareto front (figures/pareto.png)")


# What others take of it


def test_a_trials_record_has_its_settings_what_it_ran_on_and_every_frames_score(tmp_path):
    _, lines = study(tmp_path, SHARES)
    record = trial_record(lines[2], config_with(), tmp_path, identity=IDENTITY)
    assert record["config"]["crf.theta_beta"] == record["settings"]["crf.theta_beta"] == 5.0
    assert [(own["frame"], own["fold"]) for own in record["by_frame"]] == list(zip(FRAMES, FOLDS, strict=True))
    assert [own["pixel_accuracy"] for own in record["by_frame"]] == [0.9, 0.8, 0.9, 0.8]
    assert len({own["confusion"] for own in record["by_frame"]}) == 2
    assert {name: record[name] for name in IDENTITY} == IDENTITY


def test_stage_3_takes_the_settings_that_were_found_and_keeps_the_rest(tmp_path):
    (tmp_path / "crf_settings.json").write_text(json.dumps(study(tmp_path, SHARES)[0]))
    config = with_overrides(demo(), {"crf.theta_beta": 9, "seed": 4})
    changed = differences(demo(), load_settings(tmp_path / "crf_settings.json", config))
    assert changed == {"seed": (0, 4), "crf.theta_beta": (3.0, 5.0)}


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b'{"settings": 4}', b'{"settings": [4]}', b"\xff\xfe", b'{"settings": {"crf.theta_beta": -1}}',
     b'{"settings": {"crf.theta_bta": 1}}', b'{"settings": {}}', b'{"settings": []}',
     b'{"settings": {"crf.theta_beta": 9, "crf_reference_size": 65}}', b'{"settings": {"evaluation.crop": "eigen"}}', None],
)  # fmt: skip
def test_what_is_no_result_of_a_search_is_refused_by_file(tmp_path, text):
    path = tmp_path / "crf_settings.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError) as caught:
        load_settings(path, demo())
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
