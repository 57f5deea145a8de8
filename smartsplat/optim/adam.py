"""Adam, for losses that are no sum of squares: the published recipe, and the last polish of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.deadline import Deadline
from smartsplat.optim.lm import Bounds
from smartsplat.render import operators

Loss = Callable[[Floats], tuple[float, Floats]]
"""Planes of an image to the loss and its derivative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How far a step goes.

    Parameters
    ----------
    mean, scale, rotation, color
        Of each kind of parameter.
    relative
        If true, a mean moves in units of its Gaussian's smaller scale and a scale in units of itself, and rates fall to
        zero along a cosine. If false, they are as published: a mean moves in units of half the region's sides, a scale
        in px, and rates stay.
    """

    mean: float
    scale: float
    rotation: float
    color: float
    relative: bool

    @property
    def decays(self) -> tuple[float, float]:
        """Of the averages of the gradient and of its square."""
        return (0.9, 0.99) if self.relative else (0.9, 0.999)

    def units(self, rows: Floats, region: Region) -> Floats:
        """Return what a rate of 1 is for each parameter of `rows`, ``(N, 5 + C)``."""
        units = np.ones_like(rows)
        if self.relative:
            units[:, 0:2] = rows[:, 2:4].min(axis=1, keepdims=True)
            units[:, 2:4] = rows[:, 2:4]
        else:
            units[:, 0:2] = np.array(region.shape, np.float32) / 2
        return units

    def vector(self, bands: int) -> Floats:
        """Return the rate of each column of the rows."""
        geometry = [self.mean, self.mean, self.scale, self.scale, self.rotation]
        return np.array(geometry + bands * [self.color], np.float32)


def adam(
    own: Gaussians,
    loss: Loss,
    *,
    region: Region,
    bounds: Bounds,
    steps: int,
    rates: Rates,
    engine: str = "auto",
    deadline: Deadline | None = None,
) -> Gaussians:
    """Return the best state that `steps` steps of Adam from `own` pass through.

    Parameters
    ----------
    own
        Within `bounds`.
    loss
        To be lowered.
    region
        Of the image that the loss takes, px.
    bounds
        Kept at every step.
    deadline
        Looked at before each step.

    Raises
    ------
    FitError
        If the deadline has passed.

    References
    ----------
    Kingma & Ba, Adam, arXiv:1412.6980.
    """
    rows, best, lowest = own.to_rows(), own, math.inf
    vector, (first_decay, second_decay) = rates.vector(own.bands), rates.decays
    first, second = np.zeros_like(rows), np.zeros_like(rows)
    planes = operators(own, region, engine=engine).new_planes(own.bands)
    for step in range(steps + 1):
        if deadline is not None:
            deadline.check()
        current = Gaussians.from_rows(rows, origin=own.origin)
        at = operators(current, region, engine=engine)
        at.draw(planes)
        value, slope = loss(planes)
        if value < lowest:
            best, lowest = current, value
        if step == steps or not math.isfinite(value):
            break
        units = rates.units(rows, region)
        # Coordinates in which a step of Adam is as long as its rate in the units above.
        gradient = at.to_rows_gradient(at.gather(slope)) * (units if rates.relative else 1)
        first += (1 - first_decay) * (gradient - first)
        second += (1 - second_decay) * (gradient**2 - second)
        correction = math.sqrt(1 - second_decay ** (step + 1)) / (1 - first_decay ** (step + 1))
        if rates.relative:
            correction *= 0.5 * (1 + math.cos(math.pi * step / steps))
        move = np.float32(correction) * vector * units * first / (np.sqrt(second) + np.float32(1e-15))
        rows = (rows - move).astype(np.float32)
        last = np.nextafter(bounds.high, np.float32(-np.inf))
        np.clip(rows[:, 0:2], bounds.low, last, out=rows[:, 0:2])
        np.clip(rows[:, 2:4], np.float32(bounds.min_scale), np.float32(bounds.max_scale), out=rows[:, 2:4])
    return best
