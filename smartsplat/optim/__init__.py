"""The fit: one tile at a time, each tile's Gaussians against what its neighbours leave of the image."""

from __future__ import annotations

from smartsplat.optim.fit import FitReport, TileTarget, fit_tile

__all__ = ["FitReport", "TileTarget", "fit_tile"]
