"""The `jointseg` command: its commands, their options, and what is printed.

Not here: `jointseg data` (cli_data.py), the phases (run.py), how progress is shown (terminal.py), exit codes of
Ray's own commands.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jointseg.config import Config
from jointseg.data.files import is_folder
from jointseg.errors import InputError
from jointseg.presets import PRESETS
from jointseg.settings import parse_override, with_overrides
from jointseg.stages import TRAININGS, Stage
from pipeline.cli_data import data_app, named_path
from pipeline.failures import LostWorkerError, is_interruption
from pipeline.run_store import IN_JOB
from pipeline.terminal import Terminal
from pipeline.workspace import PIPELINE, Workspace

app = typer.Typer(
    name="jointseg",
    help="Joint semantic segmentation and depth with a fully connected CRF (Mousavian et al. 2016), on Ray and MLflow.\n\n"
    "Begin with: jointseg run --preset demo --out runs/demo",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(data_app, name="data")

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
        help="Folder with NYU's nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat, or a prepared store. Without: "
        "synthetic rooms.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a setting by its path, such as crf.theta_beta=4. Repeatable."),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Show Ray's and Optuna's own logs too.")]


@app.command()
def run(
    out: OutOption,
    preset: PresetOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Everything: stages 1 and 2, the search, stage 3, evaluation, report. Repeat it to resume after an interruption."""
    _run(out, preset, data, overrides, PIPELINE, verbose=verbose)
    from pipeline.report import summary

    Terminal().console.print(summary(Workspace(out.resolve())))


@app.command()
def train(
    out: OutOption,
    stage: Annotated[str, typer.Option("--stage", help="1, 2, 3; 3_sem_crf: without the depth kernel; one_stage.")],
    preset: PresetOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """One training stage, from its last checkpoint or from the stage before it. `one_stage` trains both tasks from the start,
    which the paper compares stages 1 and 2 with.
    """
    _run(out, preset, data, overrides, ("data", _training(stage).name), verbose=verbose)


@app.command()
def search(
    out: OutOption,
    space: Annotated[
        str | None,
        typer.Option("--space", help="A file of tune_spaces/, path/to/file.py:function, or module:function."),
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials in all; a larger number extends the study.")] = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", help="Trials at once, at most.")] = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="miou; miou,seconds or miou,boundary_f1 for two at once.")
    ] = None,
    start: Annotated[Path | None, typer.Option("--start", help="JSON file with settings to try after the paper's.")] = None,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Search CRF settings on the validation subset, from the stage-2 weights in --out. Different settings start a separate
    study.
    """
    given = {"space": space, "trials": trials, "concurrent": concurrent, "objective": objective, "start": start}
    short = {f"search.{name}": value for name, value in given.items() if value is not None}
    place, screen = _workspace(out), Terminal()
    config = _config(place, None, None, overrides, short)
    from pipeline.run import run_study

    with _interruptible(place, screen):
        run_study(config, place, screen=screen, verbose=verbose)


@app.command()
def evaluate(out: OutOption, overrides: SetOption = None, verbose: VerboseOption = False) -> None:
    """The four rows of the paper on the test split, and the report."""
    _run(out, None, None, overrides, ("evaluate", "report"), verbose=verbose)
    from pipeline.report import summary

    Terminal().console.print(summary(Workspace(out.resolve())))


@app.command()
def score(
    out: OutOption,
    files: Annotated[list[Path] | None, typer.Argument(help="JSON with CRF settings: a search's crf_settings.json.")] = None,
    split: Annotated[
        str, typer.Option("--split", help="test, for reporting; or validation, which searches choose by.")
    ] = "validation",
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Score CRF settings without training them, next to the paper's and to no CRF, from the stage-2 weights in --out."""
    place, screen = _workspace(out), Terminal()
    config = _config(place, None, None, overrides)
    place.refuse_other_config(config)
    from pipeline.score import score_settings, score_table

    with _interruptible(place, screen, then="the same command begins again"):
        scores = score_settings(config, place, files or [], split=split, screen=screen, verbose=verbose)
    screen.console.print(score_table(scores, split=split))


@app.command()
def predict(
    out: OutOption,
    pictures: Annotated[list[Path], typer.Argument(help="Files of pictures: JPEG, PNG ...")],
    stage: Annotated[str, typer.Option("--stage", help="Whose weights: 1, 2, 3, 3_sem_crf or one_stage.")] = "3",
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for what is predicted; else predictions/STAGE in --out.")
    ] = None,
) -> None:
    """Classes and depth of pictures of your own, from a trained stage: a file each, and one to look at."""
    place, screen, training = _workspace(out), Terminal(), _training(stage)
    if to is not None:
        _refuse_relative("--to", to)
    place.require(training.name, wanted="predict")
    from pipeline.predict import predict_files

    with _interruptible(place, screen, then="the pictures done before are kept"):
        predict_files(place.final(training), pictures, to or place.out / "predictions" / training.name, screen=screen)


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help="A crf_settings.json, a trial.json or a report.json; or mlflow:RUN_ID.")],
    data: Annotated[Path | None, typer.Option("--data", help="Its data: a prepared store, or NYU's folder.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder of its run, where the record lies elsewhere.")] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Differences of scores that count as equal: 0.001 across machines.")
    ] = 0.0,
    verbose: VerboseOption = False,
) -> None:
    """Compute a result again from its data and checkpoint, and compare every score: exits 0 if equal, 1 if not."""
    from pipeline.reproduce import reproduce as run_again

    try:
        equal = run_again(what, data=data, out=out, tolerance=tolerance, screen=Terminal(), verbose=verbose)
    except LostWorkerError as error:  # 1 would say that it differs
        raise InputError(str(error)) from None
    raise typer.Exit(0 if equal else 1)


@app.command()
def ui(
    out: OutOption,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 5000,
) -> None:
    """Start MLflow's own UI on the folder's store, until interrupted."""
    from pipeline.run_store import run_store, without_password
    from pipeline.tracking import Tracker

    place = Workspace(out.resolve())
    if place.load_config() is None:
        raise InputError(f"{place.config}: not found; {place.out} is not the folder of a run")
    uri = run_store(place.out).uri
    if not uri.startswith("sqlite:"):
        raise InputError(f"--out: the runs of {place.out} are at {without_password(uri)}; look at them there")
    experiment = Tracker.open(place.out).experiment_id
    typer.echo(f"http://{host}:{port}/#/experiments/{experiment}?workflowType=machine_learning  (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    os.execv(command[0], command)  # a process between would be ended by SIGTERM alone, and leave MLflow's behind


def _run(
    out: Path, preset: str | None, data: Path | None, overrides: list[str] | None, phases: tuple[str, ...], *, verbose: bool
) -> None:
    place = _workspace(out)
    config = _config(place, preset, data, overrides)
    from pipeline.run import run_phases

    screen = Terminal()
    with _interruptible(place, screen):
        run_phases(config, place, phases, screen=screen, verbose=verbose)


def _training(stage: str) -> Stage:
    name = stage if stage in TRAININGS else f"stage{stage}"
    if name not in TRAININGS:
        allowed = ", ".join(known.removeprefix("stage") for known in TRAININGS)
        raise InputError(f"--stage: {stage!r} is not a stage; allowed: {allowed}")
    return TRAININGS[name]


def _workspace(out: Path) -> Workspace:
    _refuse_relative("--out", out)
    return Workspace(out.resolve())


def _refuse_relative(name: str, path: Path) -> None:
    if IN_JOB in os.environ and not path.is_absolute():
        raise InputError(
            f"{name}: {path} is relative, and a job's working directory is a copy that goes away; give an absolute path"
        )


@contextmanager
def _interruptible(place: Workspace, screen: Terminal, *, then: str | None = None) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not is_interruption(error):
            raise
        screen.say(f"interrupted; {then or f'the same command goes on with {place.out} where it stopped'}")
        raise KeyboardInterrupt from None


def _config(
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
        _refuse_relative("--data", data)
        if not is_folder(data):
            raise InputError(f"--data: {data} is not a folder")
        changes["data.source"] = str(data.resolve())
    config = with_overrides(config, changes)
    # Workers run in folders of their own: a relative path would be another file there.
    paths = {
        "data.source": config.data.source,
        "network.weights": config.network.weights,
        "search.start": config.search.start,
        "search.node_folder": config.search.node_folder,
    }
    given = {name: path.expanduser() for name, path in paths.items() if path is not None}
    where, colon, function = config.search.space.rpartition(":")
    file = where if colon else function
    if file.endswith(".py"):
        given["search.space"] = Path(f"{Path(file).expanduser()}{f':{function}' if colon else ''}")
    for name, path in given.items():
        _refuse_relative(name, path)
    return with_overrides(config, {name: str(path.absolute()) for name, path in given.items()})


def _interrupt(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's script starts its background jobs deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def run_command_line() -> int:
    """Run the command: 0 is success, 2 what is the user's to mend in one line, 1 a worker that was lost, in one line too, or
    (with a traceback) a mistake of ours, 130 an interruption.
    """
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` ends a run as Ctrl-C does
    stderr = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    try:
        return app(sys.argv[1:] or ["--help"], prog_name="jointseg", standalone_mode=False) or 0
    except (InputError, LostWorkerError) as error:
        stderr.print(f"error: {error}", markup=False)
        return 2 if isinstance(error, InputError) else 1
    except Exception as error:
        # What was typed is no command. Typer's releases differ in which classes say so.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        where = "jointseg" if context is None else context.command_path
        stderr.print(f"error: {where}: {error.format_message().rstrip('.')} ({where} --help says more)", markup=False)
        return 2
