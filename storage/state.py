"""Working Gaussians between sweeps, keyed by tile and phase.

A tile is optimised in one phase of each sweep, so the array of a sweep, one chunk a tile, holds the output of that
sweep's four phases; sweep 0 is what sampling placed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from smartsplat.errors import StoreError
from smartsplat.gaussians import GEOMETRY_PARAMETERS, Gaussians
from smartsplat.geometry import TileGrid, TileId
from storage.groups import CHECKED, create_array, has_array, open_array
from storage.ledger import Ledger

REPORT_FIELDS = ("count", "loss_before", "loss_after", "squared_error", "weight", "color_low", "color_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepState:
    """The Gaussians of every tile after one sweep.

    Parameters
    ----------
    grid
        Of the scene.
    sweep
        0 = as sampled.
    rows
        float32 ``(rows, cols, capacity, 5 + C)``, NaN beyond a tile's count.
    reports
        One row per tile, its fields named by `REPORT_FIELDS`; written after the tile's Gaussians.
    """

    grid: TileGrid
    sweep: int
    rows: zarr.Array
    reports: Ledger

    @classmethod
    def open_or_create(cls, group: zarr.Group, sweep: int, *, grid: TileGrid, capacity: int, bands: int) -> SweepState:
        """Return the state of `sweep` in `group`, made on first use with room for `capacity` Gaussians a tile."""
        if has_array(group, f"state-{sweep}-reports"):
            return cls.open(group, sweep, grid=grid)
        parameters = GEOMETRY_PARAMETERS + bands
        create_array(
            group,
            f"state-{sweep}",
            shape=(*grid.shape, max(1, capacity), parameters),
            chunks=(1, 1, max(1, capacity), parameters),
            dtype="float32",
            fill_value=math.nan,
            compressors=CHECKED,
            overwrite=True,
        )
        Ledger.create(group, f"state-{sweep}-reports", jobs=grid.shape, fields=len(REPORT_FIELDS))
        return cls.open(group, sweep, grid=grid)

    @classmethod
    def open(cls, group: zarr.Group, sweep: int, *, grid: TileGrid) -> SweepState:
        """Return the existing state of `sweep`."""
        rows, reports = open_array(group, f"state-{sweep}"), Ledger.open(group, f"state-{sweep}-reports")
        return cls(grid=grid, sweep=sweep, rows=rows, reports=reports)

    def write(self, tile: TileId, gaussians: Gaussians, report: NDArray[np.float64]) -> None:
        """Store a tile's Gaussians, then its report."""
        rows = np.full(self.rows.shape[2:], np.nan, np.float32)
        rows[: len(gaussians)] = gaussians.to_rows()
        self.rows[tile.row, tile.col] = rows
        self.reports.write((tile.row, tile.col), report)

    def recheck(self) -> int:
        """Strike out finished tiles that do not read back; return how many."""
        struck = 0
        done = self.reports.done()
        for tile in self.grid:
            if done[tile.row, tile.col]:
                try:
                    self.read(tile)
                except StoreError:
                    self.reports.strike((tile.row, tile.col))
                    struck += 1
        return struck

    def read(self, tile: TileId) -> Gaussians:
        """Return a tile's Gaussians, means relative to its core.

        Raises
        ------
        StoreError
            If the tile was never written, or is damaged.
        """
        try:
            count = int(self.reports.read((tile.row, tile.col))[0])
            rows = np.asarray(self.rows[tile.row, tile.col])
        except ValueError as error:
            raise StoreError(f"working state of tile {tile}, sweep {self.sweep}, is damaged ({error})") from error
        if np.isnan(rows[:count]).any() or not np.isnan(rows[count:]).all():
            raise StoreError(f"working state of tile {tile}, sweep {self.sweep}, does not hold its {count} Gaussians")
        return Gaussians.from_rows(rows[:count], origin=self.grid.core(tile).origin)
