"""Working Gaussians between sweeps, keyed by tile and phase.

A tile is visited in one phase of each sweep, so the array of a sweep, one chunk a tile, holds the output of that
sweep's four phases; sweep 0 is what sampling placed. Only the two latest sweeps are kept, one that is read
and one that is written, and during an insertion one more.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from smartsplat.errors import StoreError
from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import TileGrid, TileId
from storage.groups import CHECKED, create_array, folder_of, has_array, open_array
from storage.ledger import Ledger

REPORT_FIELDS = (
    "count",
    "loss_before",
    "loss_after",
    "squared_error",
    "weight",
    "color_low",
    "color_high",
    "scale_low",
    "scale_high",
)

_ROWS_A_CHUNK = 2048

STATE, CANDIDATES = "state", "candidates"
"""What is kept of a sweep: its Gaussians; those that might be added in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepState:
    """The Gaussians of every tile after one sweep.

    Parameters
    ----------
    grid
        Of the scene.
    name
        Of the array: a kind and a sweep, 0 = as sampled.
    rows
        float32 ``(rows, cols, capacity, 5 + C)``, NaN beyond a tile's count; of a tile only the chunks it fills are
        written.
    reports
        One row per tile, its fields named by `REPORT_FIELDS`; written after the tile's Gaussians.
    """

    grid: TileGrid
    name: str
    rows: zarr.Array
    reports: Ledger

    @classmethod
    def open_or_create(
        cls, group: zarr.Group, sweep: int, *, grid: TileGrid, capacity: int, bands: int, kind: str = STATE
    ) -> SweepState:
        """Return the state of `sweep` in `group`, made on first use with room for `capacity` Gaussians a tile."""
        name = f"{kind}-{sweep}"
        if has_array(group, f"{name}-reports"):
            return cls.open(group, sweep, grid=grid, kind=kind)
        # What a kill may have left of it must not be taken for reports of this state.
        shutil.rmtree(folder_of(group, f"{name}-reports"), ignore_errors=True)
        parameters = GEOMETRY_PARAMETERS + bands
        chunk = min(max(1, capacity), _ROWS_A_CHUNK)
        create_array(
            group,
            name,
            shape=(*grid.shape, max(1, -(-capacity // chunk)) * chunk, parameters),
            chunks=(1, 1, chunk, parameters),
            dtype="float32",
            fill_value=math.nan,
            compressors=CHECKED,
            overwrite=True,
        )
        Ledger.create(group, f"{name}-reports", jobs=grid.shape, fields=len(REPORT_FIELDS))
        return cls.open(group, sweep, grid=grid, kind=kind)

    @classmethod
    def open(cls, group: zarr.Group, sweep: int, *, grid: TileGrid, kind: str = STATE) -> SweepState:
        """Return the existing state of `sweep`."""
        name = f"{kind}-{sweep}"
        return cls(
            grid=grid,
            name=name,
            rows=open_array(group, name, working=True),
            reports=Ledger.open(group, f"{name}-reports"),
        )

    def write(self, tile: TileId, gaussians: Gaussians, report: NDArray[np.float64]) -> None:
        """Store a tile's Gaussians, then its report."""
        self.write_all([tile], [gaussians], [report])

    def write_all(
        self, tiles: Sequence[TileId], gaussians: Sequence[Gaussians], reports: Sequence[NDArray[np.float64]]
    ) -> None:
        """Store the Gaussians of some tiles, a rectangle of them row by row, and then their reports."""
        box = bounding_box(tiles)
        shape = tuple(part.stop - part.start for part in box)
        longest = self._stored_rows(max(map(len, gaussians)))
        rows = np.full((len(tiles), longest, self.rows.shape[3]), np.nan, np.float32)
        for row, one in zip(rows, gaussians, strict=True):
            row[: len(one)] = one.to_rows()
        self.rows[(*box, slice(longest))] = rows.reshape(*shape, *rows.shape[1:])
        self.reports.write(box, np.reshape(reports, (*shape, -1)))

    def _stored_rows(self, count: int) -> int:
        """Return how many rows the chunks hold that `count` Gaussians take."""
        chunk = self.rows.chunks[2]
        return max(1, -(-count // chunk)) * chunk

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

    def read_all(self, tiles: Sequence[TileId]) -> list[Gaussians]:
        """Return the Gaussians of some tiles near each other: what is around them is read at once.

        Raises
        ------
        StoreError
            As `read` does.
        """
        if not tiles:
            return []
        box = bounding_box(tiles)
        places = [(tile.row - box[0].start, tile.col - box[1].start) for tile in tiles]
        try:
            reports = self.reports.read_block(box)
            counts = [reports[place][0] for place in places]
            longest = self._stored_rows(int(max(counts)))
            rows = np.asarray(self.rows[(*box, slice(longest))])
        except ValueError:  # damage, or none: it may be in a tile that was not asked for
            return [self.read(tile) for tile in tiles]
        return [
            self._checked(tile, rows[place], int(count))
            for tile, place, count in zip(tiles, places, counts, strict=True)
        ]

    def read(self, tile: TileId) -> Gaussians:
        """Return a tile's Gaussians, means relative to its core.

        Raises
        ------
        StoreError
            If the tile was never written, or is damaged.
        """
        try:
            count = int(self.reports.read((tile.row, tile.col))[0])
            rows = np.asarray(self.rows[tile.row, tile.col, : self._stored_rows(count)])
        except ValueError as error:
            raise StoreError(f"{self.name} of tile {tile} is damaged ({error})") from error
        return self._checked(tile, rows, count)

    def _checked(self, tile: TileId, rows: Floats, count: int) -> Gaussians:
        if np.isnan(rows[:count]).any() or not np.isnan(rows[count:]).all():
            raise StoreError(f"{self.name} of tile {tile} does not hold its {count} Gaussians")
        return Gaussians.from_rows(rows[:count], origin=self.grid.core(tile).origin)


def count_report(count: int) -> NDArray[np.float64]:
    """Return the report of a tile of which nothing but the number of Gaussians is known."""
    report = np.zeros(len(REPORT_FIELDS))
    report[REPORT_FIELDS.index("count")] = count
    return report


def bounding_box(tiles: Sequence[TileId]) -> tuple[slice, slice]:
    """Return the rows and columns of the grid that some tiles are in."""
    rows, cols = [tile.row for tile in tiles], [tile.col for tile in tiles]
    return slice(min(rows), max(rows) + 1), slice(min(cols), max(cols) + 1)


def latest_sweep(group: zarr.Group) -> int | None:
    """Return the highest sweep that was begun; None if none was."""
    return max(
        (sweep for (kind, sweep), name in _kept(group) if kind == STATE and has_array(group, f"{name}-reports")),
        default=None,
    )


def scores_name(sweep: int) -> str:
    """Return the name of the ledger that holds the histograms of a sweep's candidates."""
    return f"{CANDIDATES}-{sweep}-scores"


def forget_sweeps(group: zarr.Group, *, before: int) -> None:
    """Delete all that is kept of sweeps lower than `before`."""
    for (kind, sweep), _ in _kept(group):
        if sweep < before:
            forget(group, kind, sweep)


def forget(group: zarr.Group, kind: str, sweep: int) -> None:
    """Delete what is kept of a sweep, its state or its candidates."""
    # Reports first: without them the rest counts as not there.
    for part in ("-reports", "-scores", ""):
        shutil.rmtree(folder_of(group, f"{kind}-{sweep}{part}"), ignore_errors=True)


def _kept(group: zarr.Group) -> list[tuple[tuple[str, int], str]]:
    """Return kind and sweep, and name, of everything that any folder is left of."""
    matches = (
        re.fullmatch(rf"(({STATE}|{CANDIDATES})-(\d+))(-reports|-scores)?", folder.name)
        for folder in folder_of(group).iterdir()
    )
    return sorted({((match[2], int(match[3])), match[1]) for match in matches if match})
