"""A fit worked out on the host: NumPy arrays, and numba for what is done Gaussian by Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.loss import MixedLoss
from smartsplat.optim.machine import LEAST_AREA, LEAST_COLOR, LONGEST_MOVE, LONGEST_STRETCH, Bounds, Loss
from smartsplat.render import cpu

_jit: Any = njit(cache=True, error_model="numpy")

_Vectors = NDArray[np.float64]


class HostMachine:
    """See `smartsplat.optim.machine.Machine`."""

    xp: Any = np

    def take(self, own: Gaussians) -> Gaussians:
        """Return the same."""
        return own

    def take_bounds(self, bounds: Bounds) -> Bounds:
        """Return the same."""
        return bounds

    def give(self, own: Gaussians) -> Gaussians:
        """Return the same."""
        return own

    def to_planes(self, pixels: Floats) -> Floats:
        """Return pixels as planes."""
        return cpu.to_planes(pixels)

    def to_pixels(self, planes: Floats) -> Floats:
        """Return planes as pixels, a view."""
        return cpu.to_image(planes)

    def to_vectors(self, values: NDArray[Any]) -> _Vectors:
        """Return a copy in float64."""
        return values.astype(np.float64)

    def to_host(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the same."""
        return values

    def operators(
        self, gaussians: Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0
    ) -> cpu.Operators:
        """Return the CPU engine's operators."""
        return cpu.operators(gaussians, region, scale=scale)

    def numbers(self, at: cpu.Operators, *scalars: float) -> list[float]:  # noqa: ARG002
        """Return the same."""
        return list(scalars)

    def mixed_loss(self, target: Floats, weight: Floats, ssim_share: float) -> Loss:
        """Return the mixed loss."""
        return MixedLoss(target, weight, ssim_share).evaluate

    def precondition(self, out: _Vectors, rest: _Vectors, own: Gaussians, damping: float) -> float:
        """Apply the preconditioner."""
        return _precondition(out, rest, own.scales, own.colors, damping)

    def damp(self, product: _Vectors, direction: _Vectors, own: Gaussians, damping: float) -> float:
        """Add the damping."""
        return _damp(product, direction, own.scales, own.colors, damping)

    def advance(
        self,
        solution: _Vectors,
        rest: _Vectors,
        direction: _Vectors,
        product: _Vectors,
        norm: float,
        curvature: float,
    ) -> None:
        """Take a step of conjugate gradients."""
        _advance(solution, rest, direction, product, _ratio(norm, curvature))

    def turn(self, direction: _Vectors, ready: _Vectors, norm: float, previous: float) -> None:
        """Choose the next direction."""
        direction *= _ratio(norm, previous)
        direction += ready

    def moved(self, own: Gaussians, step: _Vectors, bounds: Bounds) -> Gaussians:
        """Return the Gaussians a step away."""
        rows = own.to_rows()
        rows[:, GEOMETRY_PARAMETERS:] += step[:, GEOMETRY_PARAMETERS:]
        _retract(rows, step, bounds.low, bounds.last, bounds.min_scale, bounds.max_scale)
        return Gaussians.from_rows(rows, origin=own.origin)


HOST = HostMachine()


def _ratio(upper: float, lower: float) -> float:
    return upper / lower if lower > 0 else 0.0


@_jit
def _block(scales, colors, i):  # type: ignore[no-untyped-def]
    """Return ``A`` and ``|c|^2`` of a Gaussian, neither too near zero."""
    area = max(math.pi * np.float64(scales[i, 0]) * np.float64(scales[i, 1]), LEAST_AREA)
    energy = LEAST_COLOR**2
    for band in range(colors.shape[1]):
        energy += np.float64(colors[i, band]) ** 2
    return area, energy


@_jit
def _precondition(out, rest, scales, colors, damping):  # type: ignore[no-untyped-def]
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


@_jit
def _retract(rows, step, low, last, min_scale, max_scale):  # type: ignore[no-untyped-def]
    """Move means and shapes in place."""
    for i in range(len(rows)):
        first, second = np.float64(rows[i, 2]), np.float64(rows[i, 3])
        cos, sin = math.cos(rows[i, 4]), math.sin(rows[i, 4])
        along = first * min(max(step[i, 0], -LONGEST_MOVE), LONGEST_MOVE)
        across = second * min(max(step[i, 1], -LONGEST_MOVE), LONGEST_MOVE)
        moves = (cos * along - sin * across, sin * along + cos * across)
        for axis in range(2):
            mean = np.float32(rows[i, axis] + moves[axis])
            rows[i, axis] = min(max(mean, low[i, axis]), last[i, axis])
        a = min(max(step[i, 2], -LONGEST_STRETCH), LONGEST_STRETCH)
        b = min(max(step[i, 3], -LONGEST_STRETCH), LONGEST_STRETCH)
        c = 0.5 * min(max(step[i, 4], -LONGEST_STRETCH), LONGEST_STRETCH)
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
