"""Work on frames shared out over a real Ray: results in their places, a lost process, mistakes, sums over shares.

Not here: what is worked on in a run (test_pipeline.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import ray
import torch

from jointseg.data.store import Store
from jointseg.errors import InputError
from jointseg.evaluation import predict, score
from jointseg.presets import demo
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline import shares
from pipeline.evaluate import RowJob, evaluate_rows
from pipeline.failures import LostWorkerError
from pipeline.shares import shared_out, shares_of
from tests.checkpoints import untrained_final

pytestmark = pytest.mark.usefixtures("ray")
CONFIG = with_overrides(demo(), {"network.width": 0.0625, "crf.num_iterations": 2})


def squaring(folder: Path, device: torch.device) -> Callable[[int], int]:
    (folder / uuid4().hex).touch()
    assert (device.type, torch.get_num_threads()) == ("cpu", 1)
    return lambda number: number**2


def test_results_come_to_their_places_and_a_task_loads_once_for_a_few_shares(tmp_path: Path) -> None:
    found = dict(shared_out(partial(squaring, tmp_path), range(3, 23), config=CONFIG, say=print))
    assert found == {place: (place + 3) ** 2 for place in range(20)}
    assert len(list(tmp_path.iterdir())) == min(20, max(3 * int(ray.cluster_resources()["CPU"]), 5))


def dying(folder: Path, times: int, _: torch.device) -> Callable[[int], int]:
    def work(number: int) -> int:
        died = len(list(folder.iterdir()))
        if number == 5 and died < times:
            (folder / str(died)).touch()
            os._exit(1)
        return number

    return work


def test_a_lost_process_is_started_again_with_its_share(tmp_path: Path) -> None:
    found = dict(shared_out(partial(dying, tmp_path, 1), range(10), config=CONFIG, say=print))
    assert found == {number: number for number in range(10)}
    assert len(list(tmp_path.iterdir())) == 1


def refusing(_: torch.device) -> Callable[[int], int]:
    raise InputError("weights: damaged")


def test_a_mistake_comes_out_as_itself() -> None:
    with pytest.raises(InputError, match="weights: damaged"):
        list(shared_out(refusing, [1, 2], config=CONFIG, say=print))


def counting(folder: Path, _: torch.device) -> Callable[[int], int]:
    def work(number: int) -> int:
        (folder / str(number)).touch()
        return number

    return work


def test_results_that_nobody_takes_are_not_piled_up(tmp_path: Path) -> None:
    results = shared_out(partial(counting, tmp_path), range(100), config=CONFIG, say=print)
    next(results)
    time.sleep(3)
    cpus = os.cpu_count() or 1
    assert len(list(tmp_path.iterdir())) <= cpus * (shares.RESULTS_AHEAD + 2) < 100
    assert len(list(results)) == 99
    assert len(list(tmp_path.iterdir())) == 100


@ray.remote
class Holding:
    """Somebody else's work."""

    def ready(self) -> None:
        pass


@pytest.mark.slow
def test_work_that_others_leave_no_room_for_says_so_and_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("pipeline.cluster.PATIENCE", 15)
    monkeypatch.setattr("pipeline.cluster.QUIET", 5)
    other = Holding.options(num_cpus=ray.cluster_resources()["CPU"]).remote()  # type: ignore[attr-defined]
    ray.get(other.ready.remote())
    try:
        with pytest.raises(
            LostWorkerError, match=r"^no node of Ray has had 1 CPU free for 0 minutes; the same command goes on$"
        ):
            list(shared_out(partial(squaring, tmp_path), range(3), config=CONFIG, say=said.append))
    finally:
        ray.kill(other)
    assert list(tmp_path.iterdir()) == []
    assert said == ["waiting up to 0 minutes for a node with 1 CPU free; Ray has free: 0 CPU, 0 GPU"]


def test_rows_are_summed_over_shares(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, told = tuple(range(1, store.num_frames + 1)), []
    jobs, expected, by_frame = {}, {}, {}
    for name in ("stage1", "stage3"):
        stage, final = STAGES[name], tmp_path / name / "final"
        model = untrained_final(name, CONFIG, final)
        jobs[stage] = RowJob(CONFIG, name, store.path, final)
        seen = predict(
            model,
            map(store.frame, numbers),
            CONFIG,
            kernels=stage.kernels,
            with_depth=stage.with_depth,
            device=torch.device("cpu"),
        )
        total = None
        for frame, prediction in seen:
            own = score(frame, prediction, CONFIG.evaluation)
            total = own if total is None else total.plus(own)
            by_frame.setdefault(stage.row, []).append(own.metrics(CONFIG.evaluation))
        assert total is not None
        expected[stage.row] = total.metrics(CONFIG.evaluation)
    for together in (2, len(numbers)):
        monkeypatch.setattr(shares, "FRAMES_A_SHARE", together)
        assert len(shares_of(numbers)) == -(-len(numbers) // together)
        whole = evaluate_rows(jobs, numbers, drawn=numbers[1:3], progress=told.append, say=print)
        for row, metrics in expected.items():
            found = whole[row].sums.metrics(CONFIG.evaluation)
            assert found == pytest.approx(metrics, rel=1e-12)
            assert list(whole[row].predictions) == list(numbers[1:3])
            assert [own.pop("frame") for own in whole[row].frames] == list(numbers)
            for own, alone in zip(whole[row].frames, by_frame[row], strict=True):
                assert own == pytest.approx(alone, rel=1e-12, nan_ok=True)
        assert told[-1] == 2 * len(numbers)
    assert np.isfinite(list(expected["sem_crf_plus"].values())).all()
