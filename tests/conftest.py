"""Data for every test: the real frames where they lie beside the repository, and a small NYU folder that is made up.

Not here: what only one file of tests needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from scipy.io import savemat

# Examples are the same in every run, and none fails because the machine was busy with something else.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.load_profile("suite")

TOGETHER = (
    *(f"tests/integration/test_{name}.py" for name in ("training_on_ray", "shares", "ui")), "tests/integration/",
    "tests/unit/report/", "tests/unit/tracking/", "tests/unit/test_rooms.py",
)  # fmt: skip
"""Tests of one process, one after the other, while others run the rest: Ray's, and those that share what takes seconds to make.
The first that fits counts."""
LAST = TOGETHER[:3]
"""Ray's tests are most of the time. These wait for a process that has done with the others."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what is in TOGETHER, in the order in which it was collected."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415

    class SomeTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((part for part in TOGETHER if nodeid.startswith(part)), nodeid)

    config.option.loadscopereorder = False
    return SomeTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.nodeid.startswith(LAST))


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "nyuv2").is_dir():
        pytest.skip(f"needs the real frames in {folder}/nyuv2")
    return folder


@pytest.fixture(scope="session")
def small_nyu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four train frames and two test frames in NYU's layout: coloured blocks, some void, some without raw depth."""
    folder = tmp_path_factory.mktemp("small_nyu")
    write_nyu(folder, train=(1, 2, 4, 6), test=(3, 5), seed=0)
    return folder


def write_nyu(folder: Path, *, train: tuple[int, ...], test: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    frames = len(train) + len(test)

    def blocks(values: np.ndarray) -> np.ndarray:  # (..., 20, 15) -> (..., 640, 480): transposed, as MATLAB stores it
        return values.repeat(32, axis=-2).repeat(32, axis=-1)

    depth = generator.uniform(0.7, 9.9, (frames, 20, 15)).astype(np.float32)
    holes = generator.random((frames, 20, 15)) < 0.2
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as mat:
        for name, values in {
            "images": generator.integers(0, 256, (frames, 3, 20, 15)).astype(np.uint8),
            "labels": generator.integers(0, 895, (frames, 20, 15)).astype(np.uint16),
            "depths": depth,
            "rawDepths": np.where(holes, np.float32(0), depth),
        }.items():
            picture = blocks(values)
            mat.create_dataset(name, data=picture, chunks=(1, *picture.shape[1:]), compression="gzip", compression_opts=1)
    savemat(folder / "splits.mat", {"trainNdxs": np.c_[np.float64(train)], "testNdxs": np.c_[np.float64(test)]})
    savemat(folder / "classMapping40.mat", {"mapClass": (np.arange(894)[None] % 40 + 1).astype(np.uint8)})
