"""The fit never does harm, keeps to its tiles, and finds the best colors; the same bits every time."""

from __future__ import annotations

import math
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smartsplat.config import FitConfig
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region, TileGrid, TileId, block_grid
from smartsplat.optim import Target, fit_tiles
from smartsplat.optim.colors import solve_colors
from smartsplat.optim.host import HOST
from smartsplat.optim.levels import coarsen, level_region
from smartsplat.optim.loss import MixedLoss
from smartsplat.render import operators, render
from smartsplat.render.cpu import to_planes
from smartsplat.schedule import FitPass

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
GRID = TileGrid(height=60, width=52, tile=24, halo=4)  # edge tiles of 12 and 4 px
CONFIG = FitConfig()
MAX_SCALE = GRID.reach / 3.4
BOTH = FitPass(color_iterations=3, pairs=12)


def kept(gaussians, core):
    """Return Gaussians such as sampling makes: means in the core, scales in range."""
    last = np.nextafter(np.float32(core.shape), np.float32(0))
    return replace(
        gaussians,
        means=np.clip(gaussians.means, 0, last),
        scales=np.clip(gaussians.scales, CONFIG.min_scale, MAX_SCALE),
        origin=core.origin,
    )


def own_of(gaussians_of, seed, core, count, **how):
    return kept(gaussians_of(seed, count, shape=core.shape, **how), core)


def target_at(block, pixels, weight=None, *, factor=1):
    """Return the target of a block of tiles (for factor 1: of a tile), cut from the whole image."""
    blocks = block_grid(GRID, factor)
    core, padded = blocks.core(block), blocks.padded(block)
    values = pixels[padded.slices].astype(np.float32)
    weight = None if weight is None else weight[padded.slices].astype(np.float32)
    if factor > 1:
        values, weight = coarsen(values, weight, factor=factor)
    return Target(
        pixels=values,
        weight=weight,
        core=level_region(core, factor),
        padded=level_region(padded, factor),
        factor=factor,
    )


def image_like(kind, bands, rng):
    """Return a scene-sized image: noise, flat, black, mostly at the end of the range, or varying in one band only."""
    shape = (GRID.height, GRID.width, bands)
    if kind == "noise":
        return rng.random(shape)
    if kind == "saturated":
        return np.minimum(1, 4 * rng.random(shape))
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


def fit_sets(target, own, cores, *, frozen=(), work=BOTH, config=CONFIG):
    done = fit_tiles(target, own, cores=cores, frozen=frozen, work=work, config=config, max_scale=MAX_SCALE)
    return done.gaussians, done.report


def fit(target, own, *, frozen=(), work=BOTH, config=CONFIG):
    """Fit one tile."""
    (fitted,), report = fit_sets(target, [own], [target.core], frozen=frozen, work=work, config=config)
    return fitted, report


def image_of(target, sets):
    sets = [one for one in sets if len(one)]
    if not sets:
        return np.zeros(target.pixels.shape)
    return render(sets, target.padded, scale=1 / target.factor).astype(np.float64)


def known(target):
    return np.ones(target.padded.shape) if target.weight is None else target.weight.astype(np.float64)


def loss_of(target, *sets):
    """Return the weighted mean squared error over the padded region, written out in float64."""
    weight = known(target)
    total = (weight[..., None] * (image_of(target, sets) - target.pixels) ** 2).sum()
    return total / (weight.sum() * target.pixels.shape[2]) if weight.any() else 0.0


def mixed_loss_of(target, *sets, share=CONFIG.ssim_share):
    plane = known(target)[..., None].astype(np.float32)
    # What lies where there is no data is seen by SSIM's windows, so the fit takes it for 0.
    pixels = np.where(plane > 0, target.pixels, np.float32(0))
    loss = MixedLoss(to_planes(pixels), to_planes(plane)[0], share)
    return loss.evaluate(to_planes(image_of(target, sets).astype(np.float32)))[0]


def assert_same_bits(a, b):
    assert a.origin == b.origin
    np.testing.assert_array_equal(a.to_rows(), b.to_rows())


def assert_within_bounds(fitted, core):
    assert fitted.is_finite()
    assert fitted.origin == core.origin
    assert (fitted.means >= 0).all()
    assert (fitted.means < np.float32(core.shape)).all()
    assert (fitted.scales >= np.float32(CONFIG.min_scale)).all()
    # A level's largest scale is rounded to float32 there, and back: one rounding more than that of the bound.
    assert (fitted.scales <= np.nextafter(np.float32(MAX_SCALE), np.float32(np.inf))).all()


# ---- what every fit keeps to ----

tiles = st.builds(TileId, st.integers(0, GRID.rows - 1), st.integers(0, GRID.cols - 1))
pictures = st.sampled_from(["noise", "flat", "black", "saturated", "one band"])
data_kinds = st.sampled_from(["all", "holes", "no data"])
families = st.sampled_from(["ordinary", "tiny", "huge", "needles", "mixed"])
SIMILAR = FitPass(pairs=6, ssim_pairs=6, ssim_gain=2.0)
square_works = st.sampled_from(
    [FitPass(color_iterations=4), FitPass(pairs=1), FitPass(pairs=9, damping=0.05), BOTH, SIMILAR]
)


@given(
    seeds,
    tiles,
    st.sampled_from([0, 1, 2, 9, 30]),
    families,
    st.sampled_from([1, 3]),
    pictures,
    data_kinds,
    square_works,
)
@example(0, TileId(2, 2), 1, "ordinary", 3, "black", "all", BOTH)
@example(1, TileId(0, 0), 1, "tiny", 1, "flat", "no data", BOTH)
@example(2, TileId(1, 1), 0, "tiny", 3, "noise", "all", BOTH)
@settings(deadline=None, max_examples=100)
def test_a_fit_is_never_worse_than_its_start_and_stays_in_its_tile(
    gaussians_of, seed, tile, count, family, bands, picture, data, work
):
    rng = np.random.default_rng(seed)
    target = target_at(tile, image_like(picture, bands, rng), weight_like(data, rng))
    own = own_of(gaussians_of, seed, target.core, count, family=family, bands=bands)
    frozen = [
        gaussians_of(seed + 1 + i, 5, bands=bands, shape=GRID.core(other).shape, origin=GRID.core(other).origin)
        for i, other in enumerate(GRID.neighbors(tile)[:2])
    ]
    fitted, report = fit(target, own, frozen=frozen, work=work)
    assert report.loss_after <= report.loss_before
    # The report is of what was returned: float32 residuals of values up to 10 round by 1e-6.
    assert report.loss_before == pytest.approx(loss_of(target, own, *frozen), rel=1e-4, abs=1e-9)
    assert report.loss_after == pytest.approx(loss_of(target, fitted, *frozen), rel=1e-4, abs=1e-9)
    assert (len(fitted), fitted.bands, report.count) == (count, bands, count)
    assert_within_bounds(fitted, target.core)


@given(seeds, st.sampled_from([1, 2, 4]), st.data(), families, pictures, data_kinds, st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_many_sets_at_any_level_are_never_worse_and_each_stays_in_its_own_core(
    gaussians_of, seed, factor, data, family, picture, kind, count
):
    blocks = block_grid(GRID, factor)
    block = data.draw(st.sampled_from(list(blocks)))
    rng = np.random.default_rng(seed)
    target = target_at(block, image_like(picture, 3, rng), weight_like(kind, rng), factor=factor)
    cores = [GRID.core(tile) for tile in GRID.within(blocks.core(block))]
    own = [own_of(gaussians_of, seed + i, core, count + i % 2, family=family) for i, core in enumerate(cores)]
    fitted, report = fit_sets(target, own, cores)
    assert report.loss_after <= report.loss_before
    # The level's means are float32 as well. So a pixel at the very edge of a footprint may be in it or not: 1/255 of a
    # color in one of the few pixels of the smallest targets.
    assert report.loss_before == pytest.approx(loss_of(target, *own), rel=1e-3, abs=1e-8)
    assert report.loss_after == pytest.approx(loss_of(target, *fitted), rel=1e-3, abs=1e-8)
    assert [len(one) for one in fitted] == [len(one) for one in own]
    for one, core in zip(fitted, cores, strict=True):
        assert_within_bounds(one, core)


def test_gaussians_that_shrink_at_a_level_stop_where_the_scene_has_its_least_scale(gaussians_of):
    # Lone bright pixels of the level draw Gaussians as narrow as they may get. The report must be of what comes back.
    core = block_grid(GRID, 2).core(TileId(0, 0))
    corners = np.array([(y, x) for y in (8, 24) for x in (8, 24)])
    pixels = np.zeros((GRID.height, GRID.width, 3))
    for y, x in corners:
        pixels[y : y + 2, x : x + 2] = 1
    own = own_of(gaussians_of, 0, core, 4)
    own = replace(own, means=corners + 1.1, scales=np.full((4, 2), 0.8), colors=np.ones((4, 3)))
    target = target_at(TileId(0, 0), pixels, factor=2)
    (fitted,), report = fit_sets(target, [own], [core], work=FitPass(pairs=40))
    assert_within_bounds(fitted, core)
    assert report.scale_low == np.float32(CONFIG.min_scale)
    assert report.loss_after == pytest.approx(loss_of(target, fitted), rel=1e-3)  # the edges of footprints, as above


@given(seeds, tiles, st.floats(-(2.0**100), 2.0**100, width=32), square_works)
@few
def test_pixels_without_data_do_not_change_a_bit_of_the_fit(gaussians_of, seed, tile, garbage, work):
    rng = np.random.default_rng(seed)
    pixels, weight = image_like("noise", 3, rng), weight_like("holes", rng)
    spoiled = np.where(weight[..., None] == 0, garbage * rng.normal(size=pixels.shape), pixels)
    own = own_of(gaussians_of, seed, GRID.core(tile), 9)
    (a, report), (b, spoiled_report) = (
        fit(target_at(tile, each, weight), own, work=work) for each in (pixels, spoiled)
    )
    assert_same_bits(a, b)
    assert report == spoiled_report


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixels_without_data_do_not_change_a_bit_at_any_level(gaussians_of, factor):
    rng = np.random.default_rng(factor)
    pixels, weight = image_like("noise", 3, rng), weight_like("holes", rng)
    spoiled = np.where(weight[..., None] == 0, 1e9 * rng.normal(size=pixels.shape), pixels)
    core = block_grid(GRID, factor).core(TileId(0, 0))
    own = own_of(gaussians_of, factor, core, 20)
    fits = [fit_sets(target_at(TileId(0, 0), each, weight, factor=factor), [own], [core]) for each in (pixels, spoiled)]
    assert_same_bits(fits[0][0][0], fits[1][0][0])
    assert fits[0][1] == fits[1][1]
    assert fits[0][1].loss_after < fits[0][1].loss_before


@pytest.mark.parametrize("family", ["ordinary", "huge"])
def test_solving_again_what_is_solved_is_never_worse_by_a_single_bit(gaussians_of, family):
    # Nothing is left to gain, so float32 rounding decides, for better or worse; the start must win when it is better.
    for seed in range(12):
        target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(seed)))
        own = own_of(gaussians_of, seed, target.core, 12, family=family)
        for _ in range(4):
            own, report = fit(target, own, work=FitPass(color_iterations=25))
            assert report.loss_after <= report.loss_before


@pytest.mark.parametrize("work", [BOTH, FitPass(adam_steps=5)])
def test_without_any_data_nothing_moves(gaussians_of, work):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(0)), np.zeros((60, 52)))
    own = own_of(gaussians_of, 0, target.core, 9, family="ordinary")
    fitted, report = fit(target, own, work=work)
    assert_same_bits(fitted, own)
    assert (report.loss_before, report.loss_after, report.weight, report.squared_error) == (0, 0, 0, 0)


def test_a_pass_without_work_changes_no_bit(gaussians_of):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(0)))
    own = own_of(gaussians_of, 0, target.core, 9, family="ordinary")
    fitted, report = fit(target, own, work=FitPass())
    assert_same_bits(fitted, own)
    assert report.loss_after == report.loss_before > 0


def test_neighbors_that_explain_the_image_leave_nothing_to_do(gaussians_of):
    tile = TileId(1, 1)
    others = [gaussians_of(i, 12, shape=GRID.core(n).shape, origin=GRID.core(n).origin) for i, n in enumerate(GRID)]
    target = target_at(tile, render(others, GRID.bounds))
    own = own_of(gaussians_of, 5, target.core, 12)
    dark = replace(own, colors=np.zeros_like(own.colors))
    fitted, report = fit(target, dark, frozen=others)
    assert report.loss_before == 0  # region == crop, bit for bit, so the rest is exactly zero
    assert report.loss_after == 0
    assert_same_bits(fitted, dark)
    # With colors, they are taken away again: thirty iterations leave 1e-4 of the squared error or less.
    _, report = fit(target, own, frozen=others, work=FitPass(color_iterations=30))
    assert report.loss_after < 1e-4 * report.loss_before


@pytest.mark.parametrize("picture", ["black", "flat", "saturated"])
def test_a_tile_of_one_color_is_matched_and_stays_finite(gaussians_of, picture):
    color = {"black": 0.0, "flat": 0.4, "saturated": 1.0}[picture]
    target = target_at(TileId(0, 1), np.full((60, 52, 3), color))
    own = own_of(gaussians_of, 3, target.core, 30, family="ordinary")
    for start in (own, replace(own, colors=np.zeros_like(own.colors))):
        fitted, report = fit(target, start, work=FitPass(color_iterations=30, pairs=60))
        assert fitted.is_finite()
        if picture == "black":  # met by black Gaussians: what float32 leaves
            assert report.loss_after <= 1e-6 * report.loss_before
        else:  # thirty bells make a plane but for ripples: 0.3 % of its energy
            assert report.squared_error < 0.01 * report.weight * color**2


def test_a_fit_of_an_image_made_of_gaussians_gains_twenty_decibels(gaussians_of):
    # The start is the truth displaced by 1 px, scaled by up to 30 %, turned by up to 0.3 rad and grey: what a fit
    # that moves shapes (and not only colors) has to undo. 20 dB is a hundredth of the squared error; it finds 50.
    core, rng = GRID.core(TileId(0, 0)), np.random.default_rng(2)
    truth = own_of(gaussians_of, 8, core, 12, family="ordinary")
    truth = replace(truth, scales=np.clip(truth.scales, 1.5, MAX_SCALE))
    target = target_at(TileId(0, 0), render(truth, GRID.bounds))
    start = replace(
        truth,
        means=truth.means + rng.normal(0, 1, (12, 2)),
        scales=truth.scales * np.exp(rng.uniform(-0.3, 0.3, (12, 2))),
        rotations=truth.rotations + rng.uniform(-0.3, 0.3, 12),
        colors=np.full((12, 3), 0.5),
    )
    colors_only, _ = fit(target, kept(start, core), work=FitPass(color_iterations=50))
    fitted, report = fit(target, kept(start, core), work=FitPass(color_iterations=5, pairs=150))
    assert 10 * math.log10(report.loss_before / report.loss_after) > 20
    assert 10 * math.log10(loss_of(target, colors_only) / loss_of(target, fitted)) > 20


def test_the_bits_do_not_depend_on_the_number_of_threads_nor_on_the_run(gaussians_of):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core: nothing to compare")
    whole = Region(y0=0, y1=200, x0=0, x1=90)
    pixels = np.random.default_rng(0).random((200, 90, 3)).astype(np.float32)
    target = Target(pixels=pixels, weight=None, core=whole, padded=whole)
    own = own_of(gaussians_of, 0, whole, 150)
    results = []
    for count in (1, 2, 2):  # the fixture of this folder puts back what was before
        numba.set_num_threads(count)
        results.append(fit(target, own, work=FitPass(color_iterations=3, pairs=15, adam_steps=3)))
    assert results[0][1].loss_after < 0.9 * results[0][1].loss_before
    for fitted, report in results[1:]:
        assert_same_bits(fitted, results[0][0])
        assert report == results[0][1]


# ---- Gaussians that are held ----


@given(seeds, st.sampled_from([1, 2, 4]), st.floats(0.4, 9), st.sampled_from([BOTH, FitPass(adam_steps=2)]))
@few
def test_gaussians_below_the_least_scale_keep_every_bit(gaussians_of, seed, factor, least, work):
    rng = np.random.default_rng(seed)
    blocks = block_grid(GRID, factor)
    target = target_at(TileId(0, 0), image_like("noise", 3, rng), weight_like("holes", rng), factor=factor)
    cores = [GRID.core(tile) for tile in GRID.within(blocks.core(TileId(0, 0)))]
    own = [own_of(gaussians_of, seed + i, core, 12) for i, core in enumerate(cores)]
    fitted, report = fit_sets(target, own, cores, work=replace(work, least_scale=least))
    for before, after in zip(own, fitted, strict=True):
        still = before.scales.max(axis=1) < least
        assert_same_bits(after.select(still), before.select(still))
    if not work.adam_steps:
        assert report.loss_after <= report.loss_before
        assert report.loss_after == pytest.approx(loss_of(target, *fitted), rel=1e-3)  # edges, as above
    assert report.count == sum(len(one) for one in own)


def test_held_gaussians_count_as_part_of_the_image(gaussians_of):
    # The large ones are the truth already, given the small ones: with those seen they have nothing to gain.
    core = GRID.core(TileId(0, 0))
    own = own_of(gaussians_of, 2, core, 20, family="ordinary")
    own = replace(own, scales=np.where(np.arange(20)[:, None] % 2 == 0, 1.0, np.maximum(own.scales, 3)))
    target = target_at(TileId(0, 0), render(own, GRID.bounds))
    brighter = replace(own, colors=np.where(np.arange(20)[:, None] % 2 == 0, own.colors, own.colors + 0.3))
    fitted, report = fit(target, brighter, work=FitPass(color_iterations=60, least_scale=2.0))
    # Sixty iterations for thirty colors: what float32 leaves.
    assert report.loss_after < 1e-5 * report.loss_before
    np.testing.assert_array_equal(fitted.scales, own.scales)


def test_if_all_are_held_nothing_changes_and_the_report_is_still_right(gaussians_of):
    target = target_at(TileId(1, 0), image_like("noise", 3, np.random.default_rng(1)))
    own = own_of(gaussians_of, 1, target.core, 10)
    fitted, report = fit(target, own, work=replace(BOTH, least_scale=1e9))
    assert_same_bits(fitted, own)
    assert report.loss_after == report.loss_before == pytest.approx(loss_of(target, own), rel=1e-4)  # float32 sums
    assert report.count == 10


# ---- Adam ----


@given(seeds, tiles, st.sampled_from([0, 1, 12]), families, pictures, data_kinds, st.booleans(), st.floats(0, 1))
@example(1, TileId(0, 1), 1, "ordinary", "noise", "holes", False, 1.0)
@few
def test_adam_is_never_worse_by_its_own_loss_and_stays_in_its_tile(
    gaussians_of, seed, tile, count, family, picture, data, relative, share
):
    rng = np.random.default_rng(seed)
    target = target_at(tile, image_like(picture, 3, rng), weight_like(data, rng))
    own = own_of(gaussians_of, seed, target.core, count, family=family)
    config = FitConfig(relative_rates=relative, ssim_share=share)
    fitted, report = fit(target, own, work=FitPass(adam_steps=4), config=config)
    assert_within_bounds(fitted, target.core)
    assert report.loss_after == pytest.approx(loss_of(target, fitted), rel=1e-4, abs=1e-9)  # float32 residuals
    if data != "no data":
        before, after = (mixed_loss_of(target, one, share=share) for one in (own, fitted))
        assert after <= before  # the same image, loss and arithmetic as inside: not a bit worse


@given(seeds, st.sampled_from(["ordinary", "needles", "mixed"]), st.floats(0.1, 4))
@few
def test_steps_far_too_large_do_no_harm_to_what_came_before(gaussians_of, seed, family, rate):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(seed)))
    own = own_of(gaussians_of, seed, target.core, 12, family=family)
    wild = replace(CONFIG, mean_rate=5 * rate, scale_rate=rate, rotation_rate=rate, color_rate=rate)
    first, _ = fit(target, own, work=FitPass(pairs=8))
    both, _ = fit(target, own, work=FitPass(pairs=8, adam_steps=4), config=wild)
    assert mixed_loss_of(target, both) <= mixed_loss_of(target, first)


def test_adam_goes_on_where_the_others_end(gaussians_of):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(7)))
    own = own_of(gaussians_of, 7, target.core, 20, family="ordinary")
    first, _ = fit(target, own, work=BOTH)
    both, _ = fit(target, own, work=replace(BOTH, adam_steps=20))
    alone, _ = fit(target, own, work=FitPass(adam_steps=20))
    assert mixed_loss_of(target, both) < mixed_loss_of(target, first)
    assert mixed_loss_of(target, both) < mixed_loss_of(target, alone) < mixed_loss_of(target, own)


# ---- similarity ----


def similarity_of(target, *sets):
    """Return SSIM, pixels without data black."""
    black = replace(target, pixels=(target.pixels * known(target)[..., None]).astype(np.float32))
    return 1 - mixed_loss_of(black, *sets, share=1.0)


@given(seeds, tiles, st.sampled_from(["noise", "saturated"]), st.sampled_from(["all", "holes"]), st.floats(0.1, 20))
@few
def test_similarity_rises_by_what_its_price_in_error_is_worth(gaussians_of, seed, tile, picture, data, gain):
    rng = np.random.default_rng(seed)
    target = target_at(tile, image_like(picture, 3, rng), weight_like(data, rng))
    own = own_of(gaussians_of, seed, target.core, 15, family="ordinary")
    plain, before = fit(target, own, work=FitPass(pairs=8))
    similar, after = fit(target, own, work=FitPass(pairs=8, ssim_pairs=8, ssim_gain=gain))
    assert after.loss_after <= after.loss_before
    assert_within_bounds(similar, target.core)
    # 1e-4: float32 statistics of windows, added up over the image.
    risen = similarity_of(target, similar) - similarity_of(target, plain)
    assert math.log(after.loss_after / before.loss_after) <= gain * risen + 1e-4


def test_similarity_really_rises_and_more_if_it_is_worth_more(gaussians_of):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(3)))
    own = own_of(gaussians_of, 3, target.core, 30, family="ordinary")
    similarities = [
        similarity_of(target, fit(target, own, work=FitPass(pairs=20, ssim_pairs=20, ssim_gain=gain))[0])
        for gain in (0.0, 0.5, 2.0)
    ]
    assert similarities == sorted(similarities)
    assert similarities[2] > similarities[0] + 0.01


@pytest.mark.parametrize("work", [FitPass(pairs=20, ssim_pairs=20, ssim_gain=4.0), FitPass(adam_steps=30)])
def test_similarity_is_that_of_the_whole_image_neighbors_included(gaussians_of, work):
    # A neighbour that paints texture over the tile: the difference that is left to fit looks nothing like the image.
    tile, other = TileId(0, 0), TileId(0, 1)
    rng = np.random.default_rng(5)
    target = target_at(tile, image_like("noise", 1, rng))
    own = own_of(gaussians_of, 5, target.core, 25, family="ordinary", bands=1)
    over = replace(
        gaussians_of(6, 40, bands=1, shape=GRID.core(tile).shape, family="ordinary"), origin=GRID.core(other).origin
    )
    over = replace(over, means=over.means - (0, GRID.core(other).x0 - 4))
    start, _ = fit(target, own, frozen=[over], work=FitPass(color_iterations=10))
    fitted, _ = fit(target, start, frozen=[over], work=work, config=replace(CONFIG, ssim_share=1.0))
    assert similarity_of(target, fitted, over) > similarity_of(target, start, over) + 0.02


# ---- the report ----


@given(seeds, st.sampled_from([1, 2, 4]), data_kinds)
@few
def test_the_cores_errors_and_weights_are_those_of_the_image_of_all_gaussians(gaussians_of, seed, factor, data):
    rng = np.random.default_rng(seed)
    target = target_at(TileId(0, 0), image_like("noise", 3, rng), weight_like(data, rng), factor=factor)
    core = block_grid(GRID, factor).core(TileId(0, 0))
    own = own_of(gaussians_of, seed, core, 6, family="ordinary")
    (fitted,), report = fit_sets(target, [own], [core])
    inner = target.core.slices_within(target.padded)
    residual = (image_of(target, [fitted]) - target.pixels)[inner]
    weight = known(target)[inner]
    # float32 residuals near 1 round by 6e-8, their squares by twice that; a level's means too, so that a pixel at the
    # edge of a footprint may be in it or not.
    expected = (weight[..., None] * residual**2).sum()
    assert report.squared_error == pytest.approx(expected, rel=1e-5 if factor == 1 else 1e-3)
    assert report.weight == pytest.approx(3 * weight.sum(), rel=1e-12)  # float64 sums


@given(seeds, st.sampled_from([0, 1, 15]), st.sampled_from([1, 2]))
@few
def test_the_report_holds_the_ranges_of_the_colors_and_scales(gaussians_of, seed, count, factor):
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(seed)), factor=factor)
    core = block_grid(GRID, factor).core(TileId(0, 0))
    (fitted,), report = fit_sets(target, [own_of(gaussians_of, seed, core, count)], [core])
    assert report.color_low == min(0, fitted.colors.min(initial=0))
    assert report.color_high == max(1, fitted.colors.max(initial=1))
    assert report.scale_low == (fitted.scales.min() if count else 0)
    assert report.scale_high == fitted.scales.max(initial=0)


def test_no_gaussians_at_all_leave_the_images_own_error():
    target = target_at(TileId(0, 0), image_like("noise", 3, np.random.default_rng(3)))
    fitted, report = fit(target, Gaussians.empty(bands=3))
    assert len(fitted) == 0
    assert report.loss_before == report.loss_after == pytest.approx((target.pixels.astype(float) ** 2).mean(), rel=1e-5)
    assert (report.count, report.scale_low, report.scale_high) == (0, 0, 0)


# ---- colors ----


def dense_colors(own, target):
    """Return the least-squares colors by numpy, from the dense matrix of weights."""
    alone = [render(replace(own, colors=np.eye(len(own))[:, [i]]), target.padded)[..., 0] for i in range(len(own))]
    root = np.sqrt(known(target))
    matrix = np.stack([(one * root).ravel() for one in alone], axis=1).astype(np.float64)
    return np.linalg.lstsq(matrix, (target.pixels * root[..., None]).reshape(-1, target.pixels.shape[2]), rcond=None)[0]


def colors_after(own, target, *, iterations):
    weight = None if target.weight is None else to_planes(target.weight[..., None])[0]
    at, goal = operators(own, target.padded), to_planes(target.pixels)
    colors = solve_colors(HOST, at, goal, weight=weight, start=own.colors, scales=own.scales, iterations=iterations)
    return replace(own, colors=colors)


@given(seeds, st.booleans())
@settings(deadline=None, max_examples=15)
def test_solved_colors_reach_the_dense_least_squares_optimum(gaussians_of, seed, holes):
    rng = np.random.default_rng(seed)
    target = target_at(TileId(0, 0), image_like("noise", 3, rng), weight_like("holes" if holes else "all", rng))
    own = own_of(gaussians_of, seed, target.core, 10, family="ordinary")
    best = loss_of(target, replace(own, colors=dense_colors(own, target)))
    # float32 maps stop the iteration near 1e-6 of the gradient; the loss is flat at its optimum.
    assert loss_of(target, colors_after(own, target, iterations=60)) <= best * (1 + 1e-4)


@given(seeds, st.integers(0, 12), families)
@few
def test_more_iterations_never_make_the_colors_worse(gaussians_of, seed, iterations, family):
    target = target_at(TileId(1, 0), image_like("noise", 3, np.random.default_rng(seed)))
    own = own_of(gaussians_of, seed, target.core, 12, family=family)
    solved = colors_after(own, target, iterations=iterations)
    assert solved.is_finite()
    # Conjugate gradients lower the error at each step; float32 rounding may undo 1e-5 of it at the end.
    assert loss_of(target, solved) <= loss_of(target, own) * (1 + 1e-5)
