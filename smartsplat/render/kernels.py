"""The CUDA engine's kernels (Triton): what is done for each Gaussian, and for each pair of a Gaussian and a pixel.

`place` and `list_bins` prepare: Gaussians on the region's pixel grid, and which *bins* of pixels each one meets. `draw`
and `gather` have one program a bin. It runs through the Gaussians that meet the bin, in the order of drawing. `draw`
keeps the bin's sums in registers: a Gaussian that misses a pixel adds exactly nothing there, and products are fused
with sums as written here, not as the compiler likes, so a pixel's bits depend neither on the bins nor on the region.
`gather`, the adjoint, keeps the bin's pixels in registers and reduces over them once for each Gaussian. It writes its
sums to places of their own, which `add_parts` adds up in a fixed order: no atomics, so the bits are the same in every
run.

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

from smartsplat.render.footprint import CUTOFF

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on tensors in host memory."""

GEOMETRY_COLUMNS = 8
"""Of a Gaussian as the kernels read it: whole pixel of the mean (y, x), ``0.5 -`` its fraction, whitening matrix."""

UNIT = 1 / math.sqrt(2 * math.log(2))
"""What a standard deviation is in the kernels' coordinates, so that the weight is ``2^-(u^2 + v^2)``."""

MOST_BANDS = 8
"""Bands drawn or gathered at once; more are done group by group."""

_SLACK = tl.constexpr(1e-3)  # px: bins are found in float64, the footprint is decided in float32
_FAR = tl.constexpr(2.0**23)  # px: float32 counts as many; a mean further out belongs to a footprint that misses
_CUTOFF = tl.constexpr(CUTOFF)
_UNIT = tl.constexpr(UNIT)
_COLUMNS = tl.constexpr(GEOMETRY_COLUMNS)
_LINEAR = tl.constexpr(1 / UNIT)
_SQUARE = tl.constexpr(1 / UNIT**2)


@triton.jit
def _placed(means, means_stride, shapes, shapes_stride, offset_y, offset_x, i, there):
    """Return Gaussians `i` on the region's grid, float64: cell and fraction of the mean, cosine and sine, scales.

    Where not `there`, some Gaussian or other.
    """
    y = tl.load(means + i * means_stride, mask=there, other=0.0).to(tl.float64)
    x = tl.load(means + i * means_stride + 1, mask=there, other=0.0).to(tl.float64)
    # Split before the region's origin comes in: taking it from a mean of a zoomed grid rounds, and so differently for
    # each region.
    whole_y, whole_x = tl.floor(y), tl.floor(x)
    first = tl.load(shapes + i * shapes_stride, mask=there, other=1.0).to(tl.float64)
    second = tl.load(shapes + i * shapes_stride + 1, mask=there, other=1.0).to(tl.float64)
    rotation = tl.load(shapes + i * shapes_stride + 2, mask=there, other=0.0).to(tl.float64)
    return (
        tl.minimum(tl.maximum(whole_y + offset_y, -_FAR), _FAR),
        tl.minimum(tl.maximum(whole_x + offset_x, -_FAR), _FAR),
        y - whole_y,
        x - whole_x,
        tl.cos(rotation),
        tl.sin(rotation),
        first,
        second,
    )


@triton.jit
def place(geometry, means, means_stride, shapes, shapes_stride, offset_y, offset_x, count, OWNERS: tl.constexpr):
    """Fill `geometry` ``(count, 8)`` (see `GEOMETRY_COLUMNS`), `OWNERS` rows a program.

    Parameters
    ----------
    means, means_stride
        Rows that begin with the mean, px, of any precision.
    shapes, shapes_stride
        Rows that begin with two scales, px, and rotation, rad.
    offset_y, offset_x
        Of the means' origin from the region's, px.
    """
    i = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    there = i < count
    cell_y, cell_x, fraction_y, fraction_x, cos, sin, first, second = _placed(
        means, means_stride, shapes, shapes_stride, offset_y, offset_x, i, there
    )
    row = geometry + i * _COLUMNS
    tl.store(row, cell_y.to(tl.float32), mask=there)
    tl.store(row + 1, cell_x.to(tl.float32), mask=there)
    tl.store(row + 2, 0.5 - fraction_y.to(tl.float32), mask=there)
    tl.store(row + 3, 0.5 - fraction_x.to(tl.float32), mask=there)
    tl.store(row + 4, (cos * _UNIT / first).to(tl.float32), mask=there)
    tl.store(row + 5, (sin * _UNIT / first).to(tl.float32), mask=there)
    tl.store(row + 6, (-sin * _UNIT / second).to(tl.float32), mask=there)
    tl.store(row + 7, (cos * _UNIT / second).to(tl.float32), mask=there)


@triton.jit
def list_bins(
    keys,
    owners,
    starts,
    room,
    means,
    means_stride,
    shapes,
    shapes_stride,
    offset_y,
    offset_x,
    count,
    height,
    width,
    across,
    share,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OWNERS: tl.constexpr,
):
    """Without `keys`, count the bins that each Gaussian meets; with them, list them.

    It may name too many bins, never too few: what a Gaussian touches is decided pixel by pixel in `draw`.

    Parameters
    ----------
    keys, owners
        None, or `room` numbers each: take the bin and the Gaussian of each entry.
    starts
        ``(count + 1,)`` int32: where each Gaussian's entries start; when they are counted, entry ``i + 1`` takes how
        many Gaussian i has.
    share
        Of each footprint's radius that counts.
    """
    i = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    there = i < count
    cell_y, cell_x, fraction_y, fraction_x, cos, sin, first, second = _placed(
        means, means_stride, shapes, shapes_stride, offset_y, offset_x, i, there
    )
    mean_y, mean_x, radius = cell_y + fraction_y, cell_x + fraction_x, share * _CUTOFF
    root_yy = tl.sqrt(first * cos * (first * cos) + second * sin * (second * sin))
    root_xx = tl.sqrt(first * sin * (first * sin) + second * cos * (second * cos))
    cross = cos * sin * (first - second) * (first + second)
    # The ellipse's right edge at row y from the mean is ``slope y + half sqrt(1 - (y / extent)^2)``. It is concave with
    # its peak at row `peak`, so over some rows it is furthest at the row nearest to that; the left edge is its mirror
    # image.
    extent, beside = root_yy * radius, root_xx * radius
    slope, half, peak = cross / (root_yy * root_yy), first * second / root_yy * radius, cross / root_xx * radius
    low = tl.maximum(tl.ceil(mean_y - extent - 0.5 - _SLACK), 0.0)
    high = tl.minimum(tl.floor(mean_y + extent - 0.5 + _SLACK) + 1, height)
    met = there & (low < high) & (mean_x + beside + _SLACK >= 0.5) & (mean_x - beside - _SLACK <= width - 0.5)
    row = tl.where(met, low, 0.0).to(tl.int32) // ROWS
    rows = tl.where(met, (tl.where(met, high, 0.0).to(tl.int32) + (ROWS - 1)) // ROWS - row, 0)
    at = tl.zeros([OWNERS], tl.int32)
    if keys is not None:
        at += tl.load(starts + i, mask=there, other=0)
    for number in range(0, tl.max(rows)):
        top = ((row + number) * ROWS).to(tl.float64)
        begin = tl.maximum(tl.maximum(top, low) + 0.5 - mean_y, -extent)
        end = tl.minimum(tl.minimum(top + ROWS, high) - 0.5 - mean_y, extent)
        right_at = tl.minimum(tl.maximum(peak, begin), end)
        left_at = tl.minimum(tl.maximum(-peak, begin), end)
        right_share, left_share = right_at / extent, left_at / extent
        right = mean_x + slope * right_at + half * tl.sqrt(tl.maximum(1 - right_share * right_share, 0.0))
        left = mean_x + slope * left_at - half * tl.sqrt(tl.maximum(1 - left_share * left_share, 0.0))
        left = tl.maximum(tl.ceil(left - 0.5 - _SLACK), 0.0)
        right = tl.minimum(tl.floor(right - 0.5 + _SLACK) + 1, width)
        crossed = (number < rows) & (left < right)
        column = tl.where(crossed, left, 0.0).to(tl.int32) // COLUMNS
        last = (tl.where(crossed, right, 0.0).to(tl.int32) + (COLUMNS - 1)) // COLUMNS
        columns = tl.where(crossed, last - column, 0)
        if keys is not None:
            for beside_it in range(0, tl.max(columns)):
                slot = at + beside_it
                stored = (beside_it < columns) & (slot < room)
                tl.store(keys + slot, (row + number) * across + column + beside_it, mask=stored)
                tl.store(owners + slot, i, mask=stored)
        at += columns
    if keys is None:
        tl.store(starts + 1 + i, at, mask=there)


@triton.jit
def _weigh(gaussian, y, x, cut):
    """Return a Gaussian's weights at rows `y` and columns `x`, 0 beyond its footprint, and its ``u`` and ``v`` there.

    `gaussian` is its row of the geometry, as a tuple.
    """
    dy = (y.to(tl.float32) - gaussian[0]) + gaussian[2]
    dx = (x.to(tl.float32) - gaussian[1]) + gaussian[3]
    u = tl.fma(dy[:, None], gaussian[4], (gaussian[5] * dx)[None, :])
    v = tl.fma(dy[:, None], gaussian[6], (gaussian[7] * dx)[None, :])
    power = -(u * u) - v * v  # negated here, the sign costs no instruction; only `v * v` can be fused
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
    entries,
    room,
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
        With `target`, one for each bin: takes the (weighted) sum of squares of that difference.
    starts, items
        Where each bin's list of Gaussians starts, and the lists.
    entries, room
        How many entries the lists should have (a pointer), and for how many there was room. If they are too many, the
        image is wrong, and each loss is infinite.
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
                added = added + (tl.fma(weights, tl.load(color + band), totals[band]),)
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
        tl.store(losses + pid, tl.where(tl.load(entries) <= room, tl.sum(loss), float("inf")))


@triton.jit
def gather(
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
    """Fill rows `slots` of `parts_out` ``(E, 5 + BANDS)`` with the sums over one bin, for each Gaussian in its list.

    With ``t = g sum_c colors_c planes_c`` they are, in whitened units, the sums of ``t u, t v, t u^2, t v^2, t u v``,
    then of ``g planes_c`` for each band. `planes` is ``(BANDS, height, width)``; see `draw` for the others.
    """
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
    out,
    parts_out,
    starts,
    count,
    room,
    KINDS: tl.constexpr,
    WIDE: tl.constexpr,
    OWNERS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Fill `out` ``(count, KINDS)`` with the sums of rows ``starts[i]`` to ``starts[i + 1]`` of `parts_out`, float64.

    A program adds up `OWNERS` of them, `PARTS` rows at a time; `WIDE` is `KINDS` or the next power of 2. There are
    `room` rows.
    """
    i = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    kind = tl.arange(0, WIDE)
    part = tl.arange(0, PARTS)
    start = tl.load(starts + i, mask=i < count, other=0)
    end = tl.minimum(tl.load(starts + i + 1, mask=i < count, other=0), room)
    total = tl.zeros([OWNERS, WIDE], tl.float64)
    for offset in range(0, tl.max(end - start), PARTS):
        row = start[:, None] + offset + part[None, :]
        there = (row < end[:, None])[:, :, None] & (kind < KINDS)[None, None, :]
        values = tl.load(parts_out + row[:, :, None] * KINDS + kind[None, None, :], mask=there, other=0.0)
        total += tl.sum(values.to(tl.float64), axis=1)
    mask = (i < count)[:, None] & (kind < KINDS)[None, :]
    tl.store(out + i[:, None] * KINDS + kind[None, :], total, mask=mask)
