"""The passes put together: filtering, mean field and its derivative over the parts of all kernels of one image.

Not here: autograd and batches (fused.py, filters/), what a pass computes (passes.py).
"""

# P pixels, V rows a pixel reads and writes over all kernels, K kernels, C channels padded to whole vectors, R rows of the table

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import passes
from jointseg.crf.cpu.layout import Layout, padded_width
from jointseg.crf.cpu.parts import GridAxis, Lines, Part
from jointseg.crf.cpu.simd import row_type
from jointseg.crf.cpu.team import run_team, share, wait

Array = NDArray[Any]


class Engine:
    """The structure of K kernels over one image, at one number of threads; serves any values, weights and direction.

    `inverse_norm_PK` is 1 / row sum, or 0 where a pixel takes no part in a kernel.
    """

    def __init__(
        self, parts: Sequence[Part], valid: Sequence[NDArray[np.bool_]], size: tuple[int, int], num_threads: int, dtype: Any
    ) -> None:
        """Lay out the parts' rows and compute the row sums.

        Args:
            parts: one a kernel.
            valid: one a kernel, (P,): which pixels take part.
            size: H, W; P = H * W.
            num_threads: threads of every later call too; the layout depends on it.
            dtype: np.float32 or np.float64, that of the parts' weights and of all values.
        """
        self.size, self.dtype = size, np.dtype(dtype)
        self.num_threads = max(1, min(num_threads, size[0]))
        self.layout = Layout(parts, size, self.num_threads, self.dtype)
        self.transposed_layout = self.layout.transposed()
        self.mask_PK = np.stack(valid, 1).astype(self.dtype)
        self.all_valid = all(bool(valid_P.all()) for valid_P in valid)
        self.inverse_norm_PK = self.mask_PK
        sums_PK = self._row_sums(len(parts))
        self.row_sums_PK = sums_PK + (1 - self.mask_PK)  # sums are 0 where a pixel takes no part
        self.inverse_norm_PK = self.mask_PK / self.row_sums_PK

    @property
    def num_kernels(self) -> int:
        """K."""
        return int(self.mask_PK.shape[1])

    def filter(self, values_PC: Array, *, transposed: bool = False) -> Array:
        """Sum over the kernels of K v, not normalised, or of K^T v. Values (P, C), C whole vectors."""
        run = _Run(self, self.transposed_layout if transposed else self.layout, values_PC.shape[1])
        out_PC = np.empty_like(values_PC)

        def work(thread: int, arrivals: NDArray[np.int64]) -> None:
            team = _Member(run, thread, arrivals)
            team.one_pass(passes.READ, values_PC, self.mask_PK, self.mask_PK, reading=False)
            team.blur()
            team.one_pass(passes.READ, values_PC, self.mask_PK, self.mask_PK, writing=False, out=out_PC)

        run_team(work, self.num_threads)
        return out_PC

    def mean_field(self, unary_PC: Array, matrices: Array, num_iterations: int, *, keep: list[Array] | None = None) -> Array:
        """Logits (P, C) after `num_iterations` >= 1 of U - sum_k A_k message_k, from q = softmax(U).

        Args:
            unary_PC: U; padding channels hold a large negative number.
            matrices: A_k, (K, C, C), 0 in padding; or (K,): multiples of the identity.
            num_iterations: at least 1.
            keep: gets q (P, C) of each iteration, the first of them softmax(U).
        """
        C = unary_PC.shape[1]
        run = _Run(self, self.layout, C, matrices=-matrices)
        out_PC = np.empty_like(unary_PC)
        kept = [np.empty_like(unary_PC) for _ in range(num_iterations)] if keep is not None else [None] * num_iterations

        def work(thread: int, arrivals: NDArray[np.int64]) -> None:
            team = _Member(run, thread, arrivals)
            norm, mask = self.inverse_norm_PK, self.mask_PK
            team.one_pass(passes.SOFTMAX, unary_PC, norm, mask, reading=False, q=kept[0])
            for iteration in range(1, num_iterations):
                team.blur()
                team.one_pass(passes.SOFTMAX, unary_PC, norm, mask, q=kept[iteration])
            team.blur()
            team.one_pass(passes.SOFTMAX, unary_PC, norm, mask, writing=False, out=out_PC)

        run_team(work, self.num_threads)
        if keep is not None:
            keep.extend(kept)  # type: ignore[arg-type]
        return out_PC

    def mean_field_backward(
        self, grad_PC: Array, q: Sequence[Array], matrices: Array, *, by_matrices: bool
    ) -> tuple[Array, Array | None]:
        """The derivative of `mean_field`: by U (P, C), and by the A_k (K, C, C) where asked.

        Args:
            grad_PC: by the logits that came out; 0 in padding channels.
            q: what `mean_field` kept.
            matrices: the same A_k.
            by_matrices: whether to compute the second.
        """
        C = grad_PC.shape[1]
        transposed = matrices.swapaxes(-1, -2) if matrices.ndim == 3 else matrices
        run = _Run(self, self.transposed_layout, C, matrices=-np.ascontiguousarray(transposed))
        spread = _Run(self, self.layout, C) if by_matrices else None
        sums = np.zeros((self.num_threads, self.num_kernels, C, C), self.dtype) if by_matrices else None
        by_unary_PC = grad_PC.copy()

        def work(thread: int, arrivals: NDArray[np.int64]) -> None:
            team = _Member(run, thread, arrivals)
            writer = team.beside(spread) if spread is not None else None
            norm, mask = self.inverse_norm_PK, self.mask_PK
            team.one_pass(passes.READ, grad_PC, mask, norm, reading=False)
            for step in range(len(q) - 1, -1, -1):
                team.blur(mix=False)
                if writer is not None and sums is not None:
                    writer.one_pass(passes.READ, q[step], mask, mask, reading=False)
                    writer.gather()
                    team.outer_products(writer, sums[thread])
                team.mix()
                team.one_pass(passes.SOFTMAX_BACKWARD, grad_PC, mask, norm, writing=step > 0, q=q[step], out=by_unary_PC)

        run_team(work, self.num_threads)
        return by_unary_PC, None if sums is None else -sums.sum(0)

    def _row_sums(self, K: int) -> Array:
        """K 1 of each kernel: channel k of one filtering whose table rows of kernel k keep channel k alone."""
        C = padded_width(K)
        matrices = np.zeros((K, C, C), self.dtype)
        for k in range(K):
            matrices[k, k, k] = 1
        run = _Run(self, self.layout, C, matrices=matrices)
        ones_PC = np.ones((self.mask_PK.shape[0], C), self.dtype)
        out_PC = np.empty_like(ones_PC)

        def work(thread: int, arrivals: NDArray[np.int64]) -> None:
            team = _Member(run, thread, arrivals)
            team.one_pass(passes.READ, ones_PC, self.mask_PK, self.mask_PK, reading=False)
            team.blur()
            team.one_pass(passes.READ, ones_PC, self.mask_PK, self.mask_PK, writing=False, out=out_PC)

        run_team(work, self.num_threads)
        return out_PC[:, :K]


class _Run:
    """What one call's threads share: tables of values, and what is done to them."""

    def __init__(self, engine: Engine, layout: Layout, C: int, *, matrices: Array | None = None) -> None:
        self.engine, self.layout, self.C = engine, layout, C
        self.rows = row_type(C)
        K, dtype = engine.num_kernels, engine.dtype
        scalar = matrices is None or matrices.ndim == 1
        self.scale_K = np.ones(K, dtype) if matrices is None else matrices.astype(dtype) if scalar else np.ones(K, dtype)
        self.mixes = None if scalar else np.ascontiguousarray(matrices.swapaxes(1, 2), dtype)  # type: ignore[union-attr]
        self.tables = [aligned(max(layout.num_rows, 1) * C, dtype) for _ in range(2)]
        self.bands = layout.band_tables(C)
        self.nothing = np.zeros(1, dtype)


class _Member:
    """One thread's part in a run: calls in the same order on every thread, with barriers where one needs another's result."""

    def __init__(self, run: _Run, thread: int, arrivals: NDArray[np.int64], phase: list[int] | None = None) -> None:
        self.run, self.thread, self.arrivals = run, thread, arrivals
        self.phase = [0] if phase is None else phase
        self.read_table, self.write_table = run.tables

    def beside(self, run: _Run) -> _Member:
        """The same thread in another run of the same team."""
        return _Member(run, self.thread, self.arrivals, self.phase)

    def wait(self) -> None:
        """Until all threads are here."""
        self.phase[0] = wait(self.arrivals, self.phase[0], self.run.engine.num_threads)

    def mine(self, total: int) -> tuple[int, int]:
        """This thread's share of `total` things."""
        return share(total, self.thread, self.run.engine.num_threads)

    def one_pass(
        self,
        mode: int,
        given: Array,
        read_norm: Array,
        write_norm: Array,
        *,
        reading: bool = True,
        writing: bool = True,
        q: Array | None = None,
        out: Array | None = None,
    ) -> None:
        """passes.pixel_pass over this thread's pixels. What is written waits in the tables for `blur`."""
        run, layout = self.run, self.run.layout
        bands = layout.bands[self.thread]
        if writing:
            start, stop = self.mine(len(self.write_table) // run.C)
            passes.clear(self.write_table, start * run.C, stop * run.C)
            passes.clear(run.bands.written[self.thread], 0, len(run.bands.written[self.thread]))
            self.wait()
        passes.pixel_pass(
            mode, run.rows, layout.spans[self.thread], layout.size[1],
            layout.offsets_PV, layout.weights_PV, layout.runs_I4,
            read_norm, write_norm, run.scale_K, self.read_table, self.write_table,
            reading, writing, write_norm is run.engine.mask_PK and run.engine.all_valid,
            (*bands, run.bands.read, run.bands.written[self.thread]),
            given.reshape(-1), run.nothing if q is None else q.reshape(-1), run.nothing if out is None else out.reshape(-1),
            q is not None and mode != passes.SOFTMAX_BACKWARD, out is not None,
        )  # fmt: skip

    def gather(self) -> None:
        """Every row of the table just written gets all that was written for it."""
        run, layout = self.run, self.run.layout
        self.wait()
        self.read_table, self.write_table = self.write_table, self.read_table
        start, stop = layout.pair_spans[self.thread]
        passes.gather_shared(self.read_table, layout.pairs, start, stop, run.rows)
        run.bands.gather(self.mine, run.C)
        self.wait()

    def blur(self, *, mix: bool = True) -> None:
        """Make of what was written what can be read."""
        run, layout = self.run, self.run.layout
        self.gather()
        for together in layout.blurs:
            for first_row, blur, spans in together:
                if isinstance(blur, Lines):
                    start, stop = spans[self.thread]
                    rows = self.read_table[first_row * run.C :]
                    passes.blur_chains(rows, blur.chain, start, stop, run.rows)
                elif isinstance(blur, GridAxis):
                    start, stop = self.mine(blur.shape[0] * blur.shape[2])
                    passes.blur_axis(self.read_table, first_row, blur.shape, blur.taps, start, stop, run.rows)
            self.wait()
        if mix:
            self.mix()

    def mix(self) -> None:
        """Multiply rows by their kernel's matrix, and give threads their copies of shared rows."""
        run, layout = self.run, self.run.layout
        if run.mixes is not None:
            for first_row, num_rows, kernel in layout.rows_of_kernel:
                start, stop = self.mine(num_rows)
                passes.mix_rows(self.read_table, run.mixes[kernel], first_row + start, first_row + stop, run.rows)
            for start, stop, kernel in self._coarse_rows():
                passes.mix_rows(run.bands.read, run.mixes[kernel], start, stop, run.rows)
            self.wait()
        start, stop = layout.pair_spans[self.thread]
        passes.scatter_shared(self.read_table, layout.pairs, start, stop, run.rows)
        self.wait()

    def outer_products(self, other: _Member, sums_KCC: Array) -> None:
        """Add, kernel by kernel, the sum over rows of this run's row x the other's: this thread's share of it."""
        run, layout = self.run, self.run.layout
        for first_row, num_rows, kernel in layout.rows_of_kernel:
            start, stop = self.mine(num_rows)
            passes.outer_product(
                self.read_table,
                other.read_table,
                first_row + start,
                first_row + stop,
                sums_KCC[kernel],
                run.rows,
            )
        for start, stop, kernel in self._coarse_rows():
            passes.outer_product(run.bands.read, other.run.bands.read, start, stop, sums_KCC[kernel], run.rows)
        self.wait()

    def _coarse_rows(self) -> list[tuple[int, int, int]]:
        """This thread's share of each separable kernel's coarse points, and the kernel."""
        layout = self.run.layout
        begins = layout.read_begin
        shares = [self.mine(int(begins[s + 1] - begins[s])) for s in range(layout.num_separable)]
        return [(int(begins[s]) + a, int(begins[s]) + b, int(layout.separable_kernels[s])) for s, (a, b) in enumerate(shares)]


def aligned(count: int, dtype: Any) -> Array:
    """An array of `count` numbers that begins at a cache line, not set."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(count * itemsize + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + count * itemsize].view(dtype)
