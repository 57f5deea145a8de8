"""Gaussians to pixels, and back to gradients, over any region at any zoom.

`operators` gives the three maps every optimiser needs; `render` is the first of them, by itself. An engine is a module
with a function `operators`: `cpu` (numba) and `cuda` (Triton).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smartsplat.errors import ConfigError
from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region

if TYPE_CHECKING:
    from smartsplat.render.cpu import Operators

ENGINES = {"cpu": "smartsplat.render.cpu", "cuda": "smartsplat.render.cuda"}

# Where a driver shows a card: on Linux, and in Windows' subsystem for it.
_CARDS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
_HINT = "use --engine cpu (or auto)"


def resolve_engine(engine: str) -> str:
    """Return the name of the engine that serves the request ``auto``, ``cpu`` or ``cuda``.

    ``auto`` is ``cuda`` if a CUDA device can be used, else ``cpu``. With ``TRITON_INTERPRET=1`` in the environment,
    ``cuda`` runs in Triton's interpreter and needs no device; that is for tests, and ``auto`` is ``cpu`` then.

    Raises
    ------
    ConfigError
        If the engine is unknown, or cannot be used here.

    Examples
    --------
    >>> resolve_engine("cpu")
    'cpu'
    """
    if engine not in ("auto", *ENGINES):
        raise ConfigError(f"engine {engine!r} is unknown; use auto or {', '.join(ENGINES)}")
    if engine == "auto":
        return "cpu" if _interpreted() or _what_cuda_lacks() else "cuda"
    if engine == "cuda" and (lack := _what_cuda_lacks()):
        raise ConfigError(f"engine 'cuda' cannot be used here: {lack}; {_HINT}")
    return engine


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _what_cuda_lacks() -> str | None:
    """Return what keeps the CUDA engine from running, None if nothing does. Looks for a card before it loads torch."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed (pip install 'smartsplat[gpu]')"
    if not _interpreted():
        if not any(Path(card).exists() for card in _CARDS):
            return "no NVIDIA card found"
        try:
            import torch

            if not torch.cuda.is_available():
                return f"torch {torch.__version__} finds no CUDA device that it can use"
        except (ImportError, OSError, RuntimeError) as error:
            return f"torch does not load ({str(error).splitlines()[0]})"
    try:
        importlib.import_module(ENGINES["cuda"])
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"its kernels do not load ({str(error).splitlines()[0]})"
    return None


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
        ``auto``, ``cpu`` or ``cuda`` (see `resolve_engine`).

    Returns
    -------
    ``(height, width, C)`` float32; equal, bit for bit, to the same crop of any larger region with the same engine.

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
