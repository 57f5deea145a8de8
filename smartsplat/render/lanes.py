"""Sixteen pixels of a row at once: the arithmetic of the CPU engine as vector instructions.

numba turns a short loop into vector instructions only after checks that cost more than the loop. These intrinsics emit
whole strips, `LANES` columns wide, as loops over LLVM's ``<16 x float>``: sums and everything that stays the same from
row to row are kept in registers. LLVM maps the vectors to whatever the processor has (one AVX-512 register, two AVX,
four NEON), so there is one code for all of them, chosen when it is compiled on the machine that runs it.

The loops over bands are unrolled: a kernel is compiled for a number of bands, which reaches it as the length of the
tuple ``bands``. Multiply and add may contract to one instruction; nothing is reordered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # its decorated functions take one argument fewer than they show

LANES = 16

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INT = ir.IntType(64)
_CONTRACT = ("contract",)

_CUT = math.log(255, 256)
# Minimax polynomial of 2^-t on [0, 1], highest power first; relative error 8e-8.
_POWERS = (-0.00093878835, 0.009188612, -0.055279724, 0.24017219, -0.69314224, 0.99999994)

MOMENTS = 5
"""Sums of a Gaussian besides those of its bands: of ``t u, t v, t u^2, t v^2, t u v``."""


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

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return ``a b + c``, in one instruction if there is one."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fmuladd.v{LANES}f32"
        return self._builder.call(cgutils.get_or_insert_function(self._builder.module, kind, name), [a, b, c])

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

    def address(self, array_type: Any, array: Any, offset: Any) -> Any:
        """Return the address of the element `offset` floats into an array."""
        data = self._context.make_array(array_type)(self._context, self._builder, array).data
        return self._builder.gep(data, [offset])

    def pixels(self, array_type: Any, array: Any, strip: Sequence[Any], *, row: Any, count: int) -> list[Any]:
        """Return where a row of a strip lies in each of `count` planes."""
        at, pitch, plane = strip
        steps = [self._builder.mul(plane, ir.Constant(_INT, band)) for band in range(count)]
        start = self._builder.add(at, self._builder.mul(row, pitch))
        return [self.address(array_type, array, self._builder.add(start, step)) for step in steps]

    def row(self, array_type: Any, array: Any, i: Any, length: int) -> list[Any]:
        """Return each element of row `i` of an array, rows of `length`, in every lane."""
        start = self._builder.mul(i, ir.Constant(_INT, length))
        return [
            self.splat(
                self._builder.load(
                    self.address(array_type, array, self._builder.add(start, ir.Constant(_INT, k))), align=4
                )
            )
            for k in range(length)
        ]

    def load(self, address: Any) -> Any:
        """Return the vector that starts at an address."""
        return self._builder.load(self._builder.bitcast(address, _VECTOR.as_pointer()), align=4)

    def store(self, value: Any, address: Any) -> None:
        """Write a vector from an address on."""
        self._builder.store(value, self._builder.bitcast(address, _VECTOR.as_pointer()), align=4)

    def weight(self, exponent: Any) -> Any:
        """Return ``256^-exponent`` within the footprint, 0 outside.

        The footprint ends before an exponent of 1, so ``2^-exponent`` by a polynomial on [0, 1], squared three times,
        covers all there is, with no bit tricks that a compiler may undo.
        """
        power = self.constant(_POWERS[0])
        for coefficient in _POWERS[1:]:
            power = self.fma(power, exponent, self.constant(coefficient))
        for _ in range(3):
            power = self.mul(power, power)
        inside = self._builder.fcmp_ordered("<=", exponent, self.constant(_CUT))
        return self._builder.select(inside, power, self.constant(0.0))

    def rows(self, strip: Sequence[Any], whitening: Any, body: Any) -> None:
        """Emit the loop over a strip's rows: ``body(row, weights, u, v)``, with what stays the same taken out of it."""
        count, first, fraction, dx = strip
        uy, ux, vy, vx = whitening
        builder = self._builder
        x = self.add(self.splat(dx), self.ramp())
        across_u, across_v, fraction = self.mul(ux, x), self.mul(vx, x), self.splat(fraction)
        # Whole rows are counted in every lane, exactly, so that an offset does not depend on where the loop began.
        whole = cgutils.alloca_once_value(builder, self.splat(builder.sitofp(first, _FLOAT)))
        with cgutils.for_range(builder, count) as loop:
            dy = self.add(builder.load(whole), fraction)
            u, v = self.fma(uy, dy, across_u), self.fma(vy, dy, across_v)
            body(loop.index, self.weight(self.fma(u, u, self.mul(v, v))), u, v)
            builder.store(self.add(builder.load(whole), self.constant(1.0)), whole)

    def lane_sum(self, values: Any) -> Any:
        """Return the sum over the lanes, float64, added up in pairs."""
        builder = self._builder
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


def _as_float32(value: float) -> float:
    """Return the nearest float32: LLVM refuses constants that are not exact in their type."""
    return float(np.float32(value))


@_intrinsic
def draw_strip(  # type: ignore[no-untyped-def]
    typing_context, bands, out, at, pitch, plane, rows, first, fraction, dx, i, whitening, colors, tangents
):
    """Add one Gaussian's strip to the planes `out`.

    Parameters
    ----------
    bands
        Tuple as long as there are planes.
    out, at, pitch, plane
        Planes, the flat index of the strip's first pixel, and the steps from row to row and from plane to plane.
    rows
        How many.
    first, fraction, dx
        Offsets from the mean: ``first + row + fraction`` along y, ``dx + lane`` along x.
    i, whitening, colors, tangents
        Row of the Gaussian and the arrays it is in; with `tangents` (not None) the directional derivative is added.
    """

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e, kinds = _Emitter(context, builder), signature.args
        _, out, at, pitch, plane, rows, first, fraction, dx, i, whitening, colors, tangents = arguments
        count = len(kinds[0])
        color = e.row(kinds[11], colors, i, count)
        change = None if kinds[12] is types.none else e.row(kinds[12], tangents, i, MOMENTS + count)

        def add_row(row, weights, u, v):  # type: ignore[no-untyped-def]
            log_change = None
            if change is not None:  # of ln g
                tu, tv, tuu, tvv, tuv = change[:MOMENTS]
                along_u = e.fma(tuv, v, e.fma(tuu, u, tu))
                log_change = e.fma(u, along_u, e.mul(v, e.fma(tvv, v, tv)))
            heights = color
            if change is not None:
                heights = [e.fma(color[band], log_change, change[MOMENTS + band]) for band in range(count)]
            steps = [
                builder.add(builder.mul(row, pitch), builder.mul(plane, ir.Constant(_INT, b))) for b in range(count)
            ]
            targets = [e.address(kinds[1], out, builder.add(at, step)) for step in steps]
            # All loads before all stores: planes are often a multiple of 4 KiB apart, and then a processor takes a
            # load from one for dependent on a store to another just before it.
            before = [e.load(target) for target in targets]
            for target, value, height in zip(targets, before, heights, strict=True):
                e.store(e.fma(weights, height, value), target)

        e.rows((rows, first, fraction, dx), e.row(kinds[10], whitening, i, 4), add_row)
        return context.get_dummy_value()

    indices = [types.int64] * 5
    return types.void(
        bands, out, *indices[:4], types.int64, types.float32, types.float32, types.int64, whitening, colors, tangents
    ), emit


@_intrinsic
def gather_strip(
    typing_context, bands, sums, cotangent, at, pitch, plane, rows, first, fraction, dx, i, whitening, colors
):  # type: ignore[no-untyped-def]
    """Add to `sums` ``(5 + C, LANES)``, lane by lane, what one Gaussian's strip of the cotangent gives.

    With ``t = g sum_c colors_c cotangent_c``: ``t u, t v, t u^2, t v^2, t u v``, then ``g cotangent_c`` for each band.
    The other parameters are those of `draw_strip`.
    """

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e, kinds = _Emitter(context, builder), signature.args
        _, sums, cotangent, at, pitch, plane, rows, first, fraction, dx, i, whitening, colors = arguments
        count = len(kinds[0])
        color = e.row(kinds[12], colors, i, count)
        places = [e.address(kinds[1], sums, ir.Constant(_INT, k * LANES)) for k in range(MOMENTS + count)]
        totals = [cgutils.alloca_once(builder, _VECTOR) for _ in places]  # become registers
        for total, place in zip(totals, places, strict=True):
            builder.store(e.load(place), total)

        def add(k, value, factor=None):  # type: ignore[no-untyped-def]
            total = builder.load(totals[k])
            builder.store(e.add(total, value) if factor is None else e.fma(value, factor, total), totals[k])

        def add_row(row, weights, u, v):  # type: ignore[no-untyped-def]
            pull = None
            for band, place in enumerate(e.pixels(kinds[2], cotangent, (at, pitch, plane), row=row, count=count)):
                pixels = e.load(place)
                add(MOMENTS + band, weights, pixels)
                pull = e.mul(color[band], pixels) if pull is None else e.fma(color[band], pixels, pull)
            pull = e.mul(weights, pull)
            pull_u, pull_v = e.mul(pull, u), e.mul(pull, v)
            for k, (value, factor) in enumerate(
                ((pull_u, None), (pull_v, None), (pull_u, u), (pull_v, v), (pull_u, v))
            ):
                add(k, value, factor)

        e.rows((rows, first, fraction, dx), e.row(kinds[11], whitening, i, 4), add_row)
        for total, place in zip(totals, places, strict=True):
            e.store(builder.load(total), place)
        return context.get_dummy_value()

    return types.void(
        bands,
        sums,
        cotangent,
        *[types.int64] * 5,
        types.float32,
        types.float32,
        types.int64,
        whitening,
        colors,
    ), emit


@_intrinsic
def filter_columns(typing_context, window, rows, at, pitch, count, taps):  # type: ignore[no-untyped-def]
    """Replace a strip, row by row, with sums of what is below: ``rows[y] = sum_k taps_k rows[y + k]``.

    Parameters
    ----------
    window
        Tuple as long as there are taps, more than one.
    rows, at, pitch
        The array, the flat index of the strip's first pixel, and the step from row to row.
    count
        How many rows to replace; as many more as there are taps but one are read.
    taps
        The weights.
    """

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e, kinds = _Emitter(context, builder), signature.args
        _, rows, at, pitch, count, taps = arguments
        weights = e.row(kinds[5], taps, ir.Constant(_INT, 0), len(kinds[0]))
        # Rows that were read stay in registers until they have left the window.
        seen = [cgutils.alloca_once(builder, _VECTOR) for _ in weights[1:]]
        next_row = at
        for slot in seen:
            builder.store(e.load(e.address(kinds[1], rows, next_row)), slot)
            next_row = builder.add(next_row, pitch)
        with cgutils.for_range(builder, count) as loop:
            here = builder.mul(loop.index, pitch)
            values = [builder.load(slot) for slot in seen]
            values.append(e.load(e.address(kinds[1], rows, builder.add(next_row, here))))
            total = e.constant(0.0)
            for weight, value in zip(weights, values, strict=True):
                total = e.fma(weight, value, total)
            e.store(total, e.address(kinds[1], rows, builder.add(at, here)))
            for slot, value in zip(seen, values[1:], strict=True):
                builder.store(value, slot)
        return context.get_dummy_value()

    return types.void(window, rows, types.int64, types.int64, types.int64, taps), emit


@_intrinsic
def filter_row(typing_context, window, out, to, row, at, length, taps):  # type: ignore[no-untyped-def]
    """Fill a row with sums of what is beside: ``out[to + x] = sum_k taps_k row[at + x + k]``.

    Parameters
    ----------
    window, taps
        See `filter_columns`.
    out, to, row, at
        Arrays, and the flat indices to begin at.
    length
        A multiple of `LANES`.
    """

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e, kinds = _Emitter(context, builder), signature.args
        _, out, to, row, at, length, taps = arguments
        weights = e.row(kinds[6], taps, ir.Constant(_INT, 0), len(kinds[0]))
        with cgutils.for_range(builder, builder.udiv(length, ir.Constant(_INT, LANES))) as loop:
            x = builder.mul(loop.index, ir.Constant(_INT, LANES))
            place = e.address(kinds[3], row, builder.add(at, x))
            total = e.constant(0.0)
            for k, weight in enumerate(weights):
                total = e.fma(weight, e.load(builder.gep(place, [ir.Constant(_INT, k)])), total)
            e.store(total, e.address(kinds[1], out, builder.add(to, x)))
        return context.get_dummy_value()

    return types.void(window, out, types.int64, row, types.int64, types.int64, taps), emit


@_intrinsic
def take_sum(typing_context, sums, index):  # type: ignore[no-untyped-def]
    """Return the sum over row `index` of `sums`, float64, added up in pairs, and set that row to zero."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        e = _Emitter(context, builder)
        sums, index = arguments
        place = e.address(signature.args[0], sums, builder.mul(index, ir.Constant(_INT, LANES)))
        total = e.lane_sum(e.load(place))
        e.store(e.constant(0.0), place)
        return total

    return types.float64(sums, types.int64), emit
