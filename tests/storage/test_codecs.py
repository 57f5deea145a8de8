"""The Zarr codec: plain arrays in, the method's bytes in the store, the quantised numbers out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from smartsplat.codec import FORMAT_VERSION, Steps, decode_tile, encode_tile
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians
from storage.codecs import CODEC_NAME, GaussiansCodec

STEPS = Steps(mean=0.25, area=0.1, aspect=0.12, rotation=0.08, color=0.03, base_scale=2.0)


def array_at(path, *, capacity, bands=3, checked=True):
    return zarr.create_array(
        path,
        shape=(1, 1, capacity, 5 + bands),
        chunks=(1, 1, capacity, 5 + bands),
        dtype="float32",
        fill_value=np.nan,
        serializer=GaussiansCodec(steps=STEPS),
        compressors=[Crc32cCodec()] if checked else [],
    )


def padded(rows, capacity):
    full = np.full((capacity, rows.shape[1]), np.nan, np.float32)
    full[: len(rows)] = rows
    return full


@pytest.mark.parametrize("bands", [1, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 17, 20])
def test_an_array_holds_the_bytes_of_the_tile_and_reads_as_what_they_decode_to(tmp_path, gaussians_of, bands, count):
    gaussians = gaussians_of(count, count, family="ordinary", bands=bands)
    array = array_at(tmp_path / "a", capacity=20, bands=bands, checked=False)
    array[0, 0] = padded(gaussians.to_rows(), 20)
    data = encode_tile(gaussians, STEPS)
    if count:
        assert (tmp_path / "a" / "c" / "0" / "0" / "0" / "0").read_bytes() == data
    expected = decode_tile(data, STEPS, bands=bands, max_count=20).to_rows()
    np.testing.assert_array_equal(array[0, 0], padded(expected, 20))


def test_writing_back_what_was_read_changes_no_byte(tmp_path, gaussians_of):
    array = array_at(tmp_path / "a", capacity=30)
    array[0, 0] = padded(gaussians_of(0, 25, family="ordinary").to_rows(), 30)
    chunk = tmp_path / "a" / "c" / "0" / "0" / "0" / "0"
    before = chunk.read_bytes()
    array[0, 0] = array[0, 0]
    assert chunk.read_bytes() == before


def test_metadata_round_trips_through_json(tmp_path):
    array_at(tmp_path / "a", capacity=4)
    metadata = json.loads((tmp_path / "a" / "zarr.json").read_bytes())
    serializer = metadata["codecs"][0]
    assert serializer["name"] == CODEC_NAME
    assert serializer["configuration"]["format"] == FORMAT_VERSION
    assert GaussiansCodec.from_dict(serializer) == GaussiansCodec(steps=STEPS)
    assert GaussiansCodec.from_dict(serializer).to_dict() == serializer


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, None, "1"])
def test_an_unknown_format_version_is_refused_with_the_way_out(version):
    data = GaussiansCodec(steps=STEPS).to_dict()
    data["configuration"]["format"] = version
    with pytest.raises(StoreError, match=f"format {version} .*upgrade"):
        GaussiansCodec.from_dict(data)


def test_more_gaussians_than_the_capacity_are_refused_when_read(tmp_path, gaussians_of):
    array = array_at(tmp_path / "a", capacity=3, checked=False)
    array[0, 0] = padded(gaussians_of(0, 2, family="ordinary").to_rows(), 3)
    chunk = tmp_path / "a" / "c" / "0" / "0" / "0" / "0"
    chunk.write_bytes(encode_tile(gaussians_of(0, 4, family="ordinary"), STEPS))
    with pytest.raises(StoreError, match="claims 4 Gaussians, at most 3"):
        array[0, 0]


@pytest.mark.parametrize("column", [1, 2, 4, 7])
def test_a_number_that_is_not_finite_is_never_written(tmp_path, gaussians_of, column):
    rows = gaussians_of(0, 3, family="ordinary").to_rows()
    rows[1, column] = np.nan  # in column 0 it marks padding
    array = array_at(tmp_path / "a", capacity=3)
    with pytest.raises(ValueError, match="finite"):
        array[0, 0] = rows


def test_padding_may_lie_anywhere(tmp_path, gaussians_of):
    rows = gaussians_of(0, 3, family="ordinary").to_rows()
    spread = np.full((7, 8), np.nan, np.float32)
    spread[[0, 3, 6]] = rows
    array = array_at(tmp_path / "a", capacity=7)
    array[0, 0] = spread
    expected = decode_tile(encode_tile(Gaussians.from_rows(rows), STEPS), STEPS, bands=3, max_count=3)
    np.testing.assert_array_equal(array[0, 0], padded(expected.to_rows(), 7))
