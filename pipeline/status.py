"""How far a scene is, read from the store by any process: jobs done, failed and left, stage by stage; pace; time left.

What is done is in the ledgers, of all runs together. Whether a run lives, and how fast, is in its record
(`pipeline.tracking`), and holds for that run alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.forecast import EVALUATE, Part, run_parts, seconds_left
from pipeline.optimize import SETTLE, blocks_missing, scene_psnr, stage_name
from pipeline.rate import COLOR_RATES, SHAPE_RATES
from pipeline.tracking import RunRecord, is_running, memory_of, read_run
from smartsplat.errors import StoreError
from smartsplat.geometry import block_grid
from smartsplat.schedule import FitPass
from storage.groups import has_array
from storage.ledger import Ledger
from storage.scene import Scene
from storage.state import latest_sweep

_ATTEMPTS = 3  # while a run goes on, what is read may be deleted for being done with


def status(path: Path) -> dict[str, Any]:
    """Return the state of a scene, finished or not.

    Returns
    -------
    ``complete``
        Whether the scene is finished; all below is empty or None then.
    ``share``
        Of the work, that is done: from 0 to 1, by the model of `pipeline.forecast`.
    ``stages``
        Name, ``done``, ``total`` (tiles, strips for the first) and jobs ``failed`` of each.
    ``tiles``
        How many are ``done`` (encoded), the ``failed`` ones with the reason, and the ``missing`` ones, named.
    ``now``
        ``stage``, ``phase`` (from 1; None if it has none), ``done``, ``failed``, ``left`` and ``total`` of the first
        stage that is not done.
    ``psnr``
        ``db`` as the latest fits reported it, before quantisation and at their level; in which ``stage``; how many
        ``tiles`` have been through that. None before the first fit.
    ``run``
        The latest run, unless it ended and said so: whether it is ``running`` (None on another host), its ``host``
        and ``pid``, ``heard_seconds_ago``; and while it may be running ``jobs_a_second`` and ``megapixels_a_minute``
        of this stage, ``seconds_left``, ``memory_bytes`` of its processes; None where unknown.

    Raises
    ------
    StoreError
        If there is no scene, or it is damaged.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _status(path)
        except StoreError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def _status(path: Path) -> dict[str, Any]:
    record = read_run(path)  # before the manifest: a run that ends in between is seen to have finished the scene
    running = None if record is None else is_running(record)
    live = None if running is False else record
    scene = Scene.open(path)
    if scene.manifest.complete:
        tiles = {"done": len(scene.grid), "failed": {}, "missing": []}
        found: dict[str, Any] = {"scene": str(path), "complete": True, "share": 1.0, "stages": [], "tiles": tiles}
        return found | {"now": None, "psnr": None, "run": None}
    if not scene.has_work:
        raise StoreError(f"{path}: unfinished, and its working data is gone; delete it and compress again")
    failures = scene.failures()
    stages = _stages(scene, failures)
    share, left = _outlook(scene, stages, live)
    return {
        "scene": str(path),
        "complete": False,
        "share": share,
        "stages": [stage.to_dict() for stage in stages],
        "tiles": _tiles(scene, failures, encoded=stages[-1].done),
        "now": _now(scene, stages, live),
        "psnr": _psnr(scene, stages),
        "run": None if record is None else _run(record, running=running, left=left),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """A stage that keeps a ledger: which of its rows are there, and how many jobs failed."""

    name: str
    done: NDArray[np.bool_]
    failed: int

    def to_dict(self) -> dict[str, Any]:
        done, total = int(self.done.sum()), self.done.size
        return {"stage": self.name, "done": done, "total": total, "failed": self.failed}


def _stages(scene: Scene, failures: dict[str, dict[str, str]]) -> list[_Stage]:
    passes = scene.manifest.passes
    sweeps = len(passes)
    ledgers = {"ingest": "strips", "survey": "survey", "sample": "state-0-reports"}
    ledgers |= {stage_name(k, passes): f"state-{k}-reports" for k in range(1, sweeps + 1)}
    rated = scene.manifest.config.is_rated
    ledgers |= {"rate": SHAPE_RATES} if rated else {}
    ledgers |= {SETTLE: f"state-{sweeps + 1}-reports"}
    ledgers |= {"rate of colors": COLOR_RATES} if rated else {}
    ledgers |= {"encode": "encoded"}
    begun = [name for name in ledgers.values() if has_array(scene.work(), name)]
    # A stage is complete before the next one begins, but for strips that were found damaged later.
    over = set(itertools.takewhile(lambda name: name != begun[-1], ledgers.values())) - {"strips"} if begun else set()
    found: list[_Stage] = []
    for stage, name in ledgers.items():
        done = np.ones(scene.grid.shape, np.bool_) if name in over else _done(scene, name, scene.grid.shape)
        failed = sum(len(jobs) for name, jobs in failures.items() if _without_part(name) == stage)
        found.append(_Stage(name=stage, done=done, failed=failed))
    return found


def _without_part(name: str) -> str:
    """Return the name of a stage without that of a phase or another part of it."""
    return name.split(", phase")[0].split(": ")[0]


def _done(scene: Scene, ledger: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which jobs a ledger has; none if the stage has not begun."""
    work = scene.work()
    return Ledger.open(work, ledger).done() if has_array(work, ledger) else np.zeros(shape, np.bool_)


def _tiles(scene: Scene, failures: dict[str, dict[str, str]], *, encoded: NDArray[np.bool_]) -> dict[str, Any]:
    failed = {tile: reason for jobs in failures.values() for tile, reason in jobs.items()}
    missing = [str(tile) for tile in scene.grid if not encoded[tile.row, tile.col] and f"tile {tile}" not in failed]
    return {"done": int(encoded.sum()), "failed": failed, "missing": missing}


def _now(scene: Scene, stages: list[_Stage], record: RunRecord | None) -> dict[str, Any]:
    """Return the first stage that is not done; only the record knows how far the last one is."""
    stage = next((stage for stage in stages if not stage.done.all()), None)
    if stage is None:
        done, total = (record.done, record.total) if record is not None and record.part == EVALUATE else (0, None)
        left = None if total is None else total - done
        return {"stage": EVALUATE, "phase": None, "done": done, "failed": 0, "left": left, "total": total}
    values = stage.to_dict()
    phase = _phase(scene, stage)
    return {"phase": phase, "left": values["total"] - values["done"], **values}


def _phase(scene: Scene, stage: _Stage) -> int | None:
    """Return the phase of a stage whose blocks are not all done, from 1; None if it has none."""
    passes = scene.manifest.passes
    names = {stage_name(number, passes): each for number, each in enumerate(passes, start=1)}
    work = FitPass() if stage.name == SETTLE else names.get(stage.name)
    if not isinstance(work, FitPass):
        return None
    blocks = block_grid(scene.grid, work.factor)
    return 1 + min(block.color for block in blocks_missing(scene.grid, blocks, stage.done))


def _outlook(scene: Scene, stages: list[_Stage], record: RunRecord | None) -> tuple[float, float | None]:
    """Return the share of the work that is done, and how long the rest takes at the pace of the run, s."""
    manifest = scene.manifest
    rated = manifest.config.is_rated
    parts = run_parts(manifest.passes, scene.grid, count=manifest.gaussians, rated=rated)
    total = sum(part.work for part in parts)
    done = sum(float(stage.done.mean()) * _work_of(parts, stage.name) for stage in stages)
    if record is None:
        return done / total, None
    if record.part == EVALUATE:
        done += _work_of(parts, EVALUATE) * record.done / max(1, record.total)
    left = seconds_left(total=total, done=done, done_now=record.work, seconds=record.seconds)
    return done / total, left


def _work_of(parts: list[Part], stage: str) -> float:
    return sum(part.work for part in parts if part.stage == stage)


def _psnr(scene: Scene, stages: list[_Stage]) -> dict[str, Any] | None:
    """Return the PSNR of the latest sweep in which a tile has been fitted, of those that are kept."""
    work, passes = scene.work(), scene.manifest.passes
    done = {stage.name: stage.done for stage in stages}
    for sweep in range(latest_sweep(work) or 0, 0, -1):
        if not has_array(work, f"state-{sweep}-reports"):
            return None
        value = scene_psnr(work, sweep, grid=scene.grid)
        if value is not None:
            stage = SETTLE if sweep > len(passes) else stage_name(sweep, passes)
            return {"db": value if math.isfinite(value) else None, "stage": stage, "tiles": int(done[stage].sum())}
    return None


def _run(record: RunRecord, *, running: bool | None, left: float | None) -> dict[str, Any]:
    lives = running is not False  # a pace and a memory that are no more would only mislead
    return {
        "running": running,
        "host": record.host,
        "pid": record.pid,
        "heard_seconds_ago": record.seconds_ago,
        "jobs_a_second": record.jobs_a_second if lives else None,
        "megapixels_a_minute": record.megapixels_a_minute if lives else None,
        "seconds_left": left if lives else None,
        "memory_bytes": memory_of(record) if lives else None,
    }
