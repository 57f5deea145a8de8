"""What the CUDA engine prepares before it draws: Gaussians on the pixel grid, and who meets which pixels (torch).

Everything here runs where the tensors are, in float64 as far as it decides anything. It may name too many pixels and
bins, never too few: what a Gaussian touches is decided pixel by pixel in `kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smartsplat.render.footprint import CUTOFF
from smartsplat.render.kernels import UNIT

_SLACK = 1e-3  # px: strips are bounded in float64, the footprint is decided in float32
_FAR = 2.0**23  # px: as many as float32 counts; a mean further out belongs to a footprint that misses the region
_ROWS_NEAR = 64  # rows within which parts count as near each other, from left to right


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedGaussians:
    """Gaussians on a region's pixel grid, one row each.

    Parameters
    ----------
    geometry
        ``(N, 8)`` float32: what the kernels read (see `kernels.GEOMETRY_COLUMNS`).
    means
        ``(N, 2)`` float64, px, relative to the region.
    extents
        ``(N, 2)`` float64: half the footprint's bounding box along y and x, px.
    edges
        ``(N, 3)`` float64: ``S_yx / S_yy``, half the ellipse's width along x through the mean, and the row of its
        rightmost point: its right edge at row y is ``slope y + half sqrt(1 - (y / extent)^2)``.
    """

    geometry: Tensor
    means: Tensor
    extents: Tensor
    edges: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strips:
    """Footprints cut into strips of some rows.

    Parameters
    ----------
    starts
        ``(N + 1,)`` int64: where each Gaussian's strips start.
    rows
        ``(S, 3)`` int32: first row, and the half-open range of columns that the ellipse crosses in the strip.
    owners
        ``(S,)`` int64: whose each is.
    """

    starts: Tensor
    rows: Tensor
    owners: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bins:
    """Which Gaussians meet each bin.

    Parameters
    ----------
    across
        Bins beside each other.
    starts
        ``(bins + 1,)`` int32: where each bin's list starts.
    items
        ``(E,)`` int32: the lists, each in the order of drawing.
    slots
        ``(E,)`` int32: the number of each entry when they are counted Gaussian by Gaussian.
    entry_starts
        ``(N + 1,)`` int32: where each Gaussian's entries start in that count.
    """

    across: int
    starts: Tensor
    items: Tensor
    slots: Tensor
    entry_starts: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Footprints cut into parts of about equal work.

    Parameters
    ----------
    strips
        ``(S, 3)`` int32 (see `Strips.rows`).
    parts
        ``(P, 3)`` int32: the Gaussian, its first strip and the one after its last.
    order
        ``(P,)`` int32: in which order to do them, near ones one after the other.
    starts
        ``(N + 1,)`` int32: where each Gaussian's parts start.
    """

    strips: Tensor
    parts: Tensor
    order: Tensor
    starts: Tensor


def place(means: Tensor, scales: Tensor, rotations: Tensor, *, offset: tuple[int, int]) -> PlacedGaussians:
    """Return Gaussians on the grid of a region whose origin is at ``-offset`` in the coordinates of the means.

    Parameters
    ----------
    means
        ``(N, 2)`` float32 or float64, px.
    scales, rotations
        ``(N, 2)`` px and ``(N,)`` rad.
    """
    means, scales, rotations = means.double(), scales.double(), rotations.double()
    cos, sin = torch.cos(rotations), torch.sin(rotations)
    first, second = scales.unbind(1)
    # Split before the region's origin comes in: taking it from a mean of a zoomed grid rounds, and so differently for
    # each region.
    whole = torch.floor(means)
    fractions = means - whole
    cells = (whole + torch.tensor(offset, dtype=torch.float64, device=means.device)).clamp(-_FAR, _FAR)
    u, v = UNIT / first, UNIT / second
    geometry = torch.cat(
        [cells, 0.5 - fractions.float(), torch.stack([cos * u, sin * u, -sin * v, cos * v], dim=1)], dim=1
    )
    root_yy, root_xx = torch.hypot(first * cos, second * sin), torch.hypot(first * sin, second * cos)
    cross = cos * sin * (first - second) * (first + second)
    return PlacedGaussians(
        geometry=geometry.float().contiguous(),
        means=cells + fractions,
        extents=CUTOFF * torch.stack([root_yy, root_xx], dim=1),
        edges=torch.stack([cross / root_yy**2, CUTOFF * first * second / root_yy, CUTOFF * cross / root_xx], dim=1),
    )


def cut_strips(
    placed: PlacedGaussians, *, height: int, width: int, rows: int, aligned: bool, share: float = 1.0
) -> Strips:
    """Return the footprints within a region as strips of `rows` rows.

    Parameters
    ----------
    aligned
        If true, strips begin at multiples of `rows`; if false, at each footprint's own upper edge.
    share
        Of each footprint's radius that they cover.
    """
    mean_y, mean_x = placed.means.unbind(1)
    extent_y, extent_x = (share * placed.extents).unbind(1)
    low = torch.ceil(mean_y - extent_y - 0.5 - _SLACK).clamp(min=0)
    high = (torch.floor(mean_y + extent_y - 0.5 + _SLACK) + 1).clamp(max=height)
    beside = (mean_x + extent_x + _SLACK < 0.5) | (mean_x - extent_x - _SLACK > width - 0.5)
    begin = low - low % rows if aligned else low
    counts = torch.where(beside | (high <= low), 0, torch.ceil((high - begin) / rows)).long()
    starts, owners, number = _expand(counts)
    top = begin[owners] + rows * number
    # Rows relative to the mean, within the ellipse. Its right edge is concave with its peak at row `peak`, so over the
    # strip it is furthest at the row nearest to that; the left edge is its mirror image.
    extent, mean = extent_y[owners], mean_y[owners]
    first = torch.maximum(torch.maximum(top, low[owners]) + 0.5 - mean, -extent)
    last = torch.minimum(torch.minimum(top + rows, high[owners]) - 0.5 - mean, extent)
    slope, half, peak = placed.edges[owners].unbind(1)
    half, peak = share * half, share * peak
    right_at = torch.minimum(torch.maximum(peak, first), last)
    left_at = torch.minimum(torch.maximum(-peak, first), last)
    right = slope * right_at + half * torch.sqrt((1 - (right_at / extent) ** 2).clamp(min=0))
    left = slope * left_at - half * torch.sqrt((1 - (left_at / extent) ** 2).clamp(min=0))
    start = torch.ceil(mean_x[owners] + left - 0.5 - _SLACK).clamp(min=0, max=width)
    end = (torch.floor(mean_x[owners] + right - 0.5 + _SLACK) + 1).clamp(min=0, max=width)
    strips = torch.stack([top, start, torch.maximum(start, end)], dim=1)
    return Strips(starts=starts, rows=strips.int().contiguous(), owners=owners)


def sort_into_bins(strips: Strips, *, height: int, width: int, rows: int, columns: int) -> Bins:
    """Return the lists of all bins of `rows` x `columns` px, from strips aligned to them."""
    across, down = -(-width // columns), -(-height // rows)
    top, left, right = strips.rows.unbind(1)
    first = left // columns
    counts = torch.where(right > left, (right + columns - 1) // columns - first, 0).long()
    starts, strip, number = _expand(counts)
    bins = (top // rows * across + first)[strip] + number.int()
    # Stable, so that each list is in the order of drawing.
    bins, slots = torch.sort(bins, stable=True)
    edges = torch.searchsorted(bins, torch.arange(across * down + 1, dtype=bins.dtype, device=bins.device))
    return Bins(
        across=across,
        starts=edges.int(),
        items=strips.owners[strip[slots]].int(),
        slots=slots.int(),
        entry_starts=starts[strips.starts].int(),
    )


def share_out(strips: Strips, *, strips_a_part: int) -> Parts:
    """Return the strips in parts of at most `strips_a_part`."""
    counts = strips.starts.diff()
    starts, owners, number = _expand((counts + strips_a_part - 1) // strips_a_part)
    first = strips.starts[owners] + strips_a_part * number
    last = torch.minimum(first + strips_a_part, strips.starts[owners + 1])
    top, left, _ = strips.rows[first].long().unbind(1)
    place = (top // _ROWS_NEAR << 32) + left
    return Parts(
        strips=strips.rows,
        parts=torch.stack([owners, first, last], dim=1).int().contiguous(),
        order=torch.argsort(place, stable=True).int(),
        starts=starts.int(),
    )


def _expand(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for ``counts[i]`` things of each i: where those of each start, whose each is, and its number there."""
    starts = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))
    total = int(starts[-1])  # waits for the device
    owners = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=total)
    return starts, owners, torch.arange(total, device=counts.device) - starts[owners]
