"""The CUDA engine on tensors that stay on the device: the image of Gaussians, its derivative and the adjoint of that.

`cuda` puts NumPy arrays before it; an optimiser that lives on the device calls it directly, and no image or vector
leaves the device. Planes are contiguous tensors ``(C, height, width)`` float32, a weight is ``(height, width)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from smartsplat.gaussians import GEOMETRY_PARAMETERS
from smartsplat.render import kernels
from smartsplat.render.binning import Bins, PlacedGaussians, list_bins, place
from smartsplat.render.footprint import CUTOFF

# Triton's functions are launched as ``kernel[grid](...)``, which it has no types for.
_draw: Any = kernels.draw
_gather: Any = kernels.gather
_add_parts: Any = kernels.add_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How work is cut up. It changes no pixel; only gradients, by rounding.

    Parameters
    ----------
    bin_rows, bin_columns
        Of a bin, px.
    draw_warps, gather_warps
        That work on a bin.
    owners_a_sum, parts_a_sum
        Gaussians, and parts of each, that are added up at once.
    """

    bin_rows: int = 16
    bin_columns: int = 16
    draw_warps: int = 1
    gather_warps: int = 1
    owners_a_sum: int = 1
    parts_a_sum: int = 32


# The interpreter takes as long for an operation on many pixels as on one.
_INTERPRETED = Tuning(bin_rows=64, bin_columns=64, owners_a_sum=64, parts_a_sum=8)
DEFAULT_TUNING = _INTERPRETED if kernels.INTERPRETED else Tuning()


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceOperators:
    """The image of a set of Gaussians over one region, and its derivatives in whitened coordinates.

    See `smartsplat.render.cpu.Operators` for the coordinates. Lists are made when they are first needed.

    Parameters
    ----------
    placed
        The Gaussians on the region's grid.
    colors
        ``(N, C)`` float32, contiguous.
    height, width
        Of the region, px.
    share
        Of each footprint's radius that is seen.
    room
        Entries that the lists have room for; None = as many as there are, which takes a wait for the device. Where
        they are more, images and gradients are wrong, and losses infinite.
    """

    placed: PlacedGaussians
    colors: Tensor
    height: int
    width: int
    share: float = 1.0
    room: int | None = None
    tuning: Tuning = DEFAULT_TUNING

    def narrowed(self, share: float) -> DeviceOperators:
        """Return the same with every footprint cut at `share` of its radius: less work, and less exact."""
        return replace(self, share=share)

    def new_planes(self, bands: int) -> Tensor:
        """Return planes for the region, not filled."""
        return torch.empty((bands, self.height, self.width), dtype=torch.float32, device=self.colors.device)

    def draw(
        self,
        planes: Tensor,
        *,
        colors: Tensor | None = None,
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor | None:
        """Fill `planes` with the image, or with ``weight (image - target)``.

        Parameters
        ----------
        colors
            ``(N, C)``: draw as if the Gaussians had these.
        target, weight
            Planes, and one plane.

        Returns
        -------
        With `target`, the sum of ``weight (image - target)^2``, a float64 scalar on the device: bins in float32, their
        sum in float64. Otherwise None.
        """
        return self._draw(planes, self.colors if colors is None else colors, None, target, weight)

    def draw_change(self, planes: Tensor, step: Tensor, *, weight: Tensor | None = None) -> None:
        """Fill `planes` with the image's change per unit `step`, whitened ``(N, 5 + C)``, times `weight`."""
        self._draw(planes, self.colors, step.float(), None, weight)

    def gather(self, planes: Tensor) -> Tensor:
        """Return the gradient of ``sum(planes * image)``, ``(N, 5 + C)`` float64, in whitened coordinates.

        Bins in float32, their sums in float64.
        """
        n, bands, groups = len(self.colors), len(planes), _groups(len(planes))
        if len(groups) == 1 and n and planes.numel():
            return self._gather(planes, groups[0])
        gradient = torch.zeros((n, GEOMETRY_PARAMETERS + bands), dtype=torch.float64, device=planes.device)
        if n and planes.numel():
            for group in groups:
                sums = self._gather(planes, group)
                gradient[:, :GEOMETRY_PARAMETERS] += sums[:, :GEOMETRY_PARAMETERS]
                gradient[:, GEOMETRY_PARAMETERS:][:, group] = sums[:, GEOMETRY_PARAMETERS:]
        return gradient

    @cached_property
    def bins(self) -> Bins:
        """Who meets each bin."""
        return list_bins(
            self.placed,
            height=self.height,
            width=self.width,
            rows=self.tuning.bin_rows,
            columns=self.tuning.bin_columns,
            share=self.share,
            room=self.room,
        )

    @property
    def _cut(self) -> float:
        """Squared radius of a footprint in the kernels' units."""
        return (self.share * CUTOFF * kernels.UNIT) ** 2

    def _draw(
        self, planes: Tensor, colors: Tensor, step: Tensor | None, target: Tensor | None, weight: Tensor | None
    ) -> Tensor | None:
        tuning = self.tuning
        if planes.numel() == 0:
            return None if target is None else torch.zeros((), dtype=torch.float64, device=planes.device)
        lists = self.bins
        groups = _groups(len(planes))
        losses = torch.empty((len(groups), len(lists.starts) - 1), dtype=torch.float32, device=planes.device)
        for loss, group in zip(losses, groups, strict=True):
            _draw[(losses.shape[1],)](
                planes[group],
                loss,
                lists.starts,
                lists.items,
                lists.entries,
                lists.room,
                self.placed.geometry,
                colors,
                step,
                None if target is None else target[group],
                weight,
                self.height,
                self.width,
                self.height * self.width,
                lists.across,
                colors.shape[1],
                group.start,
                self._cut,
                BANDS=group.stop - group.start,
                ROWS=tuning.bin_rows,
                COLUMNS=tuning.bin_columns,
                num_warps=tuning.draw_warps,
            )
        return None if target is None else losses.sum(dtype=torch.float64)

    def _gather(self, planes: Tensor, group: slice) -> Tensor:
        """Return what one group of bands adds to the gradient, and its own part of it."""
        n, lists, tuning, bands = len(self.colors), self.bins, self.tuning, group.stop - group.start
        kinds = GEOMETRY_PARAMETERS + bands
        parts_out = torch.empty((lists.room, kinds), dtype=torch.float32, device=planes.device)
        _gather[(len(lists.starts) - 1,)](
            parts_out,
            lists.starts,
            lists.items,
            lists.slots,
            self.placed.geometry,
            self.colors,
            planes[group],
            self.height,
            self.width,
            self.height * self.width,
            lists.across,
            self.colors.shape[1],
            group.start,
            self._cut,
            BANDS=bands,
            ROWS=tuning.bin_rows,
            COLUMNS=tuning.bin_columns,
            num_warps=tuning.gather_warps,
        )
        sums = torch.empty((n, kinds), dtype=torch.float64, device=planes.device)
        _add_parts[(math.ceil(n / tuning.owners_a_sum),)](
            sums,
            parts_out,
            lists.entry_starts,
            n,
            lists.room,
            KINDS=kinds,
            WIDE=1 << (kinds - 1).bit_length(),
            OWNERS=tuning.owners_a_sum,
            PARTS=tuning.parts_a_sum,
            num_warps=1,
        )
        return sums


def device_operators(
    rows: Tensor, *, offset: tuple[int, int], height: int, width: int, room: int | None = None
) -> DeviceOperators:
    """Return the operators of Gaussians given as rows ``(N, 5 + C)`` float32 on the device.

    Parameters
    ----------
    rows
        Mean y, mean x, two scales, rotation, colors, as in `smartsplat.gaussians.Gaussians.to_rows`.
    offset
        Of the means' origin from the region's, px.
    height, width
        Of the region, px.
    room
        See `DeviceOperators`.
    """
    return DeviceOperators(
        placed=place(rows[:, 0:2], rows[:, 2:5], offset=offset),
        colors=rows[:, GEOMETRY_PARAMETERS:].contiguous(),
        height=height,
        width=width,
        room=room,
    )


def engine_device() -> torch.device:
    """Return where the engine works: the current CUDA device, or host memory under Triton's interpreter."""
    return torch.device("cpu" if kernels.INTERPRETED else "cuda")


def _groups(bands: int) -> list[slice]:
    most = kernels.MOST_BANDS
    return [slice(first, min(first + most, bands)) for first in range(0, bands, most)]
