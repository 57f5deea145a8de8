"""Pillow and tifffile write and read as independent witnesses of what the libvips reader returns."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smartsplat.errors import SourceError
from storage.source import MAX_SEGMENT, _check_tiff, _parse_tiff, load_vips, read_info, read_strips


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def write_tiff(path: Path, pixels: np.ndarray, **options) -> Path:
    """Write (H, W, bands) pixels; bands beyond gray and RGB are declared to be no alpha."""
    bands = pixels.shape[2]
    options = {"photometric": "rgb" if bands == 3 else "minisblack"} | options
    if bands == 1:
        tifffile.imwrite(path, pixels[..., 0], **options)
    else:
        tifffile.imwrite(path, pixels, **({"planarconfig": "contig"} | options))
    return path


def write_planar(path: Path, pixels: np.ndarray, **options) -> Path:
    photometric = "rgb" if pixels.shape[2] == 3 else "minisblack"
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    tifffile.imwrite(path, planes, photometric=photometric, planarconfig="separate", **options)
    return path


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def read(path: Path, *, strip_height: int = 7, start: int = 0) -> np.ndarray:
    info = read_info(path)
    strips = [strip for _, strip in read_strips(info, strip_height=strip_height, start=start)]
    return np.concatenate([np.empty((0, info.width, info.bands), info.dtype), *strips])


def refusal(path: Path) -> str:
    """Return the message with which opening or reading is refused: one line that names the file."""
    with pytest.raises(SourceError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- What is read is what was stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
def test_tiff_of_any_type_and_bands_is_read_exactly(tmp_path: Path, dtype: str, bands: int):
    pixels = noise(33, 21, bands, dtype=dtype)
    path = write_tiff(tmp_path / "a.tif", pixels)
    info = read_info(path)
    assert (info.shape, info.dtype, info.has_alpha) == (pixels.shape, dtype, False)
    assert info.raw_bytes == pixels.nbytes
    np.testing.assert_array_equal(read(path), pixels)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 40),
    strip_height=st.integers(1, 80),
    start=st.integers(0, 80),
    layout=st.sampled_from([{}, {"rowsperstrip": 3}, {"tile": (16, 16)}, {"compression": "zlib", "rowsperstrip": 100}]),
)
def test_strips_from_any_start_are_the_rows_of_the_image(tmp_path_factory, height, width, strip_height, start, layout):
    pixels = noise(height, width, 3, dtype="uint16", seed=height * width)
    path = write_tiff(tmp_path_factory.mktemp("strips") / "a.tif", pixels, **layout)
    row = start
    for y0, strip in read_strips(read_info(path), strip_height=strip_height, start=start):
        assert y0 == row
        assert 0 < strip.shape[0] <= strip_height
        np.testing.assert_array_equal(strip, pixels[y0 : y0 + strip.shape[0]])
        row += strip.shape[0]
    assert row == max(height, start)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("extension", ["png", "gif", "webp", "tif", "jpg"])
def test_pixels_agree_with_pillow_where_it_writes_the_mode(tmp_path: Path, mode: str, extension: str):
    if (extension == "jpg" and mode == "P") or (extension == "webp" and mode != "RGB"):
        pytest.skip("the format has no such mode")
    path = tmp_path / f"a.{extension}"
    image = Image.fromarray(noise(40, 30, 3)).convert(mode)
    image.save(path, **({"lossless": True} if extension == "webp" else {}))
    ours = read(path)
    with Image.open(path) as opened:
        theirs = np.asarray(opened.convert("L" if ours.shape[2] == 1 else "RGB")).reshape(ours.shape)
    # JPEG decoders may round differently, by one level a step.
    np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=3 if extension == "jpg" else 0)
    assert ours.dtype == np.uint8
    assert mode != "P" or ours.shape[2] == 3


def test_sixteen_bit_png_keeps_all_bits(tmp_path: Path):
    pixels = noise(20, 30, dtype="uint16")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png")[..., 0], pixels)


@pytest.mark.parametrize("extension", ["png", "tif", "jpg"])
def test_one_pixel_opens(tmp_path: Path, extension: str):
    Image.fromarray(np.full((1, 1, 3), 128, np.uint8)).save(tmp_path / f"a.{extension}")
    np.testing.assert_array_equal(read(tmp_path / f"a.{extension}"), np.full((1, 1, 3), 128))


def test_tags_unknown_to_libtiff_do_no_harm(tmp_path: Path):
    pixels = noise(9, 8, 3)
    geo = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (42113, "s", 0, "-9999", True), (65000, "s", 0, "private", True)]
    np.testing.assert_array_equal(read(write_tiff(tmp_path / "a.tif", pixels, extratags=geo)), pixels)


def test_tiff_strip_over_fifty_megabytes_is_read(tmp_path: Path):
    pixels = np.broadcast_to(noise(64, 1000, 3), (300, 64, 1000, 3)).reshape(-1, 1000, 3)
    path = write_tiff(tmp_path / "a.tif", pixels, compression="zlib", compressionargs={"level": 0}, rowsperstrip=19200)
    info = read_info(path)
    for y0, strip in read_strips(info, strip_height=4096):
        np.testing.assert_array_equal(strip[:64], pixels[y0 : y0 + 64])
    assert y0 + strip.shape[0] == info.height


# --- Alpha ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "bands"), [("LA", 1), ("RGBA", 3)])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_alpha_is_dropped_with_a_warning(tmp_path: Path, caplog, mode: str, bands: int, extension: str):
    image = Image.fromarray(noise(20, 30, 4)).convert(mode)
    path = tmp_path / f"a.{extension}"
    image.save(path)
    with caplog.at_level(logging.WARNING):
        info = read_info(path)
    assert (info.bands, info.has_alpha) == (bands, True)
    assert "alpha" in caplog.text
    np.testing.assert_array_equal(read(path), np.asarray(image)[..., :bands])


def test_alpha_is_the_band_the_tiff_declares(tmp_path: Path):
    pixels = noise(20, 30, 5)
    path = write_tiff(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=("unassalpha", "unspecified"))
    assert read_info(path).has_alpha
    np.testing.assert_array_equal(read(path), pixels[..., [0, 1, 2, 4]])


@pytest.mark.parametrize("bands", [4, 6])
def test_undeclared_extra_bands_are_data(tmp_path: Path, bands: int):
    pixels = noise(20, 30, bands)
    path = write_tiff(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=("unspecified",) * (bands - 3))
    np.testing.assert_array_equal(read(path), pixels)


def test_several_bands_declared_alpha_are_data(tmp_path: Path):
    pixels = noise(20, 30, 6)
    path = tmp_path / "a.tif"
    load_vips().Image.new_from_array(pixels).copy(interpretation="multiband").tiffsave(str(path))
    assert not read_info(path).has_alpha
    np.testing.assert_array_equal(read(path), pixels)


# --- What is logged ---------------------------------------------------------------------------------------------------


def warnings_of(path: Path, caplog) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read_info(path)
    return caplog.text


def test_several_pages_warn_and_the_first_is_read(tmp_path: Path, caplog):
    pixels = noise(2, 20, 30, 3)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb")
    assert "only the first" in warnings_of(path, caplog)
    np.testing.assert_array_equal(read(path), pixels[0])


def test_animation_warns(tmp_path: Path, caplog):
    frames = [Image.fromarray(noise(20, 30, 3, seed=seed)).convert("P") for seed in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert "only the first" in warnings_of(tmp_path / "a.gif", caplog)


def test_reduced_pages_of_a_pyramid_do_not_warn(tmp_path: Path, caplog):
    path = tmp_path / "a.tif"
    load_vips().Image.new_from_array(noise(300, 300, 3)).tiffsave(str(path), tile=True, pyramid=True)
    assert load_vips().Image.new_from_file(str(path)).get("n-pages") > 1
    assert warnings_of(path, caplog) == ""


def test_orientation_warns_and_is_not_applied(tmp_path: Path, caplog):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert "orientation 6" in warnings_of(tmp_path / "a.jpg", caplog)
    assert read(tmp_path / "a.jpg").shape == (20, 30, 3)


def test_progressive_jpeg_warns_of_memory_and_plain_does_not(tmp_path: Path, caplog):
    image = Image.fromarray(noise(20, 30, 3))
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "progressive.jpg", progressive=True)
    assert warnings_of(tmp_path / "plain.jpg", caplog) == ""
    assert "in memory" in warnings_of(tmp_path / "progressive.jpg", caplog)


# --- Fingerprint ------------------------------------------------------------------------------------------------------


def test_fingerprint_follows_content_not_name(tmp_path: Path):
    a = write_tiff(tmp_path / "a.tif", noise(20, 30, 3))
    b = write_tiff(tmp_path / "b.tif", noise(20, 30, 3))
    c = write_tiff(tmp_path / "c.tif", noise(20, 30, 3, seed=1))
    prints = [read_info(path).fingerprint for path in (a, b, c)]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 16
    assert int(prints[0], 16) >= 0


@pytest.mark.parametrize("where", [0.2, 0.99])
def test_fingerprint_sees_head_and_tail_of_a_long_file(tmp_path: Path, where: float):
    path = write_tiff(tmp_path / "a.tif", noise(1000, 1000, 3))
    before = read_info(path).fingerprint
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    assert read_info(path).fingerprint != before


def test_file_replaced_after_opening_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", noise(20, 30, 3))
    info = read_info(path)
    write_tiff(path, noise(20, 30, 3, seed=1))
    with pytest.raises(SourceError, match="changed"):
        next(read_strips(info, strip_height=5))


def test_replaced_file_is_read_anew_not_from_a_cache(tmp_path: Path):
    path = tmp_path / "a.tif"
    for seed in range(3):
        pixels = noise(20 + seed, 30, 3, seed=seed)
        np.testing.assert_array_equal(read(write_tiff(path, pixels)), pixels)


def test_info_survives_pickle_and_json(tmp_path: Path):
    info = read_info(write_tiff(tmp_path / "a.tif", noise(20, 30, 3)))
    assert pickle.loads(pickle.dumps(info)) == info
    assert type(info)(**json.loads(json.dumps(info.to_dict()))) == info


# --- What is refused --------------------------------------------------------------------------------------------------


def test_missing_file_is_refused(tmp_path: Path):
    assert "no such file" in refusal(tmp_path / "none.tif")


def test_folder_is_refused(tmp_path: Path):
    assert "not a file" in refusal(tmp_path)


def test_pipe_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "a.tif")
    assert "not a file" in refusal(tmp_path / "a.tif")


def test_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "a.tif").touch()
    assert "empty" in refusal(tmp_path / "a.tif")


def test_text_named_tif_is_refused(tmp_path: Path):
    (tmp_path / "a.tif").write_text("not an image\n" * 100)
    assert "not an image of a known format" in refusal(tmp_path / "a.tif")


def test_unreadable_file_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", noise(20, 30, 3))
    path.chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)  # permissions do not bind root
    try:
        assert "permission denied" in refusal(path)
    finally:
        os.seteuid(was)


def test_zero_sized_tiff_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", noise(20, 30, 3))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(0)
    assert "no pixels" in refusal(path)


def test_zero_sized_png_is_refused(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(20, 30, 3)).save(path)
    data = bytearray(path.read_bytes())
    data[16:20] = bytes(4)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int32", "float64", "complex64", "complex128"])
def test_other_sample_types_are_refused_by_name(tmp_path: Path, dtype: str):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((20, 30), dtype))
    message = refusal(path)
    assert f"{dtype} samples" in message
    assert "gdal_translate -ot" in message


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [2, 3, 5])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7, "compression": "zlib"}, {"tile": (16, 16)}])
def test_band_separate_tiff_is_refused_with_the_way_out(tmp_path: Path, dtype: str, bands: int, layout: dict):
    path = write_planar(tmp_path / "a.tif", noise(50, 30, bands, dtype=dtype), **layout)
    assert "INTERLEAVE=PIXEL" in refusal(path)


def test_the_refusal_of_band_separate_tiff_is_needed(tmp_path: Path):
    """libvips reads this one wrongly, without a word; if it no longer does, the refusal may be relaxed."""
    pixels = noise(50, 30, 2)
    path = write_planar(tmp_path / "a.tif", pixels)
    theirs = load_vips().Image.new_from_file(str(path), fail_on="warning").numpy()
    assert not np.array_equal(theirs, pixels)


def test_compression_that_libvips_lacks_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", noise(20, 30, 3), compression="lzma")
    message = refusal(path)
    assert "LZMA" in message
    assert "COMPRESS=DEFLATE" in message


@pytest.mark.parametrize("scheme", [50000, 34887, 34712, 12345])
def test_no_compression_tag_makes_zeros(tmp_path: Path, scheme: int):
    path = write_tiff(tmp_path / "a.tif", noise(20, 30, 3), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(scheme)
    refusal(path)


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_inks_and_lab_are_refused(tmp_path: Path, mode: str):
    Image.fromarray(noise(20, 30, 3)).convert(mode).save(tmp_path / "a.tif")
    assert mode.lower() in refusal(tmp_path / "a.tif").lower()


def test_cmyk_jpeg_is_refused(tmp_path: Path):
    Image.fromarray(noise(20, 30, 3)).convert("CMYK").save(tmp_path / "a.jpg")
    assert "CMYK" in refusal(tmp_path / "a.jpg")


def test_preview_as_first_page_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", noise(20, 30, 3), subfiletype=1)
    assert "preview" in refusal(path)


def test_oversized_compressed_segment_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", noise(20, 30, 3), compression="zlib", rowsperstrip=20)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["StripByteCounts"].overwrite(MAX_SEGMENT + 1)
    with pytest.raises(SourceError, match="TILED=YES"):
        _check_tiff(str(path), _parse_tiff(str(path)))


# --- Truncation: the header is fine, the pixels are not ---------------------------------------------------------------


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp", "gif"])
@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_truncated_file_is_refused(tmp_path: Path, extension: str, keep: float):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(noise(200, 300, 3)).save(path)
    assert "truncated or damaged" in refusal(cut(path, keep))


@pytest.mark.parametrize("layout", [{"rowsperstrip": 8}, {"tile": (16, 16)}, {"rowsperstrip": 200}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_tiff_is_refused_while_reading(tmp_path: Path, layout: dict, compression: str | None):
    path = cut(write_tiff(tmp_path / "a.tif", noise(200, 300, 3), compression=compression, **layout), 0.9)
    assert read_info(path).shape == (200, 300, 3)
    assert "truncated or damaged near rows" in refusal(path)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 11_000), st.sampled_from(["jpg", "png", "tif"]))
def test_file_cut_anywhere_is_refused_or_whole(tmp_path_factory, length: int, extension: str):
    path = tmp_path_factory.mktemp("cut") / f"a.{extension}"
    Image.fromarray(noise(60, 60, 3)).save(path)
    data, whole = path.read_bytes(), read(path)
    path.write_bytes(data[:length])
    try:
        pixels = read(path)
    except SourceError:
        return
    np.testing.assert_array_equal(pixels, whole)


def test_flipped_byte_in_compressed_pixels_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", noise(64, 64, 3), compression="zlib", rowsperstrip=64)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    refusal(path)


# --- Memory, stderr and import ----------------------------------------------------------------------------------------

PROGRAM = """
import resource, sys
from storage.source import load_vips, read_info, read_strips
load_vips()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
info = read_info(sys.argv[1])
before = peak()
rows = sum(len(strip) for _, strip in read_strips(info, strip_height=256))
print(rows, peak() - before)
"""


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)


def test_memory_does_not_grow_with_height(tmp_path: Path):
    pixels = np.broadcast_to(noise(256, 500, 3), (600, 256, 500, 3)).reshape(-1, 500, 3)
    path = write_tiff(tmp_path / "a.tif", pixels, rowsperstrip=64)
    rows, grown = map(int, run_python(PROGRAM, str(path)).stdout.split())
    assert rows == 600 * 256
    assert grown < 60 < pixels.nbytes >> 20  # MB: a few strips and the buffers of libvips, 20 when measured


def test_nothing_is_printed_for_a_damaged_file(tmp_path: Path):
    path = cut(write_tiff(tmp_path / "a.tif", noise(200, 300, 3)), 0.5)
    program = f"""
from smartsplat.errors import SourceError
from storage.source import read_info, read_strips
for path in ({str(path)!r}, {str(tmp_path / "none.tif")!r}):
    try:
        list(read_strips(read_info(path), strip_height=16))
    except SourceError:
        continue
    raise AssertionError
"""
    done = run_python(program)
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_the_module_imports_no_decoder():
    program = "import sys, storage.source, storage.sink; print({'pyvips', 'tifffile'} & set(sys.modules))"
    assert run_python(program).stdout.strip() == "set()"
