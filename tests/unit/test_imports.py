"""Dependence goes one way: tune_spaces <- pipeline -> jointseg -> torch. The imports of every file are read, and tried."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPELINE_ONLY = {"ray", "mlflow", "optuna", "matplotlib", "typer", "rich", "pipeline", "tune_spaces"}


def imported_by(path: Path) -> set[str]:
    """The top packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module.split(".")[0])
    return found


def files_that_import(package: str, folder: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py") if package in imported_by(path)}


@pytest.mark.parametrize("package", sorted(PIPELINE_ONLY - {"matplotlib"}))
def test_jointseg_never_imports(package):
    assert files_that_import(package, "jointseg") == set()


def test_the_reader_of_imports_finds_what_is_there():
    assert files_that_import("torch", "jointseg") > {"jointseg/training.py", "jointseg/crf/dense_crf.py"}
    assert files_that_import("ray", "pipeline") >= {"pipeline/worker.py", "pipeline/train.py"}


def test_pyarrow_is_for_the_manifest_alone():
    assert files_that_import("pyarrow", "jointseg") == {"jointseg/data/manifest.py"}


def test_matplotlib_is_for_the_figures_alone():
    drawings = {f"jointseg/{name}.py" for name in ("figures", "crf_figure", "curves_figure", "search_figures")}
    assert files_that_import("matplotlib", "jointseg") == drawings


def test_mlflow_is_for_the_tracking_alone():
    assert files_that_import("mlflow", "pipeline") == {"pipeline/tracking.py"}


@pytest.mark.parametrize("package", ["jointseg", "pipeline", "ray"])
def test_search_spaces_know_nothing_of(package):
    assert files_that_import(package, "tune_spaces") == set()


def test_jointseg_alone_loads_none_of_the_pipelines_packages_and_is_quiet():
    """Nothing runs at import: no output, and no torch setting that the importer did not make."""
    program = f"""
import sys, torch
state = lambda: (torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
before = state()
import jointseg, jointseg.training, jointseg.crf, jointseg.evaluation, jointseg.presets, jointseg.data.rooms
assert state() == before
assert not {PIPELINE_ONLY | {"pyarrow", "triton"}!r} & set(sys.modules)
import jointseg.figures
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_benchmarks_find_all_that_they_import():
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    program = f"import importlib, sys; sys.path[:0] = ['benchmarks', '.']; [importlib.import_module(name) for name in {names}]"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
