"""Laws of logs of one JSON line a report. Not here: what the lines say (integration tests of training and search)."""

from __future__ import annotations

import json
import threading

import pytest

from jointseg.errors import InputError
from pipeline.log_lines import GrowingLog, append_line, following, in_step_order, read_lines

LINES = [{"step": float(step), "loss/total": 1 / (step + 1), "note": "θ\n"} for step in range(5)]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def write(log, lines):
    for line in lines:
        append_line(log, line)


def test_lines_come_back_in_order(log):
    write(log, LINES)
    assert read_lines(log) == LINES


def test_no_file_has_no_lines(log):
    assert read_lines(log) == []


@pytest.mark.parametrize("kept", [0, 1, 10, -2, -1])
def test_of_a_line_cut_short_by_a_kill_no_other_line_suffers(log, kept):
    write(log, LINES[:3])
    whole = log.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    log.write_bytes(whole.removesuffix(last) + last[:kept])
    complete = LINES[:3] if kept == -1 else LINES[:2]  # -1: all but the end of the line
    assert read_lines(log) == complete
    write(log, LINES[3:])
    assert read_lines(log) == complete + LINES[3:]


def test_every_line_is_told_once_and_in_order(log):
    told = []
    write(log, LINES[:2])
    with following(lambda: read_lines(log), told.append, every=0.001):
        for line in LINES[2:]:
            append_line(log, line)
    assert told == LINES


def test_a_line_is_told_while_the_work_goes_on(log):
    heard = threading.Event()
    with following(lambda: read_lines(log), lambda line: heard.set(), every=0.001):
        append_line(log, LINES[0])
        assert heard.wait(timeout=30)


def test_the_last_line_is_told_even_where_no_look_comes_in_between(log):
    told = []
    with following(lambda: read_lines(log), told.append, every=3600):
        write(log, LINES)
    assert told == LINES


def test_what_is_written_before_the_work_fails_is_told(log):
    told = []

    def work():
        write(log, LINES)
        raise KeyError("the work's own")

    with pytest.raises(KeyError, match="the work's own"), following(lambda: read_lines(log), told.append, every=3600):
        work()
    assert told == LINES


def test_a_log_that_grows_has_each_line_once_and_half_a_line_when_it_is_whole(log):
    grows = GrowingLog(log)
    assert grows.lines() == []
    write(log, LINES[:2])
    assert grows.lines() == LINES[:2]
    whole = json.dumps(LINES[2]).encode() + b"\n"
    for part in (whole[:5], whole[5:]):
        with log.open("ab") as file:
            file.write(part)
        assert grows.lines() == LINES[: 2 if part == whole[:5] else 3]
    with log.open("ab") as file:
        file.write(b'{"step": ')  # its writer is killed
    append_line(log, LINES[3])
    assert grows.lines() == LINES[:4] == read_lines(log)


def test_a_mistake_in_telling_ends_it_and_comes_out_after_the_work(log):
    tried, troubles = [], []

    def tell(line):
        tried.append(line)
        raise KeyError("the telling's own")

    write(log, LINES)
    with (
        pytest.raises(KeyError, match="the telling's own"),
        following(lambda: read_lines(log), tell, every=0.001, trouble=troubles.append),
    ):
        pass
    assert (tried, len(troubles)) == (LINES[:1], 1)


def test_what_goes_wrong_in_telling_comes_out(log):
    def tell(line):
        raise InputError("the telling's own")

    write(log, LINES)
    troubles = []
    with (
        pytest.raises(InputError, match="the telling's own"),
        following(lambda: read_lines(log), tell, every=0.001, patience=0.05, trouble=troubles.append),
    ):
        pass
    assert len(troubles) == 1, "said once"


def test_after_work_that_failed_nobody_waits_for_the_telling(log):
    def tell(line):
        raise ConnectionError("away")

    def work():
        write(log, LINES)
        raise KeyError("the work's own")

    with pytest.raises(KeyError, match="the work's own"), following(lambda: read_lines(log), tell, every=0.001):
        work()


def test_a_server_that_comes_back_after_the_work_is_waited_for(log):
    told, away = [], [ConnectionError("away")] * 3

    def tell(line):
        if away:
            raise away.pop()
        told.append(line)

    with following(lambda: read_lines(log), tell, every=0.001):
        write(log, LINES)
    assert told == LINES


def test_a_line_whose_telling_went_wrong_is_told_at_a_later_look(log):
    """As to a server that was away for a while."""
    told, heard = [], threading.Event()
    away = [ConnectionError("away")] * 3

    def tell(line):
        if away and told:
            raise away.pop()
        told.append(line)
        if line == LINES[2]:
            heard.set()

    write(log, LINES[:3])
    with following(lambda: read_lines(log), tell, every=0.001):
        assert heard.wait(timeout=30)
        write(log, LINES[3:])
    assert told == LINES


def test_the_log_of_a_stage_that_was_resumed_has_each_step_once_as_it_was_first_and_in_order(log):
    write(log, [{"step": step, "loss/total": value} for step, value in ((2, 0.5), (4, 0.25), (2, 0.6), (4, 0.3), (6, 0.125))])
    assert [(row["step"], row["loss/total"]) for row in in_step_order(read_lines(log))] == [(2, 0.5), (4, 0.25), (6, 0.125)]
