"""What a person writes to what the pipeline takes: presets, sizes, regions."""

from __future__ import annotations

import math
import re
import tomllib
from importlib import resources
from typing import Any

from smartsplat.config import SceneConfig
from smartsplat.errors import ConfigError
from smartsplat.geometry import default_halo

DEFAULT_RATIO = 100.0

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def preset_names() -> list[str]:
    """Return the presets there are.

    Examples
    --------
    >>> preset_names()
    ['best', 'draft', 'paper', 'standard']
    """
    folder = resources.files("flows") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in preset_names():
        raise ConfigError(f"preset {name!r} is unknown; use {', '.join(preset_names())}")
    return tomllib.loads((resources.files("flows") / "presets" / f"{name}.toml").read_text())


def scene_config(
    preset: str,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    bits_per_pixel: float | None = None,
    psnr: float | None = None,
    gaussians: int | None = None,
    tile: int | None = None,
    halo: int | None = None,
    seed: int = 0,
) -> SceneConfig:
    """Return the settings of a preset with those given on top; without a size or a count, a ratio of 100.

    Raises
    ------
    ConfigError
        If the preset is unknown or a value makes no sense.

    Examples
    --------
    >>> scene_config("standard", tile=256).halo
    32
    """
    values = load_preset(preset)
    if tile is not None:
        values["tile"] = tile
    side = values.get("tile", SceneConfig(count=1).tile)
    values["halo"] = values.get("halo", default_halo(side)) if halo is None else halo
    if ratio is max_bytes is bits_per_pixel is psnr is gaussians is None:
        ratio = DEFAULT_RATIO
    size = {
        "nominal_ratio": ratio,
        "max_bytes": max_bytes,
        "bits_per_pixel": bits_per_pixel,
        "psnr": psnr,
        "count": gaussians,
    }
    return SceneConfig.from_dict({**values, **size, "seed": seed})


def parse_bytes(text: str) -> int:
    """Return the bytes that ``4GiB``, ``500M`` or ``1e9`` says.

    Raises
    ------
    ConfigError
        If it says none.

    Examples
    --------
    >>> parse_bytes("1.5GiB"), parse_bytes("500M")
    (1610612736, 500000000)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", text, re.IGNORECASE)
    try:
        value = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    except (KeyError, ValueError):
        value = 0.0
    if not 1 <= value < math.inf:
        raise ConfigError(f"{text!r} is not a size; write it like 4GiB or 500M")
    return int(value)


def parse_numbers(text: str | None) -> list[float]:
    """Return the positive numbers that ``50,200`` says; none for None.

    Raises
    ------
    ConfigError
        If it says something else.

    Examples
    --------
    >>> parse_numbers("50,200"), parse_numbers(None)
    ([50.0, 200.0], [])
    """
    try:
        numbers = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        numbers = [math.nan]
    if not all(0 < number < math.inf for number in numbers):
        raise ConfigError(f"{text!r} is not a list of positive numbers; write it like 50,200")
    return numbers
