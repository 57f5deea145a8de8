"""One run over one scene: what every stage needs to do its part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.executors import Executor
from pipeline.jobs import DEFAULT_POLICY, FailurePolicy, Fallback, run_jobs
from pipeline.plan import ScenePlan
from pipeline.progress import Progress
from smartsplat.errors import StoreError
from smartsplat.geometry import Region, TileId
from smartsplat.normalization import Normalization, pixel_weight
from smartsplat.optim import Target
from smartsplat.optim.levels import level_region
from storage.pixels import PixelStore
from storage.scene import Scene

Job = TypeVar("Job")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A scene being worked on, by the process that was started for it.

    Parameters
    ----------
    scene
        Open for writing.
    first_plan
        What to do, before anything was added to it.
    executor, progress
        Where jobs run, and who watches.
    engine
        See `smartsplat.render.render`.
    policy
        What becomes of it when jobs fail.
    """

    scene: Scene
    first_plan: ScenePlan
    executor: Executor
    progress: Progress
    engine: str
    policy: FailurePolicy = DEFAULT_POLICY

    @property
    def plan(self) -> ScenePlan:
        """What to do, with the rounds that the scene says were added to the fit."""
        rounds = self.scene.manifest.rounds
        return (
            self.first_plan if rounds == self.first_plan.rounds else dataclasses.replace(self.first_plan, rounds=rounds)
        )

    @property
    def normalization(self) -> Normalization:
        """The scene's, known once its pixels are staged."""
        if self.scene.manifest.normalization is None:
            raise StoreError(f"{self.scene.path}: the image is not staged yet")
        return self.scene.manifest.normalization

    def run_stage(
        self,
        stage: str,
        function: Callable[[Job], Any],
        jobs: Sequence[Job],
        *,
        done: int = 0,
        note: Callable[[Any], str] | None = None,
        instead: Callable[[Job], Job] | None = None,
    ) -> list[Any]:
        """Return the result of each job of a stage, `done` others being finished (see `pipeline.jobs.run_jobs`).

        If the policy has it so, jobs that fail are replaced by what `instead` returns for them, and the scene keeps
        which.
        """
        if not jobs:
            return []
        fallback: Fallback[Job] | None = None
        if instead is not None:
            names = [str(job) for job in jobs]

            def record(degraded: dict[str, str]) -> None:
                self.scene.record_degraded(stage, degraded, among=names)

            record({})  # of a run that was killed in between: they are done anew
            fallback = Fallback(instead=instead, record=record) if self.policy.fallback else None
        return run_jobs(
            function,
            jobs,
            executor=self.executor,
            progress=self.progress,
            record_failures=lambda failures: self.scene.record_failures(stage, failures),
            stage=stage,
            done=done,
            note=note,
            most=self.policy.most,
            fallback=fallback,
            hint=", or with --on-failure fallback to do without them" if instead and not fallback else "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TileJob:
    """One tile's part of a stage; small, as it travels to a worker.

    Parameters
    ----------
    plan, path
        Of the scene.
    tile
        Which.
    normalization
        Of the scene.
    engine
        See `smartsplat.render.render`.
    count
        Gaussians to place (sampling only).
    """

    plan: ScenePlan
    path: str
    tile: TileId
    normalization: Normalization
    engine: str
    count: int = 0

    def __str__(self) -> str:
        return f"tile {self.tile}"


def tile_job(run: Run, tile: TileId, *, count: int = 0) -> TileJob:
    """Return the job of `tile` in this run."""
    return TileJob(
        plan=run.plan,
        path=str(run.scene.path),
        tile=tile,
        normalization=run.normalization,
        engine=run.engine,
        count=count,
    )


def read_target(
    pixels: PixelStore, normalization: Normalization, *, core: Region, padded: Region, factor: int = 1
) -> Target:
    """Return the pixels of `padded` as Gaussians are sampled from and fitted to: normalised, weighted, at a level.

    Parameters
    ----------
    core, padded
        Px of the scene.
    factor
        Of the level.
    """
    level = level_region(padded, factor)
    if factor > 1:
        averages, weight = pixels.read_level(level, factor)
        values = normalization.to_values(averages)
    else:
        stored = pixels.read(padded)
        values, weight = normalization.to_values(stored), pixel_weight(stored)
    if weight is not None:
        values[weight == 0] = 0
    return Target(pixels=values, weight=weight, core=level_region(core, factor), padded=level, factor=factor)
