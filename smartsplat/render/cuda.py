"""The CUDA engine behind the surface of `cpu`: NumPy arrays in and out, the work on the device (Triton).

Formulated bin by bin in `kernels`, prepared in `binning`, launched in `device`. The same footprint rule and the same
coordinates as the CPU engine; float32 throughout, and the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smartsplat.gaussians import GEOMETRY_PARAMETERS, Floats, Gaussians
from smartsplat.geometry import Region
from smartsplat.render.binning import place
from smartsplat.render.coordinates import Frames, frames_of
from smartsplat.render.cpu import to_image, to_planes
from smartsplat.render.device import DeviceOperators, engine_device
from smartsplat.render.lanes import LANES
from smartsplat.render.zoom import resample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operators:
    """What `smartsplat.render.cpu.Operators` is, worked out on the device.

    Parameters
    ----------
    device
        The same on tensors.
    frames
        Of the Gaussians as the scene has them; derivatives are defined for a scale of 1 only.
    region
        Px.
    """

    device: DeviceOperators
    frames: Frames
    region: Region

    def narrowed(self, share: float) -> Operators:
        """Return the same with every footprint cut at `share` of its radius: less work, and less exact."""
        return replace(self, device=self.device.narrowed(share))

    def render(self, *, colors: Floats | None = None) -> Floats:
        """Return the image; with `colors` ``(N, C)``, as if the Gaussians had those."""
        planes = self.new_planes((self.device.colors if colors is None else colors).shape[1])
        self.draw(planes, colors=colors)
        return to_image(planes)

    def jvp(self, tangent: Floats) -> Floats:
        """Return the image's change per unit step along `tangent`, ``(N, 5 + C)``, in rows."""
        planes = self.new_planes(self.device.colors.shape[1])
        self.draw_change(planes, self.frames.whitened(tangent))
        return to_image(planes)

    def vjp(self, cotangent: Floats) -> Floats:
        """Return the gradient of ``sum(cotangent * image)``, ``(N, 5 + C)`` float32, in rows."""
        return self.to_rows_gradient(self.gather(to_planes(cotangent)))

    def to_rows_gradient(self, moments: NDArray[np.float64]) -> Floats:
        """Return a gradient given in whitened coordinates, ``(N, 5 + C)``, in rows, float32."""
        return self.frames.to_rows(moments)

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
        """Fill `planes` with the image, or with ``weight (image - target)``; return the sum of squares, weighted.

        See `smartsplat.render.cpu.Operators.draw`.
        """
        drawn = self.device.new_planes(len(planes))
        loss = self.device.draw(
            drawn,
            colors=None if colors is None else self._upload(colors),
            target=None if target is None else self._upload(_inner(target)),
            weight=None if weight is None else self._upload(_inner(weight)),
        )
        _download(drawn, planes)
        return 0.0 if loss is None else float(loss)

    def draw_change(self, planes: Floats, step: NDArray[np.floating], *, weight: Floats | None = None) -> None:
        """Fill `planes` with the image's change per unit `step`, whitened ``(N, 5 + C)``, times `weight`."""
        drawn = self.device.new_planes(len(planes))
        self.device.draw_change(
            drawn, self._upload(step), weight=None if weight is None else self._upload(_inner(weight))
        )
        _download(drawn, planes)

    def gather(self, planes: Floats) -> NDArray[np.float64]:
        """Return the gradient of ``sum(planes * image)``, ``(N, 5 + C)``, in whitened coordinates."""
        return self.device.gather(self._upload(_inner(planes))).cpu().numpy()

    def _upload(self, values: NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device.colors.device)


def operators(gaussians: Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0) -> Operators:
    """Return `render`, `jvp` and `vjp` of the Gaussians over `region` on the device.

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
    scales = np.concatenate([resample(one, scale)[1].scales for one in sets]).astype(np.float64)
    rotations = np.concatenate([one.rotations for one in sets]).astype(np.float64)
    return Operators(device=on_device(sets, region, scale=scale), frames=frames_of(scales, rotations), region=region)


def on_device(gaussians: Gaussians | Sequence[Gaussians], region: Region, *, scale: float = 1.0) -> DeviceOperators:
    """Return `Operators.device` of what `operators` takes."""
    sets = [gaussians] if isinstance(gaussians, Gaussians) else list(gaussians)
    resampled, where = [resample(one, scale) for one in sets], engine_device()
    means = np.concatenate([part for part, _ in resampled])
    rows = torch.from_numpy(np.concatenate([seen.to_rows() for _, seen in resampled])).to(where)
    return DeviceOperators(
        placed=place(torch.from_numpy(means).to(where), rows[:, 2:5], offset=(-region.y0, -region.x0)),
        colors=rows[:, GEOMETRY_PARAMETERS:].contiguous(),
        height=region.height,
        width=region.width,
    )


def _inner(planes: Floats) -> Floats:
    """Return planes without their spare columns; a view."""
    return planes[..., LANES:-LANES]


def _download(drawn: Tensor, planes: Floats) -> None:
    planes[..., LANES:-LANES] = drawn.cpu().numpy()
    planes[..., :LANES] = planes[..., -LANES:] = 0
