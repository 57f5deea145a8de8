"""Open an image of any size, and read it as full-width strips, top to bottom, in flat memory.

libvips decodes; this module refuses what libvips would decode wrongly, and says why in one line. Pixels come out as
stored: no color management, no rotation; palettes are expanded to RGB, 1-bit images to 0 and 255, and an alpha band
is dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import math
import os
import re
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.errors import SourceError, SourceUnavailable
from storage.remote import ObjectFile, is_url, local_path

DTYPES = {"uchar": "uint8", "ushort": "uint16", "short": "int16", "float": "float32"}
"""The libvips formats that can be read, and their numpy names."""

MAX_SEGMENT = 2**30
"""Most bytes of one compressed strip or tile of a TIFF: libtiff holds it whole."""

_FINGERPRINT_BYTES = 2**20

_OTHER_FORMATS = {"char": "int8", "uint": "uint32", "int": "int32", "double": "float64"}

_OTHER_COLORS = {
    "cmyk": "CMYK",
    "hsv": "HSV",
    "xyz": "XYZ",
    "yxy": "Yxy",
    **dict.fromkeys(("lab", "labq", "labs", "lch", "cmc", "oklab", "oklch"), "Lab"),
}

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_COLORS = {5: "CMYK", 8: "Lab", 9: "Lab", 10: "Lab", 32844: "LogLuv", 32845: "LogLuv"}
_TIFF_DTYPES = ("float64", "complex64", "complex128", "int64", "uint64")
_TIFF_PLANAR = 2
_TIFF_UNCOMPRESSED = 1
_TIFF_ALPHA = (1, 2)

# What libvips and its codecs say, in any case, and what it means; the first that matches.
_CAUSES = (
    ("not a known file format", "not an image of a known format", "convert it to TIFF, PNG or JPEG"),
    (
        "compression",
        "compressed in a way that this libvips cannot read",
        "re-compress it, e.g. gdal_translate -co COMPRESS=DEFLATE IN OUT.tif",
    ),
    (
        "unable to fetch|unable to parse|read error|premature end|unexpected end|corrupt|end of file|truncated",
        "truncated or damaged",
        "copy or download it again",
    ),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What is known of an image before its pixels are read.

    Parameters
    ----------
    path
        Absolute path of the file, or its URL.
    height, width
        Size, px, as stored: an EXIF orientation is not applied.
    bands
        Values a pixel, without alpha.
    dtype
        Numpy name of the sample type: one of `DTYPES`.
    has_alpha
        Whether the file has an alpha band, which is not read.
    fingerprint
        Identity of the content: 16 hexadecimal digits, from its size and its first and last MiB.

    Examples
    --------
    >>> info = SourceInfo(path="/a.tif", height=20, width=30, bands=3, dtype="uint16", has_alpha=False, fingerprint="0")
    >>> info.shape, info.raw_bytes
    ((20, 30, 3), 3600)
    """

    path: str
    height: int
    width: int
    bands: int
    dtype: str
    has_alpha: bool
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(height, width, bands)``."""
        return self.height, self.width, self.bands

    @property
    def raw_bytes(self) -> int:
        """Bytes of the uncompressed pixels."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON."""
        return dataclasses.asdict(self)


def read_info(path: str | Path) -> SourceInfo:
    """Return what the header of the image at `path` says; logs a warning for what will not be read.

    Raises
    ------
    SourceError
        If there is no such file, it is no image, or its pixels cannot be read faithfully: samples other than
        `DTYPES`, inks or Lab instead of color, band-separate TIFF.
    SourceUnavailable
        If the store that holds it does not answer.
    """
    path = str(path) if is_url(path) else os.path.abspath(local_path(path))  # noqa: PTH100 (Path.absolute keeps "..")
    fingerprint = _fingerprint(path)
    image, header, _ = _open(path)
    alpha = _alpha_band(image, header)
    _log_unread(path, image, header)
    return SourceInfo(
        path=path,
        height=image.height,
        width=image.width,
        bands=image.bands - (alpha is not None),
        dtype=DTYPES[image.format],
        has_alpha=alpha is not None,
        fingerprint=fingerprint,
    )


def read_strips(info: SourceInfo, *, strip_height: int, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield ``(y0, pixels)`` from row `start` to the last, top to bottom; reads the file.

    Memory is that of a few strips, whatever the height of the image, unless the format itself is not sequential
    (interlaced PNG, progressive JPEG, WebP, GIF, AVIF).

    Parameters
    ----------
    strip_height
        Rows of a strip, px; the last may have fewer.
    start
        First row to yield, px. The rows before it are decoded too, which is where the time goes.

    Yields
    ------
    tuple of int and array (rows, width, bands)
        The strip's first row, px, and its pixels.

    Raises
    ------
    SourceError
        If the file has changed since `read_info`, or is damaged: libvips is told to fail at the first warning,
        because it would otherwise go on with zeros.
    """
    if _fingerprint(info.path) != info.fingerprint:
        raise SourceError(f"{info.path}: has changed since it was first opened; start again with the new content")
    if start >= info.height:
        return
    image, header, stream = _open(info.path)
    alpha = _alpha_band(image, header)
    window = load_vips().Region.new(image)
    for y0, y1 in _strip_bounds(info.height, strip_height=strip_height, start=start):
        strip = _decode(image, window, stream, path=info.path, y0=y0, y1=y1)
        if y0 >= start:
            yield y0, strip if alpha is None else np.delete(strip, alpha, axis=2)


@functools.cache
def load_vips() -> Any:
    """Return pyvips, imported on first use (0.1 s) and told to keep no finished operation, nor its pixels."""
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips


@functools.cache
def load_tifffile() -> Any:
    """Return tifffile, imported on first use; what it logs goes to the caller's handlers only, not to stderr."""
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    return tifffile


def cause_of(error: Exception) -> str:
    r"""Return what a libvips error says, in one line and without repeats.

    Examples
    --------
    >>> cause_of(Exception("unable to write to memory\n  tiff2vips: read error\ntiff2vips: read error\n"))
    'read error'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [re.sub(r"^\w+: ", "", line) for line in lines[1:]] or lines or ["the header is damaged"]
    return "; ".join(list(dict.fromkeys(details))[:2])


def _strip_bounds(height: int, *, strip_height: int, start: int) -> Iterator[tuple[int, int]]:
    """Yield the rows ``y0, y1`` of each strip: those to skip, up to `start`, then those to keep."""
    assert strip_height > 0 <= start
    edges = sorted({*range(0, start, strip_height), *range(start, height, strip_height), height})
    return itertools.pairwise(edges)


def _decode(image: Any, window: Any, stream: _Stream | None, *, path: str, y0: int, y1: int) -> NDArray[Any]:
    """Return rows ``y0:y1``, shape (rows, width, bands of the file); they must follow those decoded before.

    One window serves all strips: libvips forgets decoded rows after each operation on the image, so that a crop a
    strip, though it runs on more threads, fails where a strip ends within a tile of the file.
    """
    vips = load_vips()
    try:
        pixels = window.fetch(0, y0, image.width, y1 - y0)
    except vips.Error as error:
        if stream is not None and stream.failure is not None:
            raise stream.failure from error
        raise _unreadable(path, error, where=f" near rows {y0} to {y1}") from error
    return np.frombuffer(pixels, DTYPES[image.format]).reshape(y1 - y0, image.width, image.bands)


def _fingerprint(path: str) -> str:
    try:
        with _opened(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(_FINGERPRINT_BYTES)
            file.seek(max(0, size - _FINGERPRINT_BYTES))
            tail = file.read(_FINGERPRINT_BYTES)
    except OSError as error:
        raise _unopened(path, error) from error
    if size == 0:
        raise SourceError(f"{path}: the file is empty; copy or download it again")
    return hashlib.sha256(str(size).encode() + head + tail).hexdigest()[:16]


@contextlib.contextmanager
def _opened(path: str) -> Generator[Any]:
    """Open a file, here or in a store, to read its bytes."""
    if is_url(path):
        with ObjectFile(path) as file:
            yield file
        return
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (a pipe must not be opened: that would wait)
        raise SourceError(f"{path}: not a file; give one image file")
    with Path(path).open("rb") as file:
        yield file


# --- What libvips says ------------------------------------------------------------------------------------------------


class _Stream:
    """An object as libvips reads it; what fails is kept, since no exception passes through compiled code."""

    def __init__(self, url: str) -> None:
        self.failure: SourceError | None = None
        self._file = ObjectFile(url)
        self.source = load_vips().SourceCustom()
        self.source.on_read(self._read)
        self.source.on_seek(self._seek)

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except SourceError as error:
            self.failure = error
            return b""  # the end, for libvips

    def _seek(self, offset: int, whence: int) -> int:
        return self._file.seek(offset, whence)


def _open(path: str) -> tuple[Any, _TiffHeader | None, _Stream | None]:
    """Return the lazy image, checked, its TIFF header if it is a TIFF, and what it is read from if not a file."""
    header = _tiff_header(path)
    # Without "unlimited" libtiff refuses what decodes through more than 50 MB; `MAX_SEGMENT` is our own limit.
    options: dict[str, Any] = {} if header is None else {"unlimited": True}
    vips = load_vips()
    stream = _Stream(path) if is_url(path) else None
    try:
        # "revalidate" because the loader otherwise answers by name from a cache.
        options |= {"access": "sequential", "fail_on": "warning", "revalidate": True}
        if stream is None:
            image = vips.Image.new_from_file(path, **options)
        else:
            image = vips.Image.new_from_source(stream.source, "", **options)
    except vips.Error as error:
        if stream is not None and stream.failure is not None:
            raise stream.failure from error
        raise _unreadable(path, error) from error
    _check_image(path, image)
    return image, header, stream


def _check_image(path: str, image: Any) -> None:
    if image.format not in DTYPES:
        raise _unsupported_dtype(path, _OTHER_FORMATS.get(image.format, "complex"))
    if image.interpretation in _OTHER_COLORS:
        raise _unsupported_color(path, _OTHER_COLORS[image.interpretation])
    if image.coding != "none":
        raise SourceError(f"{path}: its pixels are packed ({image.coding}); convert it to a float32 TIFF")


def _alpha_band(image: Any, header: _TiffHeader | None) -> int | None:
    """Return the index of the alpha band, if there is one.

    libvips calls any second band of a gray, or fourth of a color image alpha, while in a TIFF it may well be
    infrared; a TIFF says which of its extra samples is alpha. Several cannot be: libvips writes that for any
    multi-band image.
    """
    if header is None:
        return image.bands - 1 if image.hasalpha() and image.bands > 1 else None
    alphas = [index for index, kind in enumerate(header.extra_samples) if kind in _TIFF_ALPHA]
    return image.bands - len(header.extra_samples) + alphas[0] if len(alphas) == 1 else None


def _log_unread(path: str, image: Any, header: _TiffHeader | None) -> None:
    def field(name: str) -> int:
        return image.get(name) if image.get_typeof(name) else 0

    if _alpha_band(image, header) is not None:
        logger.warning("%s: the alpha band is dropped; transparent pixels keep the color stored under them", path)
    if field("n-pages") > 1 if header is None else header.has_more_pages:
        logger.warning("%s: has several pages; only the first is read", path)
    if field("orientation") > 1:
        logger.warning("%s: EXIF orientation %d is not applied; pixels as stored", path, field("orientation"))
    if field("interlaced"):
        logger.warning("%s: interlaced or progressive, so it is decoded whole, in memory", path)


def _unopened(path: str, error: OSError) -> SourceError:
    return SourceError(f"{path}: {(error.strerror or str(error)).lower()}; check its name and permissions")


def _unreadable(path: str, error: Exception, *, where: str = "") -> SourceError:
    cause = cause_of(error)
    for pattern, meaning, way_out in _CAUSES:
        if re.search(pattern, cause, re.IGNORECASE):
            return SourceError(f"{path}: {meaning}{where} ({cause}); {way_out}")
    return SourceError(f"{path}: cannot be read{where}: {cause}")


def _unsupported_dtype(path: str, dtype: str) -> SourceError:
    known = ", ".join(DTYPES.values())
    return SourceError(f"{path}: {dtype} samples; use {known}, e.g. gdal_translate -ot Float32 IN OUT.tif")


def _unsupported_color(path: str, color: str) -> SourceError:
    return SourceError(f"{path}: its bands are {color}, not gray or RGB; use vips colourspace IN OUT.tif srgb")


# --- What only the TIFF header says -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _TiffHeader:
    """What libvips does not tell about the first page of a TIFF, or tells too late."""

    size: tuple[int, int]
    dtype: str | None
    color: int
    bands: int
    extra_samples: tuple[int, ...]
    is_planar: bool
    is_preview: bool
    has_more_pages: bool
    largest_segment: int


def _tiff_header(path: str) -> _TiffHeader | None:
    """Return the header of the first page, checked; none if the file is no TIFF."""
    try:
        with _opened(path) as file:
            if file.read(4) not in _TIFF_MAGIC:
                return None
    except OSError as error:
        raise _unopened(path, error) from error
    try:
        header = _parse_tiff(path)
    except SourceUnavailable:
        raise
    except Exception as error:  # a damaged header makes the parser raise nearly anything
        raise SourceError(f"{path}: its TIFF header is damaged ({error}); copy or download it again") from error
    _check_tiff(path, header)
    return header


def _parse_tiff(path: str) -> _TiffHeader:
    with _opened(path) as file, load_tifffile().TiffFile(file) as tiff:
        page = tiff.pages[0]
        compressed = page.compression != _TIFF_UNCOMPRESSED
        return _TiffHeader(
            size=(page.imagelength, page.imagewidth),
            dtype=None if page.dtype is None else page.dtype.name,
            color=int(page.photometric),
            bands=page.samplesperpixel,
            extra_samples=tuple(int(kind) for kind in page.extrasamples),
            is_planar=page.planarconfig == _TIFF_PLANAR and page.samplesperpixel > 1,
            is_preview=bool(page.is_reduced),
            has_more_pages=any(not other.is_reduced for other in itertools.islice(tiff.pages, 1, None)),
            largest_segment=max(page.databytecounts, default=0) if compressed else 0,
        )


def _check_tiff(path: str, header: _TiffHeader) -> None:
    if 0 in header.size:
        raise SourceError(f"{path}: has no pixels: {header.size[0]} x {header.size[1]}")
    if header.dtype in _TIFF_DTYPES:
        raise _unsupported_dtype(path, header.dtype)
    if header.color in _TIFF_COLORS:
        raise _unsupported_color(path, _TIFF_COLORS[header.color])
    if header.is_preview:
        raise SourceError(f"{path}: its first page is a preview (camera raw?); export the full image as a TIFF")
    if header.is_planar:
        # libvips mixes up the bands of some of these, and stops in the middle of others.
        raise SourceError(
            f"{path}: a TIFF with its {header.bands} bands stored separately cannot be read as strips; "
            f"use gdal_translate -co INTERLEAVE=PIXEL IN OUT.tif"
        )
    if header.largest_segment > MAX_SEGMENT:
        raise SourceError(
            f"{path}: one compressed strip or tile of it takes {header.largest_segment / 1e9:.1f} GB, and is held "
            f"whole, {MAX_SEGMENT / 1e9:.1f} GB allowed; use gdal_translate -co TILED=YES IN OUT.tif"
        )
