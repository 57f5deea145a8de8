"""What a scene is compressed with: frozen settings, checked when made, identified by a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from smartsplat.errors import ConfigError

HIGHEST_PSNR = 55.0
"""dB that can be asked for: rounding to 8 bits alone leaves 59."""

LEVEL_FACTORS = (1, 2, 4, 8)
"""Sides, in px, that a pixel of a coarser level may have."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _whole_to_float(config: SamplingConfig | FitConfig | CodecConfig) -> None:
    """Make 1 and 1.0 the same setting: equal settings must have equal digests."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.type == "float" and isinstance(value, int):
            object.__setattr__(config, each.name, float(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the first Gaussians are placed (SmartSplat, arXiv:2512.20377).

    Parameters
    ----------
    variational_fraction
        Share of the samples drawn by weight; the rest are uniform.
    gradient_share
        Share of the gradient in the weight; the rest is local color variance.
    nearest
        Neighbours ``K`` whose distances set the scale of a uniform sample.
    adaptive_scales, median_colors
        If false, every scale is the base scale, and every color that of the pixel under the mean: what the method is
        compared with.
    """

    variational_fraction: float = 0.7
    gradient_share: float = 0.9
    nearest: int = 3
    adaptive_scales: bool = True
    median_colors: bool = True

    def __post_init__(self) -> None:
        _whole_to_float(self)
        _require(0 <= self.variational_fraction <= 1, f"variational_fraction {self.variational_fraction} not in [0, 1]")
        _require(0 <= self.gradient_share <= 1, f"gradient_share {self.gradient_share} not in [0, 1]")
        _require(self.nearest >= 1, f"nearest {self.nearest} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How the Gaussians are placed and optimised (`smartsplat.schedule` says in which order).

    Parameters
    ----------
    start_fraction
        Share of the Gaussians that are sampled; the others are inserted stage by stage. Without stages all are sampled.
    color_sweeps, color_iterations
        Times that colors are solved at the start, and conjugate-gradient iterations of a color solve.
    stages, stage_pairs, stage_factor
        Stages that end with an insertion, work of the sweep before it, and the level it is done at.
    insert_scale
        Scale of an inserted Gaussian, in units of the scene's base scale.
    insert_visibility
        How far errors in busy places count for less where Gaussians are inserted: the exponent of
        `smartsplat.optim.insertion.visibility`, 0 = all errors alike.
    replacements, replaced_share
        Times that Gaussians of least effect are replaced by new ones, and the share of them. Twice as many times where
        the base scale is above 3 px.
    coarse_factors, coarse_pairs
        Levels at which large Gaussians are optimised before each sweep, and the work there.
    final_pairs
        Work of each sweep at full resolution.
    ssim_pairs, ssim_gain
        Further work of the last of them, which raises SSIM too, and what that is worth (see
        `smartsplat.schedule.FitPass`).
    adam_steps, ssim_share
        Steps of Adam at the end, on ``(1 - ssim_share) L1 + ssim_share (1 - SSIM)``.
    mean_rate, scale_rate, rotation_rate, color_rate, relative_rates
        Of Adam (see `smartsplat.optim.adam.Rates`).
    min_scale
        Smallest standard deviation, px. Below about a third of a pixel a Gaussian falls between pixel centres.
    """

    start_fraction: float = 0.05
    color_sweeps: int = 2
    color_iterations: int = 5
    stages: int = 10
    stage_pairs: int = 16
    stage_factor: int = 4
    insert_scale: float = 0.6
    insert_visibility: float = 0.6
    replacements: int = 2
    replaced_share: float = 0.05
    coarse_factors: tuple[int, ...] = ()
    coarse_pairs: int = 15
    final_pairs: tuple[int, ...] = (40,)
    ssim_pairs: int = 20
    ssim_gain: float = 2.0
    adam_steps: int = 0
    ssim_share: float = 0.1
    mean_rate: float = 0.1
    scale_rate: float = 0.05
    rotation_rate: float = 0.05
    color_rate: float = 0.02
    relative_rates: bool = True
    min_scale: float = 0.35

    def __post_init__(self) -> None:
        _whole_to_float(self)
        for name in ("coarse_factors", "final_pairs"):
            value: Any = getattr(self, name)
            _require(isinstance(value, (list, tuple)), f"{name} {value!r} must be a list of numbers")
            object.__setattr__(self, name, tuple(value))
        _require(0 < self.start_fraction <= 1, f"start_fraction {self.start_fraction} not in (0, 1]")
        _require(0 <= self.replaced_share < 1, f"replaced_share {self.replaced_share} not in [0, 1)")
        _require(0 <= self.ssim_share <= 1, f"ssim_share {self.ssim_share} not in [0, 1]")
        for name in (
            "color_sweeps",
            "color_iterations",
            "stages",
            "stage_pairs",
            "replacements",
            "coarse_pairs",
            "ssim_pairs",
        ):
            _require(getattr(self, name) >= 0, f"{name} {getattr(self, name)} must not be negative")
        _require(0 <= self.ssim_gain < math.inf, f"ssim_gain {self.ssim_gain} must be finite and not negative")
        _require(self.adam_steps >= 0, f"adam_steps {self.adam_steps} must not be negative")
        _require(0 < self.insert_scale < math.inf, f"insert_scale {self.insert_scale} must be positive and finite")
        _require(0 <= self.insert_visibility <= 2, f"insert_visibility {self.insert_visibility} not in [0, 2]")
        _require(all(pairs > 0 for pairs in self.final_pairs), f"final_pairs {self.final_pairs} must be positive")
        for factor in (self.stage_factor, *self.coarse_factors):
            _require(factor in LEVEL_FACTORS, f"level {factor} must be one of {', '.join(map(str, LEVEL_FACTORS))}")
        for name in ("mean_rate", "scale_rate", "rotation_rate", "color_rate"):
            rate = getattr(self, name)
            _require(0 <= rate < math.inf, f"{name} {rate} must be finite and not negative")
        _require(0 < self.min_scale < math.inf, f"min_scale {self.min_scale} must be positive and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    """How finely Gaussians are quantised, before rate control scales what errors are allowed by one factor.

    Parameters
    ----------
    mean_step
        Side of the cells that means are sorted into, in units of the scene's base scale.
    area_step, aspect_step
        Steps of ``ln(s1 s2)`` and ``ln(s1 / s2)`` for the faintest Gaussians; stronger ones have finer ones.
    rotation_step
        The same for a rotation, rad, divided by ``sinh`` of the log-aspect: a round Gaussian needs none.
    color_step
        Step of a color whose Gaussian has the base scale, in units of the image's error before quantisation.
    """

    mean_step: float = 0.22
    area_step: float = 0.54
    aspect_step: float = 0.54
    rotation_step: float = 0.45
    color_step: float = 1.6

    def __post_init__(self) -> None:
        _whole_to_float(self)
        for name, value in dataclasses.asdict(self).items():
            _require(0 < value < 10, f"{name} {value} must be positive and below 10")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneConfig:
    """Everything that decides the bytes of a finished scene, apart from the image itself.

    Parameters
    ----------
    nominal_ratio
        Raw bytes of the image over bytes of the finished scene: a promise.
    max_bytes, bits_per_pixel
        The same promise, said in bytes of the scene, or in bits for each pixel of the image, whatever its bands.
    psnr
        dB that the finished scene is to reach, in as few bytes as it takes.
    count
        Number of Gaussians, whatever they cost in bytes. Of these five, one is given.
    tile, halo
        Side of a tile's core and width of its context, px.
    seed
        Of the random sampling.

    Raises
    ------
    ConfigError
        If a value is out of range, or not exactly one of the first five is given.

    Examples
    --------
    >>> SceneConfig(nominal_ratio=50).digest == SceneConfig(nominal_ratio=50.0).digest
    True
    >>> SceneConfig(nominal_ratio=50).differences(SceneConfig(nominal_ratio=100, seed=3))
    ['nominal_ratio: 50.0 or 100.0', 'seed: 0 or 3']
    """

    nominal_ratio: float | None = None
    max_bytes: int | None = None
    bits_per_pixel: float | None = None
    psnr: float | None = None
    count: int | None = None
    tile: int = 512
    halo: int = 64
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)

    def __post_init__(self) -> None:
        given = [self.nominal_ratio, self.max_bytes, self.bits_per_pixel, self.psnr, self.count]
        if sum(value is not None for value in given) != 1:
            raise ConfigError(
                "give either a ratio, bytes, bits per pixel, a PSNR or a number of Gaussians, not several, not none"
            )
        if self.nominal_ratio is not None:
            _require(1 < self.nominal_ratio < 1e9, f"ratio {self.nominal_ratio} must lie between 1 and 1e9")
            object.__setattr__(self, "nominal_ratio", float(self.nominal_ratio))
        if self.max_bytes is not None:
            _require(self.max_bytes >= 1, f"{self.max_bytes} bytes: at least one is needed")
        if self.bits_per_pixel is not None:
            _require(0 < self.bits_per_pixel < math.inf, f"{self.bits_per_pixel} bits per pixel must be positive")
            object.__setattr__(self, "bits_per_pixel", float(self.bits_per_pixel))
        if self.psnr is not None:
            _require(0 < self.psnr <= HIGHEST_PSNR, f"PSNR {self.psnr} dB must lie between 0 and {HIGHEST_PSNR}")
            object.__setattr__(self, "psnr", float(self.psnr))
        if self.count is not None:
            _require(self.count >= 1, f"{self.count} Gaussians: at least one is needed")
        _require(self.seed >= 0, f"seed {self.seed} must not be negative")

    @property
    def is_rated(self) -> bool:
        """Whether tiles are measured before they are quantised, for bytes or a PSNR that is asked for."""
        return self.count is None

    def byte_budget(self, *, pixels: int, raw_bytes: int) -> int | None:
        """Return the most bytes of a scene of an image of this size; None if none are promised."""
        if self.nominal_ratio is not None:
            return math.floor(raw_bytes / self.nominal_ratio)
        return math.floor(pixels * self.bits_per_pixel / 8) if self.bits_per_pixel is not None else self.max_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def to_changes(self) -> dict[str, Any]:
        """Return what `from_dict` needs: all that is not the default, and the grid.

        Examples
        --------
        >>> SceneConfig(nominal_ratio=50, fit=FitConfig(stages=6)).to_changes()
        {'nominal_ratio': 50.0, 'tile': 512, 'halo': 64, 'fit': {'stages': 6}}
        """
        values = self.to_dict()
        defaults: dict[str, Any] = SceneConfig(count=1).to_dict() | {"count": None}
        changes = {name: value for name, value in values.items() if value != defaults[name] or name in ("tile", "halo")}
        for part in ("sampling", "fit", "codec"):
            if part in changes:
                changes[part] = {name: value for name, value in values[part].items() if value != defaults[part][name]}
        return changes

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SceneConfig:
        """Return the settings `to_dict` or `to_changes` wrote.

        Raises
        ------
        ConfigError
            If a name is unknown or a value out of range.
        """
        parts: dict[str, Any] = {"sampling": SamplingConfig, "fit": FitConfig, "codec": CodecConfig}
        try:
            known: dict[str, Any] = {
                name: parts[name](**value) if name in parts else value for name, value in values.items()
            }
            return cls(**known)
        except TypeError as error:
            raise ConfigError(f"settings do not fit this version: {error}") from error

    @property
    def digest(self) -> str:
        """Identity of the settings: 16 hexadecimal digits."""
        return digest_of(self.to_dict())

    def differences(self, other: SceneConfig) -> list[str]:
        """Return which settings differ, as ``name: this or other``."""
        mine, theirs = _flatten(self.to_dict()), _flatten(other.to_dict())
        return [f"{name}: {mine[name]} or {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def digest_of(values: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that identify plain values, whatever their order.

    Examples
    --------
    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
