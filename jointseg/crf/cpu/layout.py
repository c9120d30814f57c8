"""Where all lattices' rows lie in one table, which thread owns which, and how rows that several threads write are shared.

Not here: the coarse points of other kernels (coarse.py), what is done with them (passes.py, tables.py, program.py).
"""

# P pixels, V rows a pixel reads and writes over all lattices, R rows, K kernels, I of them lattices, T threads

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.coarse import Bands, Cells, Coarse, lay_out_cells, lay_out_coarse
from jointseg.crf.cpu.compiled import compiled
from jointseg.crf.cpu.parts import Grid, GridAxis, Lattice, Lines, Part, Separable, renumber
from jointseg.crf.cpu.team import run_team, share, wait

Array = NDArray[Any]
LINES, GRID = 0, 1
_NEAR_ROWS = 2**16
"""Tables of so many rows stay in the inner caches."""


class Structure(NamedTuple):
    """All kernels for one direction, as compiled code takes it."""

    W: int
    lines_T2: NDArray[np.int64]
    """Image rows of each thread."""
    offsets_PV: NDArray[np.int32]
    weights_PV: Array
    runs_I4: NDArray[np.int64]
    """Kernel, first and last + 1 of its V, whether its table is large."""
    rows_I3: NDArray[np.int64]
    """First row, number of rows, kernel."""
    num_rows: int
    """Of the table, with those that threads have of rows they do not own."""
    pairs: NDArray[np.int32]
    """(owner's row, another thread's row of the same), owner by owner."""
    pairs_T2: NDArray[np.int64]
    """Each thread's share of the pairs."""
    blurs_N9: NDArray[np.int64]
    """Round; LINES, first row, where lines begin in `chains`; or GRID, first coarse point, 0, outer, length, inner, and where
    taps begin and end in `taps`. Blurs of one round are of different kernels."""
    lines_NT2: NDArray[np.int64]
    """Each thread's part of the lines, cut where lines begin."""
    chains: NDArray[np.int32]
    taps: Array
    coarse: Coarse
    bands: Bands
    cells: Cells


@compiled
def _place(
    part: tuple[NDArray[np.int32], Array], first_row: Any, whole: tuple[NDArray[np.int32], Array], at: int,
    start: int, stop: int, dims: Any,
) -> None:  # fmt: skip
    """Copy a kernel's offsets, from its first row on, and weights to the whole's columns `at` and on, pixels [start, stop).

    `dims`: a tuple of the kernel's V numbers, of which only the length counts: a constant in what is compiled.
    """
    offsets, weights, here = whole[0].reshape(-1), whole[1].reshape(-1), np.uint64(start * whole[0].shape[1] + at)
    part_offsets, part_weights, there = part[0].reshape(-1), part[1].reshape(-1), np.uint64(start * len(dims))
    for _ in range(start, stop):
        for v in range(np.uint64(len(dims))):
            offsets[here + v] = part_offsets[there + v] + first_row
            weights[here + v] = part_weights[there + v]
        here += np.uint64(whole[0].shape[1])
        there += np.uint64(len(dims))


@compiled
def _touch(offsets_PV: NDArray[np.int32], start: int, stop: int, touched_R: NDArray[np.bool_]) -> None:
    for p in range(start, stop):
        for v in range(offsets_PV.shape[1]):
            touched_R[offsets_PV[p, v]] = True


@compiled
def _assign(touched_TR: NDArray[np.bool_], pairs: NDArray[np.int32], rows_TR: NDArray[np.int32]) -> int:
    """Each row belongs to the first thread that touches it; others get rows behind the last. Returns how many those are."""
    T, R = touched_TR.shape
    extra = 0
    for row in range(R):
        owned = False
        for thread in range(T):
            rows_TR[thread, row] = row
            if touched_TR[thread, row]:
                if owned:
                    pairs[extra, 0] = row
                    pairs[extra, 1] = R + extra
                    rows_TR[thread, row] = R + extra
                    extra += 1
                owned = True
    return extra


def lay_out(
    parts: Sequence[Part], size: tuple[int, int], num_threads: int, dtype: np.dtype[Any]
) -> tuple[Structure, Structure]:
    """The structure of these kernels over one image, and that of their transposes; they share all large arrays.

    Args:
        parts: one a kernel.
        size: H, W.
        num_threads: at most H.
        dtype: of weights and values.
    """
    H, W = size
    lattices = [(k, part) for k, part in enumerate(parts) if isinstance(part, Lattice)]
    separable = [(k, part) for k, part in enumerate(parts) if isinstance(part, Separable)]
    grids = [(k, part) for k, part in enumerate(parts) if isinstance(part, Grid)]
    lines_T2 = np.array([share(H, thread, num_threads) for thread in range(num_threads)], np.int64)
    offsets_PV, weights_PV, runs_I4, rows_I3 = _concatenated(lattices, lines_T2 * W, dtype)
    owned = int(rows_I3[:, 1].sum())
    pairs, pairs_T2 = _shared(offsets_PV, lines_T2 * W, owned)
    blurs: list[tuple[tuple[Lines | GridAxis, ...], int]]
    blurs = [(part.blurs, int(row)) for (_, part), row in zip(lattices, rows_I3[:, 0], strict=True)]
    cells = lay_out_cells(grids, size, dtype)
    coarse, bands = lay_out_coarse(separable, grids, cells, lines_T2, dtype)
    begins = coarse.read_begin[len(separable) :]
    grid_blurs: list[tuple[tuple[Lines | GridAxis, ...], int]]
    grid_blurs = [(part.blurs, int(begin)) for (_, part), begin in zip(grids, begins, strict=False)]
    forward = Structure(
        W, lines_T2, offsets_PV, weights_PV, runs_I4, rows_I3, owned + len(pairs), pairs, pairs_T2,
        *_blurs(blurs + grid_blurs, num_threads, dtype), coarse, bands, cells,
    )  # fmt: skip
    reversed_blurs = [(axes[::-1], row) for axes, row in blurs] + grid_blurs
    blurs_N9, lines_NT2, chains, taps = _blurs(reversed_blurs, num_threads, dtype)
    turned = [(k, part.transposed()) for k, part in separable]
    coarse, bands = lay_out_coarse(turned, grids, cells, lines_T2, dtype)
    transposed = forward._replace(blurs_N9=blurs_N9, lines_NT2=lines_NT2, chains=chains, taps=taps, coarse=coarse, bands=bands)
    return forward, transposed


def _concatenated(
    lattices: list[tuple[int, Lattice]], pixels_T2: NDArray[np.int64], dtype: np.dtype[Any]
) -> tuple[NDArray[np.int32], Array, NDArray[np.int64], NDArray[np.int64]]:
    P, V = int(pixels_T2[-1, 1]), sum(part.offsets_PV.shape[1] for _, part in lattices)
    offsets_PV, weights_PV = np.empty((P, V), np.int32), np.empty((P, V), dtype)
    runs_I4, rows_I3 = np.empty((len(lattices), 4), np.int64), np.empty((len(lattices), 3), np.int64)
    first_row = at = 0
    copies: list[tuple[Any, ...]] = []
    for i, (k, part) in enumerate(lattices):
        copies.append(((part.offsets_PV, part.weights_PV), np.int32(first_row), (offsets_PV, weights_PV), at))
        end = at + part.offsets_PV.shape[1]
        runs_I4[i] = k, at, end, part.num_rows > _NEAR_ROWS
        rows_I3[i] = first_row, part.num_rows, k
        first_row += part.num_rows
        at = end

    def work(thread: int, _arrivals: NDArray[np.int64]) -> None:
        for copy in copies:
            _place(*copy, *pixels_T2[thread], (0,) * copy[0][0].shape[1])

    run_team(work, len(pixels_T2))
    return offsets_PV, weights_PV, runs_I4, rows_I3


def _shared(offsets_PV: NDArray[np.int32], pixels_T2: NDArray[np.int64], R: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Give threads rows of their own for those that several write; renumbers the offsets."""
    T = len(pixels_T2)
    if T == 1 or R == 0:
        return np.zeros((0, 2), np.int32), np.zeros((T, 2), np.int64)
    touched_TR, rows_TR = np.zeros((T, R), np.bool_), np.empty((T, R), np.int32)
    pairs, count = np.empty((R * (T - 1), 2), np.int32), [0]

    def work(thread: int, arrivals: NDArray[np.int64]) -> None:
        _touch(offsets_PV, *pixels_T2[thread], touched_TR[thread])
        phase = wait(arrivals, 0, T)
        if thread == 0:
            count[0] = _assign(touched_TR, pairs, rows_TR)
        wait(arrivals, phase, T)
        renumber(offsets_PV, rows_TR[thread], *pixels_T2[thread])

    run_team(work, T)
    pairs = pairs[: count[0]].copy()
    splits = [share(len(pairs), thread, T)[0] for thread in range(T)] + [len(pairs)]
    for i in range(1, T):  # an owner's pairs stay with one thread
        while 0 < splits[i] < len(pairs) and pairs[splits[i], 0] == pairs[splits[i] - 1, 0]:
            splits[i] += 1
    return pairs, np.array([(a, max(a, b)) for a, b in pairwise(splits)], np.int64)


def _blurs(
    kernels: list[tuple[tuple[Lines | GridAxis, ...], int]], T: int, dtype: np.dtype[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], Array]:
    """All blurs, round by round."""
    rows: list[tuple[int, ...]] = []
    spans: list[list[tuple[int, int]]] = []
    chains: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    taps: list[Array] = [np.zeros(0, dtype)]
    at_chain = at_taps = 0
    for round_ in range(max((len(blurs) for blurs, _ in kernels), default=0)):
        for blurs, first_row in kernels:
            if round_ >= len(blurs):
                continue
            blur = blurs[round_]
            if isinstance(blur, Lines):
                rows.append((round_, LINES, first_row, at_chain, 0, 0, 0, 0, 0))
                spans.append(_line_spans(blur.chain, T))
                chains.append(blur.chain)
                at_chain += len(blur.chain)
            else:
                rows.append((round_, GRID, first_row, 0, *blur.shape, at_taps, at_taps + len(blur.taps)))
                spans.append([share(blur.shape[0] * blur.shape[2], thread, T) for thread in range(T)])
                taps.append(blur.taps.astype(dtype))
                at_taps += len(blur.taps)
    blurs_N9, lines_NT2 = np.array(rows, np.int64).reshape(-1, 9), np.array(spans, np.int64).reshape(-1, T, 2)
    return blurs_N9, lines_NT2, np.concatenate(chains), np.concatenate(taps)


def _line_spans(chain: NDArray[np.int32], T: int) -> list[tuple[int, int]]:
    begins = np.flatnonzero(chain < 0)
    cuts = [np.searchsorted(begins, len(chain) * thread // T) for thread in range(T)]
    return list(pairwise([int(begins[at]) if at < len(begins) else len(chain) for at in cuts] + [len(chain)]))


def padded_width(channels: int) -> int:
    """Channels in memory: whole vectors of 8, and few enough chunks of up to 64."""
    chunks = -(-channels // 64)
    return -(-channels // (8 * chunks)) * 8 * chunks
