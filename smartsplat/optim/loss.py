"""What a fit minimises: the value, and its derivative with respect to the rendered image.

Images are planes, ``(C, height, pitch)`` float32 with `LANES` columns of zeros on either side (see
`smartsplat.render.cpu.to_planes`); weights are one such plane, 0 = no data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from smartsplat.gaussians import Floats
from smartsplat.render.lanes import LANES

RADIUS = 5
"""Of the window of SSIM, px: 11 x 11, Gaussian with a standard deviation of 1.5 px."""

_TAPS = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
_KERNEL = (_TAPS / _TAPS.sum()).astype(np.float32)
_ROWS_A_TASK = 32
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)

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
        self._maps = np.zeros((3, *target.shape), np.float32)
        self._slope = np.zeros_like(target)
        self._holes = weight == 0
        self._holes[:, :LANES] = self._holes[:, -LANES:] = False

    def evaluate(self, image: Floats) -> tuple[float, Floats]:
        """Return the loss of an image, given as planes, and its derivative, which the next call overwrites.

        Sums over rows in float32, over the image in float64.
        """
        if self._holes.any():
            image = np.where(self._holes, self._target, image)
        sums = np.zeros((image.shape[1], 2))
        _similarity(image, self._target, self._weight, self._maps, sums)
        _slope(image, self._target, self._weight, self._maps, self._shares.astype(np.float32), self._slope)
        self._slope[:, self._holes] = 0
        absolute, similarity = sums.sum(axis=0)
        return float(self._shares[0] * absolute + self._shares[1] * (self._total - similarity)), self._slope


@_jit
def _down(rows, y, out):  # type: ignore[no-untyped-def]
    """Fill `out` with row `y` smoothed along y, of rows that have `RADIUS` more before and after."""
    for x in range(len(out)):
        total = np.float32(0.0)
        for k in range(2 * RADIUS + 1):
            total += _KERNEL[k] * rows[y + k, x]
        out[x] = total


@_jit
def _down_product(first, second, y, out):  # type: ignore[no-untyped-def]
    """Fill `out` with row `y` of the product, smoothed along y."""
    for x in range(len(out)):
        total = np.float32(0.0)
        for k in range(2 * RADIUS + 1):
            total += _KERNEL[k] * (first[y + k, x] * second[y + k, x])
        out[x] = total


@_jit
def _across(row, out):  # type: ignore[no-untyped-def]
    """Fill `out` with `row` smoothed along x; the spare columns stand for what lies beyond the edge."""
    # An index that may be negative, as far as the compiler sees, keeps it from using vectors: so none is below 0.
    for x in range(len(row) - 2 * RADIUS):
        total = np.float32(0.0)
        for k in range(2 * RADIUS + 1):
            total += _KERNEL[k] * row[x + k]
        out[x + RADIUS] = total


@_jit_parallel
def _similarity(image, target, weight, maps, sums):  # type: ignore[no-untyped-def]
    """Fill `sums` with each row's weighted ``|image - target|`` and SSIM.

    `maps` takes the weighted derivatives of SSIM with respect to the smoothed image, its smoothed square and its
    smoothed product with the target.
    """
    planes, height, pitch = image.shape
    for block in prange((height + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        first, last = block * _ROWS_A_TASK, min(height, (block + 1) * _ROWS_A_TASK)
        inner = slice(LANES, pitch - LANES)
        columns, smooth = np.zeros((5, pitch), np.float32), np.zeros((5, pitch), np.float32)
        a = np.zeros((last - first + 2 * RADIUS, pitch), np.float32)
        b = np.zeros_like(a)
        for plane in range(planes):
            _surround(image[plane], first, a)
            _surround(target[plane], first, b)
            for y in range(first, last):
                _down(a, y - first, columns[0])
                _down(b, y - first, columns[1])
                _down_product(a, a, y - first, columns[2])
                _down_product(b, b, y - first, columns[3])
                _down_product(a, b, y - first, columns[4])
                for k in range(5):
                    _across(columns[k], smooth[k])
                sums[y, 0] += _absolute(image[plane, y, inner], target[plane, y, inner], weight[y, inner])
                sums[y, 1] += _ssim_row(
                    smooth[0, inner],
                    smooth[1, inner],
                    smooth[2, inner],
                    smooth[3, inner],
                    smooth[4, inner],
                    weight[y, inner],
                    maps[0, plane, y, inner],
                    maps[1, plane, y, inner],
                    maps[2, plane, y, inner],
                )


@_jit
def _surround(plane, first, out):  # type: ignore[no-untyped-def]
    """Fill `out` with rows from ``first - RADIUS`` on; beyond the edge with zeros."""
    for row in range(len(out)):
        y = first - RADIUS + row
        if 0 <= y < len(plane):
            out[row] = plane[y]
        else:
            out[row] = np.float32(0.0)


@_jit
def _absolute(image, target, weight):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for x in range(len(image)):
        total += weight[x] * abs(image[x] - target[x])
    return total


@_jit
def _ssim_row(  # type: ignore[no-untyped-def]
    mean, other_mean, square, other_square, product, weight, mean_map, square_map, product_map
):
    """Return the weighted sum of SSIM over a row, and fill its weighted derivatives."""
    total = np.float32(0.0)
    one, two = np.float32(1.0), np.float32(2.0)
    for x in range(len(mean)):
        a, b = mean[x], other_mean[x]
        mean_top, mean_bottom = two * a * b + _C1, a * a + b * b + _C1
        spread_top = two * (product[x] - a * b) + _C2
        spread_bottom = square[x] - a * a + other_square[x] - b * b + _C2
        per_mean, per_spread = one / mean_bottom, one / spread_bottom
        share = weight[x] * per_mean * per_spread
        similarity = mean_top * spread_top * share
        total += similarity
        mean_map[x] = two * (b * (spread_top - mean_top) * share - a * similarity * (per_mean - per_spread))
        square_map[x] = -similarity * per_spread
        product_map[x] = two * mean_top * share
    return total


@_jit_parallel
def _slope(image, target, weight, maps, shares, slope):  # type: ignore[no-untyped-def]
    """Fill `slope` with the derivative of ``shares[0] sum w |image - target| - shares[1] sum w SSIM``."""
    planes, height, pitch = image.shape
    for block in prange((height + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        first, last = block * _ROWS_A_TASK, min(height, (block + 1) * _ROWS_A_TASK)
        inner = slice(LANES, pitch - LANES)
        column, smooth = np.zeros(pitch, np.float32), np.zeros((3, pitch), np.float32)
        around = np.zeros((3, last - first + 2 * RADIUS, pitch), np.float32)
        for plane in range(planes):
            for kind in range(3):
                _surround(maps[kind, plane], first, around[kind])
            for y in range(first, last):
                for kind in range(3):
                    _down(around[kind], y - first, column)
                    _across(column, smooth[kind])
                _combine(
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
def _combine(  # type: ignore[no-untyped-def]
    image, target, weight, mean, square, product, l1_share, ssim_share, slope
):
    zero = np.float32(0.0)
    for x in range(len(image)):
        a, b = image[x], target[x]
        pull = mean[x] + np.float32(2.0) * a * square[x] + b * product[x]
        pressed = l1_share * weight[x]
        slope[x] = (pressed if a > b else -pressed if a < b else zero) - ssim_share * pull
