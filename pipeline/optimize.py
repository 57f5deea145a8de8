"""Fit the scene: sweeps of four coloured phases, each tile against its neighbours' latest earlier state.

Tiles of one phase never meet, so they run in any order on any number of workers with one result. What a job reads is
computed from its place in the schedule, not from what happens to be there, so a run that was killed resumes from the
same inputs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.rate import shape_steps
from pipeline.run import Run, TileJob, read_target, tile_job
from smartsplat.codec import Steps, requantized
from smartsplat.config import FitConfig
from smartsplat.geometry import PHASES_PER_SWEEP, input_sweep
from smartsplat.optim import FitReport, fit_tile
from smartsplat.render.footprint import max_scale
from storage.groups import disk_errors
from storage.pixels import PixelStore
from storage.scene import Scene
from storage.state import REPORT_FIELDS, SweepState


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """One tile's part of one phase; small, as it travels to a worker.

    Parameters
    ----------
    tile
        Which, and where its data is.
    sweep
        From 1.
    config
        What to do in this sweep.
    steps
        If given, shapes are first quantised with these, and stay as they are then.
    """

    tile: TileJob
    sweep: int
    config: FitConfig
    steps: Steps | None = None

    def __str__(self) -> str:
        return str(self.tile)


def fit_phase(run: Run, sweep: int, color: int) -> None:
    """Fit the tiles of one colour in one sweep, those that are not done yet."""
    name = f"fit, sweep {sweep} of {run.plan.config.fit.sweeps}, phase {color + 1} of {PHASES_PER_SWEEP}"
    _phase(run, name, sweep=sweep, color=color, config=run.plan.config.fit, steps=None)


def settle_phase(run: Run, color: int) -> None:
    """Quantise the shapes of the tiles of one colour, and solve their colors anew for what that did to the image.

    A neighbour that has settled is seen as it will be decoded, so that errors do not add up where tiles meet.
    """
    name = f"settle, phase {color + 1} of {PHASES_PER_SWEEP}"
    config = dataclasses.replace(run.plan.config.fit, steps=0)
    _phase(run, name, sweep=run.plan.config.fit.sweeps + 1, color=color, config=config, steps=shape_steps(run))


def _phase(run: Run, name: str, *, sweep: int, color: int, config: FitConfig, steps: Steps | None) -> None:
    done = _open_sweep(run, sweep).reports.done()
    tiles = run.scene.grid.of_color(color)
    missing = [tile for tile in tiles if not done[tile.row, tile.col]]
    run.run_stage(
        name,
        fit_one,
        [FitJob(tile=tile_job(run, tile), sweep=sweep, config=config, steps=steps) for tile in missing],
        done=len(tiles) - len(missing),
        note=_psnr_note,
    )


def fit_one(job: FitJob) -> FitReport:
    """Fit one tile and store the result; runs in a worker."""
    tile, scene = job.tile.tile, Scene.open(Path(job.tile.path), writable=True)
    work, grid = scene.work(writable=True), scene.grid
    target = read_target(PixelStore.open(work), job.tile.normalization, core=grid.core(tile), padded=grid.padded(tile))
    states = {sweep: SweepState.open(work, sweep, grid=grid) for sweep in (job.sweep - 1, job.sweep)}
    own = states[job.sweep - 1].read(tile)
    frozen = [states[input_sweep(tile, other, sweep=job.sweep)].read(other) for other in grid.neighbors(tile)]
    fitted, report = fit_tile(
        target,
        own if job.steps is None else requantized(own, job.steps),
        frozen=[gaussians for gaussians in frozen if len(gaussians)],
        config=job.config,
        sweep=job.sweep,
        max_scale=max_scale(grid.reach),
        engine=job.tile.engine,
    )
    with disk_errors(scene.path):
        states[job.sweep].write(tile, fitted, np.array([getattr(report, name) for name in REPORT_FIELDS]))
    return report


def scene_psnr(run: Run, sweep: int) -> float:
    """Return the scene's PSNR as the fits of `sweep` reported it, dB, before quantisation."""
    reports = SweepState.open(run.scene.work(), sweep, grid=run.scene.grid).reports.read_all()
    error, weight = (reports[..., REPORT_FIELDS.index(name)].sum() for name in ("squared_error", "weight"))
    return math.inf if error == 0 else -10 * math.log10(error / weight)


def _open_sweep(run: Run, sweep: int) -> SweepState:
    # Between sweeps is where Gaussians may be added: the new sweep's capacity is then the earlier one's and more.
    work, grid = run.scene.work(writable=True), run.scene.grid
    earlier = SweepState.open(work, sweep - 1, grid=grid)
    with disk_errors(run.scene.path):
        return SweepState.open_or_create(work, sweep, grid=grid, capacity=earlier.rows.shape[2], bands=run.scene.bands)


def _psnr_note(report: FitReport) -> str:
    if report.squared_error <= 0 or report.weight <= 0:
        return ""
    return f"{-10 * math.log10(report.squared_error / report.weight):.1f} dB"


assert {field.name for field in dataclasses.fields(FitReport)} == set(REPORT_FIELDS)
