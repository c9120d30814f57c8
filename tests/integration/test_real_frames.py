"""A short pipeline on real NYUv2 frames, in NYU's own layout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import TINY, CommandLine, as_options


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nyu")
    script = shared / "nyuv2" / "build_mat.py"
    subprocess.run([sys.executable, script, "--out", folder, "--train", "8", "--test", "3"], check=True, capture_output=True)
    shutil.copy(shared / "nyuv2" / "classMapping40.mat", folder)
    return folder


def test_the_pipeline_runs_on_real_frames_and_sets_the_papers_numbers_beside_its_own(
    jointseg: CommandLine, real: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = {path: value for path, value in TINY.items() if not path.startswith("data.rooms")}
    jointseg("run", "--preset", "demo", "--data", str(real), "--out", str(out), *as_options(settings))
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["real"]
    assert set(report["table3"]) == {"unary_sem", "unary_sem_depth", "sem_crf", "sem_crf_plus"}
    assert report["paper"]["table3"]["sem_crf_plus"]["mean_iou"] == 0.392
    assert "39.2" in (out / "report.md").read_text()
    assert all(0 < row["pixel_accuracy"] < 1 for row in report["table3"].values())


def test_check_counts_real_frames(jointseg: CommandLine, real: Path) -> None:
    said = jointseg("data", "check", str(real))
    assert "11: 8 train, 3 test" in said
    assert "NYU Depth v2" in said
