"""The structure of all kernels over one image, and the threads that run on it: filtering, mean field and its derivative.

Not here: the steps of a thread (program.py), autograd and batches (fused.py, filters/).
"""

# P pixels, K kernels, C channels padded to whole vectors, T iterations, N = P * C

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import passes, program
from jointseg.crf.cpu.compiled import resolved
from jointseg.crf.cpu.layout import Structure, lay_out
from jointseg.crf.cpu.parts import Part, Separable
from jointseg.crf.cpu.passes import READ, SOFTMAX, SOFTMAX_BACKWARD
from jointseg.crf.cpu.program import Team, Values
from jointseg.crf.cpu.row_sums import lattice_and_grid_sums, separable_sums
from jointseg.crf.cpu.scratch import borrowed
from jointseg.crf.cpu.simd import row_type
from jointseg.crf.cpu.team import run_team

Array = NDArray[Any]


class Engine:
    """K kernels over one image, at one number of threads; serves any values, weights and direction.

    `row_sums_PK` are K 1, and 1 where a pixel takes no part in a kernel.
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
        self.dtype = np.dtype(dtype)
        self.num_threads = max(1, min(num_threads, size[0]))
        self.num_kernels = len(parts)
        self.structure, self.transposed = lay_out(parts, size, self.num_threads, self.dtype)
        self._all_valid = all(bool(valid_P.all()) for valid_P in valid)
        ones_PK = np.ones((size[0] * size[1], len(parts)), self.dtype)
        self._mask_PK = ones_PK if self._all_valid else np.stack(valid, 1).astype(self.dtype)
        self.row_sums_PK = self._row_sums(parts, valid, size)
        if not self._all_valid:
            self.row_sums_PK += 1 - self._mask_PK  # sums are 0 where a pixel takes no part
        self._inverse_PK = self._mask_PK / self.row_sums_PK

    def filter(self, values_PC: Array, *, transposed: bool = False) -> Array:
        """Sum over the kernels of K v, not normalised, or of K^T v. Values (P, C), C whole vectors."""
        structure = self.transposed if transposed else self.structure
        out_PC, weighing = np.empty_like(values_PC), self._weighing(self._mask_PK, self._mask_PK)
        given, out = values_PC.reshape(-1), out_PC.reshape(-1)

        def work(member: _Member) -> None:
            member.step(READ, weighing, given, out, out, reading=False)
            member.settle()
            member.step(READ, weighing, given, out, out, writing=False, storing=True)

        with self._values(structure, values_PC.shape[1]) as values:
            self._run(work, structure, values, values_PC.shape[1])
        return out_PC

    def mean_field(
        self,
        unary_PC: Array,
        matrices: Array,
        num_iterations: int,
        *,
        keep: bool = False,
        probabilities: bool = False,
        symmetric: bool = False,
    ) -> tuple[Array, Array]:
        """Logits (P, C) after `num_iterations` >= 1 of U - sum_k A_k message_k, from q = softmax(U), and (T, N) q if kept.

        Args:
            unary_PC: U; padding channels hold a large negative number. Its memory becomes the result's.
            matrices: A_k, (K, C, C), 0 in padding; or (K,): multiples of the identity.
            num_iterations: at least 1.
            keep: whether to return q of each iteration, the first of them softmax(U).
            probabilities: return q in place of the logits.
            symmetric: divide by the roots of the row sums before and after, not by the row sums after.
        """
        C, unary = unary_PC.shape[1], unary_PC.reshape(-1)
        after_PK, before_PK = self._norms(symmetric)
        weighing = self._weighing(after_PK, before_PK)
        kept_TN = np.empty((num_iterations, len(unary)) if keep else (1, 1), self.dtype)

        def work(member: _Member) -> None:
            member.step(SOFTMAX, weighing, unary, kept_TN[0], unary, reading=False, keeping=keep)
            for iteration in range(1, num_iterations):
                member.settle()
                member.step(SOFTMAX, weighing, unary, kept_TN[iteration if keep else 0], unary, keeping=keep)
            member.settle()
            member.step(SOFTMAX, weighing, unary, unary, unary, writing=False, keeping=probabilities, storing=not probabilities)

        with self._values(self.structure, C, -matrices) as values:
            self._run(work, self.structure, values, C)
        return unary_PC, kept_TN

    def mean_field_backward(
        self, grad_PC: Array, kept_TN: Array, matrices: Array, *, by_matrices: bool, symmetric: bool = False
    ) -> tuple[Array, Array | None]:
        """The derivative of `mean_field`: by U (P, C), and by the A_k (K, C, C) where asked.

        Args:
            grad_PC: by the logits that came out; 0 in padding channels.
            kept_TN: what `mean_field` kept.
            matrices: the same A_k.
            by_matrices: whether to compute the second.
            symmetric: as it was.
        """
        C = grad_PC.shape[1]
        after_PK, before_PK = self._norms(symmetric)
        weighing, beforehand = self._weighing(before_PK, after_PK), self._weighing(self._mask_PK, before_PK)
        sums = np.zeros((self.num_threads, self.num_kernels, C, C), self.dtype) if by_matrices else None
        by_unary_PC = grad_PC.copy()
        grad, by_unary = grad_PC.reshape(-1), by_unary_PC.reshape(-1)

        def work(member: _Member, beside: Values | None) -> None:
            member.step(READ, weighing, grad, by_unary, by_unary, reading=False)
            for iteration in range(len(kept_TN) - 1, -1, -1):
                q = kept_TN[iteration]
                member.settle(mixing=False)
                if sums is not None and beside is not None:
                    other = member.beside(self.structure, beside)
                    other.step(READ, beforehand, q, by_unary, by_unary, reading=False)
                    other.settle(blurring=False, mixing=False)
                    member.outer_products(other, sums)
                member.settle(gathering=False, blurring=False)
                member.step(SOFTMAX_BACKWARD, weighing, grad, q, by_unary, writing=iteration > 0, storing=True)

        turned = -(matrices.swapaxes(1, 2) if matrices.ndim == 3 else matrices)
        with ExitStack() as borrowing:
            values = borrowing.enter_context(self._values(self.transposed, C, turned))
            beside = borrowing.enter_context(self._values(self.structure, C)) if by_matrices else None
            self._run(lambda member: work(member, beside), self.transposed, values, C)
        return by_unary_PC, None if sums is None else -sums.sum(0)

    def _row_sums(self, parts: Sequence[Part], valid: Sequence[NDArray[np.bool_]], size: tuple[int, int]) -> Array:
        """K 1 of each kernel, 0 where a pixel takes no part."""
        sums_PK, coarse = np.empty_like(self._mask_PK), self.structure.coarse
        counts = (max(self.structure.num_rows, 1), coarse.num_read, coarse.num_written)
        table, points, slabs = (np.zeros(count, self.dtype) for count in counts)
        run_team(
            lambda thread, arrivals: lattice_and_grid_sums(
                self.structure, self._mask_PK, Team(thread, self.num_threads, arrivals), table, points, slabs, sums_PK
            ),
            self.num_threads,
        )
        for k, (part, valid_P) in enumerate(zip(parts, valid, strict=True)):
            if isinstance(part, Separable):
                sums_PK[:, k] = separable_sums(part, valid_P, size)
        return sums_PK

    def _norms(self, symmetric: bool) -> tuple[Array, Array]:
        """What a message is weighed by after it was filtered, and before; 0 where a pixel takes no part."""
        if not symmetric:
            return self._inverse_PK, self._mask_PK
        roots_PK = np.sqrt(self._inverse_PK)
        return roots_PK, roots_PK

    def _weighing(self, reading_PK: Array, writing_PK: Array) -> _Weighing:
        return _Weighing((reading_PK, writing_PK), writing_PK is self._mask_PK and self._all_valid)

    @contextmanager
    def _values(self, structure: Structure, C: int, matrices: Array | None = None) -> Iterator[Values]:
        scale_K = np.ones(self.num_kernels, self.dtype)
        mixes = np.zeros((0, C, C), self.dtype)
        if matrices is not None and matrices.ndim == 1:
            scale_K = matrices.astype(self.dtype)
        elif matrices is not None:
            mixes = np.ascontiguousarray(matrices.swapaxes(1, 2), self.dtype)
        rows, coarse = max(structure.num_rows, 1), structure.coarse
        counts = [count * C for count in (rows, rows, coarse.num_read, coarse.num_written)]
        with borrowed(*counts, dtype=self.dtype) as (table, other, points, slabs):
            yield Values(table, other, points, slabs, scale_K, mixes)

    def _run(self, work: Callable[[_Member], None], structure: Structure, values: Values, C: int) -> None:
        run_team(
            lambda thread, arrivals: work(_Member(Team(thread, self.num_threads, arrivals), structure, values, row_type(C))),
            self.num_threads,
        )


class _Weighing(NamedTuple):
    """What is read and what is written are weighed by (P, K) each."""

    norms: tuple[Array, Array]
    plain: bool
    """Whether the second is 1 everywhere."""


class _Member:
    """One thread of a team: steps in the same order on every thread."""

    def __init__(self, team: Team, structure: Structure, values: Values, rows: Any) -> None:
        self.team, self.structure, self.values, self.rows = team, structure, values, rows
        self._flip = True  # the first pass writes into the second table
        self._phase = [0]
        self._versions: dict[Any, Callable[..., int]] = {}

    def beside(self, structure: Structure, values: Values) -> _Member:
        """The same thread with other tables."""
        other = _Member(self.team, structure, values, self.rows)
        other._phase, other._versions = self._phase, self._versions
        return other

    def _do(self, function: Any, *arguments: Any) -> None:
        """Call a compiled function that returns the barriers so far. The types of its arguments are always the same."""
        if function not in self._versions:
            self._versions[function] = resolved(function, *arguments)
        self._phase[0] = self._versions[function](*arguments)

    def step(
        self, mode: int, weighing: _Weighing, given: Array, q: Array, out: Array, *,
        reading: bool = True, writing: bool = True, keeping: bool = False, storing: bool = False,
    ) -> None:  # fmt: skip
        """A pass over this thread's pixels (passes.pixel_pass)."""
        self._flip = not self._flip
        does = (reading, writing, keeping, storing, weighing.plain)
        self._do(
            passes.pixel_pass, mode, self.structure, self.values, self.team, self._phase[0], self._flip, weighing.norms, does,
            given, q, out, self.rows,
        )  # fmt: skip

    def settle(self, *, gathering: bool = True, blurring: bool = True, mixing: bool = True) -> None:
        """Make what was written readable."""
        does = (gathering, blurring, mixing)
        self._do(program.settle, self.structure, self.values, self.team, self._phase[0], self._flip, self.rows, does)

    def outer_products(self, other: _Member, sums_TKCC: Array) -> None:
        """Sums over rows, kernel by kernel, of a row here x the same row there."""
        mine = sums_TKCC[self.team.thread]
        self._do(
            program.outer_products, self.structure, self.values, other.values, self.team, self._phase[0], self._flip, mine,
            self.rows,
        )  # fmt: skip
