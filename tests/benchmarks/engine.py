"""Speed of the CPU engine: ms per megapixel and ns per (pixel, Gaussian) pair, for one thread and for all.

python -m tests.benchmarks.engine
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numba
import numpy as np

from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region
from smartsplat.render.cpu import operators
from smartsplat.render.footprint import CUTOFF

PAIRS_A_PIXEL = 12
REPEATS = 9


def main() -> None:
    """Print a line for each operator, size and number of threads; medians."""
    for side in (1024, 4096):
        gaussians, region = scene(side)
        for threads in sorted({1, numba.config.NUMBA_NUM_THREADS}):
            numba.set_num_threads(threads)
            report(gaussians, region, threads=threads)


def report(gaussians: Gaussians, region: Region, *, threads: int) -> None:
    """Print what each operator takes."""
    pairs = float((math.pi * CUTOFF**2 * gaussians.scales.prod(axis=1)).sum())
    at = operators(gaussians, region)
    image, tangent = at.render(), np.ones((len(gaussians), 5 + gaussians.bands), np.float32)
    calls: dict[str, Callable[[], object]] = {
        "operators": lambda: operators(gaussians, region),
        "render": at.render,
        "jvp": lambda: at.jvp(tangent),
        "vjp": lambda: at.vjp(image),
    }
    for name, call in calls.items():
        seconds = median_seconds(call)
        print(
            f"{region.height} x {region.width}, {len(gaussians)} Gaussians, {threads} thread(s), {name:9}: "
            f"{1e9 * seconds / (region.height * region.width):7.2f} ms/MP, {1e9 * seconds / pairs:5.2f} ns/pair"
        )


def scene(side: int) -> tuple[Gaussians, Region]:
    """Return Gaussians of `PAIRS_A_PIXEL` pairs a pixel, ordered as tiles are, and the region they cover."""
    count = round(side * side * 9000 / 1024**2)
    rng = np.random.default_rng(0)
    scale = math.sqrt(PAIRS_A_PIXEL * side * side / (math.pi * CUTOFF**2 * count))
    means = rng.uniform(0, side, (count, 2))
    means = means[np.lexsort((means[:, 1], means[:, 0] // 64))]
    gaussians = Gaussians(
        means=means,
        scales=scale * np.exp(rng.normal(0, 0.4, (count, 2))),
        rotations=rng.uniform(0, math.pi, count),
        colors=rng.uniform(-1, 1, (count, 3)),
    )
    return gaussians, Region(y0=0, y1=side, x0=0, x1=side)


def median_seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, after one that is not counted."""
    call()
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
