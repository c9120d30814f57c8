"""What several of `jointseg`'s commands take: options, the folder of a run, the settings that a command line means.

Not here: the commands (pipeline/cli.py, results.py, data.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jointseg.config import Config
from jointseg.data.files import is_folder
from jointseg.errors import InputError
from jointseg.presets import PRESETS
from jointseg.settings import Settings, parse_override, with_overrides
from jointseg.stages import TRAININGS, Stage
from pipeline.failures import is_interruption
from pipeline.run_store import IN_JOB
from pipeline.terminal import Terminal
from pipeline.unsent import left_over
from pipeline.workspace import Workspace


def named_path(text: str) -> Path:
    """What an option or an argument names; an empty text would be the folder one happens to be in."""
    if not text:
        raise typer.BadParameter("is empty; allowed: a path")
    return _from_home(Path(text))


def _from_home(path: Path) -> Path:
    """With `~` as the shell has it, which leaves it alone after `--out=`, and where nobody has such a home."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


OutOption = Annotated[
    Path,
    typer.Option("--out", parser=named_path, metavar="PATH", help="Folder of the run; on a cluster, one that every node sees."),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help=f"Base settings: {', '.join(PRESETS)}. Default: those of --out, else demo."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        parser=named_path,
        metavar="PATH",
        help="Folder with NYU's nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat; or of frames as pictures, with "
        "train.txt and test.txt; or a prepared store. Without: synthetic rooms.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a setting by its path, such as crf.theta_beta=4. Repeatable."),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Show Ray's and Optuna's own logs too.")]


def training_of(stage: str) -> Stage:
    """The training that `--stage` names: `3` is stage3."""
    name = stage if stage in TRAININGS else f"stage{stage}"
    if name not in TRAININGS:
        allowed = ", ".join(known.removeprefix("stage") for known in TRAININGS)
        raise InputError(f"--stage: {stage!r} is not a stage; allowed: {allowed}")
    return TRAININGS[name]


def workspace_of(out: Path) -> Workspace:
    """The folder that `--out` names.

    Raises:
        InputError: it is relative in a job, or a file, or MLflow could not have its store there.
    """
    refuse_relative("--out", out)
    place = out.resolve()
    refuse_non_utf8("--out", place)
    if re.search(r"%[0-9a-fA-F]{2}|\?", str(place)):
        allowed = "a path without ?, without % before two digits: it is part of an address of MLflow's"
        raise InputError(f"--out: {place} is not allowed; allowed: {allowed}")
    if os.path.isfile(place):  # noqa: PTH113  # pathlib's raises where a folder on the way may not be read
        raise InputError(f"--out: {place} is a file; allowed: a folder, or a path where nothing is")
    return Workspace(place)


def refuse_non_utf8(name: str, given: object) -> None:
    """Raise InputError where a name or a path is not text: settings are written down, and sent to workers, as text."""
    try:
        str(given).encode()
    except UnicodeEncodeError:
        shown = str(given).encode(errors="replace").decode()
        raise InputError(f"{name}: {shown} is not allowed; allowed: UTF-8") from None


def refuse_relative(name: str, path: Path) -> None:
    """Raise InputError where a job is given a relative path."""
    if IN_JOB in os.environ and not path.is_absolute():
        raise InputError(
            f"{name}: {path} is relative, and a job's working directory is a copy that goes away; give an absolute path"
        )


@contextmanager
def interruptible(place: Workspace, screen: Terminal, *, then: str | None = None) -> Iterator[None]:
    """Say on an interruption what becomes of the work: `then`, or that the same command goes on with it."""
    try:
        yield
    except BaseException as error:
        if not is_interruption(error):
            raise
        screen.say(f"interrupted; {then or f'the same command goes on with {place.out} where it stopped'}")
        raise KeyboardInterrupt from None


def say_left_over(place: Workspace, screen: Terminal) -> None:
    """Say which files MLflow lacks, if it lacks any."""
    left = left_over(place.out)
    if left is not None:
        screen.say(left)


def config_of(
    place: Workspace,
    preset: str | None,
    data: Path | None,
    overrides: list[str] | None,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """The preset's settings, else those of the folder, else the demo's; with the overrides on top, then the options."""
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset: {preset!r} is not a preset; allowed: {', '.join(PRESETS)}")
    there = place.load_config() if preset is None else None
    config = there or PRESETS[preset or "demo"]()
    changes = {**dict(parse_override(text) for text in overrides or []), **(options or {})}
    if data is not None:
        refuse_relative("--data", data)
        if not is_folder(data):
            raise InputError(f"--data: {data} is not a folder")
        refuse_non_utf8("--data", data.resolve())
        changes["data.source"] = str(data.resolve())
    for name, value in changes.items():
        refuse_non_utf8(name, value)
    config = with_overrides(config, changes)
    # Workers run in folders of their own: a relative path would be another file there.
    groups = [(group, own) for group, own in config if isinstance(own, Settings)]
    given = {f"{group}.{name}": _from_home(path) for group, own in groups for name, path in own if isinstance(path, Path)}
    where, colon, function = config.search.space.rpartition(":")
    file = where if colon else function
    if file.endswith(".py"):
        given["search.space"] = Path(f"{_from_home(Path(file))}{f':{function}' if colon else ''}")
    for name, path in given.items():
        refuse_relative(name, path)
        refuse_non_utf8(name, path.absolute())
    return with_overrides(config, {name: str(path.absolute()) for name, path in given.items()})
