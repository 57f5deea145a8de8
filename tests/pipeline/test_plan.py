"""What is planned fits what was asked for, and every refusal names a way out that works."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.settings import parse_bytes
from pipeline.plan import Resources, count_for_budget, grid_of, plan_scene, projected_memory, scene_digest
from smartsplat.config import FitConfig, SceneConfig
from smartsplat.errors import BudgetError, ConfigError
from storage.source import SourceInfo

MIB = 1 << 20


def source_of(height: int, width: int, *, bands: int = 3, dtype: str = "uint8", **changes: Any) -> SourceInfo:
    values = {"path": "/images/a.tif", "has_alpha": False, "fingerprint": "0123456789abcdef"} | changes
    return SourceInfo(height=height, width=width, bands=bands, dtype=dtype, **values)


def plan(source: SourceInfo, config: SceneConfig, *, cores: int = 4, **resources: Any):
    return plan_scene(source, config, resources=Resources(**resources), cores=cores)


sources = st.builds(
    source_of,
    st.integers(2, 3000),
    st.integers(2, 3000),
    bands=st.integers(1, 8),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
)
ratios = st.floats(1.01, 5000, allow_nan=False)
tiles = st.sampled_from([64, 100, 128, 512])


def config_of(ratio: float, tile: int) -> SceneConfig:
    return SceneConfig(nominal_ratio=ratio, tile=tile, halo=tile // 8)


# --- Counts and budgets -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(source=sources, ratio=ratios, tile=tiles)
def test_a_ratio_gives_at_most_one_gaussian_a_pixel_within_its_bytes(source, ratio, tile):
    try:
        planned = plan(source, config_of(ratio, tile))
    except BudgetError:
        return
    assert 1 <= planned.count <= source.height * source.width
    assert planned.byte_budget * ratio <= source.raw_bytes * (1 + 1e-12)  # the division rounds, as 5720 / 1.1 does
    assert (planned.byte_budget + 1) * ratio > source.raw_bytes * (1 - 1e-12)


@settings(deadline=None, max_examples=200)
@given(source=sources, ratio=ratios, factor=st.floats(1.0, 4), tile=tiles)
def test_a_higher_ratio_never_gives_more_gaussians(source, ratio, factor, tile):
    counts = []
    for each in (ratio, ratio * factor):
        try:
            counts.append(plan(source, config_of(each, tile)).count)
        except BudgetError:
            counts.append(0)
    assert counts[0] >= counts[1]


def test_a_much_higher_ratio_gives_fewer_gaussians():
    source = source_of(1000, 1000)
    counts = [plan(source, config_of(ratio, 512)).count for ratio in (10, 20, 40, 80, 160)]
    assert counts == sorted(set(counts), reverse=True)


def test_a_number_of_gaussians_is_taken_as_it_is():
    planned = plan(source_of(300, 200), SceneConfig(count=1234))
    assert (planned.count, planned.byte_budget) == (1234, None)


def test_plan_as_json_says_what_was_planned():
    fit = FitConfig(
        color_sweeps=1,
        stages=1,
        stage_pairs=9,
        stage_factor=2,
        replacements=0,
        coarse_factors=(8,),
        final_pairs=(7, 2),
        ssim_pairs=3,
    )
    planned = plan(source_of(1000, 600), SceneConfig(count=50, tile=256, halo=32, fit=fit))
    values = planned.to_dict()
    assert (values["tiles"], values["gaussians"]) == ([4, 3], 50)
    assert values["passes"] == [
        "colors at 1/2",
        "15 pairs at 1/8",
        "9 pairs at 1/2",
        "insert, 50 Gaussians",
        "15 pairs at 1/8",
        "7 pairs",
        "15 pairs at 1/8",
        "5 pairs",
    ]
    # 4 x 3 tiles have all four colours, 2 x 2 blocks at 1/2 too, the one at 1/8 has one; then shapes settle.
    assert values["phases"] == 4 + 1 + 4 + 1 + 4 + 1 + 4 + 4
    assert (values["memory_bytes"], values["digest"]) == (planned.memory_bytes, planned.digest)


# --- Refusals name a way out that works -------------------------------------------------------------------------------


def number_after(option: str, message: str) -> str:
    found = re.search(rf"{option}(?: to)? ([0-9.e+]+(?:MiB)?)", message)
    assert found, message
    return found[1].rstrip(".")


@settings(deadline=None, max_examples=300)
@given(source=sources, ratio=st.floats(1.5, 1e8), tile=tiles)
def test_the_ratio_that_a_refusal_names_is_accepted(source, ratio, tile):
    try:
        plan(source, config_of(ratio, tile))
    except BudgetError as error:
        if "too small for any ratio" in str(error):
            with pytest.raises(BudgetError):
                plan(source, config_of(1.02, tile))  # there really is none, to the two digits after the point named
            return
        named = float(number_after("--ratio", str(error)))
        assert named < ratio
        assert plan(source, config_of(named, tile)).count >= 1


def test_the_ratio_named_is_close_to_the_highest_possible():
    source = source_of(640, 480)
    with pytest.raises(BudgetError) as caught:
        plan(source, config_of(1e6, 512))
    named = float(number_after("--ratio", str(caught.value)))
    with pytest.raises(BudgetError):
        plan(source, config_of(named * 1.02, 512))  # named to three digits: 1 % off at most


@settings(deadline=None, max_examples=100)
@given(height=st.integers(2, 200), width=st.integers(2, 200), more=st.integers(1, 1000))
def test_more_gaussians_than_pixels_are_refused_with_a_number_that_is_accepted(height, width, more):
    source = source_of(height, width)
    with pytest.raises(BudgetError) as caught:
        plan(source, SceneConfig(count=height * width + more))
    named = int(number_after("--gaussians", str(caught.value)))
    assert plan(source, SceneConfig(count=named)).count == named
    assert plan(source, SceneConfig(count=height * width)).count == height * width


@settings(deadline=None, max_examples=100)
@given(tile=st.integers(1, 600), halo=st.integers(0, 1200))
def test_the_halo_and_the_tile_that_a_refusal_names_are_accepted(tile, halo):
    source = source_of(700, 500)
    try:
        plan(source, SceneConfig(count=100, tile=tile, halo=halo))
    except ConfigError as error:
        named = int(number_after("--halo", str(error)))
        assert plan(source, SceneConfig(count=100, tile=tile, halo=named)).config.halo == named < halo
        if "--tile" in str(error):
            wider = int(number_after("--tile", str(error)))
            assert plan(source, SceneConfig(count=100, tile=wider, halo=halo)).config.tile == wider > tile


@settings(deadline=None, max_examples=100)
@given(
    side=st.integers(100, 20_000),
    workers=st.one_of(st.none(), st.integers(1, 64)),
    executor=st.sampled_from(["auto", "serial", "dask"]),
    allowed=st.integers(1, 900 * MIB),
)
def test_the_memory_that_a_refusal_names_is_accepted(side, workers, executor, allowed):
    source, config = source_of(side, side), SceneConfig(count=side * side // 100)
    try:
        planned = plan(source, config, workers=workers, executor=executor, memory=allowed)
    except BudgetError as error:
        named = parse_bytes(number_after("--memory", str(error)))
        assert named > allowed
        planned = plan(source, config, workers=workers, executor=executor, memory=named)
        assert planned.memory_bytes <= named
    else:
        assert planned.memory_bytes <= allowed


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1)])
def test_an_image_of_one_row_or_column_is_refused_with_its_size(shape):
    with pytest.raises(ConfigError, match=f"/images/a.tif: {shape[0]} x {shape[1]} px is too small"):
        plan(source_of(*shape), SceneConfig(count=1))


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"executor": "threads"}, "use serial or dask"),
        ({"workers": 0}, "at least one"),
        ({"executor": "serial", "scheduler": "tcp://127.0.0.1:1"}, "needs --executor dask"),
    ],
)
def test_resources_that_make_no_sense_are_refused(resources, says):
    with pytest.raises(ConfigError, match=says):
        Resources(**resources)


# --- Identity ---------------------------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_the_path():
    config = SceneConfig(count=10)
    assert scene_digest(source_of(9, 9), config) == scene_digest(source_of(9, 9, path="/b/c.png"), config)


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "f" * 16},
        {"height": 10},
        {"width": 10},
        {"bands": 1},
        {"dtype": "uint16"},
        {"has_alpha": True},
    ],
)
def test_digest_depends_on_the_image(changes):
    config, source = SceneConfig(count=10), source_of(9, 9)
    assert scene_digest(source, config) != scene_digest(dataclasses.replace(source, **changes), config)


@pytest.mark.parametrize(
    "changes", [{"count": 11}, {"seed": 1}, {"tile": 256}, {"halo": 32}, {"fit": FitConfig(stage_pairs=51)}]
)
def test_digest_depends_on_the_settings(changes):
    config, source = SceneConfig(count=10), source_of(9, 9)
    assert scene_digest(source, config) != scene_digest(source, dataclasses.replace(config, **changes))


def test_digest_does_not_depend_on_resources():
    source, config = source_of(900, 900), SceneConfig(count=10)
    assert plan(source, config, executor="serial").digest == plan(source, config, executor="dask", workers=3).digest


# --- Memory and workers -----------------------------------------------------------------------------------------------


def memory(height: int, *, tile: int = 512, workers: int = 2, executor: str = "dask") -> int:
    source = source_of(height, 5000)
    config = SceneConfig(count=height * 5000 // 50, tile=tile, halo=tile // 8)
    return max(projected_memory(source, config, count=config.count, executor=executor, workers=workers).values())


def test_projected_memory_grows_with_workers_by_the_same_step():
    steps = [memory(4000, workers=n + 1) - memory(4000, workers=n) for n in range(1, 6)]
    assert steps[0] > 0
    assert len(set(steps)) == 1


def test_projected_memory_grows_with_the_tile():
    sizes = [memory(5000, tile=tile) for tile in (128, 256, 512, 1024, 2048)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("executor", ["serial", "dask"])
def test_projected_memory_does_not_grow_with_the_height(executor):
    # Equal but for the rounding of a share of the count to whole bytes.
    assert memory(1_000_000, executor=executor) == pytest.approx(memory(2000, executor=executor), abs=16)


@settings(deadline=None, max_examples=100)
@given(allowed=st.integers(700 * MIB, 8000 * MIB), cores=st.integers(1, 32))
def test_memory_allows_as_many_workers_as_fit(allowed, cores):
    source, config = source_of(9000, 9000), SceneConfig(count=1_000_000)

    def needs(workers: int) -> int:
        return max(projected_memory(source, config, count=config.count, executor="dask", workers=workers).values())

    try:
        planned = plan(source, config, cores=cores, executor="dask", memory=allowed)
    except BudgetError:
        assert needs(1) > allowed
        return
    assert needs(planned.workers) <= allowed
    assert planned.workers == cores or needs(planned.workers + 1) > allowed


def test_workers_asked_for_are_never_fewer():
    source, config = source_of(9000, 9000), SceneConfig(count=1_000_000)
    with pytest.raises(BudgetError, match="fewer --workers"):
        plan(source, config, executor="dask", workers=16, memory=2000 * MIB)
    assert plan(source, config, executor="dask", workers=16).workers == 16


def test_memory_too_short_for_one_worker_is_used_serially():
    source, config = source_of(9000, 9000), SceneConfig(count=1_000_000)
    one = max(projected_memory(source, config, count=config.count, executor="dask", workers=1).values())
    planned = plan(source, config, memory=one - 1)
    assert planned.executor == "serial"
    assert planned.memory_bytes < one


def test_scenes_of_few_tiles_run_in_this_process_and_those_of_many_on_workers():
    config = SceneConfig(count=100)
    assert plan(source_of(1000, 1000), config, cores=4).executor == "serial"
    assert plan(source_of(20_000, 20_000), config, cores=4).executor == "dask"
    assert plan(source_of(20_000, 20_000), config, cores=1).executor == "serial"
    assert plan(source_of(1000, 1000), config, scheduler="tcp://127.0.0.1:1").executor == "dask"


def test_a_budget_that_only_just_holds_one_gaussian_is_accepted():
    source = source_of(400, 400)
    grid = grid_of(source, SceneConfig(count=1))
    budgets = range(1, source.raw_bytes)
    accepted = [count_or_none(source, grid, budget) for budget in budgets[:20_000]]
    first = next(index for index, count in enumerate(accepted) if count is not None)
    assert accepted[first] == 1
    assert all(count is not None for count in accepted[first:])


def count_or_none(source, grid, budget):
    try:
        return count_for_budget(source, grid, byte_budget=budget)
    except BudgetError:
        return None
