"""Where Gaussians are added: at peaks of the residual, and as many a tile as the whole scene's best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.optim.insertion import (
    SCORE_BINS,
    find_candidates,
    least_effect,
    score_histogram,
    share_top,
    spread_evenly,
    visibility,
)
from smartsplat.render import render

few = settings(deadline=None, max_examples=50)
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(0.7, 4)
BIN = 1.06023  # ratio of the scores at the two ends of a bin: 10^(26 / 1024)


def at_origin(height, width):
    return Region(y0=0, y1=height, x0=0, x1=width)


def core_within(padded, rng):
    """Return a part of `padded` that is not empty."""
    y0, x0 = (int(rng.integers(low, high)) for low, high in ((padded.y0, padded.y1), (padded.x0, padded.x1)))
    return Region(y0=y0, y1=int(rng.integers(y0, padded.y1)) + 1, x0=x0, x1=int(rng.integers(x0, padded.x1)) + 1)


def smoothed_squares(residual, weight, scale):
    weight = np.ones(residual.shape[:2]) if weight is None else weight.astype(np.float64)
    return gaussian_filter((weight[..., None] * residual.astype(np.float64) ** 2).sum(axis=2), scale, truncate=3.0)


# ---- candidates ----


@given(seeds, scales, st.integers(1, 4), st.sampled_from(["none", "holes", "any"]))
@few
def test_candidates_are_the_local_maxima_within_the_core_and_come_best_first(seed, scale, bands, kind):
    rng = np.random.default_rng(seed)
    padded = at_origin(*rng.integers(5, 40, 2).tolist()).shift(7, 300)
    core = core_within(padded, rng)
    residual = rng.normal(size=(*padded.shape, bands)).astype(np.float32)
    weight = {"holes": rng.random(padded.shape) < 0.6, "any": rng.random(padded.shape)}.get(kind)
    weight = None if weight is None else weight.astype(np.float32)
    found = find_candidates(residual, weight, core=core, padded=padded, scale=scale)
    assert found.gaussians.origin == core.origin
    assert len(found.gaussians) == len(found.scores)
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores > 0).all()
    score, radius = smoothed_squares(residual, weight, scale), int(2 * scale)
    at = (found.gaussians.means + np.add(core.origin, -0.5) - padded.origin).astype(int)
    assert {tuple(one) for one in at.tolist()} == brute_force_peaks(score, core, padded, radius)
    np.testing.assert_allclose(found.scores, score[tuple(at.T)], rtol=1e-5)  # float32 images


def brute_force_peaks(score, core, padded, radius):
    """Return the pixels of the core that no pixel within `radius` along either axis exceeds."""
    peaks = set()
    for y in range(core.y0 - padded.y0, core.y1 - padded.y0):
        for x in range(core.x0 - padded.x0, core.x1 - padded.x0):
            around = score[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            if score[y, x] == around.max() > 1e-16:  # where nothing is left over there is no peak
                peaks.add((y, x))
    return peaks


@given(seeds, scales, st.sampled_from(["noise", "flat", "steps", "checks", "one level"]))
@few
def test_no_two_candidates_are_within_reach_of_the_search_even_where_nothing_is_higher_than_the_rest(
    seed, scale, picture
):
    rng = np.random.default_rng(seed)
    whole = at_origin(*rng.integers(1, 50, 2).tolist())
    y, x = np.mgrid[: whole.height, : whole.width]
    residual = {
        "noise": rng.normal(size=whole.shape),
        "flat": np.full(whole.shape, 0.3),
        "steps": 0.1 + y // 12 % 2,
        "checks": 1.0 * ((y + x) % 2),
        "one level": 1e-3 * (rng.random(whole.shape) < 0.5),
    }[picture].astype(np.float32)[..., None]
    found = find_candidates(residual, None, core=whole, padded=whole, scale=scale)
    apart = np.abs(found.gaussians.means[:, None] - found.gaussians.means).max(axis=2)
    assert (apart[~np.eye(len(apart), dtype=bool)] > int(2 * scale)).all()
    assert len(found.scores) > 0 or not residual.any()
    again = find_candidates(residual, None, core=whole, padded=whole, scale=scale)
    np.testing.assert_array_equal(again.gaussians.to_rows(), found.gaussians.to_rows())


def test_a_plateau_gets_candidates_all_over():
    whole = at_origin(120, 120)
    residual = np.full((120, 120, 1), 0.3, np.float32)
    found = find_candidates(residual, None, core=whole, padded=whole, scale=1.5)
    counts, _, _ = np.histogram2d(*found.gaussians.means.T, bins=4, range=((0, 120), (0, 120)))
    assert counts.min() > 5  # 900 px a cell, a search of 7 x 7 px: 18 of them on average
    np.testing.assert_allclose(found.gaussians.colors, 0.3, rtol=1e-6)  # float32


@given(seeds, scales)
@few
def test_candidates_are_round_of_the_asked_scale_and_lie_on_pixels_of_the_core(seed, scale):
    rng = np.random.default_rng(seed)
    padded = at_origin(30, 35)
    core = core_within(padded, rng)
    found = find_candidates(rng.random((30, 35, 3)).astype(np.float32), None, core=core, padded=padded, scale=scale)
    means = found.gaussians.means
    assert (means > 0).all()
    assert (means < core.shape).all()
    np.testing.assert_array_equal(means % 1, 0.5)
    assert (found.gaussians.scales == np.float32(scale)).all()
    assert (found.gaussians.rotations == 0).all()


@given(seeds, st.floats(-1, 1), st.floats(-1, 1))
@few
def test_what_two_far_lone_gaussians_leave_is_found_at_their_means_with_the_brighter_first(seed, first, second):
    rng = np.random.default_rng(seed)
    colors = np.array([[0.3 + abs(first)], [0.2 * abs(second) + 0.05]]) * [[1, -1, 0.5]]
    means = np.array([[12.5, 11.5], [30.5, 44.5]]) + rng.integers(-3, 4, (2, 2))
    missing = Gaussians(means=means, scales=np.full((2, 2), 2.0), rotations=np.zeros(2), colors=colors)
    whole = at_origin(44, 60)
    found = find_candidates(render(missing, whole), None, core=whole, padded=whole, scale=2.0)
    np.testing.assert_array_equal(found.gaussians.means[:2], means)
    # A Gaussian smoothed by one of its own width is half as high: but for the cut tails, 1 %.
    np.testing.assert_allclose(found.gaussians.colors[:2], colors / 2, atol=0.01 * np.abs(colors).max())


@pytest.mark.parametrize("scale", [0.8, 1.5, 3.0])
def test_only_what_lies_in_the_core_is_proposed_though_all_around_it_counts(scale):
    residual = np.zeros((40, 40, 1), np.float32)
    residual[20, 19] = 1
    whole = at_origin(40, 40)
    left, right = (Region(y0=0, y1=40, x0=x0, x1=x0 + 20) for x0 in (0, 20))
    assert find_candidates(residual, None, core=left, padded=whole, scale=scale).gaussians.means.tolist() == [
        [20.5, 19.5]
    ]
    # Right of the border the score is as high as nowhere else in that core, but it is no peak.
    assert len(find_candidates(residual, None, core=right, padded=whole, scale=scale).scores) == 0


def test_cores_side_by_side_propose_what_the_whole_does():
    rng = np.random.default_rng(0)
    residual, whole = rng.normal(size=(40, 60, 3)).astype(np.float32), at_origin(40, 60)
    cores = [Region(y0=y, y1=y + 20, x0=x, x1=x + 20) for y in (0, 20) for x in (0, 20, 40)]
    parts = [find_candidates(residual, None, core=core, padded=whole, scale=1.5) for core in cores]
    together = find_candidates(residual, None, core=whole, padded=whole, scale=1.5)

    def rows(found):
        everywhere = found.gaussians.at_origin((0, 0)).to_rows()
        return {(float(score), *row) for score, row in zip(found.scores, everywhere.tolist(), strict=True)}

    assert len(together.scores) > 10
    assert set().union(*map(rows, parts)) == rows(together)


@given(seeds, st.floats(-(2.0**60), 2.0**60, width=32))
@few
def test_pixels_without_data_do_not_change_a_bit_of_the_candidates(seed, garbage):
    rng = np.random.default_rng(seed)
    weight = (rng.random((25, 25)) < 0.6).astype(np.float32)
    residual = rng.normal(size=(25, 25, 3)).astype(np.float32)
    spoiled = np.where(weight[..., None] == 0, np.float32(garbage), residual)
    whole = at_origin(25, 25)
    a, b = (find_candidates(each, weight, core=whole, padded=whole, scale=1.2) for each in (residual, spoiled))
    np.testing.assert_array_equal(a.gaussians.to_rows(), b.gaussians.to_rows())
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize("weight", [None, 0.0])
def test_nothing_left_over_proposes_nothing(weight):
    whole = at_origin(20, 25)
    residual = np.zeros((20, 25, 3), np.float32) if weight is None else np.ones((20, 25, 3), np.float32)
    plane = None if weight is None else np.full((20, 25), weight, np.float32)
    found = find_candidates(residual, plane, core=whole, padded=whole, scale=2.0)
    assert len(found.gaussians) == len(found.scores) == 0
    assert found.gaussians.bands == 3


# ---- what an error counts for ----


@given(seeds, st.integers(1, 4), st.floats(0, 2), st.sampled_from(["none", "holes", "any"]))
@few
def test_an_error_counts_for_less_the_more_the_image_varies_around_it(seed, bands, exponent, kind):
    rng = np.random.default_rng(seed)
    pixels = rng.random((30, 40, bands)).astype(np.float32) * np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    weight = {"none": None, "holes": (rng.random((30, 40)) < 0.7), "any": rng.random((30, 40))}[kind]
    plane = None if weight is None else weight.astype(np.float32)
    share = np.ones((30, 40)) if plane is None else plane.astype(np.float64)
    mean = pixels.astype(np.float64).mean(axis=2)
    sums = [gaussian_filter(share * part, 1.5, truncate=3.0) for part in (np.ones_like(mean), mean, mean**2)]
    variance = sums[2] / sums[0] - (sums[1] / sums[0]) ** 2
    found = visibility(pixels, plane, exponent=exponent)
    np.testing.assert_allclose(found, (np.maximum(variance, 0) + 0.03**2) ** -exponent, rtol=2e-3)


def test_pixels_without_data_do_not_change_what_an_error_counts_for():
    rng = np.random.default_rng(2)
    pixels, weight = rng.random((20, 20, 2)).astype(np.float32), np.ones((20, 20), np.float32)
    weight[5:9, 3:12] = 0
    weight[12:, 12:] = 0  # more than a window
    spoiled = np.where(weight[..., None] == 0, np.float32(np.nan), pixels)
    first, second = (visibility(each, weight, exponent=0.5) for each in (pixels, spoiled))
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)


def test_candidates_are_ranked_by_their_score_times_its_importance():
    residual, whole = np.zeros((20, 40, 1), np.float32), at_origin(20, 40)
    residual[10, 8], residual[10, 30] = 2, 1
    importance = np.ones((20, 40), np.float32)
    importance[:, 20:] = 5
    plain = find_candidates(residual, None, core=whole, padded=whole, scale=1.5)
    found = find_candidates(residual, None, core=whole, padded=whole, scale=1.5, importance=importance)
    assert plain.gaussians.means.tolist() == [[10.5, 8.5], [10.5, 30.5]]
    assert found.gaussians.means.tolist() == [[10.5, 30.5], [10.5, 8.5]]
    np.testing.assert_allclose(found.scores, plain.scores[::-1] * [5, 1], rtol=1e-6)
    np.testing.assert_array_equal(found.gaussians.colors, plain.gaussians.colors[::-1])  # not of the importance


# ---- shares of the scene ----

score_lists = st.lists(st.lists(st.floats(1e-15, 1e9), max_size=12), min_size=1, max_size=6)


@given(score_lists, st.integers(0, 80))
@settings(deadline=None, max_examples=150)
def test_shares_add_up_exactly_and_no_tile_gives_more_than_it_has(lists, count):
    scores = [np.array(one, np.float32) for one in lists]
    shares = share_top([score_histogram(one) for one in scores], count=count)
    assert sum(shares) == min(count, sum(map(len, scores)))
    assert all(0 <= share <= len(one) for share, one in zip(shares, scores, strict=True))


@given(score_lists, st.integers(0, 80))
@settings(deadline=None, max_examples=150)
def test_what_is_taken_is_better_than_what_is_left_but_for_a_bins_width(lists, count):
    scores = [np.sort(np.array(one, np.float32))[::-1] for one in lists]
    shares = share_top([score_histogram(one) for one in scores], count=count)
    taken = np.concatenate([one[:share] for one, share in zip(scores, shares, strict=True)])
    left = np.concatenate([one[share:] for one, share in zip(scores, shares, strict=True)])
    if len(taken) and len(left):
        assert left.max() <= taken.min() * BIN * (1 + 1e-6)  # float32 scores
    # So the sum of what is taken is, but for that, the best there is.
    best = np.sort(np.concatenate(scores).astype(np.float64))[::-1][:count].sum()
    assert taken.sum(dtype=np.float64) >= best / BIN * (1 - 1e-6)


@given(seeds, st.integers(1, 40))
@few
def test_scores_further_apart_than_a_bin_are_shared_exactly_as_one_global_sort_would(seed, count):
    rng = np.random.default_rng(seed)
    ladder = 1e-6 * (BIN * 1.001) ** np.arange(40)
    owner = rng.integers(0, 4, 40)
    shares = share_top([score_histogram(ladder[owner == tile].astype(np.float32)) for tile in range(4)], count=count)
    assert shares == np.bincount(owner[-count:], minlength=4).tolist()


@given(score_lists)
@few
def test_no_tile_gives_fewer_when_more_are_asked_for(lists):
    histograms = [score_histogram(np.array(one, np.float32)) for one in lists]
    shares = np.array([share_top(histograms, count=count) for count in range(sum(map(len, lists)) + 2)])
    assert (np.diff(shares, axis=0) >= 0).all()
    assert shares[0].sum() == 0
    np.testing.assert_array_equal(shares[-1], list(map(len, lists)))  # more than there are: all


def test_of_equal_scores_earlier_tiles_come_first():
    same = np.full(3, 0.5, np.float32)
    assert share_top([score_histogram(same)] * 3, count=4) == [3, 1, 0]


def test_without_tiles_there_is_nothing_to_share():
    assert share_top([], count=0) == []
    assert share_top([np.zeros(SCORE_BINS, np.int64)], count=5) == [0]


def test_histograms_are_read_one_by_one_and_twice():
    class Twice:
        def __init__(self):
            self.times = 0

        def __iter__(self):
            self.times += 1
            yield from (np.array([2, 0, 1]), np.array([0, 3, 3]))

    histograms = Twice()
    assert share_top(histograms, count=6) == [3, 3]
    assert histograms.times == 2


@given(st.lists(st.floats(0, 2.0**127, width=32), max_size=50))
@few
def test_a_histogram_counts_every_score_higher_ones_first(values):
    scores = np.array(values, np.float32)
    histogram = score_histogram(scores)
    assert histogram.shape == (SCORE_BINS,)
    assert histogram.sum() == len(scores)
    bins = [int(np.flatnonzero(score_histogram(scores[[i]]))[0]) for i in range(len(scores))]
    order = np.argsort(-scores, kind="stable")
    assert (np.diff(np.array(bins, int)[order]) >= 0).all()
    np.testing.assert_array_equal(np.bincount(np.array(bins, int), minlength=SCORE_BINS), histogram)


@given(st.floats(1e-15, 1e9, width=64))
@few
def test_scores_a_bins_width_apart_are_told_apart(score):
    near, far = (score_histogram(np.array([score * ratio], np.float64)) for ratio in (1.0, BIN * 1.0001))
    assert np.flatnonzero(far)[0] < np.flatnonzero(near)[0]


# ---- what would be missed least, and what is placed for want of better ----


@given(seeds)
@few
def test_the_effect_is_the_energy_of_a_gaussians_image_but_for_a_factor(seed):
    rng = np.random.default_rng(seed)
    some = Gaussians(
        means=np.full((5, 2), 32.3),
        scales=rng.uniform(2, 6, (5, 2)),
        rotations=rng.uniform(-4, 4, 5),
        colors=rng.normal(size=(5, 3)),
    )
    whole = at_origin(64, 64)
    energies = [(render(some.select(slice(i, i + 1)), whole).astype(np.float64) ** 2).sum() for i in range(5)]
    # The integral of g^2 is pi s1 s2; the sum over pixels of these large ones, and their cut, differ by 1e-3.
    np.testing.assert_allclose(least_effect(some) * np.pi, energies, rtol=2e-3)
    order = np.random.default_rng(seed).permutation(5)
    np.testing.assert_array_equal(least_effect(some.select(order)), least_effect(some)[order])


@given(seeds, st.integers(0, 60), st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
@few
def test_what_is_spread_lies_in_the_core_has_no_color_and_is_the_same_every_time(seed, count, height, width, bands):
    core = at_origin(height, width).shift(512, 1024)
    some, again = (spread_evenly(core, count=count, scale=2.5, bands=bands, seed=(seed, 3)) for _ in range(2))
    np.testing.assert_array_equal(some.to_rows(), again.to_rows())
    assert (len(some), some.bands, some.origin) == (count, bands, core.origin)
    assert (some.means >= 0).all()
    assert (some.means < np.float32(core.shape)).all()
    assert (some.scales == 2.5).all()
    assert not some.colors.any()


def test_what_is_spread_covers_the_core_and_differs_from_tile_to_tile_and_pass_to_pass():
    core = at_origin(40, 60)
    some = spread_evenly(core, count=4000, scale=1.0, bands=1, seed=(0, 1))
    counts, _, _ = np.histogram2d(*some.means.T, bins=(4, 6), range=((0, 40), (0, 60)))
    # 167 a cell on average, with a standard deviation of 13: none of 24 cells is five of them off.
    assert abs(counts - 4000 / 24).max() < 65
    others = [(core.shift(0, 60), (0, 1)), (core.shift(40, 0), (0, 1)), (core, (0, 2)), (core, (1, 1))]
    for region, seed in others:
        other = spread_evenly(region, count=4000, scale=1.0, bands=1, seed=seed)
        assert (other.means != some.means).any(axis=1).mean() > 0.99
