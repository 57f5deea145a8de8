"""What a resumed run believes: only what reads back. The rest is struck out of the ledgers, and done again."""

from __future__ import annotations

import logging

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.rate import ERROR, SHAPE_RATES
from smartsplat.errors import StoreError
from smartsplat.geometry import TileId
from smartsplat.schedule import InsertPass
from storage.groups import disk_errors, drop_damaged_arrays, has_array, sweep_partials
from storage.ledger import Ledger
from storage.pixels import PixelStore
from storage.scene import Scene
from storage.state import CANDIDATES, STATE, SweepState, forget, forget_sweeps, has_sweep, latest_sweep, scores_name

logger = logging.getLogger(__name__)


def recheck(scene: Scene) -> Scene:
    """Return the scene, swept up after a killed run, and without what is damaged: strips, tiles of any sweep, shards.

    A job's inputs are fixed by its place in the schedule, so redoing it gives what the first attempt gave, and what was
    made from that stays valid. If so much is lost that the rest cannot be told to be sound, all is done again.
    """
    with disk_errors(scene.path):
        sweep_partials(scene.folder)
        try:
            struck = _strike_damaged(scene)
        except StoreError as error:
            logger.warning("%s; the scene is begun anew", error)
            return scene.created_anew()
    if struck:
        logger.warning("%s: %d damaged pieces of an earlier run are done again", scene.path, struck)
    return scene


def _strike_damaged(scene: Scene) -> int:
    work = scene.work(writable=True)
    scene.failures()  # an error if what is said there of jobs that were replaced cannot be believed
    struck = drop_damaged_arrays(work)
    if has_array(work, "strips"):
        struck += PixelStore.open(work).recheck()
    latest = latest_sweep(work)
    if latest is not None:
        struck += _recheck_fit(scene, work, latest)
    if has_array(work, "encoded"):
        struck += _recheck_shards(scene, Ledger.open(work, "encoded"))
    return struck


def _recheck_fit(scene: Scene, work: zarr.Group, latest: int) -> int:
    """Strike out damaged tiles of the latest sweep; begin the fit anew if those it is made from are damaged too."""
    passes = scene.manifest.passes
    insertions = {sweep for sweep, each in enumerate(passes, start=1) if isinstance(each, InsertPass)}
    state = SweepState.open(work, latest, grid=scene.grid)
    if latest in insertions and (state.recheck() or not state.reports.done().all()):
        # It is soon done again, and what left its candidates can be done again only if it is not there.
        forget(work, STATE, latest)
        latest -= 1
        state = SweepState.open(work, latest, grid=scene.grid)
    struck = _strike_without_candidates(work, latest + 1, state) if latest + 1 in insertions else 0
    struck += state.recheck()
    shapes_missing = latest > len(passes) and _lacks_shape_rates(scene, work)
    if latest == 0 or (state.reports.done().all() and not shapes_missing):
        return struck
    if has_sweep(work, latest - 1):
        before = SweepState.open(work, latest - 1, grid=scene.grid)
        if before.recheck() == 0 and before.reports.done().all():
            return struck
    logger.warning("%s: what sweep %d was made from is damaged: the fit begins anew", scene.path, latest)
    forget_sweeps(work, before=latest + 2)
    return struck + 1


def _lacks_shape_rates(scene: Scene, work: zarr.Group) -> bool:
    """Return whether the fit's error is not known, or tiles were not all measured before they settled."""
    needed = [ERROR, SHAPE_RATES] if scene.manifest.config.is_rated else [ERROR]
    return not all(has_array(work, name) and Ledger.open(work, name).done().all() for name in needed)


def _strike_without_candidates(work: zarr.Group, sweep: int, state: SweepState) -> int:
    """Strike out of `state` the tiles whose candidates for sweep `sweep`, or their scores, do not read back."""
    try:
        candidates = SweepState.open(work, sweep, grid=state.grid, kind=CANDIDATES)
        candidates.recheck()
        found = candidates.reports.done() & Ledger.open(work, scores_name(sweep)).done()
    except StoreError:
        forget(work, CANDIDATES, sweep)
        found = np.zeros(state.grid.shape, np.bool_)
    lost = np.argwhere(state.reports.done() & ~found).tolist()
    for row, col in lost:
        state.reports.strike((row, col))
    return len(lost)


def _recheck_shards(scene: Scene, ledger: Ledger) -> int:
    rows = ledger.read_all()
    struck, sound = 0, scene.has_gaussians()
    for where in scene.shards():
        if not np.isnan(rows[where]).any() and not (sound and _reads_back(scene, where, rows)):
            ledger.strike(where)
            struck += 1
    return struck


def _reads_back(scene: Scene, where: tuple[slice, slice], rows: NDArray[np.float64]) -> bool:
    try:
        for row in range(where[0].start, where[0].stop):
            for col in range(where[1].start, where[1].stop):
                scene.read_tile(TileId(row, col), count=int(rows[row, col, 0]))
    except StoreError:
        return False
    return True
