"""Rows of channels as SIMD vectors in numba: a value of type `VectorType` is `width` floats in registers.

Not here: what is computed with them (passes.py). Numba alone does not vectorise such loops. A row is held as LLVM vectors of 16
and 8 numbers, not as one of 40: LLVM takes vectors that are not a power of two apart, number by number, at every branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import intrinsic as _numba_intrinsic
from numba.core.extending import register_model
from numpy.polynomial import Chebyshev, Polynomial

intrinsic: Callable[[Any], Any] = _numba_intrinsic
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


LANES = 8
"""Rows are a whole number of eights: what AVX2 holds, half of AVX-512, two of NEON."""


def row_type(C: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What tells compiled functions the length of rows, a multiple of 8: how many eights make a chunk, how many chunks a row.

    Only the tuples' lengths count. They are part of their types, so both numbers are constants in what is compiled for them. A
    chunk is what is held in registers at once: up to 64 numbers.
    """
    width = next(width for width in range(64, 0, -LANES) if C % width == 0)
    return (0,) * (width // LANES), (0,) * (C // width)


class VectorType(types.Type):
    """`width` numbers of `dtype`."""

    def __init__(self, dtype: types.Float, width: int) -> None:
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Vector({dtype}, {width})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.LiteralStructType(_parts_of(kind)))


def _parts_of(kind: VectorType) -> list[ir.VectorType]:
    element = ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType()
    sixteens, eight = divmod(kind.width, 2 * LANES)
    return [ir.VectorType(element, 2 * LANES)] * sixteens + [ir.VectorType(element, LANES)] * (eight // LANES)


def _parts(builder: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    return [builder.extract_value(value, i) for i in range(len(value.type.elements))]


def _joined(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    whole = ir.Constant(ir.LiteralStructType([part.type for part in parts]), ir.Undefined)
    for i, part in enumerate(parts):
        whole = builder.insert_value(whole, part, i)
    return whole


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """The vector with `value` in every place, known when it is compiled."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


def _addresses(
    context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, start: ir.Value, kind: VectorType
) -> list[Any]:
    """The address of each part of a row that begins at number `start` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    addresses, offset = [], 0
    for part in _parts_of(kind):
        at = builder.gep(data, [builder.add(start, ir.Constant(_INT64, offset))], inbounds=True)
        addresses.append(builder.bitcast(at, part.as_pointer()))
        offset += part.count
    return addresses


def filled(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """The vector with `value` in every place."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
    kinds = [value.type for value in arguments]
    return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name), arguments)


def call_elementwise(builder: ir.IRBuilder, name: str, arguments: list[ir.Value]) -> ir.Value:
    """LLVM's own function `name`, place by place."""
    kind = arguments[0].type
    return _call(builder, f"llvm.{name}.v{kind.count}{'f32' if kind.element == ir.FloatType() else 'f64'}", kind, arguments)


def _greater(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def load(_typing: Any, array: Any, start: Any, eights: Any) -> Any:
    """The row of a contiguous array that begins at its number `start`, as wide as `eights`, of `row_type`, say."""
    kind = VectorType(array.dtype, LANES * len(eights))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses = _addresses(context, builder, signature.args[0], arguments[0], arguments[1], kind)
        return _joined(builder, [builder.load(address, align=kind.dtype.bitwidth // 8) for address in addresses])

    return kind(array, types.intp, eights), generate


@intrinsic
def item(_typing: Any, array: Any, index: Any) -> Any:
    """Number `index` of a contiguous array, counted row by row. Numba's own indexing asks at each step if it is negative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]], inbounds=True))

    return array.dtype(array, types.intp), generate


@intrinsic
def store(_typing: Any, array: Any, start: Any, value: Any) -> Any:
    """Write a row to a contiguous array, from its number `start`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses = _addresses(context, builder, signature.args[0], arguments[0], arguments[1], value)
        for address, part in zip(addresses, _parts(builder, arguments[2]), strict=True):
            builder.store(part, address, align=value.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def prefetch(_typing: Any, array: Any, start: Any, eights: Any) -> Any:
    """Ask for the cache lines of a row that will be needed soon."""
    per_line = 64 * 8 // array.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        flags = [ir.Constant(_INT32, value) for value in (0, 3, 1)]  # to read, into all caches, data
        for offset in range(0, LANES * len(eights), per_line):
            address = builder.gep(data, [builder.add(arguments[1], ir.Constant(_INT64, offset))])
            _call(builder, "llvm.prefetch.p0", ir.VoidType(), [builder.bitcast(address, ir.IntType(8).as_pointer()), *flags])
        return context.get_dummy_value()

    return types.void(array, types.intp, eights), generate


@intrinsic
def splat(_typing: Any, value: Any, like: Any) -> Any:
    """A row of the kind of `like` with `value` in every place."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar = context.cast(builder, arguments[0], signature.args[0], like.dtype)
        return _joined(builder, [filled(builder, scalar, part) for part in _parts_of(like)])

    return like(value, like), generate


@intrinsic
def fma(_typing: Any, scalar: Any, value: Any, total: Any) -> Any:
    """The row scalar * value + total, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factor = context.cast(builder, arguments[0], signature.args[0], value.dtype)
        pairs = zip(_parts(builder, arguments[1]), _parts(builder, arguments[2]), strict=True)
        return _joined(builder, [call_elementwise(builder, "fma", [filled(builder, factor, a.type), a, b]) for a, b in pairs])

    return value(scalar, value, total), generate


_Operation = Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]


def _binary(operation: _Operation, meaning: str) -> Any:
    def typed(_typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pairs = zip(_parts(builder, arguments[0]), _parts(builder, arguments[1]), strict=True)
            return _joined(builder, [operation(builder, left, right) for left, right in pairs])

        return a(a, b), generate

    typed.__doc__ = meaning
    return intrinsic(typed)


add = _binary(lambda builder, a, b: builder.fadd(a, b), "a + b, place by place.")
subtract = _binary(lambda builder, a, b: builder.fsub(a, b), "a - b, place by place.")
multiply = _binary(lambda builder, a, b: builder.fmul(a, b), "a * b, place by place.")
maximum = _binary(_greater, "The greater of a and b, place by place.")


def _reduction(operation: _Operation, meaning: str) -> Any:
    def typed(_typing: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            # Eights first, then halves, in one fixed order: every run gives the same bits.
            eights = [
                _lanes(builder, part, first, LANES)
                for part in _parts(builder, arguments[0])
                for first in range(0, part.type.count, LANES)
            ]
            result = eights[0]
            for part in eights[1:]:
                result = operation(builder, result, part)
            for width in (4, 2, 1):
                result = operation(builder, _lanes(builder, result, 0, width), _lanes(builder, result, width, width))
            return builder.extract_element(result, ir.Constant(_INT32, 0))

        return a.dtype(a), generate

    typed.__doc__ = meaning
    return intrinsic(typed)


def _lanes(builder: ir.IRBuilder, value: ir.Value, first: int, width: int) -> ir.Value:
    return builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_INT32, width), list(range(first, first + width))))


total = _reduction(lambda builder, a, b: builder.fadd(a, b), "The sum of all places.")
largest = _reduction(_greater, "The greatest of all places.")


@intrinsic
def any_nonzero(_typing: Any, a: Any) -> Any:
    """Whether any place is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = ir.Constant(ir.IntType(1), 0)
        for part in _parts(builder, arguments[0]):
            flags = builder.fcmp_unordered("!=", part, constant(part.type, 0.0))
            packed = builder.bitcast(flags, ir.IntType(part.type.count))
            found = builder.or_(found, builder.icmp_unsigned("!=", packed, ir.Constant(packed.type, 0)))
        return found

    return types.boolean(a), generate


@intrinsic
def first_equal(_typing: Any, a: Any, value: Any) -> Any:
    """The first place that holds `value`; the row's width where none does."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        parts = _parts(builder, arguments[0])
        found, end = ir.Constant(_INT64, a.width), a.width
        for part in reversed(parts):
            end -= part.type.count
            flags = builder.fcmp_ordered("==", part, filled(builder, arguments[1], part.type))
            packed = builder.zext(builder.bitcast(flags, ir.IntType(part.type.count)), _INT64)
            at = builder.add(builder.cttz(packed, ir.Constant(ir.IntType(1), 0)), ir.Constant(_INT64, end))
            found = builder.select(builder.icmp_unsigned("!=", packed, ir.Constant(_INT64, 0)), at, found)
        return found

    return types.intp(a, a.dtype), generate


@intrinsic
def exp(_typing: Any, x: Any) -> Any:
    """e^x for x <= 0, place by place, within a few roundings; 0 below e^-64 (float32) or e^-600, NaN where x is.

    Products of what is smaller would be subnormal numbers, with which processors are many times slower.
    """
    single = x.dtype == types.float32
    lowest, mantissa, bits = (-64.0, 23, _INT32) if single else (-600.0, 52, _INT64)
    coefficients = _power_coefficients(6 if single else 11)

    def one(builder: Any, value: Any) -> Any:
        kind = value.type
        clamped = _greater(builder, value, constant(kind, lowest))
        to_base_2 = constant(kind, 1 / np.log(2.0))
        whole = call_elementwise(builder, "rint", [builder.fmul(clamped, to_base_2)])
        rest = call_elementwise(builder, "fma", [clamped, to_base_2, builder.fneg(whole)])
        power = constant(kind, coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            power = call_elementwise(builder, "fma", [power, rest, constant(kind, coefficient)])
        integers = ir.VectorType(bits, kind.count)
        shift = ir.Constant(integers, [ir.Constant(bits, mantissa)] * kind.count)
        exponent = builder.shl(builder.fptosi(whole, integers), shift)
        result = builder.bitcast(builder.add(builder.bitcast(power, integers), exponent), kind)
        result = builder.select(builder.fcmp_ordered(">", value, constant(kind, lowest)), result, constant(kind, 0.0))
        return builder.select(builder.fcmp_unordered("uno", value, value), value, result)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _joined(builder, [one(builder, part) for part in _parts(builder, arguments[0])])

    return x(x), generate


def _power_coefficients(degree: int) -> list[float]:
    """2^r on [-1/2, 1/2] as a polynomial, lowest power first: good to a rounding (6: float32, 11: float64)."""
    fit = Chebyshev.interpolate(np.exp2, degree, domain=[-0.5, 0.5])
    return [float(c) for c in fit.convert(kind=Polynomial).coef]
