"""Gaussians to pixels, and back to gradients, over any region at any zoom.

`operators` gives the three maps every optimiser needs; `render` is the first of them, by itself. An engine is a module
with a function `operators`: `cpu` today, a CUDA engine beside it with the same signature.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smartsplat.errors import ConfigError
from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region

if TYPE_CHECKING:
    from smartsplat.render.cpu import Operators

ENGINES = {"cpu": "smartsplat.render.cpu"}


def resolve_engine(engine: str) -> str:
    """Return the name of the engine that serves the request ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    ConfigError
        If the engine is unknown, or not available in this version.

    Examples
    --------
    >>> resolve_engine("auto")
    'cpu'
    """
    if engine == "cuda":
        raise ConfigError("engine 'cuda' is not part of this version; use --engine cpu (or auto)")
    if engine not in ("auto", *ENGINES):
        raise ConfigError(f"engine {engine!r} is unknown; use auto or {', '.join(ENGINES)}")
    return "cpu"


def operators(
    gaussians: Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0, engine: str = "auto"
) -> Operators:
    """Return the Gaussians' image over `region` with its derivatives (see `smartsplat.render.cpu.Operators`)."""
    return importlib.import_module(ENGINES[resolve_engine(engine)]).operators(gaussians, region, scale=scale)


def render(
    gaussians: Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0, engine: str = "auto"
) -> Floats:
    """Return the image ``sum_i c_i exp(-1/2 (p - mu_i)^T S_i^-1 (p - mu_i))`` over `region`.

    Parameters
    ----------
    gaussians
        One set, or several in drawing order, each with its own origin.
    region
        Px of the output grid: at ``scale=1`` the scene's pixels.
    scale
        Output pixels per scene pixel. Below 1 the footprints are widened by the larger pixel's box filter, so that
        nothing aliases.
    engine
        ``auto`` or ``cpu``.

    Returns
    -------
    ``(height, width, C)`` float32; equal, bit for bit, to the same crop of any larger region.

    Examples
    --------
    >>> import numpy as np
    >>> one = Gaussians(
    ...     means=np.array([[0.5, 0.5]]), scales=np.ones((1, 2)), rotations=np.zeros(1), colors=np.ones((1, 1))
    ... )
    >>> render(one, Region(y0=0, y1=1, x0=0, x1=2))[0, :, 0].round(4)
    array([1.    , 0.6065], dtype=float32)
    """
    return operators(gaussians, region, scale=scale, engine=engine).render()
