"""Training on a real Ray: ranks, resources, mistakes that come back from workers. Not here: workers that are killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray import cluster_resources, get, kill, remote

from jointseg.checkpoint import load_final
from jointseg.config import Config
from jointseg.data.manifest import write_manifest
from jointseg.data.store import Store
from jointseg.data.views import make_views
from jointseg.errors import InputError
from jointseg.model import build_model
from jointseg.presets import demo
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import TrainingDivergedError
from pipeline.cluster import require_resources
from pipeline.log_lines import Line
from pipeline.train import train_stage
from pipeline.workspace import Workspace


def _config(**changes: object) -> Config:
    plain = {
        "network.width": 0.0625, "network.dropout": 0.0, "stage1.optimizer": "sgd", "stage1.lr": 3e-5, "stage1.iterations": 20,
        "training.cpus_per_worker": 1, "training.log_every": 1, "training.checkpoint_every": 100,
    }  # fmt: skip
    return with_overrides(demo(), {**plain, **{path.replace("__", "."): value for path, value in changes.items()}})


def _train(
    config: Config, store: Store, out: Path, *, say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, torch.Tensor], list[Line]]:
    place = Workspace(out)
    out.mkdir()
    place.store.symlink_to(store.path)
    write_manifest(make_views(store.train, config.data), place.views, seeds={}, store_digest=store.digest)
    lines: list[Line] = []
    train_stage(config, STAGES["stage1"], place, validation=store.train[:2], tell=lines.append, say=say)
    weights = load_final(place.final(STAGES["stage1"]))
    return weights, lines


@pytest.mark.slow
def test_two_ranks_of_two_passes_equal_one_rank_with_four_times_the_batch(ray: None, store: Store, tmp_path: Path) -> None:
    one, told_one = _train(_config(stage1__batch_size=4), store, tmp_path / "one")
    shared_out = _config(stage1__batch_size=1, stage1__accumulate=2, training__num_workers=2)
    two, told_two = _train(shared_out, store, tmp_path / "two")
    assert one.keys() == two.keys()
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert [line["step"] for line in told_one] == [line["step"] for line in told_two] == list(range(1, 21))
    losses = [[line["loss/total"] for line in told] for told in (told_one, told_two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert told_two[-1]["validation/mean_iou"] == pytest.approx(told_one[-1]["validation/mean_iou"], abs=1e-4)
    start = build_model(_config()).state_dict()
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved > 1e-4, "nothing was trained, so equality would say nothing"
    assert apart <= 0.02 * moved  # some 5e-6 of 7e-4, on processors that round alike: docs/training.md says 1e-5


def test_a_diverging_loss_comes_back_from_the_worker_with_half_and_step(ray: None, store: Store, tmp_path: Path) -> None:
    said = r"stage1: the segmentation loss is (nan|inf) at step \d+; stage1.lr is 1e\+30"
    with pytest.raises(TrainingDivergedError, match=said):
        _train(_config(stage1__lr=1e30), store, tmp_path / "wild")


@pytest.mark.slow
def test_room_that_others_have_is_waited_for_and_that_is_said(
    ray: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    other = Other.options(num_cpus=cluster_resources()["CPU"]).remote()
    get(other.has_begun.remote())
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        kill(other)

    weights, _ = _train(_config(stage1__iterations=1), store, tmp_path / "late", say=say)
    assert weights
    assert said == ["stage1: waiting for room for 1 worker(s) of 1 CPU each; Ray has free: 0 CPU, 0 GPU"]


@remote
class Other:
    """Somebody else's work on the same cluster."""

    def has_begun(self) -> bool:
        return True


def test_more_workers_than_the_cluster_has_are_refused(ray: None) -> None:
    with pytest.raises(
        InputError, match=r"training.num_workers: 500 workers of 1 CPU each .* are asked for; there is room for "
    ):
        require_resources(_config(training__num_workers=500))
