"""Staged pixels and their averages: any region of any strips, written in any order; damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsplat.config import LEVEL_FACTORS
from smartsplat.errors import StoreError
from smartsplat.geometry import Region
from smartsplat.optim.levels import level_region
from storage.groups import create_group, open_group
from storage.pixels import STRIP_HEIGHT, PixelStore

COARSE = LEVEL_FACTORS[1:]

HEIGHT, WIDTH = 2 * STRIP_HEIGHT + 41, 300  # a partial last strip, and a partial last chunk along x


def noise(shape, dtype):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype(dtype) if dtype == "float32" else rng.integers(1, 255, shape).astype(dtype)


def strips_of(pixels):
    return [pixels[y0 : y0 + STRIP_HEIGHT] for y0 in range(0, len(pixels), STRIP_HEIGHT)]


def staged(path, pixels, order=None):
    """Return a store with the strips written in `order`."""
    store = PixelStore.create(create_group(path, {}), shape=pixels.shape, dtype=str(pixels.dtype))
    strips = strips_of(pixels)
    for index in range(len(strips)) if order is None else order:
        store.write_strip(index, strips[index])
    return store


def shard_files(path, name="pixels"):
    return sorted(file for file in (path / name).rglob("c.*") if file.is_file())


def whole(pixels, factor=1):
    return level_region(Region(y0=0, y1=pixels.shape[0], x0=0, x1=pixels.shape[1]), factor)


def averages(pixels, factor):
    """Return the mean over each square of that many px, of pixels with data alone, and their share of the square."""
    height, width, bands = pixels.shape
    rows, cols = -(-height // factor), -(-width // factor)
    padded = np.full((rows * factor, cols * factor, bands), np.nan)
    padded[:height, :width] = pixels
    squares = padded.reshape(rows, factor, cols, factor, bands).swapaxes(1, 2).reshape(rows, cols, -1, bands)
    valid = np.isfinite(squares).all(axis=3)
    total = np.where(valid[..., None], squares, 0).sum(axis=2)
    return total / np.maximum(1, valid.sum(axis=2))[..., None], valid.mean(axis=2)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A store that is only read, its pixels and its folder."""
    pixels = noise((HEIGHT, WIDTH, 3), "uint8")
    path = tmp_path_factory.mktemp("pixels") / "g"
    return staged(path, pixels, order=[2, 0, 1]), pixels, path


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_region_reads_back_from_strips_written_in_any_order(noisy, data):
    store, pixels, _ = noisy
    y0, x0 = data.draw(st.integers(0, HEIGHT - 1)), data.draw(st.integers(0, WIDTH - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, HEIGHT)), data.draw(st.integers(x0 + 1, WIDTH))
    region = Region(y0=y0, y1=y1, x0=x0, x1=x1)
    np.testing.assert_array_equal(store.read(region), pixels[region.slices])


def test_a_store_opened_again_is_the_same(noisy):
    store, pixels, path = noisy
    again = PixelStore.open(open_group(path))
    assert (again.shape, again.dtype) == (pixels.shape, pixels.dtype)
    assert again.strips_done().all()
    assert again.value_range() == (pixels.min(), pixels.max())
    np.testing.assert_array_equal(again.read(whole(pixels)), pixels)
    for factor in COARSE:
        levels = (each.read_level(whole(pixels, factor), factor) for each in (again, store))
        np.testing.assert_array_equal(*(np.dstack([found, share]) for found, share in levels))
    assert store.recheck() == 0


def test_the_range_of_pixels_is_not_told_while_a_strip_is_missing(tmp_path):
    store = staged(tmp_path / "g", noise((HEIGHT, WIDTH, 1), "uint8"), order=[2, 0])
    with pytest.raises(StoreError, match="1 jobs have no result"):
        store.value_range()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (256, 256, 1), (257, 3, 4), (5, 700, 3)])
def test_every_dtype_and_shape_reads_back(tmp_path, dtype, shape):
    pixels = noise(shape, dtype)
    store = staged(tmp_path / "g", pixels)
    found = store.read(Region(y0=0, y1=shape[0], x0=0, x1=shape[1]))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)


# --- Levels -----------------------------------------------------------------------------------------------------------


def with_holes(shape):
    pixels = noise(shape, "float32")
    rng = np.random.default_rng(1)
    pixels[rng.random(shape) < 0.1] = np.nan  # of any band: the whole pixel has no data
    pixels[9:30, 4:40] = np.inf
    return pixels


@pytest.mark.parametrize("factor", COARSE)
@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(noise((512, 320, 3), "uint8"), id="whole squares"),
        pytest.param(noise((HEIGHT, 301, 3), "uint8"), id="cut squares"),
        pytest.param(noise((259, 7, 1), "uint16"), id="a strip of three rows"),
        pytest.param(noise((1, 1, 2), "int16"), id="one pixel"),
        pytest.param(noise((261, 70, 2), "float32"), id="float32"),
        pytest.param(with_holes((261, 70, 2)), id="holes"),
        pytest.param(np.full((20, 20, 1), np.nan, np.float32), id="no data"),
    ],
)
def test_levels_hold_the_averages_of_squares_and_the_share_of_each_that_has_data(tmp_path, pixels, factor):
    store = staged(tmp_path / "g", pixels)
    found, share = store.read_level(whole(pixels, factor), factor)
    expected, valid = averages(pixels, factor)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    # Up to three averages of four, each rounded to float32, of values of either sign.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * max(1, np.abs(expected).max()))
    assert (share is None) == bool((valid == 1).all())
    # Shares are quarters of quarters: exact.
    np.testing.assert_array_equal(np.ones_like(valid) if share is None else share, valid)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_region_of_a_level_is_the_crop_of_the_level(noisy, data):
    store, pixels, _ = noisy
    factor = data.draw(st.sampled_from(COARSE))
    height, width = whole(pixels, factor).shape
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    region = Region(y0=y0, y1=y1, x0=x0, x1=x1)
    expected, valid = averages(pixels, factor)
    found, share = store.read_level(region, factor)
    np.testing.assert_allclose(found, expected[region.slices], rtol=1e-6)  # rounded to float32 up to three times
    np.testing.assert_array_equal(np.ones(region.shape) if share is None else share, valid[region.slices])


# --- Strips and damage ------------------------------------------------------------------------------------------------


def test_strips_are_done_one_by_one(tmp_path):
    pixels = noise((HEIGHT, 20, 1), "uint8")
    store = staged(tmp_path / "g", pixels, order=[2])
    assert store.strips_done().tolist() == [False, False, True]
    assert staged(tmp_path / "h", pixels, order=[1, 0]).strips_done().tolist() == [True, True, False]


def test_each_strip_is_one_file_with_one_writer(tmp_path):
    pixels = noise((HEIGHT, 700, 1), "uint8")
    staged(tmp_path / "g", pixels, order=[0])
    (first,) = shard_files(tmp_path / "g")
    before = first.read_bytes()
    store = PixelStore.open(open_group(tmp_path / "g", writable=True))
    store.write_strip(1, strips_of(pixels)[1])
    assert len(shard_files(tmp_path / "g")) == 2
    assert first.read_bytes() == before


def test_an_image_of_zeros_is_stored_and_not_left_out(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    created = PixelStore.create(create_group(tmp_path / "g", {}), shape=pixels.shape, dtype="uint8")
    created.write_strip(0, strips_of(pixels)[0])
    opened = PixelStore.open(open_group(tmp_path / "g", writable=True))  # as a job in another process does
    for index in (1, 2):
        opened.write_strip(index, strips_of(pixels)[index])
    assert len(shard_files(tmp_path / "g")) == 3
    assert opened.strips_done().all()
    assert opened.value_range() == (0, 0)
    assert not opened.read(Region(y0=0, y1=HEIGHT, x0=0, x1=WIDTH)).any()
    assert opened.recheck() == 0


def test_the_value_range_leaves_out_what_is_not_finite(tmp_path):
    pixels = noise((HEIGHT, 10, 2), "float32")
    pixels[3, 4, 0], pixels[300, 1, 1], pixels[5, 5, 0] = np.nan, np.inf, -np.inf
    pixels[2 * STRIP_HEIGHT :] = np.nan
    store = staged(tmp_path / "g", pixels)
    finite = pixels[np.isfinite(pixels)]
    assert store.value_range() == (finite.min(), finite.max())
    assert store.strips_done().all()
    nothing = staged(tmp_path / "h", np.full((4, 4, 1), np.nan, np.float32))
    assert nothing.value_range() == (0, 0)
    assert nothing.strips_done().all()


def read_at(store, region, factor):
    """Return the pixels of a region of the scene, or their averages at a level."""
    return store.read(region) if factor == 1 else store.read_level(level_region(region, factor), factor)[0]


ABOVE = Region(y0=0, y1=STRIP_HEIGHT, x0=0, x1=WIDTH)
BELOW = Region(y0=2 * STRIP_HEIGHT, y1=HEIGHT, x0=0, x1=WIDTH)
READ_FROM = {1: "pixels", 2: "pixels", 4: "pixels-4", 8: "pixels-4"}
LEVELS = pytest.mark.parametrize(("factor", "name"), READ_FROM.items())


@LEVELS
@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
def test_a_flipped_bit_is_refused_by_the_regions_it_touches_and_found_by_recheck(tmp_path, share, factor, name):
    pixels = noise((HEIGHT, WIDTH, 1), "uint8")
    store = staged(tmp_path / "g", pixels)
    above, below = (read_at(store, region, factor) for region in (ABOVE, BELOW))
    file = shard_files(tmp_path / "g", name)[1]
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 4
    file.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        read_at(store, whole(pixels), factor)
    for sound in [each for each, other in READ_FROM.items() if other != name]:
        assert len(read_at(store, whole(pixels), sound)) == whole(pixels, sound).height
    np.testing.assert_array_equal(read_at(store, ABOVE, factor), above)
    np.testing.assert_array_equal(read_at(store, BELOW, factor), below)
    assert store.recheck() == 1
    assert store.strips_done().tolist() == [True, False, True]


@LEVELS
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_strip_is_refused_and_found_by_recheck(tmp_path, share, factor, name):
    store = staged(tmp_path / "g", noise((HEIGHT, WIDTH, 1), "uint8"))
    file = shard_files(tmp_path / "g", name)[2]
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(StoreError, match=r"damaged|missing"):
        read_at(store, Region(y0=HEIGHT - 1, y1=HEIGHT, x0=0, x1=WIDTH), factor)
    assert store.recheck() == 1
    assert store.strips_done().tolist() == [True, True, False]


@LEVELS
def test_a_lost_strip_is_refused_and_not_read_as_black(tmp_path, factor, name):
    pixels = noise((HEIGHT, WIDTH, 1), "uint8")
    store = staged(tmp_path / "g", pixels)
    below = read_at(store, BELOW, factor)
    shard_files(tmp_path / "g", name)[1].unlink()
    with pytest.raises(StoreError, match="strip 1 are missing"):
        read_at(store, whole(pixels), factor)
    np.testing.assert_array_equal(read_at(store, BELOW, factor), below)
    assert store.recheck() == 1
    assert store.strips_done().tolist() == [True, False, True]


@LEVELS
def test_a_damaged_strip_written_again_is_as_before(tmp_path, factor, name):
    pixels = noise((HEIGHT, WIDTH, 1), "uint8")
    store = staged(tmp_path / "g", pixels)
    before = read_at(store, whole(pixels), factor)
    for index, file in enumerate(shard_files(tmp_path / "g", name)):
        file.write_bytes(file.read_bytes()[:-9])
        assert store.recheck() == 1
        store.write_strip(index, strips_of(pixels)[index])
    assert store.recheck() == 0
    np.testing.assert_array_equal(read_at(store, whole(pixels), factor), before)
