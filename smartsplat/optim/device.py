"""A fit worked out on a CUDA device: tensors, and Triton kernels for what is done Gaussian by Gaussian.

Nothing leaves the device on the way but the few numbers of `DeviceMachine.numbers`. Under Triton's interpreter the
tensors are in host memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.optim import kernels
from smartsplat.optim.loss import RADIUS, SSIM_TAPS
from smartsplat.optim.machine import Bounds, Loss
from smartsplat.render import cuda
from smartsplat.render.device import DeviceOperators, device_operators, engine_device
from smartsplat.render.kernels import INTERPRETED

# Triton's functions are launched as ``kernel[grid](...)``, which it has no types for.
_precondition: Any = kernels.precondition
_damp: Any = kernels.damp
_advance: Any = kernels.advance
_turn: Any = kernels.turn
_move: Any = kernels.move
_smooth: Any = kernels.smooth
_ssim_maps: Any = kernels.ssim_maps
_mixed_slope: Any = kernels.mixed_slope

# Rows, numbers and pixels that a program does. The interpreter takes long to start one.
_ROWS = 4096 if INTERPRETED else 128
_NUMBERS = 4096 if INTERPRETED else 1024
_PIXELS = 4096 if INTERPRETED else 1024
_WIDE = 1024  # sums added up at once

_SPARE = 1.5  # room for entries, over as many as there were last


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceGaussians:
    """Gaussians on the device.

    Parameters
    ----------
    rows
        ``(N, 5 + C)`` float32 (see `smartsplat.gaussians.Gaussians.to_rows`).
    origin
        Of the means, px.
    """

    rows: Tensor
    origin: tuple[int, int]

    @property
    def bands(self) -> int:
        """Color bands ``C``."""
        return self.rows.shape[1] - GEOMETRY_PARAMETERS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceBounds:
    """`smartsplat.optim.machine.Bounds` on the device; means are at most `last`."""

    low: Tensor
    last: Tensor
    min_scale: float
    max_scale: float


class DeviceMachine:
    """See `smartsplat.optim.machine.Machine`. A vector is ``(N, 5 + C)``, a scalar the sum of a vector of numbers.

    The lists of who meets which bin get as much room as those before them needed, and half as much again, so that they
    can be made without a wait. A step that takes more has an infinite loss, is rejected, and the next has room.
    """

    xp: Any = torch

    def __init__(self) -> None:
        self._where = engine_device()
        self._room: int | None = None

    def take(self, own: Gaussians) -> DeviceGaussians:
        """Return the Gaussians on the device; forgets how much room earlier ones took."""
        self._room = None
        return DeviceGaussians(rows=self._upload(own.to_rows()), origin=own.origin)

    def take_bounds(self, bounds: Bounds) -> DeviceBounds:
        """Return the bounds on the device."""
        low, last = self._upload(bounds.low), self._upload(bounds.last)
        return DeviceBounds(low=low, last=last, min_scale=bounds.min_scale, max_scale=bounds.max_scale)

    def give(self, own: DeviceGaussians) -> Gaussians:
        """Return Gaussians of the device on the host."""
        return Gaussians.from_rows(own.rows.cpu().numpy(), origin=own.origin)

    def to_planes(self, pixels: Floats) -> Tensor:
        """Return pixels as planes ``(C, height, width)``."""
        return self._upload(pixels).permute(2, 0, 1).contiguous()

    def to_pixels(self, planes: Tensor) -> Tensor:
        """Return planes as pixels, a view."""
        return planes.permute(1, 2, 0)

    def to_vectors(self, values: NDArray[Any]) -> Tensor:
        """Return numbers as float64 on the device."""
        return torch.from_numpy(values.astype(np.float64)).to(self._where)

    def to_host(self, values: Tensor) -> NDArray[Any]:
        """Return an array."""
        return values.contiguous().cpu().numpy()

    def operators(
        self, gaussians: DeviceGaussians | Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0
    ) -> DeviceOperators:
        """Return operators on tensors; of taken Gaussians, with the room that is left to them."""
        if not isinstance(gaussians, DeviceGaussians):
            return cuda.on_device(gaussians, region, scale=scale)
        (y0, x0), origin = region.origin, gaussians.origin
        offset = (origin[0] - y0, origin[1] - x0)
        return device_operators(
            gaussians.rows, offset=offset, height=region.height, width=region.width, room=self._room
        )

    def numbers(self, at: DeviceOperators, *scalars: Tensor) -> list[float]:
        """Return scalars, and make room for what the operators' lists turned out to need."""
        parts = [at.bins.entries, *scalars]
        entries, *values = torch.stack([part.sum(dtype=torch.float64) for part in parts]).tolist()
        self._room = max(self._room or 0, math.ceil(_SPARE * entries))
        return values

    def mixed_loss(self, target: Tensor, weight: Tensor, ssim_share: float) -> Loss:
        """Return the mixed loss."""
        return _MixedLoss(target, weight, ssim_share).evaluate

    def precondition(self, out: Tensor, rest: Tensor, own: DeviceGaussians, damping: float) -> Tensor:
        """Apply the preconditioner."""
        return self._by_rows(_precondition, out, rest, own, damping)

    def damp(self, product: Tensor, direction: Tensor, own: DeviceGaussians, damping: float) -> Tensor:
        """Add the damping."""
        return self._by_rows(_damp, product, direction, own, damping)

    def advance(
        self, solution: Tensor, rest: Tensor, direction: Tensor, product: Tensor, norm: Tensor, curvature: Tensor
    ) -> None:
        """Take a step of conjugate gradients."""
        size = solution.numel()
        _advance[(math.ceil(size / _NUMBERS),)](
            solution, rest, direction, product, norm, curvature, len(norm), size, BLOCK=_NUMBERS, WIDE=_WIDE
        )

    def turn(self, direction: Tensor, ready: Tensor, norm: Tensor, previous: Tensor) -> None:
        """Choose the next direction."""
        size = direction.numel()
        _turn[(math.ceil(size / _NUMBERS),)](
            direction, ready, norm, previous, len(norm), size, BLOCK=_NUMBERS, WIDE=_WIDE
        )

    def moved(self, own: DeviceGaussians, step: Tensor, bounds: DeviceBounds) -> DeviceGaussians:
        """Return the Gaussians a step away."""
        count, rows = len(own.rows), torch.empty_like(own.rows)
        _move[(math.ceil(count / _ROWS),)](
            rows,
            own.rows,
            step,
            bounds.low,
            bounds.last,
            bounds.min_scale,
            bounds.max_scale,
            count,
            BANDS=own.bands,
            BLOCK=_ROWS,
        )
        return DeviceGaussians(rows=rows, origin=own.origin)

    def _by_rows(self, kernel: Any, out: Tensor, vectors: Tensor, own: DeviceGaussians, damping: float) -> Tensor:
        count = len(own.rows)
        parts = torch.empty(math.ceil(count / _ROWS), dtype=torch.float64, device=self._where)
        kernel[(len(parts),)](out, parts, vectors, own.rows, damping, count, BANDS=own.bands, BLOCK=_ROWS)
        return parts

    def _upload(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self._where)


class _MixedLoss:
    """`smartsplat.optim.loss.MixedLoss` on the device."""

    def __init__(self, target: Tensor, weight: Tensor, ssim_share: float) -> None:
        self._target, self._weight = target, weight
        self._total = float(weight.sum(dtype=torch.float64)) * len(target)
        self._shares = (1 - ssim_share) / self._total, ssim_share / self._total
        self._taps = torch.from_numpy(SSIM_TAPS).to(target.device)
        self._known = self._smoothed(torch.stack([target, target * target]))
        self._known[1] -= self._known[0] * self._known[0]

    def evaluate(self, image: Tensor) -> tuple[float, Tensor]:
        """Return the loss of an image and its derivative."""
        target, weight, size = self._target, self._weight, self._target.numel()
        image = torch.where(weight > 0, image, target)
        seen = self._smoothed(torch.stack([image, image * image, image * target]))
        maps, slope = torch.empty_like(seen), torch.empty_like(target)
        number = math.ceil(size / _PIXELS)
        sums = torch.empty((2, number), dtype=torch.float32, device=target.device)
        _ssim_maps[(number,)](maps, sums[1], seen, self._known, weight, weight.numel(), size, BLOCK=_PIXELS)
        _mixed_slope[(number,)](
            slope,
            sums[0],
            image,
            target,
            self._smoothed(maps),
            weight,
            *self._shares,
            weight.numel(),
            size,
            BLOCK=_PIXELS,
        )
        absolute, similarity = sums.sum(dim=1, dtype=torch.float64).tolist()
        return self._shares[0] * absolute + self._shares[1] * (self._total - similarity), slope

    def _smoothed(self, planes: Tensor) -> Tensor:
        """Return planes ``(..., height, width)`` smoothed along both axes."""
        height, width = planes.shape[-2:]
        grid = (math.ceil(height * width / _PIXELS), planes[..., 0, 0].numel())
        between, out = torch.empty_like(planes), torch.empty_like(planes)
        for source, drain, down in ((planes, between, False), (between, out, True)):
            _smooth[grid](
                drain, source, self._taps, height, width, height * width, DOWN=down, RADIUS=RADIUS, BLOCK=_PIXELS
            )
        return out
