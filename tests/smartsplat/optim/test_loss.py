"""The mixed loss against its definition in float64, its derivative against finite differences of that."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from smartsplat.optim.loss import RADIUS, MixedLoss
from smartsplat.render.cpu import to_image, to_planes

few = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 40)
shares = st.sampled_from([0.0, 0.1, 0.7, 1.0])
C1, C2 = 0.01**2, 0.03**2


def smoothed(image):
    """Return the image under an 11 x 11 Gaussian window of 1.5 px, with zeros beyond the edge."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    for axis in (0, 1):
        image = correlate1d(image, taps, axis=axis, mode="constant")
    return image


def similarities(a, b):
    """Return SSIM at each pixel and band, as Wang et al. (2004) define it."""
    mean_a, mean_b = smoothed(a), smoothed(b)
    variance_a, variance_b = smoothed(a * a) - mean_a**2, smoothed(b * b) - mean_b**2
    covariance = smoothed(a * b) - mean_a * mean_b
    return ((2 * mean_a * mean_b + C1) * (2 * covariance + C2)) / (
        (mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2)
    )


def loss_by_definition(image, target, weight, share):
    image, target, weight = (array.astype(np.float64) for array in (image, target, weight))
    image = np.where(weight[..., None] == 0, target, image)  # without data nothing differs
    total = weight.sum() * image.shape[2]
    absolute = (weight[..., None] * np.abs(image - target)).sum() / total
    unlike = (weight[..., None] * (1 - similarities(image, target))).sum() / total
    return (1 - share) * absolute + share * unlike


def evaluated(image, target, weight, share):
    """Return value and slope, as an image."""
    plane = to_planes(weight[..., None])[0]
    value, slope = MixedLoss(to_planes(target), plane, share).evaluate(to_planes(image))
    return value, to_image(slope)


def picture(rng, shape):
    """Return smooth stripes with noise in [0, 1]: windows with much variance, and with little."""
    y, x, band = np.meshgrid(*[np.arange(side) for side in shape], indexing="ij")
    stripes = 0.5 + 0.4 * np.sin(y / rng.uniform(2, 9) + x / rng.uniform(2, 9) + band)
    return np.clip(stripes + rng.uniform(0, 0.2) * rng.normal(size=shape), 0, 1).astype(np.float32)


def weights_like(kind, rng, shape):
    if kind == "none":
        return np.ones(shape, np.float32)
    weight = (rng.random(shape) if kind == "any" else rng.random(shape) < 0.6).astype(np.float32)
    weight[0, 0] = 1  # not all zero
    return weight


kinds = st.sampled_from(["none", "holes", "any"])


@given(seeds, sides, sides, st.integers(1, 9), kinds, shares)
@few
def test_the_value_is_the_definition_for_any_size_and_any_number_of_bands(seed, height, width, bands, kind, share):
    rng = np.random.default_rng(seed)
    image, target = (picture(rng, (height, width, bands)) for _ in range(2))
    weight = weights_like(kind, rng, (height, width))
    value, _ = evaluated(image, target, weight, share)
    # Variances are differences of squares near 1 that round by 6e-8; C2 is 9e-4, so SSIM rounds by 1e-4 at the worst
    # and, as the signs change from pixel to pixel, its mean by far less.
    assert value == pytest.approx(loss_by_definition(image, target, weight, share), abs=1e-5)


@given(seeds, sides, sides, st.integers(1, 4), kinds, shares)
@few
def test_the_derivative_is_the_finite_difference_in_any_direction(seed, height, width, bands, kind, share):
    rng = np.random.default_rng(seed)
    image, target = (picture(rng, (height, width, bands)) for _ in range(2))
    weight, direction = weights_like(kind, rng, (height, width)), rng.normal(size=image.shape)
    # Not over the kink of an absolute value; where both are equal the derivative is taken as 0.
    direction[np.abs(image - target) < 1e-4] = 0
    _, slope = evaluated(image, target, weight, share)
    step, wide = 1e-6, image.astype(np.float64)
    up, down = (loss_by_definition(wide + sign * step * direction, target, weight, share) for sign in (1, -1))
    # Float64 differences are good to 1e-9. The slope is float32, with SSIM's rounding as above, that evens out.
    size = np.linalg.norm(slope) * np.linalg.norm(direction)
    assert (slope.astype(np.float64) * direction).sum() == pytest.approx(
        (up - down) / (2 * step), abs=1e-5 * size + 1e-8
    )


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_every_pixels_derivative_is_its_finite_difference(share):
    # 12 x 13 px: smaller than the window and its reach on either side, so that edges are everywhere.
    rng = np.random.default_rng(5)
    image, target = (picture(rng, (12, 13, 1)) for _ in range(2))
    weight = weights_like("any", rng, (12, 13))
    _, slope = evaluated(image, target, weight, share)
    step, expected = 1e-6, np.empty(image.shape)
    for at in np.ndindex(*image.shape):
        change = np.zeros(image.shape)
        change[at] = step
        up, down = (loss_by_definition(image + sign * change, target, weight, share) for sign in (1, -1))
        expected[at] = (up - down) / (2 * step)
    np.testing.assert_allclose(slope, expected, atol=1e-5 * np.abs(expected).max())  # float32 SSIM, as above


@given(seeds, sides, sides, st.integers(1, 5), kinds, shares)
@few
def test_identical_images_have_no_loss_and_no_slope(seed, height, width, bands, kind, share):
    rng = np.random.default_rng(seed)
    image = picture(rng, (height, width, bands))
    weight = weights_like(kind, rng, (height, width))
    value, slope = evaluated(image, image, weight, share)
    assert value == pytest.approx(0, abs=1e-6)  # numerator and denominator round differently, 6e-8 each
    # In units of a pixel's part of the sum. SSIM has its peak there: its slope is a difference of terms near 1 / C2,
    # 1e3, that round by 6e-8.
    assert np.abs(slope).max() * weight.sum() * bands <= 1e-3 * share


@given(seeds, shares)
@few
def test_a_perfect_image_is_the_best_there_is(seed, share):
    rng = np.random.default_rng(seed)
    target = picture(rng, (20, 23, 3))
    other = np.clip(target + rng.normal(0, 0.05, target.shape), 0, 1).astype(np.float32)
    weight = np.ones((20, 23), np.float32)
    assert evaluated(other, target, weight, share)[0] > evaluated(target, target, weight, share)[0] + 1e-3


@given(seeds, st.floats(2.0**-10, 2.0**10))
@few
def test_only_the_ratios_of_the_weights_count(seed, factor):
    rng = np.random.default_rng(seed)
    image, target = (picture(rng, (20, 23, 3)) for _ in range(2))
    weight = weights_like("any", rng, (20, 23))
    value, slope = evaluated(image, target, weight, 0.3)
    scaled, scaled_slope = evaluated(image, target, np.float32(factor) * weight, 0.3)
    assert scaled == pytest.approx(value, rel=1e-5)  # float32 weights and row sums
    np.testing.assert_allclose(scaled_slope, slope, atol=1e-5 * np.abs(slope).max())


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_errors_far_from_any_data_count_for_nothing(share):
    # Further than a window reaches.
    rng = np.random.default_rng(1)
    image, target = (picture(rng, (30, 40, 3)) for _ in range(2))
    weight = np.zeros((30, 40), np.float32)
    weight[:, :10] = 1
    other = image.copy()
    other[:, 10 + RADIUS :] = 1 - other[:, 10 + RADIUS :]
    value, slope = evaluated(image, target, weight, share)
    same, same_slope = evaluated(other, target, weight, share)
    assert same == value
    np.testing.assert_array_equal(same_slope, slope)
    assert not slope[:, 10 + RADIUS :].any()
    assert slope[:, :10].any()


@given(seeds, st.integers(1, 3))
@few
def test_bands_are_alike_and_their_losses_are_averaged(seed, bands):
    rng = np.random.default_rng(seed)
    image, target = (picture(rng, (17, 19, bands)) for _ in range(2))
    weight = weights_like("any", rng, (17, 19))
    value, slope = evaluated(image, target, weight, 0.2)
    alone = [evaluated(image[..., [b]], target[..., [b]], weight, 0.2) for b in range(bands)]
    assert value == pytest.approx(np.mean([one for one, _ in alone]), rel=1e-5)  # float32 row sums
    apart = np.concatenate([one for _, one in alone], axis=2) / bands
    np.testing.assert_allclose(slope, apart, atol=1e-6 * np.abs(apart).max())  # float32 shares


def test_the_slope_has_nothing_in_the_spare_columns():
    rng = np.random.default_rng(0)
    image, target = (to_planes(picture(rng, (20, 23, 3))) for _ in range(2))
    weight = to_planes(np.ones((20, 23, 1), np.float32))[0]
    _, slope = MixedLoss(target, weight, 0.3).evaluate(image)
    inner = to_image(slope).copy()
    to_image(slope)[:] = 0
    assert inner.all()
    assert not slope.any()


def test_the_bits_do_not_depend_on_the_number_of_threads():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core: nothing to compare")
    rng = np.random.default_rng(0)
    image, target = (picture(rng, (150, 70, 3)) for _ in range(2))
    weight = weights_like("any", rng, (150, 70))
    results = []
    for count in (1, 2):  # the fixture of this folder puts back what was before
        numba.set_num_threads(count)
        results.append(evaluated(image, target, weight, 0.3))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_what_was_evaluated_before_leaves_no_trace():
    rng = np.random.default_rng(0)
    image, other, target = (to_planes(picture(rng, (40, 33, 3))) for _ in range(3))
    weight = to_planes(weights_like("holes", rng, (40, 33))[..., None])[0]
    loss = MixedLoss(target, weight, 0.3)
    (first, _), (second, slope) = loss.evaluate(other), loss.evaluate(image)
    expected, expected_slope = MixedLoss(target, weight, 0.3).evaluate(image)
    assert first != second == expected
    np.testing.assert_array_equal(slope, expected_slope)
