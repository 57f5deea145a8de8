"""Candidates for an insertion: each block's fit leaves them behind, as it has the residual they come from at hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.run import Run
from smartsplat.config import FitConfig
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region, TileGrid, TileId
from smartsplat.optim import FittedTiles, Target
from smartsplat.optim.insertion import (
    SCORE_BINS,
    Candidates,
    find_candidates,
    least_effect,
    score_histogram,
    visibility,
)
from smartsplat.optim.levels import from_level, level_region
from smartsplat.schedule import InsertPass
from storage.groups import disk_errors
from storage.ledger import Ledger
from storage.state import CANDIDATES, SweepState, bounding_box, count_report, scores_name


def begin_candidates(run: Run, sweep: int, work: InsertPass) -> None:
    """Make room for the candidates of the insertion that is sweep `sweep`, on first use."""
    group, grid = run.scene.work(writable=True), run.scene.grid
    with disk_errors(run.scene.path):
        Ledger.open_or_create(group, scores_name(sweep), jobs=grid.shape, fields=2 * SCORE_BINS)
        SweepState.open_or_create(
            group,
            sweep,
            grid=grid,
            capacity=max(most_candidates(grid.core(tile), work) for tile in grid),
            bands=run.scene.bands,
            kind=CANDIDATES,
        )


def most_candidates(core: Region, work: InsertPass) -> int:
    """Return more than the most candidates that a tile can have: peaks are further apart than the search reaches."""
    level = level_region(core, work.factor)
    apart = int(2 * work.scale / work.factor) + 1
    return (math.ceil(level.height / apart) + 1) * (math.ceil(level.width / apart) + 1)


def write_candidates(
    group: zarr.Group,
    grid: TileGrid,
    sweep: int,
    work: InsertPass,
    *,
    tiles: Sequence[TileId],
    fitted: FittedTiles,
    target: Target,
    config: FitConfig,
) -> None:
    """Store what sweep `sweep` might add to a block's tiles, and how many Gaussians they have of each score and effect.

    Parameters
    ----------
    group
        Of the working data.
    tiles, fitted
        Of the block, and what their fit came to.
    target
        What was fitted to, at the level of `work`.
    config
        Of the fit.
    """
    importance = None
    if config.insert_visibility:
        importance = visibility(target.pixels, target.weight, exponent=config.insert_visibility)
    candidates = find_candidates(
        fitted.left_over(),
        target.weight,
        core=target.core,
        padded=target.padded,
        scale=work.scale / work.factor,
        importance=importance,
    )
    places = _tiles_of(candidates, work.factor, grid)
    proposed: list[Gaussians] = []
    histograms: list[NDArray[np.int64]] = []
    for tile, own in zip(tiles, fitted.gaussians, strict=True):
        core = grid.core(tile)
        mine = np.flatnonzero((places == (tile.row, tile.col)).all(axis=1))[: most_candidates(core, work)]
        found = from_level(
            candidates.gaussians.select(mine), work.factor, origin=core.origin, min_scale=config.min_scale
        )
        proposed.append(_within(found, core))
        histograms.append(
            np.concatenate([score_histogram(candidates.scores[mine]), score_histogram(least_effect(own))])
        )
    box = bounding_box(tiles)
    shape = [part.stop - part.start for part in box]
    Ledger.open(group, scores_name(sweep)).write(box, np.reshape(histograms, (*shape, -1)).astype(np.float64))
    SweepState.open(group, sweep, grid=grid, kind=CANDIDATES).write_all(
        tiles, proposed, [count_report(len(found)) for found in proposed]
    )


def _tiles_of(candidates: Candidates, factor: int, grid: TileGrid) -> NDArray[np.int64]:
    """Return the tile (row, col) that each candidate at a level lies in; beyond the scene's edge, the last one."""
    gaussians = candidates.gaussians
    means = (gaussians.means.astype(np.float64) + gaussians.origin) * factor
    return np.minimum(np.floor(means / grid.tile), np.subtract(grid.shape, 1)).astype(np.int64)


def _within(gaussians: Gaussians, core: Region) -> Gaussians:
    """Return the Gaussians with their means in the core: at its edge a coarse pixel's centre may lie outside."""
    last = np.nextafter(np.array(core.shape, np.float32), np.float32(0))
    return dataclasses.replace(gaussians, means=np.clip(gaussians.means, 0, last))
