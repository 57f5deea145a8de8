"""Where more Gaussians are needed: at the peaks of what the fit has left over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region

SCORE_BINS = 1024
"""Bins of a histogram of scores, on a logarithmic scale: 6 % of a score each."""

_LEAST_SCORE, _MOST_SCORE = 1e-16, 1e10
_TIE_BREAK = 1e-6
_TRUNCATE = 3.0  # standard deviations at which the smoothing ends
_CONTRAST_SCALE = 1.5  # px: SSIM's window
_LEAST_CONTRAST = 0.03  # SSIM's constant
_LEAST_SHARE = np.float32(1e-6)

_jit: Any = njit(cache=True, fastmath={"contract"}, error_model="numpy")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Gaussians that might be added to a tile, the most wanted first.

    Parameters
    ----------
    gaussians
        In px of the level, like the residual they come from.
    scores
        ``(N,)`` float32: smoothed squared residual at each, times its importance, falling.
    """

    gaussians: Gaussians
    scores: Floats


def visibility(pixels: Floats, weight: Floats | None, *, exponent: float) -> Floats:
    """Return ``(h, w)`` float32: what a squared error counts for at each pixel, less where the image is busy.

    It is ``(variance + 0.03^2)^-exponent``, with the variance of the bands' mean around the pixel. With 0.5 an error is
    weighed against the contrast it is seen in, as SSIM does.

    Parameters
    ----------
    pixels
        ``(h, w, C)``, in the unit range.
    weight
        ``(h, w)``, 0 = no data; None = all 1.

    Examples
    --------
    >>> import numpy as np
    >>> step = np.zeros((9, 40, 1), np.float32)
    >>> step[:, 20:] = 1
    >>> visibility(step, None, exponent=0.5)[4, [0, 20]].round(1)
    array([33.3,  2.1], dtype=float32)
    """
    taps, mean = _taps(_CONTRAST_SCALE), pixels.mean(axis=2, dtype=np.float32)
    if weight is None:
        share = np.ones_like(mean)
    else:
        share, mean = weight, np.where(weight > 0, mean, np.float32(0))
    shares = np.maximum(_smoothed(share, taps), _LEAST_SHARE)
    average, square = (_smoothed(share * plane, taps) / shares for plane in (mean, mean * mean))
    variance = np.maximum(square - average * average, 0)
    return (variance + np.float32(_LEAST_CONTRAST**2)) ** np.float32(-exponent)


def find_candidates(
    residual: Floats,
    weight: Floats | None,
    *,
    core: Region,
    padded: Region,
    scale: float,
    importance: Floats | None = None,
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
    importance
        ``(h, w)``: scores are multiplied by it; None = all 1.

    Examples
    --------
    >>> import numpy as np
    >>> residual = np.zeros((20, 20, 1), np.float32)
    >>> residual[8:11, 4:7] = 1
    >>> whole = Region(y0=0, y1=20, x0=0, x1=20)
    >>> find_candidates(residual, None, core=whole, padded=whole, scale=1.5).gaussians.means.tolist()
    [[9.5, 5.5]]
    """
    weight = np.ones(padded.shape, np.float32) if weight is None else weight
    residual = np.ascontiguousarray(residual)
    taps = _taps(scale)
    score = _smoothed(_squares(residual, weight), taps)
    if importance is not None:
        score *= importance
    # On a plateau every pixel would be a peak; a little noise leaves one here and there.
    ranked = score * (1 + _TIE_BREAK * np.random.default_rng(0).random(score.shape))
    rows, cols = core.slices_within(padded)
    peaks = _peaks(ranked, rows.start, rows.stop, cols.start, cols.stop, int(2 * scale))
    scores = score[peaks[:, 0], peaks[:, 1]]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > _LEAST_SCORE]
    peaks, scores, count = peaks[order], scores[order], len(order)
    return Candidates(
        gaussians=Gaussians(
            means=(peaks - (rows.start, cols.start)).astype(np.float32) + np.float32(0.5),
            scales=np.full((count, 2), scale, np.float32),
            rotations=np.zeros(count, np.float32),
            colors=_smoothed_at(peaks, residual, weight, taps),
            origin=core.origin,
        ),
        scores=scores,
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


def _taps(scale: float) -> Floats:
    """Return the weights of a Gaussian window, which sum to 1."""
    radius = int(_TRUNCATE * scale + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / scale) ** 2)
    return (taps / taps.sum()).astype(np.float32)


@_jit
def _mirrored(index, size):  # type: ignore[no-untyped-def]
    """Return the index within ``0 ... size - 1`` that one beyond the edge sees in the mirror there."""
    index %= 2 * size
    return min(index, 2 * size - 1 - index)


@_jit
def _squares(residual, weight):  # type: ignore[no-untyped-def]
    """Return the weighted squared residual, summed over bands."""
    height, width, bands = residual.shape
    squares = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            total = np.float32(0.0)
            for band in range(bands):
                total += residual[y, x, band] * residual[y, x, band]
            squares[y, x] = weight[y, x] * total
    return squares


@_jit
def _smoothed(plane, taps):  # type: ignore[no-untyped-def]
    """Return a plane smoothed; mirrored at the edges."""
    height, width = plane.shape
    radius = len(taps) // 2
    smooth = np.empty((height, width), np.float32)
    column = np.empty(width + 2 * radius, np.float32)
    for y in range(height):
        column[:] = np.float32(0.0)
        inner = column[radius : radius + width]
        for k in range(len(taps)):
            _add_scaled(inner, plane[_mirrored(y + k - radius, height)], taps[k])
        for x in range(radius):
            column[x] = inner[_mirrored(x - radius, width)]
            column[radius + width + x] = inner[_mirrored(width + x, width)]
        smooth[y] = np.float32(0.0)
        for k in range(len(taps)):
            _add_scaled(smooth[y], column[k : k + width], taps[k])
    return smooth


@_jit
def _add_scaled(total, row, factor):  # type: ignore[no-untyped-def]
    for x in range(len(total)):
        total[x] += factor * row[x]


@_jit
def _smoothed_at(peaks, residual, weight, taps):  # type: ignore[no-untyped-def]
    """Return the weighted residual, smoothed, at some pixels alone."""
    height, width, bands = residual.shape
    radius = len(taps) // 2
    colors = np.zeros((len(peaks), bands), np.float32)
    for i in range(len(peaks)):
        for dy in range(-radius, radius + 1):
            y = _mirrored(peaks[i, 0] + dy, height)
            for dx in range(-radius, radius + 1):
                x = _mirrored(peaks[i, 1] + dx, width)
                share = taps[dy + radius] * taps[dx + radius] * weight[y, x]
                for band in range(bands):
                    colors[i, band] += share * residual[y, x, band]
    return colors


@_jit
def _peaks(ranked, top, bottom, left, right, radius):  # type: ignore[no-untyped-def]
    """Return the pixels (row, col) of a rectangle that no other within `radius` along either axis exceeds."""
    found = [(0, 0) for _ in range(0)]
    for y in range(top, bottom):
        for x in range(left, right):
            if _is_peak(ranked, y, x, radius):
                found.append((y, x))
    peaks = np.empty((len(found), 2), np.int64)
    for i in range(len(found)):
        peaks[i, 0], peaks[i, 1] = found[i]
    return peaks


@_jit
def _is_peak(ranked, y, x, radius):  # type: ignore[no-untyped-def]
    height, width = ranked.shape
    for near in (min(1, radius), radius):  # most pixels are exceeded by one next to them
        for row in range(max(0, y - near), min(height, y + near + 1)):
            for col in range(max(0, x - near), min(width, x + near + 1)):
                if ranked[row, col] > ranked[y, x]:
                    return False
    return True


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
