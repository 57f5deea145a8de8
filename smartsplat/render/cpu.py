"""The CPU engine: exact, deterministic, parallel over bands of rows or over Gaussians (numba).

A Gaussian is drawn in vertical strips `LANES` columns wide that start at its own left edge; in each strip the rows its
ellipse crosses follow in closed form, so most evaluated pixels lie in the footprint, and each row of a strip is one set
of vector instructions (`lanes`). Images are planar while worked on, with `LANES` spare columns on both sides so that a
strip never needs cutting.

Within a band of rows, Gaussians are drawn block by block from left to right, and gathered likewise: what they touch
stays in the cache, so a pixel costs the same in a large image as in a small one. Which block a Gaussian is in does not
depend on the region.

No two threads write the same pixel or the same Gaussian and every sum has a fixed order, so the bits do not depend on
the number of threads. A strip is evaluated the same way wherever the region's edge lies, so neither do they depend on
the region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.render.coordinates import Frames, shapes_of
from smartsplat.render.footprint import CUTOFF
from smartsplat.render.lanes import LANES, MOMENTS, draw_strip, gather_strip, take_sum
from smartsplat.render.packing import WHITENED_UNIT, PackedGaussians, pack

BAND_ROWS = 64
MOST_PLANES = 8
"""Planes drawn at once; more are drawn group by group."""

_BLOCKS_A_COLUMN = 8  # a band of so many stays in the cache while the next one below it is worked on
_GAUSSIANS_A_TASK = 32
_ROWS_A_SUM = 128  # rows that lanes may add up in float32
_UNITS = np.array([1 / WHITENED_UNIT] * 2 + [1 / WHITENED_UNIT**2] * 3)
"""What the kernels' moments are multiplied by to be in whitened coordinates."""

_SLACK = 1e-3  # px: rows are bounded in float64, the footprint is decided in float32

# `contract` lets a multiply and an add become one instruction. Anything stronger (reordering, no NaNs) would cost
# determinism.
_jit: Any = njit(cache=True, fastmath={"contract"}, error_model="numpy")
_jit_parallel: Any = njit(cache=True, fastmath={"contract"}, error_model="numpy", parallel=True)
_inline: Any = njit(inline="always", fastmath={"contract"}, error_model="numpy")
# The sum over a row of pixels may be taken in any order, as long as it is always the same.
_jit_sums: Any = njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")


@_inline
def _columns(cell, fraction, extent):  # type: ignore[no-untyped-def]
    """Return the first column of a footprint, and how many strips it takes."""
    first = math.ceil(fraction - extent - 0.5 - _SLACK)
    last = math.floor(fraction + extent - 0.5 + _SLACK)
    return cell + first, (last - first + LANES) // LANES


@_inline
def _rows(x, cell, fraction, extent, slopes, radius, low, high):  # type: ignore[no-untyped-def]
    """Return the half-open rows, from `low` to `high`, that the ellipse crosses in the strip from column `x` on.

    Over the strip the upper edge ``slope x + radius sqrt(depth (1 - x^2 / extent^2))`` is concave with its peak at
    column `top`, so it is highest at the column of the strip nearest to `top`; the lower edge is its mirror image.
    """
    slope, depth, top = slopes[0], slopes[1], slopes[2]
    left = x - cell[1] + 0.5 - fraction[1]
    right = min(left + (LANES - 1), extent[1])
    left = max(left, -extent[1])
    upper_at = min(max(top, left), right)
    lower_at = min(max(-top, left), right)
    upper = slope * upper_at + radius * math.sqrt(depth * max(0.0, 1.0 - (upper_at / extent[1]) ** 2))
    lower = slope * lower_at - radius * math.sqrt(depth * max(0.0, 1.0 - (lower_at / extent[1]) ** 2))
    start = cell[0] + math.ceil(lower + fraction[0] - 0.5 - _SLACK)
    end = cell[0] + math.floor(upper + fraction[0] - 0.5 + _SLACK) + 1
    return max(start, low), min(end, high)


@_inline
def _place(band, block, bands):  # type: ignore[no-untyped-def]
    """Return where a block of a band comes: column by column of `_BLOCKS_A_COLUMN` blocks, in each band by band."""
    column, rest = block // _BLOCKS_A_COLUMN, block % _BLOCKS_A_COLUMN
    return (column * bands + band) * _BLOCKS_A_COLUMN + rest


@_jit
def _schedule(cells, fractions, extents, blocks, height):  # type: ignore[no-untyped-def]
    """Return which Gaussians to draw in each band of `BAND_ROWS` rows, and the order to keep them in.

    That order is by first band and block; each band's list names places in it, and goes by block and then by the order
    of drawing, which is the given one.
    """
    n, bands = len(cells), (height + BAND_ROWS - 1) // BAND_ROWS
    spans = np.empty((n, 2), np.int64)
    for i in range(n):
        centre = cells[i, 0] + fractions[i, 0]
        low = math.floor(centre - extents[i, 0] - 0.5 - _SLACK)
        high = math.ceil(centre + extents[i, 0] - 0.5 + _SLACK)
        spans[i, 0] = min(max(0, low // BAND_ROWS), max(0, bands - 1))
        spans[i, 1] = min(bands, high // BAND_ROWS + 1)
    width = (blocks.max() if n else 0) + 1
    slots = np.zeros(bands * width + 1, np.int64)
    columns = (width + _BLOCKS_A_COLUMN - 1) // _BLOCKS_A_COLUMN
    firsts = np.zeros(columns * max(1, bands) * _BLOCKS_A_COLUMN + 1, np.int64)
    for i in range(n):
        firsts[_place(spans[i, 0], blocks[i], bands) + 1] += 1
        for band in range(spans[i, 0], spans[i, 1]):
            slots[band * width + blocks[i] + 1] += 1
    slots, firsts = np.cumsum(slots), np.cumsum(firsts)
    starts = slots[::width].copy()
    items, order = np.empty(slots[-1], np.int64), np.empty(n, np.int64)
    for i in range(n):
        at = _place(spans[i, 0], blocks[i], bands)
        place = firsts[at]
        order[place] = i
        firsts[at] += 1
        for band in range(spans[i, 0], spans[i, 1]):
            at = band * width + blocks[i]
            items[slots[at]] = place
            slots[at] += 1
    return starts, items, order


@_jit
def _strips(cells, fractions, extents, slopes, share, height, width):  # type: ignore[no-untyped-def]
    """Return each Gaussian's strips within the region: where its list starts, and ``(x, y, end)`` of each, int32.

    They cover `share` of each footprint's radius.
    """
    n, most = len(cells), 0
    for i in range(n):
        most += _columns(cells[i, 1], fractions[i, 1], share * extents[i, 1])[1]
    starts, strips = np.empty(n + 1, np.int64), np.empty((most, 3), np.int32)
    count = 0
    for i in range(n):
        starts[i] = count
        extent = (share * extents[i, 0], share * extents[i, 1])
        shape = (slopes[i, 0], slopes[i, 1], share * slopes[i, 2])
        first, number = _columns(cells[i, 1], fractions[i, 1], extent[1])
        for strip in range(number):
            x = first + strip * LANES
            if -LANES < x < width:
                y, end = _rows(x, cells[i], fractions[i], extent, shape, share * CUTOFF, 0, height)
                if y < end:
                    strips[count, 0], strips[count, 1], strips[count, 2] = x, y, end
                    count += 1
    starts[n] = count
    return starts, strips[:count]


@_jit_sums
def _subtract(image, target):  # type: ignore[no-untyped-def]
    """Take `target` from a row of pixels; return the sum of squares left."""
    total = np.float32(0.0)
    for x in range(len(image)):
        image[x] -= target[x]
        total += image[x] * image[x]
    return total


@_jit_sums
def _subtract_weighted(image, target, weight):  # type: ignore[no-untyped-def]
    """Take `target` from a row of pixels and weight what is left; return its weighted sum of squares."""
    total = np.float32(0.0)
    for x in range(len(image)):
        residual = image[x] - target[x]
        image[x] = weight[x] * residual
        total += image[x] * residual
    return total


@_jit_parallel
def _draw(bands, out, sums, schedule, strips, geometry, colors, tangents, target, weight):  # type: ignore[no-untyped-def]
    """Fill the planes `out` with all Gaussians.

    With `tangents` ``(N, 5 + C)``, it is their directional derivative: the change of ``ln g`` per ``u, v, u^2, v^2,
    u v``, then of the colors. With `target`, it is the difference to that. With `weight`, either is multiplied by it.
    `sums` takes the (weighted) sum of squares of the difference for each band of rows. Of what is None the compiler
    drops the arithmetic.
    """
    band_starts, items = schedule
    starts, edges = strips
    cells, fractions, whitening = geometry
    planes, height, pitch = out.shape
    for band in prange(len(band_starts) - 1):
        band_start, band_end = band * BAND_ROWS, min(height, (band + 1) * BAND_ROWS)
        out[:, band_start:band_end] = np.float32(0.0)
        for j in range(band_starts[band], band_starts[band + 1]):
            i = items[j]
            for strip in range(starts[i], starts[i + 1]):
                x, y, end = edges[strip, 0], max(edges[strip, 1], band_start), min(edges[strip, 2], band_end)
                if y < end:
                    dx = np.float32(x - cells[i, 1]) + (np.float32(0.5) - fractions[i, 1])
                    dy = np.float32(0.5) - fractions[i, 0]
                    at, plane = y * pitch + x + LANES, height * pitch
                    draw_strip(
                        bands, out, at, pitch, plane, end - y, y - cells[i, 0], dy, dx, i, whitening, colors, tangents
                    )
        total = 0.0
        for plane in range(planes):
            for y in range(band_start, band_end):
                out[plane, y, :LANES] = np.float32(0.0)
                out[plane, y, pitch - LANES :] = np.float32(0.0)
                if target is not None:
                    if weight is not None:
                        total += _subtract_weighted(out[plane, y], target[plane, y], weight[y])
                    else:
                        total += _subtract(out[plane, y], target[plane, y])
                elif weight is not None:
                    out[plane, y] *= weight[y]
        sums[band] = total


@_jit_parallel
def _gather(bands, moments, first_band, cotangent, index, strips, geometry, colors):  # type: ignore[no-untyped-def]
    """Add to `moments` ``(N, 5 + C)``: for each Gaussian the sums over its footprint that give every gradient.

    They are those of `gather_strip`, in whitened coordinates; the bands are those from `first_band` on. Row `index[i]`
    is Gaussian i's. Lanes add up in float32 over some rows, and from there on in float64.
    """
    starts, edges = strips
    cells, fractions, whitening = geometry
    _, height, pitch = cotangent.shape
    n, kinds = len(index), MOMENTS + len(bands)
    for task in prange((n + _GAUSSIANS_A_TASK - 1) // _GAUSSIANS_A_TASK):
        sums, totals = np.zeros((kinds, LANES), np.float32), np.empty(kinds)
        for i in range(task * _GAUSSIANS_A_TASK, min(n, (task + 1) * _GAUSSIANS_A_TASK)):
            totals[:] = 0.0
            rows = 0
            for strip in range(starts[i], starts[i + 1]):
                x, y, end = edges[strip, 0], edges[strip, 1], edges[strip, 2]
                dx = np.float32(x - cells[i, 1]) + (np.float32(0.5) - fractions[i, 1])
                dy = np.float32(0.5) - fractions[i, 0]
                at, plane = y * pitch + x + LANES, height * pitch
                gather_strip(
                    bands, sums, cotangent, at, pitch, plane, end - y, y - cells[i, 0], dy, dx, i, whitening, colors
                )
                rows += end - y
                if rows >= _ROWS_A_SUM:
                    rows = 0
                    for k in range(kinds):
                        totals[k] += take_sum(sums, k)
            row = index[i]
            for k in range(kinds):
                totals[k] += take_sum(sums, k)
            for k in range(MOMENTS):
                moments[row, k] += totals[k] * _UNITS[k]
            for band in range(len(bands)):
                moments[row, MOMENTS + first_band + band] += totals[MOMENTS + band]


@_jit
def _tangents(step, first_band, index, bands):  # type: ignore[no-untyped-def]
    """Return a whitened step of the Gaussians ``(N, 5 + C)`` in the kernels' coordinates, row ``index[i]`` at ``i``."""
    tangents = np.empty((len(index), MOMENTS + len(bands)), np.float32)
    for i in range(len(index)):
        row = index[i]
        for k in range(MOMENTS):
            tangents[i, k] = step[row, k] * _UNITS[k]
        for band in range(len(bands)):
            tangents[i, MOMENTS + band] = step[row, MOMENTS + first_band + band]
    return tangents


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """The image of a set of Gaussians over one region, and its derivatives there (see `operators`).

    There are two sets of coordinates for a change of the Gaussians. *Rows* are those of `Gaussians.to_rows`. *Whitened*
    ones are ``(N, 5 + C)`` too, without units: the move of the mean along the Gaussian's own two axes, over the scale
    there; the relative stretch along each, and the shear (``d ln g = u a + v b + u^2 c + v^2 d + u v e`` with (u, v)
    the offset from the mean in those coordinates); the colors. In them every Gaussian looks alike, so an optimiser
    needs no rates of its own for small and large ones.

    Images are ``(height, width, C)`` float32. The methods that name *planes* take and fill arrays from `to_planes`.

    Parameters
    ----------
    packed
        The Gaussians that meet the region, by first band and block: what is read one after the other lies side by side.
    shapes
        ``(N, 3)`` float64 of each: its two scales, and ``s1/s2 - s2/s1``.
    count
        Gaussians in the set, those that miss the region included.
    region
        Px.
    schedule
        Which of them to draw in each band: where its list starts, and the lists.
    strips
        Where each one's strips are.
    """

    packed: PackedGaussians
    shapes: NDArray[np.float64]
    count: int
    region: Region
    schedule: tuple[NDArray[np.int64], NDArray[np.int64]]
    strips: tuple[NDArray[np.int64], NDArray[np.int32]]

    def narrowed(self, share: float) -> Operators:
        """Return the same with every footprint cut at `share` of its radius: less work, and less exact."""
        return replace(self, strips=_strips_within(self.packed, self.region, share=share))

    def render(self, *, colors: Floats | None = None) -> Floats:
        """Return the image; with `colors` ``(N, C)``, as if the Gaussians had those."""
        bands = self.packed.colors.shape[1] if colors is None else colors.shape[1]
        planes = self.new_planes(bands)
        self.draw(planes, colors=colors)
        return to_image(planes)

    def jvp(self, tangent: Floats) -> Floats:
        """Return the image's change per unit step along `tangent`, ``(N, 5 + C)``, in rows."""
        planes = self.new_planes(self.packed.colors.shape[1])
        self.draw_change(planes, self._whitened(tangent))
        return to_image(planes)

    def vjp(self, cotangent: Floats) -> Floats:
        """Return the gradient of ``sum(cotangent * image)``, ``(N, 5 + C)`` float32, in rows."""
        return self.to_rows_gradient(self.gather(to_planes(cotangent)))

    def to_rows_gradient(self, moments: NDArray[np.float64]) -> Floats:
        """Return a gradient given in whitened coordinates, ``(N, 5 + C)``, in rows, float32."""
        gradient = moments.astype(np.float32)
        gradient[self.packed.index] = self._frames.to_rows(moments[self.packed.index])
        return gradient

    def new_planes(self, bands: int) -> Floats:
        """Return planes for the region, not filled."""
        return np.empty((bands, self.region.height, self.region.width + 2 * LANES), np.float32)

    def draw(
        self,
        planes: Floats,
        *,
        colors: Floats | None = None,
        target: Floats | None = None,
        weight: Floats | None = None,
    ) -> float:
        """Fill `planes` with the image, or with ``weight (image - target)``.

        Parameters
        ----------
        colors
            ``(N, C)``: draw as if the Gaussians had these.
        target
            Planes.
        weight
            One plane, ``(height, pitch)``.

        Returns
        -------
        With `target`, the sum of ``weight (image - target)^2``: rows of pixels in float32, those in float64.
        """
        packed = self.packed.colors if colors is None else np.ascontiguousarray(colors[self.packed.index], np.float32)
        return self._draw(planes, packed, None, target, weight)

    def draw_change(self, planes: Floats, step: NDArray[np.floating], *, weight: Floats | None = None) -> None:
        """Fill `planes` with the image's change per unit `step`, whitened ``(N, 5 + C)``, times `weight`."""
        self._draw(planes, self.packed.colors, step, None, weight)

    def gather(self, planes: Floats) -> NDArray[np.float64]:
        """Return the gradient of ``sum(planes * image)``, ``(N, 5 + C)``, in whitened coordinates."""
        packed = self.packed
        moments = np.zeros((self.count, GEOMETRY_PARAMETERS + len(planes)))
        for group in _groups(len(planes)):
            colors, part = np.ascontiguousarray(packed.colors[:, group]), planes[group]
            bands = (0,) * len(part)
            _gather(bands, moments, group.start, part, packed.index, self.strips, self._geometry, colors)
        return moments

    def _whitened(self, tangent: Floats) -> NDArray[np.float64]:
        """Return a tangent given in rows in whitened coordinates."""
        step = tangent.astype(np.float64)
        step[self.packed.index] = self._frames.whitened(tangent[self.packed.index])
        return step

    @property
    def _frames(self) -> Frames:
        whitening = self.packed.whitening.astype(np.float64) / WHITENED_UNIT
        return Frames(along_y=whitening[:, [0, 2]], along_x=whitening[:, [1, 3]], shapes=self.shapes)

    @property
    def _geometry(self) -> tuple[NDArray[Any], ...]:
        packed = self.packed
        return packed.cells, packed.fractions, packed.whitening

    def _draw(
        self,
        planes: Floats,
        colors: Floats,
        step: NDArray[np.floating] | None,
        target: Floats | None,
        weight: Floats | None,
    ) -> float:
        sums, total = np.zeros(len(self.schedule[0]) - 1), 0.0
        for group in _groups(len(planes)):
            part = planes[group]
            bands = (0,) * len(part)
            tangents = None if step is None else _tangents(step, group.start, self.packed.index, bands)
            seen = np.ascontiguousarray(colors[:, group])
            goal = None if target is None else target[group]
            _draw(bands, part, sums, self.schedule, self.strips, self._geometry, seen, tangents, goal, weight)
            total += float(sums.sum())
        return total


def operators(gaussians: Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0) -> Operators:
    """Return `render`, `jvp` and `vjp` of the Gaussians over `region`, sharing what they need.

    Parameters
    ----------
    gaussians
        One set, or several in drawing order, each with its own origin.
    region
        Px of the output grid.
    scale
        Output pixels per scene pixel; the derivatives are defined for 1 only.
    """
    sets = [gaussians] if isinstance(gaussians, Gaussians) else list(gaussians)
    packed = pack(sets, region, scale=scale)
    starts, items, order = _schedule(packed.cells, packed.fractions, packed.extents, packed.blocks, region.height)
    packed = packed.reordered(order)
    scales = np.concatenate([one.scales for one in sets]).astype(np.float64)[packed.index]
    return Operators(
        packed=packed,
        shapes=shapes_of(scales),
        count=sum(len(one) for one in sets),
        region=region,
        schedule=(starts, items),
        strips=_strips_within(packed, region, share=1.0),
    )


def _strips_within(packed: PackedGaussians, region: Region, *, share: float) -> tuple[Any, Any]:
    return _strips(packed.cells, packed.fractions, packed.extents, packed.slopes, share, region.height, region.width)


def _groups(bands: int) -> list[slice]:
    return [slice(first, min(first + MOST_PLANES, bands)) for first in range(0, bands, MOST_PLANES)]


def to_planes(image: Floats) -> Floats:
    """Return an image ``(height, width, C)`` as the planes that the engine works on."""
    height, width, bands = image.shape
    planes = np.zeros((bands, height, width + 2 * LANES), np.float32)
    planes[:, :, LANES:-LANES] = np.moveaxis(image, 2, 0)
    return planes


def to_image(planes: Floats) -> Floats:
    """Return planes as an image ``(height, width, C)``; a view."""
    return np.moveaxis(planes[:, :, LANES:-LANES], 0, 2)
