"""Sixteen pixels of a row at once: the arithmetic of the CPU engine as vector instructions.

numba turns a short loop into vector instructions only after checks that cost more than the loop. These intrinsics emit
LLVM's ``<16 x float>`` directly; LLVM maps that to whatever the processor has (one AVX-512 register, two AVX, four
NEON), so there is one code for all of them.

A *scratch* array, float32 ``(4, LANES)``, carries a row from one intrinsic to the next: weights, u, v, and either the
pull of the cotangent or the change of ``ln g``. Multiply and add may contract to one instruction; nothing is reordered.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # its decorated functions take one argument fewer than they show

LANES = 16

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INT = ir.IntType(64)
_CONTRACT = ("contract",)

_LOG2_CUT = math.log2(255)
_ROOT_SPAN = 8.0  # weights are found as the eighth power of values on [1/2, 1]
# Minimax polynomial of 2^-t on [0, 1], highest power first; relative error 8e-8.
_POWERS = (-0.00093878835, 0.009188612, -0.055279724, 0.24017219, -0.69314224, 0.99999994)

_WEIGHT, _U, _V, _OTHER = range(4)


class _Emitter:
    """Short names for what the intrinsics emit."""

    def __init__(self, context: Any, builder: Any) -> None:
        self._context = context
        self._builder = builder

    def add(self, a: Any, b: Any) -> Any:
        """Return ``a + b``."""
        return self._builder.fadd(a, b, flags=_CONTRACT)

    def mul(self, a: Any, b: Any) -> Any:
        """Return ``a b``."""
        return self._builder.fmul(a, b, flags=_CONTRACT)

    def splat(self, scalar: Any) -> Any:
        """Return the scalar in every lane."""
        builder = self._builder
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), mask)

    def constant(self, value: float) -> Any:
        """Return a number in every lane."""
        return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, _as_float32(value))] * LANES)

    def ramp(self) -> Any:
        """Return 0, 1, 2 ... LANES - 1."""
        return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, float(lane)) for lane in range(LANES)])

    def pointer(self, array_type: Any, array: Any, offset: Any) -> Any:
        """Return the address of `offset` floats into an array."""
        data = self._context.make_array(array_type)(self._context, self._builder, array).data
        return self._builder.bitcast(self._builder.gep(data, [offset]), _VECTOR.as_pointer())

    def load(self, pointer: Any) -> Any:
        """Return the vector at an address."""
        return self._builder.load(pointer, align=4)

    def store(self, value: Any, pointer: Any) -> None:
        """Write a vector to an address."""
        self._builder.store(value, pointer, align=4)

    def row(self, scratch_type: Any, scratch: Any, index: int) -> Any:
        """Return the address of one row of a scratch or sums array."""
        return self.pointer(scratch_type, scratch, ir.Constant(_INT, index * LANES))

    def weight(self, exponent: Any) -> Any:
        """Return ``2^-exponent`` within the footprint, 0 outside.

        The footprint ends before `_ROOT_SPAN`, so ``2^-(exponent / 8)`` by a polynomial on [0, 1], squared three times,
        covers all there is, with no bit tricks that a compiler may undo.
        """
        builder = self._builder
        inside = builder.fcmp_ordered("<=", exponent, self.constant(_LOG2_CUT))
        limited = builder.select(inside, exponent, self.constant(0.0))
        t = self.mul(limited, self.constant(1 / _ROOT_SPAN))
        power = self.constant(_POWERS[0])
        for coefficient in _POWERS[1:]:
            power = self.add(self.mul(power, t), self.constant(coefficient))
        for _ in range(3):
            power = self.mul(power, power)
        return builder.select(inside, power, self.constant(0.0))


def _as_float32(value: float) -> float:
    """Return the nearest float32: LLVM refuses constants that are not exact in their type."""
    return float(np.float32(value))


@_intrinsic
def evaluate(typing_context, scratch, dx, dy, uy, ux, vy, vx):  # type: ignore[no-untyped-def]
    """Fill scratch with the weights, u and v of the pixels at offsets (`dy`, `dx` + lane) from a mean."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        scratch_type = signature.args[0]
        array, (dx, dy, uy, ux, vy, vx) = arguments[0], [e.splat(value) for value in arguments[1:]]
        x = e.add(dx, e.ramp())
        u = e.add(e.mul(ux, x), e.mul(uy, dy))
        v = e.add(e.mul(vx, x), e.mul(vy, dy))
        exponent = e.add(e.mul(u, u), e.mul(v, v))
        for index, value in ((_WEIGHT, e.weight(exponent)), (_U, u), (_V, v)):
            e.store(value, e.row(scratch_type, array, index))
        return context.get_dummy_value()

    return types.void(scratch, *[types.float32] * 6), emit


@_intrinsic
def add_weighted(typing_context, out, offset, scratch, color):  # type: ignore[no-untyped-def]
    """Add ``weight color`` to `out` from flat index `offset` on."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        out, offset, scratch, color = arguments
        target = e.pointer(signature.args[0], out, offset)
        weights = e.load(e.row(signature.args[2], scratch, _WEIGHT))
        e.store(e.add(e.load(target), e.mul(weights, e.splat(color))), target)
        return context.get_dummy_value()

    return types.void(out, types.int64, scratch, types.float32), emit


@_intrinsic
def add_changed(typing_context, out, offset, scratch, color, change):  # type: ignore[no-untyped-def]
    """Add ``weight (change + color c)`` to `out`, with ``c`` the change of ``ln g`` that `log_changes` left."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        out, offset, scratch, color, change = arguments
        target = e.pointer(signature.args[0], out, offset)
        weights = e.load(e.row(signature.args[2], scratch, _WEIGHT))
        changes = e.load(e.row(signature.args[2], scratch, _OTHER))
        total = e.add(e.splat(change), e.mul(e.splat(color), changes))
        e.store(e.add(e.load(target), e.mul(weights, total)), target)
        return context.get_dummy_value()

    return types.void(out, types.int64, scratch, types.float32, types.float32), emit


@_intrinsic
def log_changes(typing_context, scratch, tu, tv, tuu, tvv, tuv):  # type: ignore[no-untyped-def]
    """Leave ``tu u + tv v + tuu u^2 + tvv v^2 + tuv u v`` in scratch."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        scratch_type = signature.args[0]
        array, (tu, tv, tuu, tvv, tuv) = arguments[0], [e.splat(value) for value in arguments[1:]]
        u, v = (e.load(e.row(scratch_type, array, index)) for index in (_U, _V))
        along_u = e.add(e.add(tu, e.mul(tuu, u)), e.mul(tuv, v))
        along_v = e.add(tv, e.mul(tvv, v))
        e.store(e.add(e.mul(u, along_u), e.mul(v, along_v)), e.row(scratch_type, array, _OTHER))
        return context.get_dummy_value()

    return types.void(scratch, *[types.float32] * 5), emit


@_intrinsic
def clear_pull(typing_context, scratch):  # type: ignore[no-untyped-def]
    """Set the pull of the cotangent to 0."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        e.store(e.constant(0.0), e.row(signature.args[0], arguments[0], _OTHER))
        return context.get_dummy_value()

    return types.void(scratch), emit


@_intrinsic
def add_pull(typing_context, sums, index, cotangent, offset, scratch, color):  # type: ignore[no-untyped-def]
    """Add ``weight cotangent`` to row `index` of `sums`, and that times `color` to the pull."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        sums, index, cotangent, offset, scratch, color = arguments
        row = e.pointer(signature.args[0], sums, builder.mul(index, ir.Constant(_INT, LANES)))
        pixels = e.load(e.pointer(signature.args[2], cotangent, offset))
        weighted = e.mul(e.load(e.row(signature.args[4], scratch, _WEIGHT)), pixels)
        pull = e.row(signature.args[4], scratch, _OTHER)
        e.store(e.add(e.load(row), weighted), row)
        e.store(e.add(e.load(pull), e.mul(weighted, e.splat(color))), pull)
        return context.get_dummy_value()

    return types.void(sums, types.int64, cotangent, types.int64, scratch, types.float32), emit


@_intrinsic
def add_moments(typing_context, sums, scratch):  # type: ignore[no-untyped-def]
    """Add the pull ``t`` times ``u, v, u^2, v^2, u v`` to the first five rows of `sums`."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        sums, scratch = arguments
        u, v, pull = (e.load(e.row(signature.args[1], scratch, index)) for index in (_U, _V, _OTHER))
        pull_u, pull_v = e.mul(pull, u), e.mul(pull, v)
        factors = ((pull_u, None), (pull_v, None), (pull_u, u), (pull_v, v), (pull_u, v))
        for index, (value, factor) in enumerate(factors):
            row = e.row(signature.args[0], sums, index)
            e.store(e.add(e.load(row), value if factor is None else e.mul(value, factor)), row)
        return context.get_dummy_value()

    return types.void(sums, scratch), emit


@_intrinsic
def lane_sum(typing_context, sums, index):  # type: ignore[no-untyped-def]
    """Return the sum over row `index` of `sums`, float64, added up in pairs."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        sums, index = arguments
        values = e.load(e.pointer(signature.args[0], sums, builder.mul(index, ir.Constant(_INT, LANES))))
        values = builder.fpext(values, ir.VectorType(ir.DoubleType(), LANES))
        width = LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    values,
                    ir.Constant(values.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(start, start + width))),
                )
                for start in (0, width)
            ]
            values = builder.fadd(*halves)
        return builder.extract_element(values, ir.Constant(ir.IntType(32), 0))

    return types.float64(sums, types.int64), emit
