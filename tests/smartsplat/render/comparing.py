"""How an engine's results are compared with the dense float64 engine's."""

from __future__ import annotations

import numpy as np

from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.render.footprint import CUTOFF

# float32 with offsets up to 230 px: whitened offsets of needles round by 1e-4 of a scale, weights by that share.
TOLERANCE = 1e-4
# A pixel whose squared distance is this near CUTOFF^2, relatively, may fall on either side in float32.
BOUNDARY = 2e-4


def at_origin(height, width, y0=0, x0=0):
    return Region(y0=y0, y1=y0 + height, x0=x0, x1=x0 + width)


def squared_distances(gaussians, region):
    """Return ``(N, H, W)`` Mahalanobis distances squared, by the inverse covariance, float64."""
    first, second = gaussians.scales.astype(np.float64).T
    cos, sin = np.cos(gaussians.rotations.astype(np.float64)), np.sin(gaussians.rotations.astype(np.float64))
    means = gaussians.means.astype(np.float64) + gaussians.origin - region.origin
    dy = np.arange(region.height)[:, None] + 0.5 - means[:, 0, None, None]
    dx = np.arange(region.width)[None, :] + 0.5 - means[:, 1, None, None]
    along = (cos[:, None, None] * dy + sin[:, None, None] * dx) / first[:, None, None]
    across = (cos[:, None, None] * dx - sin[:, None, None] * dy) / second[:, None, None]
    return along**2 + across**2


def decided(sets, region):
    """Return ``(H, W)``: pixels on no footprint's very edge. The others must be few."""
    sets = [sets] if isinstance(sets, Gaussians) else sets
    near = [np.abs(squared_distances(one, region) / CUTOFF**2 - 1) < BOUNDARY for one in sets]
    clear = ~np.concatenate(near).any(axis=0)
    # An edge is a ring of BOUNDARY of the footprint's area, so of up to 60 footprints at most about 1 % of pixels
    # each 10^3; small images get a few more by chance.
    assert (~clear).sum() <= 5 + 0.02 * clear.size
    return clear


def assert_close(found, expected, tolerance=TOLERANCE):
    """Assert equality to `tolerance` of the largest expected value (and zero where that is zero)."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max(initial=0))


def cotangent_on(clear, bands, seed):
    return (np.random.default_rng(seed).normal(size=(*clear.shape, bands)) * clear[..., None]).astype(np.float32)
