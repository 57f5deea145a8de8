"""Compress images too large for memory into 2D Gaussians, out of core, and get any region back at any zoom.

Every name is loaded when it is first used, so importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.compress import SceneReport, compress
    from pipeline.decode import SceneView, open_scene
    from pipeline.plan import Resources
    from smartsplat.config import CodecConfig, FitConfig, SamplingConfig, SceneConfig
    from smartsplat.errors import (
        BudgetError,
        ConfigError,
        SinkError,
        SmartsplatError,
        SourceError,
        StageIncomplete,
        StorageFullError,
        StoreError,
    )
    from smartsplat.gaussians import Gaussians
    from smartsplat.geometry import Region

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "CodecConfig",
    "ConfigError",
    "FitConfig",
    "Gaussians",
    "Region",
    "Resources",
    "SamplingConfig",
    "SceneConfig",
    "SceneReport",
    "SceneView",
    "SinkError",
    "SmartsplatError",
    "SourceError",
    "StageIncomplete",
    "StorageFullError",
    "StoreError",
    "compress",
    "open_scene",
]

_HOMES = {
    "pipeline.compress": ("SceneReport", "compress"),
    "pipeline.decode": ("SceneView", "open_scene"),
    "pipeline.plan": ("Resources",),
    "smartsplat.config": ("CodecConfig", "FitConfig", "SamplingConfig", "SceneConfig"),
    "smartsplat.errors": tuple(name for name in __all__ if name.endswith(("Error", "Incomplete"))),
    "smartsplat.gaussians": ("Gaussians",),
    "smartsplat.geometry": ("Region",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'smartsplat' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
