"""What a power cut must not take: files that are written rarely, and that nothing else can bring back.

A kill takes nothing that was written; a power cut takes what is not synced. Lost chunks are noticed by their checksum,
and made again. Metadata that is lost takes its whole array with it, and the scene's own the whole scene.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

METADATA = "zarr.json"


class DurableStore(LocalStore):
    """A local store whose metadata, when `set` returns, is on the disk."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write a chunk, or metadata: then its bytes, its name and its folder's name outlast a power cut."""
        path = self.root / key
        if path.name != METADATA:
            await super().set(key, value)
            return
        self._check_writable()
        await asyncio.to_thread(_replace, path, value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write what is not there yet."""
        if not (self.root / key).exists():
            await self.set(key, value)


def _replace(path: Path, data: bytes) -> None:
    """Write a file in one step, synced before it takes its name, so that under the name there is all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
    sync(path.parent.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path, *, without: str) -> None:
    """Wait until all files under `path` are on the disk, leaving out its folder `without`."""
    for folder, folders, names in os.walk(path):
        if Path(folder) == path:
            folders[:] = [name for name in folders if name != without]
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
