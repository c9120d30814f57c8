"""Laws of folders of pictures: their frames are those that were written, numbered by name, and what is wrong is named.

Not here: what is made of the frames (test_store.py).
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from jointseg.data.frame import FRAME_HEIGHT, FRAME_WIDTH, Frame, valid_depth
from jointseg.data.frame_folder import FrameFolder
from jointseg.data.nyu import NyuFolder
from jointseg.data.source import check, open_source
from jointseg.data.store import Store, prepare
from jointseg.errors import InputError
from jointseg.labels import VOID

NAMES = {1: "bath_2", 2: "bath_9", 3: "bath_10", 4: "hall", 5: "hall_1", 6: "hall_02"}


def write(folder: Path, frame: Frame, name: str, *, rgb: str = ".png", raw: bool = True) -> None:
    """A frame as pictures, its depth to the millimetre."""
    depths = {"depth": frame.filled_depth, **({"raw_depth": frame.raw_depth} if raw else {})}
    for part in ("rgb", "labels40", *depths):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.image).save(folder / "rgb" / f"{name}{rgb}")
    numbers = np.where(frame.labels == VOID, 0, frame.labels + 1).astype(np.uint8)
    Image.fromarray(numbers).save(folder / "labels40" / f"{name}.png")
    for part, depth in depths.items():
        Image.fromarray((depth * 1000).round().astype(np.uint16)).save(folder / part / f"{name}.png")


@pytest.fixture(scope="module")
def frames(small_nyu: Path) -> dict[int, Frame]:
    with NyuFolder.open(small_nyu) as nyu:
        return {number: nyu.read(number) for number in NAMES}


@pytest.fixture(scope="module")
def written(frames: dict[int, Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "rooms"
    for number, frame in frames.items():
        write(folder, frame, NAMES[number])
    (folder / "train.txt").write_text("hall\nbath_9\r\n\n hall_02 \nbath_2\n")
    (folder / "test.txt").write_text("bath_10\nhall_1")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(written, tmp_path / "rooms")


def said(folder: Path) -> str:
    """What a check of the folder refuses it with, without the folder's own path."""
    with pytest.raises(InputError) as caught:
        check(folder)
    return str(caught.value).replace(str(folder), "ROOMS")


def test_frames_are_those_that_were_written_numbered_by_name(written: Path, frames: dict[int, Frame]) -> None:
    read = FrameFolder(written)
    assert read.names == tuple(NAMES.values())
    assert (read.train, read.test) == ((1, 2, 4, 6), (3, 5))
    assert not read.real
    for number, frame in frames.items():
        again = read.read(number)
        assert again.number == number
        np.testing.assert_array_equal(again.image, frame.image)
        np.testing.assert_array_equal(again.labels, frame.labels)
        for name in ("raw_depth", "filled_depth"):
            depth = getattr(again, name)
            assert depth.dtype == np.float32
            np.testing.assert_array_equal(valid_depth(depth), valid_depth(getattr(frame, name)))
            np.testing.assert_allclose(depth, getattr(frame, name), atol=0.000501)


def test_a_store_is_made_of_them_and_says_what_a_check_says(written: Path, tmp_path: Path) -> None:
    store = prepare(written, tmp_path / "store")
    assert (store.train, store.test, store.source) == ((1, 2, 4, 6), (3, 5), "rooms")
    assert store.info == check(written)
    Store.open(store.path).verify()
    np.testing.assert_array_equal(store.frame(3).raw_depth, FrameFolder(written).read(3).raw_depth)


def test_without_raw_depth_the_one_depth_is_both_and_photographs_may_be_jpeg(frames: dict[int, Frame], tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path, frames[number], f"{number}", rgb=".jpg", raw=False)
    (tmp_path / "train.txt").write_text("1")
    (tmp_path / "test.txt").write_text("2")
    frame = FrameFolder(tmp_path).read(1)
    np.testing.assert_array_equal(frame.raw_depth, frame.filled_depth)
    assert not np.shares_memory(frame.raw_depth, frame.filled_depth)
    np.testing.assert_allclose(frame.image.mean(), frames[1].image.mean(), atol=2)


def test_a_palette_may_colour_the_classes(folder: Path, frames: dict[int, Frame]) -> None:
    file = folder / "labels40" / f"{NAMES[1]}.png"
    coloured = Image.fromarray(np.asarray(Image.open(file)))
    coloured.putpalette([value % 256 for value in range(5, 773)])
    coloured.save(file)
    assert Image.open(file).mode == "P"
    np.testing.assert_array_equal(FrameFolder(folder).read(1).labels, frames[1].labels)


def test_a_list_may_begin_with_a_mark_and_endings_may_be_capitals(folder: Path) -> None:
    """As Windows' editors and cameras write them; where both are there small letters count."""
    (folder / "train.txt").write_text("hall\nbath_9\nhall_02\nbath_2\n", encoding="utf-8-sig")
    (folder / "rgb" / "hall.png").rename(folder / "rgb" / "hall.PNG")
    (folder / "depth" / "hall.png").rename(folder / "depth" / "hall.PNG")
    (folder / "depth" / "hall_1.PNG").write_text("no picture")
    assert check(folder).num_frames == len(NAMES)


def test_names_of_one_number_are_in_one_order_however_they_are_listed(folder: Path) -> None:
    for name in ("007", "7", "07"):
        for part in ("rgb", "labels40", "depth", "raw_depth"):
            shutil.copy(folder / part / "hall.png", folder / part / f"{name}.png")
    for listed in ("007\n7\n07", "7\n07\n007"):
        (folder / "train.txt").write_text(listed)
        assert FrameFolder(folder).names[:3] == ("007", "07", "7")


def test_copies_of_nyus_frames_may_lie_beside_its_split(folder: Path, small_nyu: Path) -> None:
    shutil.copy(small_nyu / "splits.mat", folder)
    with open_source(folder) as source:
        assert isinstance(source, FrameFolder)


def test_nyus_own_files_come_first(folder: Path, small_nyu: Path) -> None:
    with open_source(folder) as source:
        assert isinstance(source, FrameFolder)
    for path in small_nyu.iterdir():
        shutil.copy(path, folder)
    with open_source(folder) as source:
        assert isinstance(source, NyuFolder)


def _label(folder: Path) -> None:
    pixels = np.asarray(Image.open(folder / "labels40" / "hall.png")).copy()
    pixels[7, 600:602] = 41, 255
    Image.fromarray(pixels).save(folder / "labels40" / "hall.png")


def _resave(part: str, change: Callable[[Image.Image], Image.Image]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / part / "hall.png"
        change(Image.open(path)).save(path)

    return spoil


def _four_bits(folder: Path) -> None:
    """Classes 3 in half a byte each, which Pillow reads as 51."""
    width, height = FRAME_WIDTH, FRAME_HEIGHT
    header, pixels = (
        struct.pack(">2I5B", width, height, 4, 0, 0, 0, 0),
        zlib.compress((b"\0" + b"\x33" * (width // 2)) * height),
    )
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    packed = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    (folder / "labels40" / "hall.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def _as_jpeg(folder: Path) -> None:
    file = folder / "labels40" / "hall.png"
    Image.open(file).save(file, format="JPEG")


def _text(name: str, text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_text("train.txt", b" \n"), "ROOMS/train.txt: names no frame"),
        (_text("train.txt", b"hall\nhall"), "ROOMS/train.txt: names hall more than once"),
        (_text("train.txt", b"hall_1\nbath_10\n"), "ROOMS: frame bath_10 is in both train.txt and test.txt (2 such)"),
        (_text("test.txt", b"hall_1\n\xff"), "ROOMS/test.txt: not UTF-8 text: invalid start byte at byte 7"),
        (
            lambda folder: (folder / "test.txt").unlink(),
            "ROOMS/test.txt: missing; needed: a list of frames, a name a line, in both train.txt and test.txt",
        ),
        (_text("test.txt", b"attic"), "ROOMS/rgb: no picture of frame attic; needed: attic.jpg or attic.jpeg or attic.png"),
        (
            lambda folder: (folder / "raw_depth" / "hall.png").unlink(),
            "ROOMS/raw_depth: no picture of frame hall; needed: hall.png",
        ),
        (
            lambda folder: (folder / "raw_depth").rename(folder / "depth_raw"),
            "ROOMS: has a folder depth_raw; the sensor's depth belongs in raw_depth: rename it",
        ),
        (lambda folder: shutil.rmtree(folder / "depth"), "ROOMS: no folder depth in it; needed: rgb, labels40 and depth"),
        (
            _text("test.txt", b"../hall_1"),
            "ROOMS/test.txt: names ../hall_1; allowed: names of files in rgb, without their ending",
        ),
        (
            _text("test.txt", b"7" * 9000),
            f"ROOMS/test.txt: names {'7' * 255}; allowed: names of files in rgb, without their ending",
        ),
        (_four_bits, "ROOMS/labels40/hall.png: holds L;4 pixels; allowed: one channel of 8 bits, a class a pixel"),
        (_as_jpeg, "ROOMS/labels40/hall.png: not a PNG that Pillow can read"),
        (_text("rgb/hall.png", b"no picture"), "ROOMS/rgb/hall.png: not a picture that Pillow can read"),
        (_label, "ROOMS/labels40/hall.png: row 7, column 600: 41; allowed: 1..40, 0 = unlabelled (2 such pixels)"),
        (
            _resave("labels40", lambda picture: picture.convert("RGB")),
            "ROOMS/labels40/hall.png: holds RGB pixels; allowed: one channel of 8 bits, a class a pixel",
        ),
        (
            _resave("depth", lambda picture: picture.convert("L")),
            "ROOMS/depth/hall.png: holds L pixels; allowed: one channel of 16 bits, millimetres, 0 = missing",
        ),
        (
            _resave("rgb", lambda picture: picture.resize((561, 427))),
            "ROOMS/rgb/hall.png: is 561 × 427 pixels; allowed: 640 × 480",
        ),
        (
            _resave("labels40", lambda picture: picture.transpose(Image.Transpose.ROTATE_90)),
            "ROOMS/labels40/hall.png: is 480 × 640 pixels; allowed: 640 × 480",
        ),
    ],
)
def test_what_is_wrong_is_named(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    assert said(folder) == message


def test_a_picture_that_is_cut_short_is_named(folder: Path) -> None:
    path = folder / "depth" / "hall.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert said(folder).startswith("ROOMS/depth/hall.png: cannot be read as a picture: ")


def test_no_other_frame_than_those_listed(written: Path) -> None:
    for number in (0, 7):
        with pytest.raises(InputError, match=rf"no frame {number}; allowed: 1\.\.6"):
            FrameFolder(written).read(number)


def test_nyus_own_split_is_known_among_copies_of_its_frames(shared: Path, tmp_path: Path) -> None:
    splits = loadmat(shared / "nyuv2" / "splits.mat")
    for kind in ("train", "test"):
        (tmp_path / f"{kind}.txt").write_text("\n".join(f"{number:04d}" for number in splits[f"{kind}Ndxs"].ravel()))
    for part in ("rgb", "labels40", "depth"):
        (tmp_path / part).symlink_to(shared / "nyuv2" / part)
    copies = FrameFolder(tmp_path)
    assert copies.real
    assert (len(copies.train), len(copies.test), copies.names[1448]) == (795, 654, "1449")
    with pytest.raises(InputError, match=r"depth/0005\.png: holds L pixels; allowed: one channel of 16 bits"):
        copies.read(5)
