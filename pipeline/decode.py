"""A finished scene, opened to look at: any region, at any zoom, from only the tiles that touch it."""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.errors import ConfigError, StoreError
from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region, TileId
from smartsplat.normalization import Normalization
from smartsplat.render import render
from smartsplat.render.footprint import CUTOFF
from storage.remote_scene import folder_at
from storage.scene import Manifest, Scene, tiles_reaching

MIN_SCALE = 1 / 64
MAX_SCALE = 64.0

_STRIP_PIXELS = 4 << 20  # of the output, rendered at a time
_LEAST_STRIP_ROWS = 256
_CACHE_BYTES = 64 << 20
_TILES_A_READ = 16
_BOX_REACH = CUTOFF / math.sqrt(12)  # a pixel's box filter widens footprints by at most this many output pixels


def open_scene(path: str | Path, *, engine: str = "auto") -> SceneView:
    """Return the finished scene at `path`, ready to be read like an array.

    Parameters
    ----------
    path
        Its folder, or a URL in an object store (``s3://``, ``gs://``, ...), of which only what is needed is fetched.
    engine
        See `smartsplat.render.render`.

    Raises
    ------
    StoreError
        If there is none, it is damaged, or it is not finished.
    StoreUnavailable
        If the object store does not answer.
    """
    scene = Scene.open(folder_at(path))
    if not scene.manifest.complete:
        raise StoreError(f"{path}: the scene is not finished; run smartsplat compress again to resume it")
    return SceneView(scene, engine=engine)


class SceneView:
    """A scene as a read-only image, rendered on demand.

    Parameters
    ----------
    scene
        Its table of tiles must be written.
    engine
        See `smartsplat.render.render`.
    """

    def __init__(self, scene: Scene, *, engine: str = "auto") -> None:
        scene.check_arrays()
        if scene.manifest.normalization is None:
            raise StoreError(f"{scene.path}: the scene is not finished")
        self._scene = scene
        self._engine = engine
        self._tiles = scene.tiles()
        self._normalization: Normalization = scene.manifest.normalization
        self._cache: OrderedDict[TileId, Gaussians] = OrderedDict()
        self._cached_bytes = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return self._scene.manifest.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels, the original image's."""
        return np.dtype(self._scene.manifest.dtype)

    @property
    def manifest(self) -> Manifest:
        """What the scene says of itself."""
        return self._scene.manifest

    @property
    def normalization(self) -> Normalization:
        """Between pixels and colors."""
        return self._normalization

    @property
    def nbytes(self) -> int:
        """Bytes of the scene on disk."""
        return self._scene.nbytes

    @property
    def measured_ratio(self) -> float:
        """Raw bytes of the image over bytes of the scene."""
        return self._scene.measured_ratio

    @property
    def fetched(self) -> tuple[int, int] | None:
        """Bytes that were fetched from an object store so far, and in how many requests; None for a folder."""
        return self._scene.fetched

    def __getitem__(self, index: Any) -> NDArray:
        """Return pixels like a numpy array does, for slices with step 1, integers and ``...``; ``[y, x, band]``."""
        rows, cols, rest = _split_index(index)
        height, width, _ = self.shape
        (y0, y1, drop_y), (x0, x1, drop_x) = _bounds(rows, height), _bounds(cols, width)
        if y0 >= y1 or x0 >= x1:
            pixels = np.empty((max(0, y1 - y0), max(0, x1 - x0), self.shape[2]), self.dtype)
        else:
            pixels = self.render(Region(y0=y0, y1=y1, x0=x0, x1=x1))
        return pixels[(0 if drop_y else slice(None), 0 if drop_x else slice(None), *rest)]

    def render(self, region: Region | None = None, *, scale: float = 1.0) -> NDArray:
        """Return the pixels of `region`, ``(h, w, C)``, in the image's own dtype.

        Parameters
        ----------
        region
            Px of the scene; None = all of it. Must lie within it.
        scale
            Output pixels per scene pixel, from 1/64 to 64. The output covers every output pixel that `region` meets;
            below 1, footprints are widened so that nothing aliases.

        Raises
        ------
        ConfigError
            If region or scale are out of range.
        StoreError
            Naming the tile, if one that touches the region is damaged.
        """
        grid = self.output_region(region, scale=scale)
        pixels = np.empty((*grid.shape, self.shape[2]), self.dtype)
        y = 0
        for strip in self.strips(region, scale=scale):
            pixels[y : y + len(strip)] = strip
            y += len(strip)
        return pixels

    def output_region(self, region: Region | None, *, scale: float = 1.0) -> Region:
        """Return where `region` lies on the output's pixel grid.

        Raises
        ------
        ConfigError
            If region or scale are out of range.
        """
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise ConfigError(f"scale {scale} is out of range; it must lie between 1/64 and 64")
        height, width, _ = self.shape
        whole = Region(y0=0, y1=height, x0=0, x1=width)
        region = whole if region is None else region
        if region.is_empty or not whole.contains(region):
            raise ConfigError(f"region {region} does not lie within the scene, {whole}")
        return Region(
            y0=math.floor(region.y0 * scale),
            y1=math.ceil(region.y1 * scale),
            x0=math.floor(region.x0 * scale),
            x1=math.ceil(region.x1 * scale),
        )

    def strips(self, region: Region | None = None, *, scale: float = 1.0) -> Iterator[NDArray]:
        """Yield `render`'s result in strips of rows, top to bottom, in bounded memory."""
        output = self.output_region(region, scale=scale)
        rows = max(_LEAST_STRIP_ROWS, _STRIP_PIXELS // output.width)
        for y0 in range(output.y0, output.y1, rows):
            strip = Region(y0=y0, y1=min(y0 + rows, output.y1), x0=output.x0, x1=output.x1)
            yield self._normalization.to_pixels(self.values(strip, scale=scale), self.dtype)

    def values(self, output: Region, *, scale: float = 1.0) -> Floats:
        """Return the normalised image over a region of the output grid, ``(h, w, C)`` float32, not clipped."""
        tiles = tiles_reaching(
            self._tiles, self._scene.grid, _scene_region(output, scale), slack=math.ceil(_BOX_REACH / scale)
        )
        sets = self._gaussians_of(tiles) or [Gaussians.empty(bands=self.shape[2])]
        return render(sets, output, scale=scale, engine=self._engine)

    def _gaussians_of(self, tiles: Sequence[TileId]) -> list[Gaussians]:
        """Return the tiles' Gaussians, from the cache or else from the store, neighbours in one read."""
        found = {tile: self._cache[tile] for tile in tiles if tile in self._cache}
        for line in _adjacent([tile for tile in tiles if tile not in found]):
            counts = [int(self._tiles[tile.row, tile.col, 0]) for tile in line]
            found |= zip(line, self._scene.read_tiles(line[0], counts=counts), strict=True)
        for tile in tiles:
            self._keep(tile, found[tile])
        return [found[tile] for tile in tiles]

    def _keep(self, tile: TileId, gaussians: Gaussians) -> None:
        """Move a tile to the fresh end of the cache, and drop the stalest ones beyond its size."""
        if tile not in self._cache:
            self._cached_bytes += gaussians.to_rows().nbytes
        self._cache[tile] = gaussians
        self._cache.move_to_end(tile)
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.to_rows().nbytes


def _adjacent(tiles: Sequence[TileId]) -> list[list[TileId]]:
    """Return the tiles, which come row by row, in lines of neighbours, none longer than one read should be."""
    lines: list[list[TileId]] = []
    for tile in tiles:
        last = lines[-1] if lines else []
        if last and len(last) < _TILES_A_READ and tile == TileId(last[-1].row, last[-1].col + 1):
            last.append(tile)
        else:
            lines.append([tile])
    return lines


def _scene_region(output: Region, scale: float) -> Region:
    return Region(
        y0=math.floor(output.y0 / scale),
        y1=math.ceil(output.y1 / scale),
        x0=math.floor(output.x0 / scale),
        x1=math.ceil(output.x1 / scale),
    )


def _split_index(index: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts.count(Ellipsis) > 1 or len(parts) - parts.count(Ellipsis) > 3:
        raise IndexError(f"a scene has three axes (y, x, band), and {index!r} names more")
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (4 - len(parts))
    parts += [slice(None)] * (2 - len(parts))
    return parts[0], parts[1], tuple(parts[2:])


def _bounds(part: Any, size: int) -> tuple[int, int, bool]:
    """Return start, stop, and whether the axis goes away."""
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        if step != 1:
            raise IndexError(f"step {step} is not supported: render with a scale instead")
        return start, max(start, stop), False
    try:
        at = operator.index(part)
    except TypeError as error:
        raise IndexError(f"{part!r} is not supported: index a scene with integers, slices and ...") from error
    if not -size <= at < size:
        raise IndexError(f"index {at} is out of bounds for an axis of {size} px")
    return at % size, at % size + 1, True
