"""`jointseg data`: make, check and prepare frames. Not here: the other commands (pipeline/cli.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jointseg.data.rooms import processes_to_render, write_rooms
from jointseg.data.source import FolderReport, check
from jointseg.data.store import Store, is_store
from jointseg.data.store import prepare as prepare_store
from jointseg.labels import CLASS_NAMES
from pipeline.commands.options import named_path
from pipeline.terminal import Terminal

data_app = typer.Typer(help="Make, check and prepare frames: in NYU's own layout, or as pictures.")


@data_app.command("rooms")
def data_rooms(
    out: Annotated[Path, typer.Option("--out", parser=named_path, metavar="PATH", help="New folder for the three files.")],
    frames: Annotated[int, typer.Option("--frames", min=2, help="Rooms; three quarters go to the train split.")] = 80,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the rooms and of the split.")] = 0,
) -> None:
    """Write synthetic rooms in NYU's own layout: the .mat file, the splits and the class mapping."""
    num_test = max(1, frames // 4)
    with Terminal().bar("rooms", frames) as progress:
        write_rooms(
            out,
            num_train=frames - num_test,
            num_test=num_test,
            seed=seed,
            progress=progress,
            num_processes=processes_to_render(),
        )
    typer.echo(f"{out}: {frames - num_test} train and {num_test} test rooms")


@data_app.command("check")
def data_check(
    folder: Annotated[
        Path,
        typer.Argument(parser=named_path, metavar="FOLDER", help="NYU's three files, or pictures, or a store."),
    ],
) -> None:
    """Open such a folder, check every frame, and print what is in it; of a store, compare every frame with its digest."""
    terminal = Terminal()
    if is_store(folder):
        store = Store.open(folder)
        with terminal.bar("check", store.num_frames) as progress:
            store.verify(progress=progress)
        terminal.say(f"{folder}: {store.num_frames} frames as they were written, digest {store.digest}")
        return
    with terminal.bar("check", 1) as progress:
        report = check(folder, progress=progress)
    terminal.console.print(_data_table(folder, report))


@data_app.command("prepare")
def data_prepare(
    folder: Annotated[Path, typer.Argument(parser=named_path, metavar="FOLDER", help="NYU's three files, or pictures.")],
    out: Annotated[Path, typer.Option("--out", parser=named_path, metavar="PATH", help="New folder for the store.")],
) -> None:
    """Copy such a folder into the memory-mapped store that training reads, checking every frame on the way."""
    terminal = Terminal()
    with terminal.bar("prepare", 1) as progress:
        store = prepare_store(folder, out, progress=progress)
    terminal.say(f"{out}: {store.num_frames} frames, digest {store.digest}")


def _data_table(folder: Path, report: FolderReport) -> Table:
    table = Table(title=str(folder), show_header=False)
    common = sorted(report.classes_present, key=lambda label: -report.class_pixels[label])[:3]
    table.add_row("frames", f"{report.num_frames}: {report.num_train} train, {report.num_test} test")
    kind = "NYU Depth v2" if report.real else "not NYU's own frames, going by their class mapping or split"
    table.add_row("kind", kind)
    table.add_row("classes", f"{len(report.classes_present)} of 40; most common: {', '.join(CLASS_NAMES[c] for c in common)}")
    table.add_row("void", f"{report.void_share:.1%} of pixels")
    holes = f"{report.hole_share:.1%} of raw missing" if report.hole_share else "none of raw missing, as no sensor has it"
    table.add_row("depth", f"{report.min_depth:.2f} .. {report.max_depth:.2f} m filled in; {holes}")
    return table
