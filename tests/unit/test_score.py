"""Laws of a score that was found before. Not here: scoring (tests/integration/test_pipeline.py)."""

from __future__ import annotations

import json

import pytest

from jointseg.cross_validation import Interval
from jointseg.errors import InputError
from pipeline.score import Score, _read
from pipeline.terminal import Terminal

SETTINGS = {"no CRF": None, "old/best.json": {"w_depth": 1.0, "theta_beta": 3.0}}
SCORES = {"no CRF": Score(0.2, 0.5, Interval(-0.1, -0.2, 0.0)), "old/best.json": Score(0.3, 0.6, Interval(0.0, 0.0, 0.0))}


@pytest.fixture
def path(tmp_path):
    scores = {name: {**own._asdict(), "gain": own.gain._asdict()} for name, own in SCORES.items()}
    record = {"settings": SETTINGS, "scores": scores, "provenance": {"commit": "abc"}}
    (tmp_path / "scores.json").write_text(json.dumps(record))
    return tmp_path / "scores.json"


def test_a_score_is_found_again_whatever_its_file_is_called_now(path, capsys):
    now = {"no CRF": None, "new.json": SETTINGS["old/best.json"]}
    assert _read(path, now, Terminal()) == {"no CRF": SCORES["no CRF"], "new.json": SCORES["old/best.json"]}
    assert "scored before, at commit abc" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"settings": {}, "scores": {}, "provenance": null}'])
def test_a_damaged_record_is_named(path, content):
    path.write_text(content)
    with pytest.raises(InputError, match=r"scores\.json: damaged \(.*\); remove it to score again"):
        _read(path, SETTINGS, Terminal())
