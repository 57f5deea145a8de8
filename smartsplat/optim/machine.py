"""What a fit is worked out with: where its planes and vectors are, and what is done with them there.

The algorithms (`fit`, `lm`, `colors`, `adam`) are written once, for a `Machine`: `host` has NumPy arrays and numba,
`device` has tensors on a CUDA device, which nothing leaves but what is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.render import resolve_engine

LONGEST_MOVE, LONGEST_STRETCH = 1.0, 0.5
"""Of a step, whitened."""

LEAST_COLOR = 0.02
"""Norm a color is taken for at least: a black Gaussian's shape has no derivative."""

LEAST_AREA = 1e-3
"""px^2: what ``pi s1 s2`` is taken for at least."""

Loss = Callable[[Any], tuple[float, Any]]
"""Planes of an image to the loss and its derivative."""


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

    @property
    def last(self) -> Floats:
        """The largest means allowed."""
        return np.nextafter(self.high, np.float32(-np.inf))


class Machine(Protocol):
    """Planes ``(C, height, ...)`` float32, vectors ``(N, 5 + C)`` float64 in whitened coordinates, and scalars.

    What its methods return and take is its own; that is why it has no type here. `Gaussians` and `Bounds` that were
    *taken* are where it works.
    """

    xp: Any
    """NumPy, or what has functions of the same names for the planes and vectors."""

    def take(self, own: Gaussians) -> Any:
        """Return the Gaussians where it works."""
        ...

    def take_bounds(self, bounds: Bounds) -> Any:
        """Return the bounds where it works."""
        ...

    def give(self, own: Any) -> Gaussians:
        """Return Gaussians that were taken."""
        ...

    def to_planes(self, pixels: Floats) -> Any:
        """Return ``(height, width, C)`` pixels as planes."""
        ...

    def to_pixels(self, planes: Any) -> Any:
        """Return planes seen as ``(height, width, C)``, where they are."""
        ...

    def to_vectors(self, values: NDArray[Any]) -> Any:
        """Return numbers as float64 where it works."""
        ...

    def to_host(self, values: Any) -> NDArray[Any]:
        """Return an array of what it has."""
        ...

    def operators(self, gaussians: Any, region: Region, *, scale: float = 1.0) -> Any:
        """Return operators with the methods of `smartsplat.render.cpu.Operators` on its planes and vectors.

        `gaussians` were taken or not; or they are several sets, not taken.
        """
        ...

    def numbers(self, at: Any, *scalars: Any) -> list[float]:
        """Return scalars that were worked out with operators `at`: the one thing that waits for a device."""
        ...

    def mixed_loss(self, target: Any, weight: Any, ssim_share: float) -> Loss:
        """Return `smartsplat.optim.loss.MixedLoss.evaluate` on its planes."""
        ...

    def precondition(self, out: Any, rest: Any, own: Any, damping: float) -> Any:
        """Fill the vectors `out` with the damped blocks' inverses times `rest`; return their product.

        With ``a = A (1 + damping)``, the colors are ``(r_c - c A/2 (x_1 + x_2)) / a`` (see `smartsplat.optim.lm`). Put
        into the rows of the stretches ``x_1, x_2`` that leaves a symmetric 2 x 2 system with ``p`` on and ``q`` off the
        diagonal.
        """
        ...

    def damp(self, product: Any, direction: Any, own: Any, damping: float) -> Any:
        """Add ``damping D direction`` to `product`; return its product with `direction`."""
        ...

    def advance(self, solution: Any, rest: Any, direction: Any, product: Any, norm: Any, curvature: Any) -> None:
        """Go along `direction` by ``norm / curvature``, or not at all where `curvature` is not positive."""
        ...

    def turn(self, direction: Any, ready: Any, norm: Any, previous: Any) -> None:
        """Make `direction` ``ready + norm / previous direction``, or `ready` where `previous` is not positive."""
        ...

    def moved(self, own: Any, step: Any, bounds: Any) -> Any:
        """Return the taken Gaussians a whitened step away, no further than the longest step, within bounds.

        The covariance ``L L^T``, ``L`` the axes times their scales, becomes ``L exp(2 d) L^T`` with ``d`` the symmetric
        matrix of the two stretches and half the shear; its axes and scales are read off again.
        """
        ...


def machine_for(engine: str) -> Machine:
    """Return a new machine for the engine that serves a request (see `smartsplat.render.resolve_engine`)."""
    if resolve_engine(engine) == "cuda":
        return importlib.import_module("smartsplat.optim.device").DeviceMachine()
    from smartsplat.optim.host import HOST

    return HOST
