"""Laws of a trained stage on pictures of one's own, and of the files written. Not here: scores (test_evaluation.py)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from jointseg.data.views import content_size, render_input
from jointseg.errors import InputError
from jointseg.evaluation import Prediction, depth_at_full_size, labels_at_full_size, predict
from jointseg.labels import PALETTE
from jointseg.predictor import Predictor
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.predict import predict_files, read_picture
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
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
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

        def __init__(self, final):
            pass

        def __call__(self, image):
            return predicted

    monkeypatch.setattr("pipeline.predict.Predictor", Predicting)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    predict_files(tmp_path / "final", [tmp_path / "a.png"], tmp_path / "to", screen=Terminal())
    with Image.open(tmp_path / "to" / "a.depth.png") as found:
        assert np.asarray(found).tolist() == [[1235, 65535], [0, 0]]


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
