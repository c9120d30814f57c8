"""Frozen settings that are checked at birth, and changed by copying with overrides by path.

Not here: which settings there are (config.py, crf/settings.py) and their whole sets (presets.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from jointseg.errors import InputError

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Settings(BaseModel):
    """Base of every settings class: frozen, no unknown fields, no infinities, wrong values named in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError.from_validation(error, type(self)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take True for 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, float):
            raise ValueError(f"{value!r} is not allowed; allowed: {_allowed(field)}")
        return value


class SettingsError(InputError):
    """A setting is unknown or its value is not allowed.

    Attributes:
        path: dotted config path of the setting, such as `crf.theta_beta`.
        problem: the value given and what is allowed.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[SettingsError], tuple[str, str]]:
        return SettingsError, (self.path, self.problem)

    @classmethod
    def from_validation(cls, error: ValidationError, owner: type[BaseModel]) -> SettingsError:
        """The first thing that pydantic found wrong, in our words."""
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            return cls(path, f"unknown setting; known here: {', '.join(_fields_at(owner, first['loc'][:-1]))}")
        if first["type"] == "missing":
            return cls(path, "missing, and has no default")
        inner = first.get("ctx", {}).get("error")
        if isinstance(inner, SettingsError):
            return cls(".".join(filter(None, [path, inner.path])), inner.problem)
        if isinstance(inner, ValueError):
            return cls(path, str(inner))
        if first["type"] == "path_type":
            return cls(path, f"{first['input']!r} is not allowed; allowed: a path, such as ./{first['input']}")
        allowed = _allowed(_fields_at(owner, first["loc"][:-1])[str(first["loc"][-1])])
        if allowed is None:
            allowed = first["msg"].removeprefix("Input should be ")
        elif first["type"] == "finite_number":
            allowed = allowed.replace("a number", "a finite number")
        return cls(path, f"{first['input']!r} is not allowed; allowed: {allowed}")


def _fields_at(owner: type[BaseModel], location: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    for part in location:
        annotation = owner.model_fields[str(part)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        owner = annotation
    return owner.model_fields


KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _allowed(field: FieldInfo) -> str | None:
    """What a field of a plain kind takes, with its bounds: pydantic names the bound that was broken, and none where the value
    is no number.
    """
    kind = next((said for plain, said in KINDS.items() if field.annotation in {plain, plain | None}), None)
    of_bounds = ((sign, getattr(bound, name, None)) for bound in field.metadata for name, sign in BOUNDS.items())
    bounds = [f"{sign} {value}" for sign, value in of_bounds if value is not None]
    return kind and " ".join([kind, " and ".join(bounds)]).rstrip()


S = TypeVar("S", bound=Settings)


def flatten(settings: BaseModel, *, prefix: str = "") -> dict[str, Any]:
    """Every leaf of `settings` under its dotted path, behind `prefix`, as plain JSON values."""

    def walk(tree: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{at}{name}.")
            else:
                yield f"{at}{name}", value

    return dict(walk(settings.model_dump(mode="json"), prefix))


def with_overrides(settings: S, overrides: Mapping[str, Any]) -> S:
    """A copy of `settings` with the values at the given dotted paths replaced, and everything checked again.

    Raises:
        SettingsError: a path is unknown (the known ones beside it are listed) or a value is not allowed.
    """
    tree = settings.model_dump()
    for path, value in overrides.items():
        branch: Any = tree
        *parents, leaf = path.split(".")
        for depth, name in enumerate([*parents, leaf]):
            if not isinstance(branch, dict) or name not in branch:
                where = ".".join(path.split(".")[:depth])
                known = ", ".join(branch) if isinstance(branch, dict) else f"{where} is a single value"
                raise SettingsError(path, f"unknown setting; known {f'under {where}' if where else 'at the top'}: {known}")
            if depth < len(parents):
                branch = branch[name]
        if isinstance(branch[leaf], dict):
            raise SettingsError(path, f"names a group, not a setting; its settings: {', '.join(branch[leaf])}")
        branch[leaf] = value
    return type(settings)(**tree)


def parse_override(text: str) -> tuple[str, Any]:
    """`crf.theta_beta=4` as ("crf.theta_beta", 4): the value is read as JSON where it is JSON, else as text.

    Raises:
        SettingsError: there is no `=`, or no path before it.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SettingsError(text, "not an override; write PATH=VALUE, such as crf.theta_beta=4")
    try:
        return path.strip(), json.loads(value)
    except (ValueError, RecursionError):  # not JSON, or a number longer or a list deeper than Python reads
        return path.strip(), value.strip()


def differences(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """The dotted paths at which two settings differ, with both values."""
    left, right = flatten(one), flatten(other)
    return {path: (left.get(path), right.get(path)) for path in {**left, **right} if left.get(path) != right.get(path)}
