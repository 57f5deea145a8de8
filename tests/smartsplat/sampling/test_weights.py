"""Weights against a plain numpy oracle, and a tile's against the crop of the scene's."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.budget import FLAT, TileStats
from smartsplat.geometry import Region
from smartsplat.sampling.weights import CONTEXT, feature_maps, tile_stats, tile_weights

SOBEL = np.outer([1, 2, 1], [-1, 0, 1]) / 8

dimensions = st.integers(1, 24)
bands = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


def whole(pixels):
    return Region(y0=0, y1=pixels.shape[0], x0=0, x1=pixels.shape[1])


def maps_of_all(pixels, weight=None):
    return feature_maps(pixels, weight=weight, core=whole(pixels), padded=whole(pixels))


def random_image(height, width, bands, seed):
    rng = np.random.default_rng(seed)
    return rng.random((height, width, bands), dtype=np.float32), (rng.random((height, width)) > 0.2).astype(np.float32)


def maps_by_definition(pixels, weight):
    """Return both maps, one window at a time in float64."""
    height, width, _ = pixels.shape
    gradient, variance = np.zeros((height, width)), np.zeros((height, width))
    for y, x in np.argwhere(weight > 0):
        own = pixels[y, x].astype(float)
        near = np.tile(own, (3, 3, 1))
        window = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                v, u = y + dy, x + dx
                if not (0 <= v < height and 0 <= u < width and weight[v, u] > 0):
                    continue
                window.append(pixels[v, u].astype(float))
                if max(abs(dy), abs(dx)) <= 1:
                    near[dy + 1, dx + 1] = window[-1]
        gx = np.tensordot(SOBEL, near, axes=2)
        gy = np.tensordot(SOBEL.T, near, axes=2)
        gradient[y, x] = np.hypot(gy, gx).mean()
        variance[y, x] = np.var(window, axis=0, ddof=1).mean() if len(window) > 1 else 0
    return gradient, variance


@settings(deadline=None, max_examples=40)
@given(height=dimensions, width=dimensions, bands=bands, seed=seeds)
def test_maps_match_their_definition(height, width, bands, seed):
    pixels, weight = random_image(height, width, bands, seed)
    expected = maps_by_definition(pixels, weight)
    for found, oracle in zip(maps_of_all(pixels, weight), expected, strict=True):
        np.testing.assert_allclose(found, oracle, rtol=0, atol=1e-6)  # float32 sums of ten values up to 1


@settings(deadline=None, max_examples=40)
@given(height=dimensions, width=dimensions, seed=seeds, data=st.data())
def test_maps_of_a_padded_tile_are_the_crop_of_the_scenes(height, width, seed, data):
    pixels, weight = random_image(height, width, 3, seed)
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    core, halo = Region(y0=y0, y1=y1, x0=x0, x1=x1), data.draw(st.integers(CONTEXT, 6))
    padded = core.expand(halo).intersect(whole(pixels))
    tile = feature_maps(pixels[padded.slices], weight=weight[padded.slices], core=core, padded=padded)
    for found, scene in zip(tile, maps_of_all(pixels, weight), strict=True):
        np.testing.assert_array_equal(found, scene[core.slices])


def test_maps_do_not_depend_on_the_number_of_threads():
    pixels, weight = random_image(90, 70, 3, 1)
    most = numba.get_num_threads()
    expected = maps_of_all(pixels, weight)
    try:
        numba.set_num_threads(1)
        alone = maps_of_all(pixels, weight)
    finally:
        numba.set_num_threads(most)
    for found, oracle in zip(alone, expected, strict=True):
        np.testing.assert_array_equal(found, oracle)


@pytest.mark.parametrize("garbage", [0.0, 1e9, np.nan, np.inf])
def test_a_hole_in_a_flat_area_makes_no_structure(garbage):
    pixels, weight = np.full((20, 20, 2), 0.3, np.float32), np.ones((20, 20), np.float32)
    pixels[5:9, 6:], weight[5:9, 6:] = garbage, 0
    gradient, variance = maps_of_all(pixels, weight)
    assert gradient.max() == 0
    assert variance.max() == 0


@settings(deadline=None, max_examples=30)
@given(value=st.floats(-1, 2, width=32), bands=bands)
def test_a_flat_tile_has_the_least_weight_everywhere(value, bands):
    pixels = np.full((9, 8, bands), value, np.float32)
    weights = tile_weights(pixels, weight=None, core=whole(pixels), padded=whole(pixels), gradient_share=0.5)
    assert set(weights.ravel().tolist()) == {float(np.float32(FLAT))}


@settings(deadline=None, max_examples=30)
@given(seed=seeds, share=st.floats(0, 1))
def test_weights_mix_the_normalised_maps_and_vanish_without_data(seed, share):
    pixels, weight = random_image(14, 11, 3, seed)
    core, padded = Region(y0=3, y1=10, x0=0, x1=9), whole(pixels)
    weights = tile_weights(pixels, weight=weight, core=core, padded=padded, gradient_share=share)
    gradient, variance = (values[core.slices] for values in maps_by_definition(pixels, weight))
    mixed = share * gradient / gradient.max() + (1 - share) * variance / variance.max()
    expected = np.where(weight[core.slices] > 0, np.maximum(mixed, FLAT), 0)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-5)  # float32, divided by maxima of .1 or more
    assert ((weights > 0) == (weight[core.slices] > 0)).all()


def test_weights_depend_on_contrast_only_within_the_tile():
    pixels, _ = random_image(16, 16, 2, 9)
    faint = np.float32(0.5) + pixels * np.float32(2**-12)
    core = whole(pixels)
    strong, weak = (
        tile_weights(image, weight=None, core=core, padded=core, gradient_share=0.9) for image in (pixels, faint)
    )
    np.testing.assert_allclose(weak, strong, rtol=0, atol=1e-2)  # the faint image has but 2^12 levels left


def test_stats_of_tiles_add_up_to_those_of_the_scene():
    pixels, weight = random_image(23, 31, 3, 4)
    cores = [Region(y0=y, y1=min(y + 8, 23), x0=x, x1=min(x + 8, 31)) for y in range(0, 23, 8) for x in range(0, 31, 8)]
    tiles = []
    for core in cores:
        padded = core.expand(2).intersect(whole(pixels))
        tiles.append(tile_stats(pixels[padded.slices], weight=weight[padded.slices], core=core, padded=padded))
    total = sum(tiles, TileStats())
    scene = tile_stats(pixels, weight=weight, core=whole(pixels), padded=whole(pixels))
    assert total.pixels == scene.pixels == np.count_nonzero(weight)
    assert (total.gradient_max, total.variance_max) == (scene.gradient_max, scene.variance_max)
    assert total.gradient_sum == pytest.approx(scene.gradient_sum, rel=1e-12)
    assert total.variance_sum == pytest.approx(scene.variance_sum, rel=1e-12)


def test_a_tile_without_data_contributes_nothing():
    pixels = np.full((6, 6, 1), np.nan, np.float32)
    stats = tile_stats(pixels, weight=np.zeros((6, 6), np.float32), core=whole(pixels), padded=whole(pixels))
    assert stats == TileStats()
