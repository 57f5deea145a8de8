"""What belongs to cells comes back exactly, whatever the integers are; rotations get the bits they need."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.codec.attributes import (
    HIGHEST_PRECISION,
    LONGEST_ASPECT,
    PLACE_LAG,
    Attributes,
    all_rotation_bits,
    code_attributes,
)
from smartsplat.codec.coder import LARGEST, Coder
from smartsplat.codec.quantize import Steps

few = settings(deadline=None, max_examples=200)
seeds = st.integers(0, 2**32 - 1)
STEPS = Steps(mean=0.4, area=0.5, aspect=0.5, rotation=0.4, color=0.06, base_scale=2.0)
EXTENTS = np.array([60, 40], np.int64)


def attributes_of(rng, count, *, bands, most, highest=HIGHEST_PRECISION):
    """Integers up to `most` and all of it, near and far from each other."""
    precisions = rng.integers(0, highest + 1, count)
    fineness, places = 1 << precisions, 1 << np.maximum(precisions - PLACE_LAG, 0)

    def signed(shape):
        values = np.rint(most ** rng.random(shape)).astype(np.int64)
        return np.where(rng.random(shape) < 0.1, most, values) * rng.integers(-1, 2, shape)

    aspects = np.minimum(np.abs(signed(count)), LONGEST_ASPECT - 1) * fineness + rng.integers(0, fineness)
    return Attributes(
        precisions=precisions,
        areas=signed(count) // 4 * fineness + rng.integers(0, fineness),
        aspects=aspects,
        rotations=rng.integers(0, 1 << all_rotation_bits(aspects, precisions, STEPS.turns)),
        colors=signed((count, bands)),
        places=rng.integers(0, places[:, None], (count, 2)),
    )


def encoded(cells, values, middle=0):
    bands = values.colors.shape[1]
    coder = Coder(np.empty(1024 + 72 * len(cells) * (6 + bands), np.uint8), decodes=False)
    copies = dataclasses.replace(values, areas=values.areas.copy())
    told = []
    code_attributes(coder, cells, EXTENTS, copies, middle=middle, turns=STEPS.turns, ended=told.append)
    assert told == ["precision", "area", *["color"] * bands, "aspect", "rotation", "position"]
    return coder.finish()


def decoded(data, cells, *, bands, middle=0):
    count = len(cells)
    values = Attributes(
        **{name: np.zeros(count, np.int64) for name in ("precisions", "areas", "aspects", "rotations")},
        colors=np.zeros((count, bands), np.int64),
        places=np.zeros((count, 2), np.int64),
    )
    coder = Coder(np.frombuffer(data, np.uint8).copy(), decodes=True)
    code_attributes(coder, cells, EXTENTS, values, middle=middle, turns=STEPS.turns)
    return values, coder


def cells_of(rng, count):
    return rng.integers(0, EXTENTS // rng.integers(1, 20), (count, 2))


@given(seeds, st.integers(1, 80), st.integers(1, 8), st.sampled_from([1, 30, 2**16, LARGEST - 1]), st.integers(-9, 9))
@few
def test_integers_of_any_size_come_back_exactly(seed, count, bands, most, middle):
    rng = np.random.default_rng(seed)
    values, cells = attributes_of(rng, count, bands=bands, most=most), cells_of(rng, count)
    found, coder = decoded(encoded(cells, values, middle), cells, bands=bands, middle=middle)
    for name in Attributes.__slots__:
        np.testing.assert_array_equal(getattr(found, name), getattr(values, name), err_msg=name)
    assert coder.is_canonical()


@given(seeds, st.binary(max_size=300), st.integers(1, 60), st.integers(1, 4))
@settings(deadline=None, max_examples=500)
def test_any_bytes_give_integers_within_their_ranges(seed, data, count, bands):
    cells = cells_of(np.random.default_rng(seed), count)
    values, coder = decoded(data, cells, bands=bands)
    assert (values.precisions >= 0).all()
    assert (values.precisions <= HIGHEST_PRECISION).all()
    assert (values.aspects >= 0).all()
    assert (values.aspects >> values.precisions < LONGEST_ASPECT).all()
    assert (values.rotations >= 0).all()
    assert (values.rotations < 1 << all_rotation_bits(values.aspects, values.precisions, STEPS.turns)).all()
    assert (values.places >= 0).all()
    assert (values.places < 1 << np.maximum(values.precisions - PLACE_LAG, 0)[:, None]).all()
    if coder.is_canonical():
        assert np.abs(values.colors).max() < LARGEST
        assert encoded(cells, values) == data


def test_what_neighbors_are_like_is_learned():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(60), np.arange(40), indexing="ij"), axis=-1).reshape(-1, 2)
    values = attributes_of(rng, len(grid), bands=1, most=20, highest=0)
    smooth = dataclasses.replace(values, areas=grid[:, 0] // 6 - 5, colors=grid[:, 1:] * 3)
    rough = dataclasses.replace(values, areas=rng.permutation(smooth.areas), colors=rng.permutation(smooth.colors))
    assert len(encoded(grid, smooth)) < len(encoded(grid, rough)) - 300


@given(st.integers(0, 200), st.integers(0, HIGHEST_PRECISION))
@few
def test_rotations_get_a_power_of_two_of_bins_close_to_the_step(coarse, precision):
    aspect = (coarse << precision) // 7
    bits = int(all_rotation_bits(np.array([aspect]), np.array([precision]), STEPS.turns)[0])
    if aspect == 0:
        assert bits == 0
        return
    assert 1 <= bits <= 16
    wanted = math.pi * math.sinh(aspect / 2**precision * STEPS.aspect) / STEPS.rotation * 2**precision
    if 2 <= wanted <= 2**16:
        assert 2**-0.5 * (1 - 1e-4) <= 2**bits / wanted <= 2**0.5 * (1 + 1e-4)  # turns are rounded


@pytest.mark.parametrize("aspect", [2**20, 2**27])
def test_however_long_a_gaussian_is_its_rotation_has_sixteen_bits(aspect):
    assert all_rotation_bits(np.array([aspect]), np.array([0]), STEPS.turns).tolist() == [16]
