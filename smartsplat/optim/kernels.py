"""Kernels (Triton) of a fit on a device: the solver's vectors, the step, and SSIM.

They say what `host` and `loss` say with numba, with the same precision: vectors in float64, images in float32. A scalar
is worked out in two halves, so that nothing waits: each program of one kernel leaves the sum over its rows, and each
program of the next adds those up, always in the same order.
"""

# Triton compiles these functions' source; as Python, their types mean little.
# pyright: basic, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import triton
import triton.language as tl

from smartsplat.optim.loss import SSIM_C1, SSIM_C2
from smartsplat.optim.machine import LEAST_AREA, LEAST_COLOR, LONGEST_MOVE, LONGEST_STRETCH

_PI = tl.constexpr(math.pi)
_LEAST_AREA = tl.constexpr(LEAST_AREA)
_LEAST_ENERGY = tl.constexpr(LEAST_COLOR**2)
_LONGEST_MOVE = tl.constexpr(LONGEST_MOVE)
_LONGEST_STRETCH = tl.constexpr(LONGEST_STRETCH)
_C1 = tl.constexpr(float(SSIM_C1))
_C2 = tl.constexpr(float(SSIM_C2))


@triton.jit
def _load(rows, i, there, k, STRIDE: tl.constexpr):
    return tl.load(rows + i * STRIDE + k, mask=there, other=0.0).to(tl.float64)


@triton.jit
def _block(rows, i, there, BANDS: tl.constexpr):
    """Return ``A`` and ``|c|^2`` of Gaussians given as rows, neither too near zero."""
    area = _load(rows, i, there, 2, 5 + BANDS) * _load(rows, i, there, 3, 5 + BANDS) * _PI
    energy = tl.zeros_like(area) + _LEAST_ENERGY
    for band in tl.static_range(BANDS):
        color = _load(rows, i, there, 5 + band, 5 + BANDS)
        energy += color * color
    return tl.maximum(area, _LEAST_AREA), energy


@triton.jit
def _sum(parts, number, WIDE: tl.constexpr):
    """Return the sum of `number` float64."""
    total = tl.zeros([WIDE], tl.float64)
    for start in range(0, number, WIDE):
        at = start + tl.arange(0, WIDE)
        total += tl.load(parts + at, mask=at < number, other=0.0)
    return tl.sum(total)


@triton.jit
def _ratio(upper, lower):
    return tl.where(lower > 0, upper / tl.where(lower > 0, lower, 1.0), 0.0)


@triton.jit
def precondition(out, norms, rest, rows, damping, count, BANDS: tl.constexpr, BLOCK: tl.constexpr):
    """See `smartsplat.optim.machine.Machine.precondition`; `norms` takes the sum of each program's `BLOCK` rows."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    area, energy = _block(rows, i, there, BANDS)
    damped = tl.zeros_like(area) + damping + 1.0
    pull = tl.zeros_like(area)
    for band in tl.static_range(BANDS):
        pull += _load(rows, i, there, 5 + band, 5 + BANDS) * _load(rest, i, there, 5 + band, 5 + BANDS)
    coupling = 0.25 / damped
    p, q = area * energy * (damped * 0.75 - coupling), area * energy * (0.25 - coupling)
    first = _load(rest, i, there, 2, 5 + BANDS) - pull * 0.5 / damped
    second = _load(rest, i, there, 3, 5 + BANDS) - pull * 0.5 / damped
    determinant = p * p - q * q
    along, across = (p * first - q * second) / determinant, (p * second - q * first) / determinant
    norm = tl.zeros_like(area)
    for k in tl.static_range(5):
        value = _load(rest, i, there, k, 5 + BANDS)
        if k == 2:
            solved = along
        elif k == 3:
            solved = across
        elif k == 4:
            solved = value / (area * energy * damped * 0.25)
        else:
            solved = value / (area * energy * damped * 0.5)
        norm += value * solved
        tl.store(out + i * (5 + BANDS) + k, solved, mask=there)
    stretch = area * 0.5 * (along + across)
    for band in tl.static_range(BANDS):
        value = _load(rest, i, there, 5 + band, 5 + BANDS)
        solved = (value - _load(rows, i, there, 5 + band, 5 + BANDS) * stretch) / (area * damped)
        norm += value * solved
        tl.store(out + i * (5 + BANDS) + 5 + band, solved, mask=there)
    tl.store(norms + tl.program_id(0), tl.sum(norm))


@triton.jit
def damp(product, curvatures, direction, rows, damping, count, BANDS: tl.constexpr, BLOCK: tl.constexpr):
    """See `smartsplat.optim.machine.Machine.damp`; `curvatures` takes the sum of each program's `BLOCK` rows."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    area, energy = _block(rows, i, there, BANDS)
    curvature = tl.zeros_like(area)
    for k in tl.static_range(5 + BANDS):
        share = area * damping
        if k < 2:
            share *= energy * 0.5
        elif k < 4:
            share *= energy * 0.75
        elif k == 4:
            share *= energy * 0.25
        along = _load(direction, i, there, k, 5 + BANDS)
        damped = _load(product, i, there, k, 5 + BANDS) + share * along
        curvature += damped * along
        tl.store(product + i * (5 + BANDS) + k, damped, mask=there)
    tl.store(curvatures + tl.program_id(0), tl.sum(curvature))


@triton.jit
def advance(
    solution, rest, direction, product, norms, curvatures, number, size, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """See `smartsplat.optim.machine.Machine.advance`, on `size` numbers; the scalars are sums of `number`."""
    length = _ratio(_sum(norms, number, WIDE), _sum(curvatures, number, WIDE))
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    tl.store(solution + at, tl.load(solution + at, mask=there) + length * tl.load(direction + at, mask=there), there)
    tl.store(rest + at, tl.load(rest + at, mask=there) - length * tl.load(product + at, mask=there), there)


@triton.jit
def turn(direction, ready, norms, previous, number, size, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """See `smartsplat.optim.machine.Machine.turn`, on `size` numbers; the scalars are sums of `number`."""
    share = _ratio(_sum(norms, number, WIDE), _sum(previous, number, WIDE))
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    tl.store(direction + at, tl.load(direction + at, mask=there) * share + tl.load(ready + at, mask=there), there)


@triton.jit
def _clipped(value, least, most):
    return tl.minimum(tl.maximum(value, least), most)


@triton.jit
def _angle(y, x):
    """Return ``atan2(y, x)``: a polynomial's guess, right to 1e-3, and two of Newton's steps, each to the third power.

    Triton's interpreter has no arc tangent.
    """
    up, across = tl.abs(y), tl.abs(x)
    wide = tl.maximum(tl.maximum(up, across), 1e-300)
    tangent = tl.minimum(up, across) / wide
    square = tangent * tangent
    guess = ((square * -0.0464964749 + 0.15931422) * square - 0.327622764) * square * tangent + tangent
    guess = tl.where(up > across, -guess + _PI * 0.5, guess)
    guess = tl.where(x < 0, -guess + _PI, guess)
    angle = tl.where(y < 0, -guess, guess)
    cos, sin = x / wide, y / wide
    length = tl.maximum(tl.sqrt(cos * cos + sin * sin), 1e-300)
    for _ in tl.static_range(2):
        angle += (sin * tl.cos(angle) - cos * tl.sin(angle)) / length
    return angle


@triton.jit
def move(out, rows, step, low, last, min_scale, max_scale, count, BANDS: tl.constexpr, BLOCK: tl.constexpr):
    """See `smartsplat.optim.machine.Machine.moved`: fill `out` with the rows a whitened step away.

    `low` and `last` are ``(count, 2)``: least and largest mean.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    y, x = _load(rows, i, there, 0, 5 + BANDS), _load(rows, i, there, 1, 5 + BANDS)
    first, second = _load(rows, i, there, 2, 5 + BANDS), _load(rows, i, there, 3, 5 + BANDS)
    angle = _load(rows, i, there, 4, 5 + BANDS)
    cos, sin = tl.cos(angle), tl.sin(angle)
    along = first * _clipped(_load(step, i, there, 0, 5 + BANDS), -_LONGEST_MOVE, _LONGEST_MOVE)
    across = second * _clipped(_load(step, i, there, 1, 5 + BANDS), -_LONGEST_MOVE, _LONGEST_MOVE)
    y, x = (y + cos * along - sin * across).to(tl.float32), (x + sin * along + cos * across).to(tl.float32)
    a = _clipped(_load(step, i, there, 2, 5 + BANDS), -_LONGEST_STRETCH, _LONGEST_STRETCH)
    b = _clipped(_load(step, i, there, 3, 5 + BANDS), -_LONGEST_STRETCH, _LONGEST_STRETCH)
    c = _clipped(_load(step, i, there, 4, 5 + BANDS), -_LONGEST_STRETCH, _LONGEST_STRETCH) * 0.5
    # exp(d) = exp(mean) (cosh(root) I + sinh(root) / root (d - mean I))
    half = (a - b) * 0.5
    root = tl.sqrt(half * half + c * c) + 1e-12
    size, grown = tl.exp((a + b) * 0.5), tl.exp(root)
    cosh, sinh = size * (grown + 1 / grown) * 0.5, size * (grown - 1 / grown) * 0.5 / root
    m00, m11, m01 = cosh + sinh * half, cosh - sinh * half, sinh * c
    # Columns of L exp(d), then the covariance.
    y0, x0 = cos * first * m00 - sin * second * m01, sin * first * m00 + cos * second * m01
    y1, x1 = cos * first * m01 - sin * second * m11, sin * first * m01 + cos * second * m11
    yy, yx, xx = y0 * y0 + y1 * y1, y0 * x0 + y1 * x1, x0 * x0 + x1 * x1
    difference = (yy - xx) * 0.5
    wide = tl.sqrt((yy + xx) * 0.5 + tl.sqrt(difference * difference + yx * yx))
    # By the determinant: a difference of nearly equal numbers would lose a needle's width.
    narrow = tl.abs(y0 * x1 - y1 * x0) / tl.maximum(wide, 1e-300)
    row = out + i * (5 + BANDS)
    tl.store(row, _clipped(y, tl.load(low + 2 * i, there), tl.load(last + 2 * i, there)), there)
    tl.store(row + 1, _clipped(x, tl.load(low + 2 * i + 1, there), tl.load(last + 2 * i + 1, there)), there)
    tl.store(row + 2, _clipped(wide.to(tl.float32), min_scale, max_scale), there)
    tl.store(row + 3, _clipped(narrow.to(tl.float32), min_scale, max_scale), there)
    tl.store(row + 4, (_angle(yx, difference) * 0.5).to(tl.float32), there)
    for band in tl.static_range(BANDS):
        color = _load(rows, i, there, 5 + band, 5 + BANDS) + _load(step, i, there, 5 + band, 5 + BANDS)
        tl.store(row + 5 + band, color.to(tl.float32), there)


@triton.jit
def smooth(out, planes, taps, height, width, plane, DOWN: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    """Fill `out` with planes smoothed along x, or along y if `DOWN`; beyond the edge they are 0.

    `taps` are the ``2 RADIUS + 1`` weights. A program does `BLOCK` pixels of one plane.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = at // width, at % width
    planes += tl.program_id(1).to(tl.int64) * plane
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(2 * RADIUS + 1):
        if DOWN:
            inside = (y + (k - RADIUS) >= 0) & (y + (k - RADIUS) < height)
            total += tl.load(taps + k) * tl.load(planes + at + (k - RADIUS) * width, mask=inside, other=0.0)
        else:
            inside = (x + (k - RADIUS) >= 0) & (x + (k - RADIUS) < width) & (y < height)
            total += tl.load(taps + k) * tl.load(planes + at + (k - RADIUS), mask=inside, other=0.0)
    tl.store(out + tl.program_id(1).to(tl.int64) * plane + at, total, mask=at < plane)


@triton.jit
def ssim_maps(maps, similarities, seen, known, weight, plane, total, BLOCK: tl.constexpr):
    """Fill `maps` with the weighted derivatives of SSIM by the smoothed values, and `similarities` with its sums.

    Parameters
    ----------
    maps, seen
        ``(3, total)``: by, and of, the smoothed image, its square, and its product with the target.
    known
        ``(2, total)``: the smoothed target, and its variance in the window.
    similarities
        One for each program.
    weight, plane, total
        One plane; pixels of a plane, and of all.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < total
    a, b = tl.load(seen + at, there, 0.0), tl.load(known + at, there, 0.0)
    mean_top, mean_bottom = a * b * 2 + _C1, a * a + b * b + _C1
    spread_top = (tl.load(seen + 2 * total + at, there, 0.0) - a * b) * 2 + _C2
    spread_bottom = tl.load(seen + total + at, there, 0.0) - a * a + tl.load(known + total + at, there, 0.0) + _C2
    per_both = 1 / (mean_bottom * spread_bottom)
    per_mean, per_spread = per_both * spread_bottom, per_both * mean_bottom
    share = tl.load(weight + at % plane, there, 0.0) * per_both
    similarity = mean_top * spread_top * share
    tl.store(similarities + tl.program_id(0), tl.sum(similarity))
    by_mean = (b * (spread_top - mean_top) * share - a * similarity * (per_mean - per_spread)) * 2
    tl.store(maps + at, by_mean, there)
    tl.store(maps + total + at, -similarity * per_spread, there)
    tl.store(maps + 2 * total + at, mean_top * share * 2, there)


@triton.jit
def mixed_slope(
    slope, differences, image, target, maps, weight, l1_share, ssim_share, plane, total, BLOCK: tl.constexpr
):
    """Fill `slope` with the derivative of the mixed loss, and `differences` with sums of ``weight |image - target|``.

    `maps` are those of `ssim_maps`, smoothed. Where there is no data the slope is 0.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < total
    a, b = tl.load(image + at, there, 0.0), tl.load(target + at, there, 0.0)
    pull = tl.load(maps + at, there, 0.0) + a * tl.load(maps + total + at, there, 0.0) * 2
    pull += b * tl.load(maps + 2 * total + at, there, 0.0)
    share = tl.load(weight + at % plane, there, 0.0)
    tl.store(differences + tl.program_id(0), tl.sum(share * tl.abs(a - b)))
    pressed = tl.where(a > b, share, tl.where(a < b, -share, 0.0)) * l1_share
    tl.store(slope + at, tl.where(share != 0, pressed - pull * ssim_share, 0.0), there)
