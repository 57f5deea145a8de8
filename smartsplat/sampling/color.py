"""The first color of a Gaussian: a median of the pixels it will stand for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from smartsplat.gaussians import Floats
from smartsplat.geometry import Region

GRID = 9
"""Positions looked at along each axis of a Gaussian's disc."""

_HALF = GRID // 2
_POSITIONS = GRID * GRID
_SHARE_UNITS = 2.0**30

_jit: Any = njit(cache=True, error_model="numpy")
_jit_parallel: Any = njit(cache=True, error_model="numpy", parallel=True)


def median_colors(
    pixels: Floats,
    *,
    weight: Floats | None,
    core: Region,
    padded: Region,
    means: Floats,
    scales: NDArray[np.floating],
) -> Floats:
    """Return the weighted median of each band within a scale of each mean, weights ``exp(-d^2 / (2 s^2))``.

    The disc of radius ``s`` is looked at in those of 9 x 9 positions over ``[-s, s]^2`` that lie in it. Each takes the
    pixel it falls in, the nearest one if that is outside `padded`; those without data are left out. The median is the
    lowest value at which at least half of the weight is reached; 0 if there is no data at all.

    Parameters
    ----------
    pixels
        ``(h, w, C)``, covering `padded`, in the unit range.
    weight
        ``(h, w)``, 0 = no data; None = all valid.
    core, padded
        Where the means count from; pixels given.
    means
        ``(N, 2)``, px, relative to the core's origin.
    scales
        ``(N,)``, px.

    Returns
    -------
    ndarray
        ``(N, C)``.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> edge = np.zeros((9, 9, 1), np.float32)
    >>> edge[:, 4:] = 1
    >>> everything = Region(y0=0, y1=9, x0=0, x1=9)
    >>> means, scales = np.array([[4.5, 3.0], [4.5, 5.0]], np.float32), np.array([3.0, 3.0])
    >>> median_colors(edge, weight=None, core=everything, padded=everything, means=means, scales=scales).tolist()
    [[0.0], [1.0]]
    """
    valid = np.ones(padded.shape, np.bool_) if weight is None else weight > 0
    colors = np.zeros((len(means), pixels.shape[2]), np.float32)
    positions = means.astype(np.float64)
    offset = np.subtract(core.origin, padded.origin)
    radii = np.ascontiguousarray(scales, dtype=np.float64)
    _fill_medians(colors, np.ascontiguousarray(pixels, dtype=np.float32), valid, positions, offset, radii)
    return colors


@_jit_parallel
def _fill_medians(colors, pixels, valid, positions, offset, radii):  # type: ignore[no-untyped-def]
    count, bands = colors.shape
    for i in prange(count):
        ys, xs = np.empty(_POSITIONS, np.int64), np.empty(_POSITIONS, np.int64)
        shares = np.empty(_POSITIONS, np.float64)
        found = _look_around(ys, xs, shares, valid, positions[i], offset, radii[i])
        values, ordered = np.empty(_POSITIONS, np.float32), np.empty(_POSITIONS, np.float64)
        for band in range(bands):
            for k in range(found):
                _insert(values, ordered, k, pixels[ys[k], xs[k], band], shares[k])
            colors[i, band] = _lower_median(values, ordered, found)


@_jit
def _look_around(ys, xs, shares, valid, position, offset, radius):  # type: ignore[no-untyped-def]
    """Write the pixels with data that the disc's positions fall in, with their weights; return how many."""
    height, width = valid.shape
    found = 0
    for j in range(-_HALF, _HALF + 1):
        y = min(max(math.floor(position[0] + radius * j / _HALF) + offset[0], 0), height - 1)
        for k in range(-_HALF, _HALF + 1):
            x = min(max(math.floor(position[1] + radius * k / _HALF) + offset[1], 0), width - 1)
            if j * j + k * k <= _HALF * _HALF and valid[y, x]:
                ys[found], xs[found] = y, x
                # Whole numbers, whose sums are exact: a tie between two halves does not hang on rounding.
                shares[found] = round(_SHARE_UNITS * math.exp(-(j * j + k * k) / (2.0 * _HALF * _HALF)))
                found += 1
    return found


@_jit
def _insert(values, shares, size, value, share):  # type: ignore[no-untyped-def]
    """Insert into the first `size` entries, kept in ascending order, equal ones in the order they came."""
    k = size
    while k > 0 and values[k - 1] > value:
        values[k], shares[k] = values[k - 1], shares[k - 1]
        k -= 1
    values[k], shares[k] = value, share


@_jit
def _lower_median(values, shares, size):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(size):
        total += shares[k]
    reached = 0.0
    for k in range(size):
        reached += shares[k]
        if 2.0 * reached >= total:
            return values[k]
    return np.float32(0.0)
