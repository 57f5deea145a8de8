"""Stored pixels to the unit range the method works in, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smartsplat.gaussians import Floats

_ROWS_AT_ONCE = 8  # what lies between is exact and large: a few rows of it stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """The map ``value = (pixel - offset) / span`` of a scene.

    Parameters
    ----------
    offset, span
        In pixel units. 8-bit images use 0 and 255; others the range of their valid pixels.

    Examples
    --------
    >>> import numpy as np
    >>> eight_bit = Normalization(offset=0.0, span=255.0)
    >>> eight_bit.to_pixels(eight_bit.to_values(np.array([[[0, 51, 255]]], np.uint8)), np.dtype("uint8")).tolist()
    [[[0, 51, 255]]]
    """

    offset: float
    span: float

    @classmethod
    def of_range(cls, low: float, high: float, *, dtype: np.dtype) -> Normalization:
        """Return the map for an image of `dtype` whose valid pixels lie in ``[low, high]``."""
        if dtype == np.uint8:
            return cls(offset=0.0, span=255.0)
        return cls(offset=low, span=high - low if high > low else 1.0)

    def to_values(self, pixels: NDArray) -> Floats:
        """Return `pixels` in the unit range, float32; those that are not finite become 0."""
        values = np.empty(pixels.shape, np.float32)
        for start in range(0, len(pixels), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            exact = pixels[rows].astype(np.float64)
            exact -= self.offset
            exact /= self.span
            values[rows] = exact
        if pixels.dtype.kind == "f":
            values[~np.isfinite(values)] = 0
        return values

    def to_pixels(self, values: NDArray[np.floating], dtype: np.dtype) -> NDArray:
        """Return `values` as pixels of `dtype`: rounded and clipped if it is an integer type."""
        pixels = values * np.float32(self.span)
        pixels += np.float32(self.offset)
        if dtype.kind == "f":
            return pixels.astype(dtype, copy=False)
        limits = np.iinfo(dtype)
        np.rint(pixels, out=pixels)
        return np.clip(pixels, limits.min, limits.max, out=pixels).astype(dtype)


def pixel_weight(pixels: NDArray) -> Floats | None:
    """Return ``(H, W)`` float32 weights, 0 where any band is NaN or infinite; None if every pixel counts.

    Examples
    --------
    >>> import numpy as np
    >>> pixel_weight(np.array([[[1.0], [np.nan]]])).tolist()
    [[1.0, 0.0]]
    """
    if pixels.dtype.kind != "f":
        return None
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(pixels), axis=2)
    return None if finite.all() else finite.astype(np.float32)
