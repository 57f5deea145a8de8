"""What a fit minimises: the value, and its derivative with respect to the rendered image.

Images are planes, ``(C, height, pitch)`` float32 with `LANES` columns of zeros on either side (see
`smartsplat.render.cpu.to_planes`); weights are one such plane, 0 = no data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from smartsplat.gaussians import Floats
from smartsplat.render.lanes import LANES, filter_columns, filter_row

RADIUS = 5
"""Of the window of SSIM, px: 11 x 11, Gaussian with a standard deviation of 1.5 px."""

_TAPS = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
SSIM_TAPS = (_TAPS / _TAPS.sum()).astype(np.float32)
"""Of the window along one axis."""

SSIM_C1, SSIM_C2 = np.float32(0.01**2), np.float32(0.03**2)
"""What keeps means and variances near 0 from mattering."""

_WINDOW = (0,) * len(SSIM_TAPS)  # its length is what counts
_ROWS_A_TASK = 64

# Sums over the pixels of a row may be taken in any order, as long as it is always the same.
_jit: Any = njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
_jit_parallel: Any = njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy", parallel=True)


class MixedLoss:
    """``(1 - b) L1 + b (1 - SSIM)`` against one target, both weighted means over pixels and bands.

    Parameters
    ----------
    target
        Planes, for pixels in the unit range.
    weight
        One plane, not all zero.
    ssim_share
        ``b``.

    Notes
    -----
    Windows that reach over the edge see zeros there, in both images. Where there is no data the image is taken to be
    the target.

    References
    ----------
    SmartSplat, arXiv:2512.20377 (``b = 0.1``); Wang et al., Image quality assessment, 2004.
    """

    def __init__(self, target: Floats, weight: Floats, ssim_share: float) -> None:
        self._target = target
        self._weight = weight
        total = float(weight.sum(dtype=np.float64)) * len(target)
        self._total = total
        self._shares = np.array([(1 - ssim_share) / total, ssim_share / total])
        self._statistics = np.zeros((2, *target.shape), np.float32)
        _describe(target, self._statistics)
        self._slope = np.zeros_like(target)
        self._holes = weight == 0
        self._holes[:, :LANES] = self._holes[:, -LANES:] = False

    def evaluate(self, image: Floats) -> tuple[float, Floats]:
        """Return the loss of an image, given as planes, and its derivative, which the next call overwrites.

        Sums over rows in float32, over the image in float64.
        """
        if self._holes.any():
            image = np.where(self._holes, self._target, image)
        sums = np.zeros((len(image), image.shape[1], 2))
        shares = self._shares.astype(np.float32)
        _evaluate(image, self._target, self._weight, self._statistics, shares, self._slope, sums)
        self._slope[:, self._holes] = 0
        absolute, similarity = sums.sum(axis=(0, 1))
        return float(self._shares[0] * absolute + self._shares[1] * (self._total - similarity)), self._slope


@_jit
def _whole_strips(pitch):  # type: ignore[no-untyped-def]
    """Return the least pitch from `pitch` on that is a multiple of `LANES`."""
    return (pitch + LANES - 1) // LANES * LANES


@_jit
def _down(rows):  # type: ignore[no-untyped-def]
    """Smooth along y in place; the last ``2 RADIUS`` rows are only read."""
    count, pitch = rows.shape
    for x in range(0, pitch, LANES):
        filter_columns(_WINDOW, rows, x, pitch, count - 2 * RADIUS, SSIM_TAPS)


@_jit
def _across(row, out):  # type: ignore[no-untyped-def]
    """Fill the inner pixels of `out` with `row` smoothed along x; the spare columns are what lies beyond the edge."""
    filter_row(_WINDOW, out, LANES, row, LANES - RADIUS, len(row) - 2 * LANES, SSIM_TAPS)


@_jit
def _multiply(first, second, out):  # type: ignore[no-untyped-def]
    for y in range(len(out)):
        for x in range(out.shape[1]):
            out[y, x] = first[y, x] * second[y, x]


@_jit
def _surround(plane, first, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the rows from `first` on; beyond the edge with zeros."""
    for row in range(len(out)):
        y = first + row
        if 0 <= y < len(plane):
            out[row, : plane.shape[1]] = plane[y]
        else:
            out[row] = np.float32(0.0)


@_jit_parallel
def _describe(target, statistics):  # type: ignore[no-untyped-def]
    """Fill `statistics` with the smoothed target and its variance in the window, which stay as they are."""
    planes, height, pitch = target.shape
    for plane in prange(planes):
        wide = _whole_strips(pitch)
        rows = np.zeros((2, height + 2 * RADIUS, wide), np.float32)
        smooth = np.zeros((2, wide), np.float32)
        _surround(target[plane], -RADIUS, rows[0])
        _multiply(rows[0], rows[0], rows[1])
        for kind in range(2):
            _down(rows[kind])
        for y in range(height):
            for kind in range(2):
                _across(rows[kind, y], smooth[kind])
            for x in range(LANES, pitch - LANES):
                statistics[0, plane, y, x] = smooth[0, x]
                statistics[1, plane, y, x] = smooth[1, x] - smooth[0, x] * smooth[0, x]


@_jit_parallel
def _evaluate(image, target, weight, statistics, shares, slope, sums):  # type: ignore[no-untyped-def]
    """Fill `sums` with each row's weighted ``|image - target|`` and SSIM, and `slope` with the loss's derivative.

    The loss is ``shares[0] sum w |image - target| - shares[1] sum w SSIM``. Rows are done in blocks, so that what is
    between the two smoothings stays in cache; where blocks meet it is worked out twice.
    """
    planes, height, pitch = image.shape
    blocks = (height + _ROWS_A_TASK - 1) // _ROWS_A_TASK
    for task in prange(planes * blocks):
        plane, first = task // blocks, task % blocks * _ROWS_A_TASK
        last = min(height, first + _ROWS_A_TASK)
        inner = slice(LANES, pitch - LANES)
        wide = _whole_strips(pitch)
        smooth = np.zeros((3, wide), np.float32)
        # The image, its square and its product with the target; then the derivatives of SSIM by their smoothed values.
        seen = np.zeros((3, last - first + 4 * RADIUS, wide), np.float32)
        maps = np.zeros((3, last - first + 2 * RADIUS, wide), np.float32)
        _surround(target[plane], first - 2 * RADIUS, seen[1])
        _surround(image[plane], first - 2 * RADIUS, seen[0])
        _multiply(seen[0], seen[1], seen[2])
        _multiply(seen[0], seen[0], seen[1])
        for kind in range(3):
            _down(seen[kind])
        for y in range(max(0, first - RADIUS), min(height, last + RADIUS)):
            row = y - (first - RADIUS)
            for kind in range(3):
                _across(seen[kind, row], smooth[kind])
            similarity = _ssim_row(
                smooth[0, inner],
                smooth[1, inner],
                smooth[2, inner],
                statistics[0, plane, y, inner],
                statistics[1, plane, y, inner],
                weight[y, inner],
                maps[0, row, inner],
                maps[1, row, inner],
                maps[2, row, inner],
            )
            if first <= y < last:
                sums[plane, y, 1] = similarity
        for kind in range(3):
            _down(maps[kind])
        for y in range(first, last):
            for kind in range(3):
                _across(maps[kind, y - first], smooth[kind])
            sums[plane, y, 0] = _combine(
                image[plane, y, inner],
                target[plane, y, inner],
                weight[y, inner],
                smooth[0, inner],
                smooth[1, inner],
                smooth[2, inner],
                shares[0],
                shares[1],
                slope[plane, y, inner],
            )


@_jit
def _ssim_row(  # type: ignore[no-untyped-def]
    mean, square, product, other_mean, other_variance, weight, mean_map, square_map, product_map
):
    """Return the weighted sum of SSIM over a row, and fill its weighted derivatives."""
    total = np.float32(0.0)
    one, two = np.float32(1.0), np.float32(2.0)
    for x in range(len(mean)):
        a, b = mean[x], other_mean[x]
        mean_top, mean_bottom = two * a * b + SSIM_C1, a * a + b * b + SSIM_C1
        spread_top = two * (product[x] - a * b) + SSIM_C2
        spread_bottom = square[x] - a * a + other_variance[x] + SSIM_C2
        per_both = one / (mean_bottom * spread_bottom)
        per_mean, per_spread = per_both * spread_bottom, per_both * mean_bottom
        share = weight[x] * per_both
        similarity = mean_top * spread_top * share
        total += similarity
        mean_map[x] = two * (b * (spread_top - mean_top) * share - a * similarity * (per_mean - per_spread))
        square_map[x] = -similarity * per_spread
        product_map[x] = two * mean_top * share
    return total


@_jit
def _combine(  # type: ignore[no-untyped-def]
    image, target, weight, mean, square, product, l1_share, ssim_share, slope
):
    """Fill a row of the derivative; return its weighted ``|image - target|``."""
    total, zero = np.float32(0.0), np.float32(0.0)
    for x in range(len(image)):
        a, b = image[x], target[x]
        pull = mean[x] + np.float32(2.0) * a * square[x] + b * product[x]
        total += weight[x] * abs(a - b)
        pressed = l1_share * weight[x]
        slope[x] = (pressed if a > b else -pressed if a < b else zero) - ssim_share * pull
    return total
