"""What is searched and what was found: spaces, points, the table of trials and the settings that stage 3 starts from.

Not here: the spaces' ranges (tune_spaces/), the study on Ray Tune (study.py).
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import BaseDistribution

import tune_spaces
from jointseg.checkpoint import load_final, write_atomically
from jointseg.config import Config
from jointseg.crf.settings import CrfSettings
from jointseg.errors import InputError
from jointseg.settings import flatten, with_overrides
from pipeline.log_lines import Line


def flatten_point(point: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Ray's nested point {"crf": {"theta_beta": 3}} under config paths: {"crf.theta_beta": 3}."""
    flat: dict[str, Any] = {}
    for name, value in point.items():
        flat |= flatten_point(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def point_key(point: Mapping[str, Any]) -> str:
    """A point as text, the same for the same values."""
    return json.dumps(point, sort_keys=True)


def load_space(config: Config) -> dict[str, BaseDistribution]:
    """The space that `search.space` names, its names checked: a trial runs the CRF alone, so they are the CRF's settings.

    Raises:
        InputError: there is no such file, it has no `space`, or it names something that is no setting of the CRF.
    """
    name = config.search.space
    known = sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))
    if name not in known:
        raise InputError(f"search.space: {name!r} is not in tune_spaces/; allowed: {', '.join(known)}")
    module = importlib.import_module(f"tune_spaces.{name}")
    if not hasattr(module, "space"):
        raise InputError(f"tune_spaces/{name}.py: has no function space()")
    space: dict[str, BaseDistribution] = module.space()
    allowed = [f"crf/{setting}" for setting in CrfSettings.model_fields]
    for path in space:
        if path not in allowed:
            raise InputError(f"tune_spaces/{name}.py: {path!r} is not a setting of the CRF; allowed: {', '.join(allowed)}")
    return space


def paper_point(space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """The paper's values of what the space searches: trial 0."""
    values = {f"crf.{name}": value for name, value in flatten(CrfSettings()).items()}
    return {path: values[path.replace("/", ".")] for path in space}


def best_so_far(rows: list[Line]) -> list[float]:
    """The best score up to each trial, in the order asked; minus infinity before the first."""
    return list(accumulate((-math.inf if row["score"] is None else row["score"] for row in rows), max))


def save_result(rows: list[Line], config: Config, *, trials: Path, settings: Path, start: Path, subset: str) -> dict[str, Any]:
    """Write trials.parquet and crf_settings.json; returns the latter.

    Raises:
        InputError: no trial has a score.
    """
    finished = [row for row in rows if row["score"] is not None and math.isfinite(row["score"])]
    if not finished:
        raise InputError(f"search: none of {len(rows)} trials has a score")
    trials.parent.mkdir(parents=True, exist_ok=True)
    partial = trials.with_name(f".{trials.name}.partial")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(trials)
    best = max(finished, key=lambda row: row["score"])
    found = {path: value for path, value in best.items() if path not in {"trial", "state", "score"}}
    _, checkpoint = load_final(start)
    result = {
        "settings": {f"crf.{name}": value for name, value in flatten(with_overrides(config, found).crf).items()},
        "score": best["score"],
        "paper_score": _paper_score(rows),
        "trial": best["trial"],
        "trials": len(rows),
        "seed": config.search.seed,
        "frames": subset,
        "checkpoint": checkpoint,
    }
    write_atomically(settings, json.dumps(result, indent=1))
    return result


def _paper_score(rows: list[Line]) -> float | None:
    """The score of the row that has the paper's values wherever the space searched."""
    papers = {f"crf.{name}": value for name, value in flatten(CrfSettings()).items()}
    at_paper = [row["score"] for row in rows if all(row[path] == papers[path] for path in row if path in papers)]
    return at_paper[0] if at_paper else None


def load_settings(path: Path, config: Config) -> Config:
    """`config` with the CRF settings that the search found.

    Raises:
        InputError: the file is not a search's result.
    """
    try:
        return with_overrides(config, dict(json.loads(path.read_text(encoding="utf-8"))["settings"]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the result of a search ({error!r})") from None
