"""The CPU engine against the dense float64 one, and the promises that hold to the last bit."""

from __future__ import annotations

import math
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.errors import ConfigError
from smartsplat.gaussians import Gaussians, concatenate
from smartsplat.geometry import Region
from smartsplat.optim import host
from smartsplat.render import operators, reference, render, resolve_engine
from smartsplat.render.cpu import MOST_PLANES, to_image, to_planes
from smartsplat.render.footprint import CUTOFF
from smartsplat.render.lanes import LANES
from smartsplat.render.zoom import resample
from tests.smartsplat.render.comparing import (
    BOUNDARY,
    TOLERANCE,
    assert_close,
    at_origin,
    cotangent_on,
    decided,
    squared_distances,
)

few = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)
FAMILIES = ["tiny", "ordinary", "huge", "needles", "outside", "mixed"]
families = st.sampled_from(FAMILIES)
SHAPES = [(1, 1), (1, 75), (83, 1), (17, 16), (64, 64), (65, 31), (130, 47), (37, 131)]


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: the bits are the same, as is tested below, and other work on the machine does not slow it."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


# ---- against the oracle ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_render_jvp_and_vjp_are_the_dense_engines(gaussians_of, family, shape):
    seed = 10 * SHAPES.index(shape) + FAMILIES.index(family)
    bands = (1, 3, 4, 8)[seed % 4]
    gaussians = gaussians_of(seed, 25, family=family, bands=bands, shape=shape)
    region = at_origin(*shape)
    clear, engine = decided(gaussians, region), operators(gaussians, region)
    assert_close(engine.render()[clear], reference.render(gaussians, region)[clear])
    tangent = np.random.default_rng(seed).normal(size=(25, 5 + bands)).astype(np.float32)
    assert_close(engine.jvp(tangent)[clear], reference.jvp(gaussians, region, tangent=tangent)[clear])
    cotangent = cotangent_on(clear, bands, seed)
    found, expected = engine.vjp(cotangent), reference.vjp(gaussians, region, cotangent=cotangent)
    for column in range(5 + bands):
        assert_close(found[:, column], expected[:, column])


@given(seeds, families, st.sampled_from([1, 3, 4, 8]), st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_render_is_the_dense_engines_anywhere(gaussians_of, seed, family, bands, height, width, count):
    gaussians = gaussians_of(seed, count, family=family, bands=bands, shape=(height, width))
    region = at_origin(height, width, y0=seed % 7 - 3, x0=seed % 11 - 5)
    clear = decided(gaussians, region)
    assert_close(render(gaussians, region)[clear], reference.render(gaussians, region)[clear])


@pytest.mark.parametrize("far", [0, 1000, 10**6])
def test_sets_with_their_own_origins_add_up_however_far_out(gaussians_of, far):
    origins = [(far, far), (far + 40, far - 33), (far - 64, far + 64)]
    sets = [gaussians_of(i, 15, shape=(40, 40), origin=origin) for i, origin in enumerate(origins)]
    region = at_origin(70, 90, y0=far - 10, x0=far - 20)
    clear = decided(sets, region)
    expected = sum(reference.render(one, region) for one in sets)
    assert_close(render(sets, region)[clear], expected[clear])
    np.testing.assert_allclose(reference.render(sets, region), expected, atol=1e-12)  # float64 sums of values near 1


@given(seeds, st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
@few
def test_moving_the_origin_and_the_region_together_changes_no_bit(gaussians_of, seed, dy, dx):
    here = gaussians_of(seed, 20, shape=(50, 50))
    # Means in steps of 2^-20 px, which float64 holds beyond 10^6 px.
    means = np.round(here.means.astype(np.float64) * 2**17) / 2**17
    here = Gaussians(means=means, scales=here.scales, rotations=here.rotations, colors=here.colors)
    there = Gaussians(means=means, scales=here.scales, rotations=here.rotations, colors=here.colors, origin=(dy, dx))
    region = at_origin(50, 60)
    np.testing.assert_array_equal(render(here, region), render(there, region.shift(dy, dx)))


def test_the_oracles_derivatives_are_finite_differences(gaussians_of):
    gaussians, region = gaussians_of(5, 6, family="ordinary", shape=(12, 14)), at_origin(12, 14)
    rng = np.random.default_rng(1)
    tangent, cotangent = rng.normal(size=(6, 8)), rng.normal(size=(12, 14, 3))
    step = 2.0**-14  # truncation of order step^2 / 2, and the float32 rows of the stepped sets round by 6e-8 / step
    rows = gaussians.to_rows().astype(np.float64)
    # float32 holds means, scales and angles up to 16 to 2^-20; steps of 2^-14 times a tangent in multiples of 2^-5
    # end on such numbers, so that the central difference is taken between the sets it means.
    rows, tangent = np.round(rows * 2**19) / 2**19, np.round(tangent * 32) / 32
    base, up, down = (Gaussians.from_rows((rows + sign * step * tangent).astype(np.float32)) for sign in (0, 1, -1))
    steady = (squared_distances(up, region) <= CUTOFF**2) == (squared_distances(down, region) <= CUTOFF**2)
    steady = steady.all(axis=0)  # a pixel that enters or leaves a footprint has no derivative
    assert steady.mean() > 0.9
    central = (reference.render(up, region) - reference.render(down, region)) / (2 * step)
    found = reference.jvp(base, region, tangent=tangent)
    # Third derivatives of these smooth Gaussians stay below 1e3, so the truncation below 1e3 step^2 / 6.
    np.testing.assert_allclose(found[steady], central[steady], atol=1e-5 * np.abs(central).max())
    # The gradient is the adjoint of the same map: equal inner products, to float64 rounding.
    gradient = reference.vjp(base, region, cotangent=cotangent)
    assert (found * cotangent).sum() == pytest.approx((gradient * tangent).sum(), rel=1e-9)


# ---- identities ----


@given(seeds, families, st.sampled_from([1, 3, 4]), st.integers(1, 150), st.integers(1, 150))
@few
def test_vjp_is_the_adjoint_of_jvp(gaussians_of, seed, family, bands, height, width):
    gaussians = gaussians_of(seed, 30, family=family, bands=bands, shape=(height, width))
    engine, rng = operators(gaussians, at_origin(height, width)), np.random.default_rng(seed)
    tangent = rng.normal(size=(30, 5 + bands)).astype(np.float32)
    cotangent = rng.normal(size=(height, width, bands)).astype(np.float32)
    change, gradient = engine.jvp(tangent).astype(np.float64), engine.vjp(cotangent).astype(np.float64)
    left, right = (change * cotangent).sum(), (gradient * tangent).sum()
    # float32 maps: each rounds by about 1e-6 of its norm, and the same weights enter both.
    bound = np.linalg.norm(change) * np.linalg.norm(cotangent) + np.linalg.norm(gradient) * np.linalg.norm(tangent)
    assert abs(left - right) <= 1e-5 * bound


@given(seeds, families, st.floats(-3, 3))
@few
def test_the_image_is_linear_in_the_colors(gaussians_of, seed, family, factor):
    gaussians = gaussians_of(seed, 20, family=family, shape=(40, 50))
    engine, rng = operators(gaussians, at_origin(40, 50)), np.random.default_rng(seed)
    a, b = (rng.normal(size=(20, 3)).astype(np.float32) for _ in range(2))
    mixed = engine.render(colors=(a + np.float32(factor) * b).astype(np.float32))
    parts = engine.render(colors=a).astype(np.float64) + factor * engine.render(colors=b)
    # 20 float32 sums of terms up to 4 (|color| < 5, |factor| <= 3): below 20 * 2^-24 * 20.
    np.testing.assert_allclose(mixed, parts, atol=2e-5)
    np.testing.assert_array_equal(engine.render(colors=gaussians.colors), engine.render())


@given(seeds, st.integers(1, 8), st.integers(0, 20), st.integers(0, 20))
@few
def test_no_gaussians_make_a_black_image_without_gradients(seed, bands, height, width):
    region, empty = at_origin(height, width), Gaussians.empty(bands=bands)
    for sets in (empty, [empty, empty]):
        engine = operators(sets, region)
        assert engine.render().shape == (height, width, bands)
        assert (engine.render() == 0).all()
        assert (engine.jvp(np.zeros((0, 5 + bands), np.float32)) == 0).all()
        assert engine.vjp(np.ones((height, width, bands), np.float32)).shape == (0, 5 + bands)


def test_gaussians_that_miss_the_region_leave_it_black_and_get_zero_gradients(gaussians_of):
    gaussians, region = gaussians_of(0, 10, family="ordinary", shape=(20, 20)), at_origin(30, 30, y0=500)
    engine = operators(gaussians, region)
    assert (engine.render() == 0).all()
    assert (engine.vjp(np.ones((30, 30, 3), np.float32)) == np.zeros((10, 8))).all()


# ---- planes ----


@given(seeds, st.integers(1, 9), st.integers(1, 30), st.integers(1, 40))
@few
def test_planes_are_the_image_with_columns_of_zeros_on_both_sides(seed, bands, height, width):
    image = np.random.default_rng(seed).normal(size=(height, width, bands)).astype(np.float32)
    planes = to_planes(image)
    np.testing.assert_array_equal(to_image(planes), image)
    assert planes.shape == (bands, height, width + 2 * LANES)
    assert not planes[:, :, :LANES].any()
    assert not planes[:, :, -LANES:].any()


@given(seeds, families, st.sampled_from([1, 3]), st.sampled_from(["none", "holes", "any"]))
@few
def test_drawing_with_target_and_weight_is_the_plain_formula(gaussians_of, seed, family, bands, kind):
    gaussians, rng = gaussians_of(seed, 20, family=family, bands=bands, shape=(70, 45)), np.random.default_rng(seed)
    engine, target = operators(gaussians, at_origin(70, 45)), rng.normal(size=(70, 45, bands)).astype(np.float32)
    weight = {"holes": rng.random((70, 45)) < 0.7, "any": rng.random((70, 45))}.get(kind)
    plane = None if weight is None else to_planes(weight[..., None].astype(np.float32))[0]
    known = 1 if weight is None else weight[..., None].astype(np.float32)
    planes = np.full_like(engine.new_planes(bands), np.nan)
    image = engine.render()
    # Float32 products and differences, contracted or not.
    found = engine.draw(planes, target=to_planes(target), weight=plane)
    np.testing.assert_allclose(to_image(planes), known * (image - target), atol=1e-6 * np.abs(image - target).max())
    # Rows of 45 squares are summed in float32: a few times 6e-8.
    assert found == pytest.approx((known * (image - target).astype(np.float64) ** 2).sum(), rel=1e-6)
    engine.draw(planes, weight=plane)
    np.testing.assert_allclose(to_image(planes), known * image, atol=1e-6 * np.abs(image).max(initial=0))
    step = rng.normal(size=(20, 5 + bands))
    engine.draw_change(planes, step)
    change = to_image(planes).copy()
    engine.draw_change(planes, step, weight=plane)
    np.testing.assert_allclose(to_image(planes), known * change, atol=1e-6 * np.abs(change).max(initial=0))


@given(seeds, families)
@few
def test_what_lies_outside_the_region_stays_black_in_the_spare_columns(gaussians_of, seed, family):
    # The optimisers read whole planes: what a strip draws beyond the edge must not stay there.
    gaussians, rng = gaussians_of(seed, 20, family=family, shape=(30, 33)), np.random.default_rng(seed)
    engine = operators(gaussians, at_origin(20, 23, y0=5, x0=5))
    planes = np.full_like(engine.new_planes(3), np.nan)
    for fill in (
        lambda: engine.draw(planes),
        lambda: engine.draw(planes, target=to_planes(rng.random((20, 23, 3)).astype(np.float32))),
        lambda: engine.draw_change(planes, rng.normal(size=(20, 8))),
    ):
        fill()
        assert not planes[:, :, :LANES].any()
        assert not planes[:, :, -LANES:].any()
        assert np.isfinite(planes).all()


@pytest.mark.parametrize("bands", [MOST_PLANES + 1, 2 * MOST_PLANES + 3])
def test_more_bands_than_are_drawn_at_once_are_drawn_as_each_alone(gaussians_of, bands):
    gaussians, region = gaussians_of(7, 25, bands=bands, shape=(40, 37)), at_origin(40, 37)
    rng, engine = np.random.default_rng(0), operators(gaussians, region)
    step, cotangent = rng.normal(size=(25, 5 + bands)), rng.normal(size=(40, 37, bands)).astype(np.float32)
    target, weight = to_planes(cotangent), to_planes(rng.random((40, 37, 1)).astype(np.float32))[0]
    image, residual, change = (engine.new_planes(bands) for _ in range(3))
    engine.draw(image)
    loss = engine.draw(residual, target=target, weight=weight)
    engine.draw_change(change, step, weight=weight)
    moments = engine.gather(target)
    losses, shared = 0.0, np.zeros((25, 5))
    for band in range(bands):
        alone = operators(replace(gaussians, colors=gaussians.colors[:, [band]]), region)
        one = alone.new_planes(1)
        alone.draw(one)
        np.testing.assert_array_equal(image[[band]], one)
        losses += alone.draw(one, target=target[[band]], weight=weight)
        np.testing.assert_array_equal(residual[[band]], one)
        alone.draw_change(one, step[:, [0, 1, 2, 3, 4, 5 + band]], weight=weight)
        np.testing.assert_array_equal(change[[band]], one)
        part = alone.gather(target[[band]])
        np.testing.assert_array_equal(moments[:, 5 + band], part[:, 5])
        shared += part[:, :5]
    assert loss == pytest.approx(losses, rel=1e-6)  # float32 sums over rows
    # Bands are added up in float32 before lanes are.
    np.testing.assert_allclose(moments[:, :5], shared, atol=1e-5 * np.abs(shared).max())


# ---- whitened coordinates ----


@given(seeds, families, st.sampled_from([1, 3]), st.integers(1, 150), st.integers(1, 150))
@few
def test_gather_is_the_adjoint_of_draw_change(gaussians_of, seed, family, bands, height, width):
    gaussians = gaussians_of(seed, 30, family=family, bands=bands, shape=(height, width))
    engine, rng = operators(gaussians, at_origin(height, width)), np.random.default_rng(seed)
    step, cotangent = rng.normal(size=(30, 5 + bands)), rng.normal(size=(height, width, bands)).astype(np.float32)
    planes = engine.new_planes(bands)
    engine.draw_change(planes, step)
    change, gradient = to_image(planes).astype(np.float64), engine.gather(to_planes(cotangent))
    # float32 maps: each rounds by about 1e-6 of its norm, and the same weights enter both.
    bound = np.linalg.norm(change) * np.linalg.norm(cotangent) + np.linalg.norm(gradient) * np.linalg.norm(step)
    assert abs((change * cotangent).sum() - (gradient * step).sum()) <= 1e-5 * bound


@given(seeds, families, st.floats(0.3, 1))
@few
def test_narrowed_footprints_give_the_same_image_within_them_and_stay_adjoint(gaussians_of, seed, family, share):
    gaussians, region = gaussians_of(seed, 12, bands=2, family=family, shape=(70, 60)), at_origin(70, 60)
    whole, rng = operators(gaussians, region), np.random.default_rng(seed)
    narrow = whole.narrowed(share)
    step, cotangent = rng.normal(size=(12, 7)), rng.normal(size=(70, 60, 2)).astype(np.float32)
    planes = narrow.new_planes(2)
    narrow.draw_change(planes, step)
    change, gradient = to_image(planes).astype(np.float64), narrow.gather(to_planes(cotangent))
    bound = np.linalg.norm(change) * np.linalg.norm(cotangent) + np.linalg.norm(gradient) * np.linalg.norm(step)
    assert abs((change * cotangent).sum() - (gradient * step).sum()) <= 1e-5 * bound
    # Pixels that every Gaussian either reaches within the share of its radius or not at all.
    distances = squared_distances(gaussians, region) / CUTOFF**2
    same = ((distances < share**2 - BOUNDARY) | (distances > 1 + BOUNDARY)).all(axis=0)
    # Strips begin elsewhere, so offsets round otherwise.
    assert_close(narrow.render()[same], whole.render()[same])
    everything = whole.narrowed(1.0)
    np.testing.assert_array_equal(everything.render(), whole.render())


@pytest.mark.parametrize("family", ["ordinary", "huge", "tiny"])
@pytest.mark.parametrize("seed", range(3))
def test_draw_change_is_the_finite_difference_of_a_small_step(gaussians_of, seed, family):
    gaussians, region = gaussians_of(seed, 8, family=family, shape=(14, 15)), at_origin(14, 15)
    step = np.random.default_rng(seed).uniform(-1, 1, (8, 8))
    size = 2.0**-7

    def moved(factor):
        rows = gaussians.to_rows()
        rows[:, 5:] += (factor * step[:, 5:]).astype(np.float32)
        limits = np.full((8, 2), 1e4, np.float32)
        host._retract(rows, factor * step, -limits, limits, 1e-3, 1e3)
        return Gaussians.from_rows(rows)

    up, down, engine = moved(size), moved(-size), operators(gaussians, region)
    steady = (squared_distances(up, region) <= CUTOFF**2) == (squared_distances(down, region) <= CUTOFF**2)
    steady = steady.all(axis=0) & decided(gaussians, region)  # pixels that enter or leave have no derivative
    assert steady.mean() > 0.3
    central = (reference.render(up, region) - reference.render(down, region)) / (2 * size)
    planes = engine.new_planes(3)
    engine.draw_change(planes, step)
    # Third derivatives of exp(-(u^2 + v^2) / 2), with u and v growing at a rate of up to 2, are below 60: size^2 / 6 of
    # them is left. Float32 means below 16 px round by 5e-7 px of scales of 0.3 px and more: 2e-6 / size.
    np.testing.assert_allclose(to_image(planes)[steady], central[steady], atol=1e-3 * np.abs(central).max())


@given(seeds, families, st.sampled_from([1, 3]))
@few
def test_rows_and_whitened_coordinates_are_two_names_for_one_change(gaussians_of, seed, family, bands):
    gaussians, rng = gaussians_of(seed, 20, family=family, bands=bands, shape=(40, 50)), np.random.default_rng(seed)
    engine = operators(gaussians, at_origin(40, 50))
    tangent = rng.normal(size=(20, 5 + bands)).astype(np.float32)
    first, second = gaussians.scales.astype(np.float64).T
    cos, sin = np.cos(gaussians.rotations, dtype=np.float64), np.sin(gaussians.rotations, dtype=np.float64)
    step = tangent.astype(np.float64)
    step[:, 0] = (cos * tangent[:, 0] + sin * tangent[:, 1]) / first
    step[:, 1] = (cos * tangent[:, 1] - sin * tangent[:, 0]) / second
    step[:, 2] /= first
    step[:, 3] /= second
    # Turned by a small angle, v grows by -u s1 / s2 of it and u by v s2 / s1: -(u du + v dv) is u v (s1/s2 - s2/s1).
    step[:, 4] *= first / second - second / first
    planes = engine.new_planes(bands)
    engine.draw_change(planes, step)
    change = engine.jvp(tangent)
    np.testing.assert_allclose(change, to_image(planes), atol=1e-5 * np.abs(change).max())  # float32 tangents
    cotangent = to_planes(rng.normal(size=(40, 50, bands)).astype(np.float32))
    whitened = engine.gather(cotangent)
    rows = engine.to_rows_gradient(whitened).astype(np.float64)
    # One linear functional in two coordinates.
    scale = np.linalg.norm(whitened) * np.linalg.norm(step)
    assert abs((rows * tangent).sum() - (whitened * step).sum()) <= 1e-5 * scale  # float32 rows


def test_gaussians_that_miss_the_region_have_no_part_in_a_step(gaussians_of):
    near, far = gaussians_of(1, 6, family="ordinary", shape=(20, 20)), gaussians_of(2, 6, family="ordinary")
    far = replace(far, means=far.means + 500)
    both, region = concatenate([far, near], origin=(0, 0)), at_origin(20, 20)
    rng = np.random.default_rng(0)
    step, cotangent = rng.normal(size=(12, 8)), to_planes(rng.normal(size=(20, 20, 3)).astype(np.float32))
    one, other = operators(both, region), operators(near, region)
    planes, alone = one.new_planes(3), one.new_planes(3)
    one.draw_change(planes, step)
    other.draw_change(alone, step[6:])
    np.testing.assert_array_equal(planes, alone)
    np.testing.assert_array_equal(one.gather(cotangent), np.concatenate([np.zeros((6, 8)), other.gather(cotangent)]))


# ---- bit for bit ----


@pytest.fixture
def threads():
    """Set the number of threads for one test."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core: nothing to compare")
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bits_do_not_depend_on_the_number_of_threads(gaussians_of, threads, family):
    gaussians, region = gaussians_of(3, 300, family=family, shape=(300, 170)), at_origin(300, 170)
    rng = np.random.default_rng(0)
    tangent = rng.normal(size=(300, 8)).astype(np.float32)
    cotangent = rng.normal(size=(300, 170, 3)).astype(np.float32)
    results = []
    for count in (1, 2):
        threads(count)
        engine = operators(gaussians, region)
        results.append((engine.render(), engine.jvp(tangent), engine.vjp(cotangent)))
    for one, two in zip(*results, strict=True):
        assert one.any()
        np.testing.assert_array_equal(one, two)


@st.composite
def crops(draw, height, width):
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Region(y0=y0, y1=draw(st.integers(y0 + 1, height)), x0=x0, x1=draw(st.integers(x0 + 1, width)))


@given(st.data(), seeds, families, st.sampled_from([1, 0.25, 0.5, 2, 0.3, 1 / 7]))
@settings(deadline=None, max_examples=150)
def test_a_region_is_the_same_crop_of_the_whole_bit_for_bit(gaussians_of, data, seed, family, scale):
    sets = [gaussians_of(seed + i, 25, family=family, shape=(90, 110), origin=(0, 110 * i)) for i in range(2)]
    whole = at_origin(math.ceil(90 * scale), math.ceil(220 * scale))
    region = data.draw(crops(*whole.shape))
    image = render(sets, whole, scale=scale)
    np.testing.assert_array_equal(render(sets, region, scale=scale), image[region.slices])


def test_a_region_is_the_crop_when_zoomed_means_have_more_bits_than_float64_keeps(gaussians_of):
    # Means near 0 times 1/3 fill all 53 bits; subtracting a region's origin before splitting off the whole pixel
    # would round them, differently for each region, and now and then to another float32.
    rng = np.random.default_rng(0)
    count = 200_000
    rows = np.tile(gaussians_of(1, 1, family="tiny", bands=1).to_rows(), (count, 1))
    rows[:, :2] = rng.random((count, 2))
    gaussians = Gaussians.from_rows(rows)
    near, wide = at_origin(3, 3), at_origin(2000, 3, y0=-1990)
    fractions = [operators(gaussians, region, scale=1 / 3).packed.fractions for region in (near, wide)]
    np.testing.assert_array_equal(*fractions)


# ---- zoom ----


@given(seeds, families, st.sampled_from([0.1, 0.25, 0.5, 2.0, 5.0]))
@few
def test_resampling_keeps_each_gaussians_integral(gaussians_of, seed, family, scale):
    gaussians = gaussians_of(seed, 20, family=family, origin=(30, 40))
    means, seen = resample(gaussians, scale)
    before = gaussians.scales.astype(np.float64).prod(axis=1, keepdims=True) * gaussians.colors * scale**2
    after = seen.scales.astype(np.float64).prod(axis=1, keepdims=True) * seen.colors
    np.testing.assert_allclose(after, before, rtol=1e-6)  # float32 scales and colors: three roundings of 6e-8
    np.testing.assert_allclose(means, (gaussians.means.astype(np.float64) + [30, 40]) * scale, rtol=1e-12)
    assert (seen.scales >= gaussians.scales * scale * (1 - 1e-6)).all()


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_a_smaller_image_is_close_to_box_averages_of_the_whole(gaussians_of, scale):
    base = gaussians_of(2, 60, family="ordinary", shape=(96, 128))
    gaussians = Gaussians(
        means=base.means, scales=np.maximum(base.scales, 1), rotations=base.rotations, colors=base.colors
    )
    whole, size = render(gaussians, at_origin(96, 128)).astype(np.float64), round(1 / scale)
    averaged = whole.reshape(96 // size, size, 128 // size, size, 3).mean(axis=(1, 3))
    small = render(gaussians, at_origin(96 // size, 128 // size), scale=scale)
    # A Gaussian convolved with a box is replaced by the Gaussian of the same variance. At a scale of 1 px and boxes
    # of 4 px they differ by up to 5 % of the peak; on top of it, tails below 1/255 are cut at other places.
    assert np.sqrt(np.mean((small - averaged) ** 2)) < 0.01 * np.abs(averaged).max()
    assert np.abs(small - averaged).max() < 0.06 * np.abs(averaged).max()


def test_a_larger_image_samples_the_same_function_at_more_points(gaussians_of):
    gaussians = gaussians_of(2, 30, shape=(30, 40))
    region = at_origin(90, 120)
    threefold = render(gaussians, region, scale=3)
    # Output pixel 3 i + 1 has its centre where scene pixel i has its own, and 3 is odd, so both grids share them. The
    # three times larger numbers round differently at a footprint's edge, where weights are 1/255.
    clear = decided(gaussians, at_origin(30, 40))
    assert_close(threefold[1::3, 1::3][clear], reference.render(gaussians, at_origin(30, 40))[clear], 2 * TOLERANCE)


def test_drawing_several_sets_is_drawing_them_joined(gaussians_of):
    sets = [gaussians_of(i, 20, shape=(32, 32), origin=(32 * i, 0)) for i in range(3)]
    region, joined = at_origin(96, 32), concatenate(sets, origin=(0, 0))
    # Joining rounds the means to float32 at the common origin, 4e-6 px below 96 px.
    clear = decided(sets, region)
    assert_close(render(joined, region)[clear], render(sets, region)[clear].astype(np.float64))


@pytest.mark.parametrize("engine", ["opengl", ""])
def test_an_engine_that_is_not_there_is_refused(engine):
    with pytest.raises(ConfigError):
        resolve_engine(engine)
