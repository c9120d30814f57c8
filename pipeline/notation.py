"""How numbers and CRF settings are written for people: in tables, on a terminal, in MLflow's descriptions.

Not here: the tables themselves (reporting/tables.py, reporting/search.py, score.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from jointseg.crf.settings import CrfSettings
from jointseg.cross_validation import Interval
from jointseg.settings import flatten

Number: TypeAlias = float | None
NONE = "–"

CRF_ROWS = {
    "crf.w_appearance": ("w⁽¹⁾", "weight"),
    "crf.w_depth": ("w⁽²⁾", "weight"),
    "crf.w_smoothness": ("w⁽³⁾", "weight"),
    "crf.theta_alpha": ("θα", "px"),
    "crf.theta_beta": ("θβ", "RGB levels"),
    "crf.theta_gamma": ("θγ", "px"),
    "crf.theta_zeta": ("θζ", "m"),
    "crf.theta_tau": ("θτ", "px"),
    "crf.num_iterations": ("", "iterations"),
    "crf.pairwise": ("", "form"),
}
"""The settings that tables show, what a search may look for: the paper's symbol and the unit of each."""
OURS = {"crf.num_iterations", "crf.pairwise"}
"""Those that the paper does not print: beside its values stand our defaults."""


def percent(share: Number, decimals: int = 1) -> str:
    """A share of 1 in percent without the sign, as the paper prints it; what rounds to 0 has no minus."""
    return NONE if share is None or math.isnan(share) else f"{100 * share:z.{decimals}f}"


def fixed(value: Number, decimals: int = 3) -> str:
    """A number as the paper prints depth errors."""
    return NONE if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def points(gain: Mapping[str, Number]) -> str:
    """A difference of two shares of 1 and its interval, under the names of cross_validation.Interval, in points."""
    difference, low, high = (gain.get(name) for name in Interval._fields)
    if difference is None or low is None or high is None or math.isnan(difference):
        return NONE
    return f"{100 * difference:+z.2f} [{100 * low:+z.2f}, {100 * high:+z.2f}]"


def setting(value: float | str) -> str:
    """A CRF setting."""
    return value if isinstance(value, str) else f"{value:.4g}"


def setting_of_the_paper(path: str) -> str:
    """A CRF setting's value at the paper's point, by its config path."""
    return setting(flatten(CrfSettings(), prefix="crf.")[path]) + (" (ours)" if path in OURS else "")
