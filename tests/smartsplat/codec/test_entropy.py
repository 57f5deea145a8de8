"""Integers and bits come back exactly; damaged streams are refused without using much memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smartsplat.codec.entropy import (
    ByteReader,
    decode_integers,
    encode_integers,
    pack_bits,
    unpack_bits,
    varint,
)
from smartsplat.errors import StoreError

few = settings(deadline=None, max_examples=200)
integers_of = st.one_of(
    st.lists(st.integers(-300, 300), min_size=1, max_size=200),
    st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=30),
    st.lists(st.sampled_from([-(2**51), -1, 0, 1, 127, 128, 129, 255, 256, 2**51 - 1]), min_size=1, max_size=20),
)


def round_trip(values):
    reader = ByteReader(encode_integers(np.array(values, np.int64)))
    decoded = decode_integers(reader, len(values))
    reader.finish()
    return decoded.tolist()


@given(integers_of)
@few
def test_integers_round_trip_with_nothing_left_over(values):
    assert round_trip(values) == values


@pytest.mark.parametrize("value", [0, 1, -1, 127, -128, 2**51, -(2**51), 2**52 - 1, -(2**52) + 1])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_one_value_alone_or_repeated_round_trips(value, count):
    assert round_trip([value] * count) == [value] * count


@pytest.mark.parametrize("bits", range(53))
def test_every_bit_length_below_the_limit_round_trips(bits):
    values = [0, 2**bits - 1, 2**bits // 2, min(2**bits, 2**52 - 1)]
    assert round_trip(values) == values
    assert round_trip([-value for value in values]) == [-value for value in values]


@pytest.mark.parametrize("values", [[0, 2**52], [-(2**51), 2**51], [-(2**60), 2**60]])
def test_a_span_too_wide_to_write_is_refused(values):
    with pytest.raises(ValueError, match="span too much"):
        encode_integers(np.array(values, np.int64))


@pytest.mark.parametrize("value", [2**52, -(2**52), 2**62])
def test_an_integer_too_large_to_read_back_is_neither_written_nor_read(value):
    with pytest.raises(ValueError, match="too much"):
        encode_integers(np.array([value]))
    zigzag = 2 * value if value >= 0 else -2 * value - 1
    stream = encode_integers(np.array([0]))
    assert stream[0] == 0  # the lowest value, zigzag: 0
    with pytest.raises(StoreError, match=r"out of range|63 bits"):
        decode_integers(ByteReader(varint(zigzag) + stream[1:]), 1)


def test_a_token_for_more_bits_than_are_ever_written_is_refused():
    stream = encode_integers(np.array([0, 2**52 - 1]))
    for token, allowed in [(128 + 2 * 44 + 1, True), (128 + 2 * 45, False), (255, False)]:
        frame = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False
            )
        ).compress(bytes([0, token]))
        data = varint(0) + varint(len(frame)) + frame + b"\xff" * 9
        if allowed:
            assert decode_integers(ByteReader(data), 2).tolist() == [0, 2**52 - 1]
            assert decode_integers(ByteReader(stream), 2).tolist() == [0, 2**52 - 1]
        else:
            with pytest.raises(StoreError, match="too long"):
                decode_integers(ByteReader(data), 2)


@given(st.lists(st.integers(0, 2**62), max_size=20))
@few
def test_varints_round_trip_in_sequence(values):
    reader = ByteReader(b"".join(varint(value) for value in values))
    assert [reader.varint() for _ in values] == values
    reader.finish()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 8, b"\xff" * 9 + b"\x01", b"\x80" * 100])
def test_a_varint_that_is_cut_or_too_long_is_refused(data):
    with pytest.raises(StoreError):
        ByteReader(data).varint()


@given(st.lists(st.integers(0, 50).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, 2**w - 1))), max_size=40))
@few
def test_bits_round_trip_at_any_widths_in_the_fewest_bytes(pairs):
    widths, values = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    packed = pack_bits(values, widths)
    assert len(packed) == -(-int(widths.sum()) // 8)
    reader = ByteReader(packed)
    assert unpack_bits(reader, widths).tolist() == values.tolist()
    reader.finish()


def test_a_reader_counts_what_is_missing_and_what_is_left():
    reader = ByteReader(b"abc")
    with pytest.raises(StoreError, match="4 bytes wanted, 3 left"):
        reader.take(4)
    assert reader.take(2) == b"ab"
    with pytest.raises(StoreError, match="1 bytes are left over"):
        reader.finish()


@given(integers_of, st.integers(0, 400))
@few
def test_another_count_than_was_written_is_refused(values, count):
    assume(count not in (0, len(values)))
    with pytest.raises(StoreError):
        decode_integers(ByteReader(encode_integers(np.array(values, np.int64))), count)


@given(integers_of, st.data())
@few
def test_a_truncated_stream_of_integers_is_refused(values, data):
    stream = encode_integers(np.array(values, np.int64))
    with pytest.raises(StoreError):
        decode_integers(ByteReader(stream[: data.draw(st.integers(0, len(stream) - 1))]), len(values))


@given(st.binary(max_size=60), st.integers(1, 100))
@settings(deadline=None, max_examples=500)
def test_any_bytes_give_the_count_asked_for_or_are_refused(data, count):
    try:
        values = decode_integers(ByteReader(data), count)
    except StoreError:
        return
    assert values.shape == (count,)


@pytest.mark.parametrize("claimed", [2**62, 2**33, 1001])
def test_a_frame_that_claims_to_be_larger_is_refused_before_memory_is_taken(claimed):
    # Magicless zstd frame header with an 8-byte content size and a 1 KiB window, and no block after it.
    frame = bytes([0b11000000, 0]) + claimed.to_bytes(8, "little")
    parameters = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    assert parameters.content_size == claimed
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=f"claims {claimed}"):
            decode_integers(ByteReader(varint(0) + varint(len(frame)) + frame), 1000)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_bomb_of_zeros_is_refused_within_its_count():
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False
        )
    )
    frame = compressor.compress(bytes(50 << 20))  # 50 MiB of zeros in 2 kB
    tracemalloc.start()
    try:
        with pytest.raises(StoreError):
            decode_integers(ByteReader(varint(0) + varint(len(frame)) + frame), 1000)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_skewed_integers_take_fewer_bytes_than_their_size():
    values = np.random.default_rng(0).geometric(0.3, 5000).astype(np.int64)
    probabilities = 0.3 * 0.7 ** np.arange(60)
    entropy = -(probabilities * np.log2(probabilities)).sum() / 8 * 5000
    assert len(encode_integers(values)) < 1.1 * entropy  # zstd's Huffman coder stays within 10 % here
