"""What a kernel compares pixels by, as every filter is given it. Not here: which kernels there are (kernels.py)."""

# B images, P pixels (H*W, row-major), F kernel features

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """The features of one kernel over B images: k(p, p') = exp(-|f_p - f_p'|^2 / 2). They are treated as constants."""

    values_BPF: Tensor
    """(B, P, F), float32 or float64, finite, in units of the bandwidths: the pixel grid's x and y, then guides' channels."""
    size: tuple[int, int]
    """H, W of the images; P = H * W."""
    valid_BP: Tensor | None = None
    """(B, P), bool; where False, a pixel sends and receives nothing: its row and its column of K are 0. None: all take part."""

    def of_images(self, places: list[int]) -> Features:
        """Those of some images of the batch."""
        valid_BP = None if self.valid_BP is None else self.valid_BP[places]
        return Features(values_BPF=self.values_BPF[places], size=self.size, valid_BP=valid_BP)
