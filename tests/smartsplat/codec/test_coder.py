"""What is coded is decoded, one stream stands for each sequence of values, and learning makes streams short."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smartsplat.codec import coder as module
from smartsplat.codec.coder import AT, DAMAGED, LARGEST, NODES, Coder, Models, adaptive, integer, mixed, tree, uniform

few = settings(deadline=None, max_examples=200)
MODELS = Models(3, 2, 4, nodes=NODES)
FIRST, SECOND, THIRD, WEIGHTS = MODELS.starts.tolist()
WIDTH = 2 * NODES  # of a context

sizes = st.one_of(st.integers(1, 300), st.integers(1, 2**40), st.sampled_from([1, 2, 2**12, 2**12 + 1, 2**24, 2**40]))
magnitudes = st.one_of(st.integers(0, 20), st.integers(0, LARGEST - 1), st.just(LARGEST - 1))
contexts = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3))
values_of = st.one_of(
    sizes.flatmap(lambda size: st.tuples(st.just("uniform"), st.just(size), st.integers(0, size - 1))),
    st.tuples(st.just("adaptive"), st.integers(0, 5), st.integers(0, 1)),
    st.tuples(st.just("mixed"), contexts, st.integers(0, 1)),
    st.tuples(st.just("natural"), contexts, magnitudes),
    st.tuples(st.just("signed"), contexts, st.tuples(magnitudes, st.sampled_from([-1, 1])).map(math.prod)),
    st.integers(1, 5).flatmap(lambda bits: st.tuples(st.just("tree"), st.just(bits), st.integers(0, 2**bits - 1))),
)


def code(coder, kind, what, value):
    to = (coder.memory, coder.data)
    if kind == "uniform":
        return uniform(*to, what, value)
    if kind == "adaptive":
        return adaptive(*to, FIRST + 2 * what, value)
    if kind == "tree":
        return tree(*to, FIRST, SECOND, THIRD, WEIGHTS, what, value)
    seen = tuple(start + WIDTH * at for start, at in zip((FIRST, SECOND, THIRD), what, strict=True))
    if kind == "mixed":
        return mixed(*to, *seen, WEIGHTS, value)
    return integer(*to, *seen, WEIGHTS, kind == "signed", value)


def encoded(values):
    coder = Coder(np.empty(64 + 80 * len(values), np.uint8), decodes=False)
    coder.learn(MODELS.fresh)
    for value in values:
        code(coder, *value)
    return coder.finish()


def decoded(data, kinds):
    coder = Coder(np.frombuffer(data, np.uint8).copy(), decodes=True)
    coder.learn(MODELS.fresh)
    return [code(coder, kind, what, 0) for kind, what in kinds], coder


@given(st.lists(values_of, max_size=40))
@few
def test_values_of_any_kind_come_back_from_a_stream_that_is_canonical(values):
    data = encoded(values)
    found, coder = decoded(data, [value[:2] for value in values])
    assert found == [value for _, _, value in values]
    assert coder.is_canonical()
    assert not data.endswith(b"\0")
    assert len(data) <= coder.memory[AT] + 1


@given(st.lists(values_of, max_size=8), st.binary(max_size=12))
@example([("uniform", 7, 0)], b"\xff\xff\xff\xfe")  # the division by 7 leaves 3 numbers at the end
@example([("uniform", 1, 0)], b"\xff\xff\xff\xff")  # beyond the first interval
@example([("signed", (0, 0, 0), 0)], b"")
@settings(deadline=None, max_examples=1000)
def test_bytes_that_are_accepted_are_what_their_values_are_written_as(values, data):
    kinds = [value[:2] for value in values]
    found, coder = decoded(data, kinds)
    if coder.is_canonical():
        assert encoded([(*kind, value) for kind, value in zip(kinds, found, strict=True)]) == data


@given(st.lists(values_of, min_size=1, max_size=10), st.data())
@few
def test_a_byte_more_or_less_is_not_canonical_or_stands_for_other_values(values, data):
    stream, kinds = encoded(values), [value[:2] for value in values]
    changed = [stream + b"\0", stream + data.draw(st.binary(min_size=1, max_size=4))]
    for other in changed + ([stream[:-1]] if stream else []):
        found, coder = decoded(other, kinds)
        assert not coder.is_canonical() or found != [value for _, _, value in values]


def test_nothing_takes_no_byte_and_what_is_certain_none_either():
    assert encoded([]) == b""
    assert encoded([("uniform", 1, 0)] * 1000) == b""


@pytest.mark.parametrize("value", [-1, 1])
def test_a_carry_runs_through_bytes_that_are_full(value):
    # The upper end of the interval again and again, then a part that reaches over it.
    values = [("uniform", 3, 1)] * 50 + [("signed", (0, 0, 0), value), ("uniform", 2, 1)]
    for middle in range(1, 40):
        sequence = [("uniform", 2, 0), *[("uniform", 2**12, 2**12 - 1)] * middle, *values]
        assert decoded(encoded(sequence), [each[:2] for each in sequence])[0] == [each[2] for each in sequence]


def test_a_value_out_of_range_is_noticed():
    for size, data in [(2**12 + 1, b"\xff\xff\xff\x00\x00"), (2**20 + 1, b"\xff\xff\xff\x00\x00"), (7, b"\xff" * 4)]:
        (value,), coder = decoded(data, [("uniform", size)])
        assert value == size - 1
        assert coder.memory[DAMAGED]
        assert not coder.is_canonical()


@pytest.mark.parametrize("value", [LARGEST - 1, 1 - LARGEST])
def test_the_largest_integer_is_written_and_none_beyond_is_read(value):
    assert decoded(encoded([("signed", (0, 0, 0), value)]), [("signed", (0, 0, 0))])[0] == [value]
    writer = Coder(np.empty(500, np.uint8), decodes=False)
    writer.learn(MODELS.fresh)
    for at in (0, 1, *range(2, NODES)):  # of all the bits of an integer, those that say it is more
        mixed(
            writer.memory,
            writer.data,
            FIRST + 2 * at,
            SECOND + 2 * at,
            THIRD + 2 * at,
            WEIGHTS + 3 * at,
            int(at != 1 or value < 0),
        )
    uniform(writer.memory, writer.data, 1 << 31, (1 << 31) - 1)
    (found,), coder = decoded(writer.finish(), [("signed", (0, 0, 0))])
    assert abs(found) >= LARGEST
    assert (found < 0) == (value < 0)
    assert not coder.is_canonical()


@pytest.mark.parametrize("kind", ["adaptive", "mixed"])
@pytest.mark.parametrize("odds", [0.5, 0.1, 0.003])
def test_bits_soon_cost_little_more_than_their_entropy(kind, odds):
    bits = np.random.default_rng(0).random(20000) < odds
    entropy = -(odds * math.log2(odds) + (1 - odds) * math.log2(1 - odds)) * len(bits) / 8
    what = 0 if kind == "adaptive" else (0, 0, 0)
    assert len(encoded([(kind, what, int(bit)) for bit in bits])) < 1.03 * entropy + 12


def test_of_three_contexts_the_one_that_tells_most_is_believed():
    rng = np.random.default_rng(1)
    seen = rng.integers(0, 2, 5000)
    noise = rng.integers(0, 3, (5000, 2)) % (3, 1)
    values = [("mixed", (int(a), int(at), int(b)), int(at)) for at, (a, b) in zip(seen, noise, strict=True)]
    assert len(encoded(values)) < 5000 / 8 / 20


def test_uniform_values_cost_what_their_number_says():
    for size in (3, 1000, 2**12, 10**6, 2**36):
        values = np.random.default_rng(size).integers(0, size, 1000)
        expected = 1000 * math.log2(size) / 8
        assert len(encoded([("uniform", size, int(value)) for value in values])) < 1.001 * expected + 8


def test_the_tables_are_the_same_everywhere():
    tables = {
        name: zlib.crc32(getattr(module, name).astype("<i8").tobytes())
        for name in ("_SQUASH", "_STRETCH", "_RATE", "_TRUST")
    }
    assert tables == TABLES


TABLES = {"_SQUASH": 362691879, "_STRETCH": 3980857335, "_RATE": 169980748, "_TRUST": 1993080734}
