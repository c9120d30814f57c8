"""The permutohedral lattice (Adams, Baek & Davis 2010): which vertices there are, who neighbours whom.

Not here: where pixels lie in it (simplex.py); how values are spread over it, blurred and read back (passes.py).
"""

# P pixels, F features, V = F + 1 vertices of a simplex, M vertices of the lattice

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.compiled import compiled, inner
from jointseg.crf.cpu.parts import Lattice, Lines, renumber
from jointseg.crf.cpu.simplex import LANES, locate, place_in_key, scale_factors
from jointseg.crf.cpu.team import pixels_of, run_team, wait

_MIX_0, _MIX_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_BATCH = 64
"""Look-ups that go together: their slots are asked for first, then read."""

# A slot of the hash table is one number, so that the table stays in the caches: 32 bits of the hash above the vertex + 1, or 0
# where it is free. Whether the whole key is the same is looked up in the list of keys.


@inner
def _shift(table: NDArray[np.uint64]) -> Any:
    """What leaves the number of a slot of the hash's 32 bits."""
    return np.uint64(32) - np.uint64(math.log2(len(table)))


@inner
def _ask(table: NDArray[np.uint64], k0: Any, k1: Any, shift: Any) -> Any:
    """The key's hash; the processor fetches its slot meanwhile."""
    mixed = (k0 * _MIX_0 ^ k1 * _MIX_1) >> np.uint64(32)
    simd.prefetch(table, mixed >> shift, (0,))
    return mixed


@inner
def _slot(table: NDArray[np.uint64], mixed: Any, shift: Any, k0: Any, k1: Any, keys: NDArray[np.uint64]) -> Any:
    """Where the key is, or where it would go."""
    at, mask = mixed >> shift, np.uint64(len(table) - 1)
    while table[at] != 0:
        if table[at] >> np.uint64(32) == mixed:
            vertex = (table[at] & np.uint64(0xFFFFFFFF)) - np.uint64(1)
            if keys[vertex, np.uint64(0)] == k0 and keys[vertex, np.uint64(1)] == k1:
                return at
        at = (at + np.uint64(1)) & mask
    return at


@inner
def _vertex(entry: Any) -> Any:
    """The vertex in a slot, or -1."""
    return np.int64(entry & np.uint64(0xFFFFFFFF)) - 1


@inner
def _found(
    table: NDArray[np.uint64], mixed: Any, shift: Any, k0: Any, k1: Any, keys: NDArray[np.uint64], count: int
) -> tuple[Any, int]:
    """The vertex with this key, a new one where there is none; and how many there are then."""
    at = _slot(table, mixed, shift, k0, k1, keys)
    entry = table[at]
    if entry == 0:
        table[at] = mixed << np.uint64(32) | np.uint64(count + 1)
        keys[count, 0], keys[count, 1] = k0, k1
        return count, count + 1
    return _vertex(entry), count


@inner
def _grown(table: NDArray[np.uint64], keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """A table of twice the slots, with the same vertices."""
    larger = np.zeros(2 * len(table), np.uint64)
    shift = _shift(larger)
    for vertex in range(count):
        k0, k1 = keys[vertex, 0], keys[vertex, 1]
        _found(larger, _ask(larger, k0, k1, shift), shift, k0, k1, keys, vertex)
    return larger


@compiled
def embed(
    features_FP: NDArray[Any],
    valid_P: NDArray[np.bool_],
    factors_F: NDArray[Any],
    offsets_PV: NDArray[np.int32],
    weights_PV: NDArray[Any],
    span: tuple[int, int],
    table: NDArray[np.uint64],
    dims: Any,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Place pixels of `span`: writes each one's vertices, numbered as this call first meets them, and their weights.

    Returns the hash table, which begins as the empty `table`, and the keys by number (vertices x 2). Pixels that are not valid
    get weights of 0 on vertex 0. `dims`: a tuple of F numbers, of which only the length counts.
    """
    V, P = len(dims) + 1, features_FP.shape[1]
    flat, padded = features_FP.reshape(-1), np.zeros(len(dims) * LANES, features_FP.dtype)
    weights, words = np.empty(V * LANES, features_FP.dtype), np.empty(2 * V * LANES, np.uint64)
    hashes, keys = np.empty(V * LANES, np.uint64), np.empty((len(table) // 2, 2), np.uint64)
    shift, count = _shift(table), 0
    for p in range(span[0], span[1], LANES):
        n = min(LANES, span[1] - p)
        if p + LANES <= P:
            locate(flat, p, P, factors_F, dims, weights, words)
        else:
            for i in range(len(dims)):
                for lane in range(n):
                    padded[i * LANES + lane] = features_FP[i, p + lane]
            locate(padded, 0, LANES, factors_F, dims, weights, words)
        if count + V * LANES > len(keys):
            table = _grown(table, keys, count)
            shift, longer = _shift(table), np.empty((2 * len(keys), 2), np.uint64)
            for i in range(count):
                longer[i, 0], longer[i, 1] = keys[i, 0], keys[i, 1]
            keys = longer
        for i in range(V * LANES):
            hashes[i] = _ask(table, words[i], words[V * LANES + i], shift)
        for lane in range(n):
            if not valid_P[p + lane]:
                for r in range(V):
                    offsets_PV[p + lane, r] = 0
                    weights_PV[p + lane, r] = 0
                continue
            for r in range(V):
                i = r * LANES + lane
                vertex, count = _found(table, hashes[i], shift, words[i], words[V * LANES + i], keys, count)
                offsets_PV[p + lane, r] = vertex
                weights_PV[p + lane, r] = weights[i]
    return table, keys[:count]


@compiled
def merge(
    table: NDArray[np.uint64], known: NDArray[np.uint64], more: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int32]]:
    """Add keys to a table of `known` ones. Returns the table, all keys by vertex, and the vertex of each of `more`."""
    keys, count = np.empty((len(known) + len(more), 2), np.uint64), len(known)
    for i in range(count):
        keys[i, 0], keys[i, 1] = known[i, 0], known[i, 1]
    while 2 * len(keys) > len(table):
        table = _grown(table, keys, count)
    shift, hashes, vertex_of = _shift(table), np.empty(_BATCH, np.uint64), np.empty(len(more), np.int32)
    for begin in range(0, len(more), _BATCH):
        n = min(_BATCH, len(more) - begin)
        for i in range(n):
            hashes[i] = _ask(table, more[begin + i, 0], more[begin + i, 1], shift)
        for i in range(n):
            vertex, count = _found(table, hashes[i], shift, more[begin + i, 0], more[begin + i, 1], keys, count)
            vertex_of[begin + i] = vertex
    return table, keys[:count], vertex_of


@compiled
def chains(table: NDArray[np.uint64], keys: NDArray[np.uint64], step: tuple[Any, Any]) -> NDArray[np.int32]:
    """The lines of neighbours along one axis, as one list: ~vertex begins a line, its neighbours follow in order.

    A neighbour's key is `step` away. Vertices without neighbours are left out: blurring along this axis keeps them as they are.
    """
    M, shift = len(keys), _shift(table)
    following, has_previous = np.empty(M, np.int32), np.zeros(M + 1, np.bool_)
    hashes = np.empty(_BATCH, np.uint64)
    for begin in range(0, M, _BATCH):
        n = min(_BATCH, M - begin)
        for i in range(n):
            hashes[i] = _ask(table, keys[begin + i, 0] + step[0], keys[begin + i, 1] + step[1], shift)
        for i in range(n):
            at = _slot(table, hashes[i], shift, keys[begin + i, 0] + step[0], keys[begin + i, 1] + step[1], keys)
            neighbour = _vertex(table[at])
            following[begin + i] = neighbour
            has_previous[neighbour + 1] = True  # none: the first, which is no vertex
    listed = np.empty(M, np.int32)
    count = 0
    for vertex in range(M):
        if has_previous[vertex + 1] or following[vertex] < 0:
            continue
        listed[count] = ~vertex
        count += 1
        neighbour = following[vertex]
        while neighbour >= 0:
            listed[count] = neighbour
            count += 1
            neighbour = following[neighbour]
    return listed[:count].copy()


def key_step(num_features: int, axis: int) -> tuple[np.uint64, np.uint64]:
    """From a vertex's key to its neighbour's along one of the F + 1 axes: every coordinate less 1, but the axis's plus F."""
    words = [0, 0]
    for i in range(num_features):
        word, bit = place_in_key(num_features, i)
        words[word] += (num_features if i == axis else -1) << bit
    return np.uint64(words[0] % 2**64), np.uint64(words[1] % 2**64)


def empty_table(num_pixels: int) -> NDArray[np.uint64]:
    """A hash table for half as many vertices as pixels, or more. Made here: numpy asks for large pages, numba does not."""
    return np.zeros(1 << max(10, num_pixels.bit_length()), np.uint64)


def build_lattice(features_PF: NDArray[Any], valid_P: NDArray[np.bool_], *, size: tuple[int, int], num_threads: int) -> Lattice:
    """The lattice of these features, in units of the bandwidths. Each thread places its pixels; one merges what they found."""
    P, F = features_PF.shape
    features_FP, factors_F = np.ascontiguousarray(features_PF.T), scale_factors(F, features_PF.dtype)
    offsets_PV, weights_PV = np.empty((P, F + 1), np.int32), np.empty((P, F + 1), features_PF.dtype)
    found: list[Any] = [None] * num_threads
    lines: list[Any] = [None] * (F + 1)
    merged: list[Any] = []

    def work(thread: int, arrivals: NDArray[np.int64]) -> None:
        span = pixels_of(thread, num_threads, size)
        found[thread] = embed(
            features_FP, valid_P, factors_F, offsets_PV, weights_PV, span, empty_table(span[1] - span[0]), (0,) * F
        )
        phase = wait(arrivals, 0, num_threads)
        if thread == 0:
            table, keys = found[0]
            vertices: list[Any] = [None]
            for _, more in found[1:]:
                table, keys, vertex_of = merge(table, keys, more)
                vertices.append(vertex_of)
            merged[:] = table, keys, vertices
        phase = wait(arrivals, phase, num_threads)
        table, keys, vertices = merged
        if thread > 0 and len(vertices[thread]) > 0:  # else no pixel of its own is valid
            renumber(offsets_PV, vertices[thread], *span)
        for axis in range(thread, F + 1, num_threads):
            lines[axis] = chains(table, keys, key_step(F, axis))

    run_team(work, num_threads)
    num_rows = max(len(merged[1]), 1)  # pixels that are not valid read and write vertex 0, also where there is no other
    return Lattice(offsets_PV, weights_PV, num_rows, tuple(map(Lines, lines)))
