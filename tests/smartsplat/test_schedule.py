"""The order of a fit's passes, and that they end with as many Gaussians as were asked for."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smartsplat.config import LEVEL_FACTORS, FitConfig
from smartsplat.schedule import FitPass, InsertPass, schedule, start_count

few = settings(deadline=None, max_examples=150)
levels = st.sampled_from(LEVEL_FACTORS)
counts = st.integers(1, 10**7)
base_scales = st.floats(0.2, 50)
configs = st.builds(
    FitConfig,
    start_fraction=st.floats(1e-6, 1),
    color_sweeps=st.integers(0, 3),
    color_iterations=st.integers(1, 9),
    stages=st.integers(0, 9),
    stage_pairs=st.integers(1, 50),
    stage_factor=levels,
    insert_scale=st.floats(0.1, 3),
    replacements=st.integers(0, 3),
    replaced_share=st.floats(0, 0.9),
    coarse_factors=st.lists(levels, max_size=3).map(tuple),
    coarse_pairs=st.integers(0, 20),
    final_pairs=st.lists(st.integers(1, 90), max_size=3).map(tuple),
    ssim_pairs=st.integers(0, 20),
    ssim_gain=st.floats(0, 9),
    adam_steps=st.integers(0, 40),
)
NOTHING = {"color_sweeps": 0, "stages": 0, "replacements": 0, "final_pairs": (), "adam_steps": 0, "coarse_factors": ()}


def replacements(config, base_scale):
    """Return how often Gaussians are replaced: twice as often where they are large."""
    return config.replacements * (2 if base_scale > 3 else 1)


def inserts(passes):
    return [each for each in passes if isinstance(each, InsertPass)]


def fits(passes):
    return [each for each in passes if isinstance(each, FitPass)]


# ---- how many Gaussians ----


@given(configs, counts)
@few
def test_the_start_is_at_least_one_and_at_most_all_and_all_without_stages(config, count):
    start = start_count(config, count)
    assert 1 <= start <= count
    if config.stages == 0:
        assert start == count
    else:
        # The nearest whole number to the share.
        assert start == 1 or abs(start - config.start_fraction * count) <= 0.5 + 1e-9 * count


@given(configs, counts, base_scales)
@example(FitConfig(stages=9, start_fraction=0.5), 3, 1.0)  # fewer left than stages
@example(FitConfig(stages=3, start_fraction=1.0), 100, 1.0)  # none left
@few
def test_insertions_grow_to_exactly_the_count(config, count, base_scale):
    totals = [start_count(config, count)] + [
        each.count for each in inserts(schedule(config, count=count, base_scale=base_scale))
    ]
    assert totals == sorted(totals)
    assert totals[-1] == count
    assert len(totals) == 1 + config.stages + replacements(config, base_scale)


@given(st.integers(1, 9), counts, st.floats(0.01, 1))
@few
def test_stages_insert_equal_parts(stages, count, fraction):
    config = FitConfig(stages=stages, start_fraction=fraction, replacements=0)
    totals = [start_count(config, count)] + [
        each.count for each in inserts(schedule(config, count=count, base_scale=2.0))
    ]
    parts = [after - before for before, after in itertools.pairwise(totals)]
    assert max(parts) - min(parts) <= 1
    assert parts == sorted(parts, reverse=True)


@given(configs, counts, base_scales)
@few
def test_only_replacements_drop_gaussians(config, count, base_scale):
    passes = inserts(schedule(config, count=count, base_scale=base_scale))
    grown, replaced = passes[: config.stages], passes[config.stages :]
    assert all(each.dropped_share == 0 for each in grown)
    assert all((each.dropped_share, each.count, each.factor) == (config.replaced_share, count, 1) for each in replaced)


# ---- in which order ----


@given(configs, counts, base_scales)
@few
def test_passes_are_colors_then_stages_then_replacements_then_sweeps_then_adam(config, count, base_scale):
    def kind(each):
        if isinstance(each, InsertPass):
            return "replace" if each.dropped_share else "insert"
        if each.least_scale:
            return "coarse"
        return "colors" if each.color_iterations else "adam" if each.adam_steps else "shapes"

    found = [kind(each) for each in schedule(config, count=count, base_scale=base_scale)]
    coarse = ["coarse"] * len(config.coarse_factors) * (config.coarse_pairs > 0)
    again = "replace" if config.replaced_share else "insert"
    assert found == (
        ["colors"] * config.color_sweeps
        + [*coarse, "shapes", "insert"] * config.stages
        + ["shapes", again] * replacements(config, base_scale)
        + [*coarse, "shapes"] * len(config.final_pairs)
        + ["adam"] * (config.adam_steps > 0)
    )


@given(configs, counts, base_scales)
@few
def test_every_pass_does_what_it_was_asked_for_and_none_does_nothing(config, count, base_scale):
    passes = schedule(config, count=count, base_scale=base_scale)
    for each in fits(passes):
        assert each.color_iterations + each.pairs + each.adam_steps > 0
    assert sum(each.color_iterations for each in fits(passes)) == config.color_sweeps * config.color_iterations
    coarse = len(config.coarse_factors) * config.coarse_pairs
    assert sum(each.pairs for each in fits(passes)) == (
        config.stages * (coarse + config.stage_pairs)
        + replacements(config, base_scale) * config.stage_pairs
        + len(config.final_pairs) * coarse
        + sum(config.final_pairs)
    )
    assert sum(each.adam_steps for each in fits(passes)) == config.adam_steps


@given(configs, counts, base_scales)
@few
def test_at_a_coarse_level_only_gaussians_as_large_as_its_pixels_move(config, count, base_scale):
    config = FitConfig(
        coarse_factors=config.coarse_factors, coarse_pairs=config.coarse_pairs, final_pairs=config.final_pairs
    )
    held = [each for each in fits(schedule(config, count=count, base_scale=base_scale)) if each.least_scale]
    assert all(each.least_scale == each.factor for each in held)
    sweeps = config.stages + len(config.final_pairs)
    assert [each.factor for each in held] == list(config.coarse_factors) * sweeps * (config.coarse_pairs > 0)


@given(configs, counts, base_scales)
@few
def test_after_the_last_insertion_all_gaussians_are_refined_on_the_image_itself(config, count, base_scale):
    after = schedule(config, count=count, base_scale=base_scale)
    while any(isinstance(each, InsertPass) for each in after):
        after = after[1:]
    final = [each for each in after if each.least_scale == 0 and not each.color_iterations]
    assert {each.factor for each in final} <= {1}
    assert [each.pairs for each in final if each.pairs] == list(config.final_pairs)


@given(configs, counts, base_scales)
@few
def test_similarity_is_raised_in_the_last_sweep_of_levenberg_marquardt_alone(config, count, base_scale):
    passes = fits(schedule(config, count=count, base_scale=base_scale))
    similar = [index for index, each in enumerate(passes) if each.ssim_pairs]
    last = [index for index, each in enumerate(passes) if each.pairs and not each.least_scale][-1:]
    assert similar == (last if config.final_pairs and config.ssim_pairs else [])
    assert all(passes[index].ssim_gain == config.ssim_gain for index in similar)


@given(configs, counts, base_scales)
@few
def test_before_every_insertion_comes_a_visit_at_its_level_even_if_it_changes_nothing(config, count, base_scale):
    for changed in (config, dataclasses.replace(config, stage_pairs=0, color_sweeps=0)):
        passes = schedule(changed, count=count, base_scale=base_scale)
        assert not any(isinstance(each, InsertPass) for each in passes[:1])
        for before, each in itertools.pairwise(passes):
            if isinstance(each, InsertPass):
                assert isinstance(before, FitPass)
                assert before.factor == each.factor


# ---- at which level ----


def stage_levels(config, *, count, base_scale):
    """Return the levels of the stages' passes, and those of the color solves before."""
    passes = schedule(config, count=count, base_scale=base_scale)
    moving = [each for each in fits(passes) if each.least_scale == 0][: config.color_sweeps + config.stages]
    levels = [each.factor for each in moving]
    return levels[config.color_sweeps :], levels[: config.color_sweeps]


@given(configs, counts, base_scales)
@few
def test_each_stage_works_at_the_coarsest_level_that_tells_its_gaussians_apart(config, count, base_scale):
    at_stages, at_colors = stage_levels(config, count=count, base_scale=base_scale)
    now = [start_count(config, count)]
    now += [each.count for each in inserts(schedule(config, count=count, base_scale=base_scale))]
    for stage, factor in enumerate(at_stages):
        # Fewer are larger: each has its share of the area.
        scale = base_scale * math.sqrt(count / now[stage])
        coarser = [other for other in LEVEL_FACTORS if factor < other <= config.stage_factor]
        assert factor <= config.stage_factor
        assert factor == 1 or scale >= 0.4 * factor**2
        assert all(scale < 0.4 * other**2 for other in coarser)
    assert at_stages == sorted(at_stages, reverse=True)
    if at_stages:
        assert set(at_colors) <= {at_stages[0]}


@given(counts, levels)
@few
def test_a_dense_scenes_passes_see_the_image_itself(count, factor):
    config = FitConfig(stage_factor=factor, start_fraction=1.0)
    assert {each.factor for each in schedule(config, count=count, base_scale=0.79)} == {1}


@given(configs, counts, base_scales)
@few
def test_what_is_inserted_has_the_asked_scale_but_at_least_a_pixels_of_its_level(config, count, base_scale):
    passes = inserts(schedule(config, count=count, base_scale=base_scale))
    at_stages, _ = stage_levels(config, count=count, base_scale=base_scale)
    assert [each.factor for each in passes] == at_stages + [1] * replacements(config, base_scale)
    for each in passes:
        assert each.scale == max(float(each.factor), config.insert_scale * base_scale)


# ---- the edges of the settings ----


def test_settings_that_ask_for_nothing_give_no_passes():
    assert schedule(FitConfig(**NOTHING), count=100, base_scale=2.0) == []


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_without_stages_all_are_sampled_and_none_is_inserted(count):
    config = FitConfig(stages=0, replacements=0)
    assert start_count(config, count) == count
    assert inserts(schedule(config, count=count, base_scale=2.0)) == []


@pytest.mark.parametrize("stages", [1, 2, 6])
def test_a_single_gaussian_is_sampled_and_kept(stages):
    config = FitConfig(stages=stages, replacements=1)
    assert start_count(config, 1) == 1
    assert [each.count for each in inserts(schedule(config, count=1, base_scale=2.0))] == [1] * (stages + 1)


def test_adam_alone_is_the_published_recipe():
    config = FitConfig(**(NOTHING | {"adam_steps": 500}))
    assert schedule(config, count=100, base_scale=2.0) == [FitPass(adam_steps=500)]


def test_equal_settings_give_equal_passes():
    one, two = (schedule(FitConfig(), count=1234, base_scale=3.0) for _ in range(2))
    assert one == two


@given(configs, counts, base_scales)
@few
def test_each_pass_says_what_it_does(config, count, base_scale):
    for each in schedule(config, count=count, base_scale=base_scale):
        text = str(each)
        if isinstance(each, InsertPass):
            assert str(each.count) in text
        else:
            pairs = each.pairs + each.ssim_pairs
            assert ("colors" in text) == (pairs == 0 and each.adam_steps == 0)
            assert (f"{pairs} pairs" in text) == (pairs > 0)
            assert (f"{each.adam_steps} Adam steps" in text) == (each.adam_steps > 0)
            assert (f"1/{each.factor}" in text) == (each.factor > 1)
