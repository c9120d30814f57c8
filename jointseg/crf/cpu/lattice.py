"""The permutohedral lattice (Adams, Baek & Davis 2010): where each pixel lies, which vertices there are, who neighbours whom.

Not here: how values are spread over it, blurred and read back (passes.py). Arithmetic follows Kraehenbuehl & Koltun's code, in
whose lattice a pixel lands in the same simplex with the same weights.
"""

# P pixels, F features, V = F + 1 vertices of a simplex, M vertices of the lattice

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointseg.crf.cpu.compiled import compiled, inner
from jointseg.crf.cpu.parts import Interpolated, Lines, renumber
from jointseg.crf.cpu.team import pixels_of, run_team, wait

_MIX_0, _MIX_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def key_bits(num_features: int) -> int:
    """Bits of one coordinate in a vertex's key of two 64-bit words, each for half of the F coordinates."""
    return min(64 // -(-num_features // 2), 32)


def scale_factors(num_features: int, dtype: Any) -> NDArray[Any]:
    """Per feature: features in units of the bandwidth times this is the lattice's scale (p. 5 and 6 there)."""
    deviation = math.sqrt(2.0 / 3.0) * (num_features + 1)
    if dtype == np.float32:
        deviation = float(np.float32(deviation))
    return np.array([1.0 / math.sqrt((i + 2) * (i + 1)) * deviation for i in range(num_features)], dtype)


@inner
def _slot(table: NDArray[np.uint64], k0: Any, k1: Any) -> Any:
    """Where the key is in the table, or where it would go."""
    mask = np.uint64(table.shape[0] - 1)
    mixed = k0 * _MIX_0 ^ (k1 * _MIX_1 + (k0 >> np.uint64(29)))
    mixed ^= mixed >> np.uint64(32)
    slot = (mixed * _MIX_0 >> np.uint64(20)) & mask
    while table[slot, 2] != 0 and (table[slot, 0] != k0 or table[slot, 1] != k1):
        slot = (slot + np.uint64(1)) & mask
    return slot


@inner
def find(table: NDArray[np.uint64], k0: Any, k1: Any) -> Any:
    """The vertex with this key, or -1."""
    return np.int64(table[_slot(table, k0, k1), 2]) - 1


@inner
def _grown(table: NDArray[np.uint64]) -> NDArray[np.uint64]:
    larger = np.zeros((table.shape[0] * 2, 3), np.uint64)
    for old in range(table.shape[0]):
        if table[old, 2] != 0:
            slot = _slot(larger, table[old, 0], table[old, 1])
            for i in range(3):
                larger[slot, i] = table[old, i]
    return larger


@inner
def _locate(
    features_PF: NDArray[Any],
    p: int,
    factors_F: NDArray[Any],
    elevated: NDArray[Any],
    lowest: NDArray[Any],
    ranks: NDArray[np.int64],
    barycentric: NDArray[Any],
) -> None:
    """The simplex of pixel p: its vertex of remainder 0, the coordinates' ranks in it, barycentric coordinates (p. 5-10)."""
    F = features_PF.shape[1]
    kind = features_PF.dtype.type
    up, down = kind(F + 1), kind(1) / kind(F + 1)
    running = kind(0)
    for j in range(F, 0, -1):
        scaled = features_PF[p, j - 1] * factors_F[j - 1]
        elevated[j] = running - kind(j) * scaled
        running += scaled
    elevated[0] = running
    # The nearest point of remainder 0 may lie off the plane by `excess`.
    excess = np.int64(0)
    for i in range(F + 1):
        above, below = np.ceil(down * elevated[i]), np.floor(down * elevated[i])
        cell = above if above * up - elevated[i] < elevated[i] - below * up else below
        lowest[i] = cell * up
        excess += np.int64(cell)
        barycentric[i] = 0
    barycentric[F + 1] = 0
    for i in range(F + 1):
        rank = excess
        mine = elevated[i] - lowest[i]
        for j in range(F + 1):
            other = elevated[j] - lowest[j]
            rank += (mine < other) | ((mine == other) & (j < i))  # no branches: none could be foretold
        ranks[i] = rank
    for i in range(F + 1):
        if ranks[i] < 0:
            ranks[i] += F + 1
            lowest[i] += up
        elif ranks[i] > F:
            ranks[i] -= F + 1
            lowest[i] -= up
        part = (elevated[i] - lowest[i]) * down
        barycentric[F - ranks[i]] += part
        barycentric[F - ranks[i] + 1] -= part
    barycentric[0] += kind(1) + barycentric[F + 1]


@inner
def _key_step(num_features: int, bits: int, each: int, axis: int, at_axis: int) -> tuple[Any, Any]:
    """What to add to a key so that every coordinate changes by `each`, but the one at `axis` by `at_axis`."""
    half, field = (num_features + 1) // 2, np.uint64(bits)
    step_0, step_1 = np.uint64(0), np.uint64(0)
    for i in range(num_features):
        move = np.uint64(at_axis if i == axis else each)
        if i < half:
            step_0 += move << (field * np.uint64(i))
        else:
            step_1 += move << (field * np.uint64(i - half))
    return step_0, step_1


@compiled
def embed(
    features_PF: NDArray[Any],
    valid_P: NDArray[np.bool_],
    factors_F: NDArray[Any],
    offsets_PV: NDArray[np.int32],
    weights_PV: NDArray[Any],
    span: tuple[int, int],
    bits: int,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Place pixels of `span`: writes each one's vertices, numbered as this call first meets them, and their weights.

    Returns the hash table, and the keys by number (vertices x 2). Pixels that are not valid get weights of 0 on vertex 0.
    """
    F = features_PF.shape[1]
    half, field = (F + 1) // 2, np.uint64(bits)
    table = np.zeros((1 << max(8, int(math.log2(span[1] - span[0] + 1)) + 1), 3), np.uint64)
    keys = np.empty((len(table) // 2 + F + 2, 2), np.uint64)
    count = 0
    elevated, lowest = np.empty(F + 1, features_PF.dtype), np.empty(F + 1, features_PF.dtype)
    rank, at_rank = np.empty(F + 1, np.int64), np.empty(F + 1, np.int64)
    barycentric = np.empty(F + 2, features_PF.dtype)
    # Vertex r + 1 is vertex r plus 1 everywhere, but for the coordinate of rank F - r: less F.
    steps = np.empty((F + 1, 2), np.uint64)
    for axis in range(F + 1):
        steps[axis, 0], steps[axis, 1] = _key_step(F, bits, 1, axis, -F)
    bias = np.int64(1) << np.int64(bits - 1)
    for p in range(span[0], span[1]):
        if not valid_P[p]:
            for v in range(F + 1):
                offsets_PV[p, v] = 0
                weights_PV[p, v] = 0
            continue
        _locate(features_PF, p, factors_F, elevated, lowest, rank, barycentric)
        k0, k1 = np.uint64(0), np.uint64(0)
        for i in range(F + 1):
            at_rank[rank[i]] = i
            coordinate = np.uint64(np.int64(lowest[i]) + bias)
            if i < half:
                k0 += coordinate << (field * np.uint64(i))
            elif i < F:
                k1 += coordinate << (field * np.uint64(i - half))
        for r in range(F + 1):
            slot = _slot(table, k0, k1)
            if table[slot, 2] == 0:
                table[slot, 0], table[slot, 1], table[slot, 2] = k0, k1, np.uint64(count + 1)
                keys[count, 0], keys[count, 1] = k0, k1
                count += 1
            offsets_PV[p, r] = np.int64(table[slot, 2]) - 1
            weights_PV[p, r] = barycentric[r]
            k0 += steps[at_rank[F - r], 0]
            k1 += steps[at_rank[F - r], 1]
        if count * 2 + 2 * F + 2 > len(table):
            table = _grown(table)
            longer = np.empty((len(table) // 2 + F + 2, 2), np.uint64)
            for i in range(count):
                longer[i, 0], longer[i, 1] = keys[i, 0], keys[i, 1]
            keys = longer
    return table, keys[:count]


@compiled
def merge(
    table: NDArray[np.uint64], known: NDArray[np.uint64], more: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int32]]:
    """Add keys to a table of `known` ones. Returns the table, all keys by vertex, and the vertex of each of `more`."""
    keys = np.empty((len(known) + len(more), 2), np.uint64)
    count = len(known)
    for i in range(count):
        keys[i, 0], keys[i, 1] = known[i, 0], known[i, 1]
    vertex = np.empty(len(more), np.int32)
    for i in range(len(more)):
        if count * 2 + 2 > table.shape[0]:
            table = _grown(table)
        slot = _slot(table, more[i, 0], more[i, 1])
        if table[slot, 2] == 0:
            table[slot, 0], table[slot, 1], table[slot, 2] = more[i, 0], more[i, 1], np.uint64(count + 1)
            keys[count, 0], keys[count, 1] = more[i, 0], more[i, 1]
            vertex[i] = count
            count += 1
        else:
            vertex[i] = np.int64(table[slot, 2]) - 1
    return table, keys[:count], vertex


@compiled
def chains(table: NDArray[np.uint64], keys: NDArray[np.uint64], num_features: int, bits: int, axis: int) -> NDArray[np.int32]:
    """The lines of neighbours along one of the F + 1 axes, as one list: ~vertex begins a line, its neighbours follow in order.

    Vertices without neighbours are left out: blurring along this axis leaves them as they are.
    """
    step_0, step_1 = _key_step(num_features, bits, -1, axis, num_features)
    M = len(keys)
    following = np.empty(M, np.int32)
    has_previous = np.zeros(M, np.bool_)
    for vertex in range(M):
        neighbour = find(table, keys[vertex, 0] + step_0, keys[vertex, 1] + step_1)
        following[vertex] = neighbour
        if neighbour >= 0:
            has_previous[neighbour] = True
    listed = np.empty(M, np.int32)
    count = 0
    for vertex in range(M):
        if has_previous[vertex] or following[vertex] < 0:
            continue
        listed[count] = ~vertex
        count += 1
        neighbour = following[vertex]
        while neighbour >= 0:
            listed[count] = neighbour
            count += 1
            neighbour = following[neighbour]
    return listed[:count].copy()


def build_lattice(
    features_PF: NDArray[Any], valid_P: NDArray[np.bool_], *, size: tuple[int, int], num_threads: int
) -> Interpolated:
    """The lattice of these features, in units of the bandwidths. Each thread places its pixels; one merges what they found."""
    P, F = features_PF.shape
    bits, factors_F = key_bits(F), scale_factors(F, features_PF.dtype)
    offsets_PV, weights_PV = np.empty((P, F + 1), np.int32), np.empty((P, F + 1), features_PF.dtype)
    found: list[Any] = [None] * num_threads
    lines: list[Any] = [None] * (F + 1)
    merged: list[Any] = []

    def work(thread: int, arrivals: NDArray[np.int64]) -> None:
        span = pixels_of(thread, num_threads, size)
        found[thread] = embed(features_PF, valid_P, factors_F, offsets_PV, weights_PV, span, bits)
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
        if thread > 0:
            renumber(offsets_PV, vertices[thread], *span)
        for axis in range(thread, F + 1, num_threads):
            lines[axis] = chains(table, keys, F, bits, axis)

    run_team(work, num_threads)
    return Interpolated(offsets_PV, weights_PV, len(merged[1]), tuple(map(Lines, lines)))
