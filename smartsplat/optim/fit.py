"""Fit some tiles' Gaussians to their pixels, with those of the tiles around held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from smartsplat.config import FitConfig
from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians, concatenate
from smartsplat.geometry import Region
from smartsplat.optim.adam import Rates, adam
from smartsplat.optim.colors import solve_colors
from smartsplat.optim.levels import from_level, level_scale, to_level
from smartsplat.optim.lm import Bounds, levenberg_marquardt
from smartsplat.optim.loss import MixedLoss
from smartsplat.render import operators
from smartsplat.render.cpu import to_image, to_planes
from smartsplat.schedule import FitPass


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What one visit did.

    Parameters
    ----------
    count
        Gaussians that were visited.
    loss_before, loss_after
        Weighted mean squared error over the padded region, in units of the normalised range squared.
    squared_error, weight
        Over the core alone: their sums over all visits of a sweep give the error of the scene at that level.
    color_low, color_high
        Range of the colors; they may leave [0, 1].
    scale_low, scale_high
        Range of the scales, px; 0 if there is no Gaussian.
    """

    count: int
    loss_before: float
    loss_after: float
    squared_error: float
    weight: float
    color_low: float
    color_high: float
    scale_low: float
    scale_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is fitted to: some pixels of a level.

    Parameters
    ----------
    pixels
        ``(h, w, C)`` float32 over `padded`, normalised.
    weight
        ``(h, w)`` float32, 0 = no data; None = all 1.
    core, padded
        The pixels that are owned, and those with their context, px of the level.
    factor
        Of the level.
    """

    pixels: Floats
    weight: Floats | None
    core: Region
    padded: Region
    factor: int = 1


def fit_tiles(
    target: Target,
    own: Sequence[Gaussians],
    *,
    cores: Sequence[Region],
    frozen: Sequence[Gaussians],
    work: FitPass,
    config: FitConfig,
    max_scale: float,
    engine: str = "auto",
) -> tuple[list[Gaussians], FitReport]:
    """Return each set of `own` fitted to what `frozen` leaves of the target; never a worse fit than it was.

    Parameters
    ----------
    target
        Pixels, weight and place.
    own, cores
        At least one tile's Gaussians, means relative to its core's origin, and that core, px of the scene. Footprints
        are cut at the edge of `padded` here; beyond it they are only seen by the neighbours' fits.
    frozen
        The neighbours' Gaussians, each set with its own origin.
    work
        What to do.
    max_scale
        Px; keeps footprints within reach.
    engine
        See `smartsplat.render.render`.

    Notes
    -----
    Colors may leave [0, 1]. Images in float32; losses are summed in float64. With `work.adam_steps` "worse" is by that
    loss, which is not the one reported.
    """
    moving = [one.scales.max(axis=1, initial=0) >= work.least_scale for one in own]
    still = [*frozen, *(one.select(~moves) for one, moves in zip(own, moving, strict=True))]
    movers = [one.select(moves) for one, moves in zip(own, moving, strict=True)]
    problem = _Problem(
        region=target.padded,
        target=_left_over(target, still, engine=engine),
        weight=None if target.weight is None else to_planes(target.weight[:, :, None])[0],
        bounds=_bounds(target, movers, cores=cores, min_scale=config.min_scale, max_scale=max_scale),
        engine=engine,
    )
    origin = target.core.origin
    start = concatenate([to_level(one, target.factor, origin=origin) for one in movers], origin=origin)
    best = _optimised(start, problem, work=work, config=config)
    fitted = _split(best, own, moving, target=target, cores=cores, min_scale=config.min_scale, max_scale=max_scale)
    residual = np.empty_like(problem.target)
    before = problem.squared_error(start, residual)
    after = problem.squared_error(best, residual)
    return fitted, _report(fitted, residual, target=target, losses=(before, after))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Problem:
    """A fit at its level: over what region, to what planes and with what weights, and where Gaussians may be."""

    region: Region
    target: Floats
    weight: Floats | None
    bounds: Bounds
    engine: str

    def squared_error(self, gaussians: Gaussians, residual: Floats) -> float:
        """Return the weighted sum of squares of the difference, and fill `residual` with it, weighted."""
        at = operators(gaussians, self.region, engine=self.engine)
        return at.draw(residual, target=self.target, weight=self.weight)


def _optimised(start: Gaussians, problem: _Problem, *, work: FitPass, config: FitConfig) -> Gaussians:
    if not len(start) or (problem.weight is not None and not problem.weight.any()):
        return start
    best = start
    if work.color_iterations:
        best = _with_solved_colors(best, problem, iterations=work.color_iterations)
    if work.pairs:
        best = levenberg_marquardt(
            best,
            problem.target,
            region=problem.region,
            weight=problem.weight,
            bounds=problem.bounds,
            pairs=work.pairs,
            damping=work.damping,
            engine=problem.engine,
        ).gaussians
    if work.adam_steps:
        best = _polished(best, problem, steps=work.adam_steps, config=config)
    return best


def _with_solved_colors(own: Gaussians, problem: _Problem, *, iterations: int) -> Gaussians:
    at = operators(own, problem.region, engine=problem.engine)
    colors = solve_colors(
        at, problem.target, weight=problem.weight, start=own.colors, scales=own.scales, iterations=iterations
    )
    solved = replace(own, colors=colors)
    residual = np.empty_like(problem.target)
    # Each iteration lowers the error in exact arithmetic; in float32 a solved problem may be made worse by its noise.
    better = problem.squared_error(solved, residual) <= problem.squared_error(own, residual)
    return solved if better else own


def _polished(own: Gaussians, problem: _Problem, *, steps: int, config: FitConfig) -> Gaussians:
    weight = (
        problem.weight if problem.weight is not None else to_planes(np.ones((*problem.region.shape, 1), np.float32))[0]
    )
    return adam(
        own,
        MixedLoss(problem.target, weight, config.ssim_share).evaluate,
        region=problem.region,
        bounds=problem.bounds,
        steps=steps,
        rates=Rates(
            mean=config.mean_rate,
            scale=config.scale_rate,
            rotation=config.rotation_rate,
            color=config.color_rate,
            relative=config.relative_rates,
        ),
        engine=problem.engine,
    )


def _left_over(target: Target, still: Sequence[Gaussians], *, engine: str) -> Floats:
    """Return the planes of the target less the image of everything that stays as it is."""
    planes = to_planes(target.pixels)
    sets = [one for one in still if len(one)]
    if not sets:
        return planes
    left = np.empty_like(planes)
    operators(sets, target.padded, scale=1 / target.factor, engine=engine).draw(left, target=planes)
    return np.negative(left, out=left)


def _bounds(
    target: Target, movers: Sequence[Gaussians], *, cores: Sequence[Region], min_scale: float, max_scale: float
) -> Bounds:
    """Return the bounds of every Gaussian at the level: its mean stays in the core of its own tile."""
    low, high = (
        np.concatenate(
            [
                np.tile((np.divide(corner, target.factor) - target.core.origin).astype(np.float32), (len(one), 1))
                for one, corner in zip(movers, corners, strict=True)
            ]
        )
        for corners in ([core.origin for core in cores], [(core.y1, core.x1) for core in cores])
    )
    return Bounds(
        low=low,
        high=high,
        min_scale=level_scale(min_scale, target.factor),
        max_scale=level_scale(max_scale, target.factor),
    )


def _split(
    best: Gaussians,
    own: Sequence[Gaussians],
    moving: Sequence[np.ndarray],
    *,
    target: Target,
    cores: Sequence[Region],
    min_scale: float,
    max_scale: float,
) -> list[Gaussians]:
    """Return the sets `own` with those that moved as `best` has them."""
    fitted: list[Gaussians] = []
    start = 0
    for one, moves, core in zip(own, moving, cores, strict=True):
        end = start + int(moves.sum())
        moved = from_level(best.select(slice(start, end)), target.factor, origin=one.origin, min_scale=min_scale)
        rows = one.to_rows()
        rows[moves] = moved.to_rows()
        # Between grids a mean may round to the edge of its core, and a scale beyond the largest.
        rows[:, 2:4] = np.minimum(rows[:, 2:4], np.maximum(one.scales, np.float32(max_scale)))
        rows[:, 0:2] = np.clip(rows[:, 0:2], 0, np.nextafter(np.array(core.shape, np.float32), np.float32(0)))
        fitted.append(Gaussians.from_rows(rows, origin=one.origin))
        start = end
    return fitted


def _report(fitted: Sequence[Gaussians], residual: Floats, *, target: Target, losses: tuple[float, float]) -> FitReport:
    inner = target.core.slices_within(target.padded)
    weighted = to_image(residual)[inner]
    weight = np.ones(weighted.shape[:2]) if target.weight is None else target.weight[inner].astype(np.float64)
    error = np.square(weighted, dtype=np.float64).sum(axis=2)
    height, width = target.padded.shape
    total = height * width if target.weight is None else float(target.weight.sum(dtype=np.float64))
    share = 1 / (total * weighted.shape[2]) if total else 0.0
    rows = np.concatenate([one.to_rows() for one in fitted])
    colors, scales = rows[:, GEOMETRY_PARAMETERS:], rows[:, 2:4]
    return FitReport(
        count=len(rows),
        loss_before=losses[0] * share,
        loss_after=losses[1] * share,
        squared_error=float(np.divide(error, weight, out=np.zeros_like(error), where=weight > 0).sum()),
        weight=float(weight.sum()) * weighted.shape[2],
        color_low=float(colors.min(initial=0.0)),
        color_high=float(colors.max(initial=1.0)),
        scale_low=float(scales.min()) if len(rows) else 0.0,
        scale_high=float(scales.max(initial=0.0)),
    )
