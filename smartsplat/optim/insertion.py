"""Where more Gaussians are needed: at the peaks of what the fit has left over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region

SCORE_BINS = 1024
"""Bins of a histogram of scores, on a logarithmic scale: 6 % of a score each."""

_LEAST_SCORE, _MOST_SCORE = 1e-16, 1e10
_TIE_BREAK = 1e-6
_TRUNCATE = 3.0  # standard deviations at which the smoothing ends


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Gaussians that might be added to a tile, the most wanted first.

    Parameters
    ----------
    gaussians
        In px of the level, like the residual they come from.
    scores
        ``(N,)`` float32: smoothed squared residual at each, falling.
    """

    gaussians: Gaussians
    scores: Floats


def find_candidates(
    residual: Floats, weight: Floats | None, *, core: Region, padded: Region, scale: float
) -> Candidates:
    """Return a round Gaussian for every local maximum, within `core`, of the smoothed squared residual.

    Parameters
    ----------
    residual
        ``(h, w, C)`` float32 over `padded`: target minus image.
    weight
        ``(h, w)``, 0 = no data; None = all 1.
    core, padded
        Px of the level; means come relative to the core's origin.
    scale
        Of the smoothing and of the Gaussians, px. A Gaussian's color is the smoothed residual at its mean.

    Examples
    --------
    >>> import numpy as np
    >>> residual = np.zeros((20, 20, 1), np.float32)
    >>> residual[8:11, 4:7] = 1
    >>> whole = Region(y0=0, y1=20, x0=0, x1=20)
    >>> find_candidates(residual, None, core=whole, padded=whole, scale=1.5).gaussians.means.tolist()
    [[9.5, 5.5]]
    """
    weighted = residual if weight is None else residual * weight[:, :, None]
    score = _smooth((weighted * residual).sum(axis=2), scale)
    # On a plateau every pixel would be a peak; a little noise leaves one here and there.
    ranked = score * (1 + _TIE_BREAK * np.random.default_rng(0).random(score.shape))
    peaks = (ranked == maximum_filter(ranked, size=2 * int(2 * scale) + 1)) & (score > _LEAST_SCORE)
    ys, xs = np.nonzero(peaks[core.slices_within(padded)])
    within = core.y0 - padded.y0 + ys, core.x0 - padded.x0 + xs
    order = np.argsort(-score[within], kind="stable")
    ys, xs, within = ys[order], xs[order], (within[0][order], within[1][order])
    smooth = [_smooth(weighted[:, :, band], scale) for band in range(residual.shape[2])]
    count = len(ys)
    return Candidates(
        gaussians=Gaussians(
            means=np.stack([ys, xs], axis=1) + np.float32(0.5),
            scales=np.full((count, 2), scale, np.float32),
            rotations=np.zeros(count, np.float32),
            colors=np.stack([band[within] for band in smooth], axis=1),
            origin=core.origin,
        ),
        scores=score[within],
    )


def least_effect(gaussians: Gaussians) -> Floats:
    """Return a number for each Gaussian, lower the less would be missed without it: ``s1 s2 |c|^2``.

    That is the energy of its image, but for a factor.
    """
    return gaussians.scales.prod(axis=1) * np.square(gaussians.colors).sum(axis=1)


def score_histogram(scores: Floats) -> NDArray[np.int64]:
    """Return how many scores fall into each of `SCORE_BINS` bins, the highest scores first.

    Examples
    --------
    >>> score_histogram(np.array([1e20, 1e-20], np.float32))[[0, -1]].tolist()
    [1, 1]
    """
    return np.bincount(_bins(scores), minlength=SCORE_BINS)


def share_top(histograms: Iterable[NDArray[np.int64]], *, count: int) -> list[int]:
    """Return how many of its highest scores each tile contributes to the `count` highest of all.

    Of the last bin that takes part, earlier tiles take first. If there are fewer than `count`, all are taken.

    Parameters
    ----------
    histograms
        One of each tile; gone through twice.

    Examples
    --------
    >>> busy, calm = np.array([5, 4, 0]), np.array([0, 3, 9])
    >>> share_top([busy, calm], count=7)
    [7, 0]
    >>> share_top([busy, calm], count=10)
    [9, 1]
    """
    filled = np.cumsum(sum(histograms, np.zeros(1, np.int64)))
    whole = int(np.searchsorted(filled, count, side="right"))
    left = count - (int(filled[whole - 1]) if whole else 0)
    shares: list[int] = []
    for histogram in histograms:
        extra = min(left, int(histogram[whole])) if whole < len(filled) else 0
        shares.append(int(histogram[:whole].sum()) + extra)
        left -= extra
    return shares


def _smooth(image: Floats, scale: float) -> Floats:
    return np.asarray(gaussian_filter(image, scale, truncate=_TRUNCATE), np.float32)


def _bins(scores: Floats) -> NDArray[np.int64]:
    span = np.log(_MOST_SCORE / _LEAST_SCORE)
    place = np.log(np.clip(scores.astype(np.float64), _LEAST_SCORE, _MOST_SCORE) / _LEAST_SCORE) / span
    return np.clip(np.floor((1 - place) * SCORE_BINS), 0, SCORE_BINS - 1).astype(np.int64)


def spread_evenly(core: Region, *, count: int, scale: float, bands: int, seed: tuple[int, ...]) -> Gaussians:
    """Return `count` Gaussians without color at random places of a core, for want of better ones.

    Examples
    --------
    >>> len(spread_evenly(Region(y0=0, y1=4, x0=0, x1=4), count=3, scale=1.0, bands=1, seed=(0, 1)))
    3
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed[0], spawn_key=(*seed[1:], *core.origin)))
    means = (rng.random((count, 2)) * core.shape).astype(np.float32)
    return Gaussians(
        means=np.clip(means, 0, np.nextafter(np.array(core.shape, np.float32), np.float32(0))),
        scales=np.full((count, 2), scale, np.float32),
        rotations=np.zeros(count, np.float32),
        colors=np.zeros((count, bands), np.float32),
        origin=core.origin,
    )
