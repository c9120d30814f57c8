"""Pictures of one's own through a trained stage: read, predicted one after another, and written as files.

Not here: the prediction (jointseg/predictor.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jointseg.errors import InputError
from jointseg.evaluation import Prediction
from jointseg.figures import prediction_sheet, save_png
from jointseg.labels import PALETTE
from jointseg.predictor import Predictor
from jointseg.whole import disk_errors_named
from pipeline.screen import Screen

MILLIMETRES = 1000
"""In a metre: the unit of depth files, as of NYU's and most cameras'."""


def predict_files(final: Path, pictures: Sequence[Path], to: Path, *, screen: Screen) -> None:
    """Write what a stage says of each picture to `to`, named after the picture.

    NAME.classes.png has a byte a pixel, 0..39, and the colours as a palette; NAME.depth.png 16 bits a pixel, millimetres;
    NAME.png is to look at.

    Args:
        final: a finished stage's `final/`.
        pictures: files of any format that Pillow reads.
        to: a folder, made where it is missing; files of the same names give way.
        screen: where the progress is shown.

    Raises:
        InputError: a file is no picture, two have one name, or the stage has not finished. Nothing is written then.
    """
    _refuse_same_names(pictures)
    for path in pictures:
        read_picture(path)
    predictor = Predictor(final)
    with screen.bar("predict", len(pictures)) as progress:
        for done, path in enumerate(pictures, start=1):
            image = read_picture(path)
            _write(image, predictor(image), to, path.stem)
            progress(done)
    depth = ", NAME.depth.png (millimetres)" if predictor.stage.with_depth else ""
    screen.say(f"{to}: NAME.png, NAME.classes.png (0..39){depth}; pictures: {len(pictures)}")


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture's pixels, (H, W, 3) RGB, upright as its camera says.

    Raises:
        InputError: the file cannot be read as a picture.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read as a picture: {problem}") from None
    return np.asarray(upright)


def _refuse_same_names(pictures: Sequence[Path]) -> None:
    by_name: dict[str, Path] = {}
    for path in pictures:
        if path.stem in by_name:
            raise InputError(f"{path}: its predictions would have the names of those of {by_name[path.stem]}")
        by_name[path.stem] = path


def _write(image: NDArray[np.uint8], prediction: Prediction, to: Path, name: str) -> None:
    classes = Image.fromarray(prediction.labels)
    classes.putpalette(PALETTE.tobytes())
    _save(classes, to / f"{name}.classes.png")
    if prediction.depth is not None:
        depth = np.rint(prediction.depth * MILLIMETRES).astype(np.uint16)
        _save(Image.fromarray(depth), to / f"{name}.depth.png")
    with disk_errors_named(to / f"{name}.png"):
        save_png(prediction_sheet(image, prediction), to / f"{name}.png")


def _save(picture: Image.Image, path: Path) -> None:
    """Write a PNG so that `path` holds a whole one or what it held before."""
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, format="PNG")
        partial.replace(path)
