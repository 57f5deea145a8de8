"""A tile's stream: what it decodes to, that it is its own fixed point, and that damage never does worse than refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smartsplat.codec import Steps, decode_tile, encode_tile
from smartsplat.codec.attributes import HIGHEST_PRECISION, LONGEST_ASPECT, Attributes, code_attributes
from smartsplat.codec.coder import LARGEST, Coder
from smartsplat.codec.positions import SIDE_LIMIT, code_positions
from smartsplat.codec.quantize import QuantizedGaussians, dequantize, quantize
from smartsplat.codec.tile import decode_quantized, encode_quantized
from smartsplat.config import CodecConfig
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians

few = settings(deadline=None, max_examples=100)
seeds, counts = st.integers(0, 2**32 - 1), st.one_of(st.integers(0, 3), st.integers(0, 60))
families = st.sampled_from(["tiny", "ordinary", "huge", "needles"])
shapes = st.sampled_from([(512, 512), (40, 40), (1, 300), (2, 2), (0.1, 0.1)])  # down to all in one cell
steps_of = st.builds(
    Steps.from_config,
    st.just(CodecConfig()),
    base_scale=st.floats(0.5, 20),
    error=st.floats(1e-3, 0.1),
    factor=st.floats(2**-4, 2**3),  # the range of rate control
)
STEPS = Steps.from_config(CodecConfig(), base_scale=2.0, error=0.03)
ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
TILES = json.loads((GOLDEN / "tiles.json").read_text())


def decode(data, steps, count, bands=3):
    return decode_tile(data, steps, bands=bands, max_count=count)


def coded_order(gaussians, steps):
    cells = quantize(gaussians, steps).cells
    coder = Coder(np.empty(1024 + 1000 * len(cells), np.uint8), decodes=False)
    return code_positions(coder, cells, cells.max(axis=0, initial=0) + 1)


@given(seeds, counts, families, shapes, st.sampled_from([1, 3, 4, 8]), st.sampled_from([1e-9, 1, 1, 1, 1e3]), steps_of)
@few
def test_a_stream_decodes_to_the_quantised_gaussians(gaussians_of, seed, count, family, shape, bands, scale, steps):
    gaussians = gaussians_of(seed, count, family=family, bands=bands, shape=shape)
    gaussians = dataclasses.replace(gaussians, scales=gaussians.scales * scale)
    decoded = decode_tile(encode_tile(gaussians, steps), steps, bands=bands, max_count=count, origin=(512, 1024))
    expected = dequantize(quantize(gaussians, steps), steps)
    np.testing.assert_array_equal(decoded.to_rows(), expected.to_rows()[coded_order(gaussians, steps)])
    assert decoded.origin == (512, 1024)
    assert (len(decoded), decoded.bands) == (count, bands)


@given(seeds, counts, families, shapes, st.sampled_from([1, 3, 4, 8]), steps_of)
@few
def test_what_was_decoded_encodes_to_the_same_bytes(gaussians_of, seed, count, family, shape, bands, steps):
    data = encode_tile(gaussians_of(seed, count, family=family, bands=bands, shape=shape), steps)
    assert encode_tile(decode(data, steps, count, bands), steps) == data


@pytest.mark.parametrize("family", ["ordinary", "needles"])
def test_thousands_of_gaussians_come_back_and_encode_to_the_same_bytes(gaussians_of, family):
    gaussians = gaussians_of(0, 20000, family=family, shape=(512, 512))
    data = encode_tile(gaussians, STEPS)
    decoded = decode(data, STEPS, 20000)
    expected = dequantize(quantize(gaussians, STEPS), STEPS).to_rows()
    np.testing.assert_array_equal(decoded.to_rows(), expected[coded_order(gaussians, STEPS)])
    assert encode_tile(decoded, STEPS) == data


@given(seeds, counts)
@few
def test_order_takes_no_bytes(gaussians_of, seed, count):
    rows = gaussians_of(seed, count, family="ordinary").to_rows()
    cells = quantize(Gaussians.from_rows(rows), STEPS).cells
    rows = rows[np.unique(cells, axis=0, return_index=True)[1]]  # those of one cell keep their order
    shuffled = rows[np.random.default_rng(seed).permutation(len(rows))]
    assert encode_tile(Gaussians.from_rows(shuffled), STEPS) == encode_tile(Gaussians.from_rows(rows), STEPS)


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
    with pytest.raises(StoreError, match="1 bytes are left over"):
        decode(data + b"\x00", STEPS, 0)


@given(seeds, st.integers(1, 60))
@few
def test_more_gaussians_than_may_be_are_refused(gaussians_of, seed, count):
    data = encode_tile(gaussians_of(seed, count, family="ordinary"), STEPS)
    assert len(decode(data, STEPS, count)) == count
    with pytest.raises(StoreError, match=f"claims {count} Gaussians, at most {count - 1}"):
        decode(data, STEPS, count - 1)


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_when_written(gaussians_of, column, value):
    rows = gaussians_of(0, 5, family="ordinary").to_rows()
    rows[3, column] = value
    with pytest.raises(ValueError, match="finite"):
        encode_tile(Gaussians.from_rows(rows), STEPS)


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, -1e-3), (1, -5.0), (2, 0.0), (3, -1.0), (2, 1e30), (3, 1e-40), (6, 1e30), (0, 1e30), (1, 1.01 * SIDE_LIMIT)],
)
def test_numbers_out_of_range_are_refused_when_written(gaussians_of, column, value):
    rows = gaussians_of(0, 5, family="ordinary").to_rows()
    rows[3, column] = value
    with pytest.raises(ValueError, match=r"written|finite"):
        encode_tile(Gaussians.from_rows(rows), STEPS)


def test_bits_told_on_the_way_add_up_to_the_stream(gaussians_of):
    told = []
    data = encode_quantized(
        quantize(gaussians_of(0, 300, family="ordinary"), STEPS), STEPS, ended=lambda *each: told.append(each)
    )
    quantities = ["position", "precision", "area", "color", "color", "color", "aspect", "rotation", "position"]
    assert [quantity for quantity, _ in told] == quantities
    bits = [bits for _, bits in told]
    assert bits == sorted(bits)
    assert 0 <= 8 * len(data) - bits[-1] < 64  # the header, and the last byte


# ---- the same everywhere ----


def golden(name):
    tile = TILES["tiles"][name]
    integers = {key: np.array(values, np.int64) for key, values in tile["integers"].items()}
    shaped = {"cells": (-1, 2), "places": (-1, 2), "colors": (-1, tile["bands"])}
    integers |= {key: integers[key].reshape(shape) for key, shape in shaped.items()}
    cells = integers.pop("cells")
    quantized = QuantizedGaussians(cells=cells, attributes=Attributes(**integers))
    return (GOLDEN / f"{name}.bin").read_bytes(), quantized, Steps(**TILES["steps"]), tile["bands"]


@pytest.mark.parametrize("name", TILES["tiles"])
def test_golden_tiles_decode_to_these_integers_and_encode_to_these_bytes(name):
    data, expected, steps, bands = golden(name)
    found = decode_quantized(data, steps, bands=bands, max_count=100)
    np.testing.assert_array_equal(found.cells, expected.cells)
    for key in Attributes.__slots__:
        np.testing.assert_array_equal(getattr(found.attributes, key), getattr(expected.attributes, key), err_msg=key)
    assert encode_quantized(expected, steps) == data
    assert decode(data, steps, 100, bands).is_finite()


def test_a_golden_gaussian_is_dequantised_as_the_format_says():
    data, quantized, steps, _ = golden("one")
    values, one = quantized.attributes, decode(data, steps, 1)
    fineness = 2.0 ** values.precisions[0]
    area, aspect = (values.areas[0] + 0.5) / fineness * steps.area, values.aspects[0] / fineness * steps.aspect
    bits = np.rint(np.log2(np.pi * np.sinh(aspect) / steps.rotation * fineness))
    color = steps.color * (np.exp(area) / steps.base_scale**2) ** -0.4 * values.colors[0]
    rgb = color @ [[3**-0.5] * 3, [2**-0.5, 0, -(2**-0.5)], [6**-0.5, -2 * 6**-0.5, 6**-0.5]]
    place = (values.places[0] + 0.5) / 2 ** (values.precisions[0] - 1)
    expected = [
        *(quantized.cells[0] + place) * steps.mean,
        np.exp((area + aspect) / 2),
        np.exp((area - aspect) / 2),
        (values.rotations[0] + 0.5) * np.pi / 2**bits,
        *rgb,
    ]
    assert values.precisions[0] > 1
    np.testing.assert_allclose(one.to_rows()[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "variables", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_NUM_THREADS": "1"}, {"NUMBA_NUM_THREADS": "2"}]
)
def test_bytes_depend_neither_on_threads_nor_on_the_compiler(variables):
    code = """
import json, pathlib, sys
from smartsplat.codec import Steps
from smartsplat.codec.tile import decode_quantized, encode_quantized
folder = pathlib.Path(sys.argv[1])
content = json.loads((folder / "tiles.json").read_text())
steps = Steps(**content["steps"])
for name, tile in content["tiles"].items():
    data = (folder / f"{name}.bin").read_bytes()
    print(name, encode_quantized(decode_quantized(data, steps, bands=tile["bands"], max_count=100), steps).hex())
"""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, GOLDEN],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.splitlines() == [f"{name} {(GOLDEN / f'{name}.bin').read_bytes().hex()}" for name in TILES["tiles"]]


def test_threads_that_code_at_once_do_not_disturb_each_other(gaussians_of):
    tiles = [gaussians_of(seed, 3000, family="ordinary", shape=(512, 512)) for seed in range(4)]
    alone = [encode_tile(tile, STEPS) for tile in tiles]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda tile: encode_tile(tile, STEPS), tiles * 4))
        decoded = list(pool.map(lambda data: decode(data, STEPS, 3000), together))
    assert together == alone * 4
    assert [encode_tile(tile, STEPS) for tile in decoded] == together


# ---- damage: the checksum that would notice it lies outside the stream ----


def is_accepted(data, count, bands=3, steps=STEPS):
    """Assert that a stream is refused, or finite and the very bytes its content is written as. Warnings are errors."""
    try:
        quantized = decode_quantized(data, steps, bands=bands, max_count=count)
        decoded = decode_tile(data, steps, bands=bands, max_count=count)
    except StoreError:
        return False
    assert len(decoded) == len(quantized.cells) <= count
    assert decoded.is_finite()
    assert (decoded.scales > 0).all()
    assert encode_quantized(quantized, steps) == data
    return True


def varint(value):
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def header(*numbers):
    return b"".join(map(varint, numbers))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (b"\x80", "cut off"),
        (b"\x81\x00", "cut off"),  # longer than it need be
        (b"\xff" * 100, "cut off"),
        (varint(2**60), "cut off"),
        (header(2**34, 1, 1, 0), f"claims {2**34} Gaussians"),
        (header(1001, 1, 1, 0), "claims 1001 Gaussians"),
        (header(1000), "cut off"),
        (header(1000, 5, 5), "cut off"),
        (header(1000, 0, 5, 0), "claims 0 x 5 cells"),
        (header(1000, 5, 0, 0), "claims 5 x 0 cells"),
        (header(1000, SIDE_LIMIT + 1, 5, 0), "cells: out of range"),
        (header(1000, 5, 2**34, 0), "cells: out of range"),
        (header(1000, 5, 5, LARGEST + 1), "out of range"),
        (header(1000, SIDE_LIMIT, SIDE_LIMIT, LARGEST), "damaged"),
        (header(1000, SIDE_LIMIT, 1, 0), "damaged"),
        (header(1, 1, SIDE_LIMIT, 0), "damaged"),
    ],
)
@pytest.mark.parametrize("tail", [b"", b"\xff" * 5000, b"\x55\xaa" * 2500, b"\x00" * 5000])
def test_a_header_that_claims_too_much_is_refused_soon_and_without_taking_memory(data, message, tail):
    if message == "cut off":
        tail = tail[:0]
    start, tracing = time.thread_time(), tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=message):
            decode(data + tail, STEPS, 1000)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert tracing is None
    assert time.thread_time() - start < 1


@pytest.mark.parametrize(("count", "family", "bands"), [(1, "needles", 3), (2, "ordinary", 1), (12, "needles", 3)])
def test_any_flipped_bit_or_byte_is_refused_or_stands_for_itself(gaussians_of, count, family, bands):
    stream = encode_tile(gaussians_of(4, count, family=family, bands=bands), STEPS)
    assert is_accepted(stream, count, bands)
    for at in range(len(stream)):
        for change in (*(1 << bit for bit in range(8)), 255):
            changed = bytearray(stream)
            changed[at] ^= change
            is_accepted(bytes(changed), count, bands)


@pytest.mark.parametrize("count", [1, 2, 12, 60])
def test_every_truncation_and_every_longer_stream_is_refused_or_stands_for_itself(gaussians_of, count):
    stream = encode_tile(gaussians_of(count, count, family="needles"), STEPS)
    for size in range(len(stream)):
        is_accepted(stream[:size], count)
    for tail in (b"\x00", b"\x01", b"\xff", b"\x00\x01", b"\xff" * 100, stream):
        is_accepted(stream + tail, count)
    with pytest.raises(StoreError):
        decode(stream + b"\x00", STEPS, count)
    with pytest.raises(StoreError):
        decode(stream + bytes(10) + b"\x01", STEPS, count)


@given(st.binary(max_size=200), st.integers(0, 100), st.sampled_from([1, 3]))
@example(b"\x01" + b"\x00" * 40, 1, 3)
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_refused_or_stand_for_themselves(data, count, bands):
    is_accepted(data, count, bands)


@given(st.binary(max_size=40), st.integers(1, 3), st.tuples(*[st.integers(1, 40)] * 2), st.integers(0, 20))
@settings(deadline=None, max_examples=500)
def test_any_bytes_behind_a_sound_header_are_refused_or_stand_for_themselves(data, count, extents, middle):
    is_accepted(header(count, *extents, middle) + data, count)


def written(quantized, *, middle=0, more=(0, 0), **changes):
    """Return a stream as `encode_quantized` does, but for what is not as it should be."""
    extents = quantized.cells.max(axis=0) + 1 + more
    coder = Coder(np.empty(10**5, np.uint8), decodes=False)
    order = code_positions(coder, quantized.cells, extents)
    values = Attributes(
        **{name: (changes.get(name, getattr(quantized.attributes, name)))[order] for name in Attributes.__slots__}
    )
    middle += int(np.median(values.areas >> values.precisions))
    code_attributes(coder, quantized.cells[order], extents, values, middle=middle, turns=STEPS.turns)
    return header(len(order), *extents.tolist(), 2 * middle if middle >= 0 else -2 * middle - 1) + coder.finish()


def test_integers_that_no_encoder_writes_are_refused(gaussians_of):
    quantized = quantize(gaussians_of(0, 25, family="ordinary"), STEPS)
    values, first = quantized.attributes, np.eye(25, dtype=np.int64)[0]
    assert is_accepted(written(quantized), 25)
    assert written(quantized) == encode_quantized(quantized, STEPS)
    refused = [
        {"middle": 1},
        {"middle": -1},
        {"more": (1, 0)},
        {"more": (0, 1)},
        {"precisions": values.precisions + first * (HIGHEST_PRECISION + 1)},
        {"areas": values.areas + first * (200 << values.precisions)},
        {"areas": values.areas - first * (200 << values.precisions)},
        {"aspects": values.aspects + first * (100 << values.precisions)},
        {"aspects": values.aspects + first * (LONGEST_ASPECT << values.precisions)},
        {"colors": values.colors + first[:, None] * 2 * LARGEST},
    ]
    for change in refused:
        with pytest.raises(StoreError, match="damaged"):
            decode(written(quantized, **change), STEPS, 25)


@pytest.mark.parametrize("name", ["mean", "area", "aspect", "rotation", "color", "base_scale"])
@pytest.mark.parametrize("value", [1e-300, 1e-30, 1e30, 1e300])
def test_steps_that_are_damaged_do_no_worse(gaussians_of, name, value):
    stream = encode_tile(gaussians_of(0, 12, family="needles"), STEPS)
    steps = dataclasses.replace(STEPS, **{name: value})
    try:
        decoded = decode(stream, steps, 12)
    except StoreError:
        return
    assert decoded.is_finite()


def mutated(rng, streams):
    stream = bytearray(streams[rng.integers(len(streams))])
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(stream) + 1))
        match rng.integers(8):
            case 0 | 1 if at < len(stream):
                stream[at] ^= 1 << int(rng.integers(8))
            case 2 if at < len(stream):
                stream[at] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
            case 3:
                del stream[at:]
            case 4:
                stream[at:at] = rng.bytes(int(rng.integers(1, 5)))
            case 5:
                del stream[at : at + int(rng.integers(1, 5))]
            case 6:
                other = streams[rng.integers(len(streams))]
                stream[at:] = other[int(rng.integers(len(other))) :]
            case 7:
                limits = [60, 30, SIDE_LIMIT, 2**35]
                numbers = [int(rng.integers(rng.choice(limits))) for _ in range(4)]
                stream[: int(rng.integers(8))] = header(*numbers)
    return bytes(stream)


@pytest.mark.parametrize("examples", [2000, pytest.param(200_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_changed_streams_are_refused_or_stand_for_themselves_in_little_time_and_memory(gaussians_of, examples):
    kinds = [(1, "ordinary"), (2, "needles"), (3, "tiny"), (12, "huge"), (25, "ordinary"), (60, "needles")]
    streams = [
        encode_tile(gaussians_of(seed, count, family=family), STEPS) for seed, (count, family) in enumerate(kinds)
    ]
    rng = np.random.default_rng(examples)
    assert all(is_accepted(stream, 60) for stream in streams)
    before, accepted, longest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0.0
    for _ in range(examples):
        data = mutated(rng, streams)
        start = time.thread_time()
        accepted += is_accepted(data, 60)
        longest = max(longest, time.thread_time() - start)
    assert longest < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert accepted > examples / 200, "too few to tell what they stand for"
    print(f"{accepted} of {examples} accepted, {longest:.3f} s at most")
