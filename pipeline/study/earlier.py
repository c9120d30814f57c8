"""CRF settings found before, by an earlier run's search or elsewhere, in place of a search: `search.settings`.

Not here: a search of this run's own (pipeline/search.py), what a result says (result.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jointseg.config import Config
from jointseg.errors import InputError
from jointseg.json_files import write_json
from jointseg.settings import SettingsError, flatten
from jointseg.whole import appearing_whole
from pipeline.study.result import said
from pipeline.study.settings_file import load_settings, settings_in
from pipeline.terminal import Terminal
from pipeline.workspace import SETTINGS, TRIALS, Workspace

OF_A_RESULT = (
    "study", "settings", "search", "searched", "score", "paper_score", "trial", "trials", "failed", "stopped", "folds",
    "paper_folds", "nested", "gain", "balanced_by", "frames", "subset",
)  # fmt: skip
"""What stage 3 and the report take of it."""
TAKEN_FROM = "taken_from"
"""The key under which this run's crf_settings.json names the earlier one."""


def refuse_a_search(config: Config) -> None:
    """Raise InputError where the run takes its settings from an earlier search."""
    if config.search.settings is not None:
        raise SettingsError(
            "search.settings",
            f"this run takes what was found before, {config.search.settings}; to search all the same: --set "
            "search.settings=null",
        )


def earlier_study(config: Config) -> tuple[dict[str, Any], Path | None]:
    """The result that `search.settings` names, and the folder of its study; of a file with settings alone these, and None.

    Raises:
        InputError: the file holds no settings, or some that are not allowed, or its study is not beside it.
    """
    path = config.search.settings
    assert path is not None
    crf = flatten(load_settings(path, config).crf, prefix="crf.")
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not any(result.get(name) is not None for name in OF_A_RESULT if name != "settings"):
        return {"settings": {name: crf[name] for name in settings_in(path)}, "study": None}, None
    missing = [name for name in OF_A_RESULT if name not in result]
    if missing:
        raise InputError(f"search.settings: {path}: not the whole result of a search: it has no {', '.join(missing)}")
    name = result["study"]
    folders = (path.parent, path.parent / "search" / name)
    found = next((folder for folder in folders if folder.name == name and (folder / TRIALS).is_file()), None)
    if found is None:
        raise InputError(
            f"search.settings: {path}: the trials of its study {name} are not beside it; allowed: {SETTINGS} where the search "
            "left it, in its run's folder or its study's"
        )
    return result, found


def take_settings(config: Config, place: Workspace, *, screen: Terminal) -> str | None:
    """Make the earlier result the one that stage 3 starts from, with a copy of its study for the report. Returns its name.

    A file with settings alone has no study, and the report no more than these settings to show.

    Raises:
        InputError: as `earlier_study`, or the disk is full.
    """
    result, study = earlier_study(config)
    if study is not None:
        with appearing_whole(place.search / study.name, replace=True) as folder:
            shutil.copytree(study, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    write_json(place.crf_settings, {**result, TAKEN_FROM: str(config.search.settings)})
    what = ", ".join(result["settings"]) if study is None else said(result)
    screen.say(f"{config.search.settings}: stage 3 starts from it, nothing is searched; {what}")
    return None if study is None else study.name
