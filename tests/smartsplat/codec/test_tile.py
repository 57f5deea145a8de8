"""A tile's stream: what it decodes to, that it is its own fixed point, and that damage never does worse than refuse."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smartsplat.codec import Steps, decode_tile, encode_tile
from smartsplat.codec.entropy import encode_integers, varint
from smartsplat.codec.order import morton_codes
from smartsplat.codec.quantize import dequantize, quantize
from smartsplat.config import CodecConfig
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians

few = settings(deadline=None, max_examples=100)
seeds, counts = st.integers(0, 2**32 - 1), st.integers(0, 60)
families = st.sampled_from(["tiny", "ordinary", "huge", "needles"])
steps_of = st.builds(
    Steps.from_config,
    st.just(CodecConfig()),
    base_scale=st.floats(0.5, 20),
    factor=st.floats(2**-4, 2**3),  # the range of rate control
)
STEPS = Steps.from_config(CodecConfig(), base_scale=2.0, factor=1.0)
GOLDEN = bytes.fromhex(
    "02ea07070000110000009c0871e01c0700001100000009000700001100000012"
    "d13207000011000000326f0700001100004500570700001100002f00"
)


def decode(data, steps, count, bands=3):
    return decode_tile(data, steps, bands=bands, max_count=count)


@given(seeds, counts, families, st.sampled_from([1, 3, 4, 8]), steps_of)
@few
def test_a_stream_decodes_to_the_quantised_gaussians_in_morton_order(gaussians_of, seed, count, family, bands, steps):
    gaussians = gaussians_of(seed, count, family=family, bands=bands, shape=(512, 512))
    decoded = decode_tile(encode_tile(gaussians, steps), steps, bands=bands, max_count=count, origin=(512, 1024))
    quantized = quantize(gaussians, steps)
    order = np.argsort(morton_codes(quantized.cells), kind="stable")
    np.testing.assert_array_equal(decoded.to_rows(), dequantize(quantized, steps).to_rows()[order])
    assert decoded.origin == (512, 1024)
    assert (len(decoded), decoded.bands) == (count, bands)


@given(seeds, counts, families, st.sampled_from([1, 3, 4]), steps_of)
@few
def test_what_was_decoded_encodes_to_the_same_bytes(gaussians_of, seed, count, family, bands, steps):
    data = encode_tile(gaussians_of(seed, count, family=family, bands=bands, shape=(512, 512)), steps)
    assert encode_tile(decode(data, steps, count, bands), steps) == data


def test_gaussians_on_one_spot_keep_their_order(gaussians_of):
    rows = gaussians_of(0, 50, family="ordinary").to_rows()
    rows[:, :2] = 5.0
    decoded = decode(encode_tile(Gaussians.from_rows(rows), STEPS), STEPS, 50)
    np.testing.assert_array_equal(
        decoded.to_rows(), dequantize(quantize(Gaussians.from_rows(rows), STEPS), STEPS).to_rows()
    )


def test_a_tile_without_gaussians_is_one_byte():
    data = encode_tile(Gaussians.empty(bands=3), STEPS)
    assert data == b"\x00"
    assert len(decode(data, STEPS, 0)) == 0


@given(seeds, st.integers(1, 60))
@few
def test_more_gaussians_than_may_be_are_refused(gaussians_of, seed, count):
    data = encode_tile(gaussians_of(seed, count, family="ordinary"), STEPS)
    assert len(decode(data, STEPS, count)) == count
    with pytest.raises(StoreError, match=f"claims {count} Gaussians, at most {count - 1}"):
        decode(data, STEPS, count - 1)


@pytest.mark.parametrize("count", [1001, 2**31, 2**62])
def test_a_huge_claim_is_refused_before_memory_is_taken(count):
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=f"claims {count} Gaussians"):
            decode(varint(count) + b"\x00" * 20, STEPS, 1000)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_when_written(gaussians_of, column, value):
    rows = gaussians_of(0, 5, family="ordinary").to_rows()
    rows[3, column] = value
    with pytest.raises(ValueError, match="finite"):
        encode_tile(Gaussians.from_rows(rows), STEPS)


def test_means_beyond_the_grid_of_cells_are_refused(gaussians_of):
    rows = gaussians_of(0, 1, family="ordinary").to_rows()
    rows[0, 0] = 2.0**31 * STEPS.mean * 1.01
    with pytest.raises(ValueError, match="cannot be written"):
        encode_tile(Gaussians.from_rows(rows), STEPS)


def test_bytes_left_over_are_refused(gaussians_of):
    data = encode_tile(gaussians_of(0, 5, family="ordinary"), STEPS)
    with pytest.raises(StoreError, match="left over"):
        decode(data + b"\x00", STEPS, 5)


# ---- damage: the checksum that would notice it lies outside the stream ----


def assert_bounded_or_refused(data, count, bands=3):
    """Assert that the only outcomes are finite numbers within the count, and StoreError. Warnings are errors here."""
    try:
        decoded = decode_tile(data, STEPS, bands=bands, max_count=count)
    except StoreError:
        return
    assert len(decoded) <= count
    assert decoded.is_finite()


@given(seeds, st.integers(1, 60), families, st.data())
@settings(deadline=None, max_examples=400)
def test_a_flipped_bit_is_refused_or_decodes_to_finite_numbers(gaussians_of, seed, count, family, data):
    stream = bytearray(encode_tile(gaussians_of(seed, count, family=family), STEPS))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    assert_bounded_or_refused(bytes(stream), count)


@pytest.mark.parametrize("family", ["ordinary", "needles"])
def test_no_flipped_bit_at_all_does_worse_than_be_refused(gaussians_of, family):
    stream = encode_tile(gaussians_of(4, 12, family=family), STEPS)
    for bit in range(8 * len(stream)):
        changed = bytearray(stream)
        changed[bit // 8] ^= 1 << bit % 8
        assert_bounded_or_refused(bytes(changed), 12)


@pytest.mark.parametrize("count", [1, 12, 60])
def test_every_truncation_is_refused(gaussians_of, count):
    stream = encode_tile(gaussians_of(count, count, family="needles"), STEPS)
    for size in range(len(stream)):
        with pytest.raises(StoreError):
            decode(stream[:size], STEPS, count)


@pytest.mark.parametrize(
    ("gaps", "areas", "aspects", "message"),
    [
        ([4, -1], [0, 0], [0, 0], "out of order"),
        ([-1, 5], [0, 0], [0, 0], "out of order"),
        ([2**50] * 5000, [0] * 5000, [0] * 5000, "out of range"),  # the sum passes 2^62
        ([4, 1], [0, 0], [0, -1], "negative log-aspect"),
    ],
)
def test_integers_that_no_encoder_writes_are_refused(gaps, areas, aspects, message):
    parts = [encode_integers(np.array(part, np.int64)) for part in (gaps, areas, aspects)]
    bands = encode_integers(np.zeros(len(gaps), np.int64)) * 3
    with pytest.raises(StoreError, match=message):
        decode(varint(len(gaps)) + b"".join(parts) + bands, STEPS, len(gaps))


@given(st.binary(max_size=200), st.integers(0, 100), st.sampled_from([1, 3]))
@example(b"\x01" + b"\x00" * 40, 1, 3)
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_refused_or_decode_to_finite_numbers(data, count, bands):
    assert_bounded_or_refused(data, count, bands)


@given(seeds, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=300)
def test_several_changed_bytes_are_refused_or_decode_to_finite_numbers(gaussians_of, seed, changes):
    stream = bytearray(encode_tile(gaussians_of(seed % 7, 25, family="ordinary"), STEPS))
    for where, value in changes:
        stream[int(where * len(stream))] = value
    assert_bounded_or_refused(bytes(stream), 25)


def test_a_stream_written_earlier_still_decodes_to_the_same_numbers():
    # Golden: a change here is a change of format. Two Gaussians, one round and one a needle.
    steps = Steps(mean=0.25, area=0.1, aspect=0.2, rotation=0.25, color=0.02, base_scale=2.0)
    rows = np.array([[3.1, 7.9, 2, 2, 0.3, 0.5, 0.25, 0.125], [300.7, 4.2, 0.5, 20, 1.0, -0.2, 1.1, 0.9]], np.float32)
    data = encode_tile(Gaussians.from_rows(rows), steps)
    # zstd may write the same tokens differently from version to version, so the stream is fixed and not the encoder.
    for stream in (data, GOLDEN):
        decoded = decode(stream, steps, 2)
        assert decoded.means[1].tolist() == [300.625, 4.125]
        assert math.isclose(decoded.scales[1].prod(), math.exp(2.3), rel_tol=1e-6)
        assert decoded.scales[0, 0] == decoded.scales[0, 1]
    np.testing.assert_array_equal(decode(GOLDEN, steps, 2).to_rows(), decode(data, steps, 2).to_rows())
