"""Laws of one trial without Ray: what it scores.

Not here: what is kept of it (test_trial_record.py), which trials are run (test_study.py), how a trial that trains does so
(integration tests).
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from jointseg.checkpoint import digest
from jointseg.crf import DenseCRF
from jointseg.errors import DeviceMemoryError, DiskError, InputError
from jointseg.evaluation import compute_unaries, predict, refined_labels, score_labels
from jointseg.model import build_crf, build_model
from jointseg.settings import with_overrides
from jointseg.stages import Kernels
from pipeline.study import finetune
from pipeline.study.trial import CrfTrial, TrialJob, TrialRunner, frame_sums, kept_bytes, run_trial
from pipeline.study.trial_record import confusion_file, read_confusions
from pipeline.study.unaries import ARRAYS, DESCRIPTION, UnariesOnDevice, UnaryCache, row_of, rows_of
from tests.checkpoints import untrained_final

# One trial


@pytest.fixture(scope="module")
def job(rooms, small, tmp_path_factory):
    """Two frames' unaries as the pipeline keeps them."""
    folder, frames, model = tmp_path_factory.mktemp("unaries"), rooms.train[:2], build_model(small)
    unaries = [compute_unaries(model, rooms.frame(number), small, device=torch.device("cpu")) for number in frames]
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", np.stack([rows_of(frame)[name] for frame in unaries]))
    digests = {name: digest(folder / f"{name}.npy") for name in ARRAYS}
    (folder / DESCRIPTION).write_text(json.dumps({"sha256": digests}))
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


def test_a_process_that_serves_many_trials_scores_as_a_new_one_with_and_without_kept_filters(job):
    points = [POINT, OTHER, {**POINT, "crf.w_depth": 1.0}, {**POINT, "crf.theta_zeta": 0.5}, POINT]
    alone = [outcome(TrialRunner(job).run(number, point)) for number, point in enumerate(points)]
    for mib in (0, 1, 1024):
        runner = TrialRunner(with_search(job, filter_cache=mib))
        assert [outcome(runner.run(number, point)) for number, point in enumerate(points)] == alone


@pytest.mark.parametrize("at_once", [2, 4])
def test_frames_scored_together_score_as_one_by_one(two_folds, at_once):
    """Folds of three frames: the last are fewer than the others."""
    points = [POINT, OTHER, {**POINT, "crf.theta_zeta": 0.5}, POINT]
    runner, together = TrialRunner(two_folds), TrialRunner(two_folds)
    together.frames_at_once = at_once
    for number, point in enumerate(points):
        assert outcome(together.run(number, point)) == outcome(runner.run(number, point))


def test_unaries_stay_on_a_device_as_far_as_there_is_room(job):
    arrays = job.cache.arrays()
    room = sum(own[:2].nbytes for own in arrays.values())
    kept = UnariesOnDevice(arrays, torch.device("cpu"), room)
    first, other = kept.of((0, 1)), kept.of((1, 0))
    assert kept.of((0, 1)) is first, "they were read again"
    assert kept.of((1, 0)) is not other, "there was no room for them"
    for place, row in enumerate((0, 1)):
        own = row_of(arrays, row)
        assert all(torch.equal(values[place], single) for values, single in zip(first, own, strict=True))
        assert all(torch.equal(values[1 - place], single) for values, single in zip(other, own, strict=True))


def test_a_trial_scores_the_same_on_a_copy_that_its_node_keeps(job, tmp_path):
    own = with_search(job, node_folder=str(tmp_path / "node"))
    assert outcome(TrialRunner(own).run(0, POINT)) == outcome(TrialRunner(job).run(0, POINT))
    assert len(list(tmp_path.glob("node/unaries-*/*.npy"))) == len(ARRAYS)


def test_where_seconds_are_an_objective_no_trial_gains_by_those_before_it(job):
    runner = TrialRunner(with_search(job, objective="miou,seconds", filter_cache=64))
    for number in range(2):
        assert runner.run(number, {})["state"] == "finished"
    assert runner.prepared.num_bytes == 0, "filters were kept for the next trial"
    timed, other = (with_search(job, objective=name, gpus_per_trial=0.5).config.search for name in ("miou,seconds", "miou"))
    assert kept_bytes(timed, 2**30) == (0, 0), "unaries are kept on a GPU for the next trial"
    assert kept_bytes(other, 2**30) == (other.filter_cache * 2**20, 2**27)


@pytest.fixture
def two_folds(job):
    """Six frames in two folds: enough to tell good settings from bad ones on the first."""
    arrays = {name: np.resize(own, (6, *own.shape[1:])) for name, own in job.cache.arrays().items()}
    folder = job.folder.with_name("six")
    folder.mkdir(exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    kept = job.cache.frames * 3
    return replace(job, cache=UnaryCache(folder, kept), folds=(0, 1) * 3, folder=folder)


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
    assert [row["fold"] for row in rows] == [0] * 3
    assert rows == [{**row, "trial": 2} for row in of_all[0] if row["fold"] == 0]
    assert (confusion_NCC == of_all[1][::2]).all()


def test_after_each_fold_a_trial_is_compared_on_the_frames_that_it_has_seen_scene_by_scene(job, monkeypatch):
    """Frames of three folds in turn, two to a scene: the same frame of both sides stands at each place."""
    arrays = {name: np.resize(own, (6, *own.shape[1:])) for name, own in job.cache.arrays().items()}
    folder = job.folder.with_name("in-turn")
    folder.mkdir(exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    frames = (1, 2, 11, 12, 21, 22)
    own = replace(job, cache=UnaryCache(folder, frames), folds=(0, 1, 2) * 2, folder=folder)
    own = replace(own, config=with_overrides(own.config, {"data.validation_by": "scene"}))
    draw = np.random.default_rng(0)
    truth = [draw.integers(40, size=(480, 640), dtype=np.uint8) for _ in frames]
    monkeypatch.setattr("pipeline.study.trial.subset_labels", lambda *_: truth)
    compared = []

    def noted(seen_NCC, best_NCC, *, groups, **_):
        compared.append((np.array_equal(seen_NCC, best_NCC), tuple(groups)))
        return False

    monkeypatch.setattr("pipeline.study.trial.is_behind", noted)
    runner = TrialRunner(own)
    runner.run(0, POINT)
    runner.run(1, POINT, rival=0)
    assert compared == [(True, (0, 1)), (True, (0, 1, 0, 2))]


def labels_of(runner):
    """What the CRF finds at POINT."""
    crf = build_crf(with_overrides(runner.job.config, POINT)).eval()
    sizes = [own.shape for own in runner.labels]
    return [refined_labels(row_of(runner.arrays, place), crf, size=size) for place, size in enumerate(sizes)]


def test_boundaries_are_counted_where_they_are_sought(job):
    assert TrialRunner(job).run(0, POINT)["boundary_f1"] is None
    assert 0 <= TrialRunner(with_search(job, objective="miou,boundary_f1")).run(0, POINT)["boundary_f1"] < 1


def test_boundaries_are_counted_in_the_part_that_is_scored(small):
    config = with_overrides(small, {"search.objective": "miou,boundary_f1", "evaluation.crop": "eigen"})
    truth = np.zeros((480, 640), np.uint8)
    truth[:, 320:] = 1
    labels = truth.copy()
    labels[:20] = np.arange(640) // 8 % 2  # outside the crop
    assert frame_sums(labels, truth, config).boundary.f1 == 1


def test_settings_that_the_crf_refuses_fail_the_trial_and_not_the_study(job):
    line = TrialRunner(job).run(0, {"crf.w_appearance": 3e38, "crf.w_depth": 3e38})
    assert (line["state"], line["mean_iou"], line["fold_scores"]) == ("failed", None, None)
    assert line["error"] == "the CRF's logits are NaN or infinite; its weights are too large"


def test_bandwidths_that_a_filter_cannot_have_fail_the_trial(job, monkeypatch):
    monkeypatch.setattr("pipeline.study.trial.build_crf", lambda config: DenseCRF(40, config.crf, filter="permutohedral"))
    line = TrialRunner(job).run(0, {"crf.theta_beta": 1e-3})
    assert line["state"] == "failed"
    assert line["error"].startswith("kernel 'appearance': filter 'permutohedral': features reach ")


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


@pytest.mark.parametrize("kind", [DiskError, DeviceMemoryError, InputError])
def test_a_full_disk_or_a_file_that_is_missing_is_no_fault_of_the_point(job, kind):
    def count():
        raise kind("full")

    line = run_trial(job, 0, POINT, count)
    assert (line["state"], line["error"]) == ("unsaved", "full")


def test_a_full_gpu_is_no_fault_of_the_point(job):
    def count():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    line = run_trial(job, 0, POINT, count)
    assert line["state"] == "unsaved"
    assert line["error"] == "CUDA out of memory; lower --concurrent, so that fewer trials share a GPU"


def test_an_error_of_the_program_stays_one(job):
    def count():
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        run_trial(job, 0, POINT, count)


def test_a_process_that_cannot_run_trials_says_so_and_blames_no_point(job, tmp_path):
    (tmp_path / "file").touch()
    for spoiled, said in (
        (replace(job, store=tmp_path / "no_store"), f"{tmp_path / 'no_store'}"),
        (
            with_search(job, node_folder=str(tmp_path / "file")),
            f"search.node_folder: {tmp_path / 'file'}: no copy of the unaries",
        ),
    ):
        trial = CrfTrial.__new__(CrfTrial)
        trial.setup({"trial": 0, "point": POINT, "rival": None}, job=spoiled)
        line = json.loads(trial.step()["line"])
        assert line["state"] == "unsaved"
        assert line["error"].startswith(said)


def test_ray_hands_a_trial_its_number_and_point_and_the_next_ones_to_the_same_process(job):
    trial = CrfTrial.__new__(CrfTrial)  # Ray's own constructor wants a cluster
    trial.setup({"trial": 0, "point": POINT, "rival": None}, job=job)
    first = trial.step()
    assert trial.reset_config({"trial": 1, "point": OTHER, "rival": None})
    second = trial.step()
    assert [json.loads(told["line"])["trial"] for told in (first, second)] == [0, 1]
    assert first["done"]
    assert outcome(json.loads(second["line"])) == outcome(TrialRunner(job).run(1, OTHER))


def test_ray_hands_a_trial_its_rival(job):
    """A rival that has left no matrices is looked for; that it is missing is no fault of the point."""
    trial = CrfTrial.__new__(CrfTrial)
    trial.setup({"trial": 0, "point": POINT, "rival": 99}, job=job)
    line = json.loads(trial.step()["line"])
    assert line["state"] == "unsaved"
    assert line["error"].startswith(f"{confusion_file(job.folder, 99)}: missing")


# Trials that train


@pytest.mark.usefixtures("last_share_first")
def test_a_trial_that_trains_does_so_from_its_point_and_counts_each_frame_in_its_own_place(job, rooms, tmp_path, monkeypatch):
    trained = []

    def train_stage(config, stage, place, **_):
        trained.append((config, stage.name, untrained_final("stage3", config, place.final(stage))))

    monkeypatch.setattr(finetune, "train_stage", train_stage)
    own = replace(with_search(job, finetune_iterations=17), folder=tmp_path)
    line = finetune.run_finetune(own, 3, POINT)
    ((config, stage, model),) = trained
    assert (config, stage) == (with_overrides(own.config, {**POINT, "stage3.iterations": 17}), "stage3")
    frames = [rooms.frame(number) for number in job.cache.frames]
    predictions = predict(model, frames, config, kernels=Kernels.SEM_CRF_PLUS, with_depth=True, device=torch.device("cpu"))
    expected = [score_labels(found.labels, frame.labels, config.evaluation) for frame, found in predictions]
    rows, confusion_NCC = read_confusions(confusion_file(tmp_path, 3))
    assert [row["frame"] for row in rows] == list(job.cache.frames)
    assert (confusion_NCC == np.stack([own.confusion for own in expected])).all()
    assert line["mean_iou"] == pytest.approx((expected[0] + expected[1]).mean_iou())


def test_a_training_is_kept_where_its_scores_could_not_be(job, tmp_path, monkeypatch):
    def train_stage(*_, **__):
        raise DiskError("full")

    monkeypatch.setattr(finetune, "train_stage", train_stage)
    line = finetune.run_finetune(replace(with_search(job, finetune_iterations=17), folder=tmp_path), 3, POINT)
    assert (line["state"], line["error"]) == ("unsaved", "full")
    assert (tmp_path / "finetune" / "trial-0003").is_dir()
