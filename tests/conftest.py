"""Random Gaussians of every shape the renderer, the fit and the codec meet, drawn from a seed."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from smartsplat.gaussians import Gaussians

# The CUDA engine's kernels run in Triton's interpreter, wherever the tests run; read when Triton is first imported.
# With TRITON_INTERPRET=0 they are compiled and need a device.
os.environ.setdefault("TRITON_INTERPRET", "1")

FAMILIES = ("tiny", "ordinary", "huge", "needles", "outside", "mixed")


def _scales(rng: np.random.Generator, count: int, family: str) -> np.ndarray:
    if family == "tiny":
        return rng.uniform(0.3, 0.5, (count, 2))
    if family == "huge":
        return rng.uniform(30, 70, (count, 2))
    if family == "needles":
        short = rng.uniform(0.35, 1, count)
        scales = np.stack([short, np.minimum(70, short * rng.uniform(20, 200, count))], axis=1)
        return np.where(rng.random((count, 1)) < 0.5, scales, scales[:, ::-1])
    return np.exp(rng.uniform(np.log(0.8), np.log(9), (count, 2)))


def make_gaussians(
    seed: int,
    count: int,
    *,
    family: str = "mixed",
    bands: int = 3,
    shape: tuple[int, int] = (64, 64),
    origin: tuple[int, int] = (0, 0),
) -> Gaussians:
    """Return `count` Gaussians whose means lie in ``shape`` px at `origin` (of family ``outside``: around it)."""
    rng = np.random.default_rng(seed)
    families = [family] * count if family != "mixed" else rng.choice(FAMILIES[:-1], count)
    scales = np.array([_scales(rng, 1, each)[0] for each in families]).reshape(count, 2)
    means = rng.random((count, 2)) * shape
    outside = np.array([each == "outside" for each in families], bool)
    means[outside] = (rng.uniform(-1, 2, (count, 2)) * shape + rng.choice([-20, 20], (count, 2)))[outside]
    return Gaussians(
        means=means,
        scales=scales,
        rotations=rng.uniform(-4, 4, count),
        colors=rng.uniform(-0.5, 1.2, (count, bands)),
        origin=origin,
    )


@pytest.fixture(scope="session")
def gaussians_of() -> Callable[..., Gaussians]:
    """`make_gaussians`: random Gaussians from a seed, a number and a family."""
    return make_gaussians
