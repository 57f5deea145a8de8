"""Morton codes: a bijection that interleaves bits and keeps near cells near."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.codec.order import MORTON_LIMIT, morton_cells, morton_codes

few = settings(deadline=None, max_examples=200)
sides = st.integers(0, MORTON_LIMIT - 1)
cells_of = st.lists(st.tuples(sides, sides), max_size=30).map(lambda cells: np.array(cells, np.int64).reshape(-1, 2))


def interleaved(y, x):
    return sum(((y >> bit & 1) << (2 * bit + 1)) | ((x >> bit & 1) << (2 * bit)) for bit in range(31))


@given(cells_of)
@few
def test_codes_are_the_bits_of_both_coordinates_interleaved(cells):
    assert morton_codes(cells).tolist() == [interleaved(y, x) for y, x in cells.tolist()]


@given(cells_of)
@few
def test_cells_round_trip_up_to_the_limit(cells):
    codes = morton_codes(cells)
    assert (codes >= 0).all()
    assert (codes < MORTON_LIMIT**2).all()
    np.testing.assert_array_equal(morton_cells(codes), cells)


@given(st.lists(st.integers(0, MORTON_LIMIT**2 - 1), max_size=30))
@few
def test_every_code_below_the_limit_is_that_of_its_cell(codes):
    codes = np.array(codes, np.int64)
    np.testing.assert_array_equal(morton_codes(morton_cells(codes)), codes)


def test_a_square_of_a_power_of_two_is_one_run_of_codes():
    square = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), axis=-1).reshape(-1, 2)
    assert sorted(morton_codes(square).tolist()) == list(range(256))
    assert np.ptp(morton_codes(square + [32, 48])) == 255
