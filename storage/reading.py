"""Reading of working data by zarrs, compiled code for the same format.

Zarr's own pipeline takes each chunk through two or three hops between threads: many times what reading a small one
costs, and a fit reads thousands. Writing stays with Zarr, which replaces the file of a chunk in one step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from typing import Any

import zarr
from zarr.codecs import ShardingCodec
from zarr.registry import register_pipeline
from zarrs import ZarrsCodecPipeline


class WorkingPipeline(ZarrsCodecPipeline):
    """Whole chunks are read by zarrs, parts of chunks by Zarr: of a part, zarrs does not verify the checksum."""

    async def read(self, batch_info: Iterable[Any], out: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """Fill `out`; raise `ValueError` if a chunk is damaged."""
        assert self.python_impl is not None
        whole: list[Any] = []
        parts: list[Any] = []
        for each in batch_info:
            (whole if self._is_whole(each[2]) else parts).append(each)
        if parts:
            await self.python_impl.read(parts, out, drop_axes)
        if whole:
            try:
                await super().read(whole, out, drop_axes)
            except RuntimeError as error:
                raise ValueError(str(error)) from error

    async def write(self, batch_info: Iterable[Any], value: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """Write some chunks, or parts of them."""
        assert self.python_impl is not None
        await self.python_impl.write(batch_info, value, drop_axes)

    def _is_whole(self, selection: Any) -> bool:
        """Return whether a selection within a chunk (or shard) takes all of the checksummed chunks that it meets."""
        metadata: Any = self.metadata
        (codec, *_), grid = metadata.codecs, metadata.chunk_grid
        sizes = codec.chunk_shape if isinstance(codec, ShardingCodec) else grid.chunk_shape
        parts = [part if isinstance(part, slice) else slice(part, part + 1) for part in selection]
        return all(part.start % size == 0 and part.stop % size == 0 for part, size in zip(parts, sizes, strict=True))


register_pipeline(WorkingPipeline)


@contextlib.contextmanager
def read_by_zarrs() -> Generator[None]:
    """Let the arrays opened meanwhile be read by it."""
    path = f"{__name__}.{WorkingPipeline.__name__}"
    with zarr.config.set({"codec_pipeline.path": path, "threading.max_workers": 1}):
        yield
