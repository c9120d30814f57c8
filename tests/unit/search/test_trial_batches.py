"""Laws of what is asked of a sampler and when it is told. Not here: Tune (integration tests), the log (test_study.py)."""

from __future__ import annotations

import json
import threading

import pytest
from ray import cloudpickle
from ray.tune.search import Searcher

from jointseg.errors import DiskError, InputError
from pipeline.provenance import own_commit
from pipeline.study.batches import Batches
from pipeline.study.trial import NOTHING


class Counting:
    """Points are numbers in the order asked; remembers what it was told."""

    def __init__(self):
        self.asked, self.told = 0, []

    def ask(self, number):
        assert number == self.asked
        self.asked += 1
        return {"number": number}

    def tell(self, number, line):
        self.told.append((number, line["state"]))


def batches_of(asker, *, size=2, total=5, ended=None, log=None, concurrent=0, said=None):
    logged, shown = log if log is not None else [], said if said is not None else []
    return Batches(asker, size=size, total=total, ended=ended or {}, log=logged.append, concurrent=concurrent, say=shown.append)


def done(number):
    return {"line": json.dumps(line_of(number))}


def line_of(number):
    return {"trial": number, "state": "finished", "point": {"number": number}}


def test_a_batch_is_asked_when_the_one_before_the_last_has_ended_and_told_in_the_order_asked():
    asker, log = Counting(), []
    batches = batches_of(asker, total=7, log=log)
    assert [batches.suggest(name)["trial"] for name in "abcd"] == [0, 1, 2, 3]
    assert batches.suggest("e") is None
    batches.on_trial_complete("b", done(1))
    batches.on_trial_complete("c", done(2))
    assert batches.suggest("e") is None
    assert (asker.asked, asker.told) == (4, [])
    for name, after in (("a", "a2"), ("a2", "a3")):
        batches.on_trial_complete(name, error=True)
        assert batches.suggest(after)["trial"] == 0, "a trial whose process was lost comes again"
    batches.on_trial_complete("a3", done(0))
    assert batches.suggest("e")["trial"] == 4
    assert (asker.asked, asker.told) == (6, [(0, "finished"), (1, "finished")])
    assert [(line["trial"], line["commit"]) for line in log] == [(number, own_commit()) for number in (1, 2, 0)]


@pytest.mark.parametrize("order", [list, reversed], ids=["first first", "last first"])
@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_what_is_asked_after_what_was_told_hangs_neither_on_who_ends_first_nor_on_how_many_run(order, at_once):
    """The asker's whole history, of asks and tells, is the same for every concurrency and order."""
    history, running = [], []

    class Noting(Counting):
        def ask(self, number):
            history.append(f"ask {number}")
            return super().ask(number)

        def tell(self, number, line):
            history.append(f"tell {number}")

    batches = batches_of(Noting(), size=3, total=11, concurrent=at_once)
    for turn in range(100):
        asked = batches.suggest(str(turn))
        if isinstance(asked, dict):
            running.append((str(turn), asked["trial"]))
        elif running:
            name, number = running.pop(0 if order is list else -1)
            batches.on_trial_complete(name, done(number))
    assert len(batches.ended) == 11
    batches.tell(11)
    expected = [f"ask {n}" for n in range(6)]
    for first in (0, 3):
        expected += [f"tell {n}" for n in range(first, first + 3)] + [f"ask {n}" for n in range(first + 6, min(first + 9, 11))]
    assert history == expected + [f"tell {n}" for n in range(6, 11)]


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_trial_keeps_up_with_the_best_that_was_told_before_it_was_asked(early_stop):
    """Not with one that ended meanwhile: which that is hangs on how many run at once."""
    batches = Batches(Counting(), size=2, total=8, ended={}, log=lambda line: None, early_stop=early_stop)
    scores, rivals = [0.3, None, 0.2, 0.4, 0.1, 0.1, 0.1, 0.1], []
    for number, score in enumerate(scores):
        asked = batches.suggest(str(number))
        rivals.append(asked["rival"])
        state = {"state": "finished" if score else "stopped", "mean_iou": score}
        batches.on_trial_complete(str(number), {"line": json.dumps({**line_of(number), **state})})
    assert rivals == ([None, None, None, None, 0, 0, 3, 3] if early_stop else [None] * 8)


def test_a_lost_trial_keeps_its_rival_and_of_equals_the_first_is_the_rival():
    batches = Batches(Counting(), size=1, total=5, ended={}, log=lambda line: None, early_stop=True)
    scored = {number: {"line": json.dumps({**line_of(number), "mean_iou": 0.5})} for number in range(3)}
    for number, name in enumerate("ab"):
        batches.suggest(name)
        batches.on_trial_complete(name, scored[number])
    asked = batches.suggest("c")
    assert asked == {"trial": 2, "point": {"number": 2}, "rival": 0}
    batches.on_trial_complete("c", error=True)
    assert batches.suggest("c2") == asked
    batches.on_trial_complete("c2", scored[2])
    assert batches.suggest("d")["rival"] == 0


def test_after_the_last_trial_there_is_no_more_and_all_is_told():
    asker = Counting()
    batches = batches_of(asker, total=3)
    for number, name in enumerate("abc"):
        assert batches.suggest(name)["trial"] == number
        batches.on_trial_complete(name, done(number))
    assert batches.suggest("d") == Searcher.FINISHED
    batches.tell(3)
    assert [number for number, _ in asker.told] == [0, 1, 2]


def test_the_last_trial_may_be_lost_and_is_run_again():
    batches = batches_of(Counting(), total=1)
    assert batches.suggest("a")["trial"] == 0
    assert batches.suggest("b") is None
    batches.on_trial_complete("a", error=True)
    assert batches.suggest("b")["trial"] == 0
    batches.on_trial_complete("b", done(0))
    assert batches.suggest("c") == Searcher.FINISHED


def test_tune_may_keep_a_copy_though_a_screen_cannot_be_kept():
    screen = threading.RLock()
    batches = Batches(Counting(), size=1, total=1, ended={}, log=print, say=lambda said: screen.release())
    assert cloudpickle.loads(cloudpickle.dumps(batches)).total == 1


def unsaved(number):
    return {
        "line": json.dumps({**line_of(number), "state": "unsaved", "error": "x: cannot be written: No space left on device"})
    }


def test_a_trial_lost_again_and_again_ends_the_study_without_a_line_of_it():
    """Told as failed it would change what is asked after it, for good, on a machine's account."""
    asker, log, said = Counting(), [], []
    batches = batches_of(asker, log=log, said=said)
    for name in ("a", "a2", "a3"):
        assert batches.suggest(name)["trial"] == 0
        assert batches.stopped is None
        batches.on_trial_complete(name, error=True)
    assert batches.suggest("b") == Searcher.FINISHED
    assert str(batches.stopped) == "trial 0: its process ended 3 times without a score"
    assert (batches.lost, log, asker.told) == ("a3", [], [])
    assert said == [f"trial 0: its process ended without a score; it runs again ({time} of 2)" for time in (1, 2)]


@pytest.mark.parametrize("first", ["lost", "full"])
def test_of_two_reasons_to_stop_the_first_is_said(first):
    batches = batches_of(Counting())
    for name in ("a", "a2"):
        assert batches.suggest(name)["trial"] == 0
        batches.on_trial_complete(name, error=True)
    assert [batches.suggest(name)["trial"] for name in ("a3", "b")] == [0, 1]
    ends = {
        "lost": lambda: batches.on_trial_complete("a3", error=True),
        "full": lambda: batches.on_trial_complete("b", unsaved(1)),
    }
    for name in (first, *ends.keys() - {first}):
        ends[name]()
    assert (str(batches.stopped).startswith("trial 0: "), batches.lost) == ((True, "a3") if first == "lost" else (False, None))


def test_a_full_disk_begins_no_more_trials_and_keeps_none_that_it_did_not_take():
    log = []
    batches = batches_of(Counting(), size=4, total=8, log=log)
    assert [batches.suggest(name)["trial"] for name in "ab"] == [0, 1]
    batches.on_trial_complete("b", unsaved(1))
    assert batches.suggest("c") is None
    batches.on_trial_complete("a", done(0))
    assert batches.suggest("c") == Searcher.FINISHED
    assert str(batches.stopped) == "x: cannot be written: No space left on device"
    assert [line["trial"] for line in log] == [0]


def test_a_log_that_cannot_be_written_ends_the_study_too():
    def full(line):
        raise DiskError("log.jsonl: cannot be written: No space left on device")

    batches = Batches(Counting(), size=2, total=4, ended={}, log=full)
    assert batches.suggest("a")["trial"] == 0
    batches.on_trial_complete("a", done(0))
    assert batches.suggest("b") == Searcher.FINISHED
    assert str(batches.stopped) == "log.jsonl: cannot be written: No space left on device"


def test_no_more_run_at_once_than_are_allowed():
    batches = batches_of(Counting(), size=4, total=4, concurrent=2)
    assert [batches.suggest(name) and True for name in "abc"] == [True, True, None]
    batches.on_trial_complete("a", done(0))
    assert batches.suggest("c")["trial"] == 2


def test_a_process_without_a_point_is_kept_by_a_trial_that_does_nothing():
    """As many as have been there at once, while there are points to come."""
    log = []
    batches = batches_of(Counting(), size=1, total=4, log=log)
    batches.processes = 3
    assert [batches.suggest(name)["trial"] for name in "abc"] == [0, 1, None]
    assert batches.suggest("d") is None, "there are three"
    batches.on_trial_complete("b", done(1))
    assert batches.suggest("d") == NOTHING
    for name in "cd":
        batches.on_trial_complete(name, {"done": True})
    batches.on_trial_complete("a", done(0))
    assert [batches.suggest(name)["trial"] for name in "ef"] == [2, 3]
    assert batches.suggest("g") is None, "no points are to come"
    assert [line["trial"] for line in log] == [1, 0]


def test_a_trial_that_does_nothing_may_be_lost_and_counts_among_those_at_once():
    batches = batches_of(Counting(), size=1, total=5, concurrent=2)
    batches.processes = 2
    assert [batches.suggest(name)["trial"] for name in "ab"] == [0, 1]
    batches.on_trial_complete("a", done(0))
    assert batches.suggest("c")["trial"] == 2
    batches.on_trial_complete("c", done(2))
    assert batches.suggest("d") == NOTHING
    batches.on_trial_complete("b", done(1))
    assert batches.suggest("e")["trial"] == 3
    assert batches.suggest("f") is None, "two are there"
    batches.on_trial_complete("d", error=True)
    assert batches.suggest("f")["trial"] == 4


def test_trials_of_before_an_interruption_are_told_again_and_not_run():
    asker = Counting()
    batches = batches_of(asker, total=6, ended={number: line_of(number) for number in (0, 1, 3)})
    assert batches.suggest("a")["trial"] == 2
    batches.on_trial_complete("a", done(2))
    assert batches.suggest("b")["trial"] == 4
    assert asker.told == [(number, "finished") for number in range(2)]


def test_a_study_that_has_ended_asks_for_nothing():
    batches = batches_of(Counting(), total=3, ended={number: line_of(number) for number in range(3)})
    assert not batches.advance()


def test_a_log_of_other_points_is_refused():
    with pytest.raises(InputError, match=r"trial 0 was run at .* and is now asked for at"):
        batches_of(Counting(), ended={0: {**line_of(0), "point": {"number": 7}}}).advance()


@pytest.mark.parametrize(
    ("logged", "asked", "near"),
    [
        ({"a": 4.458501610147039}, {"a": 4.45850161014704}, True),
        ({"a": 4.4585}, {"a": 4.4586}, False),
        ({"a": 3, "b": "hadamard"}, {"a": 3, "b": "hadamard"}, True),
        ({"a": 3}, {"a": 4}, False),
        ({"b": "hadamard"}, {"b": "crfrnn"}, False),
        ({"a": 3.0}, {"b": 3.0}, False),
        ({"a": 3.0}, {"a": 3.0, "b": 1.0}, False),
    ],
)
def test_a_study_goes_on_where_another_processor_rounds_its_points_otherwise(logged, asked, near):
    class Asking(Counting):
        def ask(self, number):
            return asked

    batches = batches_of(Asking(), total=1, ended={0: {**line_of(0), "point": logged}})
    if near:
        assert not batches.advance()
        assert batches.ended[0]["point"] == logged
    else:
        with pytest.raises(InputError, match="cannot go on"):
            batches.advance()
