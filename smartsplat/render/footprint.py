"""The one definition of which pixels a Gaussian touches, for every engine, the halo rule and the decoder.

A Gaussian touches exactly the pixels whose centre ``p`` satisfies ``(p - mu)^T S^-1 (p - mu) <= CUTOFF^2``. This
depends on nothing but the Gaussian and the pixel: neither on the region that is drawn nor on how an engine bins its
work. So a region of a scene equals the same crop of the whole, exactly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import Gaussians

CUTOFF = math.sqrt(2 * math.log(255))
"""Radius of a footprint in standard deviations (3.329): there the weight has fallen to 1/255."""


def max_scale(reach: float) -> float:
    """Return the largest scale whose footprint stays within `reach` px of the mean.

    Examples
    --------
    >>> round(max_scale(256), 2)
    76.9
    """
    return reach / CUTOFF


def half_extents(gaussians: Gaussians) -> NDArray[np.float64]:
    """Return ``(N, 2)``, px: how far each footprint extends from its mean along y and along x.

    The bounding box of the ellipse ``d^T S^-1 d = CUTOFF^2`` is ``CUTOFF sqrt(S_yy)`` by ``CUTOFF sqrt(S_xx)``.

    Examples
    --------
    >>> import numpy as np
    >>> one = Gaussians(
    ...     means=np.zeros((1, 2)), scales=np.array([[3.0, 1.0]]), rotations=np.zeros(1), colors=np.ones((1, 1))
    ... )
    >>> half_extents(one).round(2)
    array([[9.99, 3.33]])
    """
    cos, sin = np.cos(gaussians.rotations, dtype=np.float64), np.sin(gaussians.rotations, dtype=np.float64)
    first, second = gaussians.scales.astype(np.float64).T
    return CUTOFF * np.stack([np.hypot(first * cos, second * sin), np.hypot(first * sin, second * cos)], axis=1)


def reach_beyond(gaussians: Gaussians, *, height: int, width: int) -> int:
    """Return how far, px rounded up, any footprint extends beyond ``height x width`` px at the set's origin.

    Examples
    --------
    >>> import numpy as np
    >>> one = Gaussians(
    ...     means=np.array([[5.0, 1.0]]), scales=np.ones((1, 2)), rotations=np.zeros(1), colors=np.ones((1, 1))
    ... )
    >>> reach_beyond(one, height=10, width=10)
    3
    """
    if len(gaussians) == 0:
        return 0
    means, extents = gaussians.means.astype(np.float64), half_extents(gaussians)
    low, high = extents - means, means + extents - (height, width)
    return max(0, math.ceil(max(low.max(), high.max())))
