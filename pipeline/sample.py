"""Place the first Gaussians: survey every tile, share the count between them, sample each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from pipeline.plan import ScenePlan
from pipeline.run import Run, TileJob, read_target, tile_job
from smartsplat.budget import SamplingPlan, TileStats, base_scale, plan_sampling
from smartsplat.geometry import Region, TileGrid
from smartsplat.render.footprint import max_scale
from smartsplat.sampling import sample_tile
from smartsplat.sampling.weights import CONTEXT, tile_stats
from storage.groups import disk_errors
from storage.ledger import Ledger
from storage.pixels import PixelStore
from storage.scene import Scene
from storage.state import SweepState, count_report, latest_sweep

_FIELDS = tuple(field.name for field in dataclasses.fields(TileStats))


def survey(run: Run) -> None:
    """Take the statistics of every tile that decide its share of the Gaussians."""
    work, grid = run.scene.work(writable=True), run.scene.grid
    with disk_errors(run.scene.path):
        done = Ledger.open_or_create(work, "survey", jobs=grid.shape, fields=len(_FIELDS)).done()
    missing = [tile for tile in grid if not done[tile.row, tile.col]]
    run.run_stage("survey", survey_one, [tile_job(run, tile) for tile in missing], done=len(grid) - len(missing))


def survey_one(job: TileJob) -> None:
    """Store the statistics of one tile; runs in a worker."""
    scene = Scene.open(Path(job.path), writable=True)
    work, core = scene.work(writable=True), scene.grid.core(job.tile)
    padded = _context(scene.grid, core)
    target = read_target(PixelStore.open(work), job.normalization, core=core, padded=padded)
    stats = tile_stats(target.pixels, weight=target.weight, core=core, padded=padded)
    with disk_errors(scene.path):
        values = np.array(dataclasses.astuple(stats), np.float64)
        Ledger.open(work, "survey").write((job.tile.row, job.tile.col), values)


def sampling_plan(run: Run) -> SamplingPlan:
    """Return the share of each tile, worked out from the survey."""
    rows = _survey(run).read_all().reshape(-1, len(_FIELDS))
    stats = [TileStats(pixels=int(row[0]), **dict(zip(_FIELDS[1:], row[1:].tolist(), strict=True))) for row in rows]
    height, width, _ = run.scene.manifest.shape
    return plan_sampling(stats, height=height, width=width, count=run.plan.start_count, config=run.plan.config.sampling)


def sample(run: Run) -> None:
    """Sample every tile that is not sampled yet: sweep 0 of the working state."""
    if (latest_sweep(run.scene.work()) or 0) > 0:
        return
    scene, counts = run.scene, sampling_plan(run).counts
    with disk_errors(scene.path):
        state = SweepState.open_or_create(
            scene.work(writable=True), 0, grid=scene.grid, capacity=max(counts), bands=scene.bands
        )
    done = state.reports.done()
    missing = [
        tile_job(run, tile, count=count)
        for tile, count in zip(scene.grid, counts, strict=True)
        if not done[tile.row, tile.col]
    ]
    run.run_stage("sample", sample_one, missing, done=len(scene.grid) - len(missing))


def sample_one(job: TileJob) -> None:
    """Sample one tile and store its Gaussians; runs in a worker."""
    scene = Scene.open(Path(job.path), writable=True)
    work, grid, config = scene.work(writable=True), scene.grid, job.plan.config
    core = grid.core(job.tile)
    padded = _context(grid, core)
    target = read_target(PixelStore.open(work), job.normalization, core=core, padded=padded)
    gaussians = sample_tile(
        target.pixels,
        weight=target.weight,
        core=core,
        padded=padded,
        tile=job.tile,
        count=job.count,
        base_scale=start_scale(job.plan),
        min_scale=config.fit.min_scale,
        max_scale=max_scale(grid.reach),
        seed=config.seed,
        config=config.sampling,
    )
    with disk_errors(scene.path):
        SweepState.open(work, 0, grid=grid).write(job.tile, gaussians, count_report(len(gaussians)))


def start_scale(plan: ScenePlan) -> float:
    """Return the base scale of those Gaussians that are sampled."""
    return base_scale(plan.source.height, plan.source.width, plan.start_count)


def _survey(run: Run) -> Ledger:
    return Ledger.open(run.scene.work(), "survey")


def _context(grid: TileGrid, core: Region) -> Region:
    """Return the pixels a sampled tile looks at: its halo, and at least what the weights' widest window needs."""
    return core.expand(max(grid.halo, CONTEXT)).intersect(grid.bounds)
