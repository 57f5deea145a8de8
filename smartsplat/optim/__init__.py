"""The fit: tile by tile, each tile's Gaussians against what its neighbours leave of the image."""

from __future__ import annotations

from smartsplat.optim.fit import FitReport, FittedTiles, Target, fit_tiles

__all__ = ["FitReport", "FittedTiles", "Target", "fit_tiles"]
