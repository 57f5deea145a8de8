"""Counts, scales and shares: sums are exact, limits hold, proportions follow the weights."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.budget import (
    SamplingPlan,
    TileStats,
    base_scale,
    gaussian_count,
    plan_sampling,
    share_counts,
)
from smartsplat.config import SamplingConfig
from smartsplat.errors import BudgetError, ConfigError

MIXTURE = {"variational_fraction": 0.7, "gradient_share": 0.9}

sizes = st.integers(1, 10**6)
fractions = st.floats(0, 1)


@st.composite
def stats_lists(draw, max_pixels=300):
    """Return tiles some of which have no data, or no structure, or nearly all of it."""
    tiles = []
    for pixels in draw(st.lists(st.integers(0, max_pixels), min_size=1, max_size=30)):
        gradient, variance = draw(st.sampled_from([0.0, 1e-12, 0.3, 1.0])), draw(st.sampled_from([0.0, 1e-9, 0.2]))
        shares = draw(st.tuples(fractions, fractions)) if pixels else (0, 0)
        tiles.append(
            TileStats(
                pixels=pixels,
                gradient_sum=pixels * gradient * shares[0],
                gradient_max=gradient if pixels else 0.0,
                variance_sum=pixels * variance * shares[1],
                variance_max=variance if pixels else 0.0,
            )
        )
    return tiles


def calm(pixels, weight=0.0):
    return TileStats(pixels=pixels, gradient_sum=weight, gradient_max=1.0, variance_sum=weight, variance_max=1.0)


@settings(deadline=None)
@given(height=sizes, width=sizes, numerator=st.integers(1, 10**6))
def test_count_is_the_largest_that_keeps_the_nominal_ratio(height, width, numerator):
    ratio = numerator / 64  # exact in binary, so that the check is one in integers
    if 3 * height * width * 64 < 7 * numerator:
        with pytest.raises(BudgetError):
            gaussian_count(height, width, ratio)
        return
    count = gaussian_count(height, width, ratio)
    assert 7 * numerator * count <= 3 * height * width * 64 < 7 * numerator * (count + 1)


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf, -math.inf])
def test_an_impossible_ratio_is_a_config_error(ratio):
    with pytest.raises(ConfigError):
        gaussian_count(100, 100, ratio)


def test_a_ratio_that_leaves_no_gaussian_is_refused_with_the_way_out():
    with pytest.raises(BudgetError, match=r"at most 42\.85"):
        gaussian_count(10, 10, 43)
    assert gaussian_count(10, 10, 42.85) == 1


@settings(deadline=None)
@given(height=sizes, width=sizes, count=st.integers(1, 10**8))
def test_discs_of_three_base_scales_cover_the_area_of_the_scene(height, width, count):
    radius = 3 * base_scale(height, width, count)
    assert count * math.pi * radius**2 == pytest.approx(height * width, rel=1e-12)


def test_base_scale_of_no_gaussians_is_a_config_error():
    with pytest.raises(ConfigError):
        base_scale(10, 10, 0)


@settings(deadline=None)
@given(stats=stats_lists())
def test_adding_stats_is_the_same_in_any_order_and_nothing_is_neutral(stats):
    forward, backward = sum(stats, TileStats()), sum(reversed(stats), TileStats())
    assert forward.pixels == backward.pixels
    assert (forward.gradient_max, forward.variance_max) == (backward.gradient_max, backward.variance_max)
    assert forward.gradient_sum == pytest.approx(backward.gradient_sum, rel=1e-12)
    assert forward + TileStats() == forward


@settings(deadline=None)
@given(stats=stats_lists(), fill=fractions, f=fractions, g=fractions)
def test_shares_add_up_exactly_and_never_exceed_the_valid_pixels(stats, fill, f, g):
    pixels = [tile.pixels for tile in stats]
    count = round(fill * sum(pixels))
    counts = share_counts(stats, count=count, variational_fraction=f, gradient_share=g)
    assert sum(counts) == count
    assert all(0 <= share <= cap for share, cap in zip(counts, pixels, strict=True))
    assert counts == share_counts(stats, count=count, variational_fraction=f, gradient_share=g)


@settings(deadline=None)
@given(stats=stats_lists(max_pixels=10**7), fill=st.floats(0, 0.01), f=fractions, g=fractions)
def test_shares_stay_within_one_of_their_exact_part_while_no_tile_is_full(stats, fill, f, g):
    total = sum(stats, TileStats())
    count = round(fill * total.pixels)
    counts = share_counts(stats, count=count, variational_fraction=f, gradient_share=g)
    full = any(share == tile.pixels > 0 for share, tile in zip(counts, stats, strict=True))
    if count == 0 or full:
        return
    weights = [
        max(
            g * tile.gradient_sum / max(total.gradient_max, 1e-30)
            + (1 - g) * tile.variance_sum / max(total.variance_max, 1e-30),
            1e-8 * tile.pixels,
        )
        for tile in stats
    ]
    for tile, weight, share in zip(stats, weights, counts, strict=True):
        part = count * (f * weight / sum(weights) + (1 - f) * tile.pixels / total.pixels)
        # Parts are rounded to 40 bits of the largest before they are apportioned: 3e8 of them, 30 times, stay below .1.
        assert abs(share - part) < 1.1


def test_uniform_part_follows_the_area_and_variational_part_the_weight():
    stats = [calm(1000, weight=300.0), calm(3000, weight=100.0)]
    assert share_counts(stats, count=400, variational_fraction=0.0, gradient_share=0.9) == [100, 300]
    assert share_counts(stats, count=400, variational_fraction=1.0, gradient_share=0.9) == [300, 100]
    assert share_counts(stats, count=400, variational_fraction=0.5, gradient_share=0.9) == [200, 200]


def test_weights_are_normalised_by_the_maxima_of_the_scene():
    faint = TileStats(pixels=1000, gradient_sum=10.0, gradient_max=0.1)
    strong = TileStats(pixels=1000, gradient_sum=30.0, gradient_max=1.0)
    counts = share_counts([faint, strong], count=100, variational_fraction=1.0, gradient_share=1.0)
    assert counts == [25, 75]


def test_a_blank_tile_is_still_covered():
    counts = share_counts([calm(1000, weight=500.0), calm(1000)], count=100, **MIXTURE)
    assert counts == [85, 15]


def test_a_flat_scene_is_shared_by_area():
    stats = [TileStats(pixels=1000), TileStats(pixels=500), TileStats()]
    for fraction, share in itertools.product((0.0, 0.7, 1.0), repeat=2):
        assert share_counts(stats, count=30, variational_fraction=fraction, gradient_share=share) == [20, 10, 0]


def test_what_a_full_tile_cannot_take_goes_to_the_others_by_their_shares():
    stats = [calm(10, weight=1000.0), calm(1000, weight=10.0), calm(2000, weight=20.0)]
    assert share_counts(stats, count=100, **MIXTURE) == [10, 30, 60]


def test_every_valid_pixel_can_be_taken_but_not_one_more():
    stats = [calm(10, weight=3.0), calm(0), calm(7)]
    assert share_counts(stats, count=17, **MIXTURE) == [10, 0, 7]
    with pytest.raises(BudgetError, match="18 Gaussians for 17 pixels"):
        share_counts(stats, count=18, **MIXTURE)
    assert share_counts([], count=0, **MIXTURE) == []


def test_ties_go_to_the_earlier_tiles():
    assert share_counts([calm(9)] * 4, count=6, **MIXTURE) == [2, 2, 1, 1]


def test_many_tiles_add_up():
    rng = np.random.default_rng(0)
    stats = [calm(int(pixels), weight=float(pixels) * 0.1) for pixels in rng.integers(0, 512**2, 20_000)]
    assert sum(share_counts(stats, count=10**8, **MIXTURE)) == 10**8


def test_plan_holds_the_shares_and_travels():
    stats = [TileStats(pixels=60, gradient_sum=6.0, gradient_max=0.5), TileStats(pixels=40, variance_max=0.25)]
    plan = plan_sampling(stats, height=10, width=10, count=20, config=SamplingConfig())
    assert plan.counts == tuple(share_counts(stats, count=20, **MIXTURE))
    assert plan == SamplingPlan(
        count=20, base_scale=base_scale(10, 10, 20), counts=plan.counts, gradient_max=0.5, variance_max=0.25
    )
    assert pickle.loads(pickle.dumps(plan)) == plan
