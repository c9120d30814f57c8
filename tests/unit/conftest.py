"""A few rooms prepared for training, and a config small enough to train on them in seconds.

Not here: data in NYU's layout that is made up (tests/conftest.py).
"""

from __future__ import annotations

import pytest
import torch

from jointseg.config import Config
from jointseg.data.rooms import write_rooms
from jointseg.data.store import Store, prepare
from jointseg.presets import demo
from jointseg.settings import with_overrides


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three train rooms and one test room."""
    folder = tmp_path_factory.mktemp("rooms")
    write_rooms(folder / "nyu", num_train=3, num_test=1, seed=0)
    return prepare(folder / "nyu", folder / "store")


@pytest.fixture(scope="session")
def small() -> Config:
    """The demo with an eighth of its width, a few steps a stage, and a CRF of two iterations."""
    stages = {"stage1": (4, 2), "stage2": (4, 2), "stage3": (2, 1)}
    changes: dict[str, object] = {"network.width": 0.0625, "network.dropout": 0.5}
    for stage, (iterations, batch_size) in stages.items():
        changes |= {f"{stage}.iterations": iterations, f"{stage}.batch_size": batch_size, f"{stage}.lr": 1e-3}
    pace = {"log_every": 1, "checkpoint_every": 2, "validate_every": 100, "cpus_per_worker": 1}
    changes |= {f"training.{name}": value for name, value in pace.items()}
    return with_overrides(demo(), changes | {"crf.num_iterations": 2, "crf_train_iterations": 2})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors, and tests that run beside each other: more threads only get in each other's way."""
    torch.set_num_threads(1)
