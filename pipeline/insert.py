"""Add Gaussians where the scene needs them most, whichever tile that is in.

Every tile proposes its candidates and says how many it has of each score; from the merged counts follows how many each
tile adds, so that together they are the best of the whole scene. The total is exact, on any executor.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.optimize import begin_sweep, blocks_missing, is_over, stage_name, tiles_around
from pipeline.run import Run, TileJob, read_target, tile_job
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians, concatenate
from smartsplat.geometry import Region, TileGrid, TileId, block_grid
from smartsplat.optim.insertion import (
    SCORE_BINS,
    find_candidates,
    least_effect,
    score_histogram,
    share_top,
    spread_evenly,
)
from smartsplat.optim.levels import from_level, level_region
from smartsplat.render import render
from smartsplat.schedule import InsertPass
from storage.groups import disk_errors
from storage.ledger import Ledger
from storage.pixels import PixelStore
from storage.scene import Scene
from storage.state import CANDIDATES, REPORT_FIELDS, SweepState, bounding_box, latest_sweep, scores_name

_TILES_A_SIDE = 4  # of the second part's blocks: its jobs are short
_CONTEXT_SCALES = 6  # how far the smoothing of the residual, and the search for its peaks, look


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
        Of each of its tiles (in the second part).
    """

    tile: TileJob
    sweep: int
    work: InsertPass
    shares: tuple[Share, ...] = ()

    def __str__(self) -> str:
        return f"block {self.tile.tile}"


def insert(run: Run, sweep: int, work: InsertPass) -> None:
    """Bring the scene to `work.count` Gaussians, in those tiles where that is not done yet."""
    if is_over(run, sweep):
        return
    group, grid, name = run.scene.work(writable=True), run.scene.grid, stage_name(sweep, run.plan.passes)
    if latest_sweep(group) == sweep and SweepState.open(group, sweep, grid=grid).reports.done().all():
        return  # what it was made from may be damaged by now: it is not needed any more
    with disk_errors(run.scene.path):
        capacity = max(most_candidates(grid.core(tile), work) for tile in grid)
        proposed = SweepState.open_or_create(
            group, sweep, grid=grid, capacity=capacity, bands=run.scene.bands, kind=CANDIDATES
        )
        Ledger.open_or_create(group, scores_name(sweep), jobs=grid.shape, fields=2 * SCORE_BINS)
    done = proposed.reports.done()
    blocks = block_grid(grid, work.factor)
    missing = blocks_missing(grid, blocks, done)
    run.run_stage(
        f"{name}: propose",
        propose_one,
        [InsertJob(tile=tile_job(run, block), sweep=sweep, work=work) for block in missing],
        done=len(blocks) - len(missing),
    )
    shares = _shared_out(run, sweep, work)
    state = begin_sweep(run, sweep, capacity=max(share.count for share in shares.values()))
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


def most_candidates(core: Region, work: InsertPass) -> int:
    """Return more than the most candidates that a tile can have: peaks are further apart than the search reaches."""
    level = level_region(core, work.factor)
    apart = int(2 * work.scale / work.factor) + 1
    return (math.ceil(level.height / apart) + 1) * (math.ceil(level.width / apart) + 1)


def propose_one(job: InsertJob) -> None:
    """Find the candidates of one block of tiles; runs in a worker."""
    scene, work = Scene.open(Path(job.tile.path), writable=True), job.work
    group, grid = scene.work(writable=True), scene.grid
    core = block_grid(grid, work.factor).core(job.tile.tile)
    padded = core.expand(math.ceil(_CONTEXT_SCALES * work.scale)).intersect(grid.bounds)
    target = read_target(PixelStore.open(group), job.tile.normalization, core=core, padded=padded, factor=work.factor)
    state = SweepState.open(group, job.sweep - 1, grid=grid)
    tiles = grid.within(core)
    everything = state.read_all([*tiles, *tiles_around(grid, core=core, padded=padded)])
    sets = [one for one in everything if len(one)]
    residual = target.pixels
    if sets:
        residual = residual - render(sets, target.padded, scale=1 / work.factor, engine=job.tile.engine)
    candidates = find_candidates(
        residual, target.weight, core=target.core, padded=target.padded, scale=work.scale / work.factor
    )
    places = _tiles_of(candidates.gaussians, work.factor, grid)
    proposed: list[Gaussians] = []
    histograms: list[NDArray[np.int64]] = []
    for tile, own in zip(tiles, everything, strict=False):
        mine = (places == (tile.row, tile.col)).all(axis=1)
        found = from_level(
            candidates.gaussians.select(mine).select(slice(0, most_candidates(grid.core(tile), work))),
            work.factor,
            origin=grid.core(tile).origin,
            min_scale=job.tile.plan.config.fit.min_scale,
        )
        scores = candidates.scores[mine][: len(found)]
        proposed.append(_within(found, grid.core(tile)))
        histograms.append(np.concatenate([score_histogram(scores), score_histogram(least_effect(own))]))
    with disk_errors(scene.path):
        box = bounding_box(tiles)
        scores = np.reshape(histograms, (*(part.stop - part.start for part in box), -1)).astype(np.float64)
        Ledger.open(group, scores_name(job.sweep)).write(box, scores)
        SweepState.open(group, job.sweep, grid=grid, kind=CANDIDATES).write_all(
            tiles, proposed, [_report_row(len(found)) for found in proposed]
        )


def _tiles_of(gaussians: Gaussians, factor: int, grid: TileGrid) -> NDArray[np.int64]:
    """Return the tile (row, col) that each Gaussian of a level lies in; beyond the scene's edge, the last one."""
    means = (gaussians.means.astype(np.float64) + gaussians.origin) * factor
    return np.minimum(np.floor(means / grid.tile), np.subtract(grid.shape, 1)).astype(np.int64)


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
        state.write_all(tiles, written, [_report_row(len(one)) for one in written])


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
    kept = share_top(effects, count=before - math.floor(work.dropped_share * before))
    added = share_top(scores, count=work.count - sum(kept))
    spread = shared_by_area(grid, count=work.count - sum(kept) - sum(added))
    return {tile: Share(kept=k, added=a, spread=s) for tile, k, a, s in zip(grid, kept, added, spread, strict=True)}


class _Histograms:
    """The tiles' histograms of one insertion, read row by row: together they may be large."""

    def __init__(self, group: zarr.Group, sweep: int, grid: TileGrid, part: int) -> None:
        self._sweep = sweep
        self._ledger = Ledger.open(group, scores_name(sweep))
        self._grid = grid
        self._columns = slice(part * SCORE_BINS, (part + 1) * SCORE_BINS)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for row in range(self._grid.rows):
            for histograms in self._ledger.read_block((slice(row, row + 1), slice(self._grid.cols)))[0]:
                if np.isnan(histograms[0]):
                    raise StoreError(f"{scores_name(self._sweep)}: row {row} of tiles has no scores")
                yield histograms[self._columns].astype(np.int64)


def shared_by_area(grid: TileGrid, *, count: int) -> list[int]:
    """Return `count` shared between the tiles by their area."""
    ends = list(itertools.accumulate(grid.core(tile).height * grid.core(tile).width for tile in grid))
    shares = [0, *(end * count // ends[-1] for end in ends)]  # of Python's integers: the products may be large
    return [after - before for before, after in itertools.pairwise(shares)]


def _within(gaussians: Gaussians, core: Region) -> Gaussians:
    """Return the Gaussians with their means in the core: at its edge a coarse pixel's centre may lie outside."""
    last = np.nextafter(np.array(core.shape, np.float32), np.float32(0))
    return dataclasses.replace(gaussians, means=np.clip(gaussians.means, 0, last))


def _report_row(count: int) -> NDArray[np.float64]:
    row = np.zeros(len(REPORT_FIELDS))
    row[REPORT_FIELDS.index("count")] = count
    return row
