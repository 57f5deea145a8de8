"""How many Gaussians a scene gets, how large they start, and how many of them each tile gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.config import SamplingConfig
from smartsplat.errors import BudgetError, ConfigError

NOMINAL_BYTES = 7
"""Bytes a Gaussian is taken to cost in the paper's budget."""

FLAT = 1e-8
"""Least sampling weight of a pixel with data, so that flat areas can be drawn, and evenly."""

TINY = 1e-30
"""Least maximum a map is divided by: where nothing changes at all, 0 stays 0."""

_SHARE_BITS = 40  # shares are apportioned as integers of this many bits, so that they add up exactly

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]


def gaussian_count(height: int, width: int, nominal_ratio: float) -> int:
    """Return the paper's Gaussian budget, ``N_g = 3 H W / (7 CR)``, rounded down.

    Parameters
    ----------
    height, width
        Scene size, px.
    nominal_ratio
        Target compression ratio against 8-bit RGB, at `NOMINAL_BYTES` a Gaussian.

    Raises
    ------
    ConfigError
        If the ratio is not positive and finite.
    BudgetError
        If it leaves fewer than one Gaussian.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> gaussian_count(1000, 700, nominal_ratio=100)
    3000
    """
    if not 0 < nominal_ratio < math.inf:
        raise ConfigError(f"ratio {nominal_ratio} must be a positive number")
    count = math.floor(3 * height * width / (NOMINAL_BYTES * Fraction(nominal_ratio)))
    if count < 1:
        raise BudgetError(
            f"ratio {nominal_ratio:g} leaves no Gaussian for {height} x {width} px; "
            f"use a ratio of at most {300 * height * width // NOMINAL_BYTES / 100:.2f}"
        )
    return count


def base_scale(height: int, width: int, count: int) -> float:
    """Return the scale Gaussians start from, ``s_base = sqrt(H W / (pi N)) / 3``, px.

    `count` discs of radius ``3 s_base`` have the area of the scene.

    Raises
    ------
    ConfigError
        If `count` is below 1.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> round(base_scale(1000, 700, 3000), 4)
    2.8727
    """
    if count < 1:
        raise ConfigError(f"{count} Gaussians: at least one is needed")
    return math.sqrt(height * width / (math.pi * count)) / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TileStats:
    """What one tile, or several added up, contributes to the scene-wide sampling plan.

    Parameters
    ----------
    pixels
        Valid pixels: those with data.
    gradient_sum, gradient_max
        Of the gradient magnitude over the valid pixels, in units of the full range a px.
    variance_sum, variance_max
        Of the local variance over the valid pixels.

    Examples
    --------
    >>> one = TileStats(pixels=4, gradient_sum=3.0, gradient_max=2.0, variance_sum=1.0, variance_max=0.5)
    >>> two = TileStats(pixels=1, gradient_sum=1.0, gradient_max=1.0, variance_sum=1.0, variance_max=1.0)
    >>> one + two
    TileStats(pixels=5, gradient_sum=4.0, gradient_max=2.0, variance_sum=2.0, variance_max=1.0)
    """

    pixels: int = 0
    gradient_sum: float = 0.0
    gradient_max: float = 0.0
    variance_sum: float = 0.0
    variance_max: float = 0.0

    def __add__(self, other: TileStats) -> TileStats:
        return TileStats(
            pixels=self.pixels + other.pixels,
            gradient_sum=self.gradient_sum + other.gradient_sum,
            gradient_max=max(self.gradient_max, other.gradient_max),
            variance_sum=self.variance_sum + other.variance_sum,
            variance_max=max(self.variance_max, other.variance_max),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """The few numbers of a whole scene that its tiles need to be sampled each on its own.

    Parameters
    ----------
    count
        Gaussians of the scene.
    base_scale
        The scale they start from, px.
    counts
        Gaussians of each tile, in the order of the tiles; they add up to `count`.
    gradient_max, variance_max
        Largest gradient magnitude and local variance of any valid pixel.
    """

    count: int
    base_scale: float
    counts: tuple[int, ...]
    gradient_max: float
    variance_max: float


def plan_sampling(
    stats: Sequence[TileStats], *, height: int, width: int, count: int, config: SamplingConfig
) -> SamplingPlan:
    """Return how a scene of ``height x width`` px with these tiles is sampled.

    Raises
    ------
    BudgetError
        If `count` exceeds the valid pixels (see `share_counts`).
    ConfigError
        If `count` is below 1.

    Examples
    --------
    >>> stats = [TileStats(pixels=6), TileStats(pixels=3)]
    >>> plan_sampling(stats, height=3, width=3, count=3, config=SamplingConfig()).counts
    (2, 1)
    """
    counts = share_counts(
        stats,
        count=count,
        variational_fraction=config.variational_fraction,
        gradient_share=config.gradient_share,
    )
    total = sum(stats, TileStats())
    return SamplingPlan(
        count=count,
        base_scale=base_scale(height, width, count),
        counts=tuple(counts),
        gradient_max=total.gradient_max,
        variance_max=total.variance_max,
    )


def share_counts(
    stats: Sequence[TileStats], *, count: int, variational_fraction: float, gradient_share: float
) -> list[int]:
    """Return how many of `count` Gaussians each tile gets; they add up to `count`.

    The share of a tile is ``f W_t / sum W + (1 - f) A_t / sum A``: its variational Gaussians follow its summed weight
    ``W_t = g sum(m) / max(m) + (1 - g) sum(v) / max(v)``, its uniform ones its valid area ``A_t``, so that blank tiles
    stay covered. Shares are rounded by largest remainder, the earlier tile first on a tie. A tile gets no more
    Gaussians than it has valid pixels; what it cannot take goes to the others, by the same shares.

    Parameters
    ----------
    stats
        One of each tile.
    count
        Gaussians of the scene.
    variational_fraction, gradient_share
        ``f`` and ``g``, see `smartsplat.config.SamplingConfig`.

    Raises
    ------
    BudgetError
        If `count` exceeds the valid pixels of the scene.

    Examples
    --------
    >>> busy = TileStats(pixels=100, gradient_sum=30.0, gradient_max=1.0, variance_sum=9.0, variance_max=0.2)
    >>> calm = TileStats(pixels=100, gradient_sum=10.0, gradient_max=0.5, variance_sum=3.0, variance_max=0.1)
    >>> share_counts([busy, calm, TileStats()], count=100, variational_fraction=0.7, gradient_share=0.9)
    [67, 33, 0]
    """
    pixels = sum(tile.pixels for tile in stats)
    if count > pixels:
        raise BudgetError(
            f"{count} Gaussians for {pixels} pixels with data: each tile takes at most one a pixel; "
            f"use --gaussians {pixels} or fewer, or a higher --ratio"
        )
    counts = np.zeros(len(stats), np.int64)
    if count > 0:
        caps = np.array([tile.pixels for tile in stats], np.int64)
        weights = _summed_weights(stats, gradient_share=gradient_share)
        shares = variational_fraction * weights / weights.sum() + (1 - variational_fraction) * caps / pixels
        filled = caps > 0
        counts[filled] = _apportion(count, shares=shares[filled], caps=caps[filled])
    return counts.tolist()


def _summed_weights(stats: Sequence[TileStats], *, gradient_share: float) -> _Floats:
    """Return the sum of the sampling weight over each tile, as if normalised by the scene's maxima; > 0 with data."""
    total = sum(stats, TileStats())
    gradient = np.array([tile.gradient_sum for tile in stats]) / max(total.gradient_max, TINY)
    variance = np.array([tile.variance_sum for tile in stats]) / max(total.variance_max, TINY)
    floor = FLAT * np.array([tile.pixels for tile in stats])
    return np.maximum(gradient_share * gradient + (1 - gradient_share) * variance, floor)


def _apportion(count: int, *, shares: _Floats, caps: _Integers) -> _Integers:
    """Return integers in proportion to `shares`, at most `caps`, that add up to ``count <= sum(caps)``.

    Those whose part reaches their cap get just that, until none does; a part below its cap is below it rounded up, too.
    """
    parts = np.maximum(1, np.rint(shares / shares.max() * 2**_SHARE_BITS)).astype(np.int64)
    counts = np.zeros_like(caps)
    open_ = np.ones(len(caps), np.bool_)
    while open_.any():
        left = count - int(counts.sum())
        total = int(parts[open_].sum())
        # Python integers: `left * parts` outgrows 64 bits.
        scaled: NDArray[Any] = left * parts.astype(object)
        full = open_ & (scaled >= caps.astype(object) * total)
        if not full.any():
            counts[open_] = _largest_remainder(left, scaled=scaled[open_], total=total)
            break
        counts[full] = caps[full]
        open_ &= ~full
    return counts


def _largest_remainder(left: int, *, scaled: NDArray[Any], total: int) -> _Integers:
    counts = (scaled // total).astype(np.int64)
    order = np.argsort(-(scaled % total), kind="stable")
    counts[order[: left - int(counts.sum())]] += 1
    return counts
