"""Scenes in object stores, to be read: only what a region needs is fetched, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import ObjectStore

from smartsplat.errors import StoreError, StoreUnavailable
from storage.remote import is_url, listed, local_path, locate, store_at, store_errors

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class ObjectFolder:
    """A folder in an object store: as much of a `Path` as it takes to read a scene.

    Parameters
    ----------
    url
        Of the folder.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def __truediv__(self, name: str) -> ObjectFolder:
        return ObjectFolder(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        """The last part of it."""
        return self._url.rpartition("/")[2]

    def exists(self) -> bool:
        """Return whether there is anything in it; raise `StoreUnavailable` if the store does not answer."""
        return bool(self._objects())

    def is_file(self) -> bool:
        """Return whether it is an object itself."""
        import obstore

        store, key = locate(self._url)
        with self._errors():
            try:
                obstore.head(store, key)
            except FileNotFoundError:
                return False
        return True

    def read_bytes(self) -> bytes:
        """Return the bytes of the object it is; raise `FileNotFoundError` if there is none."""
        import obstore

        store, key = locate(self._url)
        with self._errors():
            try:
                return bytes(obstore.get(store, key).bytes())
            except FileNotFoundError as error:
                missing = error
        raise missing

    def nbytes(self, *, without: str) -> int:
        """Return the bytes of all objects in it, leaving out its folder `without`."""
        _, prefix = locate(self._url)
        return sum(size for key, size in self._objects() if not key.startswith(f"{prefix}/{without}/"))

    def open_store(self) -> CountingStore:
        """Return it as a store of Zarr's."""
        return CountingStore(store_at(self._url), url=self._url)

    def _objects(self) -> list[tuple[str, int]]:
        """Return key and size of each object in it."""
        store, key = locate(self._url)
        with self._errors():
            return listed(store, f"{key}/")

    def _errors(self) -> Any:
        return store_errors(self._url, bad=StoreError, unavailable=StoreUnavailable)


class CountingStore(ObjectStore[Any]):
    """An object store that is only read, and counts what it fetches.

    Attributes
    ----------
    bytes_read, requests
        So far.
    """

    def __init__(self, store: Any, *, url: str, read_only: bool = True) -> None:
        super().__init__(store, read_only=read_only)
        self._url = url
        self.bytes_read = self.requests = 0

    def with_read_only(self, read_only: bool = False) -> CountingStore:
        """Return the same store; there is no other way to use it."""
        if not read_only:
            raise StoreError(f"{self._url}: scenes in object stores can only be read")
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object or a part of it; None if there is none."""
        with store_errors(f"{self._url}/{key}", bad=StoreError, unavailable=StoreUnavailable):
            found = await super().get(key, prototype, byte_range)
        self.requests += 1
        self.bytes_read += 0 if found is None else len(found)
        return found


def folder_at(path: str | Path) -> Path | ObjectFolder:
    """Return the folder, here or in an object store, that a path or URL says.

    Examples
    --------
    >>> str(folder_at("s3://bucket/scene.zarr")), folder_at("scene.zarr")
    ('s3://bucket/scene.zarr', PosixPath('scene.zarr'))
    """
    return ObjectFolder(str(path)) if is_url(path) else Path(local_path(path))


def local_folder(path: Path | ObjectFolder) -> Path:
    """Return a folder that can be written to.

    Raises
    ------
    StoreError
        If it lies in an object store.
    """
    if isinstance(path, ObjectFolder):
        raise StoreError(f"{path}: scenes in object stores can only be read; write to a folder, and copy it there")
    return path
