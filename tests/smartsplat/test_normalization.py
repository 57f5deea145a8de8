"""Pixels to the unit range and back: exact for integers, honest about no-data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.normalization import Normalization, pixel_weight

few = settings(deadline=None, max_examples=100)
UINT16 = np.arange(2**16, dtype=np.uint16).reshape(256, 256, 1)


def test_eight_bit_pixels_always_use_the_full_range_and_return_exactly():
    normalization = Normalization.of_range(17, 90, dtype=np.dtype("uint8"))
    assert normalization == Normalization(offset=0.0, span=255.0)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    values = normalization.to_values(pixels)
    assert (values.min(), values.max(), values.dtype) == (0, 1, np.float32)
    np.testing.assert_array_equal(normalization.to_pixels(values, np.dtype("uint8")), pixels)


@given(st.integers(0, 65535), st.integers(0, 65535))
@few
def test_sixteen_bit_pixels_return_exactly_whatever_the_range(a, b):
    low, high = min(a, b), max(a, b)
    normalization = Normalization.of_range(low, high, dtype=np.dtype("uint16"))
    pixels = UINT16[(low <= UINT16) & (high >= UINT16)].reshape(-1, 1, 1)
    values = normalization.to_values(pixels)
    assert values.min() >= 0
    assert values.max() <= 1
    np.testing.assert_array_equal(normalization.to_pixels(values, np.dtype("uint16")), pixels)


@given(st.floats(-1e6, 1e6, width=32), st.floats(2**-10, 1e6, width=32), st.integers(0, 2**32 - 1))
@few
def test_float_pixels_return_within_float32_rounding(low, span, seed):
    normalization = Normalization.of_range(low, low + span, dtype=np.dtype("float32"))
    pixels = (low + span * np.random.default_rng(seed).random((5, 4, 2))).astype(np.float32)
    back = normalization.to_pixels(normalization.to_values(pixels), np.dtype("float32"))
    # Four float32 roundings (value, product, offset, sum) of numbers no larger than |low| + span.
    np.testing.assert_allclose(back, pixels, rtol=0, atol=4 * 2**-24 * 2 * (abs(low) + span))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_flat_image_has_a_span_of_one_and_survives(dtype):
    normalization = Normalization.of_range(300, 300, dtype=np.dtype(dtype))
    pixels = np.full((3, 3, 1), 300, dtype)
    assert normalization.span == 1
    np.testing.assert_array_equal(normalization.to_values(pixels), 0)
    np.testing.assert_array_equal(normalization.to_pixels(normalization.to_values(pixels), np.dtype(dtype)), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_values_beyond_the_range_are_clipped_to_the_integer_type_not_wrapped(dtype):
    normalization = Normalization.of_range(0, 65535, dtype=np.dtype(dtype))
    values = np.array([[[-0.5, 0.0, 1.0, 1.5, 40.0]]], np.float32)
    top = np.iinfo(dtype).max
    assert normalization.to_pixels(values, np.dtype(dtype)).ravel().tolist() == [0, 0, top, top, top]


def test_pixels_without_data_become_zero_and_weigh_nothing():
    pixels = np.ones((2, 3, 2), np.float32)
    pixels[0, 1, 0], pixels[1, 2, 1], pixels[0, 0, 1] = np.nan, np.inf, -np.inf
    values = Normalization(offset=0.5, span=2.0).to_values(pixels)
    bad = ~np.isfinite(pixels)
    assert (values[bad] == 0).all()
    assert (values[~bad] == 0.25).all()
    assert pixel_weight(pixels).tolist() == [[0, 0, 1], [1, 1, 0]]
    assert pixel_weight(pixels).dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_no_weight_is_made_when_every_pixel_counts(dtype):
    assert pixel_weight(np.ones((3, 4, 2), dtype)) is None
