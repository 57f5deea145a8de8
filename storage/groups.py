"""Opening Zarr groups on disk, with every way it can fail said in one line."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.errors import BaseZarrError
from zarr.storage import LocalStore, MemoryStore

from smartsplat.config import digest_of
from smartsplat.errors import StorageFullError, StoreError
from storage.durable import METADATA, DurableStore
from storage.remote_scene import CountingStore, ObjectFolder, local_folder
from storage.working import worked_on_by_zarrs

WAY_OUT = "if it was one, delete it and compress the image anew"
"""Of a scene whose own metadata is lost."""

CHECKED = (ZstdCodec(level=1), Crc32cCodec())
"""Compression of working data: fast, and a flipped bit is noticed."""

_DAMAGED = (ValueError, KeyError, TypeError, BaseZarrError)  # what Zarr raises of metadata that makes no sense
_CONFIG: Any = {"write_empty_chunks": True}
_FLAT_KEYS: Any = {"name": "default", "separator": "."}
_CHECKSUM = "checksum"  # attribute of arrays of working data: digest of all else in their metadata

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def disk_errors(path: object) -> Generator[None]:
    """Turn a full disk, a place that cannot be written, and a file that vanishes into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"{path}: the disk is full; free some space and run the same command again to resume"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
            raise StoreError(f"{path}: cannot be written: {error.strerror}") from error
        if error.errno == errno.ENOENT:
            raise StoreError(
                f"{path}: a file vanished while it was written, {error.filename}; "
                "if nothing else works on this scene, run the same command again"
            ) from error
        raise


def create_group(path: Path, attributes: dict[str, Any]) -> zarr.Group:
    """Return a new group at `path`, with `attributes`; its parent folder must exist."""
    with disk_errors(path), compact_metadata():
        path.mkdir(exist_ok=True)
        return zarr.create_group(DurableStore(path), attributes=attributes)


def open_group(path: Path | ObjectFolder, *, writable: bool = False) -> zarr.Group:
    """Return the group at `path`.

    Raises
    ------
    StoreError
        If there is none, or its metadata is damaged.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such scene")
    if not (path / METADATA).is_file():
        raise StoreError(f"{path}: exists and is not a scene (it has no {METADATA}); {WAY_OUT}")
    store = DurableStore(local_folder(path)) if writable or isinstance(path, Path) else path.open_store()
    try:
        return zarr.open_group(store, mode="r+" if writable else "r", zarr_format=3, use_consolidated=False)
    except _DAMAGED as error:
        raise StoreError(f"{path}: its metadata is damaged ({' '.join(str(error).split())}); {WAY_OUT}") from error


def create_array(group: zarr.Group, name: str, *, working: bool = False, **settings: Any) -> zarr.Array:
    """Return a new array, in the place of any other, that lies in one folder; chunks of fill values are written too.

    A chunk left out for being empty could not be told from one that was lost.

    Parameters
    ----------
    working
        Whether it is working data, whose metadata carries a checksum. That of a finished scene is in its manifest.
    settings
        See `zarr.create_array`.
    """
    settings |= {"chunk_key_encoding": _FLAT_KEYS, "config": _CONFIG}
    if working:
        bare = zarr.create_array(MemoryStore(), **settings).metadata.to_buffer_dict(default_buffer_prototype())
        attributes = settings.get("attributes", {})
        settings["attributes"] = {**attributes, _CHECKSUM: _digest_without_checksum(bare[METADATA].to_bytes())}
    with compact_metadata():
        return group.create_array(name, overwrite=True, **settings)


def _digest_without_checksum(metadata: bytes) -> str:
    values = json.loads(metadata)
    values["attributes"] = {name: value for name, value in values["attributes"].items() if name != _CHECKSUM}
    return digest_of(values)


def open_array(group: zarr.Group, name: str, *, working: bool = False) -> zarr.Array:
    """Return an existing array; raise `StoreError` if it is missing or its metadata is damaged.

    Parameters
    ----------
    working
        Whether it is working data (see `storage.working`).
    """
    if isinstance(group.store, CountingStore):
        try:
            return zarr.open_array(group.store, path=name, mode="r", zarr_format=3)
        except _DAMAGED as error:
            raise StoreError(f"{name}: array missing or damaged ({' '.join(str(error).split())})") from error
    assert isinstance(group.store, LocalStore)
    where = folder_of(group, name)
    try:
        found = (where / METADATA).stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        return _opened(group.store.root, f"{group.path}/{name}".strip("/"), group.store.read_only, working, stamp)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{where}: array missing or damaged (it has no {METADATA})") from error
    except _DAMAGED as error:
        raise StoreError(f"{where}: array missing or damaged ({' '.join(str(error).split())})") from error


@functools.lru_cache(maxsize=64)
def _opened(
    root: Path,
    path: str,
    read_only: bool,
    working: bool,
    stamp: tuple[int, int, int],  # noqa: ARG001
) -> zarr.Array:
    """Return the array whose metadata file has this stamp: a worker opens the same few arrays for every job."""
    store = LocalStore(root, read_only=read_only)
    if working:
        _check_metadata(root / path / METADATA)
    with worked_on_by_zarrs() if working else contextlib.nullcontext():
        array = zarr.open_array(store, path=path, mode="r" if read_only else "r+", zarr_format=3)
        # Zarr keeps this setting with the object, not in the store.
        return array.with_config(_CONFIG)


def _check_metadata(file: Path) -> None:
    """Raise `ValueError` if the metadata of an array of working data is not what was written."""
    metadata = file.read_bytes()
    if json.loads(metadata)["attributes"][_CHECKSUM] != _digest_without_checksum(metadata):
        raise ValueError("the checksum of its metadata does not match")


def has_array(group: zarr.Group, name: str) -> bool:
    """Return whether the group has an array `name`, sound or not: ``name in group`` fails if it is damaged."""
    return (folder_of(group, name) / METADATA).is_file()


def drop_damaged_arrays(group: zarr.Group) -> int:
    """Delete the arrays of working data whose metadata is damaged; return how many."""
    damaged = 0
    for name in sorted(folder.name for folder in folder_of(group).iterdir() if folder.is_dir()):
        try:
            if has_array(group, name):
                open_array(group, name, working=True)
        except StoreError as error:
            logger.warning("%s", error)
            shutil.rmtree(folder_of(group, name))
            damaged += 1
    return damaged


def folder_of(group: zarr.Group, name: str = "") -> Path:
    """Return where on disk the group, or its array `name`, lies."""
    assert isinstance(group.store, LocalStore)
    return group.store.root / group.path / name


def drop_chunk(array: zarr.Array, *index: int) -> None:
    """Delete a stored chunk (or shard) that is about to be written whole.

    Where the edge of the array cuts it, Zarr would first read what is there, and fail if that is damaged.
    """
    if isinstance(array.store, LocalStore):
        (array.store.root / array.path / ".".join(map(str, ("c", *index)))).unlink(missing_ok=True)


@contextlib.contextmanager
def compact_metadata() -> Generator[None]:
    """Write JSON metadata without indentation: in a small scene its bytes count."""
    with zarr.config.set({"json_indent": None}):
        yield


def sweep_partials(path: Path) -> int:
    """Delete what killed writes left under `path`; return how many files."""
    leftovers = list(path.rglob("*.partial"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def tree_bytes(path: Path | ObjectFolder, *, without: str) -> int:
    """Return the bytes of all files under `path`, leaving out its folder `without`."""
    return path.nbytes(without=without) if isinstance(path, ObjectFolder) else _tree_bytes(path, without=without)


def _tree_bytes(path: Path, *, without: str | None = None) -> int:
    total = 0
    for child in path.iterdir():
        if child.name != without:
            total += _tree_bytes(child) if child.is_dir() else child.stat().st_size
    return total
