"""Laws of a trained stage on pictures of one's own, and of the files written. Not here: scores (test_evaluation.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from jointseg.checkpoint import Checkpoint, save_checkpoint, save_final
from jointseg.data.views import content_size, render_input
from jointseg.errors import InputError
from jointseg.evaluation import depth_at_full_size, labels_at_full_size, predict
from jointseg.labels import PALETTE
from jointseg.model import build_model
from jointseg.predictor import Predictor
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.predict import predict_files, read_picture
from pipeline.terminal import Terminal

CPU = torch.device("cpu")


@pytest.fixture
def final_of(small, tmp_path):
    """Makes a stage's `final/` from a network that has something to say, under other settings where asked."""

    def final_of(stage, **changes):
        config = with_overrides(small, changes)
        model = build_model(config)
        with torch.no_grad():
            for parameter in model.network.score_parameters():
                parameter.mul_(100)
        save_checkpoint(tmp_path / "step", Checkpoint(stage, 2, config, dict(model.state_dict()), {}, []))
        save_final(tmp_path / stage / "final", tmp_path / "step")
        return tmp_path / stage / "final", model, config

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
    model.eval()
    rendered = render_input(image, network=config.network)[None]
    h, w = content_size(*size, config.network.input_size, "fit")
    with torch.no_grad():
        output = model(rendered)
        logits, depth = output.logits[..., :h, :w], output.depth[..., :h, :w]
        refined = model.crf(logits, image=rendered[..., :h, :w], depth=depth)
    np.testing.assert_array_equal(found.labels, labels_at_full_size(refined[0], size))
    np.testing.assert_array_equal(found.depth, depth_at_full_size(depth[0], size))


def test_what_is_no_rgb_picture_is_refused(final_of):
    predictor = Predictor(final_of("stage1")[0], device=CPU)
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match=r"image: .* allowed: uint8, \(height, width, 3\), RGB"):
            predictor(image)


def test_the_files_hold_the_prediction(final_of, rooms, tmp_path):
    final, _, _ = final_of("stage3")
    image = rooms.frame(2).image
    Image.fromarray(image).save(tmp_path / "kitchen.png")
    predict_files(final, [tmp_path / "kitchen.png"], tmp_path / "to", screen=Terminal())
    expected = Predictor(final)(image)
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"kitchen.png", "kitchen.classes.png", "kitchen.depth.png"}
    with Image.open(tmp_path / "to" / "kitchen.classes.png") as classes:
        np.testing.assert_array_equal(np.asarray(classes), expected.labels)
        np.testing.assert_array_equal(np.asarray(classes.convert("RGB")), PALETTE[expected.labels])
    with Image.open(tmp_path / "to" / "kitchen.depth.png") as depth:
        millimetres = np.asarray(depth)
    assert millimetres.dtype == np.uint16
    np.testing.assert_allclose(millimetres / 1000, expected.depth, atol=5.1e-4)


def test_a_picture_is_read_upright(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    lying = Image.fromarray(pixels)
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    lying.save(tmp_path / "lying.png", exif=exif)
    read = read_picture(tmp_path / "lying.png")
    assert read.shape == (3, 2, 3)
    assert (read[0, 1] == 255).all()


def test_bad_pictures_leave_nothing_behind(final_of, tmp_path):
    final, _, _ = final_of("stage1")
    good = tmp_path / "good.png"
    Image.new("L", (8, 6)).save(good)
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    (tmp_path / "other").mkdir()
    for bad, said in (
        ("text.jpg", "not a picture that Pillow can read"),
        ("cut.png", "cannot be read as a picture"),
        ("missing.png", "cannot be read as a picture: No such file"),
        ("other", "cannot be read as a picture: Is a directory"),
        ("other/good.jpg", r"would have the names of those of .*good\.png"),
    ):
        with pytest.raises(InputError, match=said):
            predict_files(final, [good, tmp_path / bad], tmp_path / "to", screen=Terminal())
        assert not (tmp_path / "to").exists()
