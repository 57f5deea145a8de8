"""Write the finished Gaussians, shard by shard, and the table of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from pipeline.plan import ScenePlan
from pipeline.rate import final_steps
from pipeline.run import Run
from smartsplat.codec import Steps, requantized
from smartsplat.errors import BudgetError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import TileId
from smartsplat.render.footprint import reach_beyond
from storage.groups import disk_errors
from storage.ledger import Ledger
from storage.scene import Scene
from storage.state import SweepState


def encode(run: Run) -> None:
    """Write every shard that is not there yet, then the table of tiles."""
    scene, steps = run.scene, final_steps(run)
    work = scene.work(writable=True)
    capacity = int(_settled(work, run.plan, scene).reports.read_complete()[..., 0].max())
    with disk_errors(scene.path):
        ledger = Ledger.open_or_create(work, "encoded", jobs=scene.grid.shape, fields=2, chunk=scene.shard_shape)
        scene.create_gaussians(steps, capacity=capacity)
    done = ledger.done()
    shards = list(scene.shards())
    missing = [where for where in shards if not done[where].all()]
    run.run_stage(
        "encode",
        encode_one,
        [ShardJob(plan=run.plan, path=str(scene.path), where=where, steps=steps) for where in missing],
        done=len(shards) - len(missing),
    )
    scene.write_tiles(ledger.read_complete().astype(np.int32))
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
    steps
        To quantise with.
    """

    plan: ScenePlan
    path: str
    where: tuple[slice, slice]
    steps: Steps

    def __str__(self) -> str:
        rows, cols = self.where
        return f"tiles ({rows.start}:{rows.stop}, {cols.start}:{cols.stop})"


def encode_one(job: ShardJob) -> None:
    """Write one shard, then its tiles' counts and reaches; runs in a worker."""
    scene = Scene.open(Path(job.path), writable=True)
    work = scene.work(writable=True)
    state = _settled(work, job.plan, scene)
    rows, cols = (range(part.start, part.stop) for part in job.where)
    tiles = [state.read_all([TileId(row, col) for col in cols]) for row in rows]
    table = [
        [_table_entry(gaussians, TileId(row, col), scene, job.steps) for col, gaussians in zip(cols, line, strict=True)]
        for row, line in zip(rows, tiles, strict=True)
    ]
    scene.write_shard(job.where, tiles)
    with disk_errors(scene.path):
        Ledger.open(work, "encoded").write(job.where, np.array(table, np.float64))


def _table_entry(gaussians: Gaussians, tile: TileId, scene: Scene, steps: Steps) -> tuple[int, int]:
    """Return a tile's count and its reach as a reader will see it, after quantisation."""
    core = scene.grid.core(tile)
    return len(gaussians), reach_beyond(requantized(gaussians, steps), height=core.height, width=core.width)


def _settled(work: zarr.Group, plan: ScenePlan, scene: Scene) -> SweepState:
    return SweepState.open(work, plan.last_sweep + 1, grid=scene.grid)
