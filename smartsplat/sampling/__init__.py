"""Where the first Gaussians go, how large they are and what color they have (SmartSplat, arXiv:2512.20377)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from smartsplat.config import SamplingConfig
from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region, TileId
from smartsplat.sampling.uniform import exclusion_radius, uniform_means, uniform_scales
from smartsplat.sampling.variational import variational_means, variational_scales

if TYPE_CHECKING:
    from smartsplat.sampling.weights import tile_stats

__all__ = ["sample_tile", "tile_stats"]


def __getattr__(name: str) -> Any:
    # Not imported above: its compiler would cost every start of the program.
    if name == "tile_stats":
        from smartsplat.sampling.weights import tile_stats

        return tile_stats
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def sample_tile(
    pixels: Floats,
    *,
    weight: Floats | None,
    core: Region,
    padded: Region,
    tile: TileId,
    count: int,
    base_scale: float,
    min_scale: float,
    max_scale: float,
    seed: int,
    config: SamplingConfig,
) -> Gaussians:
    """Return exactly `count` round Gaussians, sampled over the core of a tile.

    ``round(f count)`` of them are variational: at the centres of pixels drawn by weight, smaller where the weight is
    larger. The rest are uniform, clear of those, as large as the gaps between samples. Each gets the weighted median
    of the pixels around it. The result depends on the arguments only, not on process or threads.

    Parameters
    ----------
    pixels
        ``(h, w, C)`` float32, covering `padded`, in the unit range.
    weight
        ``(h, w)``, 0 = no data; None = all valid. Means lie in valid pixels, unless the core has none.
    core, padded
        The pixels the tile owns; those plus context, cut at the scene's edge.
    tile
        With `seed`, decides the random numbers.
    count
        Gaussians wanted. More than the core has valid pixels is possible: those in excess are uniform.
    base_scale
        Of the scene, px.
    min_scale, max_scale
        Px; scales are clamped to these, before colors are taken.
    seed
        Not negative.
    config
        The mixture: ``f``, the gradient's share of the weight, and ``K``.

    Returns
    -------
    Gaussians
        The variational ones in raster order, then the uniform ones; means relative to the core's origin, within
        ``[0, core.height) x [0, core.width)``.

    Raises
    ------
    ValueError
        If the arrays do not cover `padded`, or that does not contain a core with at least one pixel.

    References
    ----------
    SmartSplat, arXiv:2512.20377.

    Examples
    --------
    >>> pixels = np.random.default_rng(1).random((12, 10, 3), dtype=np.float32)
    >>> sampled = sample_tile(
    ...     pixels,
    ...     weight=None,
    ...     core=Region(y0=4, y1=12, x0=0, x1=8),
    ...     padded=Region(y0=0, y1=12, x0=0, x1=10),
    ...     tile=TileId(1, 0),
    ...     count=5,
    ...     base_scale=1.0,
    ...     min_scale=0.35,
    ...     max_scale=20.0,
    ...     seed=0,
    ...     config=SamplingConfig(),
    ... )
    >>> len(sampled), sampled.bands, sampled.origin
    (5, 3, (4, 0))
    """
    from smartsplat.sampling.color import median_colors
    from smartsplat.sampling.weights import tile_weights

    _check_cover(pixels, weight, core=core, padded=padded)
    if count == 0:
        return Gaussians.empty(bands=pixels.shape[2], origin=core.origin)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(tile.row, tile.col)))
    weights = tile_weights(pixels, weight=weight, core=core, padded=padded, gradient_share=config.gradient_share)
    means, scales = _place(weights, count=count, base_scale=base_scale, config=config, rng=rng)
    if not config.adaptive_scales:
        scales = np.full_like(scales, base_scale)
    scales = np.clip(scales, min_scale, max_scale).astype(np.float32)
    if config.median_colors:
        colors = median_colors(pixels, weight=weight, core=core, padded=padded, means=means, scales=scales)
    else:
        ys, xs = (np.floor(means).astype(np.int64) + np.subtract(core.origin, padded.origin)).T
        colors = pixels[ys, xs]
    return Gaussians(
        means=means,
        scales=np.stack([scales, scales], axis=1),
        rotations=np.zeros(count, np.float32),
        colors=colors,
        origin=core.origin,
    )


def _place(
    weights: Floats, *, count: int, base_scale: float, config: SamplingConfig, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return means ``(count, 2)`` and scales ``(count,)``, variational ones first."""
    drawn = variational_means(weights, count=round(config.variational_fraction * count), rng=rng)
    drawn_scales = variational_scales(weights, drawn, base_scale=base_scale)
    radius = exclusion_radius(drawn_scales, base_scale=base_scale)
    spread = uniform_means(weights > 0, count=count - len(drawn), keep_clear_of=drawn, radius=radius, rng=rng)
    spread_scales = uniform_scales(spread, drawn, nearest=config.nearest, base_scale=base_scale)
    return np.concatenate([drawn, spread]), np.concatenate([drawn_scales, spread_scales]).astype(np.float32)


def _check_cover(pixels: Floats, weight: Floats | None, *, core: Region, padded: Region) -> None:
    if pixels.ndim != 3 or pixels.shape[:2] != padded.shape:
        raise ValueError(f"pixels {pixels.shape} do not cover {padded}, which takes {padded.shape} and bands")
    if weight is not None and weight.shape != padded.shape:
        raise ValueError(f"weight {weight.shape} does not cover {padded}, which takes {padded.shape}")
    if core.is_empty or not padded.contains(core):
        raise ValueError(f"core {core} must hold a pixel and lie within {padded}")
