"""The `jointseg` command: its commands, their options, and what is printed.

Not here: the commands that read what a run has come to (commands/results.py), `jointseg data` (commands/data.py), what
options mean (commands/options.py), the phases (run.py), how progress is shown (terminal.py).
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jointseg.errors import InputError
from pipeline.commands.data import data_app
from pipeline.commands.options import (
    DataOption,
    OutOption,
    PresetOption,
    SetOption,
    VerboseOption,
    config_of,
    interruptible,
    named_path,
    say_left_over,
    training_of,
    workspace_of,
)
from pipeline.commands.results import predict, reproduce, score, ui
from pipeline.failures import LostWorkerError
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


def _show_versions(wanted: bool) -> None:
    if wanted:
        from pipeline.provenance import own_commit, versions, versions_line

        typer.echo(f"{versions_line(versions())}, commit {own_commit() or 'unknown'}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_versions, is_eager=True, help="Versions and commit, and nothing else.")
    ] = False,
) -> None:
    """Options of `jointseg` itself."""


@app.command()
def run(
    out: OutOption,
    preset: PresetOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Everything: stages 1 and 2, the search, stage 3, evaluation, report. Repeat it to resume after an interruption."""
    _show_summary(_run(out, preset, data, overrides, PIPELINE, verbose=verbose))


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
    say_left_over(_run(out, preset, data, overrides, ("data", training_of(stage).name), verbose=verbose), Terminal())


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
    start: Annotated[
        Path | None,
        typer.Option("--start", parser=named_path, metavar="PATH", help="JSON file with settings to try after the paper's."),
    ] = None,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Search CRF settings on the validation subset, from the stage-2 weights in --out. Different settings start a separate
    study.
    """
    given = {"space": space, "trials": trials, "concurrent": concurrent, "objective": objective, "start": start}
    short = {f"search.{name}": value for name, value in given.items() if value is not None}
    place, screen = workspace_of(out), Terminal()
    config = config_of(place, None, None, overrides, short)
    from pipeline.run import run_search_command

    with interruptible(place, screen):
        run_search_command(config, place, screen=screen, verbose=verbose)
    say_left_over(place, screen)


@app.command()
def evaluate(out: OutOption, overrides: SetOption = None, verbose: VerboseOption = False) -> None:
    """The four rows of the paper on the test split, and the report."""
    _show_summary(_run(out, None, None, overrides, ("evaluate", "report"), verbose=verbose))


for command in (score, predict, reproduce, ui):
    app.command()(command)


def _run(
    out: Path, preset: str | None, data: Path | None, overrides: list[str] | None, phases: tuple[str, ...], *, verbose: bool
) -> Workspace:
    """Run phases in the folder that `--out` names, and return that folder."""
    place = workspace_of(out)
    config = config_of(place, preset, data, overrides)
    from pipeline.run import run_phases

    screen = Terminal()
    with interruptible(place, screen):
        run_phases(config, place, phases, screen=screen, verbose=verbose)
    return place


def _show_summary(place: Workspace) -> None:
    from pipeline.report import summary

    screen = Terminal()
    screen.console.print(summary(place))
    say_left_over(place, screen)


def _interrupt(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's script starts its background jobs deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _interrupt_again(discarded: sys.UnraisableHookArgs) -> None:
    """Send the signal of an interruption again: Python discards one in a weak reference's callback or a `__del__`."""
    main = threading.main_thread().ident
    if issubclass(discarded.exc_type, KeyboardInterrupt) and main is not None:
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()  # to the thread that may be waiting
    else:
        sys.__unraisablehook__(discarded)


def run_command_line() -> int:
    """Run the command: 0 is success, 2 what is the user's to mend in one line, 1 a worker that was lost, in one line too, or
    (with a traceback) a mistake of ours, 130 an interruption.
    """
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` ends a run as Ctrl-C does
    sys.unraisablehook = _interrupt_again
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
