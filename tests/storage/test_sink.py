"""Pillow and tifffile read what was written; errors leave the folder as it was."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smartsplat.errors import SinkError, StorageFullError
from storage import sink
from storage.sink import check_output, write_image
from storage.source import load_vips, read_info, read_strips


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, (y + x) * 127 / (height + width)], axis=2).astype(np.uint8)


def in_strips(pixels: np.ndarray, rows: int = 7) -> Iterator[np.ndarray]:
    return (pixels[y : y + rows] for y in range(0, len(pixels), rows))


def facts(pixels: np.ndarray) -> dict:
    return {**dict(zip(("height", "width", "bands"), pixels.shape, strict=True)), "dtype": pixels.dtype.name}


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def write(path: Path, pixels: np.ndarray, rows: int = 7) -> None:
    write_image(path, in_strips(pixels, rows), **facts(pixels))


# --- What is written can be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
def test_tiff_keeps_any_type_and_bands_exactly(tmp_path: Path, dtype: str, bands: int):
    pixels = noise(300, 270, bands, dtype=dtype)
    write(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif").reshape(pixels.shape), pixels)
    info = read_info(tmp_path / "a.tif")
    assert (info.shape, info.dtype, info.has_alpha) == (pixels.shape, dtype, False)
    ours = np.concatenate([strip for _, strip in read_strips(info, strip_height=64)])
    np.testing.assert_array_equal(ours, pixels)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    bands=st.integers(1, 5),
    rows=st.integers(1, 50),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
)
def test_any_size_and_cut_gives_the_same_pixels(tmp_path_factory, height, width, bands, rows, dtype):
    pixels = noise(height, width, bands, dtype=dtype)
    path = tmp_path_factory.mktemp("sizes") / "a.tif"
    write(path, pixels, rows)
    np.testing.assert_array_equal(tifffile.imread(path).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("bands", [1, 3])
def test_png_keeps_eight_bits_exactly(tmp_path: Path, bands: int):
    pixels = noise(50, 40, bands)
    write(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_gray_png_keeps_sixteen_bits_exactly(tmp_path: Path):
    pixels = noise(50, 40, 1, dtype="uint16")
    write(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[..., 0])


def test_color_png_keeps_sixteen_bits_exactly(tmp_path: Path):
    pixels = noise(50, 40, 3, dtype="uint16")
    write(tmp_path / "a.png", pixels)
    ((_, ours),) = read_strips(read_info(tmp_path / "a.png"), strip_height=50)
    np.testing.assert_array_equal(ours, pixels)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.JPG", "a.webp"])
@pytest.mark.parametrize("bands", [1, 3])
def test_lossy_formats_stay_close(tmp_path: Path, name: str, bands: int):
    pixels = smooth(60, 80)[..., :bands]
    write(tmp_path / name, pixels)
    with Image.open(tmp_path / name) as image:
        theirs = np.asarray(image.convert("L" if bands == 1 else "RGB")).reshape(pixels.shape)
    # A smooth image at Q 90 and above: a mean error of a level or so is what the color transform costs.
    assert np.abs(theirs.astype(int) - pixels).mean() < 2


def test_tiff_is_tiled_and_deflated(tmp_path: Path):
    write(tmp_path / "a.tiff", smooth(600, 500))
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        page = tiff.pages[0]
        assert page.is_tiled
        assert page.compression.name == "ADOBE_DEFLATE"
        assert not tiff.is_bigtiff
    assert (tmp_path / "a.tiff").stat().st_size < 600 * 500 * 3 / 4


def test_only_large_tiff_is_bigtiff():
    assert sink._tiff_options((40_000, 40_000, 3), "uint8")["bigtiff"]
    assert not sink._tiff_options((36_000, 36_000, 3), "uint8")["bigtiff"]


def test_strips_that_are_views_are_written_right(tmp_path: Path):
    pixels = noise(30, 40, 3)
    write(tmp_path / "a.png", pixels[::-1, ::-1])
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[::-1, ::-1])


# --- Complete or not at all -------------------------------------------------------------------------------------------


def failing(pixels: np.ndarray, error: BaseException) -> Iterator[np.ndarray]:
    yield pixels[:10]
    raise error


@pytest.mark.parametrize("error", [RuntimeError("decoder"), OSError("store"), KeyboardInterrupt()])
def test_failure_leaves_the_existing_file_and_nothing_else(tmp_path: Path, error: BaseException):
    pixels = noise(30, 40, 3)
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with pytest.raises(type(error)) as caught:
        write_image(path, failing(pixels, error), **facts(pixels))
    assert caught.value is error
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["a.png"]


def test_existing_file_is_replaced_only_after_the_last_strip(tmp_path: Path):
    pixels = noise(30, 40, 3)
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def watched() -> Iterator[np.ndarray]:
        for strip in in_strips(pixels):
            assert path.read_bytes() == b"before"
            yield strip

    write_image(path, watched(), **facts(pixels))
    assert names(tmp_path) == ["a.png"]
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("rows", [29, 31])
def test_wrong_number_of_rows_is_refused(tmp_path: Path, rows: int):
    with pytest.raises(SinkError, match="rows"):
        write_image(tmp_path / "a.png", in_strips(noise(rows, 40, 3)), **facts(noise(30, 40, 3)))
    assert names(tmp_path) == []


def test_endless_strips_are_refused(tmp_path: Path):
    strips = itertools.repeat(noise(10, 40, 3))
    with pytest.raises(SinkError, match="or more"):
        write_image(tmp_path / "a.png", strips, **facts(noise(30, 40, 3)))


@pytest.mark.parametrize("strip", [noise(30, 41, 3), noise(30, 40, 1), noise(30, 40), noise(30, 40, 3, dtype="uint16")])
def test_strip_of_another_shape_or_type_is_refused(tmp_path: Path, strip: np.ndarray):
    with pytest.raises(SinkError, match="strip at row 0"):
        write_image(tmp_path / "a.tif", [strip], **facts(noise(30, 40, 3)))


# --- What is refused before any work ----------------------------------------------------------------------------------

RGB = {"height": 30, "width": 40, "bands": 3, "dtype": "uint8"}


def refusal(path: Path, **changes: object) -> str:
    with pytest.raises(SinkError) as caught:
        check_output(path, **(RGB | changes))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["a.bmp", "a", ".tif", "a.tif.gz"])
def test_unknown_extension_lists_the_known(tmp_path: Path, name: str):
    message = refusal(tmp_path / name)
    assert all(known in message for known in (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp"))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a.jpg", {"width": 65_501}),
        ("a.jpg", {"height": 65_501}),
        ("a.webp", {"width": 16_384}),
        ("a.png", {"height": 1_000_001}),
        ("a.jpg", {"dtype": "uint16"}),
        ("a.webp", {"dtype": "float32"}),
        ("a.png", {"dtype": "int16"}),
        ("a.jpg", {"bands": 4}),
        ("a.webp", {"bands": 2}),
        ("a.png", {"bands": 4}),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_way_out(tmp_path: Path, name: str, changes: dict):
    assert "use .tif" in refusal(tmp_path / name, **changes)
    check_output(tmp_path / "a.tif", **(RGB | changes))


@pytest.mark.parametrize(("name", "side"), [("a.jpg", 65_500), ("a.webp", 16_383), ("a.png", 1_000_000)])
def test_the_largest_side_allowed_is_written_and_read(tmp_path: Path, name: str, side: int):
    pixels = np.zeros((1, side, 3), np.uint8)
    write(tmp_path / name, pixels)
    assert read_info(tmp_path / name).shape == pixels.shape


@pytest.mark.parametrize("changes", [{"dtype": "float64"}, {"height": 0}, {"bands": 0}, {"width": 100_000_001}])
def test_what_not_even_tiff_holds_is_refused(tmp_path: Path, changes: dict):
    assert "use .tif" not in refusal(tmp_path / "a.tif", **changes)


def test_missing_folder_is_refused(tmp_path: Path):
    assert "mkdir" in refusal(tmp_path / "none" / "a.tif")


def test_folder_as_output_is_refused(tmp_path: Path):
    (tmp_path / "a.tif").mkdir()
    assert "is a folder" in refusal(tmp_path / "a.tif")


def test_folder_without_write_permission_is_refused(tmp_path: Path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.geteuid() == 0:  # permissions do not bind root
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert "not writable" in refusal(folder / "a.tif")


# --- A full disk ------------------------------------------------------------------------------------------------------


def test_image_larger_than_the_free_disk_is_refused_with_figures(tmp_path: Path):
    with pytest.raises(StorageFullError, match=r"needs 300000000\.0 GB"):
        check_output(tmp_path / "a.tif", height=10**8, width=10**8, bands=30, dtype="uint8")


needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")


@needs_full_device
def test_disk_that_fills_up_under_the_strips_is_reported(tmp_path: Path):
    with pytest.raises(StorageFullError, match="ran full"), sink._saving(tmp_path / "a.png"):
        sink._append(Path("/dev/full"), noise(300, 300, 3))


@needs_full_device
@pytest.mark.parametrize("extension", ["tif", "png", "jpg", "webp"])
def test_disk_that_fills_up_under_the_encoder_is_reported(tmp_path: Path, extension: str):
    path, raw, pixels = tmp_path / f"a.{extension}", tmp_path / "raw.tif", noise(300, 300, 3)
    path.symlink_to("/dev/full")
    sink._create_raw(raw, shape=pixels.shape, dtype="uint8")
    sink._append(raw, pixels)
    with pytest.raises(StorageFullError, match="ran full"), sink._saving(path):
        sink._encode(raw, path, shape=pixels.shape, dtype="uint8")


def test_other_failures_of_the_encoder_are_one_line(tmp_path: Path):
    with pytest.raises(SinkError) as caught, sink._saving(tmp_path / "a.png"):
        load_vips().Image.new_from_file(str(tmp_path / "none.tif"))
    assert "cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Memory -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import resource, sys
import numpy as np
from storage.sink import write_image
strip = np.zeros((256, 500, 3), np.uint8)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
write_image(sys.argv[1], [strip], height=256, width=500, bands=3, dtype="uint8")
before = peak()
write_image(sys.argv[1], (strip for _ in range(600)), height=600 * 256, width=500, bands=3, dtype="uint8")
print(peak() - before)
"""


@pytest.mark.parametrize("extension", ["tif", "png"])
def test_memory_does_not_grow_with_height(tmp_path: Path, extension: str):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / f"a.{extension}")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 60  # MB, of an image of 220
