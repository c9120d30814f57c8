"""Settings of evaluation: how pictures are seen, and how predictions are scored.

Not here: predictions and scores themselves (evaluation.py, tta.py), all other settings (config.py).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from jointseg.metrics import Absent, Crop, Pooling
from jointseg.settings import Settings


class EvaluationConfig(Settings):
    """How pictures are predicted, and the switches of Tables 2 and 3 that the paper leaves open."""

    scales: tuple[float, ...] = (1.0,)
    """Sizes of the network's input, as multiples of `network.input_size`: class probabilities and depth are the mean over
    them, before the CRF. Wherever pictures are predicted, validation and the search's unaries included, never in training.
    Depth counts where the size is no smaller than the input: smaller views cannot say far depths."""
    mirror: bool = False
    """Whether that mean is also over the mirror image, at each size."""
    crop: Crop = "none"
    """Part of the 480 x 640 frame that is scored: all (`none`), or as others crop it (`eigen`, `gupta`; metrics.CROPS)."""
    absent_classes: Absent = "ignore"
    """Classes without a pixel: left out (`ignore`, as FCN), counted as 0 (`zero`), or only those in the truth scored
    (`gt_present`)."""
    depth_pooling: Pooling = "pixels"
    """Depth metrics over all `pixels` pooled, or averaged over `images`."""
    depth_truth: Literal["filled", "raw"] = "filled"
    """Depth scored against: filled in, or the sensor's valid pixels alone."""
    num_figures: int = Field(6, ge=0)
    """Test frames drawn as in the paper's Fig 2: the first, and as many of the best and worst together."""
    processes_per_gpu: int = Field(2, ge=1, le=64)
    """Processes that share a GPU where work goes frame by frame: evaluation, unaries, features. One alone leaves the GPU idle
    while it scores. Each takes a CPU, and at 513 x 513 some 2 GB of the GPU's memory (eight of `modern`: 14.3 GiB)."""

    @field_validator("scales", mode="before")
    @classmethod
    def _rising(cls, scales: Any) -> tuple[float, ...]:
        several = scales if isinstance(scales, (list, tuple)) else ()
        numbers = [scale for scale in several if isinstance(scale, (int, float)) and not isinstance(scale, bool)]
        if not numbers or len(numbers) < len(several) or not all(0.25 <= scale <= 4 for scale in numbers):
            raise ValueError(f"{scales!r} is not allowed; allowed: a list of numbers from 0.25 to 4, such as [1,1.25]")
        return tuple(sorted(map(float, numbers)))

    @property
    def views_said(self) -> str:
        """`scales` and `mirror` in words: one view, or 4 views (input × 1, 1.25, each mirrored too)."""
        if not self.views:
            return "one view"
        number = len(self.scales) * (2 if self.mirror else 1)
        sizes = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"{number} view{'s' * (number > 1)} (input × {sizes}{', each mirrored too' if self.mirror else ''})"

    @property
    def views(self) -> dict[str, Any]:
        """`scales` and `mirror` as JSON values where a picture is seen in other views than its own alone; else empty, as in
        records of versions that knew no others.
        """
        plain = self.scales == (1.0,) and not self.mirror
        return {} if plain else {"scales": list(self.scales), "mirror": self.mirror}
