"""What a run's numbers come from: the code's commit, versions, hardware, seeds, config, and the command to run it again.

Not here: the numbers (report.py).
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
import torch

import jointseg
from jointseg.config import Config
from jointseg.hardware import cpu_model, usable_cpus, usable_memory
from jointseg.presets import PRESETS, paper
from jointseg.settings import differences, flatten

PACKAGES = ("jointseg", "python", "torch", "numba", "triton", "ray", "optuna", "mlflow", "numpy")
SOURCES = ("jointseg", "pipeline", "tune_spaces")
COMMIT_TAG = "mlflow.source.git.commit"
MAX_TAG_LENGTH = 5000
"""What MLflow's servers take since their first version; today's take 8000."""


def provenance(config: Config, out: Path) -> dict[str, Any]:
    """Everything to trace a run's numbers by, as plain JSON values.

    Args:
        config: the run's whole config.
        out: the run's folder; its name goes into the command.
    """
    flat = flatten(config)
    return {
        "commit": own_commit(),
        "command": shlex.join(command(config, out=f"{out.name}-again")),
        "versions": versions(),
        "hardware": hardware(),
        "seeds": {path: value for path, value in flat.items() if path.rpartition(".")[2].endswith("seed")},
        "config": flat,
    }


def command(config: Config, *, out: str) -> list[str]:
    """The `jointseg run` that makes `config` out of its preset."""
    base = PRESETS.get(config.preset, paper)()
    words = ["jointseg", "run", "--preset", base.preset]
    changed = {path: value for path, (_, value) in differences(base, config).items()}
    source = changed.pop("data.source", None)
    if source is not None:
        words += ["--data", str(source)]
    for path, value in changed.items():
        words += ["--set", f"{path}={value if _is_plain(value) else json.dumps(value)}"]
    return [*words, "--out", out]


def _is_plain(value: Any) -> bool:
    """Whether a value is text that `--set` reads as itself: JSON it would take apart."""
    if not isinstance(value, str):
        return False
    try:
        json.loads(value)
    except json.JSONDecodeError:
        return value == value.strip()
    return False


@cache
def origin() -> dict[str, str]:
    """Tags that say where this process's numbers come from; MLflow shows those of its own names at a run's head."""
    found = {
        # MLflow shows what comes after the last slash.
        "mlflow.source.name": " ".join(word for word in typed().split()[:2] if "/" not in word),
        "command": typed(),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": None,
        COMMIT_TAG: own_commit(),
        "versions": versions_line(versions()),
        "hardware": hardware_line(hardware()),
    }
    with suppress(OSError, KeyError):  # a container's user may have no name
        found["mlflow.user"] = getpass.getuser()
    return {name: value[:MAX_TAG_LENGTH] for name, value in found.items() if value}


@cache
def own_commit() -> str | None:
    """The commit of the code that this process runs: as it was when first asked for, whatever the files become."""
    return commit()


def typed() -> str:
    """The command line that started this process, the program by its name alone."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Our version, Python's and that of each package that numbers depend on; None where it is not installed."""
    return {name: platform.python_version() if name == "python" else _version(name) for name in PACKAGES}


def versions_line(found: Mapping[str, str | None]) -> str:
    """Versions as one line of text."""
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())


def commit(package: Path | None = None) -> str | None:
    """The git commit of the packages' source, with `-dirty` where it was changed since; None where git does not have it.

    Args:
        package: folder of the `jointseg` package; None: the imported one.
    """
    assert jointseg.__file__ is not None
    package = package or Path(jointseg.__file__).parent
    # An installed package may lie in a repository that does not hold it: ask for one of its own files.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git(package, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(package.parent, "status", "--porcelain", "--", *SOURCES)
    return f"{head}-dirty" if changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    # Inside a git hook these would point at the hook's repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run([program, "-C", folder, *arguments], capture_output=True, text=True, env=environment, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """The machine this runs on, and the Ray cluster it is connected to (None where it is to none)."""
    cluster = None
    if ray.is_initialized():
        there = ray.cluster_resources()
        accelerators = sorted(name.removeprefix("accelerator_type:") for name in there if name.startswith("accelerator_type:"))
        nodes = sum(node["Alive"] for node in ray.nodes())
        cluster = {"nodes": nodes, "cpus": there.get("CPU", 0), "gpus": there.get("GPU", 0), "accelerators": accelerators}
    return {
        "cpu": cpu_model(),
        "cpus": usable_cpus(),
        "memory_gb": round(usable_memory() / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cluster": cluster,
    }


def hardware_line(found: Mapping[str, Any]) -> str:
    """Hardware as one line of text."""
    parts = [f"{found['cpu']} × {found['cpus']}", f"{found['memory_gb']:g} GB", " + ".join(found["gpus"]) or "no GPU"]
    if found["cluster"]:
        there = found["cluster"]
        kinds = f" ({', '.join(there['accelerators'])})" if there["accelerators"] else ""
        parts.append(f"Ray with {there['nodes']} node(s), {there['cpus']:g} CPUs, {there['gpus']:g} GPUs{kinds}")
    return ", ".join(parts)
