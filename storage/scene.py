"""A compressed scene: one Zarr v3 group whose arrays and attributes hold all a reader needs.

``gaussians``
    float32 ``(rows, cols, capacity, 5 + C)``: the tiles' Gaussians, sharded, through `storage.codecs.GaussiansCodec`.
``tiles``
    int32 ``(rows, cols, 3)``: each tile's count, how far its footprints reach beyond its core, px, and its PSNR in
    steps of 0.1 dB, from 0 to 1000; -1 where it is not known, or no pixel has data.
``work``
    Only while unfinished (or kept on request): staged pixels and working state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from smartsplat.budget import base_scale
from smartsplat.codec import Steps
from smartsplat.config import SceneConfig, digest_of
from smartsplat.errors import SmartsplatError, StoreError, StoreUnavailable
from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import Region, TileGrid, TileId
from smartsplat.normalization import Normalization
from smartsplat.schedule import FitPass, InsertPass, schedule
from storage.codecs import GaussiansCodec
from storage.durable import sync, sync_tree
from storage.groups import (
    CHECKED,
    WAY_OUT,
    compact_metadata,
    create_array,
    create_group,
    disk_errors,
    drop_chunk,
    open_array,
    open_group,
    tree_bytes,
)
from storage.remote_scene import CountingStore, ObjectFolder, local_folder

SCENE_FORMAT = 1
SHARD_TILES = 8
"""Tiles along a side of a shard: one shard is one file, and has one writer."""

_ARRAYS_BYTES = 1330  # the metadata of both arrays
_LATER_BYTES = 225  # what Zarr adds to the manifest, and it gains at the end: quality, and the arrays' digests

_DAMAGE = (ValueError, RuntimeError, OSError, SmartsplatError)  # what Zarr and our codec raise on damaged bytes

_ATTRIBUTE = "smartsplat"
_GAUSSIANS, _TILES = "gaussians", "tiles"

WORK = "work"
"""Name of the folder, inside the scene's, that holds its working data."""

HIGHEST_PSNR = 100.0
"""PSNR of a tile, dB, that stands for all higher ones, that of an exact tile among them."""

_PSNR_STEPS = 10  # a dB: the third column stays so small that it takes a byte or two of the compressed table
_UNKNOWN = -1
_CHECKSUM = "checksum"  # attribute of the working group: digest of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a scene says of itself in its attributes.

    Parameters
    ----------
    shape, dtype
        Of the image: ``(H, W, C)``, numpy name.
    source_name, source_fingerprint
        File name and content identity of the image.
    config
        What the scene was compressed with.
    digest
        Identity of config and source together.
    count, rounds
        Gaussians that the fit was planned for, and those after each round that was added to it.
    normalization
        Known once the image has been read.
    arrays
        Digests of the arrays' metadata, so that damage there is noticed.
    quality
        ``psnr`` dB, ``ssim``, ``ms_ssim`` of the finished scene; None where undefined.
    complete
        Whether every tile is written and scored.
    degraded
        Tiles, or blocks of them, of which a fit failed and a simpler one took its place, as was asked for.
    """

    shape: tuple[int, int, int]
    dtype: str
    source_name: str
    source_fingerprint: str
    config: SceneConfig
    digest: str
    count: int
    normalization: Normalization | None = None
    arrays: dict[str, str] = dataclasses.field(default_factory=dict)
    quality: dict[str, float | None] | None = None
    complete: bool = False
    degraded: tuple[str, ...] = ()
    rounds: tuple[int, ...] = ()

    @property
    def gaussians(self) -> int:
        """How many there are, or will be."""
        return self.rounds[-1] if self.rounds else self.count

    @property
    def grid(self) -> TileGrid:
        """The scene's tiles."""
        height, width, _ = self.shape
        return TileGrid(height=height, width=width, tile=self.config.tile, halo=self.config.halo)

    @property
    def passes(self) -> list[FitPass | InsertPass]:
        """What the fit does, in order; the first writes sweep 1."""
        height, width, _ = self.shape
        scale = base_scale(height, width, self.count)
        return schedule(self.config.fit, count=self.count, base_scale=scale, rounds=self.rounds)

    @property
    def raw_bytes(self) -> int:
        """Size of the uncompressed pixels."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_attributes(self) -> dict[str, Any]:
        """Return the group's attributes, with a checksum over all of them."""
        values = {"format": SCENE_FORMAT, **dataclasses.asdict(self)}
        # Settings of which this version has the same default are left out: in a small scene their bytes count.
        values |= {"config": self.config.to_changes(), "shape": list(self.shape), "degraded": list(self.degraded)}
        values.pop("rounds")
        if self.rounds:
            values["rounds"] = list(self.rounds)
        return {_ATTRIBUTE: {**values, "checksum": digest_of(values)}}

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any], *, path: Path | ObjectFolder) -> Manifest:
        """Return the manifest that `to_attributes` wrote.

        Raises
        ------
        StoreError
            If there is none, it is damaged, or its format version is unknown.
        """
        if _ATTRIBUTE not in attributes:
            raise StoreError(f"{path}: exists and is not a scene (a Zarr group of another kind); {WAY_OUT}")
        values = dict(attributes[_ATTRIBUTE])
        version, checksum = values.get("format"), values.pop("checksum", None)
        if version != SCENE_FORMAT:
            raise StoreError(
                f"{path}: scene format {version} is unknown to this version, which reads format {SCENE_FORMAT}; "
                "upgrade smartsplat"
            )
        if not _is_digest(checksum, values):
            raise StoreError(f"{path}: the scene's attributes are damaged (their checksum does not match); {WAY_OUT}")
        del values["format"]
        height, width, bands = values.pop("shape")
        config, normalization = SceneConfig.from_dict(values.pop("config")), values.pop("normalization")
        lists = {name: tuple(values.pop(name, ())) for name in ("degraded", "rounds")}
        return cls(
            shape=(height, width, bands),
            config=config,
            normalization=None if normalization is None else Normalization(**normalization),
            **lists,
            **values,
        )


def _is_digest(checksum: object, values: dict[str, Any]) -> bool:
    try:
        return checksum == digest_of(values)
    except ValueError:  # a damaged number reads as NaN or infinity, which has no digest
        return False


class Scene:
    """A scene on disk. Not for computation: tiles in, tiles out.

    Parameters
    ----------
    path
        Its folder, or one in an object store, from which it is only read.
    group
        The open Zarr group.
    manifest
        What its attributes say.
    """

    def __init__(self, path: Path | ObjectFolder, group: zarr.Group, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._group = group
        self._arrays: dict[str, zarr.Array] = {}
        self._work: dict[bool, zarr.Group] = {}

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Scene:
        """Return a new, unfinished scene with its working group; `path` must not exist.

        It is made under another name and then renamed: a kill leaves a whole scene or none.
        """
        for leftover in path.parent.glob(f".{path.name}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = _partial(path)
        try:
            with disk_errors(path):
                create_group(partial, manifest.to_attributes())
                create_group(partial / WORK, {_CHECKSUM: digest_of({})})
                partial.rename(path)
                sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.open(path, writable=True)

    def created_anew(self) -> Scene:
        """Return a new scene in the place of this unfinished one, of which nothing but the plan is kept."""
        manifest = dataclasses.replace(self.manifest, normalization=None, arrays={}, quality=None)
        with disk_errors(self.path):
            self.folder.rename(_partial(self.folder))
        return Scene.create(self.folder, manifest)

    @classmethod
    def open(cls, path: Path | ObjectFolder, *, writable: bool = False) -> Scene:
        """Return the scene at `path`, finished or not; raise `StoreError` if there is none or it is damaged."""
        group = open_group(path, writable=writable)
        return cls(path, group, Manifest.from_attributes(dict(group.attrs), path=path))

    @property
    def folder(self) -> Path:
        """Its folder, to write to; raises `StoreError` if it lies in an object store."""
        return local_folder(self.path)

    @property
    def fetched(self) -> tuple[int, int] | None:
        """Bytes that were fetched from an object store, and in how many requests; None if it lies in a folder."""
        store = self._group.store
        return (store.bytes_read, store.requests) if isinstance(store, CountingStore) else None

    @property
    def grid(self) -> TileGrid:
        """The scene's tiles."""
        return self.manifest.grid

    @property
    def bands(self) -> int:
        """Color bands."""
        return self.manifest.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all the scene's files, working data left out."""
        return tree_bytes(self.path, without=WORK)

    @property
    def metadata_bytes(self) -> int:
        """Bytes that the finished scene's JSON will take, at most; the same whenever it is asked."""
        bare = dataclasses.replace(self.manifest, arrays={}, quality=None, complete=False)
        return len(json.dumps(bare.to_attributes())) + _LATER_BYTES + _ARRAYS_BYTES

    @property
    def measured_ratio(self) -> float:
        """Raw bytes of the image over bytes of the scene."""
        return self.manifest.raw_bytes / self.nbytes

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest, on disk too."""
        self.manifest = dataclasses.replace(self.manifest, **changes)
        with disk_errors(self.path), compact_metadata():
            self._group.attrs.update(self.manifest.to_attributes())

    def finish(self) -> None:
        """Mark the scene as complete: once this is on the disk, all of it is, and needs its working data no more."""
        with disk_errors(self.path):
            sync_tree(self.folder, without=WORK)
        degraded = {job for jobs in self.degraded().values() for job in jobs}
        self.update(complete=True, degraded=tuple(sorted(degraded)))

    # --- working data -------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether there is working data."""
        return (self.path / WORK).exists()

    def work(self, *, writable: bool = False) -> zarr.Group:
        """Return the group of working data."""
        if writable not in self._work:
            self._work[writable] = open_group(self.path / WORK, writable=writable)
        return self._work[writable]

    def failures(self) -> dict[str, dict[str, str]]:
        """Return which jobs failed in the latest run of each unfinished stage, and why."""
        return self._recorded("failures")

    def record_failures(self, stage: str, failures: dict[str, str]) -> None:
        """Keep which jobs of `stage` failed and why; none forgets those of an earlier run."""
        self._record("failures", stage, failures)

    def degraded(self) -> dict[str, dict[str, str]]:
        """Return which jobs of each stage failed and were replaced by simpler ones, and why they failed."""
        return self._recorded("degraded")

    def record_degraded(self, stage: str, degraded: dict[str, str], *, among: Sequence[str]) -> None:
        """Keep which jobs of `stage`, among those named, were replaced by simpler ones, and why."""
        others = {job: why for job, why in self.degraded().get(stage, {}).items() if job not in among}
        self._record("degraded", stage, others | degraded)

    def _recorded(self, kind: str) -> dict[str, dict[str, str]]:
        return self._records().get(kind, {})

    def _records(self) -> dict[str, Any]:
        records = dict(open_group(self.path / WORK).attrs)
        if records.pop(_CHECKSUM, None) != digest_of(records):
            raise StoreError(f"{self.path}: what is recorded of its failed jobs is damaged; run the same command again")
        return records

    def _record(self, kind: str, stage: str, jobs: dict[str, str]) -> None:
        records = self._records()
        before = records.get(kind, {})
        found = {name: others for name, others in before.items() if name != stage} | ({stage: jobs} if jobs else {})
        if found != before:
            records[kind] = found
            with disk_errors(self.path):
                open_group(self.path / WORK, writable=True).attrs.update({**records, _CHECKSUM: digest_of(records)})

    def discard_work(self) -> None:
        """Delete the working data."""
        self._work.clear()
        shutil.rmtree(self.folder / WORK, ignore_errors=True)

    # --- tiles --------------------------------------------------------------------------------------------------

    def create_gaussians(self, steps: Steps, *, capacity: int) -> None:
        """Make the array of Gaussians, unless it is there already and sound."""
        if self.has_gaussians():
            return
        rows, cols = self.grid.shape
        parameters = GEOMETRY_PARAMETERS + self.bands
        shard = self.shard_shape
        create_array(
            self._group,
            _GAUSSIANS,
            shape=(rows, cols, max(1, capacity), parameters),
            chunks=(1, 1, max(1, capacity), parameters),
            shards=(*shard, max(1, capacity), parameters),
            dtype="float32",
            fill_value=math.nan,
            serializer=GaussiansCodec(steps=steps),
            compressors=(Crc32cCodec(),),
            dimension_names=("row", "col", "gaussian", "parameter"),
        )
        self._arrays.pop(_GAUSSIANS, None)
        self.update(arrays={_GAUSSIANS: self._array_digest(_GAUSSIANS)})

    def has_gaussians(self) -> bool:
        """Return whether the array of Gaussians is there, and its metadata is what was written."""
        with contextlib.suppress(StoreError):
            return self.manifest.arrays.get(_GAUSSIANS) == self._array_digest(_GAUSSIANS)
        return False

    @property
    def steps(self) -> Steps:
        """What the array of Gaussians is quantised with."""
        codecs: Any = self._array(_GAUSSIANS).metadata
        return codecs.codecs[0].codecs[0].steps

    @property
    def shard_shape(self) -> tuple[int, int]:
        """Rows and columns of tiles in one shard."""
        return min(SHARD_TILES, self.grid.rows), min(SHARD_TILES, self.grid.cols)

    def shards(self) -> Iterator[tuple[slice, slice]]:
        """Yield the tile rows and columns of each shard."""
        rows, cols = self.grid.shape
        height, width = self.shard_shape
        for row in range(0, rows, height):
            for col in range(0, cols, width):
                yield slice(row, min(row + height, rows)), slice(col, min(col + width, cols))

    def write_shard(self, where: tuple[slice, slice], tiles: list[list[Gaussians]]) -> None:
        """Write all tiles of one shard, row by row."""
        array = self._array(_GAUSSIANS)
        rows = np.full((len(tiles), len(tiles[0]), *array.shape[2:]), np.nan, np.float32)
        for i, line in enumerate(tiles):
            for j, gaussians in enumerate(line):
                rows[i, j, : len(gaussians)] = gaussians.to_rows()
        height, width = self.shard_shape
        with disk_errors(self.path):
            drop_chunk(array, where[0].start // height, where[1].start // width, 0, 0)
            array[where] = rows

    def write_tiles(self, table: NDArray[np.int32]) -> None:
        """Write each tile's count and reach, ``(rows, cols, 2)``, and note the arrays' digests."""
        shape = (*table.shape[:2], 3)
        with disk_errors(self.path):
            create_array(
                self._group,
                _TILES,
                shape=shape,
                chunks=shape,
                dtype="int32",
                compressors=CHECKED,
                fill_value=_UNKNOWN,
            )[:] = np.dstack([table, np.full(table.shape[:2], _UNKNOWN, np.int32)])
        self._arrays.pop(_TILES, None)
        self.update(arrays={name: self._array_digest(name) for name in (_GAUSSIANS, _TILES)})

    def tiles(self) -> NDArray[np.int32]:
        """Return each tile's count and reach (px), ``(rows, cols, 2)``.

        Raises
        ------
        StoreError
            If the scene is not that far yet, or the table is damaged.
        """
        return self._table()[..., :2]

    def write_tile_psnr(self, psnr: NDArray[np.float64]) -> None:
        """Keep each tile's PSNR, dB, ``(rows, cols)``: to 0.1 dB, from 0 to `HIGHEST_PSNR`; NaN where unknown."""
        table = self._table()
        codes = np.rint(_PSNR_STEPS * np.clip(psnr, 0, HIGHEST_PSNR))
        table[..., 2] = np.where(np.isnan(codes), _UNKNOWN, codes)
        with disk_errors(self.path):
            self._array(_TILES)[:] = table

    def tile_psnr(self) -> NDArray[np.float64]:
        """Return each tile's PSNR, dB, ``(rows, cols)``, as `write_tile_psnr` keeps it; NaN where unknown.

        Raises
        ------
        StoreError
            As `tiles` does.
        """
        codes = self._table()[..., 2]
        return np.where(codes == _UNKNOWN, np.nan, codes / _PSNR_STEPS)

    def _table(self) -> NDArray[np.int32]:
        try:
            table = np.asarray(self._array(_TILES)[:])
        except StoreUnavailable:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(f"{self.path}: the table of tiles is damaged ({error})") from error
        if table.shape != (*self.grid.shape, 3) or (table[..., :2] < 0).any():
            raise StoreError(f"{self.path}: the table of tiles is missing or damaged")
        return table

    def read_tiles(self, first: TileId, *, counts: Sequence[int]) -> list[Gaussians]:
        """Return the Gaussians of adjacent tiles of one row, in one read: `first` and those to its right.

        Raises
        ------
        StoreError
            Naming the tile, if one is missing or damaged.
        """
        tiles = [TileId(first.row, first.col + i) for i in range(len(counts))]
        try:
            block = np.asarray(self._array(_GAUSSIANS)[first.row, first.col : first.col + len(counts)])
        except StoreUnavailable:
            raise
        except _DAMAGE:  # one by one, to tell which
            return [self.read_tile(tile, count=count) for tile, count in zip(tiles, counts, strict=True)]
        return [self._checked(tile, rows, count) for tile, rows, count in zip(tiles, block, counts, strict=True)]

    def read_tile(self, tile: TileId, *, count: int) -> Gaussians:
        """Return one tile's Gaussians, of which the table says there are `count`.

        Raises
        ------
        StoreError
            Naming the tile, if it is missing or damaged.
        """
        try:
            rows = np.asarray(self._array(_GAUSSIANS)[tile.row, tile.col])
        except StoreUnavailable:
            raise
        except _DAMAGE as error:
            raise StoreError(f"{self.path}: tile {tile} is damaged ({' '.join(str(error).split())})") from error
        return self._checked(tile, rows, count)

    def _checked(self, tile: TileId, rows: Floats, count: int) -> Gaussians:
        found = int((~np.isnan(rows[:, 0])).sum())
        if found != count:
            raise StoreError(f"{self.path}: tile {tile} holds {found} Gaussians where {count} were written")
        return Gaussians.from_rows(rows[:count], origin=self.grid.core(tile).origin)

    def check_arrays(self) -> None:
        """Raise `StoreError` if the metadata of an array is not what was written."""
        for name, digest in self.manifest.arrays.items():
            if self._array_digest(name) != digest:
                raise StoreError(f"{self.path}: the metadata of array '{name}' is damaged")

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = open_array(self._group, name)
        return self._arrays[name]

    def _array_digest(self, name: str) -> str:
        try:
            return digest_of(json.loads((self.path / name / "zarr.json").read_bytes()))
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}: the metadata of array '{name}' is missing or damaged") from error


def _partial(path: Path) -> Path:
    """Return the name of a scene that is being made, or deleted."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def tiles_reaching(scene_tiles: NDArray[np.int32], grid: TileGrid, region: Region, *, slack: int) -> list[TileId]:
    """Return the tiles, row by row, whose footprints may meet `region`: by their true reach, and `slack` px more."""
    widest = int(scene_tiles[..., 1].max(initial=0)) + slack
    near = grid.within(region.expand(widest))
    return [
        tile
        for tile in near
        if scene_tiles[tile.row, tile.col, 0]
        and not grid.core(tile).expand(int(scene_tiles[tile.row, tile.col, 1]) + slack).intersect(region).is_empty
    ]
