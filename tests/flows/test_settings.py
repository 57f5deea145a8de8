"""Words of the command line and presets become the settings they say."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.settings import DEFAULT_RATIO, load_preset, parse_bytes, preset_names, scene_config
from smartsplat.config import SceneConfig
from smartsplat.errors import ConfigError
from smartsplat.geometry import TileGrid, default_halo
from smartsplat.schedule import FitPass, schedule, start_count


def test_standard_is_what_a_config_has_by_itself():
    assert scene_config("standard", ratio=50) == SceneConfig(nominal_ratio=50)
    assert scene_config("standard", gaussians=7).digest == SceneConfig(count=7).digest


def work(preset: str) -> float:
    """Return the pairs of Levenberg-Marquardt over all passes of a preset, of pixels of the scene."""
    passes = schedule(scene_config(preset).fit, count=100_000, base_scale=2.0)
    return sum(each.pairs / each.factor**2 for each in passes if isinstance(each, FitPass))


def test_draft_is_less_work_than_standard_and_best_is_more():
    assert 0 < work("draft") < work("standard") / 2
    assert work("best") > 2 * work("standard")


def test_paper_optimises_all_gaussians_at_once_in_one_tile_by_adam_alone():
    config = scene_config("paper", gaussians=1000)
    (only,) = schedule(config.fit, count=1000, base_scale=2.0)
    assert isinstance(only, FitPass)
    assert (only.factor, only.pairs, only.color_iterations, only.adam_steps) == (1, 0, 0, config.fit.adam_steps)
    assert start_count(config.fit, 1000) == 1000
    assert len(TileGrid(height=50_000, width=50_000, tile=config.tile, halo=config.halo)) == 1


@pytest.mark.parametrize("name", preset_names())
def test_presets_make_settings_that_a_grid_accepts(name):
    config = scene_config(name)
    assert config.nominal_ratio == DEFAULT_RATIO
    TileGrid(height=5000, width=5000, tile=config.tile, halo=config.halo)


@pytest.mark.parametrize("name", ["", "Draft", "draft.toml", "../presets/draft", "quality"])
def test_an_unknown_preset_is_refused_with_those_there_are(name):
    with pytest.raises(ConfigError, match="is unknown; use best, draft, paper, standard"):
        load_preset(name)


def test_what_is_given_overrides_the_preset():
    config = scene_config("draft", gaussians=50, tile=200, halo=7, seed=3)
    assert (config.count, config.nominal_ratio, config.tile, config.halo, config.seed) == (50, None, 200, 7, 3)
    assert config.fit == scene_config("draft").fit


@given(tile=st.integers(8, 4096))
def test_the_halo_follows_the_tile_unless_given(tile):
    config = scene_config("standard", tile=tile)
    assert config.halo == default_halo(tile)
    TileGrid(height=100, width=100, tile=tile, halo=config.halo)


@pytest.mark.parametrize(
    "sizes",
    list(
        itertools.combinations(
            [("ratio", 10), ("max_bytes", 900), ("bits_per_pixel", 1), ("psnr", 30), ("gaussians", 10)], 2
        )
    ),
)
def test_of_ratio_bytes_bits_psnr_and_number_there_is_only_one(sizes):
    with pytest.raises(ConfigError, match="either a ratio, bytes, bits per pixel, a PSNR or a number"):
        scene_config("draft", **dict(sizes))


@pytest.mark.parametrize("values", [{"ratio": 0}, {"ratio": 1}, {"gaussians": 0}, {"seed": -1}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigError):
        scene_config("draft", **values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("1000B", 1000),
        ("1k", 1000),
        ("2KiB", 2048),
        ("500M", 500_000_000),
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        (" 1.5 Gi ", 3 << 29),
        ("1e9", 10**9),
        ("2TB", 2 * 10**12),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_read_as_written(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "4 XB", "-1", "1.2.3", "0", "0.5", "1iB", "nan", "inf", "1e", "four", ".", "1e400"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is not a size; write it like 4GiB"):
        parse_bytes(text)


@given(st.integers(1, 1 << 50))
def test_plain_numbers_of_bytes_are_themselves(count):
    assert parse_bytes(str(count)) == count
