"""Each number comes back within half a step of where it was, as a Gaussian whose picture is the same."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.codec.attributes import HIGHEST_PRECISION, PLACE_LAG, all_rotation_bits
from smartsplat.codec.coder import LARGEST
from smartsplat.codec.quantize import Steps, dequantize, quantize, requantized, suitable_precisions
from smartsplat.config import CodecConfig
from smartsplat.errors import ConfigError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.render import render

few = settings(deadline=None, max_examples=100)
seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(["tiny", "ordinary", "huge", "needles"])
STEPS = Steps(mean=0.4, area=0.5, aspect=0.6, rotation=0.4, color=0.06, base_scale=2.0)

# Half a step, and what float32 adds when the value is written: 6e-8 of the value.
HALF = 0.5 + 1e-9
FLOAT32 = 2.0**-23

steps_of = st.builds(
    Steps.from_config,
    st.builds(
        CodecConfig,
        mean_step=st.floats(0.1, 1),
        area_step=st.floats(0.05, 1),
        aspect_step=st.floats(0.05, 1),
        rotation_step=st.floats(0.05, 1),
        color_step=st.floats(0.5, 4),
    ),
    base_scale=st.floats(0.5, 20),
    error=st.floats(1e-3, 0.1),
    factor=st.floats(2**-4, 2**3),  # the range of rate control
)


def shapes(gaussians):
    """Return log-area and log-aspect (not negative), and the angle of the longer axis in units of pi, float64."""
    scales = gaussians.scales.astype(np.float64)
    turns = gaussians.rotations.astype(np.float64) / math.pi + 0.5 * (scales[:, 0] < scales[:, 1])
    return np.log(scales.prod(axis=1)), np.abs(np.log(scales[:, 0] / scales[:, 1])), turns % 1


def assert_same(found, expected):
    np.testing.assert_array_equal(found.cells, expected.cells)
    for name in expected.attributes.__slots__:
        values = (getattr(each.attributes, name) for each in (found, expected))
        np.testing.assert_array_equal(*values, err_msg=name)


@given(seeds, families, st.sampled_from([1, 3, 4, 8]), steps_of)
@few
def test_every_value_comes_back_within_half_a_step(gaussians_of, seed, family, bands, steps):
    gaussians = gaussians_of(seed, 40, family=family, bands=bands, shape=(512, 512))
    quantized = quantize(gaussians, steps)
    back, values = dequantize(quantized, steps, origin=(7, 8)), quantized.attributes
    assert back.origin == (7, 8)
    half = HALF / 2.0**values.precisions
    place = HALF * steps.mean / 2.0 ** np.maximum(values.precisions - PLACE_LAG, 0)[:, None]
    assert (np.abs(back.means.astype(np.float64) - gaussians.means) <= place + 512 * FLOAT32).all()
    (area, aspect, turns), (area_back, aspect_back, turns_back) = shapes(gaussians), shapes(back)
    # A log of a product or ratio of two float32 numbers carries the rounding of both.
    assert (np.abs(area_back - area) <= half * steps.area + 4 * FLOAT32).all()
    assert (np.abs(aspect_back - aspect) <= half * steps.aspect + 4 * FLOAT32).all()
    apart = np.abs(turns_back - turns)
    turned = values.aspects > 0  # a round Gaussian has no direction
    half_bin = 0.5 / 2.0 ** all_rotation_bits(values.aspects, values.precisions, steps.turns)
    assert (np.minimum(apart, 1 - apart) <= half_bin + 4 * FLOAT32)[turned].all()
    areas = (values.areas + 0.5) / 2.0**values.precisions * steps.area
    step = steps.color * np.exp(-0.4 * (areas - 2 * math.log(steps.base_scale)))[:, None]
    change = decorrelated(back.colors) - decorrelated(gaussians.colors)
    assert (np.abs(change) <= HALF * step + 8 * FLOAT32 * (np.abs(gaussians.colors).max() + step)).all()


def decorrelated(colors):
    """Return luma and two chroma of three bands, orthonormal; other numbers of bands as they are."""
    colors = colors.astype(np.float64)
    if colors.shape[1] != 3:
        return colors
    red, green, blue = colors.T
    return np.stack(
        [
            (red + green + blue) / math.sqrt(3),
            (red - blue) / math.sqrt(2),
            (red - 2 * green + blue) / math.sqrt(6),
        ],
        axis=1,
    )


@given(seeds, families, steps_of)
@few
def test_integers_stay_in_their_ranges(gaussians_of, seed, family, steps):
    quantized = quantize(gaussians_of(seed, 40, family=family), steps)
    values = quantized.attributes
    places = 1 << np.maximum(values.precisions - PLACE_LAG, 0)[:, None]
    bins = 1 << all_rotation_bits(values.aspects, values.precisions, steps.turns)
    assert (quantized.cells >= 0).all()
    assert (values.aspects >= 0).all()
    for integers, limits in (
        (values.precisions, HIGHEST_PRECISION + 1),
        (values.rotations, bins),
        (values.places, places),
    ):
        assert (integers >= 0).all()
        assert (integers < limits).all()


@given(seeds, families, st.sampled_from([1, 3, 4]), steps_of)
@few
def test_quantising_what_was_dequantised_changes_nothing(gaussians_of, seed, family, bands, steps):
    first = quantize(gaussians_of(seed, 40, family=family, bands=bands, shape=(512, 512)), steps)
    assert_same(quantize(dequantize(first, steps), steps), first)


@given(seeds, families, st.floats(0.25, 4), steps_of)
@few
def test_quantised_gaussians_keep_their_precision_and_shape_when_colors_change(
    gaussians_of, seed, family, factor, steps
):
    gaussians = gaussians_of(seed, 40, family=family, shape=(512, 512))
    precisions = np.random.default_rng(seed).integers(0, HIGHEST_PRECISION + 1, 40)
    first = requantized(gaussians, steps, precisions=precisions)
    colors = np.random.default_rng(seed).normal(size=first.colors.shape)
    again = requantized(
        dataclasses.replace(first, colors=colors), dataclasses.replace(steps, color=steps.color * factor)
    )
    np.testing.assert_array_equal(again.to_rows()[:, :5], first.to_rows()[:, :5])
    np.testing.assert_array_equal(quantize(first, steps).attributes.precisions, precisions)


def test_if_a_single_gaussian_was_not_quantised_all_get_the_precision_that_suits_them(gaussians_of):
    gaussians = gaussians_of(0, 30, family="ordinary")
    rows = requantized(gaussians, STEPS, precisions=np.full(30, 9)).to_rows()
    assert (quantize(Gaussians.from_rows(rows), STEPS).attributes.precisions == 9).all()
    rows[7, 2] *= 1.01
    changed = Gaussians.from_rows(rows)
    suitable = suitable_precisions(changed, STEPS)
    assert len(set(suitable.tolist())) > 1
    np.testing.assert_array_equal(quantize(changed, STEPS).attributes.precisions, suitable)


def test_four_times_the_amplitude_asks_for_two_bits_more(gaussians_of):
    gaussians = gaussians_of(0, 200, family="ordinary")
    wide = dataclasses.replace(gaussians, scales=4 * gaussians.scales)
    strong = dataclasses.replace(gaussians, colors=4 * gaussians.colors)
    before = suitable_precisions(gaussians, STEPS)
    ordinary = (before > 0) & (before < HIGHEST_PRECISION - 2)
    assert ordinary.any()
    for other in (wide, strong):
        np.testing.assert_array_equal(suitable_precisions(other, STEPS)[ordinary], before[ordinary] + 2)
    blinding = dataclasses.replace(gaussians, colors=1e9 * gaussians.colors)
    assert (suitable_precisions(blinding, STEPS) == HIGHEST_PRECISION).all()
    assert (suitable_precisions(dataclasses.replace(gaussians, colors=0 * gaussians.colors), STEPS) == 0).all()


@given(seeds, families)
@few
def test_equal_ellipses_written_differently_become_the_same_integers(gaussians_of, seed, family):
    base = requantized(gaussians_of(seed, 20, family=family), STEPS)
    expected = quantize(base, STEPS)
    # Half a turn, or exchanged axes and a quarter turn, is the same ellipse; the middle of each bin is safe from the
    # float32 rounding of a rotation.
    quarter = np.float64(base.rotations) + math.pi / 2
    for scales, rotations in [
        (base.scales, base.rotations - math.pi),
        (base.scales, base.rotations + 3 * math.pi),
        (base.scales[:, ::-1], quarter),
    ]:
        same = Gaussians(means=base.means, scales=scales, rotations=rotations, colors=base.colors)
        assert_same(quantize(same, STEPS), expected)


@pytest.mark.parametrize("family", ["tiny", "ordinary", "huge", "needles"])
def test_finer_precisions_and_colors_make_the_picture_more_alike(gaussians_of, family):
    gaussians, region = gaussians_of(1, 40, family=family), Region(y0=0, y1=64, x0=0, x1=64)
    exact = render(gaussians, region).astype(np.float64)
    errors = []
    for factor in (1.0, 0.25, 0.0625):
        steps = Steps.from_config(CodecConfig(), base_scale=1.0, error=0.02, factor=factor)
        errors.append(np.sqrt(np.mean((render(requantized(gaussians, steps), region) - exact) ** 2)))
    # Four times finer steps make about four times smaller errors; half of that is asked for.
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, np.nan), (1, np.inf), (2, np.nan), (3, -np.inf), (4, np.nan), (5, np.inf), (0, -0.01), (2, 0.0), (3, -1.0)],
)
def test_what_no_fit_makes_is_refused(gaussians_of, column, value):
    rows = gaussians_of(0, 5, family="ordinary").to_rows()
    quantize(Gaussians.from_rows(rows), STEPS)
    rows[2, column] = value
    with pytest.raises(ValueError, match="finite"):
        quantize(Gaussians.from_rows(rows), STEPS)


@pytest.mark.parametrize(
    ("columns", "value", "message"),
    [
        ([0], LARGEST * STEPS.mean, "mean"),
        ([1], 3e38, "mean"),
        ([5], 1e12, "color"),
        ([6, 7], -3e38, "color"),
        ([2, 3], 1e18, "scale"),
        ([2, 3], 1e-18, "scale"),
        ([2], 1e38, "scale"),
        ([3], 1e-45, "scale"),
    ],
)
def test_what_is_too_large_or_too_small_is_refused(gaussians_of, columns, value, message):
    rows = gaussians_of(0, 5, family="ordinary").to_rows()
    rows[2, 5:] = 0
    rows[2, columns] = value
    with pytest.raises(ValueError, match=f"a {message} is"):
        quantize(Gaussians.from_rows(rows), STEPS)


@pytest.mark.parametrize("name", ["area", "aspect"])
def test_steps_too_fine_for_a_shape_to_be_written_are_refused(gaussians_of, name):
    with pytest.raises(ValueError, match="a scale is"):
        quantize(gaussians_of(0, 5, family="needles"), dataclasses.replace(STEPS, **{name: 1e-9}))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_gaussians_of_any_size_there_may_be_are_written(gaussians_of, scale):
    gaussians = gaussians_of(0, 20, family="needles")
    gaussians = dataclasses.replace(gaussians, scales=gaussians.scales * scale, colors=gaussians.colors * scale**-0.8)
    back = requantized(gaussians, STEPS)
    np.testing.assert_allclose(back.scales.prod(axis=1), gaussians.scales.prod(axis=1), rtol=0.3)  # half an area step
    assert (back.colors != 0).any()


@pytest.mark.parametrize("name", ["mean", "area", "aspect", "rotation", "color", "base_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_steps_that_are_not_positive_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        Steps(**(STEPS.to_dict() | {name: value}))


def test_steps_follow_the_settings_the_base_scale_the_error_and_the_factors():
    config = CodecConfig(mean_step=0.2, area_step=0.5, aspect_step=0.6, rotation_step=0.4, color_step=2.0)
    steps = Steps.from_config(config, base_scale=3.0, error=0.01, factor=2.0, color_factor=1.5)
    expected = {"mean": 0.6, "area": 0.5, "aspect": 0.6, "rotation": 0.4, "color": 0.06, "base_scale": 3.0}
    assert steps.to_dict() == pytest.approx(expected, rel=1e-12)  # float64 products
    assert Steps(**steps.to_dict()) == steps


def test_turns_are_aspects_that_ask_for_another_bit():
    turns = STEPS.turns
    assert (np.diff(turns) >= 0).all()
    assert len(turns) == 40
    log_aspects = turns[16:20] / 65536 * STEPS.aspect
    np.testing.assert_allclose(math.pi * np.sinh(log_aspects) / STEPS.rotation, 2.0 ** (np.arange(4) + 0.5), rtol=1e-4)
