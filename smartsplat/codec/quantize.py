"""Floats to integers and back.

A Gaussian's shape is written as log-area, log-aspect and a rotation whose resolution follows from the aspect, because
that is how its image depends on them: a rotation by ``phi`` changes a Gaussian in proportion to ``sinh(ln s1/s2) phi``.

An error of a shape shows in proportion to the Gaussian's amplitude, ``sqrt(pi s1 s2) |c|``. So each Gaussian has a
*precision*, a number of further bits beyond the coarsest steps: with each, its steps are halved. It needs no place of
its own in memory, as the grids of areas of different precisions have no point in common: it is read off the area.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.codec.attributes import (
    HIGHEST_PRECISION,
    LONGEST_ASPECT,
    LOW_TURNS,
    PLACE_LAG,
    Attributes,
    all_rotation_bits,
)
from smartsplat.codec.coder import LARGEST, Integers
from smartsplat.config import CodecConfig
from smartsplat.errors import ConfigError
from smartsplat.gaussians import Gaussians

_LUMA_CHROMA = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
_AREA_EXPONENT = -0.4
_AREA_LIMIT = 80.0
_ASPECT_LIMIT = 40.0
_TURNS = 40
_ON_GRID = 5e-7  # of the coarsest step: how far float32 may take an area from its grid
_COLOR_SHARE = 0.7  # of an error's tolerance, for one band's color beside that for each number of a shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Quantisation steps of a scene.

    Parameters
    ----------
    mean
        Px: side of a cell.
    area, aspect
        Of ``ln(s1 s2)`` and ``ln(s1 / s2)``, at precision 0.
    rotation
        Rad, times ``1 / sinh`` of the log-aspect, at precision 0.
    color
        At a Gaussian of scale `base_scale`; it follows the area to the power -0.4, as a larger Gaussian's error
        covers more pixels.
    base_scale
        Px.
    """

    mean: float
    area: float
    aspect: float
    rotation: float
    color: float
    base_scale: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"quantisation step {name} = {value} must be positive and finite")

    @classmethod
    def from_config(
        cls, config: CodecConfig, *, base_scale: float, error: float, factor: float = 1.0, color_factor: float = 1.0
    ) -> Steps:
        """Return the steps for a scene of `base_scale` px whose image is off by `error`.

        Parameters
        ----------
        error
            Root of the mean squared error before quantisation, in units of the full range.
        factor, color_factor
            On the errors that quantisation may add; the second on those of colors alone.
        """
        return cls(
            mean=config.mean_step * base_scale,
            area=config.area_step,
            aspect=config.aspect_step,
            rotation=config.rotation_step,
            color=config.color_step * error * factor * color_factor,
            base_scale=base_scale,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the steps as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @property
    def turns(self) -> Integers:
        """See `smartsplat.codec.attributes.rotation_bits`."""
        halves = np.arange(_TURNS) + 0.5 - LOW_TURNS
        return np.rint(65536 * np.arcsinh(self.rotation * 2.0**halves / math.pi) / self.aspect).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedGaussians:
    """Integers of ``N`` Gaussians: what the entropy stage writes, exactly.

    Parameters
    ----------
    cells
        ``(N, 2)``, not negative: cell (y, x) of the mean on the grid of step `Steps.mean`.
    attributes
        All else.
    """

    cells: Integers
    attributes: Attributes


def quantize(gaussians: Gaussians, steps: Steps, *, precisions: Integers | None = None) -> QuantizedGaussians:
    """Return the integers nearest to `gaussians`; each value's error is at most half its step.

    Parameters
    ----------
    precisions
        ``(N,)``; None = those that the Gaussians were quantised with, or what suits them if they were not.

    Raises
    ------
    ValueError
        If a number is NaN, infinite or too large to be written, a scale not positive, or a mean negative.
    """
    if not gaussians.is_finite() or (gaussians.scales <= 0).any() or (gaussians.means < 0).any():
        raise ValueError("Gaussians to quantise must be finite, with positive scales and means inside their tile")
    if precisions is None:
        precisions = _precisions_on_grid(gaussians, steps)
    if precisions is None:
        precisions = suitable_precisions(gaussians, steps)
    fineness = np.ldexp(1.0, precisions.astype(np.int32))
    scales = gaussians.scales.astype(np.float64)
    swapped = scales[:, 0] < scales[:, 1]
    areas = np.floor(_log_areas(gaussians) / steps.area * fineness)
    aspects = np.rint(np.abs(np.log(scales[:, 0] / scales[:, 1])) / steps.aspect * fineness).astype(np.int64)
    turns = gaussians.rotations.astype(np.float64) / math.pi + 0.5 * swapped
    bins = np.ldexp(1.0, all_rotation_bits(aspects, precisions, steps.turns).astype(np.int32))
    colors = gaussians.colors.astype(np.float64) @ _decorrelation(gaussians.bands).T
    colors = np.rint(colors / _color_steps((areas + 0.5) / fineness * steps.area, steps))
    lag = np.maximum(precisions - PLACE_LAG, 0)
    means = np.floor(gaussians.means.astype(np.float64) / steps.mean * np.ldexp(1.0, lag.astype(np.int32))[:, None])
    for what, values in (("color", colors), ("mean", means / np.ldexp(1.0, lag.astype(np.int32))[:, None])):
        if len(values) and np.abs(values).max() >= LARGEST:
            raise ValueError(f"a {what} is {np.abs(values).max():.3g} steps from 0: too many to be written")
    places = means.astype(np.int64)
    values = Attributes(
        precisions=precisions,
        areas=areas.astype(np.int64),
        aspects=aspects,
        rotations=np.minimum(np.floor((turns - np.floor(turns)) * bins), bins - 1).astype(np.int64),
        colors=colors.astype(np.int64),
        places=places & ((1 << lag) - 1)[:, None],
    )
    if not are_in_range(values, steps):
        raise ValueError("a scale is too large or too small to be written")
    return QuantizedGaussians(cells=places >> lag[:, None], attributes=values)


def dequantize(quantized: QuantizedGaussians, steps: Steps, *, origin: tuple[int, int] = (0, 0)) -> Gaussians:
    """Return the Gaussians that the integers stand for: a cell's centre, a bin's middle."""
    values = quantized.attributes
    fineness = np.ldexp(1.0, values.precisions.astype(np.int32))
    areas = (values.areas + 0.5) / fineness * steps.area
    half_aspect = 0.5 * values.aspects / fineness * steps.aspect
    bins = np.ldexp(1.0, all_rotation_bits(values.aspects, values.precisions, steps.turns).astype(np.int32))
    lag = np.maximum(values.precisions - PLACE_LAG, 0).astype(np.int32)
    return Gaussians(
        means=((quantized.cells + (values.places + 0.5) / np.ldexp(1.0, lag)[:, None]) * steps.mean).astype(np.float32),
        scales=np.exp(np.stack([0.5 * areas + half_aspect, 0.5 * areas - half_aspect], axis=1)).astype(np.float32),
        rotations=((values.rotations + 0.5) * math.pi / bins).astype(np.float32),
        colors=((values.colors * _color_steps(areas, steps)) @ _decorrelation(values.colors.shape[1])).astype(
            np.float32
        ),
        origin=origin,
    )


def are_in_range(values: Attributes, steps: Steps) -> bool:
    """Return whether shapes can be written, and are finite as float32."""
    fineness = np.ldexp(1.0, values.precisions.astype(np.int32))
    areas, aspects = (values.areas + 0.5) / fineness, values.aspects / fineness
    within = (
        (np.abs(areas * steps.area) <= _AREA_LIMIT)
        & (aspects * steps.aspect <= _ASPECT_LIMIT)
        & (np.abs(areas) < LARGEST / 2)
        & (aspects < LONGEST_ASPECT)
    )
    return bool(within.all())


def requantized(gaussians: Gaussians, steps: Steps, *, precisions: Integers | None = None) -> Gaussians:
    """Return the Gaussians as a decoder will see them, in their own order."""
    return dequantize(quantize(gaussians, steps, precisions=precisions), steps, origin=gaussians.origin)


def color_noise(gaussians: Gaussians, steps: Steps) -> float:
    """Return the squared error that rounding colors adds, as good as it can be told one by one, over pixels and bands.

    Errors of colors that suit the shapes best are as likely up as down, so that their squares add up: that of a
    Gaussian is its color's error squared times the integral of its own square, ``pi s1 s2``.
    """
    errors = np.square(requantized(gaussians, steps).colors.astype(np.float64) - gaussians.colors).sum(axis=1)
    return float((errors * math.pi * np.exp(_log_areas(gaussians))).sum())


def suitable_precisions(gaussians: Gaussians, steps: Steps) -> Integers:
    """Return precisions with which the error of each number of a shape shows about as much as that of a color."""
    energy = np.square(gaussians.colors, dtype=np.float64).sum(axis=1)
    amplitudes = np.sqrt(math.pi * gaussians.scales.prod(axis=1, dtype=np.float64) * energy)
    tolerance = steps.color * math.sqrt(math.pi) * steps.base_scale / _COLOR_SHARE
    bits = np.rint(np.log2(np.maximum(amplitudes * steps.aspect / tolerance, 1.0)))
    return np.minimum(bits, HIGHEST_PRECISION).astype(np.int64)


def _precisions_on_grid(gaussians: Gaussians, steps: Steps) -> Integers | None:
    """Return the precisions that Gaussians were quantised with; None if not all of them were."""
    areas = _log_areas(gaussians) / steps.area
    precisions = np.full(len(areas), -1, np.int64)
    for precision in range(HIGHEST_PRECISION, -1, -1):
        away = areas * 2**precision - 0.5
        precisions[np.abs(away - np.rint(away)) <= _ON_GRID * 2**precision / steps.area] = precision
    return None if (precisions < 0).any() else precisions


def _log_areas(gaussians: Gaussians) -> NDArray[np.float64]:
    return np.log(gaussians.scales.prod(axis=1, dtype=np.float64))


def _color_steps(log_areas: NDArray[np.float64], steps: Steps) -> NDArray[np.float64]:
    return steps.color * np.exp(_AREA_EXPONENT * (log_areas - 2 * math.log(steps.base_scale)))[:, None]


def _decorrelation(bands: int) -> NDArray[np.float64]:
    """Return the orthonormal transform of the bands: luma and two chroma for 3, none otherwise."""
    return _LUMA_CHROMA if bands == 3 else np.eye(bands)
