"""The CPU engine: exact, deterministic, parallel over bands of rows or over Gaussians (numba).

A Gaussian is drawn in vertical strips `LANES` columns wide that start at its own left edge; in each strip the rows its
ellipse crosses follow in closed form, so most evaluated pixels lie in the footprint, and each row of a strip is one set
of vector instructions (`lanes`). Images are planar while worked on, with `LANES` spare columns on both sides so that a
strip never needs cutting.

No two threads write the same pixel or the same Gaussian and every sum has a fixed order, so the bits do not depend on
the number of threads. A strip is evaluated the same way wherever the region's edge lies, so neither do they depend on
the region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from smartsplat.gaussians import Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.render.footprint import CUTOFF
from smartsplat.render.lanes import (
    LANES,
    add_changed,
    add_moments,
    add_pull,
    add_weighted,
    clear_pull,
    evaluate,
    lane_sum,
    log_changes,
)
from smartsplat.render.packing import LOG2_SCALE, PackedGaussians, pack

BAND_ROWS = 64
_GAUSSIANS_A_TASK = 32
_SLACK = 1e-3  # px: rows are bounded in float64, the footprint is decided in float32

# `contract` lets a multiply and an add become one instruction. Anything stronger (reordering, no NaNs) would cost
# determinism.
_jit: Any = njit(cache=True, fastmath={"contract"}, error_model="numpy")
_jit_parallel: Any = njit(cache=True, fastmath={"contract"}, error_model="numpy", parallel=True)
_inline: Any = njit(inline="always", fastmath={"contract"}, error_model="numpy")


@_inline
def _columns(cell, fraction, extent):  # type: ignore[no-untyped-def]
    """Return the first column of a footprint, and how many strips it takes."""
    first = math.ceil(fraction - extent - 0.5 - _SLACK)
    last = math.floor(fraction + extent - 0.5 + _SLACK)
    return cell + first, (last - first + LANES) // LANES


@_inline
def _rows(left, cell, fraction, extent, slope, depth, top):  # type: ignore[no-untyped-def]
    """Return the half-open rows that the ellipse crosses in the strip from offset `left` from the mean.

    Over the strip the upper edge ``slope x + CUTOFF sqrt(depth (1 - x^2 / extent^2))`` is concave with its peak at
    column `top`, so it is highest at the column of the strip nearest to `top`; the lower edge is its mirror image.
    """
    right = min(left + (LANES - 1), extent)
    left = max(left, -extent)
    upper_at = min(max(top, left), right)
    lower_at = min(max(-top, left), right)
    upper = slope * upper_at + CUTOFF * math.sqrt(depth * max(0.0, 1.0 - (upper_at / extent) ** 2))
    lower = slope * lower_at - CUTOFF * math.sqrt(depth * max(0.0, 1.0 - (lower_at / extent) ** 2))
    start = cell + math.ceil(lower + fraction - 0.5 - _SLACK)
    return start, cell + math.floor(upper + fraction - 0.5 + _SLACK) + 1


@_jit
def _bands_of(cells, fractions, extents, height):  # type: ignore[no-untyped-def]
    """Return which Gaussians touch each band of `BAND_ROWS` rows: list starts, and the lists, in drawing order."""
    n, bands = len(cells), (height + BAND_ROWS - 1) // BAND_ROWS
    spans = np.empty((n, 2), np.int64)
    starts = np.zeros(bands + 1, np.int64)
    for i in range(n):
        centre = cells[i, 0] + fractions[i, 0]
        low = math.floor(centre - extents[i, 0] - 0.5 - _SLACK)
        high = math.ceil(centre + extents[i, 0] - 0.5 + _SLACK)
        spans[i, 0] = max(0, low // BAND_ROWS)
        spans[i, 1] = min(bands, high // BAND_ROWS + 1)
        for band in range(spans[i, 0], spans[i, 1]):
            starts[band + 1] += 1
    for band in range(bands):
        starts[band + 1] += starts[band]
    items = np.empty(starts[bands], np.int64)
    nexts = starts[:-1].copy()
    for i in range(n):
        for band in range(spans[i, 0], spans[i, 1]):
            items[nexts[band]] = i
            nexts[band] += 1
    return starts, items


@_jit_parallel
def _draw(out, starts, items, cells, fractions, whitening, extents, slopes, colors, tangents):  # type: ignore[no-untyped-def]
    """Add every Gaussian to the planes `out`; with `tangents`, its directional derivative instead.

    `tangents` is ``(N, 5 + C)``: the change of ``ln g`` per ``u, v, u^2, v^2, u v``, then of the colors. Without it
    (None) the compiler drops that arithmetic.
    """
    planes, height, pitch = out.shape
    for band in prange(len(starts) - 1):
        scratch = np.empty((4, LANES), np.float32)
        band_start, band_end = band * BAND_ROWS, min(height, (band + 1) * BAND_ROWS)
        for j in range(starts[band], starts[band + 1]):
            i = items[j]
            uy, ux, vy, vx = whitening[i, 0], whitening[i, 1], whitening[i, 2], whitening[i, 3]
            first, strips = _columns(cells[i, 1], fractions[i, 1], extents[i, 1])
            for strip in range(strips):
                x = first + strip * LANES
                if x <= -LANES or x >= pitch - 2 * LANES:
                    continue
                left = x - cells[i, 1] + 0.5 - fractions[i, 1]
                start, end = _rows(
                    left, cells[i, 0], fractions[i, 0], extents[i, 1], slopes[i, 0], slopes[i, 1], slopes[i, 2]
                )
                dx = np.float32(x - cells[i, 1]) + (np.float32(0.5) - fractions[i, 1])
                for y in range(max(start, band_start), min(end, band_end)):
                    dy = np.float32(y - cells[i, 0]) + (np.float32(0.5) - fractions[i, 0])
                    evaluate(scratch, dx, dy, uy, ux, vy, vx)
                    if tangents is not None:
                        log_changes(
                            scratch, tangents[i, 0], tangents[i, 1], tangents[i, 2], tangents[i, 3], tangents[i, 4]
                        )
                    for plane in range(planes):
                        at = (plane * height + y) * pitch + x + LANES
                        if tangents is None:
                            add_weighted(out, at, scratch, colors[i, plane])
                        else:
                            add_changed(out, at, scratch, colors[i, plane], tangents[i, 5 + plane])


@_jit_parallel
def _gather(moments, cotangent, cells, fractions, whitening, extents, slopes, colors):  # type: ignore[no-untyped-def]
    """Fill `moments` ``(N, 5 + C)``: for each Gaussian the sums over its footprint that give every gradient.

    With ``t = g sum_c colors_c cotangent_c``: the sums of ``t u, t v, t u^2, t v^2, t u v``, then of
    ``g cotangent_c`` for each band. Lanes add up in float32 over one strip, strips in float64.
    """
    planes, height, pitch = cotangent.shape
    n = len(cells)
    for task in prange((n + _GAUSSIANS_A_TASK - 1) // _GAUSSIANS_A_TASK):
        scratch = np.empty((4, LANES), np.float32)
        sums = np.empty((5 + planes, LANES), np.float32)
        for i in range(task * _GAUSSIANS_A_TASK, min(n, (task + 1) * _GAUSSIANS_A_TASK)):
            uy, ux, vy, vx = whitening[i, 0], whitening[i, 1], whitening[i, 2], whitening[i, 3]
            first, strips = _columns(cells[i, 1], fractions[i, 1], extents[i, 1])
            moments[i] = 0.0
            for strip in range(strips):
                x = first + strip * LANES
                if x <= -LANES or x >= pitch - 2 * LANES:
                    continue
                left = x - cells[i, 1] + 0.5 - fractions[i, 1]
                start, end = _rows(
                    left, cells[i, 0], fractions[i, 0], extents[i, 1], slopes[i, 0], slopes[i, 1], slopes[i, 2]
                )
                dx = np.float32(x - cells[i, 1]) + (np.float32(0.5) - fractions[i, 1])
                sums[:] = np.float32(0.0)
                for y in range(max(start, 0), min(end, height)):
                    dy = np.float32(y - cells[i, 0]) + (np.float32(0.5) - fractions[i, 0])
                    evaluate(scratch, dx, dy, uy, ux, vy, vx)
                    clear_pull(scratch)
                    for plane in range(planes):
                        at = (plane * height + y) * pitch + x + LANES
                        add_pull(sums, 5 + plane, cotangent, at, scratch, colors[i, plane])
                    add_moments(sums, scratch)
                for k in range(5 + planes):
                    moments[i, k] += lane_sum(sums, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """The image of a set of Gaussians over one region, and its derivatives there (see `operators`).

    Parameters
    ----------
    packed
        The Gaussians that meet the region.
    shapes
        ``(N, 3)`` float64 of each: its two scales, and ``s1/s2 - s2/s1``.
    count
        Gaussians in the set, those that miss the region included.
    region
        Px.
    bands
        Result of the sort into bands of rows.
    """

    packed: PackedGaussians
    shapes: NDArray[np.float64]
    count: int
    region: Region
    bands: tuple[NDArray[np.int64], NDArray[np.int64]]

    def render(self, *, colors: Floats | None = None) -> Floats:
        """Return the image, ``(height, width, C)`` float32; with `colors` ``(N, C)``, as if the Gaussians had those."""
        packed = self.packed.colors if colors is None else np.ascontiguousarray(colors[self.packed.index], np.float32)
        return self._draw(packed, None)

    def jvp(self, tangent: Floats) -> Floats:
        """Return the image's change per unit step along `tangent`, ``(height, width, C)`` float32.

        Parameters
        ----------
        tangent
            ``(N, 5 + C)``, in the order of `Gaussians.to_rows`.
        """
        step = tangent[self.packed.index].astype(np.float64)
        uy, ux, vy, vx = self.packed.whitening.astype(np.float64).T
        first, second, shear = self.shapes.T
        changes = np.empty(step.shape, np.float32)
        squared = LOG2_SCALE**2
        changes[:, 0] = (uy * step[:, 0] + ux * step[:, 1]) / squared
        changes[:, 1] = (vy * step[:, 0] + vx * step[:, 1]) / squared
        changes[:, 2] = step[:, 2] / (first * squared)
        changes[:, 3] = step[:, 3] / (second * squared)
        changes[:, 4] = step[:, 4] * shear / squared
        changes[:, 5:] = step[:, 5:]
        return self._draw(self.packed.colors, changes)

    def vjp(self, cotangent: Floats) -> Floats:
        """Return the gradient of ``sum(cotangent * image)``, ``(N, 5 + C)`` float32, in the order of `to_rows`.

        Parameters
        ----------
        cotangent
            ``(height, width, C)``. What `render` returns is laid out so that no copy is wasted on turning it.
        """
        packed, bands = self.packed, cotangent.shape[2]
        planes = _planes(bands, self.region)
        planes[:, :, LANES:-LANES] = np.moveaxis(cotangent, 2, 0)
        moments = np.zeros((len(packed), 5 + bands))
        _gather(moments, planes, *self._geometry, packed.colors)
        uy, ux, vy, vx = packed.whitening.astype(np.float64).T
        first, second, shear = self.shapes.T
        squared = LOG2_SCALE**2
        gradient = np.zeros((self.count, 5 + bands), np.float32)
        gradient[packed.index, 0] = (moments[:, 0] * uy + moments[:, 1] * vy) / squared
        gradient[packed.index, 1] = (moments[:, 0] * ux + moments[:, 1] * vx) / squared
        gradient[packed.index, 2] = moments[:, 2] / (first * squared)
        gradient[packed.index, 3] = moments[:, 3] / (second * squared)
        gradient[packed.index, 4] = moments[:, 4] * shear / squared
        gradient[packed.index, 5:] = moments[:, 5:]
        return gradient

    @property
    def _geometry(self) -> tuple[NDArray[Any], ...]:
        packed = self.packed
        return packed.cells, packed.fractions, packed.whitening, packed.extents, packed.slopes

    def _draw(self, colors: Floats, changes: Floats | None) -> Floats:
        planes = _planes(colors.shape[1], self.region)
        _draw(planes, *self.bands, *self._geometry, colors, changes)
        return np.moveaxis(planes[:, :, LANES:-LANES], 0, 2)


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
    scales = np.concatenate([one.scales for one in sets]).astype(np.float64)[packed.index]
    first, second = scales.T
    return Operators(
        packed=packed,
        shapes=np.stack([first, second, first / second - second / first], axis=1),
        count=sum(len(one) for one in sets),
        region=region,
        bands=_bands_of(packed.cells, packed.fractions, packed.extents, region.height),
    )


def _planes(bands: int, region: Region) -> Floats:
    return np.zeros((bands, region.height, region.width + 2 * LANES), np.float32)
