"""Laws of settings scored as they are: which, on which frames, how often. Not here: scoring on Ray (integration tests)."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from jointseg.cross_validation import Interval, paired_bootstrap
from jointseg.errors import InputError
from jointseg.evaluation import compute_unaries, depth_at_full_size, labels_at_full_size, score_labels
from jointseg.metrics import DepthSums, depth_metrics
from jointseg.presets import demo
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from pipeline import score
from pipeline.failures import TrackingError
from pipeline.score import NO_CRF, PAPER, PAPER_NO_DEPTH, Counts, Score, _read, _scores, score_settings, score_table
from pipeline.study.spaces import papers_values
from pipeline.study.trial_record import read_confusions
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace
from tests.checkpoints import untrained_final

# Scored before

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
    assert "scored before, at commit abc, on cpu\n" in capsys.readouterr().out
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "depth": {"delta1": 0.6518, "rmse": 0.77}}))
    _read(path, now, Terminal())
    assert "depth of stage 2: δ < 1.25 0.652, RMSE 0.770 m" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"settings": {}, "scores": {}, "provenance": null}'])
def test_a_damaged_record_is_named(path, content):
    path.write_text(content)
    with pytest.raises(InputError, match=r"scores\.json: damaged \(.*\); remove it to score again"):
        _read(path, SETTINGS, Terminal())


# Scored now


class Noting:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.metrics, self.params, self.tags, self.artifacts, self.runs = {}, {}, {}, [], []

    def top_run(self, name):
        return "top"

    @contextmanager
    def run(self, name, *, parent=None, key=None):
        self.runs.append((name, parent))
        yield name

    def log_params(self, run, params):
        self.params |= params

    def tag(self, run, tags):
        self.tags |= tags

    def log_result(self, run, metrics, *, step=0):
        self.metrics |= metrics

    def describe(self, run, text):
        self.described = text

    def log_text(self, run, text, name):
        self.artifacts.append(name)

    def log_artifact(self, run, path, folder=None):
        self.artifacts.append(folder)

    def log_dataset(self, run, *, context, **own):
        self.tags["read for"] = context

    def offer_again(self):
        self.artifacts.append("again")


def matrices(*shares):
    """Of a frame each, of two classes of 100 pixels, this share of the first labelled rightly."""
    hits = (round(100 * share) for share in shares)
    return np.stack([np.pad(np.array([[own, 100 - own], [0, 100]]), (0, 38)) for own in hits])


@pytest.fixture
def place(rooms, small, tmp_path, monkeypatch):
    """A run's folder whose stage 2 has finished, beside settings in best.json; no Ray is needed."""
    place = Workspace(tmp_path / "run")
    untrained_final("stage2", small, place.final(STAGES["stage2"]))
    place.finish("stage2", seconds=1)
    place.store.symlink_to(rooms.path)
    place.validation.write_text(json.dumps({"frames": rooms.train[:2], "seed": 0, "digest": "d"}))
    (tmp_path / "best.json").write_text(json.dumps({"settings": {"crf.theta_beta": 9.0}}))
    monkeypatch.setattr(score, "connected", lambda **_: nullcontext())
    monkeypatch.setattr(score, "uses_gpu", lambda _: False)
    return place


@pytest.fixture
def scored(place, small, tmp_path, monkeypatch):
    """Scores them, each frame's matrix made up: the jobs and frames that were counted, the tracker, the scores."""
    shares = {NO_CRF: 0.5, PAPER: 0.6, PAPER_NO_DEPTH: 0.7}

    def run(split="validation", config=small):
        counted, tracker = [], Noting()

        def counts(config, place, jobs, frames, *, progress, say):
            counted.append((jobs, frames))
            depth = DepthSums.from_depth(np.full((1, 2, 2), 3.0), np.full((1, 2, 2), 2.0))
            return Counts({name: matrices(*[shares.get(name, 0.8)] * len(frames)) for name in jobs}, depth)

        monkeypatch.setattr(score, "_counted", counts)
        monkeypatch.setattr(score.Tracker, "open", lambda out, *, say: tracker)
        files = [tmp_path / "best.json"]
        return counted, tracker, score_settings(config, place, files, split=split, screen=Terminal(), verbose=False)

    return run


def test_settings_are_scored_beside_the_papers_with_and_without_depth_and_none(scored, small, tmp_path):
    own, file = with_overrides(small, {"crf.theta_alpha": 80.0}), str(tmp_path / "best.json")
    ((jobs, _),), tracker, found = scored(config=own)
    assert list(jobs) == [NO_CRF, PAPER, PAPER_NO_DEPTH, file]
    assert jobs.pop(NO_CRF) is None
    crfs = {name: {f"crf.{path}": value for path, value in flatten(config.crf).items()} for name, config in jobs.items()}
    assert crfs[PAPER] == papers_values()
    assert crfs[PAPER_NO_DEPTH] == papers_values() | {"crf.w_depth": 0.0}
    assert (crfs[file]["crf.theta_beta"], crfs[file]["crf.theta_alpha"]) == (9.0, 80.0)
    assert tracker.metrics["no_crf/gain/high"] < tracker.metrics["paper/gain/difference"] == 0
    assert tracker.metrics["paper_no_depth/gain/difference"] > 0
    assert tracker.metrics["settings_1/mean_iou"] == found[file].mean_iou
    assert tracker.metrics["depth/rmse"] == 1.0
    assert tracker.tags["settings_1"] == file
    assert tracker.artifacts == ["scores.json", "confusions", "again"]
    paths = set(flatten(small))
    assert set(tracker.params) - paths == {"split", "frames", "data", "checkpoint"}
    assert tracker.params["evaluation.mirror"] is False, "said of one view too, so that MLflow can filter by it"


def test_each_split_has_its_own_frames_and_is_scored_once(scored, place, rooms):
    for split, frames in (("validation", rooms.train[:2]), ("test", rooms.test)):
        counted, tracker, found = scored(split)
        assert [own for _, own in counted] == [frames]
        ((name, parent),) = tracker.runs
        assert (name.startswith(f"score {split}-"), parent) == (True, "top")
        assert "| no CRF | " in tracker.described
        again, _, read = scored(split)
        assert (again, read) == ([], found)
    assert len(list((place.search / "scores").glob("*.json"))) == 2


def test_what_was_counted_is_kept_where_mlflow_goes_away(scored, place, monkeypatch):
    def gone(self, run, metrics, *, step=0):
        raise TrackingError("http://gone: no answer")

    with monkeypatch.context() as away:
        away.setattr(Noting, "log_result", gone)
        with pytest.raises(TrackingError):
            scored()
    assert not list(place.scores.glob("*.json")), "another would take it for told"
    counted, tracker, found = scored()
    assert (counted, tracker.metrics["no_crf/mean_iou"]) == ([], found[NO_CRF].mean_iou)
    assert len(list(place.scores.glob("*.json"))) == 1
    assert scored()[1].runs == []


def test_the_same_is_not_scored_by_two_at_once(scored, place):
    scored()
    (path,) = (place.search / "scores").glob("*.json")
    path.rename(path.with_suffix(".kept"))
    with place.locked(path.parent, path.stem):
        with pytest.raises(InputError, match=f"{path.parent}: another run is working in this folder"):
            scored()
        assert len(scored("test")[0]) == 1, "another split may be scored meanwhile"


def test_other_rules_other_settings_and_other_weights_are_scored_anew(scored, place, small, tmp_path):
    scored()
    rules = {"evaluation.absent_classes": "zero", "evaluation.crop": "eigen", "search.seed": 1, "search.resamples": 7}
    rules |= {"evaluation.mirror": True, "evaluation.scales": [1, 1.5]}
    for path, value in rules.items():
        assert len(scored(config=with_overrides(small, {path: value}))[0]) == 1, path
    (tmp_path / "best.json").write_text(json.dumps({"settings": {"crf.theta_beta": 8.0}}))
    assert len(scored()[0]) == 1
    shutil.rmtree(place.stage(STAGES["stage2"]))
    untrained_final("stage2", with_overrides(small, {"seed": 1}), place.final(STAGES["stage2"]))
    assert len(scored()[0]) == 1


def test_intervals_resample_whole_scenes_where_validation_has_them(scored, place, small):
    place.validation.write_text(json.dumps({"frames": [1, 2, 4], "seed": 0, "digest": "d"}))
    scored()
    counted, tracker, _ = scored(config=with_overrides(small, {"data.validation_by": "scene"}))
    assert len(counted) == 1, "intervals over frames were taken for those over scenes"
    assert tracker.params["resampled"] == "whole scenes"


@pytest.mark.usefixtures("last_share_first")
def test_each_frames_matrix_stands_under_its_number(place, small, rooms, monkeypatch):
    monkeypatch.setattr(score.Tracker, "open", lambda out, *, say: Noting())
    score_settings(small, place, [], split="validation", screen=Terminal(), verbose=False)
    (path,) = (place.search / "scores").glob("*/0.parquet")
    rows, confusion_NCC = read_confusions(path)
    model = untrained_final("stage2", small, place.out / "again" / "final")
    frames = [rooms.frame(number) for number in rooms.train[:2]]
    logits = [compute_unaries(model, frame, small, device=torch.device("cpu")).logits for frame in frames]
    labels = [labels_at_full_size(own, (480, 640)) for own in logits]
    expected = [score_labels(own, frame.labels, small.evaluation) for own, frame in zip(labels, frames, strict=True)]
    assert [row["frame"] for row in rows] == list(rooms.train[:2])
    assert (confusion_NCC == np.stack([own.confusion for own in expected])).all()
    depths = [compute_unaries(model, frame, small, device=torch.device("cpu")).depth for frame in frames]
    first, second = (
        DepthSums.from_depth(depth_at_full_size(own), frame.filled_depth) for own, frame in zip(depths, frames, strict=True)
    )
    (record,) = (place.search / "scores").glob("*.json")
    assert json.loads(record.read_text())["depth"] == pytest.approx(depth_metrics(first + second), rel=1e-12)


def test_an_interval_is_over_the_scenes_that_it_is_said_to_be_over():
    kept = {PAPER: matrices(0.5, 0.6, 0.7, 0.4, 0.33, 0.57), PAPER_NO_DEPTH: matrices(0.8, 0.9, 0.65, 0.5, 0.41, 0.73)}
    scenes = (0, 0, 0, 1, 1, 2)
    found = _scores(kept, demo(), scenes)[PAPER_NO_DEPTH].gain
    settings = {"absent": "ignore", "num_resamples": demo().search.resamples, "seed": demo().search.seed}
    assert found == paired_bootstrap(kept[PAPER_NO_DEPTH], kept[PAPER], **settings, groups=scenes)
    assert found != _scores(kept, demo(), None)[PAPER_NO_DEPTH].gain


def test_scores_are_pooled_and_a_gain_is_over_the_papers_settings():
    kept = {PAPER: matrices(0.5, 0.6, 0.7, 0.4, 0.33, 0.57), PAPER_NO_DEPTH: matrices(0.8, 0.9, 0.65, 0.5, 0.41, 0.73)}
    found = _scores(kept, demo(), None)
    paper, gain = found[PAPER], found[PAPER_NO_DEPTH].gain
    assert paper.pixel_accuracy == pytest.approx((310 + 600) / 1200)
    assert paper.mean_iou == pytest.approx((310 / 600 + 600 / 890) / 2)
    assert paper.gain == (0, 0, 0)
    assert gain.difference == pytest.approx(found[PAPER_NO_DEPTH].mean_iou - paper.mean_iou)
    assert gain.difference > 0
    assert _scores(kept, with_overrides(demo(), {"search.seed": 1}), None)[PAPER_NO_DEPTH].gain.low != gain.low
    zero = _scores(kept, with_overrides(demo(), {"evaluation.absent_classes": "zero"}), None)
    assert zero[PAPER].mean_iou == pytest.approx(paper.mean_iou / 20)


def test_frames_without_a_label_have_dashes_for_scores():
    nothing = np.zeros((3, 40, 40), np.int64)
    scores = _scores({PAPER: nothing, NO_CRF: nothing}, demo(), None)
    cells = [list(column.cells) for column in score_table(scores, demo(), split="test").columns]
    assert cells == [[PAPER, NO_CRF], *[["–", "–"]] * 3]


def test_a_name_with_brackets_is_shown_as_it_is(capsys):
    Terminal().console.print(score_table({"[old]/a[/].json": Score(0.25, 0.5, Interval(0.0, 0.0, 0.0))}, demo(), split="test"))
    assert "[old]/a[/].json" in capsys.readouterr().out


def test_a_score_is_shown_in_percent_and_its_gain_in_points():
    scores = {"a.json": Score(0.25, 0.5, Interval(0.0123, -0.01, 0.03))}
    table = score_table(scores, demo(), split="test")
    assert table.title == "test split, whole frame, one view, absent classes: ignore"
    mirrored = with_overrides(demo(), {"evaluation.mirror": True})
    of_validation = score_table(scores, demo(), split="validation")
    assert table.caption is None
    assert of_validation.caption == "searches choose by these frames: what settings are worth on others, --split test says"
    assert ", 2 views (input × 1, each mirrored too), " in str(score_table(scores, mirrored, split="test").title)
    cropped = with_overrides(demo(), {"evaluation.crop": "eigen", "evaluation.absent_classes": "zero"})
    title = score_table(scores, cropped, split="test").title
    assert title == "test split, eigen crop, one view, absent classes: zero"
    assert [list(column.cells) for column in table.columns] == [["a.json"], ["25.00"], ["50.00"], ["+1.23 [-1.00, +3.00]"]]
