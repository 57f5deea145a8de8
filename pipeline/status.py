"""How far a scene is: jobs done, failed and missing, stage by stage; read from the store alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.optimize import stage_name
from smartsplat.errors import StoreError
from storage.groups import has_array
from storage.ledger import Ledger
from storage.scene import Scene
from storage.state import latest_sweep


def status(path: Path) -> dict[str, Any]:
    """Return the state of a scene, finished or not.

    Returns
    -------
    ``complete``; ``stages``: name, jobs ``done``, ``total`` and ``failed`` of each; ``tiles``: how many are ``done``
    (encoded), the ``failed`` ones with the reason, and the ``missing`` ones, named.

    Raises
    ------
    StoreError
        If there is no scene, or it is damaged.
    """
    scene = Scene.open(path)
    total = len(scene.grid)
    if scene.manifest.complete:
        tiles = {"done": total, "failed": {}, "missing": []}
        return {"scene": str(path), "complete": True, "stages": [], "tiles": tiles}
    if not scene.has_work:
        raise StoreError(f"{path}: unfinished, and its working data is gone; delete it and compress again")
    failures = scene.failures()
    encoded = _done(scene, "encoded", scene.grid.shape)
    failed = {tile: reason for jobs in failures.values() for tile, reason in jobs.items()}
    missing = [str(tile) for tile in scene.grid if not encoded[tile.row, tile.col] and f"tile {tile}" not in failed]
    return {
        "scene": str(path),
        "complete": False,
        "stages": list(_stages(scene, failures)),
        "tiles": {"done": int(encoded.sum()), "failed": failed, "missing": missing},
    }


def _stages(scene: Scene, failures: dict[str, dict[str, str]]) -> Iterator[dict[str, Any]]:
    passes = scene.manifest.passes
    sweeps = len(passes)
    ledgers = {"ingest": "strips", "survey": "survey", "sample": "state-0-reports"}
    ledgers |= {stage_name(k, passes): f"state-{k}-reports" for k in range(1, sweeps + 1)}
    rated = scene.manifest.config.nominal_ratio is not None
    ledgers |= {"rate": "shape-rates"} if rated else {}
    ledgers |= {"settle": f"state-{sweeps + 1}-reports"}
    ledgers |= {"rate of colors": "color-rates"} if rated else {}
    ledgers |= {"encode": "encoded"}
    latest = latest_sweep(scene.work()) or 0
    over = {f"state-{sweep}-reports" for sweep in range(latest)}  # each is complete before the next one begins
    for stage, name in ledgers.items():
        done = np.ones(scene.grid.shape, np.bool_) if name in over else _done(scene, name, scene.grid.shape)
        failed = sum(len(jobs) for name, jobs in failures.items() if _without_part(name) == stage)
        yield {"stage": stage, "done": int(done.sum()), "total": done.size, "failed": failed}


def _without_part(name: str) -> str:
    """Return the name of a stage without that of a phase or another part of it."""
    return name.split(", phase")[0].split(": ")[0]


def _done(scene: Scene, ledger: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which jobs a ledger has; none if the stage has not begun."""
    work = scene.work()
    return Ledger.open(work, ledger).done() if has_array(work, ledger) else np.zeros(shape, np.bool_)
