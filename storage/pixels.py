"""The staged image: every pixel once, in chunks that a tile's window reads a few of."""

from __future__ import annotations

import math

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from smartsplat.errors import StoreError
from smartsplat.geometry import Region
from storage.groups import create_array, drop_chunk, open_array
from storage.ledger import Ledger

STRIP_HEIGHT = 256
"""Rows of a strip: one shard is one strip, so each shard has exactly one writer."""

_CHUNK = 256
_FIELDS = 2  # lowest and highest finite pixel


class PixelStore:
    """The pixels of an image, staged strip by strip.

    Parameters
    ----------
    array
        ``(H, W, C)``, the image's own dtype.
    strips
        One row per strip: written once the strip is.
    """

    def __init__(self, array: zarr.Array, strips: Ledger) -> None:
        self._array = array
        self._strips = strips

    @classmethod
    def create(cls, group: zarr.Group, *, shape: tuple[int, int, int], dtype: str) -> PixelStore:
        """Return an empty store in `group`."""
        height, width, bands = shape
        array = create_array(
            group,
            "pixels",
            shape=shape,
            dtype=dtype,
            chunks=(_CHUNK, _CHUNK, bands),
            shards=(STRIP_HEIGHT, -(-width // _CHUNK) * _CHUNK, bands),
            compressors=(BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec()),
            fill_value=0,
            overwrite=True,
        )
        return cls(array, Ledger.create(group, "strips", jobs=(-(-height // STRIP_HEIGHT),), fields=_FIELDS))

    @classmethod
    def open(cls, group: zarr.Group) -> PixelStore:
        """Return the store in `group`."""
        return cls(open_array(group, "pixels"), Ledger.open(group, "strips"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        height, width, bands = self._array.shape
        return height, width, bands

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels."""
        return np.dtype(self._array.dtype)

    def write_strip(self, index: int, pixels: NDArray) -> None:
        """Write strip `index`, ``(rows, W, C)``, then its row in the ledger."""
        y0 = index * STRIP_HEIGHT
        drop_chunk(self._array, index, 0, 0)
        self._array[y0 : y0 + len(pixels)] = pixels
        finite = pixels if pixels.dtype.kind != "f" else pixels[np.isfinite(pixels)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)
        self._strips.write((index,), np.array([low, high]))

    def recheck(self) -> int:
        """Strike out finished strips that do not read back; return how many."""
        height, width, _ = self.shape
        struck = 0
        for index in np.flatnonzero(self.strips_done()).tolist():
            y0 = index * STRIP_HEIGHT
            try:
                self.read(Region(y0=y0, y1=min(y0 + STRIP_HEIGHT, height), x0=0, x1=width))
            except StoreError:
                self._strips.strike((index,))
                struck += 1
        return struck

    def strips_done(self) -> NDArray[np.bool_]:
        """Return which strips are complete."""
        return self._strips.done()

    def value_range(self) -> tuple[float, float]:
        """Return the lowest and highest finite pixel of all strips; ``(0, 0)`` if there is none."""
        rows = self._strips.read_all()
        low, high = float(rows[:, 0].min()), float(rows[:, 1].max())
        return (low, high) if low <= high else (0.0, 0.0)

    def read(self, region: Region) -> NDArray:
        """Return the pixels of `region`, ``(h, w, C)``.

        Raises
        ------
        StoreError
            If a strip is not there, or a stored chunk is damaged.
        """
        for index in range(region.y0 // STRIP_HEIGHT, -(-region.y1 // STRIP_HEIGHT)):
            if not self._is_stored(index):
                raise StoreError(f"{self._array.store_path}: staged pixels of strip {index} are missing")
        try:
            return np.asarray(self._array[region.slices])
        except ValueError as error:
            raise StoreError(f"{self._array.store_path}: staged pixels of {region} are damaged ({error})") from error

    def _is_stored(self, index: int) -> bool:
        """Return whether the strip's file is there and holds something; if not, Zarr would read zeros."""
        store = self._array.store
        if not isinstance(store, LocalStore):
            return True
        file = store.root / self._array.path / f"c.{index}.0.0"
        return file.is_file() and file.stat().st_size > 0
