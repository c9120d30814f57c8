"""What is searched: spaces by name or from a file of one's own, and the points tried first.

Not here: the shipped spaces' ranges (tune_spaces/), who asks for points in a space (samplers.py).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import pkgutil
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)

import tune_spaces
from jointseg.config import Config
from jointseg.crf.settings import CrfSettings
from jointseg.data.files import is_file_to_read
from jointseg.errors import InputError, one_line
from jointseg.settings import flatten, with_overrides
from pipeline.study.settings_file import PATHS, load_settings, settings_in

Point = dict[str, Any]
"""Settings by config path."""

DrawFunction = Callable[[optuna.trial.BaseTrial], Mapping[str, Any]]


@dataclass(frozen=True)
class Space:
    """A space that has been looked at: its names are settings of the CRF, and it can be drawn from."""

    name: str
    """As the user names it; without the folders of a file."""
    distributions: Mapping[str, BaseDistribution] | None
    """Of all parameters, by Optuna's name; None where what is drawn depends on what was drawn before."""
    function: DrawFunction | None
    """Draws a point, where there are no fixed distributions."""
    switches: Callable[[Point], dict[str, Any]]
    """Values of the parameters that are no setting, at a point."""
    digest: str
    """SHA-256 of what it draws from; of a function that draws by itself, of its file and of what it draws from at the paper's
    point.
    """

    def draw(self, trial: optuna.trial.BaseTrial) -> Point:
        """The point that a trial draws.

        Raises:
            InputError: the space's function names something that is no setting of the CRF, gives it what is no plain value, or
            has its bounds reversed.
        """
        if self.distributions is not None:
            return _point(trial.params)
        assert self.function is not None
        with _mistakes_named(self.name):
            drawn = _dict(self.function(trial), self.name)
        refuse_unknown(drawn, self.name)
        return {setting: _plain(value, setting, self.name) for setting, value in _point(drawn).items()}

    def at(self, point: Point) -> tuple[Point, dict[str, Any], bool]:
        """What the space makes of a point: the settings it searches there, Optuna's parameters, and whether it could draw them.

        Raises:
            InputError: the point has not all that the space draws.
        """
        drawn, params, distributions = self.drawn_at(point)
        return drawn, params, all(_holds(own, params[name]) for name, own in distributions.items())

    def drawn_at(self, point: Point) -> tuple[Point, dict[str, Any], Mapping[str, BaseDistribution]]:
        """The settings it searches at a point, and Optuna's parameters there with what each is drawn from.

        Raises:
            InputError: as `at`.
        """
        with _mistakes_named(self.name):
            params = {path.replace(".", "/"): value for path, value in point.items()} | self.switches(point)
        if self.distributions is not None:
            distributions = self.distributions
            drawn = _point({name: params[name] for name in distributions})
        else:
            fixed = optuna.trial.FixedTrial(params)
            with warnings.catch_warnings(action="ignore"):  # that a value is out of range is part of the answer
                try:
                    drawn, distributions = self.draw(fixed), fixed.distributions
                except InputError as error:
                    unknown = re.search("parameter ('.+?') is not found. Please set it at the construction", str(error))
                    if unknown is None:
                        raise
                    allowed = "one, or a function switches(settings) in the same file, with its value at given settings"
                    raise InputError(f"{self.name}: draws {unknown[1]}, no setting of the CRF; allowed: {allowed}") from None
        return drawn, {name: params[name] for name in distributions}, distributions


def load_space(config: Config) -> Space:
    """The space that `search.space` names, tried at the paper's point.

    Raises:
        InputError: it is not found, cannot be imported, or draws what is no setting of the CRF or what one may not be.
    """
    name, module, function_name = _find(config.search.space)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{name}: has no function {function_name}()")
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{name}: {function_name}() is async; allowed: a plain function")
    with _mistakes_named(name):
        takes_trial = any(_is_to_be_given(parameter) for parameter in inspect.signature(function).parameters.values())
    switches: Callable[[Point], dict[str, Any]] = getattr(module, "switches", lambda _: {})
    space = Space(name, None, function, switches, "") if takes_trial else _fixed(name, function)
    with _mistakes_named(name):
        drawn, _, distributions = space.drawn_at(papers_values())
        as_json = {path: distribution_to_json(own) for path, own in distributions.items()}
        described = json.dumps(as_json, sort_keys=True).encode()
        if takes_trial:
            has_file = inspect.isfunction(function) or inspect.ismethod(function)  # a partial has none
            described += Path(inspect.getfile(function if has_file else module)).read_bytes()
        _allowed(drawn, name)
        _refuse_ranges(distributions, drawn, name)
    return replace(space, digest=hashlib.sha256(described).hexdigest())


def _is_to_be_given(parameter: inspect.Parameter) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameter.kind in positional and parameter.default is inspect.Parameter.empty


def _allowed(point: Point, name: str) -> Point:
    """The settings that these values mean.

    Raises:
        InputError: one is none that its setting may have.
    """
    try:
        checked = with_overrides(Config(), point)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return {path: value for path, value in flatten(checked).items() if path in point}


def _refuse_ranges(distributions: Mapping[str, BaseDistribution], drawn: Point, name: str) -> None:
    """Raise InputError where settings are drawn from values that they may not have: every such trial would fail."""
    for path, own in distributions.items():
        setting = path.replace("/", ".")
        papers = papers_values().get(setting)
        if path not in PATHS or drawn.get(setting) != papers:
            continue  # its function makes something else of it
        ends = own.choices if isinstance(own, CategoricalDistribution) else (own.low, own.high)  # type: ignore[attr-defined]
        for value in ends:
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name}: {setting} is drawn up to {value}; allowed: finite numbers")
            _allowed({setting: _plain(value, setting, name)}, name)
        if isinstance(own, FloatDistribution) and isinstance(papers, int):
            raise InputError(f"{name}: {setting} is a whole number; allowed: an IntDistribution, or suggest_int")


def _fixed(name: str, function: Callable[[], Mapping[str, BaseDistribution]]) -> Space:
    with _mistakes_named(name), warnings.catch_warnings(action="ignore"):  # what matters of it is an error below
        distributions = _dict(function(), name)
    refuse_unknown(distributions, name)
    for path, own in distributions.items():
        if not isinstance(own, BaseDistribution):
            raise InputError(f"{name}: {path!r} is {own!r}; allowed: an Optuna distribution")
    return Space(name, distributions, None, lambda _: {}, "")


@contextmanager
def _mistakes_named(name: str) -> Iterator[None]:
    """Raise InputError in place of what goes wrong in a user's own code, such as Optuna's refusal of reversed bounds."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        others = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), __file__)
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if not at.filename.startswith(others)]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{name}{where}: {kind}{one_line(error)}") from None


def _dict(given: Any, name: str) -> dict[str, Any]:
    """What a space's function gives."""
    if not isinstance(given, Mapping):
        raise InputError(f"{name}: gives {given!r}; allowed: a dict by config path, such as crf/theta_beta")
    return dict(given)


def _holds(own: BaseDistribution, value: Any) -> bool:
    """Whether a value could be drawn."""
    try:
        return own._contains(own.to_internal_repr(value))
    except ValueError:  # no choice of a categorical one
        return False


def refuse_unknown(paths: Mapping[str, Any], name: str) -> None:
    """Raise InputError where a name is no setting of the CRF: a trial runs the CRF alone."""
    if not paths:
        raise InputError(f"{name}: searches nothing; allowed: some of {', '.join(PATHS)}")
    for path in paths:
        if path not in PATHS:
            raise InputError(f"{name}: {path!r} is not a setting of the CRF; allowed: {', '.join(PATHS)}")


def _find(wanted: str) -> tuple[str, ModuleType, str]:
    """A short name, the module and the name of the function that `search.space` means."""
    where, colon, function = wanted.rpartition(":")
    if not colon:
        where, function = wanted, "space"
    if where.endswith(".py"):
        return _file(Path(where), function)
    if not colon:
        known = sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))
        if wanted not in known:
            raise InputError(
                f"search.space: {wanted!r} is not in tune_spaces/; allowed: {', '.join(known)}, "
                "path/to/file.py:function, module:function"
            )
        return f"tune_spaces/{wanted}.py", importlib.import_module(f"tune_spaces.{wanted}"), function
    here = str(Path.cwd())
    missing = here not in sys.path  # Python itself has it, but not the `jointseg` command
    sys.path += [here] * missing
    try:
        return wanted, importlib.import_module(where), function
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        raise InputError(f"search.space: module {where!r} cannot be imported: {one_line(error)}") from None
    finally:
        if missing:
            sys.path.remove(here)


def _file(path: Path, function: str) -> tuple[str, ModuleType, str]:
    if not is_file_to_read(path):
        raise InputError(f"search.space: {path} is not a file")
    alone = f"_space_{path.stem}"  # a name that no other module has: it may be called json.py
    spec = importlib.util.spec_from_file_location(alone, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alone] = module  # dataclasses look there for the module that they are in
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        raise InputError(f"search.space: {path} cannot be imported: {one_line(error)}") from None
    finally:
        del sys.modules[alone]
    return f"{path.name}:{function}", module, function


def papers_values() -> Point:
    """All of the paper's settings of the CRF."""
    return flatten(CrfSettings(), prefix="crf.")


def start_points(space: Space, config: Config) -> list[tuple[Point, dict[str, Any], bool]]:
    """The points tried first, as `Space.at` gives them: the paper's, trial 0, and that of `search.start`.

    Where a point lies outside the space's ranges it is scored all the same, and the sampler is not told.

    Raises:
        InputError: the file of `search.start` holds no settings, or one that this space does not search with another value
            than the run's own.
    """
    points = [space.at(papers_values())]
    if config.search.start is None:
        return points
    path = config.search.start
    crf = flatten(load_settings(path, Config()).crf, prefix="crf.")
    given = {name: crf[name] for name in settings_in(path)}
    held = flatten(config.crf, prefix="crf.")
    point, params, inside = space.at({**papers_values(), **given})
    for name, value in given.items():
        if name not in point and value != held[name]:
            raise InputError(
                f"{path}: {name} is {value} there, and {held[name]} in this run; the space {space.name} does not search it"
            )
    return [*points, (point, params, inside)]


def _point(drawn: Mapping[str, Any]) -> Point:
    return {path.replace("/", "."): value for path, value in drawn.items()}


def _plain(value: Any, setting: str, name: str) -> float | str:
    """A value as Python's own, where it is numpy's; of the kind that its setting has, for all trials are one table."""
    value = value.item() if isinstance(value, np.generic) else value
    is_text = isinstance(papers_values()[setting], str)
    if isinstance(value, bool) or not isinstance(value, str if is_text else (float, int)):
        raise InputError(f"{name}: {setting} is {value!r}; allowed: {'text' if is_text else 'a number'}")
    return value
