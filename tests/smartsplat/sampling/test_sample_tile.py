"""A whole tile sampled: the count is exact, means stay inside, and only the arguments matter."""

from __future__ import annotations

import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.config import SamplingConfig
from smartsplat.geometry import Region, TileId
from smartsplat.sampling import sample_tile, tile_stats
from smartsplat.sampling.uniform import uniform_scales
from smartsplat.sampling.weights import tile_weights

CORE, PADDED = Region(y0=40, y1=72, x0=16, x1=40), Region(y0=32, y1=80, x0=16, x1=48)
LIMITS = {"base_scale": 1.3, "min_scale": 0.35, "max_scale": 12.0}

seeds = st.integers(0, 2**32 - 1)


def scene_pixels(padded=PADDED, bands=3, seed=0):
    """Return noise right of a diagonal edge, nothing left of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[padded.y0 : padded.y1, padded.x0 : padded.x1]
    return np.where((y - x > 20)[..., None], 0.2, rng.random((*padded.shape, bands))).astype(np.float32)


def sampled(pixels=None, **changes):
    defaults = {
        "weight": None,
        "core": CORE,
        "padded": PADDED,
        "tile": TileId(1, 2),
        "count": 100,
        "seed": 7,
        "config": SamplingConfig(),
    }
    return sample_tile(scene_pixels() if pixels is None else pixels, **defaults | LIMITS | changes)


def assert_same(one, other):
    np.testing.assert_array_equal(one.to_rows(), other.to_rows())


@settings(deadline=None, max_examples=80)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    halo=st.integers(0, 6),
    bands=st.integers(1, 5),
    count=st.integers(0, 500),
    holes=st.sampled_from([None, 0.0, 0.5, 0.99, 1.0]),
    flat=st.booleans(),
    fraction=st.sampled_from([0.0, 0.7, 1.0]),
    nearest=st.integers(1, 4),
    seed=seeds,
)
def test_any_tile_gets_exactly_the_gaussians_asked_for(
    height, width, halo, bands, count, holes, flat, fraction, nearest, seed
):
    rng = np.random.default_rng(seed)
    core = Region(y0=100, y1=100 + height, x0=50, x1=50 + width)
    padded = core.expand(halo)
    pixels = np.full((*padded.shape, bands), 0.4) if flat else rng.random((*padded.shape, bands))
    weight = None if holes is None else (rng.random(padded.shape) >= holes).astype(np.float32)
    config = SamplingConfig(variational_fraction=fraction, nearest=nearest)
    gaussians = sampled(
        pixels.astype(np.float32), weight=weight, core=core, padded=padded, count=count, seed=seed, config=config
    )
    assert (len(gaussians), gaussians.bands, gaussians.origin) == (count, bands, (100, 50))
    assert gaussians.is_finite()
    assert (gaussians.means >= 0).all()
    assert (gaussians.means < core.shape).all()
    assert (gaussians.scales[:, 0] == gaussians.scales[:, 1]).all()
    assert ((gaussians.scales >= np.float32(0.35)) & (gaussians.scales <= 12)).all()
    assert (gaussians.rotations == 0).all()
    inside = None if weight is None else weight[core.slices_within(padded)] > 0
    if inside is not None and inside.any():
        assert inside[tuple(gaussians.means.astype(int).T)].all()


def test_seven_in_ten_are_at_pixel_centres_and_the_rest_keep_clear():
    gaussians = sampled(count=200, base_scale=0.5)
    first, rest = gaussians.means[:140], gaussians.means[140:]
    assert (first % 1 == 0.5).all()
    assert (rest % 1 != 0.5).any(axis=1).all()
    assert np.linalg.norm(rest[:, None] - first[None], axis=2).min() > 0.5  # r = base scale: the median is below it


def test_scales_follow_the_formulas_until_clamped():
    free = {"min_scale": 1e-6, "max_scale": 1e6}
    gaussians = sampled(**free)
    weights = tile_weights(scene_pixels(), weight=None, core=CORE, padded=PADDED, gradient_share=0.9)
    first, rest = gaussians.means[:70], gaussians.means[70:]
    by_weight = 1.3 * np.exp(-weights[tuple(first.astype(int).T)] / 2)
    by_distance = uniform_scales(rest, first, nearest=3, base_scale=1.3)
    expected = np.concatenate([by_weight, by_distance])
    np.testing.assert_allclose(gaussians.scales[:, 0], expected, rtol=1e-6)  # stored as float32
    clamped = sampled(min_scale=1.0, max_scale=2.0)
    np.testing.assert_allclose(clamped.scales[:, 0], np.clip(expected, 1, 2), rtol=1e-6)


def test_more_samples_fall_where_the_image_changes():
    gaussians = sampled(count=300)
    y, x = gaussians.means[:210].T + np.array([[CORE.y0], [CORE.x0]])
    reached = np.array([y - x <= 24 for y in range(CORE.y0, CORE.y1) for x in range(CORE.x0, CORE.x1)])
    assert 210 < np.count_nonzero(reached) < 0.75 * len(reached)
    assert (y - x <= 24).all()  # the noise ends at 20, a window of 5 x 5 px sees it four steps farther


def test_the_same_arguments_give_the_same_gaussians_and_another_seed_or_tile_others():
    assert_same(sampled(), sampled())
    for change in ({"seed": 8}, {"tile": TileId(2, 1)}, {"tile": TileId(1, 3)}):
        assert not np.array_equal(sampled().means, sampled(**change).means)


def test_the_number_of_threads_changes_nothing():
    expected, most = sampled(count=400), numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert_same(sampled(count=400), expected)
    finally:
        numba.set_num_threads(most)


def test_the_halo_changes_no_geometry():
    wide = scene_pixels(CORE.expand(16))
    slim = CORE.expand(2)
    one = sampled(wide, padded=CORE.expand(16))
    other = sampled(np.ascontiguousarray(wide[slim.slices_within(CORE.expand(16))]), padded=slim)
    np.testing.assert_array_equal(one.to_rows()[:, :5], other.to_rows()[:, :5])


def test_pixels_without_data_change_nothing_whatever_they_hold():
    weight = np.ones(PADDED.shape, np.float32)
    weight[10:30, 5:20] = 0
    clean, dirty = scene_pixels(), scene_pixels()
    dirty[weight == 0] = np.nan
    assert_same(sampled(clean, weight=weight), sampled(dirty, weight=weight))


def test_a_weight_of_ones_is_no_weight():
    assert_same(sampled(weight=np.ones(PADDED.shape, np.float32)), sampled())


def test_a_lone_gaussian_has_the_base_scale():
    gaussians = sampled(count=1, config=SamplingConfig(variational_fraction=0.0))
    np.testing.assert_array_equal(gaussians.scales, np.full((1, 2), 1.3, np.float32))


def test_arrays_that_do_not_cover_the_tile_are_refused():
    with pytest.raises(ValueError, match="do not cover"):
        sampled(scene_pixels()[:-1])
    with pytest.raises(ValueError, match="does not cover"):
        sampled(weight=np.ones((3, 3), np.float32))
    with pytest.raises(ValueError, match="must hold a pixel"):
        sampled(core=CORE.shift(20, 0))
    with pytest.raises(ValueError, match="must hold a pixel"):
        sampled(core=Region(y0=40, y1=40, x0=20, x1=30))


def test_stats_count_the_pixels_that_can_be_sampled():
    weight = np.zeros(PADDED.shape, np.float32)
    weight[8:10, :4] = 1
    assert tile_stats(scene_pixels(), weight=weight, core=CORE, padded=PADDED).pixels == 8


def test_importing_the_package_loads_no_compiler_and_no_learner():
    code = "import sys, smartsplat.sampling; sys.exit(bool({'numba', 'sklearn', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
