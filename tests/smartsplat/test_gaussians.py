"""Sets of Gaussians: rows, selection, origins and concatenation lose nothing."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Gaussians, concatenate

few = settings(deadline=None, max_examples=100)
seeds, counts, bands_of = st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 8)


def assert_same(a, b):
    assert a.origin == b.origin
    np.testing.assert_array_equal(a.to_rows(), b.to_rows())


@given(seeds, counts, bands_of)
@few
def test_rows_round_trip(gaussians_of, seed, count, bands):
    gaussians = gaussians_of(seed, count, bands=bands, origin=(3, -7))
    rows = gaussians.to_rows()
    assert rows.shape == (count, GEOMETRY_PARAMETERS + bands)
    assert rows.dtype == np.float32
    assert_same(Gaussians.from_rows(rows, origin=(3, -7)), gaussians)
    assert (len(gaussians), gaussians.bands) == (count, bands)


@given(seeds, counts)
@few
def test_pickling_keeps_every_bit(gaussians_of, seed, count):
    gaussians = gaussians_of(seed, count, origin=(5, 6))
    assert_same(pickle.loads(pickle.dumps(gaussians)), gaussians)


@given(seeds, counts, st.data())
@few
def test_select_picks_whole_rows_in_order(gaussians_of, seed, count, data):
    gaussians = gaussians_of(seed, count, origin=(1, 2))
    index = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=40) if count else st.just([])), int)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    for pick in (index, mask, slice(1, None, 2)):
        np.testing.assert_array_equal(gaussians.select(pick).to_rows(), gaussians.to_rows()[pick])
        assert gaussians.select(pick).origin == (1, 2)


@given(seeds, st.tuples(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6)), st.integers(0, 512))
@few
def test_a_shift_of_origin_is_exact_for_means_that_float32_holds_on_both_sides(gaussians_of, seed, origin, shift):
    # Means in steps of 1/4096 px below 2048 px: 23 bits, before and after, so nothing may be lost.
    rng = np.random.default_rng(seed)
    base = gaussians_of(seed, 20)
    rows = base.to_rows()
    rows[:, :2] = rng.integers(512 * 4096, 1024 * 4096, (20, 2)) / 4096
    gaussians = Gaussians.from_rows(rows, origin=origin)
    moved = gaussians.at_origin((origin[0] - shift, origin[1] + shift))
    np.testing.assert_array_equal(moved.means, gaussians.means + np.float32([shift, -shift]))
    np.testing.assert_array_equal(moved.to_rows()[:, 2:], rows[:, 2:])
    assert_same(moved.at_origin(origin), gaussians)


@given(seeds, st.integers(-(10**6), 10**6))
@few
def test_a_mean_at_another_origin_is_the_float32_nearest_to_it(gaussians_of, seed, far):
    gaussians = gaussians_of(seed, 20, origin=(far, -far))
    exact = gaussians.means.astype(np.float64) + [far, -far]
    np.testing.assert_array_equal(gaussians.at_origin((0, 0)).means, exact.astype(np.float32))


@given(st.lists(st.tuples(seeds, counts), min_size=1, max_size=5))
@few
def test_concatenation_keeps_order_and_places_every_set(gaussians_of, parts):
    sets = [gaussians_of(seed, count, origin=(64 * i, -64)) for i, (seed, count) in enumerate(parts)]
    joined = concatenate(sets, origin=(64, 0))
    rows = np.concatenate([one.at_origin((64, 0)).to_rows() for one in sets])
    np.testing.assert_array_equal(joined.to_rows(), rows)
    assert joined.origin == (64, 0)


def test_concatenating_nothing_is_refused():
    with pytest.raises(ValueError, match="concatenate"):
        concatenate([], origin=(0, 0))


@given(bands_of)
@few
def test_an_empty_set_keeps_its_bands_and_origin(bands):
    empty = Gaussians.empty(bands=bands, origin=(4, 5))
    assert (len(empty), empty.bands, empty.origin) == (0, bands, (4, 5))
    assert empty.is_finite()


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_is_finite_sees_every_number(gaussians_of, column, value):
    rows = gaussians_of(0, 5).to_rows()
    assert Gaussians.from_rows(rows).is_finite()
    rows[3, column] = value
    assert not Gaussians.from_rows(rows).is_finite()


GOOD = {"means": (4, 2), "scales": (4, 2), "rotations": (4,), "colors": (4, 3)}


@pytest.mark.parametrize(
    "bad",
    [
        {"means": (4, 3)},
        {"means": (5, 2)},
        {"means": (8,)},
        {"scales": (4, 1)},
        {"scales": (3, 2)},
        {"rotations": (4, 1)},
        {"rotations": (3,)},
        {"colors": (4,)},
        {"colors": (3, 3)},
        {"colors": (4, 3, 1)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(bad):
    assert len(Gaussians(**{name: np.ones(shape) for name, shape in GOOD.items()})) == 4
    with pytest.raises(ValueError, match="do not fit"):
        Gaussians(**{name: np.ones(shape) for name, shape in (GOOD | bad).items()})
