"""Levels of larger pixels: averages as numpy makes them, Gaussians there and back without a loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.config import LEVEL_FACTORS
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.levels import box_variance, coarsen, from_level, level_region, level_scale, to_level
from smartsplat.render import render

few = settings(deadline=None, max_examples=50)
seeds = st.integers(0, 2**32 - 1)
factors = st.sampled_from(LEVEL_FACTORS)
sides = st.integers(1, 25)
MIN_SCALE = 0.35


def padded_up(array, factor):
    """Return the array with zeros up to whole squares."""
    rest = [(0, -side % factor) for side in array.shape[:2]] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array.astype(np.float64), rest)


def square_means(array, factor):
    height, width, *bands = array.shape
    return array.reshape(height // factor, factor, width // factor, factor, *bands).mean(axis=(1, 3))


def above_the_least(gaussians):
    """Return the Gaussians with scales above the least one."""
    return replace(gaussians, scales=np.maximum(gaussians.scales, MIN_SCALE))


def random_region(rng, low=0, high=60):
    y0, x0 = rng.integers(low, high, 2)
    return Region(y0=int(y0), y1=int(y0 + rng.integers(1, 40)), x0=int(x0), x1=int(x0 + rng.integers(1, 40)))


# ---- pixels ----


@given(seeds, factors, sides, sides, st.integers(1, 5))
@few
def test_whole_squares_without_weights_become_their_plain_means(seed, factor, rows, cols, bands):
    pixels = np.random.default_rng(seed).normal(size=(rows * factor, cols * factor, bands)).astype(np.float32)
    values, weight = coarsen(pixels, None, factor=factor)
    assert weight is None
    assert values.dtype == np.float32
    # Float32 sums of up to 64 values near 1: 64 roundings of 6e-8 of the sum of their sizes.
    np.testing.assert_allclose(values, square_means(pixels.astype(np.float64), factor), atol=4e-6)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_largest_values_have_a_mean(factor):
    largest = np.full((8, 8, 1), np.finfo(np.float32).max)
    for weight in (None, np.ones((8, 8), np.float32)):
        assert (coarsen(largest, weight, factor=factor)[0] == largest[0, 0]).all()


@given(seeds, factors, sides, sides, st.integers(1, 4), st.sampled_from(["none", "holes", "any", "no data"]))
@few
def test_values_are_weighted_means_and_weights_plain_ones_with_no_data_beyond_the_edge(
    seed, factor, height, width, bands, kind
):
    rng = np.random.default_rng(seed)
    pixels = rng.random((height, width, bands)).astype(np.float32)
    plane = {"holes": rng.random((height, width)) < 0.6, "any": rng.random((height, width))}.get(kind)
    plane = np.zeros((height, width)) if kind == "no data" else plane
    weight = None if plane is None else plane.astype(np.float32)
    full = padded_up(np.ones((height, width)) if weight is None else weight, factor)
    totals = square_means(full, factor)
    sums = square_means(padded_up(pixels, factor) * full[..., None], factor)
    values, found = coarsen(pixels, weight, factor=factor)
    shares = np.ones_like(totals) if found is None else found
    # Float32 sums of up to 64 values below 1.
    np.testing.assert_allclose(shares, totals, atol=4e-6)
    assert ((shares > 0) == (totals > 0)).all()
    np.testing.assert_allclose(values * shares[..., None], sums, atol=4e-6)
    assert (values[totals == 0] == 0).all()
    assert (found is None) == bool((totals == 1).all())


@given(seeds, factors, st.floats(-(2.0**100), 2.0**100, width=32))
@few
def test_pixels_without_data_do_not_change_a_bit_of_the_averages(seed, factor, garbage):
    rng = np.random.default_rng(seed)
    pixels, weight = rng.random((13, 18, 3)).astype(np.float32), (rng.random((13, 18)) < 0.5).astype(np.float32)
    spoiled = np.where(weight[..., None] == 0, np.float32(garbage), pixels)
    (a, shares), (b, spoiled_shares) = (coarsen(each, weight, factor=factor) for each in (pixels, spoiled))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(shares, spoiled_shares)


@given(seeds, sides, sides)
@few
def test_at_the_finest_level_pixels_and_weights_are_as_they_were(seed, height, width):
    rng = np.random.default_rng(seed)
    pixels, weight = rng.random((height, width, 3)).astype(np.float32), np.float32(rng.random((height, width)) < 0.5)
    values, same = coarsen(pixels, weight, factor=1)
    np.testing.assert_array_equal(np.ones_like(weight) if same is None else same, weight)
    np.testing.assert_array_equal(values, pixels * weight[..., None])
    np.testing.assert_array_equal(coarsen(pixels, None, factor=1)[0], pixels)


@given(seeds)
@few
def test_coarsening_by_two_twice_is_coarsening_by_four(seed):
    rng = np.random.default_rng(seed)
    pixels, weight = rng.random((14, 22, 3)).astype(np.float32), np.float32(rng.random((14, 22)) < 0.5)
    once, share = coarsen(pixels, weight, factor=4)
    twice, shares = coarsen(*coarsen(pixels, weight, factor=2), factor=2)
    np.testing.assert_allclose(twice, once, atol=1e-6)  # float32 sums of 16 values below 1
    np.testing.assert_allclose(shares, share, atol=1e-6)


@given(seeds, factors)
@few
def test_a_levels_region_holds_exactly_the_pixels_that_meet_the_scenes(seed, factor):
    region = random_region(np.random.default_rng(seed))
    level = level_region(region, factor)
    rows, cols = ({at // factor for at in range(*ends)} for ends in ((region.y0, region.y1), (region.x0, region.x1)))
    assert rows == set(range(level.y0, level.y1))
    assert cols == set(range(level.x0, level.x1))


# ---- Gaussians ----


@given(seeds, factors, st.sampled_from(["ordinary", "tiny", "huge", "needles", "mixed"]))
@few
def test_gaussians_survive_the_way_to_a_level_and_back(gaussians_of, seed, factor, family):
    rng = np.random.default_rng(seed)
    scene = tuple(rng.integers(0, 10**6, 2).tolist())
    one = above_the_least(gaussians_of(seed, 20, family=family, origin=scene))
    near = tuple((scene // np.int64(factor) + rng.integers(-9, 9, 2)).tolist())
    back = from_level(to_level(one, factor, origin=near), factor, origin=scene, min_scale=MIN_SCALE)
    assert back.origin == one.origin
    # Float32 means up to 100 px of the level round by 4e-6 of its px; at a factor of 8 a small scale is the difference
    # of variances 40 times its own, so each rounding of 6e-8 counts 40 times, and four times in a color.
    np.testing.assert_allclose(back.means, one.means, atol=1e-5 * factor)
    np.testing.assert_allclose(back.scales, one.scales, rtol=1e-5)
    np.testing.assert_allclose(back.colors, one.colors, rtol=2e-5)
    np.testing.assert_array_equal(back.rotations, one.rotations)


@given(seeds, st.sampled_from(["ordinary", "huge", "needles", "mixed"]))
@few
def test_the_finest_level_is_the_scene_bit_for_bit(gaussians_of, seed, family):
    one = above_the_least(gaussians_of(seed, 20, family=family, origin=(512, 1024)))
    level = to_level(one, 1, origin=one.origin)
    back = from_level(level, 1, origin=one.origin, min_scale=MIN_SCALE)
    for other in (level, back):
        assert other.origin == one.origin
        np.testing.assert_array_equal(other.to_rows(), one.to_rows())


@given(seeds, factors)
@few
def test_integrals_are_kept_both_ways(gaussians_of, seed, factor):
    def integrals(gaussians, pixel):
        return pixel**2 * gaussians.scales.astype(np.float64).prod(axis=1, keepdims=True) * gaussians.colors

    one = gaussians_of(seed, 20)
    level = to_level(one, factor, origin=(0, 0))
    np.testing.assert_allclose(integrals(level, factor), integrals(one, 1), rtol=1e-6)  # float32 scales and colors
    # On the way back even where the box hides what is smaller than the least scale.
    narrow = replace(level, scales=0.2 * level.scales)
    back = from_level(narrow, factor, origin=(0, 0), min_scale=MIN_SCALE)
    np.testing.assert_allclose(integrals(back, 1), integrals(narrow, factor), rtol=1e-6)
    assert (back.scales >= np.float32(MIN_SCALE)).all()


@given(factors, st.floats(0.35, 100))
@few
def test_a_levels_scale_is_that_of_the_gaussians_seen_there(factor, scale):
    one = Gaussians(means=np.zeros((1, 2)), scales=[[scale, scale]], rotations=[0.0], colors=np.ones((1, 1)))
    seen = to_level(one, factor, origin=(0, 0))
    np.testing.assert_allclose(seen.scales, level_scale(scale, factor), rtol=2e-7)  # float32, twice
    assert level_scale(scale, factor) * factor >= scale
    assert level_scale(scale, 1) == scale


@pytest.mark.parametrize("factor", LEVEL_FACTORS)
def test_the_boxs_variance_is_that_of_its_pixels_centres(factor):
    assert box_variance(factor) == pytest.approx(np.arange(factor).var(), rel=1e-12)  # float64


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_level_shows_what_the_averages_of_the_scenes_pixels_do(gaussians_of, factor):
    one = gaussians_of(3, 30, family="ordinary", shape=(64, 96))
    one = replace(one, scales=np.maximum(one.scales, factor / 2))
    scene = Region(y0=0, y1=64, x0=0, x1=96)
    averaged, _ = coarsen(render(one, scene), None, factor=factor)
    seen = render(to_level(one, factor, origin=(0, 0)), level_region(scene, factor))
    # At scales of half the box and more, a Gaussian averaged over it is another one but for 2 % of its peak; tails
    # below 1/255 are cut at other places.
    assert np.abs(seen - averaged).max() < 0.03 * np.abs(averaged).max()
    assert np.sqrt(np.mean((seen - averaged) ** 2)) < 0.01 * np.abs(averaged).max()
