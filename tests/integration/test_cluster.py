"""Which code Ray's workers run. Not here: what they do with it (the other files)."""

from __future__ import annotations

import importlib
from pathlib import Path

import ray

import jointseg
from pipeline.cluster import connected


@ray.remote(num_cpus=0)
def where_is(module: str) -> str:
    return str(importlib.import_module(module).__file__)


def test_workers_take_no_code_from_the_folder_that_the_command_is_run_in(tmp_path, monkeypatch):
    """Its user's own project may have a pipeline/ too."""
    for foreign in ("jointseg", "pipeline", "tune_spaces"):
        (tmp_path / foreign).mkdir()
        (tmp_path / foreign / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    ours = Path(jointseg.__file__).parents[1]
    with connected(here=True):
        assert Path.cwd() == tmp_path
        found = ray.get([where_is.remote(module) for module in ("jointseg", "pipeline.trial", "tune_spaces.crf")])
    assert [Path(file).relative_to(ours).parts[0] for file in found] == ["jointseg", "pipeline", "tune_spaces"]
