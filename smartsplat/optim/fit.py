"""Fit one tile's Gaussians to its pixels, with those of its neighbours held fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smartsplat.config import FitConfig
from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.colors import solve_colors
from smartsplat.optim.loss import squared_error
from smartsplat.render import operators, render

_DECAYS = (0.9, 0.99)
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What one visit to a tile did.

    Parameters
    ----------
    count
        Gaussians of the tile.
    loss_before, loss_after
        Weighted mean squared error over the padded tile, in units of the normalised range squared.
    squared_error, weight
        Over the core alone: their sums over all tiles give the error of the scene.
    color_low, color_high
        Range of the colors; they may leave [0, 1].
    """

    count: int
    loss_before: float
    loss_after: float
    squared_error: float
    weight: float
    color_low: float
    color_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TileTarget:
    """What a tile is fitted to.

    Parameters
    ----------
    pixels
        ``(h, w, C)`` float32 over `padded`, normalised.
    weight
        ``(h, w)`` float32, 0 = no data; None = all 1.
    core, padded
        The pixels the tile owns, and those with their context.
    """

    pixels: Floats
    weight: Floats | None
    core: Region
    padded: Region


def fit_tile(
    target: TileTarget,
    own: Gaussians,
    *,
    frozen: Sequence[Gaussians],
    config: FitConfig,
    sweep: int,
    max_scale: float,
    engine: str = "auto",
) -> tuple[Gaussians, FitReport]:
    """Return `own` fitted to what `frozen` leaves of the target: colors by least squares, then Adam, best iterate kept.

    Parameters
    ----------
    target
        Pixels, weight and place of the tile.
    own
        The tile's Gaussians, means relative to the core's origin. Their footprints are cut at the edge of `padded`
        here; beyond it they are only seen by the neighbours' fits.
    frozen
        The neighbours' Gaussians, each set with its own origin.
    sweep
        From 1; sets how far the rates have decayed.
    max_scale
        Px; keeps footprints within reach.
    engine
        See `smartsplat.render.render`.

    Notes
    -----
    Rates are relative to each Gaussian's size, so one setting suits needles and blobs, large tiles and small. float32
    throughout; losses are summed in float64.
    """
    rest = target.pixels if not len(frozen) else target.pixels - render(frozen, target.padded, engine=engine)
    if target.weight is not None:
        rest = np.where(target.weight[:, :, None] > 0, rest, np.float32(0))
    before, _ = squared_error(render(own, target.padded, engine=engine), rest, weight=target.weight)
    best = own
    if len(own):
        solved = _with_solved_colors(own, rest, target=target, config=config, engine=engine)
        best = _adam(solved, rest, target=target, config=config, sweep=sweep, max_scale=max_scale, engine=engine)
    image = render(best, target.padded, engine=engine)
    after, _ = squared_error(image, rest, weight=target.weight)
    if after > before:
        best, image, after = own, render(own, target.padded, engine=engine), before
    return best, _report(best, image - rest, target=target, losses=(before, after))


def _with_solved_colors(
    own: Gaussians, rest: Floats, *, target: TileTarget, config: FitConfig, engine: str
) -> Gaussians:
    at = operators(own, target.padded, engine=engine)
    colors = solve_colors(
        at, rest, weight=target.weight, start=own.colors, scales=own.scales, iterations=config.color_iterations
    )
    rows = own.to_rows()
    rows[:, GEOMETRY_PARAMETERS:] = colors
    return Gaussians.from_rows(rows, origin=own.origin)


def _adam(
    own: Gaussians,
    rest: Floats,
    *,
    target: TileTarget,
    config: FitConfig,
    sweep: int,
    max_scale: float,
    engine: str,
) -> Gaussians:
    """Return the best iterate of Adam (Kingma & Ba, arXiv:1412.6980) on size-relative coordinates."""
    rows, best, lowest = own.to_rows(), own, math.inf
    rates = _rates(config, bands=own.bands)
    first, second = np.zeros_like(rows), np.zeros_like(rows)
    for step in range(config.steps + 1):
        current = Gaussians.from_rows(rows, origin=own.origin)
        at = operators(current, target.padded, engine=engine)
        loss, slope = squared_error(at.render(), rest, weight=target.weight)
        if loss < lowest:
            best, lowest = current, loss
        if step == config.steps or not math.isfinite(loss):
            break
        units = _units(rows)
        gradient = at.vjp(slope) * units
        for moment, value, decay in zip((first, second), (gradient, gradient**2), _DECAYS, strict=True):
            moment *= decay
            moment += (1 - decay) * value
        correction = math.sqrt(1 - _DECAYS[1] ** (step + 1)) / (1 - _DECAYS[0] ** (step + 1))
        decay = _cosine((sweep - 1 + step / config.steps) / config.sweeps)
        move = np.float32(decay * correction) * rates * units * first / (np.sqrt(second) + _TINY)
        rows = (rows - move).astype(np.float32)
        _confine(rows, core=target.core, scales=(config.min_scale, max_scale))
    return best


def _rates(config: FitConfig, *, bands: int) -> Floats:
    geometry = [config.mean_rate, config.mean_rate, config.scale_rate, config.scale_rate, config.rotation_rate]
    return np.array(geometry + bands * [config.color_rate], np.float32)


def _units(rows: Floats) -> Floats:
    """Return the natural unit of each parameter: a mean moves relative to the smaller scale, a scale to itself."""
    units = np.ones_like(rows)
    units[:, 0:2] = rows[:, 2:4].min(axis=1, keepdims=True)
    units[:, 2:4] = rows[:, 2:4]
    return units


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _confine(rows: Floats, *, core: Region, scales: tuple[float, float]) -> None:
    """Keep means in the core and scales in range, in place: ownership and reach never change."""
    last = np.nextafter(np.array(core.shape, np.float32), np.float32(0))
    np.clip(rows[:, 0:2], np.float32(0), last, out=rows[:, 0:2])
    np.clip(rows[:, 2:4], np.float32(scales[0]), np.float32(scales[1]), out=rows[:, 2:4])


def _report(best: Gaussians, residual: Floats, *, target: TileTarget, losses: tuple[float, float]) -> FitReport:
    inner = target.core.slices_within(target.padded)
    error = np.square(residual[inner]).sum(axis=2, dtype=np.float64)
    weight = np.ones(error.shape) if target.weight is None else target.weight[inner]
    return FitReport(
        count=len(best),
        loss_before=losses[0],
        loss_after=losses[1],
        squared_error=float((error * weight).sum(dtype=np.float64)),
        weight=float(weight.sum(dtype=np.float64)) * residual.shape[2],
        color_low=float(best.colors.min(initial=0.0)),
        color_high=float(best.colors.max(initial=1.0)),
    )
