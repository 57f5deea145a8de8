"""A set of 2D Gaussians: the primitives an image is made of.

The image is their sum, ``sum_i c_i exp(-1/2 (p - mu_i)^T S_i^-1 (p - mu_i))``, with no opacity and no background.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

GEOMETRY_PARAMETERS = 5
"""Numbers of a Gaussian before its colors: mean (y, x), two scales, rotation."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gaussians:
    """``N`` Gaussians with ``C`` color bands, float32, placed relative to an integer origin.

    Parameters
    ----------
    means
        ``(N, 2)``, px, (y, x), relative to `origin`. Pixel (y, x) has its centre at ``(y + 0.5, x + 0.5)``.
    scales
        ``(N, 2)``, px: standard deviations along the Gaussian's own two axes.
    rotations
        ``(N,)``, rad: the first axis points to ``(cos r, sin r)`` in (y, x), the second to ``(-sin r, cos r)``.
    colors
        ``(N, C)``, in units of the normalised pixel range; may leave [0, 1].
    origin
        Pixel (y, x) of the scene that the means count from. Coordinates near 10^6 px would keep only 1/16 px as
        float32; relative to a tile they keep 1/16384 px or better.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> one = Gaussians(
    ...     means=np.array([[4.0, 6.0]]),
    ...     scales=np.array([[2.0, 1.0]]),
    ...     rotations=np.zeros(1),
    ...     colors=np.array([[1.0, 0.5, 0.0]]),
    ... )
    >>> len(one), one.bands
    (1, 3)
    """

    means: Floats
    scales: Floats
    rotations: Floats
    colors: Floats
    origin: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name in ("means", "scales", "rotations", "colors"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        shapes = (self.means.shape, self.scales.shape, self.rotations.shape, self.colors.shape[:1])
        n = len(self.means)
        if shapes != ((n, 2), (n, 2), (n,), (n,)) or self.colors.ndim != 2:
            raise ValueError(
                f"means {shapes[0]}, scales {shapes[1]}, rotations {shapes[2]}, colors {self.colors.shape} do not fit"
            )

    def __len__(self) -> int:
        return len(self.means)

    @property
    def bands(self) -> int:
        """Color bands ``C``."""
        return self.colors.shape[1]

    @classmethod
    def empty(cls, *, bands: int, origin: tuple[int, int] = (0, 0)) -> Gaussians:
        """Return a set of none."""
        return cls.from_rows(np.empty((0, GEOMETRY_PARAMETERS + bands), np.float32), origin=origin)

    @classmethod
    def from_rows(cls, rows: Floats, *, origin: tuple[int, int] = (0, 0)) -> Gaussians:
        """Return the set stored as ``(N, 5 + C)``: mean y, mean x, two scales, rotation, colors."""
        return cls(means=rows[:, 0:2], scales=rows[:, 2:4], rotations=rows[:, 4], colors=rows[:, 5:], origin=origin)

    def to_rows(self) -> Floats:
        """Return ``(N, 5 + C)``: mean y, mean x, two scales, rotation, colors."""
        return np.concatenate([self.means, self.scales, self.rotations[:, None], self.colors], axis=1)

    def select(self, index: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Gaussians:
        """Return those that `index` picks, in its order."""
        return replace(
            self,
            means=self.means[index],
            scales=self.scales[index],
            rotations=self.rotations[index],
            colors=self.colors[index],
        )

    def at_origin(self, origin: tuple[int, int]) -> Gaussians:
        """Return the same Gaussians with means relative to another origin (rounded to float32 there)."""
        shift = np.subtract(self.origin, origin)
        return replace(self, means=(self.means.astype(np.float64) + shift).astype(np.float32), origin=origin)

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.to_rows()).all())


def concatenate(sets: Iterable[Gaussians], *, origin: tuple[int, int]) -> Gaussians:
    """Return all Gaussians of `sets`, in order, with means relative to `origin`.

    Raises
    ------
    ValueError
        If there is no set at all: the number of bands would be unknown.
    """
    rows = [gaussians.at_origin(origin).to_rows() for gaussians in sets]
    return Gaussians.from_rows(np.concatenate(rows), origin=origin)
