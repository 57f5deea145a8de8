"""A set of cells comes back as a set, at the cost of a set; neighbours are those that a search by hand finds."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.codec.coder import DAMAGED, Coder
from smartsplat.codec.positions import SIDE_LIMIT, code_positions, find_neighbors

few = settings(deadline=None, max_examples=200)
seeds, axes_of = st.integers(0, 2**32 - 1), st.integers(1, 3)
sides = st.one_of(st.integers(1, 8), st.integers(1, SIDE_LIMIT), st.just(SIDE_LIMIT))
counts = st.one_of(st.integers(0, 3), st.integers(0, 300))


@st.composite
def clouds(draw, sides=sides):
    """Cells, some of them crowded, and extents around them."""
    count, extents = draw(counts), np.array([draw(sides) for _ in range(draw(axes_of))], np.int64)
    rng = np.random.default_rng(draw(seeds))
    spread = rng.random((count, len(extents))) ** draw(st.sampled_from([1, 4, 30]))
    cells = (spread * extents).astype(np.int64)
    return cells[rng.integers(0, max(1, count // draw(st.integers(1, 4))), count)] if count else cells, extents


def encoded(cells, extents):
    coder = Coder(np.empty(1024 + 500 * len(cells), np.uint8), decodes=False)
    order = code_positions(coder, cells, extents)
    return coder.finish(), order


def decoded(data, count, extents):
    coder = Coder(np.frombuffer(data, np.uint8).copy(), decodes=True)
    cells = np.zeros((count, len(extents)), np.int64)
    code_positions(coder, cells, extents)
    return cells, coder


@given(clouds())
@few
def test_cells_come_back_in_the_order_that_the_encoder_tells(cloud):
    cells, extents = cloud
    data, order = encoded(cells, extents)
    found, coder = decoded(data, len(cells), extents)
    np.testing.assert_array_equal(found, cells[order])
    assert sorted(order.tolist()) == list(range(len(cells)))
    assert coder.is_canonical()


@given(clouds(), seeds)
@few
def test_order_takes_no_bytes_and_equal_cells_keep_theirs(cloud, seed):
    cells, extents = cloud
    shuffled = np.random.default_rng(seed).permutation(len(cells))
    (data, order), (again, order_again) = encoded(cells, extents), encoded(cells[shuffled], extents)
    assert again == data
    np.testing.assert_array_equal(cells[shuffled][order_again], cells[order])
    same = (np.diff(cells[order], axis=0) == 0).all(axis=1)
    assert (np.diff(order)[same] > 0).all()


@pytest.mark.parametrize(("count", "extents"), [(300, (2000, 2000)), (5000, (512, 512)), (4000, (100, 100, 100))])
def test_cells_without_a_pattern_cost_what_a_set_of_them_does(count, extents):
    cells = np.random.default_rng(count).integers(0, extents, (count, len(extents)))
    volume = math.prod(extents)
    ways = math.lgamma(volume + count) - math.lgamma(volume) - math.lgamma(count + 1)  # with repetition
    assert len(encoded(cells, np.array(extents))[0]) < 1.02 * ways / math.log(2) / 8 + 8


@pytest.mark.parametrize("extents", [(SIDE_LIMIT,), (SIDE_LIMIT,) * 2, (SIDE_LIMIT,) * 3, (1, SIDE_LIMIT)])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 1000])
def test_crowds_in_the_far_corner_fit_the_room_there_is_for_them(extents, count):
    extents = np.array(extents)
    cells = np.tile(extents - 1, (count, 1))
    for away in (0, 1):
        cells[: count // 2] -= np.minimum(away, extents - 1)
        data, order = encoded(cells, extents)
        np.testing.assert_array_equal(decoded(data, count, extents)[0], cells[order])


@given(st.binary(max_size=200), counts, st.lists(sides, min_size=1, max_size=3))
@settings(deadline=None, max_examples=500)
def test_any_bytes_give_cells_within_the_extents(data, count, extents):
    cells, coder = decoded(data, count, np.array(extents))
    assert (cells >= 0).all()
    assert (cells < extents).all()
    if coder.is_canonical():
        assert encoded(cells, np.array(extents))[0] == data


@pytest.mark.parametrize("data", [b"", b"\xff" * 1000, b"\x00\xff" * 5000])
def test_what_is_damaged_is_left_soon(data):
    decoded(b"", 1, np.array([2, 2]))
    start = time.thread_time()
    decoded(data, 10**6, np.array([SIDE_LIMIT, SIDE_LIMIT]))
    assert time.thread_time() - start < 5


def test_half_a_crowd_that_is_more_than_all_of_it_is_damage():
    for seed in range(500):
        data = np.random.default_rng(seed).integers(0, 256, 40, np.uint8).tobytes()
        if decoded(data, 100, np.array([1000, 1000]))[1].memory[DAMAGED]:
            return
    raise AssertionError("none was found")


def neighbors_by_hand(cells, extents, most):
    """Search as the format says, in plain Python."""
    side = 1
    while side ** len(extents) * max(1, len(cells)) < math.prod(extents):
        side *= 2
    boxes, found = {}, []
    for i, cell in enumerate(cells):
        box = tuple(c // side for c in cell)
        seen = []
        # The box that is furthest up on all axes first; the first axis changes fastest.
        for shift in itertools.product((-1, 0, 1), repeat=len(box)):
            near = boxes.get(tuple(b + s for b, s in zip(box, reversed(shift), strict=True)), [])
            seen += [(sum((a - b) ** 2 for a, b in zip(cell, cells[j], strict=True)), j) for j in near[:-9:-1]]
        nearest = sorted(seen, key=lambda each: each[0])[:most]
        weights = [64 * side * side // (distance + side * side // 3 + 1) + 1 for distance, _ in nearest]
        missing = most - len(nearest)
        found.append(([j for _, j in nearest] + [-1] * missing, weights + [0] * missing))
        boxes.setdefault(box, []).append(i)
    return found


@given(clouds(sides=st.integers(1, 200)), st.integers(1, 5))
@few
def test_neighbors_are_those_that_a_search_by_hand_finds(cloud, most):
    cells, extents = cloud
    neighbors, weights = (np.full((len(cells), most), -7, np.int64) for _ in range(2))
    find_neighbors(cells, extents, neighbors, weights)
    expected = neighbors_by_hand(cells.tolist(), extents.tolist(), most)
    assert neighbors.tolist() == [each for each, _ in expected]
    assert weights.tolist() == [each for _, each in expected]
