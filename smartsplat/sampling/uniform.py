"""Samples that cover the rest: anywhere with data, clear of the variational ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import Floats

_ROUNDS = 8
_SPARE = 1.25  # candidates drawn in a round per sample wanted: at usual densities one round is enough


def exclusion_radius(scales: NDArray[np.floating], *, base_scale: float) -> float:
    """Return how far uniform samples keep from the variational ones, ``max(s_base, median(s))``, px.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> exclusion_radius(np.array([1.0, 3.0, 5.0]), base_scale=2.0)
    3.0
    """
    return max(base_scale, float(np.median(scales))) if len(scales) else base_scale


def uniform_means(
    valid: NDArray[np.bool_], *, count: int, keep_clear_of: Floats, radius: float, rng: np.random.Generator
) -> Floats:
    """Return `count` positions, uniform over the valid pixels, farther than `radius` from every other sample given.

    Always exactly `count`: if a bounded number of candidates holds too few that are clear, the remaining places go to
    the candidates farthest away.

    Parameters
    ----------
    valid
        ``(H, W)``: pixels to place samples in. If there are none, samples are placed anywhere.
    keep_clear_of
        ``(n, 2)``, px: the variational samples.
    radius
        The exclusion radius, px.

    Returns
    -------
    ndarray
        ``(count, 2)``, px.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> centre = np.array([[1.5, 1.5]], np.float32)
    >>> means = uniform_means(
    ...     np.ones((3, 3), bool), count=9, keep_clear_of=centre, radius=1.0, rng=np.random.default_rng(0)
    ... )
    >>> means.shape, bool((np.hypot(*(means - centre).T) > 1).all())
    ((9, 2), True)
    """
    if count == 0:
        return np.empty((0, 2), np.float32)
    pixels = np.flatnonzero(valid) if valid.any() else np.arange(valid.size)
    batch = math.ceil(_SPARE * count)
    candidates, distances = np.empty((0, 2), np.float32), np.empty(0)
    for _ in range(_ROUNDS):
        drawn = _anywhere_in(pixels, width=valid.shape[1], count=batch, rng=rng)
        candidates = np.concatenate([candidates, drawn])
        distances = np.concatenate([distances, _distances(drawn, keep_clear_of)])
        if np.count_nonzero(distances > radius) >= count:
            break
    # Those that are clear come first, in the order drawn; the others follow, farthest first.
    order = np.argsort(-np.where(distances > radius, math.inf, distances), kind="stable")
    return candidates[order[:count]]


def uniform_scales(means: Floats, others: Floats, *, nearest: int, base_scale: float) -> NDArray[np.float64]:
    """Return the scale of each uniform sample, ``s = sqrt(mean(d^2))`` over its ``K`` nearest samples, px.

    Parameters
    ----------
    means
        ``(n, 2)``, px: the uniform samples.
    others
        ``(k, 2)``, px: the variational ones. Neighbours are found among both, the sample itself left out.
    nearest
        ``K``; where fewer other samples exist, those there are.
    base_scale
        Px; the scale of a sample that is the only one.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> row = np.array([[0, 0], [0, 3], [0, 7]], np.float32)
    >>> uniform_scales(row[:2], row[2:], nearest=2, base_scale=1.0).round(3)
    array([5.385, 3.536])
    """
    samples = np.concatenate([means, others]).astype(np.float64)
    neighbors = min(nearest, len(samples) - 1)
    if len(means) == 0 or neighbors < 1:
        return np.full(len(means), base_scale)
    # Each finds itself first, at distance 0 (or a sample in the same place, which is as good to leave out).
    distances = _nearest_distances(samples[: len(means)], samples, count=neighbors + 1)[:, 1:]
    return np.sqrt(np.mean(distances**2, axis=1))


def _anywhere_in(pixels: NDArray[np.integer], *, width: int, count: int, rng: np.random.Generator) -> Floats:
    """Return `count` positions uniform over the pixels with these flat indices."""
    rows, columns = np.divmod(pixels[rng.integers(len(pixels), size=count)], width)
    corners = np.stack([rows, columns], axis=1).astype(np.float32)
    # A float32 sum may round up to the next pixel, which may lack data or lie outside the core.
    return np.minimum(corners + rng.random((count, 2), dtype=np.float32), np.nextafter(corners + 1, np.float32(0)))


def _distances(means: Floats, others: Floats) -> NDArray[np.float64]:
    """Return how far each of `means` is from the nearest of `others`; infinity if there are none."""
    if len(others) == 0:
        return np.full(len(means), math.inf)
    return _nearest_distances(means.astype(np.float64), others.astype(np.float64), count=1)[:, 0]


def _nearest_distances(means: NDArray[np.float64], others: NDArray[np.float64], *, count: int) -> NDArray[np.float64]:
    from scipy.spatial import KDTree  # loading it takes longer than loading this package

    distances, _ = KDTree(others).query(means, k=count)
    return np.reshape(distances, (len(means), count))
