"""The best colors for given shapes: a linear least-squares problem, solved by conjugate gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats
from smartsplat.optim.machine import LEAST_AREA, Machine


def solve_colors(
    machine: Machine, operators: Any, target: Any, *, weight: Any, start: Floats, scales: Floats, iterations: int
) -> Floats:
    """Return colors ``c`` that lower ``sum w (render(c) - target)^2``, by preconditioned conjugate gradients.

    Parameters
    ----------
    machine, operators
        Where to work, and its operators of the Gaussians, whose own colors are not used.
    target, weight
        Planes, and one plane, 0 = no data; None = all 1.
    start
        ``(N, C)``: the colors to begin from; never made worse.
    scales
        ``(N, 2)``, px: ``sum g^2`` of a Gaussian is nearly ``pi s1 s2``, which serves as preconditioner.
    iterations
        At most; it stops when nothing is left to gain, as on an empty or already matched tile.

    Notes
    -----
    Each band has the same operator but its own step length: the bands are separate problems solved side by side.
    Images in float32, the solver's vectors and sums in float64.
    """
    xp = machine.xp
    areas = math.pi * scales.prod(axis=1, keepdims=True, dtype=np.float64)
    inverse_diagonal, colors = machine.to_vectors(1 / np.maximum(areas, LEAST_AREA)), machine.to_vectors(start)
    image = xp.empty_like(target)

    def pull(seen: Any, **what: Any) -> Any:
        operators.draw(image, colors=xp.asarray(seen, dtype=xp.float32), weight=weight, **what)
        return operators.gather(image)[:, GEOMETRY_PARAMETERS:]

    residual = -pull(colors, target=target)
    direction, previous = xp.zeros_like(residual), xp.ones_like(residual[:1])
    for _ in range(iterations):
        preconditioned = residual * inverse_diagonal
        norms = (residual * preconditioned).sum(axis=0, keepdims=True)
        if not (norms > 0).any():
            break
        direction = preconditioned + direction * _ratio(xp, norms, previous)
        mapped = pull(direction)
        lengths = _ratio(xp, norms, (direction * mapped).sum(axis=0, keepdims=True))
        colors += lengths * direction
        residual -= lengths * mapped
        previous = norms
    return machine.to_host(colors).astype(np.float32)


def _ratio(xp: Any, upper: Any, lower: Any) -> Any:
    """Return ``upper / lower``, 0 where `lower` is not positive: that band is solved, or has nothing to see."""
    some = lower > 0
    return xp.where(some, upper / xp.where(some, lower, 1.0), 0.0)
