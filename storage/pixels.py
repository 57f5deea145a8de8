"""The staged image: every pixel once, in chunks that a tile's window reads a few of; and smaller copies of it."""

from __future__ import annotations

import math

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from smartsplat.config import LEVEL_FACTORS
from smartsplat.errors import StoreError
from smartsplat.gaussians import Floats
from smartsplat.geometry import Region
from smartsplat.normalization import pixel_weight
from smartsplat.optim.levels import coarsen, level_region
from storage.groups import create_array, drop_chunk, open_array
from storage.ledger import Ledger

STRIP_HEIGHT = 256
"""Rows of a strip: one shard is one strip, so each shard has exactly one writer."""

_CHUNK = 256
_COARSE = tuple(factor for factor in LEVEL_FACTORS if factor > 1)
_FIELDS = 2  # lowest and highest finite pixel


class PixelStore:
    """The pixels of an image, staged strip by strip.

    Parameters
    ----------
    array
        ``(H, W, C)``, the image's own dtype.
    levels
        By factor: float32 ``(ceil(H / factor), ceil(W / factor), C + 1)``, the averages over squares of that many px
        with data, and the share of them that has any.
    strips
        One row per strip: written once the strip is.
    """

    def __init__(self, array: zarr.Array, levels: dict[int, zarr.Array], strips: Ledger) -> None:
        self._array = array
        self._levels = levels
        self._strips = strips

    @classmethod
    def create(cls, group: zarr.Group, *, shape: tuple[int, int, int], dtype: str) -> PixelStore:
        """Return an empty store in `group`."""
        height, width, bands = shape
        array = _create(group, "pixels", shape=shape, dtype=dtype, strip=STRIP_HEIGHT)
        levels = {
            factor: _create(
                group,
                f"pixels-{factor}",
                shape=(-(-height // factor), -(-width // factor), bands + 1),
                dtype="float32",
                strip=STRIP_HEIGHT // factor,
            )
            for factor in _COARSE
        }
        return cls(array, levels, Ledger.create(group, "strips", jobs=(-(-height // STRIP_HEIGHT),), fields=_FIELDS))

    @classmethod
    def open(cls, group: zarr.Group) -> PixelStore:
        """Return the store in `group`."""
        levels = {factor: open_array(group, f"pixels-{factor}") for factor in _COARSE}
        return cls(open_array(group, "pixels"), levels, Ledger.open(group, "strips"))

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
        values, weight = pixels.astype(np.float32), pixel_weight(pixels)
        if weight is not None:
            values[weight == 0] = 0
        done = 1
        for factor, level in self._levels.items():
            values, weight = coarsen(values, weight, factor=factor // done)
            share = np.ones(values.shape[:2], np.float32) if weight is None else weight
            drop_chunk(level, index, 0, 0)
            level[y0 // factor : y0 // factor + len(values)] = np.concatenate([values, share[:, :, None]], axis=2)
            done = factor
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
                for factor in self._levels:
                    self.read_level(level_region(strip, factor), factor)
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
        return _read(self._array, region, strip=STRIP_HEIGHT)

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
        stored = _read(self._levels[factor], region, strip=STRIP_HEIGHT // factor)
        share = stored[:, :, -1]
        return stored[:, :, :-1], None if (share == 1).all() else share


def _create(group: zarr.Group, name: str, *, shape: tuple[int, int, int], dtype: str, strip: int) -> zarr.Array:
    """Return a new array of pixels with one shard for each strip."""
    _, width, bands = shape
    chunk = min(_CHUNK, strip)
    return create_array(
        group,
        name,
        shape=shape,
        dtype=dtype,
        chunks=(chunk, _CHUNK, bands),
        shards=(strip, -(-width // _CHUNK) * _CHUNK, bands),
        compressors=(BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec()),
        fill_value=0,
        overwrite=True,
    )


def _read(array: zarr.Array, region: Region, *, strip: int) -> NDArray:
    for index in range(region.y0 // strip, -(-region.y1 // strip)):
        if not _is_stored(array, index):
            raise StoreError(f"{array.store_path}: staged pixels of strip {index} are missing")
    try:
        return np.asarray(array[region.slices])
    except ValueError as error:
        raise StoreError(f"{array.store_path}: staged pixels of {region} are damaged ({error})") from error


def _is_stored(array: zarr.Array, index: int) -> bool:
    """Return whether the strip's file is there and holds something; if not, Zarr would read zeros."""
    if not isinstance(array.store, LocalStore):
        return True
    file = array.store.root / array.path / f"c.{index}.0.0"
    return file.is_file() and file.stat().st_size > 0
