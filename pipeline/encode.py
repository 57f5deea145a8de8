"""Write the finished Gaussians: choose how finely, shard by shard, within the byte budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from pipeline.jobs import run_jobs
from pipeline.plan import FILL_AIM, METADATA_BYTES, ScenePlan
from pipeline.run import Run, TileJob, tile_job
from smartsplat.codec import Steps, decode_tile, encode_tile
from smartsplat.errors import BudgetError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import TileId
from smartsplat.render.footprint import reach_beyond
from storage.groups import disk_errors
from storage.ledger import Ledger
from storage.scene import Scene
from storage.state import SweepState

FACTORS = tuple(2.0 ** (k / 6) for k in range(-24, 19))
"""What the codec's steps may be multiplied by to meet a byte budget, finest first: about 3 % of the bytes apart."""

_CRC_BYTES = 4
_INDEX_BYTES = 16
_EMPTY_BYTES = 1


def measure_rates(run: Run) -> None:
    """Find out what every tile would take at each factor, if a byte budget asks for it."""
    if run.plan.byte_budget is None:
        return
    ledger = _open_ledger(run, "rates", fields=len(FACTORS))
    done = ledger.done()
    missing = [tile for tile in run.scene.grid if not done[tile.row, tile.col]]
    if missing:
        run_jobs(
            measure_one,
            [tile_job(run, tile) for tile in missing],
            executor=run.executor,
            progress=run.progress,
            record_failures=lambda failures: run.scene.record_failures("rate", failures),
            stage="rate",
            done=len(run.scene.grid) - len(missing),
        )


def measure_one(job: TileJob) -> None:
    """Store the bytes of one tile's stream at every factor; runs in a worker."""
    scene = Scene.open(Path(job.path), writable=True)
    work = scene.work(writable=True)
    gaussians = _final_state(work, job.plan, scene).read(job.tile)
    sizes = [len(encode_tile(gaussians, _steps(job.plan, factor))) for factor in FACTORS]
    with disk_errors(scene.path):
        Ledger.open(work, "rates").write((job.tile.row, job.tile.col), np.array(sizes, np.float64))


def choose_factor(run: Run) -> float:
    """Return the finest factor whose scene fits the byte budget, 1 without a budget.

    Raises
    ------
    BudgetError
        If even the coarsest does not fit.
    """
    if run.plan.byte_budget is None:
        return 1.0
    sizes = Ledger.open(run.scene.work(), "rates").read_all()
    totals = sizes.sum(axis=(0, 1)) + _container_bytes(run.scene)
    fits = np.flatnonzero(totals <= FILL_AIM * run.plan.byte_budget)
    if not len(fits):
        raise BudgetError(
            f"{run.scene.path}: {run.plan.count} Gaussians take {totals[-1]:.0f} bytes at the coarsest, "
            f"{run.plan.byte_budget} allowed; use --gaussians with a lower number, or a lower --ratio"
        )
    return FACTORS[fits[0]]


def encode(run: Run) -> None:
    """Write every shard that is not there yet, then the table of tiles."""
    factor = choose_factor(run)
    scene, steps = run.scene, _steps(run.plan, factor)
    capacity = int(_final_state(scene.work(), run.plan, scene).reports.read_all()[..., 0].max())
    ledger = _open_ledger(run, "encoded", fields=2, chunk=scene.shard_shape)
    with disk_errors(scene.path):
        scene.create_gaussians(steps, capacity=capacity)
    done = ledger.done()
    shards = list(scene.shards())
    missing = [where for where in shards if not done[where].all()]
    if missing:
        run_jobs(
            encode_one,
            [ShardJob(plan=run.plan, path=str(scene.path), where=where, factor=factor) for where in missing],
            executor=run.executor,
            progress=run.progress,
            record_failures=lambda failures: run.scene.record_failures("encode", failures),
            stage="encode",
            done=len(shards) - len(missing),
        )
    scene.write_tiles(ledger.read_all().astype(np.int32))
    budget = run.plan.byte_budget
    if budget is not None and scene.nbytes > budget:
        raise BudgetError(f"{scene.path}: {scene.nbytes} bytes written, {budget} allowed: please report this as a bug")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard to write; small, as it travels to a worker.

    Parameters
    ----------
    plan, path
        Of the scene.
    where
        Rows and columns of tiles.
    factor
        On the codec's steps.
    """

    plan: ScenePlan
    path: str
    where: tuple[slice, slice]
    factor: float

    def __str__(self) -> str:
        rows, cols = self.where
        return f"tiles ({rows.start}:{rows.stop}, {cols.start}:{cols.stop})"


def encode_one(job: ShardJob) -> None:
    """Write one shard, then its tiles' counts and reaches; runs in a worker."""
    scene = Scene.open(Path(job.path), writable=True)
    work = scene.work(writable=True)
    state, steps = _final_state(work, job.plan, scene), _steps(job.plan, job.factor)
    rows, cols = (range(part.start, part.stop) for part in job.where)
    tiles = [[state.read(TileId(row, col)) for col in cols] for row in rows]
    table = [
        [_table_entry(gaussians, TileId(row, col), scene, steps) for col, gaussians in zip(cols, line, strict=True)]
        for row, line in zip(rows, tiles, strict=True)
    ]
    scene.write_shard(job.where, tiles)
    with disk_errors(scene.path):
        Ledger.open(work, "encoded").write(job.where, np.array(table, np.float64))


def _table_entry(gaussians: Gaussians, tile: TileId, scene: Scene, steps: Steps) -> tuple[int, int]:
    """Return a tile's count and its reach as a reader will see it, after quantisation."""
    core = scene.grid.core(tile)
    decoded = decode_tile(encode_tile(gaussians, steps), steps, bands=scene.bands, max_count=len(gaussians))
    return len(decoded), reach_beyond(decoded, height=core.height, width=core.width)


def _container_bytes(scene: Scene) -> int:
    """Return what a scene takes apart from its tiles' streams: metadata, checksums, shard indexes, empty slots."""
    height, width = scene.shard_shape
    shards = len(list(scene.shards()))
    slots = shards * height * width
    empty = (slots - len(scene.grid)) * _EMPTY_BYTES
    table = 64 + 8 * len(scene.grid)
    return METADATA_BYTES + table + empty + slots * (_CRC_BYTES + _INDEX_BYTES) + shards * _CRC_BYTES


def _open_ledger(run: Run, name: str, *, fields: int, chunk: tuple[int, int] | None = None) -> Ledger:
    work = run.scene.work(writable=True)
    if name in work:
        return Ledger.open(work, name)
    with disk_errors(run.scene.path):
        return Ledger.create(work, name, jobs=run.scene.grid.shape, fields=fields, chunk=chunk)


def _final_state(work: zarr.Group, plan: ScenePlan, scene: Scene) -> SweepState:
    return SweepState.open(work, plan.config.fit.sweeps, grid=scene.grid)


def _steps(plan: ScenePlan, factor: float) -> Steps:
    return Steps.from_config(plan.config.codec, base_scale=plan.base_scale, factor=factor)
