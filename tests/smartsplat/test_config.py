"""Settings: they survive JSON, their digest identifies them, and impossible ones are refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.config import LEVEL_FACTORS, CodecConfig, FitConfig, SamplingConfig, SceneConfig, digest_of
from smartsplat.errors import ConfigError

few = settings(deadline=None, max_examples=100)
PARTS = ("sampling", "fit", "codec")

rates = st.floats(1e-4, 9)
configs = st.builds(
    SceneConfig,
    nominal_ratio=st.none(),
    count=st.integers(1, 10**9),
    tile=st.integers(1, 10**4),
    halo=st.integers(0, 10**3),
    seed=st.integers(0, 2**63),
    sampling=st.builds(SamplingConfig, variational_fraction=st.floats(0, 1), nearest=st.integers(1, 9)),
    fit=st.builds(
        FitConfig,
        stages=st.integers(0, 9),
        stage_factor=st.sampled_from(LEVEL_FACTORS),
        coarse_factors=st.lists(st.sampled_from(LEVEL_FACTORS), max_size=3),
        final_pairs=st.lists(st.integers(1, 99), max_size=3),
        ssim_pairs=st.integers(0, 99),
        ssim_gain=st.floats(0, 99),
        relative_rates=st.booleans(),
        mean_rate=rates,
        min_scale=rates,
    ),
    codec=st.builds(CodecConfig, mean_step=rates, color_step=rates),
) | st.builds(SceneConfig, nominal_ratio=st.floats(1.01, 1e6))


def every_field():
    """Return the path of each setting."""
    plain = [(field.name,) for field in dataclasses.fields(SceneConfig) if field.name not in PARTS]
    classes = {"sampling": SamplingConfig, "fit": FitConfig, "codec": CodecConfig}
    return plain + [(part, field.name) for part in PARTS for field in dataclasses.fields(classes[part])]


def a_little_different(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (4, *value)
    if value in LEVEL_FACTORS:  # of whole numbers, some settings take only these
        return value * 2
    return value + 1 if isinstance(value, int) else value * 0.75


def changed(config, path):
    """Return `config` with the setting at `path` a little different, and valid."""
    values = config.to_dict()
    holder = values[path[0]] if len(path) == 2 else values
    if path[0] in ("max_bytes", "bits_per_pixel", "psnr", "count"):  # exactly one of these and the ratio
        values |= {"nominal_ratio": None, path[0]: 7}
    else:
        holder[path[-1]] = a_little_different(holder[path[-1]])
    return SceneConfig.from_dict(values)


@given(configs)
@few
def test_settings_survive_plain_values_and_json(config):
    assert SceneConfig.from_dict(config.to_dict()) == config
    read = SceneConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert read == config
    assert read.digest == config.digest
    changes = json.loads(json.dumps(config.to_changes()))
    assert SceneConfig.from_dict(changes) == config
    assert {"tile", "halo"} <= set(changes)


@pytest.mark.parametrize(
    ("size", "budget"), [({"nominal_ratio": 8}, 750), ({"max_bytes": 700}, 700), ({"bits_per_pixel": 1.1}, 275)]
)
def test_a_size_is_said_as_a_ratio_in_bytes_or_in_bits_per_pixel(size, budget):
    config = SceneConfig(**size)
    assert config.is_rated
    assert config.byte_budget(pixels=2000, raw_bytes=6000) == budget
    assert SceneConfig(count=3).byte_budget(pixels=2000, raw_bytes=6000) is None


@given(configs, configs)
@few
def test_digests_are_equal_exactly_if_the_settings_are(a, b):
    assert (a.digest == b.digest) == (a == b)
    assert (a.differences(b) == []) == (a == b)


@pytest.mark.parametrize("path", every_field(), ids=".".join)
def test_every_setting_changes_the_digest_and_is_named_as_the_difference(path):
    base = SceneConfig(nominal_ratio=50)
    other = changed(base, path)
    assert other.digest != base.digest
    sizes = {"max_bytes", "bits_per_pixel", "psnr", "count"}
    expected = {".".join(path)} | ({"nominal_ratio"} if path[0] in sizes else set())
    assert {line.split(":")[0] for line in base.differences(other)} == expected
    assert len(base.differences(other)) == len(expected)


def test_a_whole_number_means_the_same_as_its_float():
    a = SceneConfig(nominal_ratio=50, fit=FitConfig(scale_rate=1), codec=CodecConfig(mean_step=1))
    b = SceneConfig(nominal_ratio=50.0, fit=FitConfig(scale_rate=1.0), codec=CodecConfig(mean_step=1.0))
    assert a == b
    assert a.digest == b.digest


def test_lists_are_the_same_settings_as_tuples_and_a_fit_may_do_without_them():
    some, same = (FitConfig(coarse_factors=kind((4, 2)), final_pairs=kind((9,))) for kind in (list, tuple))
    assert some == same
    assert hash(some) == hash(same)
    none = FitConfig(stages=0, color_sweeps=0, coarse_factors=(), final_pairs=())
    assert (none.coarse_factors, none.final_pairs) == ((), ())


@pytest.mark.parametrize("factor", LEVEL_FACTORS)
def test_every_level_can_be_chosen(factor):
    config = FitConfig(stage_factor=factor, coarse_factors=(factor,))
    assert (config.stage_factor, config.coarse_factors) == (factor, (factor,))


@pytest.mark.parametrize(
    ("name", "end"),
    [("start_fraction", 1), ("replaced_share", 0), ("ssim_share", 0), ("ssim_share", 1), ("mean_rate", 0)],
)
def test_the_ends_of_a_range_that_make_sense_are_allowed(name, end):
    assert getattr(FitConfig(**{name: end}), name) == end


def test_the_digest_does_not_change_between_versions_by_accident():
    # A golden value: an unfinished scene resumes only under the digest it was started with.
    assert digest_of({"b": [1, 2.5, None], "a": {"c": "é"}}) == "96226d34f44978a6"


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=5), st.randoms())
@few
def test_the_digest_ignores_the_order_of_names(values, random):
    names = list(values)
    random.shuffle(names)
    assert digest_of({name: values[name] for name in names}) == digest_of(values)


@pytest.mark.parametrize("part", [None, *PARTS])
def test_an_unknown_name_is_refused_and_named(part):
    values = SceneConfig(nominal_ratio=50).to_dict()
    (values if part is None else values[part])["sparkle"] = 1
    with pytest.raises(ConfigError, match="sparkle"):
        SceneConfig.from_dict(values)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_no_mapping_is_refused(part):
    with pytest.raises(ConfigError):
        SceneConfig.from_dict(SceneConfig(nominal_ratio=50).to_dict() | {part: 3})


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (SceneConfig, {}),
        (SceneConfig, {"nominal_ratio": 50, "count": 100}),
        (SceneConfig, {"nominal_ratio": 1}),
        (SceneConfig, {"nominal_ratio": -3}),
        (SceneConfig, {"nominal_ratio": float("nan")}),
        (SceneConfig, {"nominal_ratio": float("inf")}),
        (SceneConfig, {"count": 0}),
        (SceneConfig, {"count": 9, "seed": -1}),
        (SamplingConfig, {"variational_fraction": 1.1}),
        (SamplingConfig, {"gradient_share": -0.1}),
        (SamplingConfig, {"gradient_share": float("nan")}),
        (SamplingConfig, {"nearest": 0}),
        (FitConfig, {"start_fraction": 0}),
        (FitConfig, {"start_fraction": 1.01}),
        (FitConfig, {"start_fraction": float("nan")}),
        (FitConfig, {"color_sweeps": -1}),
        (FitConfig, {"color_iterations": -1}),
        (FitConfig, {"stages": -1}),
        (FitConfig, {"stage_pairs": -1}),
        (FitConfig, {"stage_factor": 3}),
        (FitConfig, {"stage_factor": 0}),
        (FitConfig, {"insert_scale": 0}),
        (FitConfig, {"insert_visibility": -0.1}),
        (FitConfig, {"insert_visibility": 2.1}),
        (FitConfig, {"insert_scale": float("nan")}),
        (FitConfig, {"replacements": -1}),
        (FitConfig, {"replaced_share": 1}),
        (FitConfig, {"replaced_share": -0.1}),
        (FitConfig, {"coarse_factors": (8, 16)}),
        (FitConfig, {"coarse_pairs": -1}),
        (FitConfig, {"final_pairs": (60, 0)}),
        (FitConfig, {"adam_steps": -1}),
        (FitConfig, {"ssim_share": 1.1}),
        (FitConfig, {"ssim_share": float("nan")}),
        (FitConfig, {"min_scale": 0}),
        (FitConfig, {"min_scale": float("nan")}),
        (FitConfig, {"min_scale": float("inf")}),
        (FitConfig, {"mean_rate": float("nan")}),
        (FitConfig, {"scale_rate": float("inf")}),
        (FitConfig, {"rotation_rate": -0.1}),
        (FitConfig, {"color_rate": float("nan")}),
        (CodecConfig, {"mean_step": 0}),
        (CodecConfig, {"color_step": 10}),
        (CodecConfig, {"rotation_step": float("nan")}),
    ],
)
def test_impossible_settings_are_refused(make, values):
    with pytest.raises(ConfigError):
        make(**values)
