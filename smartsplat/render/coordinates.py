"""Both coordinates of a change of Gaussians, rows and whitened ones (see `smartsplat.render.cpu.Operators`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import Floats

_Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """Each Gaussian's own axes and scales: what takes one set of coordinates to the other.

    Parameters
    ----------
    along_y, along_x
        ``(N, 2)``: what 1 px along y and along x is in whitened coordinates.
    shapes
        ``(N, 3)``: the two scales, and ``s1/s2 - s2/s1``.
    """

    along_y: _Doubles
    along_x: _Doubles
    shapes: _Doubles

    def to_rows(self, moments: _Doubles) -> Floats:
        """Return a gradient given in whitened coordinates, ``(N, 5 + C)``, in rows, float32."""
        gradient = moments.astype(np.float32)
        mean, (first, second, shear) = moments[:, :2], self.shapes.T
        gradient[:, 0] = (mean * self.along_y).sum(axis=1)
        gradient[:, 1] = (mean * self.along_x).sum(axis=1)
        gradient[:, 2] = moments[:, 2] / first
        gradient[:, 3] = moments[:, 3] / second
        gradient[:, 4] = moments[:, 4] * shear
        return gradient

    def whitened(self, tangent: Floats) -> _Doubles:
        """Return a tangent given in rows, ``(N, 5 + C)``, in whitened coordinates."""
        step, (first, second, shear) = tangent.astype(np.float64), self.shapes.T
        step[:, :2] = step[:, 0:1] * self.along_y + step[:, 1:2] * self.along_x
        step[:, 2] /= first
        step[:, 3] /= second
        step[:, 4] *= shear
        return step


def frames_of(scales: _Doubles, rotations: _Doubles) -> Frames:
    """Return the frames of scales ``(N, 2)`` and rotations ``(N,)``, float64."""
    cos, sin = np.cos(rotations), np.sin(rotations)
    return Frames(
        along_y=np.stack([cos, -sin], axis=1) / scales,
        along_x=np.stack([sin, cos], axis=1) / scales,
        shapes=shapes_of(scales),
    )


def shapes_of(scales: _Doubles) -> _Doubles:
    """Return `Frames.shapes` of scales ``(N, 2)``."""
    first, second = scales.T
    return np.stack([first, second, first / second - second / first], axis=1)
