"""Laws of trials in MLflow: one run each, however often it is logged. Not here: other runs (test_tracking.py)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from mlflow.exceptions import MlflowException

from jointseg.errors import InputError
from pipeline.provenance import own_commit
from pipeline.study.tracked_trials import TOLD_TAG, TRIAL_RECORD, log_trial, told_trials
from pipeline.tracked_files import read_tracked
from pipeline.tracking import KEY_TAG, PARENT_TAG, Tracker
from tests.mlflow_runs import all_runs, history


def line(number, score, theta_beta):
    failed = score is None
    return {
        "trial": number,
        "state": "failed" if failed else "finished",
        "mean_iou": score,
        "boundary_f1": None,
        "fold_scores": None if failed else [score, score / 2],
        "seconds": 1.5,
        "started": "2026-01-01T00:00:00+00:00",
        "error": "it failed" if failed else None,
        "point": {"crf.theta_beta": theta_beta},
    }


TRIALS = [line(0, 0.25, 3.0), line(1, 0.5, 4.5), line(2, None, 6.0)]


def log(tracker, parent, trials):
    for own in trials:
        log_trial(tracker, parent, own, record={"score": own["mean_iou"]} if own["mean_iou"] else None)


def trials_of(tracker, parent):
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.`{PARENT_TAG}` = '{parent}'")
    return {run.data.tags[KEY_TAG]: run for run in runs}


def test_each_trial_is_one_run_with_its_point_and_scores_however_often_it_is_logged(out, tracker):
    for one, trials in ((tracker, TRIALS[:2]), (Tracker.open(out), TRIALS), (tracker, TRIALS)):
        with one.run("search") as parent:
            log(one, parent, trials)
    assert len(all_runs(tracker)) == 1 + len(TRIALS)
    found = trials_of(tracker, parent)
    assert sorted(found) == ["trial-0000", "trial-0001", "trial-0002"]
    assert found["trial-0001"].data.params == {"crf.theta_beta": "4.5"}
    assert found["trial-0001"].data.metrics == {"mean_iou": 0.5, "seconds": 1.5, "fold/0": 0.5, "fold/1": 0.25}
    assert found["trial-0002"].data.metrics == {"seconds": 1.5}
    assert found["trial-0002"].data.tags["error"] == "it failed"
    assert {name: run.info.status for name, run in found.items()} == {
        "trial-0000": "FINISHED",
        "trial-0001": "FINISHED",
        "trial-0002": "FAILED",
    }


def test_a_trial_began_when_it_did_and_took_as_long_whenever_it_is_logged(tracker):
    with tracker.run("search") as parent:
        log(tracker, parent, TRIALS)
    start = datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000
    infos = [run.info for run in trials_of(tracker, parent).values()]
    assert {(info.start_time, info.end_time) for info in infos} == {(start, start + 1500)}


def test_a_trials_record_lies_with_its_run(tracker):
    with tracker.run("search") as parent:
        log(tracker, parent, TRIALS[1:])
    found = trials_of(tracker, parent)
    assert tracker.client.list_artifacts(found["trial-0002"].info.run_id) == []
    assert read_tracked(tracker, found["trial-0001"].info.run_id, TRIAL_RECORD) == {"score": 0.5}


def test_a_trial_that_was_stopped_has_finished_and_says_after_how_many_folds(tracker):
    stopped = {**TRIALS[0], "state": "stopped", "mean_iou": None, "fold_scores": [0.25, 0.75], "boundary_f1": 0.125}
    with tracker.run("search") as parent:
        log(tracker, parent, [stopped])
    (run,) = trials_of(tracker, parent).values()
    assert (run.info.status, run.data.tags["stopped"]) == ("FINISHED", "early, after 2 folds")
    assert run.data.metrics == {"boundary_f1": 0.125, "seconds": 1.5, "fold/0": 0.25, "fold/1": 0.75}


def test_a_trial_is_of_the_commit_that_scored_it(tracker):
    with tracker.run("search") as parent:
        log(tracker, parent, [{**TRIALS[0], "commit": "then"}, TRIALS[1]])
    found = trials_of(tracker, parent)
    commits = [found[name].data.tags.get("mlflow.source.git.commit") for name in ("trial-0000", "trial-0001")]
    assert commits == ["then", own_commit()]


def test_of_a_search_that_goes_on_the_trials_that_were_told_whole_are_known(tracker):
    with tracker.run("search", key="one") as parent, tracker.run("search", key="other") as other:
        log(tracker, parent, TRIALS)
        tracker.client.delete_tag(trials_of(tracker, parent)["trial-0001"].info.run_id, TOLD_TAG)
        log(tracker, other, TRIALS[:2])
        assert (told_trials(tracker, parent), told_trials(tracker, other)) == ({0, 2}, {0, 1})


def test_two_studies_have_a_run_each_trial(tracker):
    for study in ("one", "two"):
        with tracker.run("search", key=study) as parent:
            log(tracker, parent, TRIALS[:1])
    assert len(all_runs(tracker)) == 4


def test_a_failed_trial_that_could_not_be_logged_whole_is_logged_again(tracker, monkeypatch):
    """Its run has failed either way."""
    set_tag, refused = tracker.client.set_tag, []

    def refusing(run_id, name, value):
        if name == "error" and not refused:
            refused.append(name)
            raise MlflowException("503")
        set_tag(run_id, name, value)

    monkeypatch.setattr(tracker.client, "set_tag", refusing)
    with tracker.run("search") as parent:
        with pytest.raises(InputError, match="503"):
            log(tracker, parent, [TRIALS[2]])
        log(tracker, parent, [TRIALS[2]])
    (run,) = trials_of(tracker, parent).values()
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "it failed")


@pytest.mark.parametrize("left", [TRIALS[0], TRIALS[2]], ids=["finished", "failed"])
def test_a_trial_that_was_being_logged_when_the_process_died_is_gone_on_with(tracker, left):
    with tracker.run("search") as parent:
        log(tracker, parent, [left])
        (before,) = trials_of(tracker, parent).values()
        tracker.client.update_run(before.info.run_id, status="RUNNING")
        tracker.client.delete_tag(before.info.run_id, TOLD_TAG)
        log(tracker, parent, [left])
        (after,) = trials_of(tracker, parent).values()
    assert (after.info.run_id, after.info.status) == (before.info.run_id, before.info.status)
    assert history(tracker, after.info.run_id, "seconds") == [(0, 1.5)]
