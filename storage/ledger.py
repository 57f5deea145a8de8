"""What each job of a stage found, kept beside its output: a job is done when its row is there."""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np
import zarr
from numpy.typing import NDArray

from smartsplat.errors import StoreError
from storage.groups import CHECKED, create_array, drop_chunk, has_array, open_array


class Ledger:
    """Rows of numbers, one per job, written by the job itself after its output.

    Parameters
    ----------
    array
        float64, ``jobs + (fields,)``; NaN where nothing was written.

    Notes
    -----
    One chunk belongs to one writer (`chunk` jobs along each axis), so no two processes touch the same file.
    """

    def __init__(self, array: zarr.Array) -> None:
        self._array = array

    @classmethod
    def create(
        cls, group: zarr.Group, name: str, *, jobs: tuple[int, ...], fields: int, chunk: tuple[int, ...] | None = None
    ) -> Ledger:
        """Return an empty ledger; with `chunk`, rows are written in blocks of that many jobs."""
        chunks = (*(chunk or (1,) * len(jobs)), fields)
        create_array(
            group,
            name,
            working=True,
            shape=(*jobs, fields),
            chunks=chunks,
            dtype="float64",
            fill_value=math.nan,
            compressors=CHECKED,
        )
        return cls.open(group, name)

    @classmethod
    def open_or_create(
        cls, group: zarr.Group, name: str, *, jobs: tuple[int, ...], fields: int, chunk: tuple[int, ...] | None = None
    ) -> Ledger:
        """Return the ledger `name`, made on first use."""
        if has_array(group, name):
            return cls.open(group, name)
        return cls.create(group, name, jobs=jobs, fields=fields, chunk=chunk)

    @classmethod
    def open(cls, group: zarr.Group, name: str) -> Ledger:
        """Return the ledger `name` of the group."""
        return cls(open_array(group, name, working=True))

    def write(self, index: tuple[int | slice, ...], values: NDArray[np.float64]) -> None:
        """Record the row, or the block of rows, at `index`: whole chunks."""
        parts = [part if isinstance(part, slice) else slice(part, part + 1) for part in index]
        chunks = (
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(parts, self._array.chunks, strict=False)
        )
        for chunk in itertools.product(*chunks):
            drop_chunk(self._array, *chunk, 0)
        self._array[index] = values

    def strike(self, index: tuple[int | slice, ...]) -> None:
        """Take back the row, or the block of rows, at `index`: the job is to be done again."""
        self._array[index] = math.nan

    def read(self, index: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the row at `index`; raise `StoreError` if it was never written."""
        row = np.asarray(self._array[index])
        if np.isnan(row[0]):
            raise StoreError(f"{self._array.store_path}: job {index} has no result")
        return row

    def read_block(self, index: tuple[slice, ...]) -> NDArray[np.float64]:
        """Return the block of rows at `index`, NaN where nothing was written; raise `ValueError` if it is damaged."""
        return np.asarray(self._array[index])

    def read_all(self) -> NDArray[np.float64]:
        """Return every row; NaN where nothing was written. A damaged row counts as not written."""
        with contextlib.suppress(ValueError):
            return self.read_block((slice(None),) * (self._array.ndim - 1))
        rows = np.full(self._array.shape, np.nan)
        grid = [range(0, size, chunk) for size, chunk in zip(self._array.shape, self._array.chunks, strict=True)]
        for start in np.stack(np.meshgrid(*grid[:-1], indexing="ij"), axis=-1).reshape(-1, len(grid) - 1):
            block = tuple(slice(s, s + c) for s, c in zip(start, self._array.chunks[:-1], strict=True))
            try:
                rows[block] = np.asarray(self._array[block])
            except ValueError:
                continue
        return rows

    def read_complete(self) -> NDArray[np.float64]:
        """Return every row; raise `StoreError` if one was never written, or is damaged."""
        rows = self.read_all()
        missing = np.argwhere(np.isnan(rows[..., 0])).tolist()
        if missing:
            raise StoreError(
                f"{self._array.store_path}: {len(missing)} jobs have no result, the first of them "
                f"{tuple(missing[0])}; run the same command again"
            )
        return rows

    def done(self) -> NDArray[np.bool_]:
        """Return which jobs have a row."""
        return ~np.isnan(self.read_all()[..., 0])
