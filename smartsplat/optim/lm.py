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

from dataclasses import dataclass
from typing import Any

from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.deadline import Deadline
from smartsplat.optim.host import HOST
from smartsplat.optim.machine import Bounds, Machine

LEAST_DAMPING = 0.1

MEAN_COORDINATES = 2
"""Of the whitened coordinates of a Gaussian, so many are its mean's; they come first."""

_MOST_DAMPING = 1e4
_ON_SUCCESS, _ON_FAILURE = 0.4, 4.0
_ITERATIONS = (1, 1, 2, 3, 5, 8, 10)
_RADIUS_SHARE = 0.75


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
        Planes ``weight (image - target)`` of `gaussians`, on the machine that was used.
    """

    gaussians: Gaussians
    losses: tuple[float, ...]
    residual: Any


def inner_iterations(step: int) -> int:
    """Return the conjugate-gradient iterations of outer step `step`, from 0: few while the model is far off."""
    return _ITERATIONS[min(step, len(_ITERATIONS) - 1)]


def levenberg_marquardt(
    own: Gaussians,
    target: Any,
    *,
    region: Region,
    weight: Any,
    bounds: Bounds,
    pairs: int,
    damping: float = 0.2,
    fixed: int = 0,
    machine: Machine = HOST,
    deadline: Deadline | None = None,
) -> Fitted:
    """Return `own` with a lower ``sum weight (image - target)^2`` over `region`; never with a higher one.

    Parameters
    ----------
    own
        At least one Gaussian, within `bounds`.
    target, weight
        Planes, and one plane or None, on `machine`.
    region
        What they cover, px.
    bounds
        Kept at every step.
    pairs
        Work: products with the matrix, each trial of a step counted as one too; at most one more is done.
    damping
        To begin with.
    fixed
        How many of the whitened coordinates stay as they are, from the first on.
    deadline
        Looked at before each step.

    Raises
    ------
    FitError
        If the deadline has passed.

    Notes
    -----
    Images in float32; losses, gradients and the solver's vectors in float64. Independent of the number of threads. A
    device is waited for once a step: to learn whether it is accepted.
    """
    state, limits = machine.take(own), machine.take_bounds(bounds)
    at = machine.operators(state, region)
    residual, trial, change = (machine.xp.empty_like(target) for _ in range(3))
    losses = machine.numbers(at, at.draw(residual, target=target, weight=weight))
    gradient = _free(at.gather(residual), fixed)
    spent, step = 0, 0
    while spent < pairs and losses[-1] > 0:
        if deadline is not None:
            deadline.check()
        iterations = min(inner_iterations(step), max(1, pairs - spent - 1))
        system = _System(
            machine=machine,
            at=at.narrowed(_RADIUS_SHARE),
            own=state,
            damping=damping,
            weight=weight,
            change=change,
            fixed=fixed,
        )
        solution, slope = _solve(system, gradient, iterations)
        moved = machine.moved(state, solution, limits)
        spent, step = spent + iterations + 1, step + 1
        at_moved = machine.operators(moved, region)
        loss, slope = machine.numbers(at_moved, at_moved.draw(trial, target=target, weight=weight), slope)
        if not slope > 0:
            break
        if loss < losses[-1]:
            state, at, residual, trial = moved, at_moved, trial, residual
            losses.append(loss)
            damping = max(damping * _ON_SUCCESS, LEAST_DAMPING)
            if spent < pairs:
                gradient = _free(at.gather(residual), fixed)
        else:
            damping = damping * _ON_FAILURE
            if damping > _MOST_DAMPING:
                break
    return Fitted(gaussians=machine.give(state), losses=tuple(losses), residual=residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class _System:
    """The damped normal equations at one state; all but the damping is the machine's."""

    machine: Machine
    at: Any
    own: Any
    damping: float
    weight: Any
    change: Any
    fixed: int = 0

    def product(self, vectors: Any) -> Any:
        """Return ``J^T W J vectors``."""
        self.at.draw_change(self.change, vectors, weight=self.weight)
        return _free(self.at.gather(self.change), self.fixed)


def _free(vectors: Any, fixed: int) -> Any:
    """Return the vectors with zeros for what is fixed: there, no step then goes anywhere."""
    if fixed:
        vectors[:, :fixed] = 0
    return vectors


def _solve(system: _System, gradient: Any, iterations: int) -> tuple[Any, Any]:
    """Return about ``-(J^T W J + damping D)^-1 gradient``, by preconditioned conjugate gradients.

    The second number is the gradient's size as the preconditioner sees it; 0 only if the gradient is.
    """
    machine, own, damping = system.machine, system.own, system.damping
    solution, rest, ready = machine.xp.zeros_like(gradient), -gradient, machine.xp.empty_like(gradient)
    norm = slope = machine.precondition(ready, rest, own, damping)
    direction = machine.xp.asarray(ready, copy=True)
    for k in range(iterations):
        product = system.product(direction)
        curvature = machine.damp(product, direction, own, damping)
        machine.advance(solution, rest, direction, product, norm, curvature)
        if k < iterations - 1:
            previous, norm = norm, machine.precondition(ready, rest, own, damping)
            machine.turn(direction, ready, norm, previous)
    return solution, slope
