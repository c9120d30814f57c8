"""The `jointseg` commands that read what a run has come to: score, predict, reproduce, ui.

Not here: those that compute it (pipeline/cli.py), what is printed of a score or a comparison (pipeline/score.py,
pipeline/reproduce.py).
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from jointseg.errors import InputError
from pipeline.commands.options import (
    OutOption,
    SetOption,
    VerboseOption,
    config_of,
    interruptible,
    named_path,
    refuse_non_utf8,
    refuse_relative,
    say_left_over,
    training_of,
    workspace_of,
)
from pipeline.failures import LostWorkerError
from pipeline.terminal import Terminal
from pipeline.workspace import Workspace


def score(
    out: OutOption,
    files: Annotated[
        list[Path] | None,
        typer.Argument(parser=named_path, metavar="FILES", help="JSON with CRF settings: a search's crf_settings.json."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="test, for reporting; or validation, which searches choose by.")
    ] = "validation",
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Score CRF settings without training them, next to the paper's and to no CRF, from the stage-2 weights in --out.

    By other rules than the run's too: --set of evaluation.scales ('[1,1.25]'), mirror, crop, absent_classes.
    """
    place, screen = workspace_of(out), Terminal()
    config = config_of(place, None, None, overrides)
    for file in files or []:
        refuse_non_utf8("FILES", file.absolute())
    from pipeline.score import PATHS, score_settings, score_table

    place.refuse_other_config(config, free=PATHS.values())

    with interruptible(place, screen, then="the same command begins again"):
        scores = score_settings(config, place, files or [], split=split, screen=screen, verbose=verbose)
    screen.console.print(score_table(scores, config, split=split))
    say_left_over(place, screen)


def predict(
    out: OutOption,
    pictures: Annotated[
        list[Path], typer.Argument(parser=named_path, metavar="PICTURES", help="Files of pictures: JPEG, PNG ...")
    ],
    stage: Annotated[str, typer.Option("--stage", help="Whose weights: 1, 2, 3, 3_sem_crf or one_stage.")] = "3",
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", parser=named_path, metavar="PATH", help="Folder for what is predicted; else predictions/STAGE in --out."
        ),
    ] = None,
    one_view: Annotated[
        bool, typer.Option("--one-view", help="Faster where the run's evaluation averages views: each picture as it is.")
    ] = False,
) -> None:
    """Classes and depth of pictures of your own, from a trained stage: a file each, and one to look at."""
    place, screen, training = workspace_of(out), Terminal(), training_of(stage)
    if to is not None:
        refuse_relative("--to", to)
    place.require(training.name, wanted="predict")
    from pipeline.predict import predict_files

    to = to or place.out / "predictions" / training.name
    with interruptible(place, screen, then="the pictures done before are kept"):
        predict_files(place.final(training), pictures, to, screen=screen, one_view=one_view)


def reproduce(
    what: Annotated[str, typer.Argument(help="A crf_settings.json, a trial.json or a report.json; or mlflow:RUN_ID.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", parser=named_path, metavar="PATH", help="Its data: a prepared store, or a folder of frames."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=named_path, metavar="PATH", help="The folder of its run, where the record lies elsewhere."
        ),
    ] = None,
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


def ui(
    out: OutOption,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 5000,
) -> None:
    """Start MLflow's own UI on the folder's store, until interrupted."""
    from pipeline.run_store import run_store
    from pipeline.tracking import Tracker

    place = Workspace(out.resolve())
    if place.load_config() is None:
        raise InputError(f"{place.config}: not found; {place.out} is not the folder of a run")
    store = run_store(place.out)
    if store.elsewhere is not None:
        raise InputError(f"--out: the runs of {place.out} are at {store.elsewhere}; look at them there")
    _refuse_taken(host, port)
    experiment = Tracker.open(place.out).experiment_id
    typer.echo(
        f"http://{host}:{port}/#/experiments/{experiment}?workflowType=machine_learning  (in a few seconds; Ctrl-C ends it)"
    )
    command = [
        sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri, "--host", host, "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    os.execv(command[0], command)  # a process between would be ended by SIGTERM alone, and leave MLflow's behind


def _refuse_taken(host: str, port: int) -> None:
    """Raise InputError where no one could listen: MLflow itself would end without a word of it on its exit code."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server does: a port just left is free
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no name of a machine"
        raise InputError(f"--host {host} --port {port}: cannot be listened on: {why}; allowed: a free port") from None
