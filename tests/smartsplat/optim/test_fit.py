"""The fit never does harm, keeps to its tile, and finds the best colors; the same bits every time."""

from __future__ import annotations

import math
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smartsplat.config import FitConfig
from smartsplat.geometry import TileGrid, TileId
from smartsplat.optim import TileTarget, fit_tile
from smartsplat.optim.colors import solve_colors
from smartsplat.optim.loss import squared_error
from smartsplat.render import operators, render

few = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
GRID = TileGrid(height=60, width=52, tile=25, halo=5)  # edge tiles of 10 and 2 px
MAX_SCALE = GRID.reach / 3.4
CONFIG = FitConfig(steps=6, color_iterations=4)


def kept(gaussians, core):
    """Return Gaussians such as sampling makes: means in the core, scales in range."""
    last = np.nextafter(np.float32(core.shape), np.float32(0))
    return replace(
        gaussians,
        means=np.clip(gaussians.means, 0, last),
        scales=np.clip(gaussians.scales, CONFIG.min_scale, MAX_SCALE),
        origin=core.origin,
    )


def target_at(tile, pixels, weight=None):
    """Return the target of a tile, cut from the whole image."""
    padded = GRID.padded(tile)
    weight = None if weight is None else weight[padded.slices].astype(np.float32)
    return TileTarget(
        pixels=pixels[padded.slices].astype(np.float32), weight=weight, core=GRID.core(tile), padded=padded
    )


def image_like(kind, bands, rng):
    """Return a scene-sized image: noise, flat, black, or varying in its first band only."""
    shape = (GRID.height, GRID.width, bands)
    if kind == "noise":
        return rng.random(shape)
    image = np.zeros(shape)
    if kind == "flat":
        image[:] = rng.random(bands)
    if kind == "one band":
        image[..., 0] = rng.random(shape[:2])
    return image


def weight_like(kind, rng):
    if kind == "no data":
        return np.zeros((GRID.height, GRID.width))
    return None if kind == "all" else (rng.random((GRID.height, GRID.width)) < 0.7).astype(float)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: the bits are the same, as is tested below, and other work on the machine does not slow it."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


def fit(target, own, *, frozen=(), config=CONFIG, sweep=1):
    return fit_tile(target, own, frozen=frozen, config=config, sweep=sweep, max_scale=MAX_SCALE)


def loss_of(target, own, frozen=()):
    """Return the weighted mean squared error over the padded tile, written out in float64."""
    image = sum((render(one, target.padded).astype(np.float64) for one in (own, *frozen)), np.zeros(1))
    weight = np.ones(target.padded.shape) if target.weight is None else target.weight.astype(np.float64)
    total = (weight[..., None] * (image - target.pixels) ** 2).sum()
    return total / (weight.sum() * target.pixels.shape[2]) if weight.any() else 0.0


def assert_same_bits(a, b):
    assert a.origin == b.origin
    np.testing.assert_array_equal(a.to_rows(), b.to_rows())


# ---- what every fit keeps to ----

tiles = st.builds(TileId, st.integers(0, GRID.rows - 1), st.integers(0, GRID.cols - 1))
cases = given(
    seeds,
    tiles,
    st.sampled_from([0, 1, 2, 9, 30]),
    st.sampled_from(["ordinary", "tiny", "huge", "needles", "mixed"]),
    st.sampled_from([1, 3, 4]),
    st.sampled_from(["noise", "flat", "black", "one band"]),
    st.sampled_from(["all", "holes", "no data"]),
    st.integers(1, 3),
)


@cases
@example(0, TileId(2, 2), 1, "ordinary", 3, "black", "all", 1)
@example(1, TileId(0, 0), 1, "tiny", 1, "flat", "no data", 3)
@settings(deadline=None, max_examples=120)
def test_a_fit_is_never_worse_than_its_start_and_stays_in_its_tile(
    gaussians_of, seed, tile, count, family, bands, picture, data, sweep
):
    rng = np.random.default_rng(seed)
    target = target_at(tile, image_like(picture, bands, rng), weight_like(data, rng))
    own = kept(gaussians_of(seed, count, family=family, bands=bands, shape=target.core.shape), target.core)
    frozen = [
        gaussians_of(seed + 1 + i, 5, bands=bands, shape=GRID.core(other).shape, origin=GRID.core(other).origin)
        for i, other in enumerate(GRID.neighbors(tile)[:2])
    ]
    fitted, report = fit(target, own, frozen=frozen, sweep=sweep)
    assert report.loss_after <= report.loss_before
    # The report is of what was returned: float32 residuals of values up to 10 round by 1e-6.
    assert report.loss_before == pytest.approx(loss_of(target, own, frozen), rel=1e-4, abs=1e-9)
    assert report.loss_after == pytest.approx(loss_of(target, fitted, frozen), rel=1e-4, abs=1e-9)
    assert fitted.is_finite()
    assert (len(fitted), fitted.bands, fitted.origin, report.count) == (count, bands, target.core.origin, count)
    assert (fitted.means >= 0).all()
    assert (fitted.means < np.float32(target.core.shape)).all()
    assert (fitted.scales >= np.float32(CONFIG.min_scale)).all()
    assert (fitted.scales <= np.float32(MAX_SCALE)).all()
    assert report.color_low == min(0, fitted.colors.min(initial=0))
    assert report.color_high == max(1, fitted.colors.max(initial=1))


@given(seeds, tiles, st.floats(-(2.0**100), 2.0**100, width=32))
@few
def test_pixels_without_data_do_not_change_a_bit_of_the_fit(gaussians_of, seed, tile, garbage):
    rng = np.random.default_rng(seed)
    pixels, weight = image_like("noise", 3, rng), weight_like("holes", rng)
    spoiled = np.where(weight[..., None] == 0, garbage * rng.normal(size=pixels.shape), pixels)
    own = kept(gaussians_of(seed, 9, shape=GRID.core(tile).shape), GRID.core(tile))
    (a, report), (b, spoiled_report) = (fit(target_at(tile, each, weight), own) for each in (pixels, spoiled))
    assert_same_bits(a, b)
    assert report == spoiled_report


@given(seeds, st.sampled_from(["ordinary", "needles", "mixed"]), st.floats(0.1, 4))
@few
def test_steps_far_too_large_do_no_harm_to_what_the_colors_reached(gaussians_of, seed, family, rate):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(seed)))
    own = kept(gaussians_of(seed, 12, family=family, shape=target.core.shape), target.core)
    wild = replace(CONFIG, mean_rate=5 * rate, scale_rate=rate, rotation_rate=rate, color_rate=rate)
    _, colors_only = fit(target, own, config=replace(wild, steps=0))
    _, report = fit(target, own, config=wild)
    assert report.loss_after <= colors_only.loss_after


@pytest.mark.parametrize("family", ["ordinary", "huge"])
def test_solving_again_what_is_solved_is_never_worse_by_a_single_bit(gaussians_of, family):
    # Nothing is left to gain, so float32 rounding decides, for better or worse; the start must win when it is better.
    config = replace(CONFIG, steps=0, color_iterations=25)
    for seed in range(12):
        target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(seed)))
        own = kept(gaussians_of(seed, 12, family=family, shape=target.core.shape), target.core)
        for _ in range(4):
            own, report = fit(target, own, config=config)
            assert report.loss_after <= report.loss_before


def test_without_any_data_nothing_moves(gaussians_of):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(0)), np.zeros((60, 52)))
    own = kept(gaussians_of(0, 9, shape=target.core.shape), target.core)
    fitted, report = fit(target, own)
    assert_same_bits(fitted, own)
    assert (report.loss_before, report.loss_after, report.weight, report.squared_error) == (0, 0, 0, 0)


def test_neighbors_that_explain_the_image_leave_nothing_to_do(gaussians_of):
    tile = TileId(1, 1)
    others = [gaussians_of(i, 12, shape=GRID.core(n).shape, origin=GRID.core(n).origin) for i, n in enumerate(GRID)]
    pixels = render(others, GRID.bounds)
    target = target_at(tile, pixels)
    own = kept(gaussians_of(5, 12, shape=target.core.shape), target.core)
    dark = replace(own, colors=np.zeros_like(own.colors))
    fitted, report = fit(target, dark, frozen=others)
    assert report.loss_before == 0  # region == crop, bit for bit, so the rest is exactly zero
    assert report.loss_after == 0
    assert_same_bits(fitted, dark)
    # With colors, they are taken away again: eight iterations leave 1e-4 of the squared error or less.
    _, report = fit(target, own, frozen=others, config=FitConfig(steps=0, color_iterations=30))
    assert report.loss_after < 1e-4 * report.loss_before


def test_an_all_black_tile_turns_its_gaussians_dark_and_stays_finite(gaussians_of):
    target = target_at(TileId(0, 1), np.zeros((60, 52, 3)))
    own = kept(gaussians_of(3, 15, shape=target.core.shape), target.core)
    for start in (own, replace(own, colors=np.zeros_like(own.colors))):
        fitted, report = fit(target, start, config=FitConfig(steps=20, color_iterations=30))
        assert fitted.is_finite()
        assert report.loss_after <= 1e-4 * report.loss_before


def test_a_fit_of_an_image_made_of_gaussians_gains_ten_decibels(gaussians_of):
    # The start is the truth displaced by 1 px, scaled by up to 30 %, turned by up to 0.3 rad and grey: what a fit
    # that moves shapes (and not only colors) has to undo. 10 dB is a tenth of the squared error; it finds 20 or more.
    tile = TileId(0, 0)
    core, rng = GRID.core(tile), np.random.default_rng(2)
    truth = kept(gaussians_of(8, 12, family="ordinary", shape=core.shape), core)
    truth = replace(truth, scales=np.clip(truth.scales, 1.5, MAX_SCALE))
    target = target_at(tile, render(truth, GRID.bounds))
    start = replace(
        truth,
        means=truth.means + rng.normal(0, 1, (12, 2)),
        scales=truth.scales * np.exp(rng.uniform(-0.3, 0.3, (12, 2))),
        rotations=truth.rotations + rng.uniform(-0.3, 0.3, 12),
        colors=np.full((12, 3), 0.5),
    )
    config = FitConfig(steps=150, sweeps=1)
    colors_only, _ = fit(target, kept(start, core), config=replace(config, steps=0, color_iterations=50))
    fitted, report = fit(target, kept(start, core), config=config)
    assert 10 * math.log10(report.loss_before / report.loss_after) > 10
    assert 10 * math.log10(loss_of(target, colors_only) / loss_of(target, fitted)) > 10


def test_the_bits_do_not_depend_on_the_number_of_threads_nor_on_the_run(gaussians_of):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core: nothing to compare")
    grid = TileGrid(height=200, width=90, tile=200, halo=0)
    tile, rng, before = TileId(0, 0), np.random.default_rng(0), numba.get_num_threads()
    pixels = rng.random((200, 90, 3)).astype(np.float32)
    target = TileTarget(pixels=pixels, weight=None, core=grid.core(tile), padded=grid.padded(tile))
    own = kept(gaussians_of(0, 150, shape=(200, 90)), target.core)
    try:
        results = []
        for count in (1, 2, 2):
            numba.set_num_threads(count)
            results.append(fit(target, own))
    finally:
        numba.set_num_threads(before)
    assert results[0][1].loss_after < 0.9 * results[0][1].loss_before
    for fitted, report in results[1:]:
        assert_same_bits(fitted, results[0][0])
        assert report == results[0][1]


# ---- the report ----


@given(seeds, tiles, st.sampled_from(["all", "holes", "no data"]))
@few
def test_the_cores_errors_and_weights_are_those_of_the_image_of_all_gaussians(gaussians_of, seed, tile, data):
    rng = np.random.default_rng(seed)
    weight = weight_like(data, rng)
    target = target_at(tile, image_like("noise", 3, rng), weight)
    own = kept(gaussians_of(seed, 6, family="ordinary", shape=target.core.shape), target.core)
    fitted, report = fit(target, own)
    inner = target.core.slices_within(target.padded)
    residual = (render(fitted, target.padded).astype(np.float64) - target.pixels)[inner]
    known = np.ones(target.core.shape) if weight is None else weight[target.core.slices]
    # float32 residuals near 1 round by 6e-8, their squares by twice that.
    assert report.squared_error == pytest.approx((known[..., None] * residual**2).sum(), rel=1e-5)
    assert report.weight == known.sum() * 3


@given(seeds, st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.sampled_from(["none", "binary", "any"]))
@few
def test_squared_error_is_the_weighted_mean_written_out(seed, height, width, bands, kind):
    rng = np.random.default_rng(seed)
    image, target = (rng.normal(size=(height, width, bands)).astype(np.float32) for _ in range(2))
    weight = {"none": None, "binary": np.float32(rng.random((height, width)) < 0.5), "any": None}[kind]
    if kind == "any":
        weight = rng.random((height, width)).astype(np.float32)
    value, slope = squared_error(image, target, weight=weight)
    known = np.ones((height, width)) if weight is None else weight.astype(np.float64)
    total = 0.0
    for y, x, band in np.ndindex(height, width, bands):
        difference = float(image[y, x, band]) - float(target[y, x, band])
        total += known[y, x] * difference**2
        assert slope[y, x, band] == pytest.approx(known[y, x] * difference, rel=1e-6, abs=1e-6)  # float32
    # The residual, its product with the weight and that with itself are float32: 6e-8 each.
    assert value == pytest.approx(total / (known.sum() * bands) if known.any() else 0.0, rel=1e-6)


def test_only_a_perfect_image_has_no_error():
    image = np.random.default_rng(0).random((5, 6, 3)).astype(np.float32)
    assert squared_error(image, image, weight=None)[0] == 0
    changed = image.copy()
    changed[2, 3, 1] += 0.5
    assert squared_error(changed, image, weight=None)[0] == pytest.approx(0.25 / 90, rel=1e-6)


# ---- colors ----


def dense_colors(own, target):
    """Return the least-squares colors by numpy, from the dense matrix of weights."""
    alone = [render(replace(own, colors=np.eye(len(own))[:, [i]]), target.padded)[..., 0] for i in range(len(own))]
    root = np.sqrt(np.ones(target.padded.shape) if target.weight is None else target.weight.astype(np.float64))
    matrix = np.stack([(one * root).ravel() for one in alone], axis=1).astype(np.float64)
    return np.linalg.lstsq(matrix, (target.pixels * root[..., None]).reshape(-1, target.pixels.shape[2]), rcond=None)[0]


@given(seeds, st.booleans())
@settings(deadline=None, max_examples=15)
def test_solved_colors_reach_the_dense_least_squares_optimum(gaussians_of, seed, holes):
    rng = np.random.default_rng(seed)
    target = target_at(TileId(0, 0), image_like("noise", 3, rng), weight_like("holes" if holes else "all", rng))
    own = kept(gaussians_of(seed, 10, family="ordinary", shape=target.core.shape), target.core)
    solved = solve_colors(
        operators(own, target.padded),
        target.pixels,
        weight=target.weight,
        start=own.colors,
        scales=own.scales,
        iterations=60,
    )
    best = loss_of(target, replace(own, colors=dense_colors(own, target)))
    # float32 maps stop the iteration near 1e-6 of the gradient; the loss is flat at its optimum.
    assert loss_of(target, replace(own, colors=solved)) <= best * (1 + 1e-4)


@given(seeds, st.integers(0, 12), st.sampled_from(["ordinary", "huge", "needles", "mixed"]))
@few
def test_more_iterations_never_make_the_colors_worse(gaussians_of, seed, iterations, family):
    rng = np.random.default_rng(seed)
    target = target_at(TileId(1, 0), image_like("noise", 3, rng))
    own = kept(gaussians_of(seed, 12, family=family, shape=target.core.shape), target.core)
    at = operators(own, target.padded)
    colors = solve_colors(at, target.pixels, weight=None, start=own.colors, scales=own.scales, iterations=iterations)
    assert np.isfinite(colors).all()
    before, after = (squared_error(at.render(colors=c), target.pixels, weight=None)[0] for c in (own.colors, colors))
    # Conjugate gradients lower the error at each step; float32 rounding may undo 1e-5 of it at the end.
    assert after <= before * (1 + 1e-5)
