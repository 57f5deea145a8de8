"""What the CUDA engine prepares before it draws: Gaussians on the pixel grid, and who meets which bin.

Everything here runs where the tensors are, in few launches, and waits for the device only to learn how many entries
there are, if it is not told how many there may be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smartsplat.render import kernels

# Triton's functions are launched as ``kernel[grid](...)``, which it has no types for.
_place: Any = kernels.place
_list_bins: Any = kernels.list_bins

_OWNERS = 1024 if kernels.INTERPRETED else 32  # Gaussians a program prepares; the interpreter takes long to start one
_SHORT = torch.iinfo(torch.int16).max


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedGaussians:
    """Gaussians on a region's pixel grid, one row each.

    Parameters
    ----------
    means
        ``(N, 2)`` float32 or float64, px.
    shapes
        ``(N, 3)`` float32: two scales, px, and rotation, rad.
    offset
        Of the means' origin from the region's, px.
    geometry
        ``(N, 8)`` float32: what the kernels read (see `kernels.GEOMETRY_COLUMNS`).
    """

    means: Tensor
    shapes: Tensor
    offset: tuple[int, int]
    geometry: Tensor

    @property
    def source(self) -> tuple[Any, ...]:
        """What the kernels that prepare take of them."""
        return self.means, self.means.stride(0), self.shapes, self.shapes.stride(0), *self.offset, len(self.means)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bins:
    """Which Gaussians meet each bin.

    Parameters
    ----------
    across
        Bins beside each other.
    room
        Entries that there is room for. If there are more, the lists lack some.
    starts
        ``(bins + 1,)`` int32: where each bin's list starts.
    items
        ``(room,)`` int32: the lists, each in the order of drawing.
    slots
        ``(room,)`` int64: the number of each entry when they are counted Gaussian by Gaussian.
    entry_starts
        ``(N + 1,)`` int32: where each Gaussian's entries start in that count.
    """

    across: int
    room: int
    starts: Tensor
    items: Tensor
    slots: Tensor
    entry_starts: Tensor

    @property
    def entries(self) -> Tensor:
        """How many there are, also if there is no room for them: int32, of one number."""
        return self.entry_starts[-1:]


def place(means: Tensor, shapes: Tensor, *, offset: tuple[int, int]) -> PlacedGaussians:
    """Return Gaussians on the grid of a region (see `PlacedGaussians`); rows may be parts of longer ones."""
    count = len(means)
    geometry = torch.empty((count, kernels.GEOMETRY_COLUMNS), dtype=torch.float32, device=means.device)
    placed = PlacedGaussians(means=means, shapes=shapes, offset=offset, geometry=geometry)
    if count:
        _place[(math.ceil(count / _OWNERS),)](geometry, *placed.source, OWNERS=_OWNERS, num_warps=1)
    return placed


def list_bins(
    placed: PlacedGaussians, *, height: int, width: int, rows: int, columns: int, share: float, room: int | None
) -> Bins:
    """Return the lists of all bins of `rows` x `columns` px.

    Parameters
    ----------
    height, width
        Of the region, px.
    share
        Of each footprint's radius that counts.
    room
        Entries to make room for; None = as many as there are, for which it waits for the device.
    """
    across, down = -(-width // columns), -(-height // rows)
    count, bins, where = len(placed.means), across * down, placed.means.device
    counts = torch.zeros(count + 1, dtype=torch.int32, device=where)

    def run(keys: Tensor | None, owners: Tensor | None, starts: Tensor, room: int) -> None:
        if count:
            _list_bins[(math.ceil(count / _OWNERS),)](
                keys,
                owners,
                starts,
                room,
                *placed.source,
                height,
                width,
                across,
                share,
                ROWS=rows,
                COLUMNS=columns,
                OWNERS=_OWNERS,
                num_warps=1,
            )

    run(None, None, counts, 0)
    entry_starts = torch.cumsum(counts, 0, dtype=torch.int32)
    if room is None:
        room = int(entry_starts[-1])
    # Half the digits are half the passes of the sort. Unused entries come last, in a bin that is none.
    kind = torch.int16 if bins <= _SHORT else torch.int32
    keys = torch.full((room,), bins, dtype=kind, device=where)
    owners = torch.empty(room, dtype=torch.int32, device=where)
    run(keys, owners, entry_starts, room)
    # Stable, so that each list is in the order of drawing.
    keys, slots = torch.sort(keys, stable=True)
    edges = torch.arange(bins + 1, dtype=kind, device=where)
    return Bins(
        across=across,
        room=room,
        starts=torch.searchsorted(keys, edges, out_int32=True),
        items=owners[slots],
        slots=slots,
        entry_starts=entry_starts,
    )
