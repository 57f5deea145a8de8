"""How finely to quantise: every tile is measured at a ladder of steps, and the finest that fits the budget is used.

Errors that quantisation may add are measured in those the image has anyway. First one factor on them is chosen, from
the fit as it is; then, once colors have settled on the quantised shapes, a factor for the colors alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.plan import byte_aim
from pipeline.run import Run, TileJob, tile_job
from smartsplat.codec import Steps, encode_tile
from smartsplat.errors import BudgetError
from storage.groups import disk_errors
from storage.ledger import Ledger
from storage.scene import Scene
from storage.state import REPORT_FIELDS, SweepState

FACTORS = tuple(2.0**k for k in range(-3, 6))
"""On all errors allowed, least first: about 12 % of the bytes apart."""

COLOR_FACTORS = tuple(2.0 ** (k * 2 / 3) for k in range(-2, 4))
"""On those of colors alone, least first: about 5 % of the bytes apart."""

_LEAST_ERROR = 1e-4  # of the full range: an image fitted better than that is as good as exact

ERROR = "error"
"""Name of the ledger of the image's error before quantisation, one number."""

SHAPE_RATES = "shape-rates"
"""Name of the ledger of what tiles take before they settle."""

_CRC_BYTES = 4
_INDEX_BYTES = 16
_EMPTY_BYTES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RateJob:
    """One tile to measure; small, as it travels to a worker.

    Parameters
    ----------
    tile
        Which, and where its data is.
    sweep
        Whose state to measure.
    ladder
        Steps to try.
    ledger
        Name of the ledger that takes the bytes at each.
    """

    tile: TileJob
    sweep: int
    ladder: tuple[Steps, ...]
    ledger: str

    def __str__(self) -> str:
        return str(self.tile)


def measure_shapes(run: Run) -> None:
    """Note the error of the fit; find out what every tile takes at each factor, if a byte budget asks for it."""
    with disk_errors(run.scene.path):
        noted = Ledger.open_or_create(run.scene.work(writable=True), ERROR, jobs=(1,), fields=1)
        if not noted.done().all():
            noted.write((0,), np.array([_fit_error(run)]))
    ladder = tuple(_steps(run, factor) for factor in FACTORS)
    _measure(run, "rate", ledger=SHAPE_RATES, sweep=run.plan.last_sweep, ladder=ladder)


def measure_colors(run: Run) -> None:
    """Find out what every settled tile takes at each color factor, if a byte budget asks for it."""
    factor = _shape_factor(run)
    ladder = tuple(_steps(run, factor, color_factor) for color_factor in COLOR_FACTORS)
    _measure(run, "rate of colors", ledger="color-rates", sweep=run.plan.last_sweep + 1, ladder=ladder)


def measure_one(job: RateJob) -> None:
    """Store the bytes of one tile's stream at every rung of the ladder; runs in a worker."""
    scene, tile = Scene.open(Path(job.tile.path), writable=True), job.tile.tile
    work = scene.work(writable=True)
    gaussians = SweepState.open(work, job.sweep, grid=scene.grid).read(tile)
    sizes = [len(encode_tile(gaussians, steps)) for steps in job.ladder]
    with disk_errors(scene.path):
        Ledger.open(work, job.ledger).write((tile.row, tile.col), np.array(sizes, np.float64))


def shape_steps(run: Run) -> Steps:
    """Return the steps that shapes are quantised with.

    Raises
    ------
    BudgetError
        If even the coarsest do not fit the budget.
    """
    return _steps(run, _shape_factor(run))


def final_steps(run: Run) -> Steps:
    """Return the steps the scene is written with: those of the shapes, and the colors' own.

    Raises
    ------
    BudgetError
        If even the coarsest do not fit the budget.
    """
    color_factor = 1.0 if run.plan.byte_budget is None else _finest_that_fits(run, "color-rates", COLOR_FACTORS)
    return _steps(run, _shape_factor(run), color_factor)


def _shape_factor(run: Run) -> float:
    return 1.0 if run.plan.byte_budget is None else _finest_that_fits(run, SHAPE_RATES, FACTORS)


def _steps(run: Run, factor: float, color_factor: float = 1.0) -> Steps:
    return Steps.from_config(
        run.plan.config.codec,
        base_scale=run.plan.base_scale,
        error=float(Ledger.open(run.scene.work(), ERROR).read((0,))[0]),
        factor=factor,
        color_factor=color_factor,
    )


def _fit_error(run: Run) -> float:
    """Return the root of the scene's mean squared error, as the last fits reported it."""
    reports = SweepState.open(run.scene.work(), run.plan.last_sweep, grid=run.scene.grid).reports.read_complete()
    error, weight = (reports[..., REPORT_FIELDS.index(name)].sum() for name in ("squared_error", "weight"))
    return max(math.sqrt(error / weight), _LEAST_ERROR) if weight else _LEAST_ERROR


def _measure(run: Run, stage: str, *, ledger: str, sweep: int, ladder: tuple[Steps, ...]) -> None:
    if run.plan.byte_budget is None:
        return
    grid = run.scene.grid
    with disk_errors(run.scene.path):
        done = Ledger.open_or_create(run.scene.work(writable=True), ledger, jobs=grid.shape, fields=len(ladder)).done()
    missing = [tile for tile in grid if not done[tile.row, tile.col]]
    run.run_stage(
        stage,
        measure_one,
        [RateJob(tile=tile_job(run, tile), sweep=sweep, ladder=ladder, ledger=ledger) for tile in missing],
        done=len(grid) - len(missing),
    )


def _finest_that_fits(run: Run, ledger: str, factors: tuple[float, ...]) -> float:
    """Return the least factor with which the scene keeps to its budget, bytes between two rungs being interpolated."""
    assert run.plan.byte_budget is not None
    sizes = Ledger.open(run.scene.work(), ledger).read_complete()
    totals = sizes.sum(axis=(0, 1)) + _container_bytes(run.scene)
    aim = byte_aim(run.plan.byte_budget)
    if totals[-1] > aim:
        raise BudgetError(
            f"{run.scene.path}: {run.plan.count} Gaussians take {totals[-1]:.0f} bytes at the coarsest, "
            f"{run.plan.byte_budget} allowed; use --gaussians with a lower number, or a lower --ratio"
        )
    return float(2.0 ** np.interp(math.log(aim), np.log(totals[::-1]), np.log2(factors[::-1])))


def _container_bytes(scene: Scene) -> int:
    """Return what a scene takes apart from its tiles' streams: metadata, checksums, shard indexes, empty slots."""
    height, width = scene.shard_shape
    shards = len(list(scene.shards()))
    slots = shards * height * width
    empty = (slots - len(scene.grid)) * _EMPTY_BYTES
    table = 48 + 7 * len(scene.grid)  # its rows are 12 bytes, and compress to less than six with their quality
    return scene.metadata_bytes + table + empty + slots * (_CRC_BYTES + _INDEX_BYTES) + shards * _CRC_BYTES
