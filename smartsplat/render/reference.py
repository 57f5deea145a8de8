"""A dense float64 engine: slow, plain, and the oracle for the others.

Derivatives come from complex steps (Squire & Trapp, SIAM Review 1998): ``Im f(x + ih) / h`` with tiny ``h`` has no
cancellation, so they are exact to rounding, and they share no formula with the engines they check.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Gaussians
from smartsplat.geometry import Region
from smartsplat.render.footprint import CUTOFF
from smartsplat.render.zoom import resample

_STEP = 1e-100


def render(gaussians: Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0) -> NDArray[np.float64]:
    """Return ``sum_i c_i exp(-1/2 d^T S_i^-1 d)`` over the footprints, ``(height, width, C)`` float64.

    Parameters
    ----------
    gaussians
        One set, or several.
    region
        Px of the output grid.
    scale
        Output pixels per scene pixel.

    Examples
    --------
    >>> import numpy as np
    >>> one = Gaussians(
    ...     means=np.array([[0.5, 0.5]]), scales=np.ones((1, 2)), rotations=np.zeros(1), colors=np.ones((1, 1))
    ... )
    >>> render(one, Region(y0=0, y1=1, x0=0, x1=2))[0, :, 0].round(4)
    array([1.    , 0.6065])
    """
    rows = _rows([gaussians] if isinstance(gaussians, Gaussians) else gaussians, region, scale)
    return _responses(rows.astype(complex), region).real.sum(axis=0)


def jvp(gaussians: Gaussians, region: Region, *, tangent: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the image's change per unit step along `tangent` ``(N, 5 + C)``, ``(height, width, C)`` float64."""
    rows = _rows([gaussians], region, 1.0)
    return _responses(rows + 1j * _STEP * tangent.astype(np.float64), region).imag.sum(axis=0) / _STEP


def vjp(gaussians: Gaussians, region: Region, *, cotangent: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the gradient of ``sum(cotangent * image)``, ``(N, 5 + C)`` float64.

    Gaussians add up, so one complex step per parameter, taken by all Gaussians at once, gives every derivative.
    """
    rows = _rows([gaussians], region, 1.0).astype(complex)
    gradient = np.empty(rows.shape)
    for parameter in range(rows.shape[1]):
        stepped = rows.copy()
        stepped[:, parameter] += 1j * _STEP
        changes = _responses(stepped, region).imag / _STEP
        gradient[:, parameter] = np.einsum("nhwc,hwc->n", changes, cotangent.astype(np.float64))
    return gradient


def _whitened_offsets(rows: NDArray[np.complex128], region: Region) -> NDArray[np.complex128]:
    """Return ``(2, N, height, width)``: offsets from the means in units of the scales, along the Gaussian's axes."""
    y = np.arange(region.height) + 0.5
    x = np.arange(region.width) + 0.5
    dy = y[:, None] - rows[:, 0, None, None]
    dx = x[None, :] - rows[:, 1, None, None]
    cos, sin = np.cos(rows[:, 4, None, None]), np.sin(rows[:, 4, None, None])
    return np.stack([(cos * dy + sin * dx) / rows[:, 2, None, None], (cos * dx - sin * dy) / rows[:, 3, None, None]])


def _responses(rows: NDArray[np.complex128], region: Region) -> NDArray[np.complex128]:
    u, v = _whitened_offsets(rows, region)
    distance = u * u + v * v
    weights = np.where(distance.real <= CUTOFF**2, np.exp(-distance / 2), 0)
    return weights[..., None] * rows[:, None, None, GEOMETRY_PARAMETERS:]


def _rows(sets: Sequence[Gaussians], region: Region, scale: float) -> NDArray[np.float64]:
    parts: list[NDArray[np.float64]] = []
    for gaussians in sets:
        means, seen = resample(gaussians, scale)
        part = seen.to_rows().astype(np.float64)
        part[:, :2] = means - region.origin
        parts.append(part)
    return np.concatenate(parts)
