"""How much each pixel attracts Gaussians: the strength of its gradient and the variance around it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from smartsplat.budget import FLAT, TINY, TileStats
from smartsplat.gaussians import Floats
from smartsplat.geometry import Region

CONTEXT = 2
"""Pixels around a core that its weights depend on: the variance looks at 5 x 5 pixels."""

# No fast-math at all: the maps of a tile are then the crop of the scene's, to the last bit.
_jit_parallel: Any = njit(cache=True, error_model="numpy", parallel=True)


def feature_maps(pixels: Floats, *, weight: Floats | None, core: Region, padded: Region) -> tuple[Floats, Floats]:
    """Return gradient magnitude ``m`` and local variance ``v`` of each pixel of `core`.

    ``m`` is the mean over bands of the norm of the Sobel gradient, in units of the full range a px; ``v`` the mean over
    bands of the unbiased variance in a window of 5 x 5 px. What lies outside `padded` counts as no data.

    A pixel without data is a hole, not a value: to the gradient at a pixel it looks like that pixel itself, and the
    variance leaves it out. So a hole in a flat area stays invisible. In the hole itself both are 0.

    Parameters
    ----------
    pixels
        ``(h, w, C)``, covering `padded`, in the unit range.
    weight
        ``(h, w)``, 0 = no data; None = all valid.
    core, padded
        Pixels to weigh; pixels given. The maps are those of the whole scene if `padded` includes `CONTEXT` px around
        the core, wherever the scene goes on.

    Returns
    -------
    tuple
        Two ``(core.height, core.width)`` arrays.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None] / 10, (8, 8, 3))
    >>> everything = Region(y0=0, y1=8, x0=0, x1=8)
    >>> gradient, variance = feature_maps(ramp, weight=None, core=everything, padded=everything)
    >>> gradient[4, 4].round(3), variance[4, 4].round(4)
    (np.float32(0.1), np.float32(0.0208))
    """
    planes, valid = _framed(pixels, weight, core=core, padded=padded)
    gradient, variance = np.empty(core.shape, np.float32), np.empty(core.shape, np.float32)
    _fill_maps(gradient, variance, planes, valid)
    return gradient, variance


def tile_weights(
    pixels: Floats, *, weight: Floats | None, core: Region, padded: Region, gradient_share: float
) -> Floats:
    """Return the sampling weight of each pixel of `core`, ``w = g m / max(m) + (1 - g) v / max(v)``.

    The maxima are those over the core's valid pixels. A weight is at least `FLAT` where there is data, so that every
    pixel may be drawn, and 0 where there is none.

    Parameters
    ----------
    pixels, weight, core, padded
        See `feature_maps`, which also defines ``m`` and ``v``.
    gradient_share
        ``g``, the gradient's share of the weight.

    Returns
    -------
    ndarray
        ``(core.height, core.width)``, in [0, 1].

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> corner = np.zeros((4, 4, 1), np.float32)
    >>> corner[2:, 2:] = 1
    >>> everything = Region(y0=0, y1=4, x0=0, x1=4)
    >>> tile_weights(corner, weight=None, core=everything, padded=everything, gradient_share=0.9)[0].round(1)
    array([0. , 0.1, 0.1, 0.1], dtype=float32)
    """
    gradient, variance = feature_maps(pixels, weight=weight, core=core, padded=padded)
    weights = gradient * np.float32(gradient_share / max(float(gradient.max(initial=0)), TINY))
    weights += variance * np.float32((1 - gradient_share) / max(float(variance.max(initial=0)), TINY))
    np.clip(weights, FLAT, 1, out=weights)
    if weight is not None:
        weights[weight[core.slices_within(padded)] <= 0] = 0
    return weights


def tile_stats(pixels: Floats, *, weight: Floats | None, core: Region, padded: Region) -> TileStats:
    """Return what the pixels of `core` contribute to the sampling plan of the scene.

    Parameters
    ----------
    pixels, weight, core, padded
        See `feature_maps`.

    Examples
    --------
    >>> flat = np.ones((4, 4, 1), np.float32)
    >>> tile_stats(flat, weight=None, core=Region(y0=0, y1=2, x0=0, x1=2), padded=Region(y0=0, y1=4, x0=0, x1=4))
    TileStats(pixels=4, gradient_sum=0.0, gradient_max=0.0, variance_sum=0.0, variance_max=0.0)
    """
    gradient, variance = feature_maps(pixels, weight=weight, core=core, padded=padded)
    valid = gradient.size if weight is None else int(np.count_nonzero(weight[core.slices_within(padded)] > 0))
    return TileStats(
        pixels=valid,
        gradient_sum=float(gradient.sum(dtype=np.float64)),
        gradient_max=float(gradient.max(initial=0)),
        variance_sum=float(variance.sum(dtype=np.float64)),
        variance_max=float(variance.max(initial=0)),
    )


def _framed(pixels: Floats, weight: Floats | None, *, core: Region, padded: Region) -> tuple[Floats, NDArray[np.bool_]]:
    """Return planes ``(C, H + 4, W + 4)`` around the core, and which of their pixels hold data."""
    frame = core.expand(CONTEXT)
    given = frame.intersect(padded)
    source, target = given.slices_within(padded), given.slices_within(frame)
    planes = np.zeros((pixels.shape[2], *frame.shape), np.float32)
    planes[:, *target] = np.moveaxis(pixels[source], 2, 0)
    valid = np.zeros(frame.shape, np.bool_)
    valid[target] = True if weight is None else weight[source] > 0
    return planes, valid


@_jit_parallel
def _fill_maps(gradient, variance, planes, valid):  # type: ignore[no-untyped-def]
    """Write both maps. Each pixel is summed in one fixed order, whatever the frame and the number of threads."""
    bands, height, width = planes.shape[0], gradient.shape[0], gradient.shape[1]
    zero, one = np.float32(0.0), np.float32(1.0)
    for row in prange(height):
        y = row + CONTEXT
        norms, variances = np.zeros(width, np.float32), np.zeros(width, np.float32)
        counts = np.zeros(width, np.float32)
        for dy in range(-CONTEXT, CONTEXT + 1):
            for dx in range(-CONTEXT, CONTEXT + 1):
                for column in range(width):
                    counts[column] += one if valid[y + dy, column + CONTEXT + dx] else zero
        for band in range(bands):
            plane = planes[band]
            for column in range(width):
                x = column + CONTEXT
                own = plane[y, x]
                nw = plane[y - 1, x - 1] if valid[y - 1, x - 1] else own
                n = plane[y - 1, x] if valid[y - 1, x] else own
                ne = plane[y - 1, x + 1] if valid[y - 1, x + 1] else own
                w = plane[y, x - 1] if valid[y, x - 1] else own
                e = plane[y, x + 1] if valid[y, x + 1] else own
                sw = plane[y + 1, x - 1] if valid[y + 1, x - 1] else own
                s = plane[y + 1, x] if valid[y + 1, x] else own
                se = plane[y + 1, x + 1] if valid[y + 1, x + 1] else own
                gy = (sw - nw) + (s - n) + (s - n) + (se - ne)
                gx = (ne - nw) + (e - w) + (e - w) + (se - sw)
                norms[column] += math.sqrt(gy * gy + gx * gx)
            # Relative to the pixel itself: flat windows then have a variance of exactly 0, and faint ones keep theirs.
            sums, squares = np.zeros(width, np.float32), np.zeros(width, np.float32)
            for dy in range(-CONTEXT, CONTEXT + 1):
                for dx in range(-CONTEXT, CONTEXT + 1):
                    for column in range(width):
                        x = column + CONTEXT
                        change = plane[y + dy, x + dx] - plane[y, x] if valid[y + dy, x + dx] else zero
                        sums[column] += change
                        squares[column] += change * change
            for column in range(width):
                spread = squares[column] - sums[column] * sums[column] / counts[column]
                variances[column] += max(spread, zero) / max(counts[column] - one, one)
        for column in range(width):
            here = valid[y, column + CONTEXT]
            gradient[row, column] = norms[column] * np.float32(0.125 / bands) if here else zero
            variance[row, column] = variances[column] * np.float32(1.0 / bands) if here else zero
