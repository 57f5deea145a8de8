"""How finely to quantise: every tile is measured at a ladder of steps, and the finest that fits the budget is used.

Errors that quantisation may add are measured in those the image has anyway. First one factor on them is chosen, from
the fit as it is; then, once colors have settled on the quantised shapes, a factor for the colors alone. Where a PSNR is
asked for instead of bytes, errors are measured: what rounding colors adds is known, and settled shapes have cost what
they have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.pilot import DB_A_DOUBLING
from pipeline.plan import byte_aim
from pipeline.run import Run, TileJob, tile_job
from smartsplat.codec import Steps, color_noise, encode_tile
from smartsplat.errors import BudgetError
from smartsplat.gaussians import Gaussians
from storage.groups import disk_errors
from storage.ledger import Ledger
from storage.scene import Scene
from storage.state import REPORT_FIELDS, SweepState, has_sweep

FACTORS = tuple(2.0**k for k in range(-3, 6))
"""On all errors allowed, least first: about 12 % of the bytes apart."""

COLOR_FACTORS = tuple(2.0 ** (k * 2 / 3) for k in range(-2, 4))
"""On those of colors alone, least first: about 5 % of the bytes apart."""

NOISE_FACTORS = tuple(2.0**k for k in range(-3, 5))
"""On errors of colors, where a PSNR is asked for."""

_LEAST_ERROR = 1e-4  # of the full range: an image fitted better than that is as good as exact

ERROR = "error"
"""Name of the ledger of the image's error before quantisation, one number."""

SHAPE_RATES = "shape-rates"
"""Name of the ledger of what tiles take before they settle."""

COLOR_RATES = "color-rates"
"""Name of the ledger of what they take after."""

PSNR_LOSS = 0.3
"""dB that the fit is to be above a PSNR asked for: quantisation at its usual steps takes about as much."""

_LEAST_LOSS, _MOST_LOSS = 0.1, 0.8  # dB: beyond these, another number of Gaussians does better than other steps
_MOST_ROUNDS = 3
_NO_NOISE = 1e-30
_SHAPE_NOISE = 1.9  # errors that quantisation adds in all, over those of rounding colors alone

_ERROR, _WEIGHT = (REPORT_FIELDS.index(name) for name in ("squared_error", "weight"))
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
    """Note the error of the fit; find out what every tile takes at each factor, or its noise, if that is asked for."""
    with disk_errors(run.scene.path):
        noted = Ledger.open_or_create(run.scene.work(writable=True), ERROR, jobs=(1,), fields=1)
        if not noted.done().all():
            noted.write((0,), np.array([max(math.sqrt(_squared_error(run, run.plan.last_sweep)), _LEAST_ERROR)]))
    ladder = [_steps(run, factor) for factor in (NOISE_FACTORS if run.plan.byte_budget is None else FACTORS)]
    _measure(run, "rate", ledger=SHAPE_RATES, sweep=run.plan.last_sweep, ladder=ladder)


def measure_colors(run: Run) -> None:
    """Find out what every settled tile takes at each color factor, or its noise, if that is asked for."""
    factor = _shape_factor(run)
    color_factors = NOISE_FACTORS if run.plan.byte_budget is None else COLOR_FACTORS
    ladder = [_steps(run, factor, color_factor) for color_factor in color_factors]
    _measure(run, "rate of colors", ledger=COLOR_RATES, sweep=run.plan.last_sweep + 1, ladder=ladder)


def measure_one(job: RateJob) -> None:
    """Store what one tile comes to at every rung of the ladder, bytes or noise; runs in a worker."""
    scene, tile = Scene.open(Path(job.tile.path), writable=True), job.tile.tile
    work = scene.work(writable=True)
    gaussians = SweepState.open(work, job.sweep, grid=scene.grid).read(tile)
    measure = color_noise if job.tile.plan.byte_budget is None else _stream_bytes
    found = [measure(gaussians, steps) for steps in job.ladder]
    with disk_errors(scene.path):
        Ledger.open(work, job.ledger).write((tile.row, tile.col), np.array(found, np.float64))


def _stream_bytes(gaussians: Gaussians, steps: Steps) -> int:
    return len(encode_tile(gaussians, steps))


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
    return _steps(run, _shape_factor(run), _color_factor(run))


def next_count(run: Run) -> int | None:
    """Return how many Gaussians the fit should go on with to come near the PSNR asked for; None if it is near."""
    plan = run.plan
    assert plan.config.psnr is not None
    if has_sweep(run.scene.work(), plan.last_sweep + 1) or len(plan.rounds) >= _MOST_ROUNDS:
        return None
    error, allowed = _squared_error(run, plan.last_sweep), _allowed_error(run)
    above = _MOST_LOSS if error == 0 else 10 * math.log10(allowed / error)
    if _LEAST_LOSS <= above <= _MOST_LOSS:
        return None
    doublings = min(max((PSNR_LOSS - above) / DB_A_DOUBLING, -1.0), 1.0)
    most = plan.source.height * plan.source.width
    return min(math.ceil(run.scene.manifest.gaussians * 2**doublings), most)


def _shape_factor(run: Run) -> float:
    if run.plan.byte_budget is not None:
        return _finest_that_fits(run, SHAPE_RATES, FACTORS)
    if run.plan.config.psnr is None:
        return 1.0
    room = _allowed_error(run) - _noted_error(run) ** 2
    return _factor_with_noise(run, SHAPE_RATES, room / _SHAPE_NOISE)


def _color_factor(run: Run) -> float:
    if run.plan.byte_budget is not None:
        return _finest_that_fits(run, COLOR_RATES, COLOR_FACTORS)
    if run.plan.config.psnr is None:
        return 1.0
    room = _allowed_error(run) - _squared_error(run, run.plan.last_sweep + 1)
    return _factor_with_noise(run, COLOR_RATES, room)


def _factor_with_noise(run: Run, ledger: str, noise: float) -> float:
    """Return the factor with which rounding colors adds `noise` to the scene's mean squared error."""
    reports = SweepState.open(run.scene.work(), run.plan.last_sweep, grid=run.scene.grid).reports.read_complete()
    found = Ledger.open(run.scene.work(), ledger).read_complete().sum(axis=(0, 1)) / max(reports[..., _WEIGHT].sum(), 1)
    logs = np.log(np.maximum(np.maximum.accumulate(found), _NO_NOISE))
    return float(2.0 ** np.interp(math.log(max(noise, _NO_NOISE)), logs, np.log2(NOISE_FACTORS)))


def _allowed_error(run: Run) -> float:
    """Return the mean squared error that the PSNR asked for leaves, without what rounding pixels adds."""
    assert run.plan.config.psnr is not None
    allowed = 10 ** (-run.plan.config.psnr / 10)
    if np.dtype(run.plan.source.dtype).kind == "f":
        return allowed
    return max(allowed - 1 / (12 * run.normalization.span**2), allowed / 4)


def _steps(run: Run, factor: float, color_factor: float = 1.0) -> Steps:
    return Steps.from_config(
        run.plan.config.codec,
        base_scale=run.plan.base_scale,
        error=_noted_error(run),
        factor=factor,
        color_factor=color_factor,
    )


def _noted_error(run: Run) -> float:
    return float(Ledger.open(run.scene.work(), ERROR).read((0,))[0])


def _squared_error(run: Run, sweep: int) -> float:
    """Return the scene's mean squared error, as the fits of a sweep reported it; 0 if no pixel has data."""
    reports = SweepState.open(run.scene.work(), sweep, grid=run.scene.grid).reports.read_complete()
    error, weight = reports[..., _ERROR].sum(), reports[..., _WEIGHT].sum()
    return float(error / weight) if weight else 0.0


def _measure(run: Run, stage: str, *, ledger: str, sweep: int, ladder: Sequence[Steps]) -> None:
    if not run.plan.config.is_rated:
        return
    grid = run.scene.grid
    with disk_errors(run.scene.path):
        done = Ledger.open_or_create(run.scene.work(writable=True), ledger, jobs=grid.shape, fields=len(ladder)).done()
    missing = [tile for tile in grid if not done[tile.row, tile.col]]
    run.run_stage(
        stage,
        measure_one,
        [RateJob(tile=tile_job(run, tile), sweep=sweep, ladder=tuple(ladder), ledger=ledger) for tile in missing],
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
