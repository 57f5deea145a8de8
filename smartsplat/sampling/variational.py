"""Samples that follow the image: more of them, and smaller ones, where it changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import Floats


def variational_means(weights: Floats, *, count: int, rng: np.random.Generator) -> Floats:
    """Return the centres of `count` different pixels, drawn one after the other with probability ``w / sum w``.

    All at once: with ``E`` exponential, the pixel of the smallest ``E / w`` is distributed as the first draw, the next
    smallest as the second, and so on.

    Parameters
    ----------
    weights
        ``(H, W)``; pixels of weight 0 are never drawn.
    count
        Samples wanted. Where fewer pixels have weight, each of them is drawn.

    Returns
    -------
    ndarray
        ``(n, 2)``, px, in raster order.

    References
    ----------
    SmartSplat, arXiv:2512.20377; keys: Efraimidis and Spirakis, 2006.

    Examples
    --------
    >>> weights = np.array([[0.0, 1.0], [2.0, 0.0]], np.float32)
    >>> variational_means(weights, count=2, rng=np.random.default_rng(0)).tolist()
    [[0.5, 1.5], [1.5, 0.5]]
    """
    drawable = np.flatnonzero(weights)
    keys = rng.standard_exponential(len(drawable)) / weights.ravel()[drawable]
    # Sorted again: the order in which `argpartition` leaves them differs from machine to machine.
    chosen = drawable if count >= len(drawable) else np.sort(drawable[np.argpartition(keys, count)[:count]])
    rows, columns = np.divmod(chosen, weights.shape[1])
    return np.stack([rows, columns], axis=1).astype(np.float32) + np.float32(0.5)


def variational_scales(weights: Floats, means: Floats, *, base_scale: float) -> NDArray[np.float64]:
    """Return the scale of each variational sample, ``s = s_base exp(-w / 2)``, px, with the weight of its pixel.

    Parameters
    ----------
    weights
        ``(H, W)``.
    means
        ``(n, 2)``, px.
    base_scale
        ``s_base``, px.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> variational_scales(np.ones((1, 1), np.float32), np.array([[0.5, 0.5]], np.float32), base_scale=2.0).round(3)
    array([1.213])
    """
    rows, columns = means.astype(np.int64).T
    return base_scale * np.exp(-0.5 * weights[rows, columns].astype(np.float64))
