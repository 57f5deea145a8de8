"""Fit the scene: sweeps of four coloured phases, each tile against its neighbours' latest earlier state.

Tiles of one phase never meet, so they run in any order on any number of workers with one result. What a job reads is
computed from its place in the schedule, not from what happens to be there, so a run that was killed resumes from the
same inputs.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from pipeline.jobs import run_jobs
from pipeline.run import Run, TileJob, read_target, tile_job
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import TileId, input_sweep
from smartsplat.optim import FitReport, fit_tile
from smartsplat.render.footprint import max_scale
from storage.groups import disk_errors
from storage.pixels import PixelStore
from storage.scene import Scene
from storage.state import REPORT_FIELDS, SweepState


def fit_phase(run: Run, sweep: int, color: int) -> None:
    """Fit the tiles of one colour in one sweep, those that are not done yet."""
    state = _open_sweep(run, sweep)
    done = state.reports.done()
    tiles = run.scene.grid.of_color(color)
    missing = [tile for tile in tiles if not done[tile.row, tile.col]]
    stage = phase_name(run, sweep, color)
    if missing:
        run_jobs(
            fit_one,
            [tile_job(run, tile, sweep=sweep) for tile in missing],
            executor=run.executor,
            progress=run.progress,
            record_failures=lambda failures: run.scene.record_failures(stage, failures),
            stage=stage,
            done=len(tiles) - len(missing),
            note=_psnr_note,
        )


def phase_name(run: Run, sweep: int, color: int) -> str:
    """Return how a phase is called to people."""
    return f"fit, sweep {sweep} of {run.plan.config.fit.sweeps}, phase {color + 1} of 4"


def fit_one(job: TileJob) -> FitReport:
    """Fit one tile and store the result; runs in a worker."""
    scene = Scene.open(Path(job.path), writable=True)
    work, grid, config = scene.work(writable=True), scene.grid, job.plan.config.fit
    target = read_target(
        PixelStore.open(work), job.normalization, core=grid.core(job.tile), padded=grid.padded(job.tile)
    )
    states = {sweep: SweepState.open(work, sweep, grid=grid) for sweep in (job.sweep - 1, job.sweep)}
    frozen = [_input(states, job, neighbor) for neighbor in grid.neighbors(job.tile)]
    fitted, report = fit_tile(
        target,
        states[job.sweep - 1].read(job.tile),
        frozen=[gaussians for gaussians in frozen if len(gaussians)],
        config=config,
        sweep=job.sweep,
        max_scale=max_scale(grid.reach),
        engine=job.engine,
    )
    with disk_errors(scene.path):
        states[job.sweep].write(job.tile, fitted, np.array([getattr(report, name) for name in REPORT_FIELDS]))
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


def _input(states: dict[int, SweepState], job: TileJob, neighbor: TileId) -> Gaussians:
    return states[input_sweep(job.tile, neighbor, sweep=job.sweep)].read(neighbor)


def _psnr_note(report: FitReport) -> str:
    if report.squared_error <= 0 or report.weight <= 0:
        return ""
    return f"{-10 * math.log10(report.squared_error / report.weight):.1f} dB"


assert {field.name for field in dataclasses.fields(FitReport)} == set(REPORT_FIELDS)
