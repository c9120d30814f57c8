"""Pictures of one's own through a trained stage: read, predicted one after another, and written as files.

Not here: how a picture is read (jointseg/data/pictures.py), the prediction (jointseg/predictor.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jointseg.data.pictures import MILLIMETRES, read_picture
from jointseg.errors import InputError
from jointseg.evaluation import Prediction
from jointseg.figures import prediction_sheet, save_png
from jointseg.labels import PALETTE
from jointseg.predictor import Predictor
from jointseg.whole import replacing_whole
from pipeline.failures import interruptions_wait
from pipeline.terminal import Terminal

KINDS = ("sheet", "classes", "depth")
LONGEST = 255 - len("..partial-4194304")
"""Bytes of a file's name, without what is added while it is written."""


def predict_files(final: Path, pictures: Sequence[Path], to: Path, *, screen: Terminal, one_view: bool = False) -> None:
    """Write what a stage says of each picture to `to`, named after the picture.

    NAME.classes.png has a byte a pixel, 0..39, and the colours as a palette; NAME.depth.png 16 bits a pixel, millimetres;
    NAME.sheet.png is to look at.

    Args:
        final: a finished stage's `final/`.
        pictures: files of any format that Pillow reads, of 8 bits a channel.
        to: a folder, made where it is missing; files of the same names give way, but none of `pictures`.
        screen: where the progress is shown.
        one_view: no mean over sizes and mirror images, whatever the run's evaluation does.

    Raises:
        InputError: a file is no such picture, two files would have one name, one a name that is too long, the stage has not
            finished (nothing is written then), or `to` cannot be written.
    """
    _refuse_clashes(pictures, to)
    for path in pictures:
        read_picture(path)
    predictor = Predictor(final, one_view=one_view)
    with _errors_named(to):
        to.mkdir(parents=True, exist_ok=True)
    with screen.bar("predict", len(pictures)) as progress:
        for done, path in enumerate(pictures, start=1):
            image = read_picture(path)
            _write(image, predictor(image), to, path.stem)
            progress(done)
    depth = ", NAME.depth.png (millimetres)" if predictor.stage.with_depth else ""
    seen = f"pictures: {len(pictures)}, {predictor.views_said} of each"
    screen.say(f"{to}: NAME.sheet.png, NAME.classes.png (0..39){depth}; {seen}")


def _refuse_clashes(pictures: Sequence[Path], to: Path) -> None:
    """Look at every name that would be written before anything is."""
    given = {path.resolve() for path in pictures}
    written: dict[Path, Path] = {}
    for path in pictures:
        for kind in KINDS:
            file = to.resolve() / f"{path.stem}.{kind}.png"
            if len(os.fsencode(file.name)) > LONGEST:
                raise InputError(f"{path}: its prediction's name, {path.stem[:20]}….{kind}.png, is too long for a file")
            if file in given:
                raise InputError(f"{path}: its prediction would overwrite the picture {file}; give another folder as --to")
            if file in written:
                raise InputError(f"{path}: its predictions would have the names of those of {written[file]}")
            written[file] = path


@interruptions_wait()
def _write(image: NDArray[np.uint8], prediction: Prediction, to: Path, name: str) -> None:
    classes = Image.fromarray(prediction.labels)
    classes.putpalette(PALETTE.tobytes())
    _save(classes, to / f"{name}.classes.png")
    if prediction.depth is not None:
        most = np.iinfo(np.uint16).max
        depth = np.rint(prediction.depth * MILLIMETRES).clip(0, most).astype(np.uint16)
        _save(Image.fromarray(depth), to / f"{name}.depth.png")
    sheet = to / f"{name}.sheet.png"
    with _errors_named(sheet):
        save_png(prediction_sheet(image, prediction), sheet)


def _save(picture: Image.Image, path: Path) -> None:
    """Write a PNG so that `path` holds a whole one or what it held before."""
    with _errors_named(path), replacing_whole(path) as partial:
        picture.save(partial, format="PNG")


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
