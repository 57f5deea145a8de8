"""Scores from merged regions against scores of the whole image, and those against a dense oracle."""

from __future__ import annotations

import math
import pickle
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from smartsplat.geometry import Region
from smartsplat.metrics import (
    ALIGNMENT,
    CONTEXT,
    LEVEL_WEIGHTS,
    LEVELS,
    ErrorSums,
    bits_per_pixel,
    context_region,
    error_sums,
    level_count,
    ms_ssim,
    psnr,
    quality,
    score,
    ssim,
)

ROUNDING = 1e-9  # float64 sums of up to 1e5 terms near 1, and windowed variances of values up to the peak
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def noisy_pair(height, width, bands, seed=0, noise=40.0):
    """Return an image with structure at every level, and a noisy copy of it; the noise differs from band to band."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(np.sin((y * math.cos(a) + x * math.sin(a)) / period) for a, period in [(0.3, 2), (1.2, 9), (2.0, 31)])
    image = 128 + 35 * waves[..., None] + rng.normal(0, 8, (height, width, bands))
    return image, 0.9 * image + rng.normal(0, noise / (1 + np.arange(bands)), image.shape)


def random_weight(height, width, seed=0):
    """Return weights between 0 and 1 with a hole and scattered pixels without data."""
    rng = np.random.default_rng(seed)
    weight = rng.random((height, width)) * (rng.random((height, width)) > 0.1)
    weight[height // 3 : height // 2, width // 4 : width // 2] = 0
    return weight


def sums_of(reference, rendered, core, *, padded=None, weight=None):
    """Return the sums of one core, given no more of the arrays than `padded` (the least, by default)."""
    shape = reference.shape[:2]
    padded = context_region(core, shape) if padded is None else padded
    at = padded.slices
    crop = None if weight is None else weight[at]
    return error_sums(reference[at], rendered[at], core=core, padded=padded, shape=shape, peak=255, weight=crop)


def cores_of(shape, y_cuts, x_cuts):
    rows, cols = ([0, *sorted(cuts), side] for cuts, side in zip((y_cuts, x_cuts), shape, strict=True))
    return [Region(y0=y0, y1=y1, x0=x0, x1=x1) for y0, y1 in pairwise(rows) for x0, x1 in pairwise(cols)]


def whole_sums(reference, rendered, weight=None):
    height, width = reference.shape[:2]
    return sums_of(reference, rendered, Region(y0=0, y1=height, x0=0, x1=width), weight=weight)


def assert_same(sums, expected, rel=ROUNDING):
    for field in fields(ErrorSums):
        np.testing.assert_allclose(getattr(sums, field.name), getattr(expected, field.name), rtol=rel, atol=rel)


# ---- the oracle: every window written out as 121 weighted pixels, central moments, no separable filter ----


def window_moments(x, y):
    offset = np.arange(-5, 6)
    gauss = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5**2))
    gauss = (gauss / gauss.sum()).ravel()
    u, v = (sliding_window_view(image, (11, 11)).reshape(-1, 121) for image in (x, y))
    mean_u, mean_v = u @ gauss, v @ gauss
    du, dv = u - mean_u[:, None], v - mean_v[:, None]
    return mean_u, mean_v, (du * du) @ gauss, (dv * dv) @ gauss, (du * dv) @ gauss


def oracle_level(x, y, weight):
    """Return the weighted means of the contrast-structure map and of the SSIM map at one level."""
    mu, mv, vu, vv, cov = window_moments(x, y)
    cs = (2 * cov + C2) / (vu + vv + C2)
    full = cs * (2 * mu * mv + C1) / (mu**2 + mv**2 + C1)
    at_centre = weight[5:-5, 5:-5].ravel()
    return np.average(cs, weights=at_centre), np.average(full, weights=at_centre)


def oracle_half(image):
    height, width = (side // 2 for side in image.shape)
    return image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))


def oracle_band(x, y, weight):
    """Return one band's SSIM and MS-SSIM."""
    x, y = (np.where(weight == 0, 0, image) for image in (x, y))
    levels = []
    while min(x.shape) >= 11 and len(levels) < 5:
        levels.append(oracle_level(x, y, weight))
        x, y, weight = oracle_half(x), oracle_half(y), oracle_half(weight)
    exponents = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333][: len(levels)]
    terms = [cs for cs, _ in levels[:-1]] + [levels[-1][1]]
    total = sum(exponents) if len(levels) < 5 else 1
    log = sum(e / total * math.log(term) for e, term in zip(exponents, terms, strict=True))
    return levels[0][1], math.exp(log)


def oracle_psnr(reference, rendered, weight):
    known = weight > 0
    squared = (reference[known] - rendered[known]) ** 2 * weight[known][:, None]
    return 10 * math.log10(255**2 / (squared.sum() / weight.sum() / reference.shape[2]))


@pytest.mark.parametrize("shape", [(11, 11), (11, 40), (23, 22), (47, 61), (101, 88), (181, 177)])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_are_those_of_windows_written_out_one_by_one(shape, weighted):
    reference, rendered = noisy_pair(*shape, 2)
    weight = random_weight(*shape) if weighted else np.ones(shape)
    assert weight[5, 5] > 0  # the centre of the only window of 11 x 11
    found = score(reference, rendered, peak=255, weight=weight if weighted else None)
    bands = [oracle_band(reference[..., band], rendered[..., band], weight) for band in range(2)]
    assert found.psnr == pytest.approx(oracle_psnr(reference, rendered, weight), abs=ROUNDING)
    assert found.ssim == pytest.approx(np.mean([band[0] for band in bands]), abs=ROUNDING)
    assert found.ms_ssim == pytest.approx(np.mean([band[1] for band in bands]), abs=ROUNDING)


# ---- region by region ----


@st.composite
def partitioned_images(draw):
    shape = draw(st.tuples(st.integers(11, 120), st.integers(11, 120)))
    cuts = [draw(st.sets(st.sampled_from(range(16, side, 16)))) if side > 16 else set() for side in shape]
    weighted, bands, seed = draw(st.booleans()), draw(st.integers(1, 3)), draw(st.integers(0, 2**32 - 1))
    return noisy_pair(*shape, bands, seed), random_weight(*shape, seed) if weighted else None, cores_of(shape, *cuts)


@given(partitioned_images())
@settings(deadline=None, max_examples=200)
def test_aligned_cores_that_partition_an_image_score_as_the_whole(example):
    (reference, rendered), weight, cores = example
    merged = sum(
        (sums_of(reference, rendered, core, weight=weight) for core in cores), ErrorSums.zero(reference.shape[2])
    )
    assert_same(merged, whole_sums(reference, rendered, weight))


@pytest.mark.parametrize(
    ("shape", "y_cuts", "x_cuts"),
    [
        ((410, 395), [128, 256, 384], [128, 256, 384]),  # cores with neighbours beyond the context on both sides
        ((400, 401), range(16, 400, 96), range(16, 400, 80)),
        ((177, 512), [176], [256]),  # a last row of cores one pixel tall: no window of its own at any level
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_all_five_levels_partition_too(shape, y_cuts, x_cuts, weighted):
    reference, rendered = noisy_pair(*shape, 1)
    weight = random_weight(*shape) if weighted else None
    parts = [sums_of(reference, rendered, core, weight=weight) for core in cores_of(shape, y_cuts, x_cuts)]
    whole = whole_sums(reference, rendered, weight)
    assert_same(sum(parts, ErrorSums.zero(1)), whole)
    assert_same(sum(reversed(parts), ErrorSums.zero(1)), whole)
    assert_same(sum(parts[1::2], sum(parts[::2], ErrorSums.zero(1))), whole)
    if not weighted:  # one count for each window that fits
        assert whole.windows.tolist() == [((shape[0] >> k) - 10) * ((shape[1] >> k) - 10) for k in range(LEVELS)]


def test_the_context_is_used_to_its_last_pixel_and_nothing_beyond_it():
    reference, rendered = noisy_pair(336, 336, 1)
    core = Region(y0=160, y1=176, x0=160, x1=176)
    context = context_region(core, (336, 336))
    assert context == core.expand(CONTEXT) == core.expand(80)
    base = sums_of(reference, rendered, core)
    for y, x in [(context.y0, 168), (context.y1 - 1, 168), (168, context.x0), (168, context.x1 - 1)]:
        changed = rendered.copy()
        changed[y, x] += 100
        sums = sums_of(reference, changed, core)
        assert sums.contrast[4] != base.contrast[4]  # the coarsest level reaches it
        assert (sums.contrast[:4] == base.contrast[:4]).all()
        assert sums.squared == base.squared
    outside = np.full((336, 336), True)
    outside[context.slices] = False
    reference[outside] = rendered[outside] = np.nan
    wider = sums_of(reference, rendered, core, padded=Region(y0=1, y1=333, x0=3, x1=336))
    assert_same(wider, base, rel=0)


def test_strips_of_the_least_height_score_as_whole_regions():
    reference, rendered = noisy_pair(28, 9000, 1)  # more than 2**17 / 16 wide: strips of 16 and 2 rows
    parts = [sums_of(reference, rendered, core) for core in cores_of((28, 9000), [], range(1600, 9000, 1600))]
    assert_same(sum(parts, ErrorSums.zero(1)), whole_sums(reference, rendered))


def test_sums_survive_pickling_and_refuse_another_number_of_bands():
    sums = whole_sums(*noisy_pair(20, 30, 3))
    assert_same(pickle.loads(pickle.dumps(sums)), sums, rel=0)
    assert_same(sums + ErrorSums.zero(3), sums, rel=0)
    with pytest.raises(ValueError, match="3 and over 1 bands"):
        sums + ErrorSums.zero(1)


# ---- no data ----


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e300])
def test_what_pixels_without_data_hold_changes_nothing(garbage):
    reference, rendered = noisy_pair(190, 200, 2)
    weight = random_weight(190, 200)
    expected = whole_sums(reference, rendered, weight)
    reference[weight == 0] = garbage
    rendered[weight == 0] = 7
    assert_same(whole_sums(reference, rendered, weight), expected, rel=0)


def test_a_mask_counts_as_weights_of_zero_and_one_and_their_scale_does_not_matter():
    reference, rendered = noisy_pair(60, 70, 1)
    mask = random_weight(60, 70) > 0
    found = score(reference, rendered, peak=255, weight=mask)
    tripled = score(reference, rendered, peak=255, weight=3 * mask.astype(np.uint8))
    assert found.psnr == pytest.approx(tripled.psnr, abs=ROUNDING)
    assert found.ssim == pytest.approx(tripled.ssim, abs=ROUNDING)
    assert found.ms_ssim == pytest.approx(tripled.ms_ssim, abs=ROUNDING)


def test_no_data_anywhere_differs_nowhere_and_has_no_ssim():
    reference, rendered = noisy_pair(20, 20, 1)
    found = score(reference, rendered, peak=255, weight=np.zeros((20, 20)))
    assert (found.psnr, found.ssim, found.ms_ssim) == (math.inf, None, None)


def test_levels_without_a_window_that_has_data_are_left_out():
    reference, rendered = noisy_pair(24, 24, 1)
    weight = np.zeros((24, 24))
    weight[5:9, 5:9] = 1  # the coarser level has 2 x 2 windows, centred on pixels 10 to 14
    found = score(reference, rendered, peak=255, weight=weight)
    assert found.ms_ssim == pytest.approx(found.ssim, abs=ROUNDING)


# ---- known answers ----


@pytest.mark.parametrize("bands", [1, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_identical_images_are_perfect(bands, dtype):
    image = np.random.default_rng(1).integers(0, 255, (181, 190, bands)).astype(dtype)
    found = score(image, image, peak=255)
    assert (found.psnr, found.ssim, found.ms_ssim) == (math.inf, 1.0, 1.0)


def test_constant_images_differ_in_luminance_alone():
    a, b = 60, 90
    found = score(np.full((176, 180, 3), a), np.full((176, 180, 3), b), peak=255)
    luminance = (2 * a * b + C1) / (a**2 + b**2 + C1)
    assert found.psnr == pytest.approx(20 * math.log10(255 / 30), abs=ROUNDING)
    assert found.ssim == pytest.approx(luminance, abs=ROUNDING)
    assert found.ms_ssim == pytest.approx(luminance**0.1333, abs=ROUNDING)


def test_a_checkerboard_is_seen_by_the_finest_level_alone():
    # 2 x 2 averages erase it; in a window its mean is +-d s and its variance d^2 (1 - s^2), as its square is d^2.
    d, mid = 20.0, 128.0
    gauss = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    s = ((gauss @ (-1.0) ** np.arange(11)) / gauss.sum()) ** 2
    sign = 1 - 2 * (np.indices((190, 180)).sum(axis=0) % 2)
    flat = np.full((190, 180, 1), mid)
    found = score(flat, flat + d * sign[..., None], peak=255)
    contrast = C2 / (d**2 * (1 - s**2) + C2)
    luminance = [(2 * mid * m + C1) / (mid**2 + m**2 + C1) for m in (mid + d * s, mid - d * s)]
    assert found.psnr == pytest.approx(20 * math.log10(255 / d), abs=ROUNDING)
    assert found.ssim == pytest.approx(contrast * np.mean(luminance), abs=ROUNDING)
    assert found.ms_ssim == pytest.approx(contrast**0.0448, abs=ROUNDING)


def test_an_inverted_image_has_no_structure_in_common():
    image, _ = noisy_pair(200, 200, 1)
    found = score(image, 255 - image, peak=255)
    assert found.ssim < 0
    assert found.ms_ssim == 0  # not a complex number


def test_psnr_weighs_pixels():
    reference, rendered = np.zeros((2, 1, 2)), np.array([[[3.0, 4.0]], [[0.0, 10.0]]])
    sums = whole_sums(reference, rendered, np.array([[3.0], [1.0]]))
    assert psnr(sums, 10) == pytest.approx(10 * math.log10(100 / ((3 * 25 + 100) / 8)), abs=ROUNDING)
    assert (ssim(sums), ms_ssim(sums)) == (None, None)


# ---- symmetries ----


def test_bands_are_scored_apart_and_averaged():
    reference, rendered = noisy_pair(60, 50, 3)
    together = score(reference, rendered, peak=255)
    apart = [score(reference[..., [band]], rendered[..., [band]], peak=255) for band in range(3)]
    assert together.ssim == pytest.approx(np.mean([one.ssim for one in apart]), abs=ROUNDING)
    assert together.ms_ssim == pytest.approx(np.mean([one.ms_ssim for one in apart]), abs=ROUNDING)
    mse = [10 ** (-one.psnr / 10) for one in apart]
    assert together.psnr == pytest.approx(-10 * math.log10(np.mean(mse)), abs=ROUNDING)


def test_swapping_the_images_or_scaling_them_with_the_peak_changes_nothing():
    reference, rendered = noisy_pair(60, 50, 2)
    expected = score(reference, rendered, peak=255)
    for found in (score(rendered, reference, peak=255), score(reference / 255, rendered / 255, peak=1)):
        assert found.psnr == pytest.approx(expected.psnr, abs=ROUNDING)
        assert found.ssim == pytest.approx(expected.ssim, abs=ROUNDING)
        assert found.ms_ssim == pytest.approx(expected.ms_ssim, abs=ROUNDING)


def test_integers_do_not_wrap():
    reference, rendered = (image.clip(0, 255).astype(np.uint8) for image in noisy_pair(50, 50, 3))
    assert score(reference, rendered, peak=255) == score(reference * 1.0, rendered.astype(np.float32), peak=255)


def test_the_order_of_rows_and_columns_does_not_matter_where_no_row_is_dropped():
    reference, rendered = noisy_pair(176, 192, 1)
    expected = score(reference, rendered, peak=255)
    turned = score(np.rot90(reference), np.rot90(rendered), peak=255)
    assert turned.ms_ssim == pytest.approx(expected.ms_ssim, abs=ROUNDING)


# ---- sizes and refusals ----


def test_the_constants_follow_from_the_window_and_the_levels():
    assert (LEVELS, ALIGNMENT, CONTEXT) == (5, 16, 80)
    assert sum(LEVEL_WEIGHTS) == pytest.approx(1.0001)  # as published
    sides = {1: 0, 10: 0, 11: 1, 21: 1, 22: 2, 43: 2, 44: 3, 88: 4, 175: 4, 176: 5, 10**6: 5}
    assert {side: level_count((side, 2 * side)) for side in sides} == sides


def test_quality_is_made_of_the_three_scores():
    sums = whole_sums(*noisy_pair(30, 30, 1))
    found = quality(sums, peak=255)
    assert (found.psnr, found.ssim, found.ms_ssim) == (psnr(sums, 255), ssim(sums), ms_ssim(sums))


def test_bits_per_pixel_counts_eight_a_byte():
    assert bits_per_pixel(1_000, 10, 100) == 8


CORE = Region(y0=16, y1=32, x0=0, x1=40)
FITTING = {"core": CORE, "padded": Region(y0=0, y1=50, x0=0, x1=40), "shape": (50, 40), "peak": 255}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"core": replace(CORE, y0=8)}, "multiples of 16"),
        ({"core": replace(CORE, x0=8)}, "multiples of 16"),
        ({"core": replace(CORE, y1=40)}, "multiples of 16"),
        ({"core": replace(CORE, x1=39)}, "multiples of 16"),
        ({"core": replace(CORE, y1=16)}, "empty"),
        ({"core": replace(CORE, x1=48)}, "leaves the scene"),
        ({"shape": (200, 40)}, "needs the pixels 0:112,0:40"),
        ({"padded": Region(y0=1, y1=51, x0=0, x1=40)}, "needs the pixels"),
        ({"padded": Region(y0=0, y1=50, x0=0, x1=41)}, "reference"),
        ({"peak": 0}, "peak 0 must be positive"),
        ({"weight": np.ones((50, 41))}, "weight"),
        ({"weight": np.full((50, 40), -1)}, "negative or not finite"),
        ({"weight": np.full((50, 40), np.nan)}, "negative or not finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    image = np.zeros((50, 40, 2))
    error_sums(image, image, **FITTING)
    with pytest.raises(ValueError, match=message):
        error_sums(image, image, **(FITTING | change))


def test_images_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="different shapes"):
        score(np.zeros((20, 20, 3)), np.zeros((20, 20, 1)), peak=255)
    with pytest.raises(ValueError, match=r"not \(H, W, C\)"):
        score(np.zeros((20, 20)), np.zeros((20, 20)), peak=255)
