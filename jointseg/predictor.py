"""A trained model for pictures of one's own. Needs nothing of the run but a finished stage's `final/`.

Not here: files of pictures and of predictions (pipeline/predict.py), scores (evaluation.py).
"""

# H x W the picture

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jointseg.checkpoint import describe_final, load_final
from jointseg.errors import InputError
from jointseg.evaluation import Prediction, predict_image
from jointseg.evaluation_config import EvaluationConfig
from jointseg.hardware import own_device
from jointseg.model import trained_model
from jointseg.stages import TRAININGS


class Predictor:
    """A finished stage, ready for pictures: what each pixel is, and how far away it is.

    Attributes:
        stage: whose weights it has.
        views_said: what it sees of a picture, in words.

    Args:
        final: the stage's `final/`, such as `runs/demo/stage3/final`.
        device: where it computes; None: the first GPU, the CPU where there is none or the run's `training.device` is cpu.
        one_view: each picture as it is, which is faster, where the run's evaluation averages over `scales` and `mirror`.

    Raises:
        InputError: the stage has not finished, or its files are damaged or of another version.
    """

    def __init__(self, final: str | Path, *, device: torch.device | None = None, one_view: bool = False) -> None:
        final = Path(final)
        name, config = describe_final(final)
        self._config = config.model_copy(update={"evaluation": EvaluationConfig()}) if one_view else config
        self.stage = TRAININGS[name]
        self.views_said = self._config.evaluation.views_said
        self._device = device or own_device(self._config.training)
        self._model = trained_model(self._config, load_final(final), device=self._device)

    def __call__(self, image: NDArray[np.uint8]) -> Prediction:
        """What the stage says of a picture.

        Args:
            image: (H, W, 3), uint8, RGB. The network was trained on 480 x 640 pixels of a camera whose picture is 63 degrees
                wide; one that sees less of a room at once makes it nearer.

        Returns:
            Classes (H, W), 0..39 as in `jointseg.labels.CLASS_NAMES`, and metres (H, W), None in a stage without depth.

        Raises:
            InputError: the picture is not of that shape and type.
            OutOfRangeError: the predicted scores or depths are not all finite.
        """
        allowed = "uint8, (height, width, 3), RGB"
        if not isinstance(image, np.ndarray):
            raise InputError(f"image: {type(image).__name__}, no array of numpy's; allowed: {allowed}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"image: {image.dtype} of shape {image.shape}; allowed: {allowed}")
        stage = self.stage
        return predict_image(
            self._model, image, self._config, kernels=stage.kernels, with_depth=stage.with_depth, device=self._device
        )
