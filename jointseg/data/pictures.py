"""Picture files as arrays: photographs, and maps of classes and of depth.

Not here: which pictures make a frame (frame_folder.py).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from jointseg.errors import InputError

MILLIMETRES = 1000
"""In a metre: the unit of depth files, as of NYU's and most cameras'."""
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation. Pillow's own function writes all of the EXIF anew, and stops on what some cameras put there."""


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture's pixels, (H, W, 3) RGB, upright as its camera says.

    Raises:
        InputError: the file cannot be read as a picture of 8 bits a channel.
    """
    with _opened(path) as picture:
        deep = _more_than_8_bits(picture)
        pixels = picture.convert("RGB")
        turned = _UPRIGHT.get(picture.getexif().get(_EXIF_ORIENTATION, 1))  # after the pixels: of a TIFF, Pillow turns them
    if deep is not None:
        raise InputError(f"{path}: has more than 8 bits a channel ({deep}); allowed: 8")
    return np.asarray(pixels if turned is None else pixels.transpose(turned))


def read_classes(path: Path) -> NDArray[np.uint8]:
    """The numbers in a PNG of one channel or with a palette, (H, W), as they are.

    Raises:
        InputError: the file cannot be read as a PNG of 8 bits a pixel, or fewer with a palette.
    """
    with _opened(path, "PNG") as picture:
        # Of fewer bits without a palette, L;4 say, Pillow would make levels of grey up to 255.
        holds = next((str(tile.args) for tile in picture.tile if picture.mode == "L"), picture.mode)
        pixels = np.asarray(picture) if holds in ("L", "P") else None
    if pixels is None:
        raise InputError(f"{path}: holds {holds} pixels; allowed: one channel of 8 bits, a class a pixel")
    return pixels


def read_depth(path: Path) -> NDArray[np.float32]:
    """A depth map, (H, W), metres, from a PNG of 16 bits a pixel in millimetres; 0 = missing in both.

    Raises:
        InputError: the file cannot be read as such a picture.
    """
    with _opened(path, "PNG") as picture:
        pixels = np.asarray(picture) if picture.mode.startswith("I") else None
    if pixels is None:
        raise InputError(f"{path}: holds {picture.mode} pixels; allowed: one channel of 16 bits, millimetres, 0 = missing")
    return np.asarray(pixels / np.float32(MILLIMETRES), np.float32)


@contextmanager
def _opened(path: Path, kind: str | None = None) -> Iterator[ImageFile]:
    """The picture in a file, of this kind or of any, to be read within: what Pillow raises of damaged ones is an InputError."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[kind] if kind else None) as picture:
            yield picture
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a {kind or 'picture'} that Pillow can read") from None
    except (OSError, ValueError, TypeError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read as a picture: {problem}") from None


def _more_than_8_bits(picture: ImageFile) -> str | None:
    """What says that a channel has more; None where none has. Of colours Pillow itself keeps the first 8 without a word.

    To be asked before the pixels are read.
    """
    if picture.mode.startswith(("I", "F")):
        return f"Pillow's mode {picture.mode}"
    if isinstance(picture, TiffImageFile):
        bits = max(picture.tag_v2.get(BITSPERSAMPLE, (1,)))
        return f"BitsPerSample {bits}" if bits > 8 else None
    for tile in picture.tile:
        if picture.format == "PNG" and ";16" in str(tile.args):
            return f"a PNG of {tile.args}"
        if picture.format == "PPM" and isinstance(tile.args, tuple) and tile.args[-1] > 255:
            return f"values up to {tile.args[-1]}"
    return None
