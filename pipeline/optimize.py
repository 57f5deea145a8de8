"""Fit the scene: sweeps of four coloured phases, each block of tiles against its neighbours' latest earlier state.

A block is one tile, or at a coarse level as many as make a tile there. Blocks of one phase never meet, so they run in
any order on any number of workers with one result. What a job reads is computed from its place in the schedule, not
from what happens to be there, so a run that was killed resumes from the same inputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.propose import begin_candidates, write_candidates
from pipeline.rate import shape_steps
from pipeline.run import Run, TileJob, read_target, tile_job
from smartsplat.codec import Steps, requantized, suitable_precisions
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region, TileGrid, TileId, block_grid, input_sweep
from smartsplat.optim import FitReport, FittedTiles, Target, fit_tiles
from smartsplat.render.footprint import max_scale
from smartsplat.schedule import FitPass, InsertPass
from storage.groups import disk_errors
from storage.pixels import PixelStore
from storage.scene import Scene
from storage.state import REPORT_FIELDS, SweepState, bounding_box, forget_sweeps, has_sweep, latest_sweep

SETTLE = "settle"
"""Name of the stage in which shapes are quantised, and colors solved for what that did."""

SETTLING = FitPass(pairs=12, color_iterations=8, fixed_means=True)
"""What is done in it: pairs once means are quantised, colors once shapes are."""

_LEAST_SCALE = 1e-3  # px: quantised scales stay as they are, also below what a fit keeps to

_SUMMED_FIELDS = ("squared_error", "weight")  # of a block: kept with one of its tiles, so that they add up


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """One block's part of one phase; small, as it travels to a worker.

    Parameters
    ----------
    tile
        The block, and where its data is.
    sweep
        From 1.
    work
        What to do in this sweep.
    steps
        If given, shapes are first quantised with these, and stay as they are then.
    seconds
        Longest it may take; None = no limit.
    """

    tile: TileJob
    sweep: int
    work: FitPass
    steps: Steps | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return str(self.tile) if self.work.factor == 1 else f"block {self.tile.tile} at 1/{self.work.factor}"


def stage_name(sweep: int, passes: Sequence[FitPass | InsertPass]) -> str:
    """Return what a sweep is called, without its phase.

    Examples
    --------
    >>> stage_name(1, [FitPass(factor=2, pairs=25)])
    'fit 1 of 1, 25 pairs at 1/2'
    """
    return f"fit {sweep} of {len(passes)}, {passes[sweep - 1]}"


def phase_name(stage: str, color: int) -> str:
    """Return what the phase of a stage is called that visits the blocks of one colour.

    Examples
    --------
    >>> phase_name("settle", 0)
    'settle, phase 1'
    """
    return f"{stage}, phase {color + 1}"


def fit_phase(run: Run, sweep: int, work: FitPass, color: int) -> None:
    """Fit the blocks of one colour in one sweep, those that are not done yet."""
    name = phase_name(stage_name(sweep, run.plan.passes), color)
    _phase(run, name, sweep=sweep, color=color, work=work, steps=None)


def settle_phase(run: Run, color: int) -> None:
    """Quantise the shapes of the tiles of one colour, and fit anew what is left for what that did to the image.

    A neighbour that has settled is seen as it will be decoded, so that errors do not add up where tiles meet.
    """
    _phase(
        run,
        phase_name(SETTLE, color),
        sweep=run.plan.last_sweep + 1,
        color=color,
        work=SETTLING,
        steps=shape_steps(run),
    )


def is_over(run: Run, sweep: int) -> bool:
    """Whether a later sweep has begun, for which this one had to be complete."""
    latest = latest_sweep(run.scene.work())
    return latest is not None and latest > sweep


def begin_sweep(run: Run, sweep: int, *, capacity: int | None = None, kept: int = 1) -> SweepState:
    """Return the state of `sweep`, made on first use; what no job can need any more is deleted.

    Parameters
    ----------
    capacity
        Gaussians of the fullest tile; None = as in the sweep before.
    kept
        How many of the sweeps before may be needed.
    """
    work, grid = run.scene.work(writable=True), run.scene.grid
    with disk_errors(run.scene.path):
        if has_sweep(work, sweep):  # those before may be lost by now, and need not be there if this one is complete
            state = SweepState.open(work, sweep, grid=grid)
        else:
            if capacity is None:
                capacity = SweepState.open(work, sweep - 1, grid=grid).rows.shape[2]
            state = SweepState.open_or_create(work, sweep, grid=grid, capacity=capacity, bands=run.scene.bands)
        forget_sweeps(work, before=sweep - kept)
    return state


def _phase(run: Run, name: str, *, sweep: int, color: int, work: FitPass, steps: Steps | None) -> None:
    if is_over(run, sweep):
        return
    insertion = run.plan.insertion_after(sweep)
    if insertion is not None:
        begin_candidates(run, sweep + 1, insertion)
    done, grid = begin_sweep(run, sweep).reports.done(), run.scene.grid
    blocks = block_grid(grid, work.factor)
    wanted = blocks.of_color(color)
    missing = [block for block in blocks_missing(grid, blocks, done) if block.color == color]
    if len(missing) > 1:
        # The longest jobs first, so that towards the end no worker waits for another's.
        sizes = SweepState.open(run.scene.work(), sweep - 1, grid=grid).reports.read_all()[..., 0]
        missing.sort(key=lambda block: -sizes[bounding_box(grid.within(blocks.core(block)))].sum())
    run.run_stage(
        name,
        fit_one if steps is None else settle_one,
        [
            BlockJob(tile=tile_job(run, block), sweep=sweep, work=work, steps=steps, seconds=run.policy.fit_seconds)
            for block in missing
        ],
        done=len(wanted) - len(missing),
        note=_psnr_note,
        instead=_colors_only,
    )


def _colors_only(job: BlockJob) -> BlockJob:
    """Return the job that leaves shapes as they are: linear, so that it has a solution whatever the pixels."""
    colors = dataclasses.replace(SETTLING, pairs=0, factor=job.work.factor)
    return dataclasses.replace(job, work=colors, seconds=None)


def blocks_missing(grid: TileGrid, blocks: TileGrid, done: NDArray[np.bool_]) -> list[TileId]:
    """Return the blocks of which not every tile is done."""
    return [block for block in blocks if not done[bounding_box(grid.within(blocks.core(block)))].all()]


def fit_one(job: BlockJob) -> FitReport:
    """Fit one block and store the result; runs in a worker."""
    visit = _visit(job)
    insertion = job.tile.plan.insertion_after(job.sweep)
    fitted = visit.fit(visit.own, work=job.work)
    with disk_errors(visit.scene.path):
        if insertion is not None:
            write_candidates(
                visit.scene.work(writable=True),
                visit.scene.grid,
                job.sweep + 1,
                insertion,
                tiles=visit.tiles,
                fitted=fitted,
                target=visit.target,
                config=job.tile.plan.config.fit,
            )
        visit.write(fitted.gaussians, fitted.report)
    return fitted.report


def settle_one(job: BlockJob) -> FitReport:
    """Quantise the means and then the shapes of one tile, all else being fitted anew each time; runs in a worker.

    Colors are not rounded yet: how finely, is known when all tiles have settled.
    """
    assert job.steps is not None
    visit, work = _visit(job), job.work
    (own,) = visit.own
    precisions = suitable_precisions(own, job.steps)
    means = requantized(own, job.steps, precisions=precisions).means
    (fitted,) = visit.fit(
        [dataclasses.replace(own, means=means)], work=dataclasses.replace(work, color_iterations=0)
    ).gaussians
    shapes = dataclasses.replace(requantized(fitted, job.steps, precisions=precisions), colors=fitted.colors)
    solved = visit.fit([shapes], work=dataclasses.replace(work, pairs=0), min_scale=_LEAST_SCALE)
    with disk_errors(visit.scene.path):
        visit.write([dataclasses.replace(shapes, colors=solved.gaussians[0].colors)], solved.report)
    return solved.report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """What a job has before it: a block's tiles, their pixels, and what is around them."""

    job: BlockJob
    scene: Scene
    target: Target
    tiles: list[TileId]
    own: list[Gaussians]
    frozen: list[Gaussians]
    state: SweepState

    def fit(self, own: list[Gaussians], *, work: FitPass, min_scale: float | None = None) -> FittedTiles:
        """Return Gaussians of the block fitted to what the others leave."""
        config, grid = self.job.tile.plan.config.fit, self.scene.grid
        return fit_tiles(
            self.target,
            own,
            cores=[grid.core(tile) for tile in self.tiles],
            frozen=self.frozen,
            work=work,
            config=config if min_scale is None else dataclasses.replace(config, min_scale=min_scale),
            max_scale=max_scale(grid.reach),
            engine=self.job.tile.engine,
            seconds=self.job.seconds,
        )

    def write(self, gaussians: Sequence[Gaussians], report: FitReport) -> None:
        """Store what came of it."""
        rows = [_row(report, one, first=index == 0) for index, one in enumerate(gaussians)]
        self.state.write_all(self.tiles, gaussians, rows)


def _visit(job: BlockJob) -> _Visit:
    scene = Scene.open(Path(job.tile.path), writable=True)
    group, grid = scene.work(writable=True), scene.grid
    blocks, block = block_grid(grid, job.work.factor), job.tile.tile
    core, padded = blocks.core(block), blocks.padded(block)
    tiles = grid.within(core)
    states = {sweep: SweepState.open(group, sweep, grid=grid) for sweep in (job.sweep - 1, job.sweep)}
    around: dict[int, list[TileId]] = {sweep: [] for sweep in states}
    for other in tiles_around(grid, core=core, padded=padded):
        around[_sweep_seen(other, block, grid=grid, blocks=blocks, sweep=job.sweep)].append(other)
    before = states[job.sweep - 1].read_all([*tiles, *around[job.sweep - 1]])
    frozen = [*before[len(tiles) :], *states[job.sweep].read_all(around[job.sweep])]
    return _Visit(
        job=job,
        scene=scene,
        target=read_target(
            PixelStore.open(group), job.tile.normalization, core=core, padded=padded, factor=job.work.factor
        ),
        tiles=list(tiles),
        own=before[: len(tiles)],
        frozen=[gaussians for gaussians in frozen if len(gaussians)],
        state=states[job.sweep],
    )


def tiles_around(grid: TileGrid, *, core: Region, padded: Region) -> list[TileId]:
    """Return the tiles outside `core` whose Gaussians may reach `padded`."""
    inside = set(grid.within(core))
    return [tile for tile in grid.within(padded.expand(grid.reach)) if tile not in inside]


def scene_psnr(work: zarr.Group, sweep: int, *, grid: TileGrid) -> float | None:
    """Return the scene's PSNR as the fits of `sweep` reported it so far, dB, before quantisation and at their level.

    None if no tile has been fitted in it: it has just begun, or is an insertion.
    """
    reports = SweepState.open(work, sweep, grid=grid).reports.read_all()
    error, weight = (np.nansum(reports[..., REPORT_FIELDS.index(name)]) for name in _SUMMED_FIELDS)
    if weight == 0:
        return None
    return math.inf if error == 0 else -10 * math.log10(error / weight)


def _sweep_seen(other: TileId, block: TileId, *, grid: TileGrid, blocks: TileGrid, sweep: int) -> int:
    (neighbor,) = blocks.within(Region(**_first_pixel(grid.core(other))))
    return input_sweep(block, neighbor, sweep=sweep)


def _first_pixel(core: Region) -> dict[str, int]:
    return {"y0": core.y0, "y1": core.y0 + 1, "x0": core.x0, "x1": core.x0 + 1}


def _row(report: FitReport, gaussians: Gaussians, *, first: bool) -> np.ndarray:
    """Return the report of one tile of a block."""
    values = dataclasses.asdict(report) | {"count": len(gaussians)}
    if not first:
        values |= dict.fromkeys(_SUMMED_FIELDS, 0.0)
    return np.array([values[name] for name in REPORT_FIELDS], np.float64)


def _psnr_note(report: FitReport) -> str:
    if report.squared_error <= 0 or report.weight <= 0:
        return ""
    return f"{-10 * math.log10(report.squared_error / report.weight):.1f} dB"


assert {field.name for field in dataclasses.fields(FitReport)} == set(REPORT_FIELDS)
