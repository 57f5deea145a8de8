"""Write strips of pixels, top to bottom, as one TIFF, PNG, JPEG or WebP file, in flat memory.

The strips first go to an uncompressed file beside the output, which libvips then encodes, so the folder needs room
for the raw pixels and the finished file. The output appears, or is replaced, only when it is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.errors import SinkError, StorageFullError
from storage.source import DTYPES, cause_of, load_tifffile, load_vips

COLOR_BANDS = (1, 3)
"""Numbers of bands that every format can show: gray and RGB."""

_BIGTIFF_BYTES = 4_000_000_000  # deflate may add a little to what is close to the 4 GiB of a classic TIFF
_TIFF_MINISBLACK = 1
_TIFF_UNSPECIFIED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """What one file format can hold, and the options to save it with."""

    name: str
    dtypes: tuple[str, ...]
    side: int
    only_color: bool = True
    options: dict[str, Any] = field(default_factory=dict)


# Sides, px: of libvips, of most PNG readers, of libjpeg and of the WebP format.
_TIFF = _Format(
    name="TIFF",
    dtypes=tuple(DTYPES.values()),
    side=100_000_000,
    only_color=False,
    options={"compression": "deflate", "tile": True, "tile_width": 256, "tile_height": 256},
)
_PNG = _Format(name="PNG", dtypes=("uint8", "uint16"), side=1_000_000)
_JPEG = _Format(name="JPEG", dtypes=("uint8",), side=65_500, options={"Q": 95})
_WEBP = _Format(name="WebP", dtypes=("uint8",), side=16_383, options={"Q": 90})

_FORMATS = {".tif": _TIFF, ".tiff": _TIFF, ".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP}


def check_output(path: str | Path, *, height: int, width: int, bands: int, dtype: str) -> None:
    """Refuse an image that could not be written, before any work is done for it; looks at the folder.

    Parameters
    ----------
    path
        Output file; its extension chooses the format: .tif, .tiff, .png, .jpg, .jpeg or .webp.
    height, width
        Size, px.
    bands
        Values a pixel.
    dtype
        Numpy name of the sample type.

    Raises
    ------
    SinkError
        If the extension is unknown, the format cannot hold such an image, or the folder cannot be written to.
    StorageFullError
        If the disk has less room than the raw pixels need.
    """
    path = Path(path)
    _check_format(path, height=height, width=width, bands=bands, dtype=dtype)
    _check_folder(path)
    needed, free = height * width * bands * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        raise StorageFullError(
            f"{path}: writing it needs {needed / 1e9:.1f} GB beside it for the raw pixels, {free / 1e9:.1f} GB are "
            f"free; make room, or write a smaller region or to another disk"
        )


def write_image(
    path: str | Path, strips: Iterable[NDArray[Any]], *, height: int, width: int, bands: int, dtype: str
) -> None:
    """Write `strips` as the image `path`, complete or not at all; an existing file is replaced at the very end.

    TIFF is tiled, deflated, and lossless as PNG is; JPEG has quality 95, WebP 90 (held whole in memory). Nothing
    is left behind after an error or an interruption.

    Parameters
    ----------
    strips
        Arrays (rows, width, bands) of `dtype`, top to bottom, `height` rows in all.
    height, width, bands, dtype
        As for `check_output`.

    Raises
    ------
    SinkError
        As `check_output`; or if the strips do not add up to the image; or if it cannot be encoded.
    StorageFullError
        If the disk runs full.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "gray.png")
    ...     write_image(path, [np.zeros((4, 5, 1), np.uint8)] * 2, height=8, width=5, bands=1, dtype="uint8")
    ...     path.read_bytes()[1:4]
    b'PNG'
    """
    path = Path(path)
    check_output(path, height=height, width=width, bands=bands, dtype=dtype)
    with _saving(path):
        workspace = tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent)
    with workspace as folder:
        raw, partial = Path(folder, "raw.tif"), Path(folder, f"partial{path.suffix}")
        with _saving(path):
            _create_raw(raw, shape=(height, width, bands), dtype=dtype)
        for strip in _checked(path, strips, shape=(height, width, bands), dtype=dtype):
            with _saving(path):
                _append(raw, strip)
        with _saving(path):
            _encode(raw, partial, shape=(height, width, bands), dtype=dtype)
            partial.replace(path)


def _check_format(path: Path, *, height: int, width: int, bands: int, dtype: str) -> None:
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise SinkError(f"{path}: extension {path.suffix!r} is unknown; use one of {', '.join(_FORMATS)}")
    way_out = "" if form is _TIFF else "; use .tif"
    if dtype not in form.dtypes:
        raise SinkError(f"{path}: {form.name} holds {' or '.join(form.dtypes)} samples, not {dtype}{way_out}")
    if form.only_color and bands not in COLOR_BANDS:
        raise SinkError(f"{path}: {form.name} holds 1 or 3 bands, not {bands}{way_out}")
    if min(height, width, bands) < 1:
        raise SinkError(f"{path}: an image of {height} x {width} px and {bands} bands has no pixels")
    if max(height, width) > form.side:
        raise SinkError(f"{path}: {form.name} holds at most {form.side} px a side, not {height} x {width}{way_out}")


def _check_folder(path: Path) -> None:
    folder = path.parent
    try:
        is_folder, is_taken = folder.is_dir(), path.is_dir()
    except OSError as error:
        raise SinkError(f"{path}: {(error.strerror or str(error)).lower()}; use another folder") from error
    if not is_folder:
        raise SinkError(f"{path}: folder {folder} does not exist; create it with mkdir -p {folder}")
    if is_taken:
        raise SinkError(f"{path}: is a folder; give a file name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"{path}: folder {folder} is not writable; use another folder, or change its permissions")


@contextmanager
def _saving(path: Path) -> Generator[None]:
    """Turn what the operating system or libvips refuses into our errors."""
    vips = load_vips()
    try:
        yield
    except (OSError, vips.Error) as error:
        if _is_full(error):
            raise StorageFullError(f"{path}: the disk ran full while writing it; make room and start again") from error
        cause = (error.strerror or str(error)) if isinstance(error, OSError) else cause_of(error)
        raise SinkError(f"{path}: cannot be written: {cause}; use another folder or format") from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def _checked(
    path: Path, strips: Iterable[NDArray[Any]], *, shape: tuple[int, int, int], dtype: str
) -> Iterator[NDArray[Any]]:
    """Yield the strips, as long as they are part of the image, and fail if they are not all of it."""
    height, width, bands = shape
    rows = 0
    for strip in strips:
        if strip.shape[1:] != (width, bands) or strip.dtype != dtype:
            raise SinkError(
                f"{path}: the strip at row {rows} is {strip.dtype} {strip.shape}, the image {dtype} {shape}; "
                f"give strips (rows, width, bands)"
            )
        rows += strip.shape[0]
        if rows > height:
            break
        yield strip
    if rows != height:
        raise SinkError(f"{path}: got {rows} rows of pixels{' or more' * (rows > height)}, the image has {height}")


def _create_raw(raw: Path, *, shape: tuple[int, int, int], dtype: str) -> None:
    """Write the header of an uncompressed TIFF, whose pixels are to follow it.

    Why a TIFF: libvips reads one through a small buffer, but maps a file without header into memory as a whole.
    """
    layout: Any = {"shape": shape, "photometric": "rgb" if shape[2] == 3 else "minisblack", "planarconfig": "contig"}
    if shape[2] == 1:
        layout = {"shape": shape[:2], "photometric": "minisblack"}
    load_tifffile().imwrite(raw, dtype=dtype, bigtiff=True, metadata=None, rowsperstrip=1, **layout)
    with load_tifffile().TiffFile(raw) as tiff:
        first_pixel: int = tiff.pages[0].dataoffsets[0]
    os.truncate(raw, first_pixel)


def _append(raw: Path, strip: NDArray[Any]) -> None:
    with raw.open("ab") as file:
        file.write(np.ascontiguousarray(strip).data)


def _encode(raw: Path, path: Path, *, shape: tuple[int, int, int], dtype: str) -> None:
    """Write the image `path` from the raw pixels, top to bottom, and flush it to the disk."""
    form, bands = _FORMATS[path.suffix.lower()], shape[2]
    how = {"access": "sequential", "fail_on": "warning", "revalidate": True, "unlimited": True}
    image = load_vips().Image.new_from_file(str(raw), **how)
    image = image.copy(interpretation=_interpretation(bands, dtype))
    image.write_to_file(str(path), **form.options, **(_tiff_options(shape, dtype) if form is _TIFF else {}))
    if form is _TIFF and bands not in COLOR_BANDS:
        _unmark_alpha(path, bands)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _interpretation(bands: int, dtype: str) -> str:
    """Return what libvips must take the bands for, so that it saves them unchanged."""
    wide = dtype == "uint16"
    if bands == 1:
        return "grey16" if wide else "b-w"
    if bands == 3 and dtype in ("uint8", "uint16"):
        return "rgb16" if wide else "srgb"
    return "multiband"


def _tiff_options(shape: tuple[int, int, int], dtype: str) -> dict[str, Any]:
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    # Few readers know the predictor for floats.
    return {"bigtiff": size > _BIGTIFF_BYTES, "predictor": "none" if dtype == "float32" else "horizontal"}


def _unmark_alpha(path: Path, bands: int) -> None:
    """Correct the header of a multi-band TIFF: libvips declares its extra bands alpha, which readers would drop."""
    with load_tifffile().TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(_TIFF_MINISBLACK)
        tiff.pages[0].tags["ExtraSamples"].overwrite([_TIFF_UNSPECIFIED] * (bands - 1))
