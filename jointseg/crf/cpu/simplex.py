"""Where pixels lie in the permutohedral lattice: many at once, one in each lane of SIMD vectors.

Not here: the vertices found so far (lattice.py). Arithmetic follows Kraehenbuehl & Koltun's code, in whose lattice a pixel
lands in the same simplex with the same weights; products and sums are rounded one by one, as there.
"""

# L lanes, F features, V = F + 1 vertices of a simplex

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from jointseg.crf.cpu.simd import call_elementwise, constant, filled, intrinsic

LANES = 16
_INT32, _INT64 = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(64), LANES)


def key_bits(num_features: int) -> int:
    """Bits of one coordinate in a vertex's key of two 64-bit words, each for half of the F coordinates."""
    return min(64 // -(-num_features // 2), 32)


def place_in_key(num_features: int, coordinate: int) -> tuple[int, int]:
    """Which word of the key holds a coordinate, and from which bit on."""
    word, place = divmod(coordinate, -(-num_features // 2))
    return word, place * key_bits(num_features)


def scale_factors(num_features: int, dtype: Any) -> NDArray[Any]:
    """Per feature: features in units of the bandwidth times this is the lattice's scale (p. 5 and 6 there)."""
    deviation = math.sqrt(2.0 / 3.0) * (num_features + 1)
    if dtype == np.float32:
        deviation = float(np.float32(deviation))
    return np.array([1.0 / math.sqrt((i + 2) * (i + 1)) * deviation for i in range(num_features)], dtype)


class _Lanes:
    """Arithmetic on all lanes, as LLVM's instructions."""

    def __init__(self, context: Any, builder: ir.IRBuilder, dtype: types.Float) -> None:
        self.context, self.builder = context, builder
        self.kind = ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.DoubleType(), LANES)

    def address(self, array_type: Any, array: ir.Value, start: ir.Value, kind: ir.VectorType) -> ir.Value:
        """Of LANES numbers from number `start` of a contiguous array on."""
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        return self.builder.bitcast(self.builder.gep(data, [start]), kind.as_pointer())

    def scaled(self, features: list[ir.Value], factors: list[ir.Value]) -> list[ir.Value]:
        """Features on the plane of the lattice, where coordinates sum to 0 (p. 5)."""
        b, F = self.builder, len(features)
        running, elevated = constant(self.kind, 0.0), [constant(self.kind, 0.0)] * (F + 1)
        for j in range(F, 0, -1):
            scaled = b.fmul(features[j - 1], factors[j - 1])
            elevated[j] = b.fsub(running, b.fmul(constant(self.kind, float(j)), scaled))
            running = b.fadd(running, scaled)
        elevated[0] = running
        return elevated

    def simplex(self, elevated: list[ir.Value], down: float) -> tuple[list[ir.Value], list[ir.Value]]:
        """Of each coordinate: that of the simplex's vertex of remainder 0, and its rank in the simplex (p. 5-10)."""
        b, V = self.builder, len(elevated)
        up = constant(self.kind, float(V))
        lowest, excess = [], constant(_INT32, 0)
        for coordinate in elevated:
            cell = b.fmul(constant(self.kind, down), coordinate)
            above, below = (call_elementwise(b, name, [cell]) for name in ("ceil", "floor"))
            nearer = b.fcmp_ordered("<", b.fsub(b.fmul(above, up), coordinate), b.fsub(coordinate, b.fmul(below, up)))
            cell = b.select(nearer, above, below)
            lowest.append(b.fmul(cell, up))
            excess = b.add(excess, b.fptosi(cell, _INT32))  # the nearest point of remainder 0 may lie off the plane by it
        above_lowest = [b.fsub(coordinate, low) for coordinate, low in zip(elevated, lowest, strict=True)]
        ranks = [excess] * V
        for i in range(V):
            for j in range(i + 1, V):
                less = b.fcmp_ordered("<", above_lowest[i], above_lowest[j])
                ranks[i] = b.add(ranks[i], b.zext(less, _INT32))
                ranks[j] = b.add(ranks[j], b.zext(b.not_(less), _INT32))
        for i in range(V):
            under = b.icmp_signed("<", ranks[i], constant(_INT32, 0))
            over = b.icmp_signed(">", ranks[i], constant(_INT32, V - 1))
            moved = b.select(under, b.fadd(lowest[i], up), b.select(over, b.fsub(lowest[i], up), lowest[i]))
            turn = b.select(under, constant(_INT32, V), b.select(over, constant(_INT32, -V), constant(_INT32, 0)))
            lowest[i], ranks[i] = moved, b.add(ranks[i], turn)
        return lowest, ranks

    def barycentric(
        self, elevated: list[ir.Value], lowest: list[ir.Value], ranks: list[ir.Value], down: float
    ) -> list[ir.Value]:
        """The weights of the simplex's vertices, by remainder."""
        b, V = self.builder, len(elevated)
        parts = [b.fmul(b.fsub(x, low), constant(self.kind, down)) for x, low in zip(elevated, lowest, strict=True)]
        by_rank = []
        for rank in range(V):
            part = constant(self.kind, 0.0)
            for i in range(V):
                part = b.select(b.icmp_signed("==", ranks[i], constant(_INT32, rank)), parts[i], part)
            by_rank.append(part)
        first = b.fadd(by_rank[V - 1], b.fsub(constant(self.kind, 1.0), by_rank[0]))
        return [first, *(b.fsub(by_rank[V - 1 - r], by_rank[V - r]) for r in range(1, V))]

    def keys(self, lowest: list[ir.Value], ranks: list[ir.Value]) -> list[list[ir.Value]]:
        """The keys of the simplex's vertices, by remainder: two words each."""
        b, V = self.builder, len(ranks)
        F, bias = V - 1, 1 << (key_bits(V - 1) - 1)
        places = [place_in_key(F, i) for i in range(F)]
        words, ones = [constant(_INT64, 0)] * 2, [0, 0]
        for i, (word, bit) in enumerate(places):
            coordinate = b.add(b.sext(b.fptosi(lowest[i], _INT32), _INT64), constant(_INT64, bias))
            words[word] = b.add(words[word], b.shl(coordinate, constant(_INT64, bit)))
            ones[word] += 1 << bit
        found = [words]
        # Vertex r + 1 is vertex r plus 1 everywhere, but for the coordinate of rank F - r: less F.
        for r in range(F):
            words = [b.add(words[word], constant(_INT64, ones[word])) for word in range(2)]
            for i, (word, bit) in enumerate(places):
                back = b.select(
                    b.icmp_signed("==", ranks[i], constant(_INT32, F - r)), constant(_INT64, V << bit), constant(_INT64, 0)
                )
                words[word] = b.sub(words[word], back)
            found.append(words)
        return found


@intrinsic
def locate(_typing: Any, features: Any, start: Any, pitch: Any, factors_F: Any, dims: Any, weights: Any, keys: Any) -> Any:
    """The simplices of LANES pixels: weights (V, LANES) and keys (2, V, LANES) of their vertices, into flat arrays.

    Feature i of the first pixel is number `start` + i * `pitch` of the flat `features`. `dims`: a tuple of F numbers, of which
    only the length counts.
    """
    F, dtype = len(dims), features.dtype
    down = float(np.float32(1) / np.float32(F + 1)) if dtype == types.float32 else 1.0 / (F + 1)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, kinds, align = _Lanes(context, builder, dtype), signature.args, dtype.bitwidth // 8
        at, pitch_at, given, factors = arguments[1], arguments[2], [], []
        factor_data = context.make_array(kinds[3])(context, builder, arguments[3]).data
        for i in range(F):
            given.append(builder.load(lanes.address(kinds[0], arguments[0], at, lanes.kind), align=align))
            at = builder.add(at, pitch_at)
            factor = builder.load(builder.gep(factor_data, [ir.Constant(ir.IntType(64), i)]))
            factors.append(filled(builder, factor, lanes.kind))
        elevated = lanes.scaled(given, factors)
        lowest, ranks = lanes.simplex(elevated, down)
        for r, weight in enumerate(lanes.barycentric(elevated, lowest, ranks, down)):
            place = ir.Constant(ir.IntType(64), r * LANES)
            builder.store(weight, lanes.address(kinds[5], arguments[5], place, lanes.kind), align=align)
        for r, words in enumerate(lanes.keys(lowest, ranks)):
            for word in range(2):
                place = ir.Constant(ir.IntType(64), (word * (F + 1) + r) * LANES)
                builder.store(words[word], lanes.address(kinds[6], arguments[6], place, _INT64), align=8)
        return context.get_dummy_value()

    return types.void(features, types.intp, types.intp, factors_F, dims, weights, keys), generate
