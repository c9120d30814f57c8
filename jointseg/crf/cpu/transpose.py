"""From (C, P), as torch has it, to rows of pixels and back, by a team of threads; compiled. Channels last is rows already.

Not here: what is done with the rows (passes.py).
"""

# C channels, P pixels

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from jointseg.crf.cpu import simd
from jointseg.crf.cpu.compiled import compiled
from jointseg.crf.cpu.simd import LANES
from jointseg.crf.cpu.team import run_team, share

_TILE = 64
"""Pixels that go together: of each channel some whole cache lines, and their rows fit the innermost cache."""


@simd.intrinsic
def _transpose_block(_typing: Any, source: Any, start: Any, pitch: Any, target: Any, to: Any, pitch_to: Any) -> Any:
    """LANES x LANES numbers of the flat `source`, rows `pitch` apart from number `start` on, become columns in `target`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.FloatType() if source.dtype == types.float32 else ir.DoubleType(), LANES)
        align = source.dtype.bitwidth // 8

        def addresses(array: int, at: ir.Value, step: ir.Value) -> list[Any]:
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            found = []
            for _ in range(LANES):
                found.append(builder.bitcast(builder.gep(data, [at]), kind.as_pointer()))
                at = builder.add(at, step)
            return found

        rows = [builder.load(address, align=align) for address in addresses(0, arguments[1], arguments[2])]
        for half in (4, 2, 1):  # swap quarters of blocks of 8, of 4, of 2
            first = [lane if not lane & half else LANES + lane - half for lane in range(LANES)]
            second = [lane + half if not lane & half else LANES + lane for lane in range(LANES)]
            for i in range(LANES):
                if not i & half:
                    pair = rows[i], rows[i + half]
                    for place, lanes in ((i, first), (i + half, second)):
                        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
                        rows[place] = builder.shuffle_vector(*pair, mask)
        for row, address in zip(rows, addresses(3, arguments[4], arguments[5]), strict=True):
            builder.store(row, address, align=align)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate


@compiled
def _into_rows(values: NDArray[Any], rows_PC: NDArray[Any], C: int, padding: float, span: tuple[int, int]) -> None:
    (P, width), rows = rows_PC.shape, rows_PC.reshape(-1)
    for left in range(span[0], span[1], _TILE):
        right = min(left + _TILE, span[1])
        whole = left + (right - left) // LANES * LANES
        for c in range(0, C // LANES * LANES, LANES):
            for p in range(left, whole, LANES):
                _transpose_block(values, c * P + p, P, rows, p * width + c, width)
            for p in range(whole, right):
                for i in range(c, c + LANES):
                    rows[p * width + i] = values[i * P + p]
        for p in range(left, right):
            for i in range(C // LANES * LANES, C):
                rows[p * width + i] = values[i * P + p]
            for i in range(C, width):
                rows[p * width + i] = padding


@compiled
def _from_rows(rows_PC: NDArray[Any], values: NDArray[Any], C: int, span: tuple[int, int]) -> None:
    (P, width), rows = rows_PC.shape, rows_PC.reshape(-1)
    for left in range(span[0], span[1], _TILE):
        right = min(left + _TILE, span[1])
        whole = left + (right - left) // LANES * LANES
        for c in range(0, C // LANES * LANES, LANES):
            for p in range(left, whole, LANES):
                _transpose_block(rows, p * width + c, width, values, c * P + p, P)
            for p in range(whole, right):
                for i in range(c, c + LANES):
                    values[i * P + p] = rows[p * width + i]
        for i in range(C // LANES * LANES, C):
            for p in range(left, right):
                values[i * P + p] = rows[p * width + i]


def into_rows(values_CP: NDArray[Any], rows_PC: NDArray[Any], padding: float, num_threads: int) -> None:
    """Write (C, P) as rows of as many channels as `rows_PC` has; those beyond C become `padding`.

    Args:
        values_CP: contiguous, or its transpose is.
        rows_PC: contiguous.
        padding: what fills the rows.
        num_threads: that share the work.
    """
    C, P = values_CP.shape
    if are_rows(values_CP):

        def copy(thread: int, _: Any) -> None:
            start, stop = share(P, thread, num_threads)
            rows_PC[start:stop, :C] = values_CP.T[start:stop]
            rows_PC[start:stop, C:] = padding

        run_team(copy, num_threads)
    else:
        values = values_CP.reshape(-1)
        run_team(lambda t, _: _into_rows(values, rows_PC, C, padding, share(P, t, num_threads)), num_threads)


def from_rows(rows_PC: NDArray[Any], values_CP: NDArray[Any], num_threads: int) -> None:
    """The way back: the first C channels into `values_CP`, which is contiguous, or its transpose is."""
    C, P = values_CP.shape
    if are_rows(values_CP):

        def copy(thread: int, _: Any) -> None:
            start, stop = share(P, thread, num_threads)
            values_CP.T[start:stop] = rows_PC[start:stop, :C]

        run_team(copy, num_threads)
    else:
        values = values_CP.reshape(-1)
        run_team(lambda t, _: _from_rows(rows_PC, values, C, share(P, t, num_threads)), num_threads)


def are_rows(values: NDArray[Any]) -> bool:
    """Whether the channels of (..., C, P) lie side by side, pixel after pixel: channels last."""
    return values.swapaxes(-1, -2).flags.c_contiguous and not values.flags.c_contiguous
