"""Where all kernels' rows lie in one table, which thread owns which, and how rows that several threads write are shared.

Not here: what is done with them (engine.py, passes.py).
"""

# P pixels, V rows a pixel reads and writes over all kernels, R rows, K kernels, S of them separable

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.parts import Band, GridAxis, Interpolated, Lines, Part, Separable, renumber
from jointseg.crf.cpu.team import pixels_of, run_team, share, wait

Array = NDArray[Any]
_NEAR_ROWS = 2**16
"""Tables of so many rows stay in the inner caches."""
_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@_jit
def _touch(offsets_PV: NDArray[np.int32], start: int, stop: int, touched_R: NDArray[np.bool_]) -> None:
    for p in range(start, stop):
        for v in range(offsets_PV.shape[1]):
            touched_R[offsets_PV[p, v]] = True


@_jit
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


class BandTables:
    """Values on the separable kernels' coarse points, flat: what all threads read, and what each writes of it."""

    def __init__(self, layout: Layout, C: int) -> None:
        # Behind the last row, as many as a shorter kernel's padded taps reach; they weigh 0.
        taps = max(layout.bands[0][4].shape[2], layout.bands[0][8].shape[2])
        slack = max((taps * cols for _, cols in layout.coarse_shapes), default=1)
        self.read = np.zeros((sum(rows * cols for rows, cols in layout.coarse_shapes) + slack) * C, layout.dtype)
        self.written = [np.empty((sizes[-1] + slack) * C, layout.dtype) for sizes in layout.slab_begins]
        self._layout = layout

    def gather(self, mine: Callable[[int], tuple[int, int]], C: int) -> None:
        """Add up what the threads wrote, for the caller's share of the coarse rows."""
        layout = self._layout
        for s, (rows, cols) in enumerate(layout.coarse_shapes):
            start, stop = mine(rows)
            target = self.read[layout.read_begin[s] * C :][: rows * cols * C].reshape(rows, cols * C)
            target[start:stop] = 0
            for slabs, begins, written in zip(layout.slabs, layout.slab_begins, self.written, strict=True):
                low, high = slabs[s]
                first, last = max(start, low), min(stop, high)
                if first < last:
                    slab = written[begins[s] * C : begins[s + 1] * C].reshape(high - low, cols * C)
                    target[first:last] += slab[first - low : last - low]


class Layout:
    """All kernels' structure for one direction."""

    def __init__(self, parts: Sequence[Part], size: tuple[int, int], num_threads: int, dtype: Any) -> None:
        self.size, self.dtype, self.num_threads = size, dtype, num_threads
        self.spans = [pixels_of(thread, num_threads, size) for thread in range(num_threads)]
        interpolated = [(k, part) for k, part in enumerate(parts) if isinstance(part, Interpolated)]
        self._concatenate(interpolated, size[0] * size[1])
        self._share(num_threads)
        self._set_blurs(interpolated, reverse=False)
        self._interpolated = interpolated
        self._set_separable([(k, part) for k, part in enumerate(parts) if isinstance(part, Separable)])

    def transposed(self) -> Layout:
        """The layout of the transposed kernels; it shares all large arrays."""
        other = Layout.__new__(Layout)
        other.__dict__.update(self.__dict__)
        other._set_blurs(self._interpolated, reverse=True)
        other._set_separable([(k, part.transposed()) for k, part in self._separable])
        return other

    def band_tables(self, C: int) -> BandTables:
        """Fresh tables for values of C channels."""
        return BandTables(self, C)

    def _concatenate(self, interpolated: list[tuple[int, Interpolated]], P: int) -> None:
        V = sum(part.offsets_PV.shape[1] for _, part in interpolated)
        self.offsets_PV, self.weights_PV = np.empty((P, V), np.int32), np.empty((P, V), self.dtype)
        self.runs_I4 = np.empty((len(interpolated), 4), np.int64)
        self.rows_of_kernel: list[tuple[int, int, int]] = []
        first_row = at = 0
        for k, part in interpolated:
            here = slice(at, at + part.offsets_PV.shape[1])
            np.add(part.offsets_PV, first_row, out=self.offsets_PV[:, here])
            self.weights_PV[:, here] = part.weights_PV
            self.runs_I4[len(self.rows_of_kernel)] = k, here.start, here.stop, part.num_rows > _NEAR_ROWS
            self.rows_of_kernel.append((first_row, part.num_rows, k))
            first_row += part.num_rows
            at = here.stop
        self.num_rows = first_row

    def _share(self, num_threads: int) -> None:
        R = self.num_rows
        if num_threads == 1 or R == 0:
            self.pairs, self.pair_spans = np.zeros((0, 2), np.int32), [(0, 0)] * num_threads
            return
        touched_TR, rows_TR = np.zeros((num_threads, R), np.bool_), np.empty((num_threads, R), np.int32)
        pairs, count = np.empty((R * (num_threads - 1), 2), np.int32), [0]

        def work(thread: int, arrivals: NDArray[np.int64]) -> None:
            start, stop = self.spans[thread]
            _touch(self.offsets_PV, start, stop, touched_TR[thread])
            phase = wait(arrivals, 0, num_threads)
            if thread == 0:
                count[0] = _assign(touched_TR, pairs, rows_TR)
            wait(arrivals, phase, num_threads)
            renumber(self.offsets_PV, rows_TR[thread], start, stop)

        run_team(work, num_threads)
        self.pairs = pairs[: count[0]].copy()
        self.num_rows += count[0]
        splits = [share(count[0], thread, num_threads)[0] for thread in range(num_threads)] + [count[0]]
        owners = self.pairs[:, 0]
        for i in range(1, num_threads):  # an owner's pairs stay with one thread
            while 0 < splits[i] < count[0] and owners[splits[i]] == owners[splits[i] - 1]:
                splits[i] += 1
        self.pair_spans = [(splits[i], max(splits[i], splits[i + 1])) for i in range(num_threads)]

    def _set_blurs(self, interpolated: list[tuple[int, Interpolated]], *, reverse: bool) -> None:
        """Axes that may be blurred at the same time, being of different kernels, in rounds."""
        rounds: list[list[tuple[int, Lines | GridAxis, list[tuple[int, int]]]]] = []
        for (_, part), (first_row, _, _) in zip(interpolated, self.rows_of_kernel, strict=True):
            for i, blur in enumerate(reversed(part.blurs) if reverse else part.blurs):
                if i == len(rounds):
                    rounds.append([])
                rounds[i].append((first_row, blur, self._line_spans(blur)))
        self.blurs = rounds

    def _line_spans(self, blur: Lines | GridAxis) -> list[tuple[int, int]]:
        """Each thread's part of the list of lines, cut where lines begin."""
        if isinstance(blur, GridAxis):
            return []
        begins = np.flatnonzero(blur.chain < 0)
        cuts = [len(blur.chain)] * (self.num_threads + 1)
        for thread in range(self.num_threads):
            at = np.searchsorted(begins, len(blur.chain) * thread // self.num_threads)
            cuts[thread] = int(begins[at]) if at < len(begins) else len(blur.chain)
        return list(pairwise(cuts))

    def _set_separable(self, separable: list[tuple[int, Separable]]) -> None:
        self._separable = separable
        self.separable_kernels = np.array([k for k, _ in separable], np.int64)
        self.num_separable = len(separable)
        self.coarse_shapes = [(part.read_y.num_columns, part.read_x.num_columns) for _, part in separable]
        self.slabs: list[list[tuple[int, int]]] = []
        self.bands: list[Any] = []
        self.read_begin = np.cumsum([0, *(rows * cols for rows, cols in self.coarse_shapes)])
        self.slab_begins: list[NDArray[np.int64]] = []
        coarse_cols = np.array([cols for _, cols in self.coarse_shapes], np.int64)
        read_x, read_y = _stack([p.read_x for _, p in separable]), _stack([p.read_y for _, p in separable])
        write_x = _stack([p.write_x.transposed() for _, p in separable])
        write_y = _stack([p.write_y for _, p in separable])
        for start, stop in self.spans:
            y0, y1 = start // self.size[1], stop // self.size[1]
            slabs = []
            write_y_start = write_y[0].copy()
            for s in range(self.num_separable):
                first = int(write_y[0][s, y0:y1].min())
                last = int(write_y[0][s, y0:y1].max()) + write_y[1].shape[2]
                slabs.append((first, min(last, self.coarse_shapes[s][0])))
                write_y_start[s] -= first
            self.slabs.append(slabs)
            begins = np.cumsum([0, *((high - low) * cols for (low, high), cols in zip(slabs, coarse_cols, strict=True))])
            self.slab_begins.append(begins)
            fixed = (self.separable_kernels, *read_x, *read_y, *write_x, write_y_start, write_y[1], coarse_cols)
            self.bands.append((*fixed, self.read_begin, begins))


def _stack(bands: list[Band]) -> tuple[NDArray[np.int64], Array]:
    """Bands as arrays (S, n, T), shorter ones with weights of 0 behind."""
    n = max((len(band.start) for band in bands), default=0)
    T = max((band.weights.shape[1] for band in bands), default=0)
    dtype = bands[0].weights.dtype if bands else np.float32
    start, weights = np.zeros((len(bands), n), np.int64), np.zeros((len(bands), n, T), dtype)
    for s, band in enumerate(bands):
        start[s, : len(band.start)] = band.start
        weights[s, : len(band.start), : band.weights.shape[1]] = band.weights
    return start, weights


def padded_width(channels: int) -> int:
    """Channels in memory: whole vectors of 8, and few enough chunks of up to 64."""
    chunks = -(-channels // 64)
    return -(-channels // (8 * chunks)) * 8 * chunks
