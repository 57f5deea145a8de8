"""Levels: the same fit on a grid of larger pixels, where large structure converges at a fraction of the work.

At level `factor` a pixel is the average of ``factor x factor`` px of the scene. A Gaussian seen through such a box is
nearly a Gaussian again: its variance grows by the box's, and its integral stays (`smartsplat.render.zoom.resample`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.render.zoom import resample

_jit: Any = njit(cache=True, nogil=True, error_model="numpy")


def level_region(region: Region, factor: int) -> Region:
    """Return the pixels of a level that a region of the scene meets.

    Examples
    --------
    >>> level_region(Region(y0=5, y1=9, x0=0, x1=4), 4)
    Region(y0=1, y1=3, x0=0, x1=1)
    """
    return Region(
        y0=region.y0 // factor, y1=-(-region.y1 // factor), x0=region.x0 // factor, x1=-(-region.x1 // factor)
    )


def coarsen(pixels: NDArray[Any], weight: Floats | None, *, factor: int) -> tuple[Floats, Floats | None]:
    """Return the weighted averages over squares of ``factor`` px, and the averages of the weights.

    Parameters
    ----------
    pixels
        ``(h, w, C)``, beginning at a multiple of `factor`; where it ends within a square, the rest counts as no data.
    weight
        ``(h, w)``, 0 = no data, whatever the pixel says; None = all 1.

    Returns
    -------
    ``(ceil(h / factor), ceil(w / factor), C)`` float32, 0 where there is no data; the same without C, or None if all
    are 1.

    Examples
    --------
    >>> import numpy as np
    >>> values, weight = coarsen(np.array([[[1], [3], [5]]], np.uint8), None, factor=2)
    >>> values.ravel(), weight.ravel()
    (array([2., 5.], dtype=float32), array([0.5 , 0.25], dtype=float32))
    """
    height, width, bands = pixels.shape
    shares = np.zeros((-(-height // factor), -(-width // factor)), np.float32)
    values = np.zeros((*shares.shape, bands), np.float32)
    whole = _box_averages(np.ascontiguousarray(pixels).reshape(height, -1), weight, factor, values, shares)
    return values, None if whole else shares


def to_level(gaussians: Gaussians, factor: int, *, origin: tuple[int, int]) -> Gaussians:
    """Return the Gaussians as level `factor` sees them, in its pixels, means relative to its pixel `origin`."""
    means, seen = resample(gaussians, 1 / factor)
    return Gaussians(
        means=(means - origin).astype(np.float32),
        scales=seen.scales,
        rotations=seen.rotations,
        colors=seen.colors,
        origin=origin,
    )


def from_level(gaussians: Gaussians, factor: int, *, origin: tuple[int, int], min_scale: float) -> Gaussians:
    """Return the Gaussians of the scene that level `factor` sees as these; means relative to `origin`.

    Parameters
    ----------
    min_scale
        Px; what the box hides below it stays at it.
    """
    seen = gaussians.scales.astype(np.float64) * factor
    least = float(np.float32(min_scale))  # as stored: what is at it already shall stay as it is
    scales = np.sqrt(np.maximum(seen**2 - box_variance(factor), least**2))
    gain = (seen / scales).prod(axis=1, keepdims=True)
    means = (gaussians.means.astype(np.float64) + gaussians.origin) * factor
    return Gaussians(
        means=(means - origin).astype(np.float32),
        scales=scales.astype(np.float32),
        rotations=gaussians.rotations,
        colors=(gaussians.colors * gain).astype(np.float32),
        origin=origin,
    )


def level_scale(scale: float, factor: int) -> float:
    """Return the scale at level `factor`, in its pixels, of a Gaussian of `scale` px.

    Examples
    --------
    >>> level_scale(3.0, 1), round(level_scale(3.0, 2), 3)
    (3.0, 1.521)
    """
    return math.sqrt(scale**2 + box_variance(factor)) / factor


def box_variance(factor: int) -> float:
    """Return the variance that a box of `factor` px has beyond that of one pixel, px^2."""
    return (factor**2 - 1) / 12


@_jit
def _box_averages(lines, weight, factor, values, shares):  # type: ignore[no-untyped-def]
    """Fill `values` and `shares`, zeros before; return whether all shares are 1.

    Lines are summed before columns, as that is one long loop over memory in order.
    """
    height, width, bands = len(lines), lines.shape[1] // values.shape[2], values.shape[2]
    part = np.float32(1 / factor**2)  # a power of 2: exact, and no sum of large values overflows
    total, share = np.empty(width * bands, np.float32), np.empty(width, np.float32)
    whole = True
    for row in range(len(shares)):
        total[:] = 0
        share[:] = 0
        for y in range(row * factor, min(height, (row + 1) * factor)):
            if weight is None:
                for place in range(width * bands):
                    total[place] += part * np.float32(lines[y, place])
                for x in range(width):
                    share[x] += part
            else:
                for x in range(width):
                    if weight[y, x] > 0:
                        share[x] += part * weight[y, x]
                        for place in range(x * bands, (x + 1) * bands):
                            total[place] += part * weight[y, x] * np.float32(lines[y, place])
        for x in range(width):
            shares[row, x // factor] += share[x]
            for band in range(bands):
                values[row, x // factor, band] += total[x * bands + band]
        for col in range(shares.shape[1]):
            if shares[row, col] != 1:
                whole = False
                if shares[row, col] > 0:
                    for band in range(bands):
                        values[row, col, band] /= shares[row, col]
    return whole
