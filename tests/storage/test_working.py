"""Arrays of working data hold what Zarr says they hold, and say so when they are damaged, whatever part is read."""

from __future__ import annotations

import errno
import itertools

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from storage.groups import CHECKED, create_array, create_group, open_array
from storage.working import WorkingPipeline

SHARDED = {"chunks": (8, 8), "shards": (16, 24), "compressors": (BloscCodec(cname="lz4"), Crc32cCodec())}
PLAIN = {"chunks": (8, 8), "compressors": CHECKED}
PARTS = [
    (slice(0, 16), slice(0, 24)),  # whole chunks
    (slice(3, 11), slice(5, 6)),  # parts of some
    (slice(8, 16), slice(0, 13)),  # both
    (9, slice(None)),
    (slice(None), slice(None)),
]


@pytest.fixture(params=[PLAIN, SHARDED], ids=["plain", "sharded"])
def stored(request, tmp_path):
    """An array of working data, cut by its edges, with what was written to it, and its folder."""
    group = create_group(tmp_path / "g", {})
    create_array(group, "a", working=True, shape=(30, 45), dtype="float32", fill_value=0, **request.param)
    values = np.random.default_rng(0).random((30, 45)).astype(np.float32)
    array = open_array(group, "a", working=True)
    array[:] = values
    return array, values, tmp_path / "g" / "a"


def test_working_data_is_worked_on_by_zarrs_and_other_arrays_are_not(stored, tmp_path):
    array, _, _ = stored
    group = zarr.open_group(tmp_path / "g")
    assert isinstance(array._async_array.codec_pipeline, WorkingPipeline)
    assert not isinstance(open_array(group, "a")._async_array.codec_pipeline, WorkingPipeline)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_any_part_reads_as_zarr_reads_it(stored, part):
    array, values, folder = stored
    np.testing.assert_array_equal(np.asarray(array[part]), values[part])
    np.testing.assert_array_equal(np.asarray(zarr.open_array(folder)[part]), values[part])


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_flipped_bit_is_an_error_or_in_nothing_that_was_read(stored, part):
    array, values, folder = stored
    refused = 0
    for file, share in itertools.product(sorted(folder.glob("c.*")), (0.1, 0.5, 0.9)):
        sound = file.read_bytes()
        damaged = bytearray(sound)
        damaged[int(share * len(damaged))] ^= 16
        file.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(np.asarray(array[part]), values[part])
        except ValueError:
            refused += 1
        file.write_bytes(sound)
    assert refused > 0


def test_writing_a_part_keeps_the_rest_of_its_chunk(stored):
    array, values, folder = stored
    array[3:5, 20:40] = values[3:5, 20:40] = -1
    np.testing.assert_array_equal(np.asarray(array[:]), values)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(folder)[:]), values)
    assert not list(folder.glob("*.partial"))


def test_a_shard_of_fill_values_is_written_too(tmp_path):
    group = create_group(tmp_path / "g", {})
    create_array(group, "a", working=True, shape=(32, 48), dtype="uint8", fill_value=0, **SHARDED)
    values = np.zeros((32, 48), np.uint8)
    values[16:, 24:] = 7
    open_array(group, "a", working=True)[:] = values
    assert len(list((tmp_path / "g" / "a").glob("c.*"))) == 4
    np.testing.assert_array_equal(np.asarray(zarr.open_array(tmp_path / "g" / "a")[:]), values)


def test_a_shard_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    group = create_group(tmp_path / "g", {})
    create_array(group, "a", working=True, shape=(16, 24), dtype="uint8", fill_value=0, **SHARDED)
    array = open_array(group, "a", working=True)
    (tmp_path / "g" / "a" / "c.0.0").mkdir()
    with pytest.raises(OSError, match="directory") as raised:
        array[:] = np.ones((16, 24), np.uint8)
    assert raised.value.errno == errno.EISDIR
