"""The staged image: every pixel once, in chunks that a tile's window reads a few of; and smaller copies of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from smartsplat.errors import StoreError
from smartsplat.gaussians import Floats
from smartsplat.geometry import Region
from smartsplat.normalization import pixel_weight
from smartsplat.optim.levels import coarsen, level_region
from storage.groups import create_array, drop_chunk, open_array
from storage.ledger import Ledger

STRIP_HEIGHT = 256
"""Rows of a strip: one shard is one strip, so each shard has exactly one writer."""

_CHUNK = 512  # columns: half of them would take a seventh longer to write, twice as many be read in vain
COARSE = 4
"""The level that is stored: a sixteenth of the pixels; that of halves is quickly worked out from all of them."""

_NAME, _LEVEL_NAME, _STRIPS = "pixels", f"pixels-{COARSE}", "strips"
_FIELDS = 2  # lowest and highest finite pixel
_SHAPE = "shape"  # attribute: of the image, or of the level


class PixelStore:
    """The pixels of an image, staged strip by strip.

    Parameters
    ----------
    group
        Holds ``pixels``, ``(H, W, C)`` in the image's own dtype; ``pixels-4``, float32
        ``(ceil(H / 4), ceil(W / 4), C + 1)``, the averages over squares of 4 px with data, and the share of them that
        has any; and ``strips``, one row per strip, written once the strip is. The arrays are filled up with zeros to
        whole chunks, so that only whole ones are read. The levels between are worked out when they are read.
    """

    def __init__(self, group: zarr.Group) -> None:
        self._group = group
        self._array = open_array(group, _NAME, working=True)
        self._coarse = open_array(group, _LEVEL_NAME, working=True)
        self._strips = Ledger.open(group, _STRIPS)

    @classmethod
    def create(cls, group: zarr.Group, *, shape: tuple[int, int, int], dtype: str) -> PixelStore:
        """Return an empty store in `group`."""
        height, width, bands = shape
        _create(group, _NAME, shape=shape, dtype=dtype, strip=STRIP_HEIGHT)
        smaller = (-(-height // COARSE), -(-width // COARSE), bands + 1)
        _create(group, _LEVEL_NAME, shape=smaller, dtype="float32", strip=STRIP_HEIGHT // COARSE)
        Ledger.create(group, _STRIPS, jobs=(-(-height // STRIP_HEIGHT),), fields=_FIELDS)
        return cls(group)

    @classmethod
    def open(cls, group: zarr.Group) -> PixelStore:
        """Return the store in `group`."""
        return cls(group)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        shape: Any = self._array.attrs[_SHAPE]
        height, width, bands = shape
        return height, width, bands

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels."""
        return np.dtype(self._array.dtype)

    def write_strip(self, index: int, pixels: NDArray) -> None:
        """Write strip `index`, ``(rows, W, C)``, then its row in the ledger; several threads may, each its own."""
        _write(self._array, index, pixels)
        values, weight = coarsen(pixels, pixel_weight(pixels), factor=COARSE)
        share = np.ones(values.shape[:2], np.float32) if weight is None else weight
        _write(self._coarse, index, np.concatenate([values, share[:, :, None]], axis=2))
        finite = pixels if pixels.dtype.kind != "f" else pixels[np.isfinite(pixels)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)
        self._strips.write((index,), np.array([low, high]))

    def recheck(self) -> int:
        """Strike out finished strips that do not read back; return how many."""
        height, width, _ = self.shape
        struck = 0
        for index in np.flatnonzero(self.strips_done()).tolist():
            strip = Region(y0=index * STRIP_HEIGHT, y1=min((index + 1) * STRIP_HEIGHT, height), x0=0, x1=width)
            try:
                self.read(strip)
                self.read_level(level_region(strip, COARSE), COARSE)
            except StoreError:
                self._strips.strike((index,))
                struck += 1
        return struck

    def strips_done(self) -> NDArray[np.bool_]:
        """Return which strips are complete."""
        return self._strips.done()

    def value_range(self) -> tuple[float, float]:
        """Return the lowest and highest finite pixel of all strips; ``(0, 0)`` if there is none."""
        rows = self._strips.read_complete()
        low, high = float(rows[:, 0].min()), float(rows[:, 1].max())
        return (low, high) if low <= high else (0.0, 0.0)

    def read(self, region: Region) -> NDArray:
        """Return the pixels of `region`, ``(h, w, C)``.

        Raises
        ------
        StoreError
            If a strip is not there, or a stored chunk is damaged.
        """
        return _read(self._array, region)

    def read_level(self, region: Region, factor: int) -> tuple[Floats, Floats | None]:
        """Return the averages of a region of a coarser level, and the share of each pixel that has data.

        Parameters
        ----------
        region
            Px of the level.
        factor
            Of the level.

        Returns
        -------
        ``(h, w, C)`` in the image's own units, 0 where there is no data at all; ``(h, w)``, None if all shares are 1.

        Raises
        ------
        StoreError
            As `read` does.
        """
        if factor == COARSE:
            stored = _read(self._coarse, region)
            share = stored[:, :, -1]
            return stored[:, :, :-1], None if (share == 1).all() else share
        finer = COARSE if factor > COARSE else 1
        times = factor // finer
        height, width, _ = self.shape
        inside = level_region(Region(y0=0, y1=height, x0=0, x1=width), finer)
        covered = Region(y0=times * region.y0, y1=times * region.y1, x0=times * region.x0, x1=times * region.x1)
        if finer > 1:
            return coarsen(*self.read_level(covered.intersect(inside), finer), factor=times)
        pixels = self.read(covered.intersect(inside))
        return coarsen(pixels, pixel_weight(pixels), factor=times)


def _create(group: zarr.Group, name: str, *, shape: tuple[int, int, int], dtype: str, strip: int) -> None:
    """Make an array of pixels with one shard for each strip."""
    height, width, bands = shape
    whole = (-(-height // strip) * strip, -(-width // _CHUNK) * _CHUNK, bands)
    create_array(
        group,
        name,
        working=True,
        shape=whole,
        dtype=dtype,
        chunks=(strip, _CHUNK, bands),
        shards=(strip, *whole[1:]),
        compressors=(BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec()),
        fill_value=0,
        attributes={_SHAPE: shape},
    )


def _write(array: zarr.Array, index: int, pixels: NDArray) -> None:
    """Write strip `index` of an array, filled up to whole chunks."""
    strip = array.chunks[0]
    shape = (strip, *array.shape[1:])
    whole = pixels
    if pixels.shape != shape:
        whole = np.zeros(shape, pixels.dtype)
        whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    drop_chunk(array, index, 0, 0)
    array[index * strip : (index + 1) * strip] = whole


def _read(array: zarr.Array, region: Region) -> NDArray:
    strip, column, _ = array.chunks
    rows, columns = _whole(region.y0, region.y1, strip), _whole(region.x0, region.x1, column)
    for index in range(rows.start // strip, rows.stop // strip):
        if not _is_stored(array, index):
            raise StoreError(f"{array.store_path}: staged pixels of strip {index} are missing")
    try:
        whole = np.asarray(array[rows, columns])
    except ValueError as error:
        raise StoreError(f"{array.store_path}: staged pixels of {region} are damaged ({error})") from error
    return whole[region.slices_within(Region(y0=rows.start, y1=rows.stop, x0=columns.start, x1=columns.stop))]


def _whole(start: int, stop: int, chunk: int) -> slice:
    """Return the whole chunks that a range meets."""
    return slice(start // chunk * chunk, -(-stop // chunk) * chunk)


def _is_stored(array: zarr.Array, index: int) -> bool:
    """Return whether the strip's file is there and holds something; if not, Zarr would read zeros."""
    if not isinstance(array.store, LocalStore):
        return True
    file = array.store.root / array.path / f"c.{index}.0.0"
    return file.is_file() and file.stat().st_size > 0
