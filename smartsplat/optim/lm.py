"""Levenberg-Marquardt on all parameters at once, its linear systems solved by conjugate gradients without a matrix.

A step solves ``(J^T W J + damping D) x = -J^T W r`` for the change ``x`` of the Gaussians in whitened coordinates (see
`smartsplat.render.cpu.Operators`), where ``J`` is the image's derivative, ``W`` the pixel weights, ``r`` the residual
and ``D`` the diagonal of ``J^T J``. One product with the matrix is one `draw_change` and one `gather`: a *pair*.

The products see footprints cut at three quarters of their radius. That leaves out 5 % of ``J^T J`` in the stretches and
less elsewhere, and a quarter of the work; loss and gradient are exact, so that what is reached is not another optimum.

For one Gaussian alone on an endless grid, ``J^T J`` is known in closed form from ``A = pi s1 s2`` (the integral of
``g^2``) and its color ``c``: colors ``A``; moves ``A |c|^2 / 2``; stretches ``3/4 A |c|^2``; shear, and between the two
stretches, ``A |c|^2 / 4``; color to stretch ``c A / 2``; nothing else. That block, damped, is the preconditioner: its
inverse is written out below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.deadline import Deadline
from smartsplat.render import operators

LEAST_DAMPING = 0.1
_MOST_DAMPING = 1e4
_ON_SUCCESS, _ON_FAILURE = 0.4, 4.0
_ITERATIONS = (1, 1, 2, 3, 5, 8, 10)
_RADIUS_SHARE = 0.75

_LONGEST_MOVE, _LONGEST_STRETCH = 1.0, 0.5  # of a step, whitened
_LEAST_COLOR = 0.02  # norm a color is taken for at least: a black Gaussian's shape has no derivative
_LEAST_AREA = 1e-3

_jit: Any = njit(cache=True, error_model="numpy")

_Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """Where means and scales may be.

    Parameters
    ----------
    low, high
        ``(N, 2)`` float32: least mean, and the number it stays below, px.
    min_scale, max_scale
        Px.
    """

    low: Floats
    high: Floats
    min_scale: float
    max_scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """Where an optimiser ended.

    Parameters
    ----------
    gaussians
        The best state it saw.
    losses
        The weighted sum of squared errors at the start and after each accepted step: never rising.
    residual
        Planes ``weight (image - target)`` of `gaussians`.
    """

    gaussians: Gaussians
    losses: tuple[float, ...]
    residual: Floats


def inner_iterations(step: int) -> int:
    """Return the conjugate-gradient iterations of outer step `step`, from 0: few while the model is far off."""
    return _ITERATIONS[min(step, len(_ITERATIONS) - 1)]


def levenberg_marquardt(
    own: Gaussians,
    target: Floats,
    *,
    region: Region,
    weight: Floats | None,
    bounds: Bounds,
    pairs: int,
    damping: float = 0.2,
    engine: str = "auto",
    deadline: Deadline | None = None,
) -> Fitted:
    """Return `own` with a lower ``sum weight (image - target)^2`` over `region`; never with a higher one.

    Parameters
    ----------
    own
        At least one Gaussian, within `bounds`.
    target, weight
        Planes, and one plane or None (see `smartsplat.render.cpu.to_planes`).
    region
        What they cover, px.
    bounds
        Kept at every step.
    pairs
        Work: products with the matrix, each trial of a step counted as one too; at most one more is done.
    damping
        To begin with.
    deadline
        Looked at before each step.

    Raises
    ------
    FitError
        If the deadline has passed.

    Notes
    -----
    Images in float32; losses, gradients and the solver's vectors in float64. Independent of the number of threads.
    """
    at = operators(own, region, engine=engine)
    residual, trial, change = np.empty_like(target), np.empty_like(target), np.empty_like(target)
    losses = [at.draw(residual, target=target, weight=weight)]
    gradient = at.gather(residual)
    spent, step = 0, 0
    while spent < pairs and losses[-1] > 0 and (gradient != 0).any():
        if deadline is not None:
            deadline.check()
        iterations = min(inner_iterations(step), max(1, pairs - spent - 1))
        system = _System(at=at.narrowed(_RADIUS_SHARE), own=own, damping=damping, weight=weight, change=change)
        moved = _moved(own, _solve(system, gradient, iterations), bounds)
        spent, step = spent + iterations + 1, step + 1
        at_moved = operators(moved, region, engine=engine)
        loss = at_moved.draw(trial, target=target, weight=weight)
        if loss < losses[-1]:
            own, at, residual, trial = moved, at_moved, trial, residual
            losses.append(loss)
            damping = max(damping * _ON_SUCCESS, LEAST_DAMPING)
            if spent < pairs:
                gradient = at.gather(residual)
        else:
            damping = damping * _ON_FAILURE
            if damping > _MOST_DAMPING:
                break
    return Fitted(gaussians=own, losses=tuple(losses), residual=residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class _System:
    """The damped normal equations at one state."""

    at: Any  # Operators of the engine in use
    own: Gaussians
    damping: float
    weight: Floats | None
    change: Floats  # planes to work in

    def product(self, vectors: _Vectors) -> _Vectors:
        """Return ``J^T W J vectors``."""
        self.at.draw_change(self.change, vectors, weight=self.weight)
        return self.at.gather(self.change)


def _solve(system: _System, gradient: _Vectors, iterations: int) -> _Vectors:
    """Return about ``-(J^T W J + damping D)^-1 gradient``, by preconditioned conjugate gradients."""
    scales, colors, damping = system.own.scales, system.own.colors, system.damping
    solution, rest = np.zeros_like(gradient), -gradient
    ready = np.empty_like(gradient)
    norm = _precondition(ready, rest, scales, colors, damping)
    direction = ready.copy()
    for k in range(iterations):
        if norm <= 0:
            break
        product = system.product(direction)
        length = norm / _damp(product, direction, scales, colors, damping)
        _advance(solution, rest, direction, product, length)
        if k < iterations - 1:
            previous, norm = norm, _precondition(ready, rest, scales, colors, damping)
            direction *= norm / previous
            direction += ready
    return solution


@_jit
def _block(scales, colors, i):  # type: ignore[no-untyped-def]
    """Return ``A`` and ``|c|^2`` of a Gaussian, neither too near zero."""
    area = max(math.pi * np.float64(scales[i, 0]) * np.float64(scales[i, 1]), _LEAST_AREA)
    energy = _LEAST_COLOR**2
    for band in range(colors.shape[1]):
        energy += np.float64(colors[i, band]) ** 2
    return area, energy


@_jit
def _precondition(out, rest, scales, colors, damping):  # type: ignore[no-untyped-def]
    """Fill `out` with the damped blocks' inverses times `rest`; return their product.

    With ``a = A (1 + damping)``, the colors are ``(r_c - c A/2 (x_1 + x_2)) / a``. Put into the rows of the stretches
    ``x_1, x_2`` that leaves a symmetric 2 x 2 system with ``p`` on and ``q`` off the diagonal.
    """
    total, bands = 0.0, colors.shape[1]
    for i in range(len(rest)):
        area, energy = _block(scales, colors, i)
        damped = 1.0 + damping
        out[i, 0] = rest[i, 0] / (0.5 * area * energy * damped)
        out[i, 1] = rest[i, 1] / (0.5 * area * energy * damped)
        out[i, 4] = rest[i, 4] / (0.25 * area * energy * damped)
        pull = 0.0
        for band in range(bands):
            pull += colors[i, band] * rest[i, 5 + band]
        coupling = 0.25 / damped
        p, q = area * energy * (0.75 * damped - coupling), area * energy * (0.25 - coupling)
        first, second = rest[i, 2] - 0.5 * pull / damped, rest[i, 3] - 0.5 * pull / damped
        determinant = p * p - q * q
        out[i, 2] = (p * first - q * second) / determinant
        out[i, 3] = (p * second - q * first) / determinant
        stretch = 0.5 * area * (out[i, 2] + out[i, 3])
        for band in range(bands):
            out[i, 5 + band] = (rest[i, 5 + band] - colors[i, band] * stretch) / (area * damped)
        for k in range(rest.shape[1]):
            total += out[i, k] * rest[i, k]
    return total


@_jit
def _damp(product, direction, scales, colors, damping):  # type: ignore[no-untyped-def]
    """Add ``damping D direction`` to `product`; return its product with `direction`."""
    total = 0.0
    for i in range(len(product)):
        area, energy = _block(scales, colors, i)
        for k in range(product.shape[1]):
            share = 1.0 if k >= 5 else energy * (0.5 if k < 2 else 0.75 if k < 4 else 0.25)
            product[i, k] += damping * area * share * direction[i, k]
            total += product[i, k] * direction[i, k]
    return total


@_jit
def _advance(solution, rest, direction, product, length):  # type: ignore[no-untyped-def]
    for i in range(len(rest)):
        for k in range(rest.shape[1]):
            solution[i, k] += length * direction[i, k]
            rest[i, k] -= length * product[i, k]


def _moved(own: Gaussians, step: _Vectors, bounds: Bounds) -> Gaussians:
    """Return the Gaussians a whitened step away, no further than the longest step, within bounds."""
    rows = own.to_rows()
    rows[:, GEOMETRY_PARAMETERS:] += step[:, GEOMETRY_PARAMETERS:]
    _retract(rows, step, bounds.low, bounds.high, bounds.min_scale, bounds.max_scale)
    return Gaussians.from_rows(rows, origin=own.origin)


@_jit
def _retract(rows, step, low, high, min_scale, max_scale):  # type: ignore[no-untyped-def]
    """Move means and shapes in place.

    The covariance ``L L^T``, ``L`` the axes times their scales, becomes ``L exp(2 d) L^T`` with ``d`` the symmetric
    matrix of the two stretches and half the shear; its axes and scales are read off again.
    """
    for i in range(len(rows)):
        first, second = np.float64(rows[i, 2]), np.float64(rows[i, 3])
        cos, sin = math.cos(rows[i, 4]), math.sin(rows[i, 4])
        along = first * min(max(step[i, 0], -_LONGEST_MOVE), _LONGEST_MOVE)
        across = second * min(max(step[i, 1], -_LONGEST_MOVE), _LONGEST_MOVE)
        moves = (cos * along - sin * across, sin * along + cos * across)
        for axis in range(2):
            mean = np.float32(rows[i, axis] + moves[axis])
            rows[i, axis] = min(max(mean, low[i, axis]), np.nextafter(high[i, axis], np.float32(-np.inf)))
        a = min(max(step[i, 2], -_LONGEST_STRETCH), _LONGEST_STRETCH)
        b = min(max(step[i, 3], -_LONGEST_STRETCH), _LONGEST_STRETCH)
        c = 0.5 * min(max(step[i, 4], -_LONGEST_STRETCH), _LONGEST_STRETCH)
        # exp(d) = exp(mean) (cosh(root) I + sinh(root) / root (d - mean I))
        half = 0.5 * (a - b)
        root = math.sqrt(half * half + c * c) + 1e-12
        size = math.exp(0.5 * (a + b))
        cosh, sinh = size * math.cosh(root), size * math.sinh(root) / root
        m00, m11, m01 = cosh + sinh * half, cosh - sinh * half, sinh * c
        # Columns of L exp(d), then the covariance.
        y0, x0 = cos * first * m00 - sin * second * m01, sin * first * m00 + cos * second * m01
        y1, x1 = cos * first * m01 - sin * second * m11, sin * first * m01 + cos * second * m11
        yy, yx, xx = y0 * y0 + y1 * y1, y0 * x0 + y1 * x1, x0 * x0 + x1 * x1
        spread = math.hypot(0.5 * (yy - xx), yx)
        wide = math.sqrt(0.5 * (yy + xx) + spread)
        # By the determinant: a difference of nearly equal numbers would lose a needle's width.
        narrow = abs(y0 * x1 - y1 * x0) / wide
        rows[i, 2] = min(max(wide, min_scale), max_scale)
        rows[i, 3] = min(max(narrow, min_scale), max_scale)
        rows[i, 4] = 0.5 * math.atan2(2 * yx, yy - xx)
