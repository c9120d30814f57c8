"""A study's trials in MLflow: a run each, however often it is told. Not here: other runs (pipeline/tracking.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jointseg.json_files import as_json
from pipeline.provenance import COMMIT_TAG
from pipeline.study.trial_record import FAILED, STOPPED, times
from pipeline.tracking import KEY_TAG, PARENT_TAG, Tracker

TOLD_TAG = "jointseg.told"
"""Of a trial of which all is there."""
TRIAL_RECORD = "trial.json"
NAME = "trial-"
"""How keys of trials begin; their number follows."""
MOST_RUNS = 50_000
"""As many as MLflow lists at once."""


def told_trials(tracker: Tracker, run_id: str) -> set[int]:
    """Numbers of a search's trials of which all is there: asked once, where a search goes on from hundreds of them."""
    whole = f"tags.`{PARENT_TAG}` = '{run_id}' and tags.`{TOLD_TAG}` = 'whole'"
    found = tracker.client.search_runs([tracker.experiment_id], whole, max_results=MOST_RUNS)
    return {int(run.data.tags[KEY_TAG].removeprefix(NAME)) for run in found}


def log_trial(tracker: Tracker, run_id: str, line: Mapping[str, Any], *, record: Mapping[str, Any] | None) -> None:
    """A child run of a trial, told apart by its number; one that has been told whole is left alone. Its times are the trial's.

    Args:
        tracker: where to.
        run_id: the search's.
        line: the trial's, as the study logs it.
        record: kept with it as trial.json.
    """
    name, status = f"{NAME}{line['trial']:04d}", "FAILED" if line["state"] == FAILED else "FINISHED"
    there = tracker.find(name, run_id)
    if there is not None and TOLD_TAG in tracker.client.get_run(there).data.tags:
        return
    started, ended = (round(1000 * moment.timestamp()) for moment in times(line))
    with tracker.run(name, parent=run_id, started=started) as child:
        tracker.log_params(child, line["point"])
        known = {"mean_iou": line["mean_iou"], "boundary_f1": line["boundary_f1"], "seconds": line["seconds"]}
        known |= {"partial_mean_iou": line.get("partial_mean_iou")}  # of a trial that was stopped early
        known |= {f"fold/{fold}": score for fold, score in enumerate(line["fold_scores"] or [])}
        tracker.log_result(child, {metric: value for metric, value in known.items() if value is not None})
        if record is not None:
            tracker.log_text(child, as_json(record), TRIAL_RECORD)
        if line.get("commit"):  # it may have ended before an interruption, under another
            tracker.client.set_tag(child, COMMIT_TAG, line["commit"])
        if line["state"] == STOPPED:
            tracker.client.set_tag(child, "stopped", f"early, after {len(line['fold_scores'])} folds")
        if line["error"]:
            tracker.tag(child, {"error": line["error"]})
    with tracker.troubles_named():
        tracker.client.set_terminated(child, status=status, end_time=ended)
        tracker.client.set_tag(child, TOLD_TAG, "whole")  # a run that could not be told has failed too
