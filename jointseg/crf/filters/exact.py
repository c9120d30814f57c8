"""The exact Gaussian filter, the specification of the others: every pair of pixels, any features, any device.

Not here: anything approximate, and the normalisation by row sums (mean_field.py).
"""

# B images, C channels, P pixels, R rows (a block of the P), F kernel features

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jointseg.crf.filters.features import SCALE, Features

DEFAULT_BUDGET_BYTES = 256 * 2**20
_CACHE_BYTES = 2**19
_MIN_ROWS_FOR_MATMUL = 16


class ExactFilter:
    """(K v)_p = sum_p' exp(-|f_p - f_p'|^2 / 2) v_p', by summing it.

    Time is O(B P^2 (F + C)) to apply. Memory beyond features and values stays within `budget_bytes`: where the B matrices of
    P x P weights fit, they are computed once and kept (P <= 8192 for one float32 image at the default); else rows are
    computed again, block by block, at each application.

    Distances are sums of squared differences, never |f|^2 + |g|^2 - 2 f.g: with theta_beta = 3 features reach 85, and float32
    then loses every |f - g|^2 below 1e-3. Weights below the smallest normal number of the dtype (1e-38 in float32) count as 0.
    """

    def __init__(self, features: Features, *, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        """Take what pixels are compared by.

        Args:
            features: any, on any device.
            budget_bytes: working memory of this filter, in bytes. One row of weights is the least it can work with.
        """
        features_BPF = features.values_BPF
        self._invalid_BP = None if features.valid_BP is None else ~features.valid_BP
        self._features_FBP = (features_BPF.detach() * SCALE).permute(2, 0, 1).contiguous()
        self._rows_per_block = self._fitting_rows(budget_bytes)
        self._matrix_BPP: Tensor | None = None
        self.row_sums = self._build(keep=self._bytes_of_rows(features_BPF.shape[1]) <= budget_bytes)

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """K v. Values (B, C, P) of the features' dtype and device; not recorded by autograd."""
        with torch.no_grad():
            if self._matrix_BPP is not None:
                return values_BCP @ self._matrix_BPP.mT
            out_BCP = torch.empty_like(values_BCP)
            for rows, weights_BRP in self._blocks():
                out_BCP[:, :, rows] = values_BCP @ weights_BRP.mT
            return out_BCP

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """K^T v, which is K v: (a - b)^2 and (b - a)^2 are the same number, bit for bit."""
        return self.apply(values_BCP)

    @torch.no_grad()
    def bandwidth_gradient(self, y_BCP: Tensor, v_BCP: Tensor) -> Tensor:
        """The derivative of <y, K v> by the log of each feature's bandwidth: (B, F).

        It is the sum over pairs of (y_p . v_p') k(p, p') (f_p - f_p')^2, f that feature.
        """
        F, B, _ = self._features_FBP.shape
        sums_FB = self._features_FBP.new_zeros(F, B)
        for rows, weights_BRP in self._blocks():
            shared_BRP = weights_BRP * (y_BCP[:, :, rows].mT @ v_BCP)
            for f, feature_BP in enumerate(self._features_FBP):
                difference_BRP = feature_BP[:, rows, None] - feature_BP[:, None, :]
                sums_FB[f] += (shared_BRP * difference_BRP.square_()).sum((1, 2))
        return sums_FB.T / SCALE**2

    @torch.no_grad()
    def _build(self, *, keep: bool) -> Tensor:
        """The row sums; beside them the whole matrix, where it is kept."""
        _, B, P = self._features_FBP.shape
        row_sums_BP = self._features_FBP.new_empty(B, P)
        matrix_BPP = self._features_FBP.new_empty(B, P, P) if keep else None
        for rows, weights_BRP in self._blocks(matrix_BPP):
            row_sums_BP[:, rows] = weights_BRP.sum(-1)
        if self._invalid_BP is not None:
            row_sums_BP[self._invalid_BP] = 1
        self._matrix_BPP = matrix_BPP
        return row_sums_BP

    def _blocks(self, matrix_BPP: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Compute the kernel's rows block by block: into `matrix_BPP`, or into one buffer that the next block overwrites."""
        _, B, P = self._features_FBP.shape
        size = self._rows_per_block
        scratch_BRP = self._features_FBP.new_empty(B, size, P)
        buffer_BRP = torch.empty_like(scratch_BRP) if matrix_BPP is None else matrix_BPP
        for start in range(0, P, size):
            rows = slice(start, min(start + size, P))
            num_rows = rows.stop - start
            weights_BRP = buffer_BRP[:, :num_rows] if matrix_BPP is None else matrix_BPP[:, rows]
            self._fill(weights_BRP, rows, scratch_BRP[:, :num_rows])
            yield rows, weights_BRP

    def _fill(self, weights_BRP: Tensor, rows: slice, scratch_BRP: Tensor) -> None:
        weights_BRP.zero_()
        for feature_BP in self._features_FBP:
            torch.sub(feature_BP[:, rows, None], feature_BP[:, None, :], out=scratch_BRP)
            weights_BRP.addcmul_(scratch_BRP, scratch_BRP, value=-1)
        weights_BRP.exp2_()
        # Subnormal weights change no sum that has a 1 in it, and cost many CPUs a trap at every multiplication.
        torch.threshold_(weights_BRP, torch.finfo(weights_BRP.dtype).tiny, 0.0)
        if self._invalid_BP is not None:
            weights_BRP.masked_fill_(self._invalid_BP[:, None, :], 0.0)
            weights_BRP.masked_fill_(self._invalid_BP[:, rows, None], 0.0)

    def _fitting_rows(self, budget_bytes: int) -> int:
        """Rows per block: two blocks within the budget; on a CPU also within its cache, but not too thin for a matmul."""
        fitting = budget_bytes // (2 * self._bytes_of_rows(1))
        if self._features_FBP.device.type == "cpu":
            fitting = min(fitting, max(_CACHE_BYTES // self._bytes_of_rows(1), _MIN_ROWS_FOR_MATMUL))
        return min(max(fitting, 1), self._features_FBP.shape[2])

    def _bytes_of_rows(self, num_rows: int) -> int:
        _, B, P = self._features_FBP.shape
        return B * num_rows * P * self._features_FBP.element_size()


class BlendedFilter:
    """sum_k s_k K_k / (K_k 1) as one matrix: several normalised kernels for the price of one."""

    is_normalised = True

    def __init__(self, matrix_BPP: Tensor) -> None:
        self._matrix_BPP = matrix_BPP
        self.row_sums = torch.ones_like(matrix_BPP[:, 0])

    def apply(self, values_BCP: Tensor, /) -> Tensor:
        """N v."""
        with torch.no_grad():
            return values_BCP @ self._matrix_BPP.mT

    def apply_transposed(self, values_BCP: Tensor, /) -> Tensor:
        """N^T v; normalised rows are not symmetric."""
        with torch.no_grad():
            return values_BCP @ self._matrix_BPP


@torch.no_grad()
def blend(filters: Sequence[object], scales: Sequence[float]) -> BlendedFilter | None:
    """One filter that is sum_k s_k K_k / (K_k 1), or None unless all are exact filters that keep their matrices.

    It keeps one more matrix of the same size.
    """
    kept = [f for f in filters if isinstance(f, ExactFilter) and f._matrix_BPP is not None]
    if len(kept) < len(filters):
        return None
    blended_BPP: Tensor | None = None
    for exact, scale in zip(kept, scales, strict=True):
        assert exact._matrix_BPP is not None
        factors_BP1 = (scale / exact.row_sums)[:, :, None]
        if blended_BPP is None:
            blended_BPP = exact._matrix_BPP * factors_BP1
        else:
            blended_BPP.addcmul_(exact._matrix_BPP, factors_BP1)
    return None if blended_BPP is None else BlendedFilter(blended_BPP)
