"""First colors against a weighted median written out in numpy."""

from __future__ import annotations

import numba
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.geometry import Region
from smartsplat.sampling.color import median_colors


def medians_by_definition(pixels, weight, *, core, padded, means, scales):
    height, width, bands = pixels.shape
    steps = np.arange(-4, 5) / 4
    dy, dx = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    dy, dx = dy[dy**2 + dx**2 <= 1], dx[dy**2 + dx**2 <= 1]
    colors = np.zeros((len(means), bands), np.float32)
    for i, (mean, scale) in enumerate(zip(means.astype(float), scales.astype(float), strict=True)):
        y = np.clip(np.floor(mean[0] + scale * dy).astype(int) + core.y0 - padded.y0, 0, height - 1)
        x = np.clip(np.floor(mean[1] + scale * dx).astype(int) + core.x0 - padded.x0, 0, width - 1)
        shares = np.rint(2**30 * np.exp(-(dy**2 + dx**2) / 2))  # whole, so that exact halves are exact
        has_data = weight[y, x] > 0
        if not has_data.any():
            continue
        for band in range(bands):
            values, kept = pixels[y, x, band][has_data], shares[has_data]
            order = np.argsort(values, kind="stable")
            reached = np.cumsum(kept[order])
            colors[i, band] = values[order][np.argmax(2 * reached >= reached[-1])]
    return colors


def random_case(seed, *, bands=3, holes=0.3, levels=1000, count=50):
    rng = np.random.default_rng(seed)
    core = Region(y0=10, y1=22, x0=4, x1=20)
    padded = Region(y0=7, y1=25, x0=4, x1=23)
    pixels = (rng.integers(0, levels, (*padded.shape, bands)) / levels).astype(np.float32)
    weight = (rng.random(padded.shape) >= holes).astype(np.float32)
    means = (rng.random((count, 2)) * core.shape).astype(np.float32)
    scales = rng.choice([0.35, 0.9, 2.0, 6.0, 40.0], count).astype(np.float32)
    return pixels, weight, {"core": core, "padded": padded, "means": means, "scales": scales}


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    bands=st.integers(1, 5),
    holes=st.sampled_from([0, 0.3, 0.95]),
    levels=st.sampled_from([2, 1000]),
)
def test_colors_match_the_definition(seed, bands, holes, levels):
    pixels, weight, rest = random_case(seed, bands=bands, holes=holes, levels=levels)
    expected = medians_by_definition(pixels, weight, **rest)
    np.testing.assert_array_equal(median_colors(pixels, weight=weight, **rest), expected)


def test_no_weight_means_all_valid():
    pixels, _, rest = random_case(1)
    ones = np.ones(pixels.shape[:2], np.float32)
    np.testing.assert_array_equal(
        median_colors(pixels, weight=None, **rest), median_colors(pixels, weight=ones, **rest)
    )


def test_colors_do_not_depend_on_the_number_of_threads():
    pixels, weight, rest = random_case(2, count=500)
    expected = median_colors(pixels, weight=weight, **rest)
    most = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        alone = median_colors(pixels, weight=weight, **rest)
    finally:
        numba.set_num_threads(most)
    np.testing.assert_array_equal(alone, expected)


def test_pixels_without_data_never_show():
    pixels, weight, rest = random_case(3)
    for garbage in (np.nan, np.inf, -1e9):
        dirty = np.where(weight[:, :, None] > 0, pixels, np.float32(garbage))
        np.testing.assert_array_equal(
            median_colors(dirty, weight=weight, **rest), median_colors(pixels, weight=weight, **rest)
        )


def test_a_disc_without_data_is_black():
    pixels, weight, rest = random_case(4)
    assert (median_colors(pixels, weight=np.zeros_like(weight), **rest) == 0).all()


def test_a_color_is_one_of_the_pixels_not_a_blend():
    pixels, weight, rest = random_case(5, bands=1, holes=0, levels=2)
    assert set(median_colors(pixels, weight=weight, **rest).ravel().tolist()) <= {0.0, 0.5}


def test_arrays_that_cannot_be_written_or_are_not_contiguous_are_fine():
    pixels, weight, rest = random_case(6)
    planar = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    planar.flags.writeable = False
    colors = median_colors(np.moveaxis(planar, 0, 2), weight=weight, **rest)
    np.testing.assert_array_equal(colors, median_colors(pixels, weight=weight, **rest))


def test_of_two_equal_halves_the_lower_one_counts():
    pixels, weight = np.array([[[0.25], [0.0], [0.75]]], np.float32), np.array([[1, 0, 1]], np.float32)
    row = Region(y0=0, y1=1, x0=0, x1=3)
    mean, scale = np.array([[0.5, 1.5]], np.float32), np.array([1.2], np.float32)
    for image in (pixels, pixels[:, ::-1]):
        assert median_colors(image, weight=weight, core=row, padded=row, means=mean, scales=scale) == 0.25
