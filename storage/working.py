"""Working data read, and staged pixels written, by zarrs: compiled code for the same format.

Zarr's own pipeline takes each chunk through two or three hops between threads: many times what reading a small one
costs, and a fit reads thousands. Writing the strips of an image, it held up the thread that decodes the next one.
Chunks by themselves are still written by Zarr, which replaces the file of one in one step. A shard, here, is written
before anything says that it is there, so that one torn off by a kill is as good as none.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterable
from typing import Any

import zarr
from zarr.codecs import ShardingCodec
from zarr.registry import register_pipeline
from zarrs import ZarrsCodecPipeline


class WorkingPipeline(ZarrsCodecPipeline):
    """Whole chunks are read by zarrs, parts of chunks by Zarr: of a part, zarrs does not verify the checksum.

    Whole shards are written by zarrs, all else by Zarr.
    """

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
        """Write some chunks, or parts of them; raise `OSError` if that fails."""
        assert self.python_impl is not None
        batch = list(batch_info)
        if not all(is_complete for *_, is_complete in batch) or not self._is_sharded():
            await self.python_impl.write(batch, value, drop_axes)
            return
        try:
            await super().write(batch, value, drop_axes)
        except RuntimeError as error:
            raise _system_error(error) from error
        left_out = [each for each in batch if not await each[0].exists()]  # shards of fill values alone
        await self.python_impl.write(left_out, value, drop_axes)

    def _is_whole(self, selection: Any) -> bool:
        """Return whether a selection within a chunk (or shard) takes all of the checksummed chunks that it meets."""
        metadata: Any = self.metadata
        sizes = (metadata.codecs[0] if self._is_sharded() else metadata.chunk_grid).chunk_shape
        parts = [part if isinstance(part, slice) else slice(part, part + 1) for part in selection]
        return all(part.start % size == 0 and part.stop % size == 0 for part, size in zip(parts, sizes, strict=True))

    def _is_sharded(self) -> bool:
        metadata: Any = self.metadata
        return isinstance(metadata.codecs[0], ShardingCodec)


def _system_error(error: RuntimeError) -> OSError:
    """Return what the system said, of which zarrs passes on only the text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(str(error)) if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


register_pipeline(WorkingPipeline)


@contextlib.contextmanager
def worked_on_by_zarrs() -> Generator[None]:
    """Let the arrays opened meanwhile be read and written by it."""
    path = f"{__name__}.{WorkingPipeline.__name__}"
    with zarr.config.set({"codec_pipeline.path": path, "threading.max_workers": 1}):
        yield
