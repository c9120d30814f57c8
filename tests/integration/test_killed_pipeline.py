"""A whole run killed again and again: between phases, inside a stage and inside the search. It ends as one left alone.

Not here: workers and nodes that are lost (test_lost_workers.py), kills at every step (tests/unit/test_killed_training.py).
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from jointseg.checkpoint import digest
from pipeline.log_lines import read_lines
from pipeline.workspace import Workspace
from tests.integration.command_line import CommandLine
from tests.integration.whole_runs import STAGES, check_that_mlflow_has_each_run_once, finished_files, outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(jointseg: CommandLine, tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Workspace:
    """A run killed in the middle of stage 1 and of the search, and between phases: a process of each kind of work."""
    place = Workspace(tmp_path_factory.mktemp("killed") / "run")
    command = ("run", "--preset", "demo", "--out", str(place.out), *options)
    for moment in (
        (place.out / "stage1" / "step_00000004" / "checkpoint.json").is_file,
        lambda: any(len(read_lines(log)) >= 2 for log in place.search.glob("*/log.jsonl")),
        partial(place.finished, "evaluate"),
    ):
        jointseg.kill_when(moment, *command)
    before = finished_files(place)
    jointseg(*command)
    assert {path: value for path, value in finished_files(place).items() if path in before} == before
    return place


@pytest.fixture(scope="module")
def alone(jointseg: CommandLine, tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Workspace:
    """The same, left alone."""
    place = Workspace(tmp_path_factory.mktemp("alone") / "run")
    jointseg("run", "--preset", "demo", "--out", str(place.out), *options)
    return place


def test_a_run_killed_again_and_again_ends_as_one_left_alone(killed: Workspace, alone: Workspace) -> None:
    for stage in STAGES:
        weights = Path(stage) / "final" / "weights.safetensors"
        assert digest(killed.out / weights) == digest(alone.out / weights), stage
    assert outcomes(killed) == outcomes(alone)
    ours, theirs = (json.loads((run.out / "report.json").read_text()) for run in (killed, alone))
    for part in ("table2", "table3", "search", "floors"):
        assert ours[part] == theirs[part]


def test_mlflow_has_each_run_once(killed: Workspace) -> None:
    check_that_mlflow_has_each_run_once(killed)


def test_where_the_gpus_are_gone_cpus_search_and_evaluate_and_the_report_has_the_runs_own_config(
    alone: Workspace, jointseg: CommandLine, tmp_path: Path
) -> None:
    place = Workspace(shutil.copytree(alone.out, tmp_path / "run", symlinks=True))
    config = json.loads(place.config.read_text())
    config["training"]["device"] = "cuda"
    place.config.write_text(json.dumps(config))
    shutil.rmtree(place.search / "unaries")
    phases = json.loads(place.phases.read_text())
    place.phases.write_text(json.dumps({name: own for name, own in phases.items() if name not in {"evaluate", "report"}}))
    for words in (("search", "--space", "crf_weights", "--trials", "1"), ("evaluate",)):
        said = " ".join(jointseg(*words, "--out", str(place.out)).split())
        assert "training.device is cuda, and no node of Ray has a GPU: CPUs compute this" in said
    source = json.loads(place.report.read_text())["provenance"]
    assert source["config"]["training.device"] == "cuda"
    assert "training.device=cuda" in source["command"]
