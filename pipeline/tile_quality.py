"""How good each tile is: squared errors by tile, summed over pieces that need not be tiles. Arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.geometry import Region, TileGrid, TileId
from storage.state import bounding_box

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileErrors:
    """What a piece adds to the tiles that it meets.

    Parameters
    ----------
    box
        Rows and columns of those tiles.
    squared, weight
        ``(rows, cols)`` of the box: sums over the pixels and bands that piece and tile share, of
        ``w (reference - rendered)^2`` and of ``w``.
    """

    box: tuple[slice, slice]
    squared: Doubles
    weight: Doubles


def tile_errors(
    reference: NDArray[Any],
    rendered: NDArray[Any],
    *,
    grid: TileGrid,
    core: Region,
    padded: Region,
    weight: NDArray[Any] | None = None,
) -> TileErrors:
    """Return what the pixels of `core` add to each tile that it meets.

    Parameters
    ----------
    reference, rendered
        ``(H, W, C)`` of any real dtype, covering `padded`; finite where `weight` is positive.
    grid
        The tiles.
    core, padded
        Px of the scene.
    weight
        ``(H, W)``; 0 is no data. None is 1 everywhere.

    Examples
    --------
    >>> grid = TileGrid(height=4, width=6, tile=4, halo=0)
    >>> dark, light = np.zeros((4, 6, 1)), np.full((4, 6, 1), 2.0)
    >>> found = tile_errors(dark, light, grid=grid, core=grid.bounds, padded=grid.bounds)
    >>> found.squared.tolist(), found.weight.tolist()
    ([[64.0, 32.0]], [[16.0, 8.0]])
    """
    tiles = grid.within(core)
    sums = [
        _sums(reference[part], rendered[part], None if weight is None else weight[part])
        for part in (grid.core(tile).intersect(core).slices_within(padded) for tile in tiles)
    ]
    box = bounding_box(tiles)
    squared, total = np.array(sums).T.reshape(2, box[0].stop - box[0].start, -1)
    return TileErrors(box=box, squared=squared, weight=total)


def _sums(reference: NDArray[Any], rendered: NDArray[Any], weight: NDArray[Any] | None) -> tuple[float, float]:
    error = np.subtract(reference, rendered, dtype=np.float64)
    if weight is None:
        return float(np.vdot(error, error)), float(error.size)
    error[weight == 0] = 0  # there the reference may hold no number
    return float((weight[..., None] * error**2).sum()), float(error.shape[2] * weight.sum(dtype=np.float64))


def tile_psnr(errors: Iterable[TileErrors], grid: TileGrid, *, peak: float) -> Doubles:
    """Return each tile's PSNR, dB, ``(rows, cols)``: infinite where it is exact, NaN where no pixel has data.

    Examples
    --------
    >>> grid = TileGrid(height=4, width=12, tile=4, halo=0)
    >>> box = slice(0, 1), slice(0, 2)
    >>> some = TileErrors(box=box, squared=np.array([[16.0, 0.0]]), weight=np.array([[16.0, 9.0]]))
    >>> tile_psnr([some], grid, peak=10)
    array([[20., inf, nan]])
    """
    squared, weight = np.zeros(grid.shape), np.zeros(grid.shape)
    for each in errors:
        squared[each.box] += each.squared
        weight[each.box] += each.weight
    with np.errstate(divide="ignore", invalid="ignore"):
        return 20 * math.log10(peak) - 10 * np.log10(squared / weight)


def extremes(psnr: Doubles) -> dict[str, dict[str, Any]] | None:
    """Return the worst tile and the best, and their PSNR, dB (None if exact); None if no tile has data.

    Examples
    --------
    >>> extremes(np.array([[31.5, np.nan], [np.inf, 28.0]]))
    {'worst': {'tile': '(1, 1)', 'psnr': 28.0}, 'best': {'tile': '(1, 0)', 'psnr': None}}
    """
    if np.isnan(psnr).all():
        return None
    places = {"worst": np.nanargmin(psnr), "best": np.nanargmax(psnr)}
    return {name: _tile_at(psnr, int(place)) for name, place in places.items()}


def _tile_at(psnr: Doubles, place: int) -> dict[str, Any]:
    row, col = divmod(place, psnr.shape[1])
    value = float(psnr[row, col])
    return {"tile": str(TileId(row, col)), "psnr": value if math.isfinite(value) else None}
