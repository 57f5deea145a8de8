"""Add Gaussians where the scene needs them most, whichever tile that is in.

The fits before left each tile's candidates, and how many it has of each score (`pipeline.propose`); from the merged
counts follows how many each tile adds, so that together they are the best of the whole scene. The total is exact, on
any executor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.optimize import begin_sweep, blocks_missing, is_over, stage_name
from pipeline.run import Run, TileJob, tile_job
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians, concatenate
from smartsplat.geometry import Region, TileGrid, TileId, block_grid
from smartsplat.optim.insertion import (
    SCORE_BINS,
    least_effect,
    share_top,
    spread_evenly,
)
from smartsplat.schedule import InsertPass
from storage.groups import disk_errors, folder_of
from storage.ledger import Ledger
from storage.scene import Scene
from storage.state import CANDIDATES, SweepState, count_report, latest_sweep, scores_name

_TILES_A_SIDE = 4  # of a job's block: there is little to do for a tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many Gaussians a tile keeps, how many candidates it adds, and how many more it lacks."""

    kept: int
    added: int
    spread: int

    @property
    def count(self) -> int:
        """Gaussians the tile has afterwards."""
        return self.kept + self.added + self.spread


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertJob:
    """One block's part of an insertion; small, as it travels to a worker.

    Parameters
    ----------
    tile
        Which block of tiles, and where its data is.
    sweep
        That the insertion writes.
    work
        What to do.
    shares
        Of each of its tiles.
    """

    tile: TileJob
    sweep: int
    work: InsertPass
    shares: tuple[Share, ...]

    def __str__(self) -> str:
        return f"block {self.tile.tile}"


def insert(run: Run, sweep: int, work: InsertPass) -> None:
    """Bring the scene to `work.count` Gaussians, in those tiles where that is not done yet."""
    if is_over(run, sweep):
        return
    group, grid, name = run.scene.work(writable=True), run.scene.grid, stage_name(sweep, run.plan.passes)
    if latest_sweep(group) == sweep and SweepState.open(group, sweep, grid=grid).reports.done().all():
        return  # what it was made from may be damaged by now: it is not needed any more
    shares = _shared_out(run, sweep, work)
    # What the candidates were made from is kept until they have been used.
    state = begin_sweep(run, sweep, capacity=max(share.count for share in shares.values()), kept=2)
    blocks = block_grid(grid, _TILES_A_SIDE)
    missing = blocks_missing(grid, blocks, state.reports.done())
    jobs = [
        InsertJob(
            tile=tile_job(run, block),
            sweep=sweep,
            work=work,
            shares=tuple(shares[tile] for tile in grid.within(blocks.core(block))),
        )
        for block in missing
    ]
    run.run_stage(name, insert_one, jobs, done=len(blocks) - len(jobs))


def insert_one(job: InsertJob) -> None:
    """Write the Gaussians of a block's tiles: those each keeps, and those it adds; runs in a worker."""
    scene = Scene.open(Path(job.tile.path), writable=True)
    group, grid = scene.work(writable=True), scene.grid
    tiles = grid.within(block_grid(grid, _TILES_A_SIDE).core(job.tile.tile))
    own = SweepState.open(group, job.sweep - 1, grid=grid).read_all(tiles)
    candidates = SweepState.open(group, job.sweep, grid=grid, kind=CANDIDATES).read_all(tiles)
    written = [
        _inserted(mine, found, share, core=grid.core(tile), job=job)
        for tile, mine, found, share in zip(tiles, own, candidates, job.shares, strict=True)
    ]
    with disk_errors(scene.path):
        state = SweepState.open(group, job.sweep, grid=grid)
        state.write_all(tiles, written, [count_report(len(one)) for one in written])


def _inserted(own: Gaussians, candidates: Gaussians, share: Share, *, core: Region, job: InsertJob) -> Gaussians:
    strongest = np.argsort(-least_effect(own), kind="stable")[: share.kept]
    spread = spread_evenly(
        core, count=share.spread, scale=job.work.scale, bands=own.bands, seed=(job.tile.plan.config.seed, job.sweep)
    )
    return concatenate(
        [own.select(np.sort(strongest)), candidates.select(slice(0, share.added)), spread], origin=core.origin
    )


def _shared_out(run: Run, sweep: int, work: InsertPass) -> dict[TileId, Share]:
    """Return what each tile keeps and adds."""
    group, grid = run.scene.work(), run.scene.grid
    scores, effects = (_Histograms(group, sweep, grid, part) for part in (0, 1))
    before = sum(int(histogram.sum()) for histogram in effects)
    kept = share_top(effects, count=min(before - math.floor(work.dropped_share * before), work.count))
    added = share_top(scores, count=work.count - sum(kept))
    spread = shared_by_area(grid, count=work.count - sum(kept) - sum(added))
    return {tile: Share(kept=k, added=a, spread=s) for tile, k, a, s in zip(grid, kept, added, spread, strict=True)}


class _Histograms:
    """The tiles' histograms of one insertion, read row by row: together they may be large."""

    def __init__(self, group: zarr.Group, sweep: int, grid: TileGrid, part: int) -> None:
        self._path = folder_of(group, scores_name(sweep))
        self._ledger = Ledger.open(group, scores_name(sweep))
        self._grid = grid
        self._columns = slice(part * SCORE_BINS, (part + 1) * SCORE_BINS)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for row in range(self._grid.rows):
            for histograms in self._row(row):
                yield histograms[self._columns].astype(np.int64)

    def _row(self, row: int) -> NDArray[np.float64]:
        try:
            found = self._ledger.read_block((slice(row, row + 1), slice(self._grid.cols)))[0]
        except ValueError:
            found = np.full((1, 1), np.nan)
        if np.isnan(found[:, 0]).any():
            raise StoreError(
                f"{self._path}: scores of row {row} of tiles are missing or damaged; run the same command again"
            )
        return found


def shared_by_area(grid: TileGrid, *, count: int) -> list[int]:
    """Return `count` shared between the tiles by their area."""
    ends = list(itertools.accumulate(grid.core(tile).height * grid.core(tile).width for tile in grid))
    shares = [0, *(end * count // ends[-1] for end in ends)]  # of Python's integers: the products may be large
    return [after - before for before, after in itertools.pairwise(shares)]
