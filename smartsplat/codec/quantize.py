"""Floats to integers and back.

A Gaussian's shape is written as log-area, log-aspect and a rotation whose resolution follows from the aspect, because
that is how its image depends on them: a rotation by ``phi`` changes a Gaussian in proportion to ``sinh(ln s1/s2) phi``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.config import CodecConfig
from smartsplat.errors import ConfigError
from smartsplat.gaussians import Gaussians

Integers = NDArray[np.int64]

_LUMA_CHROMA = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
_AREA_EXPONENT = -0.4
_AREA_LIMIT = 80.0
_ASPECT_LIMIT = 40.0
_COLOR_LIMIT = float(1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Quantisation steps of a scene.

    Parameters
    ----------
    mean
        Px.
    area, aspect
        Of ``ln(s1 s2)`` and ``ln(s1 / s2)``.
    rotation
        Rad, times ``1 / sinh`` of the log-aspect.
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
        cls, config: CodecConfig, *, base_scale: float, factor: float = 1.0, color_factor: float = 1.0
    ) -> Steps:
        """Return the steps of `config` for a scene of `base_scale` px, times `factor`, colors times both factors."""
        return cls(
            mean=config.mean_step * base_scale * factor,
            area=config.area_step * factor,
            aspect=config.aspect_step * factor,
            rotation=config.rotation_step * factor,
            color=config.color_step * factor * color_factor,
            base_scale=base_scale,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the steps as plain values, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedGaussians:
    """Integers of ``N`` Gaussians: what the entropy stage writes, exactly.

    Parameters
    ----------
    cells
        ``(N, 2)``, not negative: cell (y, x) of the mean on the grid of step `Steps.mean`.
    areas, aspects, rotations
        ``(N,)``; aspects are not negative, rotations lie in ``[0, 2^b)`` with ``b`` from `rotation_bits`.
    colors
        ``(N, C)``, decorrelated.
    """

    cells: Integers
    areas: Integers
    aspects: Integers
    rotations: Integers
    colors: Integers


def quantize(gaussians: Gaussians, steps: Steps) -> QuantizedGaussians:
    """Return the integers nearest to `gaussians`; each value's error is at most half its step.

    Raises
    ------
    ValueError
        If a number is NaN or infinite, a scale not positive, or a mean negative.
    """
    if not gaussians.is_finite() or (gaussians.scales <= 0).any() or (gaussians.means < 0).any():
        raise ValueError("Gaussians to quantise must be finite, with positive scales and means inside their tile")
    scales = gaussians.scales.astype(np.float64)
    swapped = scales[:, 0] < scales[:, 1]
    areas = np.rint(np.log(scales.prod(axis=1)) / steps.area).astype(np.int64)
    aspects = np.rint(np.abs(np.log(scales[:, 0] / scales[:, 1])) / steps.aspect).astype(np.int64)
    turns = gaussians.rotations.astype(np.float64) / math.pi + 0.5 * swapped
    bins = 2.0 ** rotation_bits(aspects, steps)
    rotations = np.minimum(np.floor((turns - np.floor(turns)) * bins), bins - 1).astype(np.int64)
    colors = gaussians.colors.astype(np.float64) @ _decorrelation(gaussians.bands).T
    return QuantizedGaussians(
        cells=np.floor(gaussians.means.astype(np.float64) / steps.mean).astype(np.int64),
        areas=areas,
        aspects=aspects,
        rotations=rotations,
        colors=np.rint(colors / _color_steps(areas, steps)).astype(np.int64),
    )


def dequantize(quantized: QuantizedGaussians, steps: Steps, *, origin: tuple[int, int] = (0, 0)) -> Gaussians:
    """Return the Gaussians that the integers stand for: a cell's centre, a bin's middle."""
    # Limits only bite on streams nobody wrote: they keep damaged values finite.
    half_area = 0.5 * np.clip(quantized.areas * steps.area, -_AREA_LIMIT, _AREA_LIMIT)
    half_aspect = 0.5 * np.clip(quantized.aspects * steps.aspect, 0, _ASPECT_LIMIT)
    colors = np.clip(quantized.colors, -_COLOR_LIMIT, _COLOR_LIMIT) * _color_steps(quantized.areas, steps)
    bins = 2.0 ** rotation_bits(quantized.aspects, steps)
    return Gaussians(
        means=((quantized.cells + 0.5) * steps.mean).astype(np.float32),
        scales=np.exp(np.stack([half_area + half_aspect, half_area - half_aspect], axis=1)).astype(np.float32),
        rotations=((quantized.rotations + 0.5) * math.pi / bins).astype(np.float32),
        colors=(colors @ _decorrelation(colors.shape[1])).astype(np.float32),
        origin=origin,
    )


def requantized(gaussians: Gaussians, steps: Steps) -> Gaussians:
    """Return the Gaussians as a decoder will see them, in their own order."""
    return dequantize(quantize(gaussians, steps), steps, origin=gaussians.origin)


def rotation_bits(aspects: Integers, steps: Steps) -> Integers:
    """Return the bits of each rotation: 0 for a round Gaussian, else about ``log2(pi sinh(log-aspect) / step)``.

    A power of two of bins can be written without waste; at most a factor sqrt(2) from the resolution asked for.
    """
    log_aspects = np.clip(aspects * steps.aspect, 0, _ASPECT_LIMIT)
    wanted = np.log2(np.maximum(math.pi * np.sinh(log_aspects) / steps.rotation, 2))
    return np.where(aspects > 0, np.clip(np.rint(wanted), 1, 24), 0).astype(np.int64)


def _color_steps(areas: Integers, steps: Steps) -> NDArray[np.float64]:
    log_areas = np.clip(areas * steps.area, -_AREA_LIMIT, _AREA_LIMIT) - 2 * math.log(steps.base_scale)
    return steps.color * np.exp(_AREA_EXPONENT * log_areas)[:, None]


def _decorrelation(bands: int) -> NDArray[np.float64]:
    """Return the orthonormal transform of the bands: luma and two chroma for 3, none otherwise."""
    return _LUMA_CHROMA if bands == 3 else np.eye(bands)
