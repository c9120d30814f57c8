"""Laws of the study without Ray: what is asked and when it is told, and one trial. Not here: Tune (integration tests)."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ray.tune.search import Searcher

from jointseg.boundary import BoundarySums
from jointseg.checkpoint import Checkpoint, digest, load_final, save_checkpoint, save_final
from jointseg.errors import InputError
from jointseg.evaluation import compute_unaries, refined_labels, score_labels
from jointseg.metrics import SegmentationSums
from jointseg.model import build_crf, build_model
from jointseg.settings import with_overrides
from pipeline.log_lines import append_line
from pipeline.study import Batches
from pipeline.trial import CrfTrial, TrialJob, TrialRunner
from pipeline.trial_record import (
    FrameSums,
    confusion_file,
    digest_of,
    read_confusions,
    read_trials,
    scores_of,
    write_confusions,
)
from pipeline.unaries import ARRAYS, UnaryCache, cached_unaries, row_of

# What is asked, and when it is told


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


def batches_of(asker, *, size=2, total=5, ended=None, log=None, concurrent=0):
    logged = log if log is not None else []
    return Batches(asker, size=size, total=total, ended=ended or {}, log=logged.append, concurrent=concurrent)


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
    batches.on_trial_complete("a3", error=True)
    assert batches.suggest("e")["trial"] == 4
    assert (asker.asked, asker.told) == (6, [(0, "failed"), (1, "finished")])
    assert [line["trial"] for line in log] == [1, 2, 0]
    assert log[2]["error"].startswith("its process was lost 3 times")


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


def test_no_more_run_at_once_than_are_allowed():
    batches = batches_of(Counting(), size=4, total=4, concurrent=2)
    assert [batches.suggest(name) and True for name in "abc"] == [True, True, None]
    batches.on_trial_complete("a", done(0))
    assert batches.suggest("c")["trial"] == 2


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


def test_a_trial_stands_once_in_the_log_of_a_study_that_was_begun_again(tmp_path):
    log = tmp_path / "log.jsonl"
    for trial, score in ((1, 0.5), (0, 0.25), (1, 0.75), (2, None)):
        append_line(log, {"trial": trial, "mean_iou": score})
    assert [(trial, line["mean_iou"]) for trial, line in read_trials(log).items()] == [(1, 0.5), (0, 0.25), (2, None)]


# What is kept of a trial


def sums_at(*matrices, boundary=None):
    return [FrameSums(SegmentationSums(np.pad(np.array(own), (0, 38))), boundary) for own in matrices]


RIGHT, HALF = [[4, 0], [0, 4]], [[2, 2], [0, 4]]


def test_scores_are_of_pooled_matrices_over_all_frames_and_over_each_fold(small):
    found = scores_of(sums_at(RIGHT, HALF, HALF), (0, 1, 1), small.evaluation)
    assert found["mean_iou"] == pytest.approx((8 / 12 + 12 / 16) / 2)
    assert found["fold_scores"] == pytest.approx([1, 7 / 12])
    assert found["boundary_f1"] is None


def test_boundaries_are_pooled_too(small):
    found = scores_of(sums_at(RIGHT, RIGHT, boundary=BoundarySums(8, 4, 8, 8)), (0, 1), small.evaluation)
    assert found["boundary_f1"] == 2 * 0.5 * 1 / 1.5


def test_confusion_matrices_come_back_whole(tmp_path):
    path, kept = confusion_file(tmp_path, 7), sums_at(RIGHT, [[0, 0], [0, 0]], HALF)
    write_confusions(path, 7, (3, 1, 2), (0, 1, 0), kept)
    rows, confusion_NCC = read_confusions(path)
    assert [(row["trial"], row["frame"], row["fold"]) for row in rows] == [(7, 3, 0), (7, 1, 1), (7, 2, 0)]
    assert (confusion_NCC == np.stack([own.segmentation.confusion for own in kept])).all()
    assert [row["pixel_accuracy"] for row in rows if row["frame"] != 1] == [1, 0.75]
    assert [path.name for path in path.parent.iterdir()] == ["trial-0007.parquet"]


def test_a_damaged_file_of_matrices_is_named(tmp_path):
    path = tmp_path / "trial-0000.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=f"{path}: missing or damaged: "):
        read_confusions(path)


def test_a_digest_is_of_the_values_alone():
    one = np.arange(9).reshape(3, 3)
    assert digest_of(one) == digest_of(np.asfortranarray(one.astype(np.int32)))
    assert digest_of(one) != digest_of(one.T)


# One trial


@pytest.fixture(scope="module")
def job(rooms, small, tmp_path_factory):
    """Two frames' unaries as the pipeline keeps them."""
    folder, frames, model = tmp_path_factory.mktemp("unaries"), rooms.train[:2], build_model(small)
    unaries = [compute_unaries(model, rooms.frame(number), small, device=torch.device("cpu")) for number in frames]
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", np.stack([getattr(frame, name).numpy() for frame in unaries]))
    study, run = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("run")
    return TrialJob(small, rooms.path, UnaryCache(folder, frames), (0, 1), study, run)


def with_search(job, **search):
    config = with_overrides(job.config, {f"search.{name}": value for name, value in search.items()})
    return replace(job, config=config)


def outcome(line):
    """What a trial comes to, whenever and however fast."""
    return {name: value for name, value in line.items() if name not in {"seconds", "started"}}


POINT = {"crf.theta_beta": 20.0, "crf.w_appearance": 9.0}
OTHER = {"crf.theta_beta": 3.0, "crf.w_appearance": 0.5, "crf.num_iterations": 0}


def test_a_trial_scores_the_crf_on_the_cached_unaries(job, rooms, small):
    line = TrialRunner(job).run(3, POINT)
    model, config = build_model(small), with_overrides(small, POINT)
    frames = [rooms.frame(number) for number in job.cache.frames]
    unaries = [compute_unaries(model, frame, small, device=torch.device("cpu")) for frame in frames]
    labels = [refined_labels(own, build_crf(config)) for own in unaries]
    sums = [score_labels(own, frame.labels, config.evaluation) for own, frame in zip(labels, frames, strict=True)]
    assert (line["trial"], line["state"], line["error"], line["point"]) == (3, "finished", None, POINT)
    assert line["mean_iou"] == pytest.approx((sums[0] + sums[1]).mean_iou(), rel=1e-12)
    assert line["fold_scores"] == pytest.approx([own.mean_iou() for own in sums])
    rows, confusion_NCC = read_confusions(confusion_file(job.folder, 3))
    assert (confusion_NCC == np.stack([own.confusion for own in sums])).all()
    assert [(row["frame"], row["fold"]) for row in rows] == list(zip(job.cache.frames, job.folds, strict=True))


@pytest.mark.parametrize("mib", [0, 1, 1024])
def test_a_process_that_serves_many_trials_scores_as_a_new_one_with_and_without_kept_filters(job, mib):
    runner = TrialRunner(with_search(job, filter_cache=mib))
    points = [POINT, OTHER, {**POINT, "crf.w_depth": 1.0}, {**POINT, "crf.theta_zeta": 0.5}, POINT]
    served = [outcome(runner.run(number, point)) for number, point in enumerate(points)]
    assert served == [outcome(TrialRunner(job).run(number, point)) for number, point in enumerate(points)]


@pytest.fixture
def two_folds(job):
    """Twelve frames in two folds: enough to tell good settings from bad ones on the first."""
    arrays = {name: np.resize(own, (12, *own.shape[1:])) for name, own in job.cache.arrays().items()}
    folder = job.folder.with_name("twelve")
    folder.mkdir(exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    kept = (job.cache.frames * 6)[:12]
    return replace(job, cache=UnaryCache(folder, kept), folds=(0, 1) * 6, folder=folder)


def test_a_trial_that_is_behind_after_a_fold_stops_there(two_folds):
    """Trials of labels that are all right and all wrong, beside one that is right."""
    runner = TrialRunner(two_folds)
    truth = list(runner.labels)
    guess = labels_of(runner)
    runner.labels = guess
    best = runner.run(0, POINT)
    assert (best["state"], best["mean_iou"]) == ("finished", 1.0)
    equal = runner.run(1, POINT, rival=0)
    assert outcome({**equal, "trial": 0}) == outcome(best)
    runner.labels = truth
    behind = runner.run(2, POINT, rival=0)
    assert (behind["state"], behind["mean_iou"], behind["error"]) == ("stopped", None, None)
    full = runner.run(3, POINT)
    assert behind["fold_scores"] == full["fold_scores"][:1]
    assert behind["partial_mean_iou"] == full["fold_scores"][0]
    rows, confusion_NCC = read_confusions(confusion_file(two_folds.folder, 2))
    of_all = read_confusions(confusion_file(two_folds.folder, 3))
    assert [row["fold"] for row in rows] == [0] * 6
    assert rows == [{**row, "trial": 2} for row in of_all[0] if row["fold"] == 0]
    assert (confusion_NCC == of_all[1][::2]).all()


def labels_of(runner):
    """What the CRF finds at POINT."""
    crf = build_crf(with_overrides(runner.job.config, POINT)).eval()
    sizes = [own.shape for own in runner.labels]
    return [refined_labels(row_of(runner.arrays, place), crf, size=size) for place, size in enumerate(sizes)]


def test_boundaries_are_counted_where_they_are_sought(job):
    assert TrialRunner(job).run(0, POINT)["boundary_f1"] is None
    assert 0 <= TrialRunner(with_search(job, objective="miou,boundary_f1")).run(0, POINT)["boundary_f1"] < 1


def test_settings_that_the_crf_refuses_fail_the_trial_and_not_the_study(job):
    line = TrialRunner(job).run(0, {"crf.w_appearance": 3e38, "crf.w_depth": 3e38})
    assert (line["state"], line["mean_iou"], line["fold_scores"]) == ("failed", None, None)
    assert line["error"] == "the CRF's logits are NaN or infinite; its weights are too large"


def test_a_score_that_is_no_number_fails_the_trial(job):
    runner = TrialRunner(job)
    runner.labels = [np.full_like(own, 255) for own in runner.labels]
    line = runner.run(0, POINT)
    assert (line["state"], line["mean_iou"]) == ("failed", None)
    assert line["error"] == "mean_iou is not a number: no labelled pixel was scored"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_share_of_a_gpu_that_is_not_there_is_one_line(job):
    with pytest.raises(InputError, match=r"search.gpus_per_trial: 0.5 is asked for; this process has no GPU"):
        TrialRunner(with_search(job, gpus_per_trial=0.5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_a_trial_scores_nearly_the_same(job):
    on_gpu = TrialRunner(with_search(job, gpus_per_trial=0.5)).run(0, POINT)
    assert on_gpu["mean_iou"] == pytest.approx(TrialRunner(job).run(0, POINT)["mean_iou"], abs=0.02)


def test_ray_hands_a_trial_its_number_and_point_and_the_next_ones_to_the_same_process(job):
    trial = CrfTrial.__new__(CrfTrial)  # Ray's own constructor wants a cluster
    trial.setup({"trial": 0, "point": POINT, "rival": None}, job=job)
    first = trial.step()
    assert trial.reset_config({"trial": 1, "point": OTHER, "rival": None})
    second = trial.step()
    assert [json.loads(told["line"])["trial"] for told in (first, second)] == [0, 1]
    assert first["done"]
    assert outcome(json.loads(second["line"])) == outcome(TrialRunner(job).run(1, OTHER))


# The unaries


@pytest.fixture
def kept(tmp_path, small):
    """Unaries on disk as they are described, of a stage that has finished."""
    save_checkpoint(tmp_path / "last", Checkpoint("stage2", 1, small, {"weight": torch.zeros(1)}, {}, []))
    save_final(tmp_path / "final", tmp_path / "last")
    folder = tmp_path / "unaries"
    folder.mkdir()
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", np.zeros(3))
    digests = {name: digest(folder / f"{name}.npy") for name in ARRAYS}
    stamp = {"checkpoint": load_final(tmp_path / "final")[1], "frames": [1, 2], "sha256": digests}
    (folder / "unaries.json").write_text(json.dumps(stamp))
    return folder, stamp


def unaries_of(folder, config):
    final = folder.parent / "final"
    return cached_unaries(config, folder.parent, final, folder, frames=(1, 2), progress=lambda _: None)


def test_unaries_of_this_checkpoint_and_these_frames_are_taken(kept, small):
    assert unaries_of(kept[0], small) == UnaryCache(kept[0], (1, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": "0" * 64}, r"unaries of checkpoint 000000000000, but stage 2's is [0-9a-f]{12}; remove .* to compute"),
        ({"frames": [1, 3]}, "unaries of 2 other frames than the 2 asked for"),
        ({"sha256": {}}, "image.npy: missing or altered since it was written"),
        ({"sha256": 4}, "unaries.json: damaged"),
    ],
)
def test_unaries_of_anything_else_are_refused(kept, small, change, said):
    folder, stamp = kept
    (folder / "unaries.json").write_text(json.dumps({**stamp, **change}))
    with pytest.raises(InputError, match=said):
        unaries_of(folder, small)
