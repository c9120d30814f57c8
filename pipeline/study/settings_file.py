"""Files of CRF settings, for stage 3, `score` and a search's start: a search's result, or JSON of values by config path.

Not here: what else a result says (result.py), what a space makes of settings (spaces.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jointseg.config import Config
from jointseg.crf.settings import CrfSettings
from jointseg.errors import InputError, one_line
from jointseg.settings import with_overrides

PATHS = tuple(f"crf/{setting}" for setting in CrfSettings.model_fields)
"""The CRF's settings, by the names that search spaces have for them."""
_ALLOWED = 'allowed: a search\'s crf_settings.json, or JSON of values by path, {"crf.theta_alpha": 109, ...}'


def settings_in(path: Path) -> dict[str, Any]:
    """What a file says, by config path, as it stands there; under `settings` where there is such a key.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {_ALLOWED}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON: {one_line(error)}; {_ALLOWED}") from None
    settings = content.get("settings", content) if isinstance(content, dict) else None
    if not settings or not isinstance(settings, dict):
        raise InputError(f"{path}: holds no settings; {_ALLOWED}")
    allowed = [name.replace("/", ".") for name in PATHS]
    others = [name for name in settings if name not in allowed]
    if others:
        raise InputError(f"{path}: {others[0]} is not a setting of the CRF; allowed: {', '.join(allowed)}")
    return settings


def load_settings(path: Path, config: Config) -> Config:
    """`config` with the CRF settings in a file.

    Raises:
        InputError: as `settings_in`, or a value is not allowed.
    """
    settings = settings_in(path)
    try:
        return with_overrides(config, settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
