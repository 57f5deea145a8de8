"""The best colors for given shapes: a linear least-squares problem, solved by conjugate gradients."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats
from smartsplat.render.cpu import Operators


def solve_colors(
    operators: Operators, target: Floats, *, weight: Floats | None, start: Floats, scales: Floats, iterations: int
) -> Floats:
    """Return colors ``c`` that lower ``sum w (render(c) - target)^2``, by preconditioned conjugate gradients.

    Parameters
    ----------
    operators
        Of the Gaussians, whose own colors are not used.
    target
        Planes ``(C, height, pitch)``.
    weight
        One plane, 0 = no data; None = all 1.
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
    inverse_diagonal = 1 / np.maximum(math.pi * scales.prod(axis=1, keepdims=True, dtype=np.float64), 1e-3)
    colors = start.astype(np.float64)
    image = np.empty_like(target)
    operators.draw(image, colors=start, target=target, weight=weight)
    residual = -_pull(operators, image)
    direction = np.zeros_like(residual)
    previous = np.ones(residual.shape[1])
    for _ in range(iterations):
        preconditioned = residual * inverse_diagonal
        norms = (residual * preconditioned).sum(axis=0)
        if not (norms > 0).any():
            break
        direction = preconditioned + direction * _ratio(norms, previous)
        operators.draw(image, colors=direction.astype(np.float32), weight=weight)
        mapped = _pull(operators, image)
        lengths = _ratio(norms, (direction * mapped).sum(axis=0))
        colors += lengths * direction
        residual -= lengths * mapped
        previous = norms
    return colors.astype(np.float32)


def _pull(operators: Operators, image: Floats) -> NDArray[np.float64]:
    return operators.gather(image)[:, GEOMETRY_PARAMETERS:]


def _ratio(upper: NDArray[np.float64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``upper / lower``, 0 where `lower` is not positive: that band is solved, or has nothing to see."""
    return np.divide(upper, lower, out=np.zeros_like(upper), where=lower > 0)
