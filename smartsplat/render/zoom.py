"""Gaussians seen through the pixels of a coarser or finer grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import Gaussians


def resample(gaussians: Gaussians, scale: float) -> tuple[NDArray[np.float64], Gaussians]:
    """Return the means on a grid of `scale` output pixels per scene pixel, and the Gaussians seen through it.

    A coarser pixel averages a box of ``1 / scale`` px. A Gaussian averaged over a box is nearly a Gaussian again: its
    variance grows by the box's, ``(1 - scale^2) / 12`` in output px^2 (the share that a scene pixel does not already
    hold), and its integral ``2 pi c s1 s2`` stays. A finer grid samples the same Gaussian at more points.

    Examples
    --------
    >>> import numpy as np
    >>> one = Gaussians(
    ...     means=np.array([[8.0, 8.0]]), scales=np.full((1, 2), 4.0), rotations=np.zeros(1), colors=np.ones((1, 1))
    ... )
    >>> means, seen = resample(one, 0.25)
    >>> means.tolist(), seen.scales.round(3), seen.colors.round(3)
    ([[2.0, 2.0]], array([[1.038, 1.038]], dtype=float32), array([[0.928]], dtype=float32))
    """
    means = (gaussians.means.astype(np.float64) + gaussians.origin) * scale
    if scale == 1:
        return means, gaussians
    box_variance = max(0.0, (1 - scale**2) / 12)
    unfiltered = gaussians.scales.astype(np.float64) * scale
    scales = np.sqrt(unfiltered**2 + box_variance)
    gain = (unfiltered / scales).prod(axis=1, keepdims=True)
    seen = Gaussians(
        means=np.zeros_like(gaussians.means),
        scales=scales.astype(np.float32),
        rotations=gaussians.rotations,
        colors=(gaussians.colors * gain).astype(np.float32),
    )
    return means, seen
