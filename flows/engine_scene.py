"""The scene that engines are timed on. Loads next to nothing, so it runs where only an engine is installed."""

from __future__ import annotations

import math

import numpy as np

from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.render.footprint import CUTOFF

PAIRS_A_PIXEL = 12
"""Footprints over each pixel."""


def engine_scene(side: int) -> tuple[Gaussians, Region]:
    """Return random Gaussians with `PAIRS_A_PIXEL` footprints over each pixel, and the square they cover."""
    count = round(side * side * 9000 / 1024**2)
    rng = np.random.default_rng(0)
    rows = np.empty((count, 8))
    rows[:, 0:2] = rng.uniform(0, side, (count, 2))
    rows[:, 2:4] = np.exp(rng.normal(0, 0.4, (count, 2)))
    covered = math.pi * CUTOFF**2 * rows[:, 2:4].prod(axis=1).sum()
    rows[:, 2:4] *= math.sqrt(PAIRS_A_PIXEL * side * side / covered)
    rows[:, 4] = rng.uniform(0, math.pi, count)
    rows[:, 5:] = rng.uniform(-1, 1, (count, 3))
    gaussians = Gaussians.from_rows(rows.astype(np.float32))
    return gaussians, Region(y0=0, y1=side, x0=0, x1=side)
