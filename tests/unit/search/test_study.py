"""Laws of the study without Ray: what its log keeps, how much runs at once. Not here: what is asked (test_trial_batches.py),
Tune (integration tests), one trial (test_trial.py).
"""

from __future__ import annotations

import numpy as np
import pytest

from jointseg.metrics import SegmentationSums
from jointseg.presets import demo
from jointseg.settings import with_overrides
from pipeline.log_lines import append_line
from pipeline.study import study
from pipeline.study.trial import TrialJob
from pipeline.study.trial_record import FrameSums, confusion_file, read_trials, write_confusions


def test_a_trial_stands_once_in_the_log_of_a_study_that_was_begun_again(tmp_path):
    log = tmp_path / "log.jsonl"
    for trial, score in ((1, 0.5), (0, 0.25), (1, 0.75), (2, None)):
        append_line(log, {"trial": trial, "mean_iou": score})
    assert [(trial, line["mean_iou"]) for trial, line in read_trials(log).items()] == [(1, 0.5), (0, 0.25), (2, None)]


def job_of(folder, **search):
    config = with_overrides(demo(), {f"search.{name}": value for name, value in search.items()})
    return TrialJob(config, folder, None, (), folder, folder)


def test_a_logged_trial_whose_matrices_are_gone_or_damaged_is_run_again(tmp_path, monkeypatch):
    """One that failed left none. A machine that stopped may have left an empty file."""

    class Asker:
        def limit(self, trials):
            return trials

        def ask(self, number):
            return {"number": number}

        def tell(self, number, line):
            pass

    class BegunError(Exception):
        pass

    def begin(job, batches, *, verbose):
        raise BegunError(batches.total - len(batches.ended))

    for number, state in enumerate(("finished", "finished", "failed", "stopped")):
        append_line(tmp_path / "log.jsonl", {"trial": number, "state": state, "point": {"number": number}})
    sums = FrameSums(SegmentationSums(np.eye(40, dtype=np.int64)), None)
    write_confusions(confusion_file(tmp_path, 1), 1, [7], [0], [sums], absent="ignore")
    confusion_file(tmp_path, 0).touch()
    monkeypatch.setattr(study, "_tune", begin)
    with pytest.raises(BegunError) as begun:
        study.run_study(job_of(tmp_path, trials=5), Asker(), tell=lambda line: None)
    assert begun.value.args == (3,)
    assert list(read_trials(tmp_path / "log.jsonl")) == [1, 2]


@pytest.mark.parametrize(("concurrent", "at_once"), [(0, 3), (2, 2), (8, 3)])
def test_no_more_trainings_are_begun_than_there_is_room_for(tmp_path, monkeypatch, concurrent, at_once):
    monkeypatch.setattr(study, "require_resources", lambda config: 3)
    assert study._at_once(job_of(tmp_path, concurrent=concurrent, fidelity="finetune")) == at_once
    assert study._at_once(job_of(tmp_path, concurrent=concurrent)) == concurrent
