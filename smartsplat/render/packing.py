"""Gaussians as an engine draws them: placed on the output's pixel grid, whatever set, tile or zoom they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.render.footprint import CUTOFF
from smartsplat.render.zoom import resample

WHITENED_UNIT = 1 / math.sqrt(2 * math.log(256))
"""What a standard deviation is in the kernels' coordinates, so that the weight is ``256^-(u^2 + v^2)``."""

BLOCK_COLUMNS = 64
"""Width of the blocks that Gaussians are ordered by, px."""


_jit: Any = njit(cache=True, error_model="numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedGaussians:
    """What a kernel reads, one row a Gaussian.

    A mean is split into a whole pixel and a fraction, so offsets from it are exact whatever the region's origin: the
    pixels of a region do not depend on which region was asked for.

    Parameters
    ----------
    cells
        ``(N, 2)`` int32: pixel of the mean, relative to the region.
    fractions
        ``(N, 2)`` float32 in [0, 1]: the rest of the mean.
    whitening
        ``(N, 4)`` float32: ``(u_y, u_x, v_y, v_x)``, the rows of the matrix that takes an offset (y, x) to ``(u, v)``
        with weight ``256^-(u^2 + v^2)``. Unlike the conic, it does not cancel for needles.
    extents
        ``(N, 2)`` float64: half the footprint's bounding box along y and x, px.
    slopes
        ``(N, 3)`` float64: ``S_yx / S_xx``, ``det S / S_xx`` and ``CUTOFF S_yx / sqrt(S_yy)``: the ellipse's centre
        line, its squared half height there, and the column of its topmost point.
    colors
        ``(N, C)`` float32.
    index
        ``(N,)`` int64: which Gaussian of the concatenated sets each row is; those that miss the region have none.
    blocks
        ``(N,)`` int64, from 0: set by set, and in each from left to right by blocks of `BLOCK_COLUMNS` columns. Near
        Gaussians have near numbers, which do not depend on the region.
    """

    cells: NDArray[np.int32]
    fractions: Floats
    whitening: Floats
    extents: NDArray[np.float64]
    slopes: NDArray[np.float64]
    colors: Floats
    index: NDArray[np.int64]
    blocks: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cells)

    def reordered(self, order: NDArray[np.int64]) -> PackedGaussians:
        """Return the same in another order of rows."""
        return PackedGaussians(**{each.name: getattr(self, each.name)[order] for each in fields(self)})


def pack(sets: Sequence[Gaussians], region: Region, *, scale: float = 1.0) -> PackedGaussians:
    """Return the Gaussians whose footprints meet `region`, in order, placed on its pixel grid.

    Parameters
    ----------
    sets
        At least one set; each has its own origin.
    region
        Of the output grid, px of the output.
    scale
        Output pixels per scene pixel. See `smartsplat.render.zoom.resample`.
    """
    resampled = [resample(one, scale) for one in sets]
    means = np.concatenate([part for part, _ in resampled])
    scales = np.concatenate([part.scales for _, part in resampled])
    rotations = np.concatenate([part.rotations for _, part in resampled])
    colors = np.concatenate([part.colors for _, part in resampled])
    blocks = _blocks(sets, scale)
    n = len(means)
    cells, fractions = np.empty((n, 2)), np.empty((n, 2), np.float32)
    whitening, extents, slopes = np.empty((n, 4), np.float32), np.empty((n, 2)), np.empty((n, 3))
    meets = np.empty(n, np.bool_)
    _place(means, scales, rotations, region.origin, region.shape, cells, fractions, whitening, extents, slopes, meets)
    if not meets.all():
        cells, fractions, colors, blocks = cells[meets], fractions[meets], colors[meets], blocks[meets]
        whitening, extents, slopes = whitening[meets], extents[meets], slopes[meets]
    # A mean far outside belongs to a footprint that misses the region, so what is left fits int32.
    return PackedGaussians(
        cells=cells.astype(np.int32),
        fractions=fractions,
        whitening=whitening,
        extents=extents,
        slopes=slopes,
        colors=colors,
        index=np.flatnonzero(meets),
        blocks=blocks,
    )


@_jit
def _place(  # type: ignore[no-untyped-def]
    means, scales, rotations, origin, shape, cells, fractions, whitening, extents, slopes, meets
):
    """Fill what follows from each Gaussian alone (see `PackedGaussians`), and which footprints meet the region."""
    for i in range(len(means)):
        cos, sin = math.cos(rotations[i]), math.sin(rotations[i])
        first, second = np.float64(scales[i, 0]), np.float64(scales[i, 1])
        root_yy, root_xx = math.hypot(first * cos, second * sin), math.hypot(first * sin, second * cos)
        cross = cos * sin * (first - second) * (first + second)
        extents[i, 0], extents[i, 1] = CUTOFF * root_yy, CUTOFF * root_xx
        slopes[i, 0] = cross / root_xx**2
        slopes[i, 1] = (first * second / root_xx) ** 2
        slopes[i, 2] = CUTOFF * cross / root_yy
        u, v = WHITENED_UNIT / first, WHITENED_UNIT / second
        whitening[i, 0], whitening[i, 1] = cos * u, sin * u
        whitening[i, 2], whitening[i, 3] = -sin * v, cos * v
        meets[i] = True
        for axis in range(2):
            # Split before the region's origin comes in: taking it from a mean of a zoomed grid rounds, and so
            # differently for each region.
            cells[i, axis] = math.floor(means[i, axis])
            fraction = means[i, axis] - cells[i, axis]
            fractions[i, axis] = fraction
            cells[i, axis] -= origin[axis]
            mean = cells[i, axis] + fraction
            meets[i] &= mean + extents[i, axis] > 0 and mean - extents[i, axis] < shape[axis]


def _blocks(sets: Sequence[Gaussians], scale: float) -> NDArray[np.int64]:
    parts: list[NDArray[np.int64]] = []
    first = 0
    for one in sets:
        columns = np.floor(one.means[:, 1] * np.float32(scale / BLOCK_COLUMNS)).astype(np.int64)
        parts.append(columns - columns.min(initial=0) + first)
        first = parts[-1].max(initial=first - 1) + 1
    return np.concatenate(parts)
