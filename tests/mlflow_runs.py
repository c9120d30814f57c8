"""What a test reads from an experiment of MLflow."""

from __future__ import annotations


def all_runs(tracker):
    return tracker.client.search_runs([tracker.experiment_id], max_results=1000)


def status(tracker, run_id):
    return tracker.client.get_run(run_id).info.status


def history(tracker, run_id, metric):
    return [(point.step, point.value) for point in tracker.client.get_metric_history(run_id, metric)]
