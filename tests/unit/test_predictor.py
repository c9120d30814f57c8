"""Laws of a trained stage on pictures of one's own, and of the files written. Not here: scores (test_evaluation.py)."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from jointseg.data.pictures import read_picture
from jointseg.data.views import content_size, render_input
from jointseg.errors import InputError
from jointseg.evaluation import Prediction, depth_at_full_size, labels_at_full_size, predict
from jointseg.labels import PALETTE
from jointseg.predictor import Predictor
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.predict import predict_files
from pipeline.terminal import Terminal
from tests.checkpoints import untrained_final

CPU = torch.device("cpu")


@pytest.fixture
def final_of(small, tmp_path):
    """Makes a stage's `final/`, under other settings where asked; returns it with its model and config."""

    def final_of(stage, **changes):
        config, folder = with_overrides(small, changes), tmp_path / stage / "final"
        return folder, untrained_final(stage, config, folder), config

    return final_of


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("resize", ["fit", "stretch"])
def test_a_frame_is_predicted_as_in_evaluation(final_of, rooms, name, resize):
    final, model, config = final_of(name, **{"network.resize": resize})
    stage, frame = STAGES[name], rooms.frame(1)
    ((_, expected),) = predict(model, [frame], config, kernels=stage.kernels, with_depth=stage.with_depth, device=CPU)
    found = Predictor(final, device=CPU)(frame.image)
    assert len(np.unique(found.labels)) > 1
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (found.depth is None) == (name == "stage1")
    if found.depth is not None:
        np.testing.assert_array_equal(found.depth, expected.depth)


def test_views_are_the_runs_unless_one_is_asked_for(final_of, rooms, tmp_path, capsys):
    views = {"evaluation.mirror": True, "evaluation.scales": [1, 1.5]}
    final, model, config = final_of("stage3", **views, **{"training.device": "cpu"})
    frame, stage = rooms.frame(1), STAGES["stage3"]
    Image.fromarray(frame.image).save(tmp_path / "hall.png")
    plain = with_overrides(config, {"evaluation.mirror": False, "evaluation.scales": [1]})
    found = []
    for one_view, own, said in ((False, config, "4 views (input × 1, 1.5, each mirrored too)"), (True, plain, "one view")):
        ((_, expected),) = predict(model, [frame], own, kernels=stage.kernels, with_depth=True, device=CPU)
        predict_files(final, [tmp_path / "hall.png"], tmp_path / "to", screen=Terminal(), one_view=one_view)
        found.append(np.asarray(Image.open(tmp_path / "to" / "hall.depth.png")))
        assert np.abs(found[-1] - 1000 * expected.depth).max() <= 1
        assert f"pictures: 1, {said} of each" in capsys.readouterr().out
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("scales", [[1, 1.25], [1.25], [1.05, 3]])
@pytest.mark.parametrize("size", [(640, 480), (100, 1), (640, 10), (7, 900), (1, 1)])
def test_a_picture_of_any_shape_is_averaged_over_views(final_of, rooms, size, scales):
    final, _, _ = final_of("stage3", **{"network.resize": "fit", "evaluation.scales": scales, "evaluation.mirror": True})
    image = np.asarray(Image.fromarray(rooms.frame(1).image).resize(size[::-1]))
    found = Predictor(final, device=CPU)(image)
    assert found.labels.shape == found.depth.shape == size
    assert np.isfinite(found.depth).all()


@pytest.mark.parametrize("size", [(640, 480), (90, 300), (1, 7), (1, 1)])
def test_a_picture_of_any_shape_is_predicted_at_its_size(final_of, rooms, size):
    """Fitted into the input, a portrait has its padding where a frame has pixels: the CRF must not see that."""
    final, model, config = final_of("stage3", **{"network.resize": "fit"})
    image = np.asarray(Image.fromarray(rooms.frame(1).image).resize(size[::-1]))
    found = Predictor(final, device=CPU)(image)
    rendered = render_input(image, network=config.network)[None]
    h, w = content_size(*size, config.network.input_size, "fit")
    with torch.no_grad():
        output = model(rendered)
        logits, depth = output.logits[..., :h, :w], output.depth[..., :h, :w]
        refined = model.crf(logits, image=rendered[..., :h, :w], depth=depth)
    np.testing.assert_array_equal(found.labels, labels_at_full_size(refined[0], size))
    np.testing.assert_array_equal(found.depth, depth_at_full_size(depth[0], size))


def test_the_device_that_is_named_is_taken_whatever_training_took(final_of, monkeypatch):
    final, _, _ = final_of("stage1", **{"training.device": "auto"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    predictor = Predictor(final, device=CPU)
    assert predictor(np.zeros((48, 64, 3), np.uint8)).labels.shape == (48, 64)


def test_what_is_no_rgb_picture_is_refused(final_of):
    predictor = Predictor(final_of("stage1")[0], device=CPU)
    arrays = (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8))
    for image in (*arrays, [[[0, 0, 0]]], None):
        with pytest.raises(InputError, match=r"image: .* allowed: uint8, \(height, width, 3\), RGB"):
            predictor(image)


def test_the_files_hold_the_prediction(final_of, rooms, tmp_path):
    final, _, _ = final_of("stage3")
    image = rooms.frame(2).image
    Image.fromarray(image).save(tmp_path / "hall.png")
    predict_files(final, [tmp_path / "hall.png"], tmp_path / "to", screen=Terminal())
    expected = Predictor(final)(image)
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"hall.sheet.png", "hall.classes.png", "hall.depth.png"}
    with Image.open(tmp_path / "to" / "hall.classes.png") as classes:
        np.testing.assert_array_equal(np.asarray(classes), expected.labels)
        np.testing.assert_array_equal(np.asarray(classes.convert("RGB")), PALETTE[expected.labels])
    with Image.open(tmp_path / "to" / "hall.depth.png") as depth:
        millimetres = np.asarray(depth)
    assert millimetres.dtype == np.uint16
    np.testing.assert_allclose(millimetres / 1000, expected.depth, atol=5.1e-4)


def test_depth_is_rounded_to_millimetres_and_ends_at_the_most_that_a_file_holds(tmp_path, monkeypatch):
    depth = np.array([[1.2346, 70.0], [-1.0, 0.0004]], np.float32)
    predicted = Prediction(np.zeros((2, 2), np.uint8), depth)

    class Predicting:
        stage = SimpleNamespace(with_depth=True)

        views_said = "one view"

        def __init__(self, final, *, one_view):
            pass

        def __call__(self, image):
            return predicted

    monkeypatch.setattr("pipeline.predict.Predictor", Predicting)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    predict_files(tmp_path / "final", [tmp_path / "a.png"], tmp_path / "to", screen=Terminal())
    with Image.open(tmp_path / "to" / "a.depth.png") as found:
        assert np.asarray(found).tolist() == [[1235, 65535], [0, 0]]


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(colour: int, bits: int) -> bytes:
    """Two rows of three equal pixels of the colour type, as the PNG standard has it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes([0b10101010]) * -(-3 * CHANNELS[colour] * bits // 8)
    header = struct.pack(">IIBBBBB", 3, 2, bits, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3 << bits)) if colour == 3 else b""
    parts = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(bits: int, channels: int, order: str) -> bytes:
    """Two rows of three pixels, RGB, or RGBA for four channels; `order` is < or >."""
    pixels = bytes(range(6 * channels * bits // 8))
    depths = struct.pack(f"{order}{channels}H", *[bits] * channels)
    tags = [(256, 3), (257, 2), (258, 8 + len(pixels)), (259, 1), (262, 2), (273, 8), (277, channels), (279, len(pixels))]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    entries = entries.replace(struct.pack(f"{order}HHI", 258, 4, 1), struct.pack(f"{order}HHI", 258, 3, channels))
    at = 8 + len(pixels) + len(depths)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, at)
    return start + pixels + depths + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


SHALLOW = {
    **{f"png {colour} {bits}": png(colour, bits) for colour, bits in [(0, 1), (0, 2), (0, 4), (0, 8), (2, 8), (4, 8), (6, 8)]},
    **{f"png 3 {bits}": png(3, bits) for bits in (1, 2, 4, 8)},
    **{f"tiff {channels} {order}": tiff(8, channels, order) for channels in (3, 4) for order in "<>"},
    **{f"ppm {most}": b"P6 3 2 %d\n" % most + bytes(18) for most in (100, 255)},
    "pbm": b"P4 3 2\n" + bytes(2),
}
DEEP = {
    **{f"png {colour}": png(colour, 16) for colour in (0, 2, 4, 6)},
    **{f"tiff {channels} {order}": tiff(16, channels, order) for channels in (3, 4) for order in "<>"},
    "ppm": b"P6 3 2 1023\n" + bytes(36),
}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_a_channel_are_refused(tmp_path, kind):
    path = tmp_path / "picture"
    path.write_bytes(DEEP[kind])
    with pytest.raises(InputError, match=f"^{path}: has more than 8 bits a channel .*; allowed: 8$"):
        read_picture(path)


@pytest.mark.parametrize("kind", SHALLOW)
def test_8_bits_a_channel_and_fewer_are_read(tmp_path, kind):
    (tmp_path / "picture").write_bytes(SHALLOW[kind])
    assert read_picture(tmp_path / "picture").shape == (2, 3, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_picture_is_read_upright(tmp_path, orientation, kind):
    rng = np.random.default_rng(0)
    lying = Image.fromarray(rng.integers(0, 256, (2, 3, 3), np.uint8))
    exif = lying.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"lying.{kind}"
    lying.save(path, exif=exif)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(read_picture(path), np.asarray(ImageOps.exif_transpose(picture)))


def test_bad_pictures_leave_nothing_behind(final_of, tmp_path):
    final, _, _ = final_of("stage1")
    good = tmp_path / "good.png"
    Image.new("L", (8, 6)).save(good)
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    (tmp_path / "folder").mkdir()
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    for bad, said in (
        ("text.jpg", "text.jpg: not a picture that Pillow can read"),
        ("cut.png", "cut.png: cannot be read as a picture"),
        ("missing.png", "missing.png: cannot be read as a picture: No such file"),
        ("folder", "folder: cannot be read as a picture: Is a directory"),
        ("deep.png", r"deep.png: has more than 8 bits a channel \(Pillow's mode I;16\)"),
        ("folder/good.jpg", r"folder/good.jpg: its predictions would have the names of those of .*good\.png"),
    ):
        with pytest.raises(InputError, match=f"^{tmp_path}/{said}"):
            predict_files(final, [good, tmp_path / bad], tmp_path / "to", screen=Terminal())
        assert not (tmp_path / "to").exists()


def test_a_prediction_never_overwrites_a_picture(final_of, tmp_path):
    final, _, _ = final_of("stage1")
    pictures = [tmp_path / "a.png", tmp_path / "a.classes.png"]
    for path in pictures:
        Image.new("RGB", (8, 6), "red").save(path)
    before = pictures[1].read_bytes()
    with pytest.raises(InputError, match=r"a\.png: its prediction would overwrite the picture .*a\.classes\.png; give another"):
        predict_files(final, pictures, tmp_path, screen=Terminal())
    assert pictures[1].read_bytes() == before


def test_a_name_too_long_for_a_prediction_is_refused_before_anything_is_predicted(tmp_path):
    long = tmp_path / f"{'ü' * 115}.png"
    Image.new("RGB", (8, 6), "red").save(long)
    with pytest.raises(InputError, match=r"ü\.png: its prediction's name, ü{20}…\.sheet\.png, is too long for a file$"):
        predict_files(tmp_path / "final", [long], tmp_path / "to", screen=Terminal())
    assert not (tmp_path / "to").exists()


def test_nor_where_the_folder_has_another_name(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "to").symlink_to(tmp_path / "pictures")
    pictures = [tmp_path / "pictures" / name for name in ("a.png", "a.classes.png")]
    with pytest.raises(InputError, match="would overwrite the picture"):
        predict_files(tmp_path / "final", pictures, tmp_path / "to", screen=Terminal())


def test_a_folder_that_cannot_be_written_is_named(final_of, tmp_path):
    final, _, _ = final_of("stage1")
    good = tmp_path / "good.png"
    Image.new("L", (8, 6)).save(good)
    (tmp_path / "taken" / "good.classes.png").mkdir(parents=True)
    for to, said in (
        (good, r"good\.png: cannot be written: File exists"),
        (tmp_path / "taken", r"good\.classes\.png: cannot be"),
    ):
        with pytest.raises(InputError, match=said):
            predict_files(final, [good], to, screen=Terminal())
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["good.classes.png"]


def test_the_folder_of_a_stage_is_not_taken_for_its_final(final_of):
    final, *_ = final_of("stage3")
    with pytest.raises(InputError, match=rf"^{final.parent}/checkpoint.json: not found; allowed: the final/ of a ") as caught:
        Predictor(final.parent)
    assert type(caught.value) is InputError, "nothing is damaged"
