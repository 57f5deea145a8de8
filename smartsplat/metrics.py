"""How good an image is: PSNR, SSIM, MS-SSIM and bits per pixel, from sums that add up region by region.

Each region (a *core*) contributes its own pixels and the windows centred in it, computed with enough context that
they are those of the whole image. Cores that partition the scene therefore give what the whole image in memory gives,
up to the rounding of float64 sums.

Two choices make it so. Cores start at multiples of `ALIGNMENT`, so that the 2 x 2 averages between the levels of
MS-SSIM fall on the same pixels as the whole image's. And they come with `CONTEXT` pixels around them, so that at the
coarsest level a window centred on the core's edge is still complete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.geometry import Region

Doubles = NDArray[np.float64]

LEVEL_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the levels of MS-SSIM, finest first (Wang et al. 2003)."""

LEVELS = len(LEVEL_WEIGHTS)
"""Levels of MS-SSIM at most; each halves the one before."""

WINDOW_RADIUS = 5
"""Pixels from the centre of the Gaussian window to its edge, at any level: the window is 11 x 11."""

WINDOW = 2 * WINDOW_RADIUS + 1
"""Side of the window, px; a level with a shorter side has no window."""

ALIGNMENT = 2 ** (LEVELS - 1)
"""Cores start at multiples of it, px: the side of one pixel of the coarsest level."""

CONTEXT = WINDOW_RADIUS * ALIGNMENT
"""Pixels needed on each side of a core, where the scene has them: the radius of a window of the coarsest level."""

_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_STRIP_PIXELS = 2**17  # windows filtered at once: their temporaries stay in the cache
_MIN_STRIP_ROWS = 16  # of a very wide region: each strip filters 10 rows on top of its own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorSums:
    """What PSNR, SSIM and MS-SSIM are made of, summed over pixels and windows; the sums of two regions add up.

    Parameters
    ----------
    squared
        ``(C,)``: sum of ``w (reference - rendered)^2`` over pixels.
    weight
        Sum of ``w`` over pixels.
    contrast, similarity
        ``(LEVELS, C)``: sums of ``w cs`` (contrast times structure) and of ``w ssim`` over windows, finest first.
    windows
        ``(LEVELS,)``: sum of ``w`` over windows; 0 at levels that the scene is too small for.

    Examples
    --------
    >>> sums = sum([ErrorSums.zero(3), ErrorSums.zero(3)], ErrorSums.zero(3))
    >>> sums.bands, sums.weight
    (3, 0.0)
    """

    squared: Doubles
    weight: float
    contrast: Doubles
    similarity: Doubles
    windows: Doubles

    @classmethod
    def zero(cls, bands: int) -> ErrorSums:
        """Return the sums over no pixels: the neutral element of ``+``, and the start of ``sum``."""
        return cls(
            squared=np.zeros(bands),
            weight=0.0,
            contrast=np.zeros((LEVELS, bands)),
            similarity=np.zeros((LEVELS, bands)),
            windows=np.zeros(LEVELS),
        )

    @property
    def bands(self) -> int:
        """Color bands ``C``."""
        return len(self.squared)

    def __add__(self, other: ErrorSums) -> ErrorSums:
        if self.bands != other.bands:  # numpy would broadcast a single band
            raise ValueError(f"sums over {self.bands} and over {other.bands} bands do not add up")
        return ErrorSums(
            squared=self.squared + other.squared,
            weight=self.weight + other.weight,
            contrast=self.contrast + other.contrast,
            similarity=self.similarity + other.similarity,
            windows=self.windows + other.windows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How close two images are.

    Parameters
    ----------
    psnr
        dB; infinite if they are identical.
    ssim, ms_ssim
        1 if identical; None where no window fits (a side under 11 px) or none has data.
    """

    psnr: float
    ssim: float | None
    ms_ssim: float | None


def level_count(shape: tuple[int, int]) -> int:
    """Return how many levels of MS-SSIM a scene has: as many, up to `LEVELS`, as leave 11 px a side.

    Parameters
    ----------
    shape
        ``(height, width)`` of the scene, px.

    Examples
    --------
    >>> level_count((176, 5000)), level_count((175, 5000)), level_count((10, 5000))
    (5, 4, 0)
    """
    return sum(min(shape) >> level >= WINDOW for level in range(LEVELS))


def context_region(core: Region, shape: tuple[int, int]) -> Region:
    """Return the pixels that `error_sums` needs to score `core`: `CONTEXT` more on each side, cut at the scene's edge.

    A pixel of the coarsest level is 16 px wide and its window reaches 5 such pixels beyond it, 80 px.

    Parameters
    ----------
    core
        Pixels to score.
    shape
        ``(height, width)`` of the scene, px.

    Examples
    --------
    >>> context_region(Region(y0=0, y1=512, x0=512, x1=1000), (1000, 1000))
    Region(y0=0, y1=592, x0=432, x1=1000)
    """
    return core.expand(CONTEXT).intersect(_bounds(shape))


def error_sums(
    reference: NDArray[Any],
    rendered: NDArray[Any],
    *,
    core: Region,
    padded: Region,
    shape: tuple[int, int],
    peak: float,
    weight: NDArray[Any] | None = None,
) -> ErrorSums:
    """Return the sums over the pixels of `core` and over the SSIM windows centred in it, at each level.

    With the means ``m``, variances ``v`` and covariance ``c`` of a window, ``C1 = (0.01 peak)^2`` and
    ``C2 = (0.03 peak)^2``::

        cs   = (2 c_xy + C2) / (v_x + v_y + C2)
        ssim = cs (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1)

    A window is 11 x 11, Gaussian with sigma 1.5, and lies inside the image. From one level to the next, pixels are
    averaged 2 x 2 and an odd last row or column is dropped. Working memory is about 48 bytes a pixel of the context,
    whatever the number of bands.

    Parameters
    ----------
    reference, rendered
        ``(H, W, C)`` of any real dtype, covering `padded`; finite where `weight` is positive. Summed in float64.
    core
        Pixels to score. It starts at multiples of `ALIGNMENT` and ends at such or at the edge of the scene.
    padded
        Where the arrays lie in the scene: at least `context_region` of the core.
    shape
        ``(height, width)`` of the scene, px.
    peak
        Range of the pixel values, e.g. 255.
    weight
        ``(H, W)``, not negative; 0 is no data. Such pixels count as 0 in both images, whatever they hold; a window
        counts with the weight of its centre. None is 1 everywhere.

    Raises
    ------
    ValueError
        If the core is not aligned or leaves the scene, the context is too small, the arrays do not fit, a weight is
        negative or not finite, or the peak is not positive.

    References
    ----------
    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004;
    Z. Wang, E. Simoncelli, A. Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003.

    Examples
    --------
    >>> image = np.arange(64.0 * 48).reshape(64, 48, 1)
    >>> left, right = Region(y0=0, y1=64, x0=0, x1=32), Region(y0=0, y1=64, x0=32, x1=48)
    >>> scene = Region(y0=0, y1=64, x0=0, x1=48)
    >>> halves = [
    ...     error_sums(image, image + 1, core=core, padded=scene, shape=(64, 48), peak=255) for core in (left, right)
    ... ]
    >>> sums = sum(halves, ErrorSums.zero(1))
    >>> sums.weight, sums.squared.tolist(), sums.windows.tolist()
    (3072.0, [3072.0], [2052.0, 308.0, 12.0, 0.0, 0.0])
    """
    _check_core(core, padded=padded, shape=shape)
    _check_arrays(reference, rendered, weight, padded=padded, peak=peak)
    context, levels = context_region(core, shape), level_count(shape)
    crop, pixels = context.slices_within(padded), core.slices_within(context)
    weights = _pyramid(_checked_weight(weight, crop, context), levels)
    centres = [_centres(core, context=context, shape=shape, level=level) for level in range(levels)]
    bands = [  # one at a time, for memory
        _band_sums(
            reference[(*crop, band)],
            rendered[(*crop, band)],
            weights=weights,
            pixels=pixels,
            centres=centres,
            peak=peak,
        )
        for band in range(reference.shape[2])
    ]
    windows = [weights[level][region.slices].sum() for level, region in enumerate(centres)]
    maps = np.stack([maps for _, maps in bands], axis=1)
    return ErrorSums(
        squared=np.array([squared for squared, _ in bands]),
        weight=float(weights[0][pixels].sum()),
        contrast=maps[..., 0],
        similarity=maps[..., 1],
        windows=np.pad(np.array(windows, np.float64), (0, LEVELS - levels)),
    )


def psnr(sums: ErrorSums, peak: float) -> float:
    """Return ``10 log10(peak^2 / MSE)``, dB, with the mean over pixels and bands; infinite where nothing differs.

    Examples
    --------
    >>> image = np.zeros((16, 16, 3), np.uint8)
    >>> score(image, image + np.uint8(255), peak=255).psnr, score(image, image, peak=255).psnr
    (0.0, inf)
    """
    squared = float(sums.squared.sum())
    if squared == 0:  # also where there is no data at all
        return math.inf
    return 20 * math.log10(peak) - 10 * math.log10(squared / (sums.weight * sums.bands))


def ssim(sums: ErrorSums) -> float | None:
    """Return the mean over windows and bands of the SSIM map; None where no window fits, or none has data.

    Examples
    --------
    >>> dark, light = np.full((2, 16, 16, 1), 100) + np.array([0, 50]).reshape(2, 1, 1, 1)
    >>> round(score(dark, light, peak=255).ssim, 4), round((2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2), 4)
    (0.9231, 0.9231)
    """
    return float((sums.similarity[0] / sums.windows[0]).mean()) if sums.windows[0] > 0 else None


def ms_ssim(sums: ErrorSums) -> float | None:
    """Return the mean over bands of ``ssim_M^w_M prod_(k < M) cs_k^w_k``; None where no window fits, or none has data.

    `M` is the coarsest level that has windows with data, `cs_k` and `ssim_k` are means over the windows of level k,
    0 where negative, and `w` are `LEVEL_WEIGHTS`: all five as published, fewer scaled to sum to 1.

    References
    ----------
    Z. Wang, E. Simoncelli, A. Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003.

    Examples
    --------
    >>> image = np.arange(180.0 * 200).reshape(180, 200, 1) % 251
    >>> score(image, image, peak=255).ms_ssim, score(image, 255 - image, peak=255).ms_ssim
    (1.0, 0.0)
    """
    levels = int(np.count_nonzero(sums.windows))  # windows with data at one level have them at all finer ones
    if levels == 0:
        return None
    factors = np.concatenate([sums.contrast[: levels - 1], sums.similarity[levels - 1 : levels]])
    means = np.maximum(factors / sums.windows[:levels, None], 0)
    exponents = np.array(LEVEL_WEIGHTS[:levels])
    if levels < LEVELS:  # all five sum to 1.0001, and so do others' scores
        exponents /= exponents.sum()
    return float((means ** exponents[:, None]).prod(axis=0).mean())


def quality(sums: ErrorSums, *, peak: float) -> Quality:
    """Return PSNR, SSIM and MS-SSIM of the summed regions; `peak` is the one the sums were made with."""
    return Quality(psnr=psnr(sums, peak), ssim=ssim(sums), ms_ssim=ms_ssim(sums))


def score(
    reference: NDArray[Any], rendered: NDArray[Any], *, peak: float, weight: NDArray[Any] | None = None
) -> Quality:
    """Return the quality of a whole image in memory: `error_sums` with one core.

    Parameters
    ----------
    reference, rendered
        ``(H, W, C)`` of any real dtype.
    peak
        Range of the pixel values, e.g. 255.
    weight
        ``(H, W)``; 0 is no data. None is 1 everywhere.

    Raises
    ------
    ValueError
        As `error_sums`.

    Examples
    --------
    >>> image = np.zeros((10, 300, 3), np.uint8)
    >>> score(image, image, peak=255)
    Quality(psnr=inf, ssim=None, ms_ssim=None)
    """
    shape = (reference.shape[0], reference.shape[1])
    whole = _bounds(shape)
    sums = error_sums(reference, rendered, core=whole, padded=whole, shape=shape, peak=peak, weight=weight)
    return quality(sums, peak=peak)


def bits_per_pixel(nbytes: int, height: int, width: int) -> float:
    """Return ``8 nbytes / (height width)``.

    Examples
    --------
    >>> bits_per_pixel(3_000, 100, 200)
    1.2
    """
    return 8 * nbytes / (height * width)


def _bounds(shape: tuple[int, int]) -> Region:
    return Region(y0=0, y1=shape[0], x0=0, x1=shape[1])


def _check_core(core: Region, *, padded: Region, shape: tuple[int, int]) -> None:
    if core.is_empty or not _bounds(shape).contains(core):
        raise ValueError(f"core {core} is empty or leaves the scene of {shape[0]} x {shape[1]} px")
    aligned = not any(start % ALIGNMENT for start in core.origin)
    if not aligned or any(end % ALIGNMENT and end != side for end, side in zip((core.y1, core.x1), shape, strict=True)):
        raise ValueError(
            f"core {core} must start at multiples of {ALIGNMENT} px, and end at such or at the edge of the scene of "
            f"{shape[0]} x {shape[1]} px"
        )
    if not padded.contains(context_region(core, shape)):
        raise ValueError(f"core {core} needs the pixels {context_region(core, shape)}, the arrays cover {padded} only")


def _check_arrays(
    reference: NDArray[Any], rendered: NDArray[Any], weight: NDArray[Any] | None, *, padded: Region, peak: float
) -> None:
    if not 0 < peak < math.inf:
        raise ValueError(f"peak {peak} must be positive and finite")
    if reference.shape[:2] != padded.shape or reference.ndim != 3 or reference.shape[2] < 1:
        raise ValueError(f"reference {reference.shape} is not (H, W, C) with H, W = {padded.shape} of region {padded}")
    if rendered.shape != reference.shape:
        raise ValueError(f"rendered {rendered.shape} and reference {reference.shape} have different shapes")
    if weight is not None and weight.shape != padded.shape:
        raise ValueError(f"weight {weight.shape} is not {padded.shape}, the shape of region {padded}")


def _checked_weight(weight: NDArray[Any] | None, crop: tuple[slice, slice], context: Region) -> Doubles:
    if weight is None:
        return np.ones(context.shape)
    cropped = np.asarray(weight[crop], np.float64)
    if not ((cropped >= 0) & (cropped < math.inf)).all():
        raise ValueError(f"a weight in {context} is negative or not finite; use 0 where there is no data")
    return cropped


def _pyramid(image: Doubles, levels: int) -> list[Doubles]:
    """Return the image and its successive 2 x 2 averages; itself at least."""
    pyramid = [image]
    for _ in range(1, levels):
        fine = pyramid[-1]
        even = fine[: fine.shape[0] // 2 * 2, : fine.shape[1] // 2 * 2]
        rows = even[0::2] + even[1::2]
        pyramid.append(0.25 * (rows[:, 0::2] + rows[:, 1::2]))
    return pyramid


def _centres(core: Region, *, context: Region, shape: tuple[int, int], level: int) -> Region:
    """Return the centres of the windows that are the core's at `level`, relative to the context at that level.

    The cores' shares partition the windows: starts are multiples of ``2^level`` and so are ends, but at the edge of the
    scene, which floors the same way.
    """
    inside = _coarsen(_bounds(shape), level).expand(-WINDOW_RADIUS)
    return _coarsen(core, level).intersect(inside).shift(-(context.y0 >> level), -(context.x0 >> level))


def _coarsen(region: Region, level: int) -> Region:
    return Region(y0=region.y0 >> level, y1=region.y1 >> level, x0=region.x0 >> level, x1=region.x1 >> level)


def _band_sums(
    reference: NDArray[Any],
    rendered: NDArray[Any],
    *,
    weights: list[Doubles],
    pixels: tuple[slice, slice],
    centres: list[Region],
    peak: float,
) -> tuple[float, Doubles]:
    """Return the squared error of one band over `pixels`, and ``(LEVELS, 2)`` sums of cs and ssim over `centres`."""
    x, y = (
        _pyramid(np.where(weights[0] > 0, band.astype(np.float64), 0), len(centres)) for band in (reference, rendered)
    )
    squared = (weights[0][pixels] * np.square(x[0][pixels] - y[0][pixels])).sum()
    maps = np.zeros((LEVELS, 2))
    for level, region in enumerate(centres):
        maps[level] = _window_sums(x[level], y[level], weights[level], centres=region, peak=peak)
    return float(squared), maps


def _window_sums(x: Doubles, y: Doubles, weight: Doubles, *, centres: Region, peak: float) -> Doubles:
    """Return the weighted sums of cs and ssim over the windows centred in `centres`, strip by strip of rows."""
    total = np.zeros(2)
    if centres.is_empty:
        return total
    rows = max(_MIN_STRIP_ROWS, _STRIP_PIXELS // centres.width)
    for y0 in range(centres.y0, centres.y1, rows):
        strip = Region(y0=y0, y1=min(y0 + rows, centres.y1), x0=centres.x0, x1=centres.x1)
        covered = strip.expand(WINDOW_RADIUS).slices
        cs, luminance = _maps(x[covered], y[covered], peak=peak)
        weighted = weight[strip.slices] * cs
        total += weighted.sum(), (weighted * luminance).sum()
    return total


def _maps(x: Doubles, y: Doubles, *, peak: float) -> tuple[Doubles, Doubles]:
    """Return, for each complete window, the contrast-structure term and the luminance term of SSIM.

    The two variances are only ever added, so four filters do instead of five.
    """
    mean_x, mean_y = _smooth(x), _smooth(y)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    variances = _smooth(x * x + y * y) - squares
    covariance = _smooth(x * y) - product
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    return (2 * covariance + c2) / (variances + c2), (2 * product + c1) / (squares + c1)


def _smooth(image: Doubles) -> Doubles:
    """Return the Gaussian mean of every complete window: ``(H, W)`` becomes ``(H - 10, W - 10)``."""
    from scipy.ndimage import correlate1d  # loading it takes longer than loading this package

    offsets = np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    inside = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    return correlate1d(correlate1d(image, kernel, axis=0)[inside], kernel, axis=1)[:, inside]
