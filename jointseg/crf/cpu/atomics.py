"""What threads of compiled code say to each other, in numba.

Not here: how a team of them waits for each other (team.py).
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from jointseg.crf.cpu.simd import intrinsic


@intrinsic
def add_atomically(_typing: Any, counter: Any, value: Any) -> Any:
    """counter[0] += value for all threads in one order; returns what was there before. int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, arguments[1], "seq_cst")

    return types.int64(counter, types.int64), generate


@intrinsic
def read_atomically(_typing: Any, counter: Any) -> Any:
    """counter[0] as other threads left it. int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(data, "seq_cst", 8)

    return types.int64(counter), generate


@intrinsic
def pause(_typing: Any) -> Any:
    """Give this thread's processor to another that is ready."""
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), name), [])
        return context.get_dummy_value()

    return types.void(), generate
