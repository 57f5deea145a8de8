"""Each number comes back within half a step of where it was, as a Gaussian whose picture is the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.codec.quantize import Steps, dequantize, quantize, rotation_bits
from smartsplat.config import CodecConfig
from smartsplat.errors import ConfigError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.render import render

few = settings(deadline=None, max_examples=100)
seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(["tiny", "ordinary", "huge", "needles"])
STEPS = Steps(mean=0.4, area=0.1, aspect=0.12, rotation=0.08, color=0.06, base_scale=2.0)

# Half a step, and what float32 adds when the value is written: 6e-8 of the value.
HALF = 0.5 + 1e-9
FLOAT32 = 2.0**-23

steps_of = st.builds(
    Steps.from_config,
    st.builds(
        CodecConfig, mean_step=st.floats(0.05, 1), aspect_step=st.floats(0.02, 0.5), color_step=st.floats(0.01, 1)
    ),
    base_scale=st.floats(0.5, 20),
    factor=st.floats(2**-4, 2**3),  # the range of rate control
)


def shapes(gaussians):
    """Return log-area and log-aspect (not negative), and the angle of the longer axis in units of pi, float64."""
    scales = gaussians.scales.astype(np.float64)
    turns = gaussians.rotations.astype(np.float64) / math.pi + 0.5 * (scales[:, 0] < scales[:, 1])
    return np.log(scales.prod(axis=1)), np.abs(np.log(scales[:, 0] / scales[:, 1])), turns % 1


@given(seeds, families, st.sampled_from([1, 3, 4, 8]), steps_of)
@few
def test_every_value_comes_back_within_half_a_step(gaussians_of, seed, family, bands, steps):
    gaussians = gaussians_of(seed, 40, family=family, bands=bands, shape=(512, 512))
    quantized = quantize(gaussians, steps)
    back = dequantize(quantized, steps, origin=(7, 8))
    assert back.origin == (7, 8)
    assert (np.abs(back.means.astype(np.float64) - gaussians.means) <= HALF * steps.mean + 512 * FLOAT32).all()
    (area, aspect, turns), (area_back, aspect_back, turns_back) = shapes(gaussians), shapes(back)
    # A log of a product or ratio of two float32 numbers carries the rounding of both.
    assert (np.abs(area_back - area) <= HALF * steps.area + 4 * FLOAT32).all()
    assert (np.abs(aspect_back - aspect) <= HALF * steps.aspect + 4 * FLOAT32).all()
    apart = np.abs(turns_back - turns)
    turned = quantized.aspects > 0  # a round Gaussian has no direction
    half_bin = 0.5 / 2.0 ** rotation_bits(quantized.aspects, steps)
    assert (np.minimum(apart, 1 - apart) <= half_bin + 4 * FLOAT32)[turned].all()
    step = steps.color * np.exp(-0.4 * (quantized.areas * steps.area - 2 * math.log(steps.base_scale)))[:, None]
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
    assert (quantized.cells >= 0).all()
    assert (quantized.aspects >= 0).all()
    assert (quantized.rotations >= 0).all()
    assert (quantized.rotations < 2 ** rotation_bits(quantized.aspects, steps)).all()


@given(seeds, families, steps_of)
@few
def test_quantising_what_was_dequantised_changes_nothing(gaussians_of, seed, family, steps):
    first = quantize(gaussians_of(seed, 40, family=family, shape=(512, 512)), steps)
    again = quantize(dequantize(first, steps), steps)
    for name in ("cells", "areas", "aspects", "rotations", "colors"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name), err_msg=name)


@given(seeds, families)
@few
def test_equal_ellipses_written_differently_become_the_same_integers(gaussians_of, seed, family):
    base = gaussians_of(seed, 20, family=family)
    # Half a turn, or exchanged axes and a quarter turn, is the same ellipse; the middle of each bin is safe from the
    # float32 rounding of a rotation.
    base = dequantize(quantize(base, STEPS), STEPS)
    quarter = np.float64(base.rotations) + math.pi / 2
    for scales, rotations in [
        (base.scales, base.rotations - math.pi),
        (base.scales, base.rotations + 3 * math.pi),
        (base.scales[:, ::-1], quarter),
    ]:
        same = Gaussians(means=base.means, scales=scales, rotations=rotations, colors=base.colors)
        for name in ("areas", "aspects", "rotations"):
            np.testing.assert_array_equal(
                getattr(quantize(same, STEPS), name), getattr(quantize(base, STEPS), name), err_msg=name
            )


@pytest.mark.parametrize("family", ["tiny", "ordinary", "huge", "needles"])
def test_finer_steps_make_the_picture_more_alike(gaussians_of, family):
    gaussians, region = gaussians_of(1, 40, family=family), Region(y0=0, y1=64, x0=0, x1=64)
    exact = render(gaussians, region).astype(np.float64)
    errors = []
    for factor in (1.0, 0.25, 0.0625):
        steps = Steps.from_config(CodecConfig(), base_scale=1.0, factor=factor)
        back = dequantize(quantize(gaussians, steps), steps)
        errors.append(np.sqrt(np.mean((render(back, region) - exact) ** 2)))
    # Four times finer steps make about four times smaller errors; half of that is asked for.
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


@given(st.integers(0, 200), steps_of)
@few
def test_rotations_get_a_power_of_two_of_bins_close_to_the_step(aspect, steps):
    bits = int(rotation_bits(np.array([aspect]), steps)[0])
    if aspect == 0:
        assert bits == 0
        return
    wanted = math.pi * math.sinh(min(aspect * steps.aspect, 40)) / steps.rotation
    assert 1 <= bits <= 24
    if 2 <= wanted <= 2**24:
        assert 2**-0.5 * (1 - 1e-9) <= 2**bits / wanted <= 2**0.5 * (1 + 1e-9)


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


@pytest.mark.parametrize("name", ["mean", "area", "aspect", "rotation", "color", "base_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_steps_that_are_not_positive_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        Steps(**(STEPS.to_dict() | {name: value}))


def test_steps_follow_the_settings_the_base_scale_and_the_factor():
    config = CodecConfig(mean_step=0.2, area_step=0.1, aspect_step=0.12, rotation_step=0.08, color_step=0.06)
    steps = Steps.from_config(config, base_scale=3.0, factor=2.0)
    expected = {"mean": 1.2, "area": 0.2, "aspect": 0.24, "rotation": 0.16, "color": 0.12, "base_scale": 3.0}
    assert steps.to_dict() == pytest.approx(expected, rel=1e-12)  # float64 products
    assert Steps(**steps.to_dict()) == steps
