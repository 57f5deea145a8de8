"""Fit some tiles' Gaussians to their pixels, with those of the tiles around held fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartsplat.config import FitConfig
from smartsplat.errors import FitError
from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians, concatenate
from smartsplat.geometry import Region
from smartsplat.optim.adam import Rates, adam
from smartsplat.optim.colors import solve_colors
from smartsplat.optim.deadline import Deadline
from smartsplat.optim.levels import from_level, level_scale, to_level
from smartsplat.optim.lm import LEAST_DAMPING, MEAN_COORDINATES, Fitted, levenberg_marquardt
from smartsplat.optim.machine import Bounds, Loss, Machine, machine_for
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedTiles:
    """Some tiles after a visit.

    Parameters
    ----------
    gaussians
        Of each tile.
    report
        What the visit did.
    machine, residual, weight
        Where the fit was done; on it, planes ``weight (image - target)`` over the padded region, and one plane or None
        (all 1).
    """

    gaussians: list[Gaussians]
    report: FitReport
    machine: Machine
    residual: Any
    weight: Any

    def left_over(self) -> Floats:
        """Return ``(h, w, C)`` target minus image, 0 where there is no data."""
        planes = -_over_weight(self.machine, self.residual, self.weight)
        return np.ascontiguousarray(self.machine.to_host(self.machine.to_pixels(planes)))


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
    seconds: float | None = None,
) -> FittedTiles:
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
    seconds
        Longest it may take; None = no limit.

    Raises
    ------
    FitError
        If it takes longer, or what comes out are no numbers.

    Notes
    -----
    Colors may leave [0, 1]. Images in float32; losses are summed in float64. With `work.adam_steps` "worse" is by that
    loss, which is not the one reported.
    """
    deadline = Deadline(seconds)
    moving = [one.scales.max(axis=1, initial=0) >= work.least_scale for one in own]
    still = [*frozen, *(one.select(~moves) for one, moves in zip(own, moving, strict=True))]
    movers = [one.select(moves) for one, moves in zip(own, moving, strict=True)]
    machine = machine_for(engine)
    whole, around = machine.to_planes(target.pixels), _image_of(still, target, machine=machine)
    problem = _Problem(
        machine=machine,
        region=target.padded,
        target=whole if around is None else whole - around,
        around=around,
        weight=None if target.weight is None else machine.to_planes(target.weight[:, :, None])[0],
        bounds=_bounds(target, movers, cores=cores, min_scale=config.min_scale, max_scale=max_scale),
        deadline=deadline,
    )
    origin = target.core.origin
    start = concatenate([to_level(one, target.factor, origin=origin) for one in movers], origin=origin)
    done = _optimised(start, problem, work=work, config=config)
    fitted = _split(
        done.gaussians, own, moving, target=target, cores=cores, min_scale=config.min_scale, max_scale=max_scale
    )
    report = _report(fitted, done, problem, target=target)
    if not math.isfinite(report.loss_after) or not all(one.is_finite() for one in fitted):
        raise FitError("the fit has come to values that are no numbers (NaN or infinite)")
    return FittedTiles(gaussians=fitted, report=report, machine=machine, residual=done.residual, weight=problem.weight)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Problem:
    """A fit at its level: over what region, to what planes and with what weights, and where Gaussians may be.

    The image is what is fitted to `target` and, if it is not None, `around`: what stays as it is. All planes are the
    machine's.
    """

    machine: Machine
    region: Region
    target: Any
    around: Any
    weight: Any
    bounds: Bounds
    deadline: Deadline

    def at(self, gaussians: Gaussians) -> Fitted:
        """Return a fit that stays where it is."""
        residual = self.machine.xp.empty_like(self.target)
        here = self.machine.operators(gaussians, self.region)
        losses = self.machine.numbers(here, here.draw(residual, target=self.target, weight=self.weight))
        return Fitted(gaussians=gaussians, losses=tuple(losses), residual=residual)

    def moved(self, gaussians: Gaussians, target: Any, *, pairs: int, damping: float, fixed: int = 0) -> Fitted:
        """Return a fit by Levenberg-Marquardt to other planes."""
        return levenberg_marquardt(
            gaussians,
            target,
            region=self.region,
            weight=self.weight,
            bounds=self.bounds,
            pairs=pairs,
            damping=damping,
            fixed=fixed,
            machine=self.machine,
            deadline=self.deadline,
        )

    def mixed_loss(self, ssim_share: float) -> Loss:
        """Return the loss with SSIM in it, of the planes that are fitted: SSIM sees the image as a whole."""
        xp, around = self.machine.xp, self.around
        whole = self.target if around is None else self.target + around
        if self.weight is None:
            weight = self.machine.to_planes(np.ones((*self.region.shape, 1), np.float32))[0]
        else:
            weight, whole = self.weight, xp.where(self.weight > 0, whole, 0.0)
        loss = self.machine.mixed_loss(whole, weight, ssim_share)
        return loss if around is None else lambda planes: loss(planes + around)

    def unweighted(self, planes: Any) -> Any:
        """Return weighted planes without their weight."""
        return _over_weight(self.machine, planes, self.weight)


def _optimised(start: Gaussians, problem: _Problem, *, work: FitPass, config: FitConfig) -> Fitted:
    if not len(start) or (problem.weight is not None and not problem.weight.any()):
        return problem.at(start)
    fits: list[Fitted] = []
    if work.color_iterations:
        fits += _with_solved_colors(start, problem, iterations=work.color_iterations)
    if work.pairs:
        begin = fits[-1].gaussians if fits else start
        fixed = MEAN_COORDINATES if work.fixed_means else 0
        fits.append(problem.moved(begin, problem.target, pairs=work.pairs, damping=work.damping, fixed=fixed))
    if not fits:
        fits.append(problem.at(start))
    if work.ssim_pairs:
        most = fits[0].losses[0]
        fits.append(_more_similar(fits[-1], problem, pairs=work.ssim_pairs, gain=work.ssim_gain, most=most))
    if work.adam_steps:
        fits.append(problem.at(_polished(fits[-1].gaussians, problem, steps=work.adam_steps, config=config)))
    return replace(fits[-1], losses=(fits[0].losses[0], fits[-1].losses[-1]))


def _with_solved_colors(own: Gaussians, problem: _Problem, *, iterations: int) -> list[Fitted]:
    """Return the fit before and after."""
    colors = solve_colors(
        problem.machine,
        problem.machine.operators(own, problem.region),
        problem.target,
        weight=problem.weight,
        start=own.colors,
        scales=own.scales,
        iterations=iterations,
    )
    before, after = problem.at(own), problem.at(replace(own, colors=colors))
    # Each iteration lowers the error in exact arithmetic; in float32 a solved problem may be made worse by its noise.
    return [before, after if after.losses[0] <= before.losses[0] else before]


def _more_similar(fit: Fitted, problem: _Problem, *, pairs: int, gain: float, most: float) -> Fitted:
    """Return the fit with a higher SSIM, if that is worth the squared error it takes; never more of that than `most`.

    The aim is ``ln(squared error) - gain SSIM``. SSIM's slope at the image as it is acts like another target, a little
    off the true one, to which the squared error is lowered as ever.
    """
    loss, error = problem.mixed_loss(1.0), fit.losses[-1]
    if error <= 0:
        return fit
    unlikeness, slope = loss(problem.target + problem.unweighted(fit.residual))
    other = problem.target - 0.5 * gain * error * problem.unweighted(slope)
    found = problem.at(problem.moved(fit.gaussians, other, pairs=pairs, damping=LEAST_DAMPING).gaussians)
    unlikeness_then, _ = loss(problem.target + problem.unweighted(found.residual))
    then = found.losses[0]
    better = 0 < then <= most and math.log(then / error) + gain * (unlikeness_then - unlikeness) < 0
    return found if better else fit


def _over_weight(machine: Machine, planes: Any, weight: Any) -> Any:
    """Return weighted planes without their weight, 0 where that is 0, as they are."""
    return planes if weight is None else planes / machine.xp.where(weight > 0, weight, 1.0)


def _polished(own: Gaussians, problem: _Problem, *, steps: int, config: FitConfig) -> Gaussians:
    return adam(
        own,
        problem.mixed_loss(config.ssim_share),
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
        machine=problem.machine,
        deadline=problem.deadline,
    )


def _image_of(still: Sequence[Gaussians], target: Target, *, machine: Machine) -> Any:
    """Return the planes of everything that stays as it is; None if there is nothing."""
    sets = [one for one in still if len(one)]
    if not sets:
        return None
    at = machine.operators(sets, target.padded, scale=1 / target.factor)
    planes = at.new_planes(target.pixels.shape[2])
    at.draw(planes)
    return planes


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


def _report(fitted: Sequence[Gaussians], done: Fitted, problem: _Problem, *, target: Target) -> FitReport:
    inner, xp, bands = target.core.slices_within(target.padded), problem.machine.xp, target.pixels.shape[2]
    core = xp.asarray(problem.machine.to_pixels(done.residual)[inner], dtype=xp.float64)
    error = (core * core).sum(axis=2)
    if target.weight is None:
        total, known = math.prod(target.padded.shape), float(math.prod(target.core.shape))
    else:
        weight = problem.machine.to_pixels(problem.weight[None])[inner][..., 0]
        error = error / xp.where(weight > 0, weight, 1.0)
        total, known = (float(part.sum(dtype=xp.float64)) for part in (problem.weight, weight))
    share = 1 / (total * bands) if total else 0.0
    rows = np.concatenate([one.to_rows() for one in fitted])
    colors, scales = rows[:, GEOMETRY_PARAMETERS:], rows[:, 2:4]
    return FitReport(
        count=len(rows),
        loss_before=done.losses[0] * share,
        loss_after=done.losses[-1] * share,
        squared_error=float(error.sum()),
        weight=known * bands,
        color_low=float(colors.min(initial=0.0)),
        color_high=float(colors.max(initial=1.0)),
        scale_low=float(scales.min()) if len(rows) else 0.0,
        scale_high=float(scales.max(initial=0.0)),
    )
