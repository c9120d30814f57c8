"""Whether the depth kernel earns its place: kernel 2 on or off, its bandwidths and weight only where it is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.trial import BaseTrial

from tune_spaces import crf_bandwidths, crf_weights

OF_DEPTH = ("crf/w_depth", "crf/theta_gamma", "crf/theta_zeta")


def space(trial: BaseTrial) -> dict[str, Any]:
    """Ranges as in crf_weights and crf_bandwidths; a weight of 0 is no kernel.

    Off, the other two kernels may take other values than beside it: it is their best without depth against the best with it.
    """
    ranges = {**crf_weights.space(), **crf_bandwidths.space()}
    on = trial.suggest_categorical("depth_kernel", ["on", "off"]) == "on"
    point: dict[str, Any] = {} if on else {"crf/w_depth": 0.0}
    for path, range_ in ranges.items():
        if on or path not in OF_DEPTH:
            point[path] = trial.suggest_float(path, range_.low, range_.high, log=range_.log)
    return point


def switches(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The value of `depth_kernel` at given settings, by config path."""
    return {"depth_kernel": "on" if settings["crf.w_depth"] > 0 else "off"}
