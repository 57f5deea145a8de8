"""The CUDA engine's kernels (Triton): what is done for each pair of a Gaussian and a pixel.

`draw` has one program a *bin* of pixels: it runs through the Gaussians that meet the bin, in the order of drawing, and
keeps the bin's sums in registers. A Gaussian that misses a pixel adds exactly nothing there, so a pixel's bits depend
neither on the bins nor on the region.

The adjoint is there twice. `gather_strips` has one program a piece of a footprint, cut into strips of a few rows, and
reads the pixels; `gather_bins` has one program a bin, keeps the pixels in registers and reduces over them once for each
Gaussian. Both write their sums to places of their own, which `add_parts` adds up in a fixed order: no atomics, so the
bits are the same in every run.

Offsets from a mean are whole pixels, exact in float32, plus a fraction, and are whitened by the Gaussian's axes, not by
its conic, which would cancel for needles. In the kernels' units the weight is ``2^-(u^2 + v^2)``.

With ``TRITON_INTERPRET=1`` in the environment before Triton is loaded, the same code runs on tensors in host memory.
"""

# Triton compiles these functions' source; as Python, their types mean little.
# pyright: basic, reportGeneralTypeIssues=false

from __future__ import annotations

import math
import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on tensors in host memory."""

GEOMETRY_COLUMNS = 8
"""Of a Gaussian as the kernels read it: whole pixel of the mean (y, x), ``0.5 -`` its fraction, whitening matrix."""

UNIT = 1 / math.sqrt(2 * math.log(2))
"""What a standard deviation is in the kernels' coordinates, so that the weight is ``2^-(u^2 + v^2)``."""

MOST_BANDS = 8
"""Bands drawn or gathered at once; more are done group by group."""

_COLUMNS = tl.constexpr(GEOMETRY_COLUMNS)
_LINEAR = tl.constexpr(1 / UNIT)
_SQUARE = tl.constexpr(1 / UNIT**2)


@triton.jit
def _weigh(gaussian, y, x, cut):
    """Return a Gaussian's weights at rows `y` and columns `x`, 0 beyond its footprint, and its ``u`` and ``v`` there.

    `gaussian` is its row of the geometry, as a tuple.
    """
    dy = (y.to(tl.float32) - gaussian[0]) + gaussian[2]
    dx = (x.to(tl.float32) - gaussian[1]) + gaussian[3]
    u = (gaussian[4] * dy)[:, None] + (gaussian[5] * dx)[None, :]
    v = (gaussian[6] * dy)[:, None] + (gaussian[7] * dx)[None, :]
    power = -(u * u) - v * v  # negated here, the sign costs no instruction
    return tl.where(power >= -cut, tl.exp2(power), 0.0), u, v


@triton.jit
def _log_change(step, u, v):
    """Return the change of ``ln g`` for a whitened `step`."""
    along_u = tl.load(step) * _LINEAR + u * (tl.load(step + 2) * _SQUARE) + v * (tl.load(step + 4) * _SQUARE)
    along_v = tl.load(step + 1) * _LINEAR + v * (tl.load(step + 3) * _SQUARE)
    return u * along_u + v * along_v


@triton.jit
def draw(
    out,
    losses,
    starts,
    items,
    geometry,
    colors,
    steps,
    target,
    weight,
    height,
    width,
    plane,
    across,
    stride,
    first,
    cut,
    BANDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Fill one bin of the planes `out` with the image, or with its change along `steps`.

    Parameters
    ----------
    out, target
        Planes ``(BANDS, height, width)``; with `target` (not None), the difference to it is written.
    losses
        One for each bin: takes the (weighted) sum of squares of that difference.
    starts, items
        Where each bin's list of Gaussians starts, and the lists.
    geometry, colors, steps
        ``(N, 8)``, ``(N, stride)`` and ``(N, 5 + stride)``; bands are read from `first` on.
    weight
        ``(height, width)`` or None: what is written is multiplied by it.
    plane, across
        Pixels of a plane; bins beside each other.
    cut
        Squared radius of a footprint.
    """
    pid = tl.program_id(0)
    y = pid // across * ROWS + tl.arange(0, ROWS)
    x = pid % across * COLUMNS + tl.arange(0, COLUMNS)
    totals = (tl.zeros([ROWS, COLUMNS], tl.float32),) * BANDS
    for j in range(tl.load(starts + pid), tl.load(starts + pid + 1)):
        i = tl.load(items + j)
        gaussian = ()
        for k in tl.static_range(_COLUMNS):
            gaussian = gaussian + (tl.load(geometry + i * _COLUMNS + k),)
        weights, u, v = _weigh(gaussian, y, x, cut)
        color = colors + i * stride + first
        added = ()
        if steps is not None:
            step = steps + i * (5 + stride)
            log_change = weights * _log_change(step, u, v)
            for band in tl.static_range(BANDS):
                change = tl.load(color + band) * log_change + weights * tl.load(step + 5 + first + band)
                added = added + (totals[band] + change,)
        else:
            for band in tl.static_range(BANDS):
                added = added + (totals[band] + weights * tl.load(color + band),)
        totals = added
    inside = (y < height)[:, None] & (x < width)[None, :]
    at = y[:, None] * width + x[None, :]
    loss = tl.zeros([ROWS, COLUMNS], tl.float32)
    share = 1.0
    if weight is not None:
        share = tl.load(weight + at, mask=inside, other=0.0)
    for band in tl.static_range(BANDS):
        if target is not None:
            residual = totals[band] - tl.load(target + at, mask=inside, other=0.0)
            target += plane
            written = share * residual
            loss += tl.where(inside, written * residual, 0.0)
        else:
            written = share * totals[band]
        tl.store(out + at, written, mask=inside)
        out += plane
    if target is not None:
        tl.store(losses + pid, tl.sum(loss))


@triton.jit
def gather_strips(
    parts_out,
    order,
    parts,
    strips,
    geometry,
    colors,
    planes,
    height,
    width,
    plane,
    stride,
    first,
    cut,
    BANDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Fill a row of `parts_out` ``(P, 5 + BANDS)`` with the sums over one part of a footprint.

    With ``t = g sum_c colors_c planes_c`` they are, in whitened units, the sums of ``t u, t v, t u^2, t v^2, t u v``,
    then of ``g planes_c`` for each band.

    Parameters
    ----------
    order
        Which part each program does: near ones one after the other, so that the cache holds their pixels.
    parts
        ``(P, 3)`` int32: the Gaussian, its first strip and the one after its last.
    strips
        ``(S, 3)`` int32: first row, and the half-open range of columns that the ellipse crosses within `ROWS` rows.
    planes
        ``(BANDS, height, width)``.
    """
    part = tl.load(order + tl.program_id(0))
    i = tl.load(parts + part * 3)
    gaussian = ()
    for k in tl.static_range(_COLUMNS):
        gaussian = gaussian + (tl.load(geometry + i * _COLUMNS + k),)
    color = ()
    for band in tl.static_range(BANDS):
        color = color + (tl.load(colors + i * stride + first + band),)
    sums = (tl.zeros([ROWS, COLUMNS], tl.float32),) * (5 + BANDS)
    for strip in range(tl.load(parts + part * 3 + 1), tl.load(parts + part * 3 + 2)):
        y = tl.load(strips + strip * 3) + tl.arange(0, ROWS)
        end = tl.load(strips + strip * 3 + 2)
        for left in range(tl.load(strips + strip * 3 + 1), end, COLUMNS):
            x = left + tl.arange(0, COLUMNS)
            inside = (y < height)[:, None] & (x < end)[None, :]
            weights, u, v = _weigh(gaussian, y, x, cut)
            at = planes + y[:, None] * width + x[None, :]
            pull = tl.zeros([ROWS, COLUMNS], tl.float32)
            seen = ()
            for band in tl.static_range(BANDS):
                pixels = tl.load(at, mask=inside, other=0.0)
                at += plane
                pull += color[band] * pixels
                seen = seen + (sums[5 + band] + weights * pixels,)
            pull *= weights
            pull_u = pull * u
            pull_v = pull * v
            sums = (
                sums[0] + pull_u,
                sums[1] + pull_v,
                sums[2] + pull_u * u,
                sums[3] + pull_v * v,
                sums[4] + pull_u * v,
            ) + seen
    _store_sums(parts_out + part * (5 + BANDS), sums, BANDS)


@triton.jit
def gather_bins(
    parts_out,
    starts,
    items,
    slots,
    geometry,
    colors,
    planes,
    height,
    width,
    plane,
    across,
    stride,
    first,
    cut,
    BANDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Fill rows `slots` of `parts_out` with the sums of `gather_strips` over one bin, for each Gaussian in its list."""
    pid = tl.program_id(0)
    y = pid // across * ROWS + tl.arange(0, ROWS)
    x = pid % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (y < height)[:, None] & (x < width)[None, :]
    at = planes + y[:, None] * width + x[None, :]
    pixels = ()
    for _ in tl.static_range(BANDS):
        pixels = pixels + (tl.load(at, mask=inside, other=0.0),)
        at += plane
    for j in range(tl.load(starts + pid), tl.load(starts + pid + 1)):
        i = tl.load(items + j)
        gaussian = ()
        for k in tl.static_range(_COLUMNS):
            gaussian = gaussian + (tl.load(geometry + i * _COLUMNS + k),)
        weights, u, v = _weigh(gaussian, y, x, cut)
        color = colors + i * stride + first
        pull = tl.zeros([ROWS, COLUMNS], tl.float32)
        seen = ()
        for band in tl.static_range(BANDS):
            pull += tl.load(color + band) * pixels[band]
            seen = seen + (weights * pixels[band],)
        pull *= weights
        pull_u = pull * u
        pull_v = pull * v
        sums = (pull_u, pull_v, pull_u * u, pull_v * v, pull_u * v) + seen
        _store_sums(parts_out + tl.load(slots + j) * (5 + BANDS), sums, BANDS)


@triton.jit
def _store_sums(row, sums, BANDS: tl.constexpr):
    for kind in tl.static_range(5 + BANDS):
        total = tl.sum(sums[kind])
        if kind < 2:
            total *= _LINEAR
        elif kind < 5:
            total *= _SQUARE
        tl.store(row + kind, total)


@triton.jit
def add_parts(
    out, parts_out, starts, count, KINDS: tl.constexpr, WIDE: tl.constexpr, OWNERS: tl.constexpr, PARTS: tl.constexpr
):
    """Fill `out` ``(count, KINDS)`` with the sums of rows ``starts[i]`` to ``starts[i + 1]`` of `parts_out`.

    A program adds up `OWNERS` of them, `PARTS` rows at a time; `WIDE` is `KINDS` or the next power of 2.
    """
    i = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    kind = tl.arange(0, WIDE)
    part = tl.arange(0, PARTS)
    start = tl.load(starts + i, mask=i < count, other=0)
    end = tl.load(starts + i + 1, mask=i < count, other=0)
    total = tl.zeros([OWNERS, WIDE], tl.float32)
    for offset in range(0, tl.max(end - start), PARTS):
        row = start[:, None] + offset + part[None, :]
        there = (row < end[:, None])[:, :, None] & (kind < KINDS)[None, None, :]
        values = tl.load(parts_out + row[:, :, None] * KINDS + kind[None, None, :], mask=there, other=0.0)
        total += tl.sum(values, axis=1)
    mask = (i < count)[:, None] & (kind < KINDS)[None, :]
    tl.store(out + i[:, None] * KINDS + kind[None, :], total, mask=mask)
