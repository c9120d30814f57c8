"""The Gaussian filter as a block-sparse sum on a GPU: exact but for pairs of far pixels that hardly weigh, which it skips.

Not here: pixels in tiles (tiles.py), the pairs of tiles that are summed over (tile_pairs.py), the kernels that sum
(block_sparse_kernels.py).
"""

# B images, C channels, P pixels, F kernel features, E pairs of tiles, I work items

from __future__ import annotations

import os

import torch
from torch import Tensor

from jointseg.crf.filters.features import SCALE, Features
from jointseg.crf.filters.tile_pairs import choose_pairs, cut_into_items, kernels, row_sums_over
from jointseg.crf.filters.tiles import sort_into_tiles, with_squares
from jointseg.errors import InputError
from jointseg.needs import missing_for_triton

_HALF_FROM = 1e-3


class BlockSparseFilter:
    """(K v)_p = sum_p' exp(-|f_p - f_p'|^2 / 2) v_p' over the pairs of tiles that matter, in float32.

    Pixels are sorted into tiles by a kd-tree, and a pair of tiles is skipped where, over all that is skipped, no pixel of
    either loses more than `tolerance` of its row sum. That is a bound, not an estimate: the distance of their boxes settles
    most pairs; what the doubtful ones weigh is computed once, here, and the lightest go. K is symmetric: if one of a pair
    needs the other, each keeps the other.

    Accuracy: |error of (K v)_p| <= (tolerance + rounding) max|v| (K 1)_p, max|v| of the channel. From a tolerance of 1e-3 up,
    products are in float16 and rounding is < 1e-3. Below it, products are of three tf32 terms, at more than twice the time, and
    rounding is ~5e-6, as measured on an H100. The same input gives the same bits.
    """

    def __init__(
        self, features: Features, *, tolerance: float = 1e-3, tile_size: int | None = None, pairs_per_item: int = 256
    ) -> None:
        """Sort and choose; features are treated as constants.

        Args:
            features: float32, on a CUDA device (or on a CPU where the environment has TRITON_INTERPRET=1: for tests, slow).
            tolerance: the most that a row may lose, as a part of its row sum; from 1e-6 to 1e-1. Rounding comes on top:
                below 1e-3, or 5e-6 where the tolerance is below 1e-3.
            tile_size: pixels per tile: 16, 32, 64 or 128; None: 128 on Hopper from a tolerance of 1e-3 up, else 64.
            pairs_per_item: the most tiles that one program sums over, except where that takes too many partial sums.

        Raises:
            InputError: a tolerance out of range, no triton or no C compiler for it, features not in float32, or a device that
                triton does not compile for.
        """
        _check(features.values_BPF, tolerance)
        self._precision = "float16" if tolerance >= _HALF_FROM else "tf32x3"
        if tile_size is None:
            tile_size = kernels().tile_size(self._precision, features.values_BPF.device)
        assert tile_size in {16, 32, 64, 128}, tile_size
        with torch.no_grad():
            self._tiles = sort_into_tiles(features, tile_size)
            if self._precision == "float16":
                self._tiles = with_squares(self._tiles)
            rows_E, columns_E = choose_pairs(self._tiles, tolerance, precision=self._precision, pairs_per_item=pairs_per_item)
            self._pairs = cut_into_items(rows_E, columns_E, len(self._tiles.pixels_GT), pairs_per_item)
            self._row_sums: Tensor | None = None

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v, for any number of channels; 0 where a pixel is not valid. Values float32; not recorded by autograd."""
        self._check_values(values_BCP)
        values_BCP = values_BCP.detach()
        C, device = values_BCP.shape[1], values_BCP.device
        alone = self.has_row_sums or not kernels().has_room_for_another(C, self._precision, device)
        if not alone:
            values_BCP = torch.cat([values_BCP, values_BCP.new_ones(1).expand_as(values_BCP[:, :1])], 1)
        result_BCP: Tensor = kernels().apply_pairs(self._tiles, self._pairs, values_BCP, precision=self._precision)
        if alone:
            return result_BCP
        self._row_sums = self._of_valid(result_BCP[:, C])
        return result_BCP[:, :C].contiguous()

    @property
    def row_sums(self) -> Tensor:
        """(B, P): K 1 over the valid pixels; 1 where a pixel is not valid.

        Computed when first asked for, or by the first application as one channel more, where its kernel has room for one: that
        costs a copy of the values and of the result, and no sum.
        """
        if self._row_sums is None:
            self._row_sums = self._of_valid(row_sums_over(self._tiles, self._pairs, self._precision))
        return self._row_sums

    @property
    def has_row_sums(self) -> bool:
        """Whether they are computed yet."""
        return self._row_sums is not None

    def _of_valid(self, sums_BP: Tensor) -> Tensor:
        valid_BP = self._tiles.valid_BP
        with torch.inference_mode(False):  # later calls may record gradients
            return sums_BP.clone() if valid_BP is None else torch.where(valid_BP, sums_BP, 1.0)

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, which is K v: pairs are kept both ways, and a weight is the same number both ways, bit for bit."""
        return self.apply(values_BCP)

    @torch.no_grad()
    def add_to(self, total_BCP: Tensor, values_BCP: Tensor, factors_BP: Tensor, *, first: bool) -> None:
        """Add factors * K v to a total, or, `first`, put it there."""
        self._check_values(values_BCP)
        kernels().apply_pairs(
            self._tiles, self._pairs, values_BCP,
            precision=self._precision, out_BCP=total_BCP, factors_BP=factors_BP, added=not first,
        )  # fmt: skip

    def bandwidth_gradient(self, y_BCP: Tensor, v_BCP: Tensor) -> Tensor:
        """(B, F): d <y, K v> / d log of each feature's bandwidth, sum_pp' (y_p . v_p') k(p, p') (f_p - f_p')^2.

        Over the pairs of tiles that `apply` sums over, with its rounding. Values float32; not recorded by autograd.
        """
        self._check_values(y_BCP)
        self._check_values(v_BCP)
        with torch.no_grad():
            moments_IF = kernels().moments_of_pairs(self._tiles, self._pairs, y_BCP, v_BCP, precision=self._precision)
            B = self._tiles.num_images
            image_I = self._pairs.items_I4[:, 0] // (len(self._tiles.pixels_GT) // B)
            of_image_BI = image_I == torch.arange(B, device=image_I.device)[:, None]
            moments_BF: Tensor = of_image_BI.to(moments_IF.dtype) @ moments_IF
            return (moments_BF / SCALE**2).float()

    def _check_values(self, values_BCP: Tensor) -> None:
        B, _, P = values_BCP.shape
        assert (self._tiles.num_images, self._tiles.num_pixels) == (B, P), values_BCP.shape
        assert values_BCP.dtype == torch.float32 and values_BCP.device == self._tiles.low_GF.device


def _check(features_BPF: Tensor, tolerance: float) -> None:
    if not 1e-6 <= tolerance <= 1e-1:
        raise InputError(f"tolerance of filter 'block_sparse' is {tolerance:g}; allowed: 1e-6 to 1e-1")
    if features_BPF.dtype != torch.float32:
        raise InputError(f"filter 'block_sparse' computes in float32, but the features are {features_BPF.dtype}; use 'exact'")
    missing = missing_for_triton()
    if missing:
        raise InputError(f"filter 'block_sparse' needs {missing}, which is not installed; use 'exact'")
    if features_BPF.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(
            f"filter 'block_sparse' needs a CUDA device, but the features are on {features_BPF.device}; use 'exact'"
        )
