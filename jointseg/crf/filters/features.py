"""What a kernel compares pixels by, as every filter is given it. Not here: which kernels there are (kernels.py)."""

# B images, P pixels (H*W, row-major), F kernel features

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from jointseg.errors import InputError

SCALE = math.sqrt(0.5 * math.log2(math.e))
"""exp(-d^2/2) = 2^-(s d)^2. Not exp: MKL's is 15 times slower on arguments that underflow, and most pairs of colours do."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """The features of one kernel over B images: k(p, p') = exp(-|f_p - f_p'|^2 / 2). They are treated as constants."""

    values_BPF: Tensor
    """(B, P, F), float32 or float64, finite, in units of the bandwidths: the pixel grid's x and y, then guides' channels."""
    size: tuple[int, int]
    """H, W of the images; P = H * W."""
    valid_BP: Tensor | None = None
    """(B, P), bool; where False, a pixel sends and receives nothing: its row and its column of K are 0. None: all take part."""

    def __post_init__(self) -> None:
        """Compiled code goes by the size: it must be that of the values.

        Raises:
            InputError: values are not (B, H * W, F), or it is not said of each pixel whether it is valid.
        """
        H, W = self.size
        if self.values_BPF.ndim != 3 or self.values_BPF.shape[1] != H * W:
            shape = tuple(self.values_BPF.shape)
            raise InputError(f"features of {H} x {W} pixels have shape {shape}; allowed: (B, {H * W}, F)")
        if self.valid_BP is not None and self.valid_BP.shape != self.values_BPF.shape[:2]:
            shape, allowed = tuple(self.valid_BP.shape), tuple(self.values_BPF.shape[:2])
            raise InputError(f"features: valid_BP has shape {shape}; allowed: {allowed}")

    def of_images(self, places: list[int]) -> Features:
        """Those of some images of the batch."""
        valid_BP = None if self.valid_BP is None else self.valid_BP[places]
        return Features(values_BPF=self.values_BPF[places], size=self.size, valid_BP=valid_BP)

    @cached_property
    def ranges(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest of each image's features (B, F), over the pixels that take part; 0 where none do."""
        values_BPF, valid_BP = self.values_BPF.detach(), self.valid_BP
        if valid_BP is None:
            return values_BPF.amin(1), values_BPF.amax(1)
        out_BP1, far = ~valid_BP[..., None], torch.finfo(values_BPF.dtype).max
        low_BF, high_BF = values_BPF.masked_fill(out_BP1, far).amin(1), values_BPF.masked_fill(out_BP1, -far).amax(1)
        none_B1 = out_BP1.all(1)
        return low_BF.masked_fill(none_B1, 0), high_BF.masked_fill(none_B1, 0)

    @property
    def extents(self) -> list[list[float]]:
        """How far each image's features reach. Waits for the device."""
        return self._distances[:-1]

    @property
    def across_first(self) -> list[float]:
        """How far apart the features of the first image's first and last pixel are. Waits for the device where no one has."""
        return self._distances[-1]

    @cached_property
    def _distances(self) -> list[list[float]]:
        """`extents`, then `across_first`: together, for each copy to the host waits for the device."""
        (low_BF, high_BF), values_PF = self.ranges, self.values_BPF.detach()[0]
        across_1F = values_PF[-1:] - values_PF[:1]
        distances: list[list[float]] = torch.cat([high_BF.double() - low_BF, across_1F.double()]).tolist()
        return distances
