"""How many Gaussians a PSNR takes: found out on a sample of the image, small enough to be fitted a few times."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.plan import usual_bits
from smartsplat.errors import BudgetError, ConfigError
from smartsplat.normalization import Normalization
from storage.scene import HIGHEST_PSNR
from storage.sink import write_image
from storage.source import SourceInfo, read_strips

SAMPLE_PIXELS = 1 << 21
"""Size of the sample; a smaller image is its own."""

DB_A_DOUBLING = 2.0
"""Usual gain in PSNR for twice the Gaussians; on photos 1.3 to 3."""

_WINDOW = 512  # px: side of a window of the sample
_ROWS_APART = 8  # rows that tell how busy a window is
_START_RATIO = 100.0
_LEAST_DB_A_DOUBLING, _MOST_DB_A_DOUBLING = 0.7, 6.0
_CLOSE_DB = 0.15
_TRIALS = 4
_LEAST_COUNT = 16
_PIXELS_A_GAUSSIAN = 4  # fewer, and pixels themselves would take less


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A small image like a large one.

    Parameters
    ----------
    path
        Of the file.
    pixels
        How many it has.
    psnr_offset
        What to add to a PSNR of it, dB, as its range of values may be smaller than the image's.
    """

    path: Path
    pixels: int
    psnr_offset: float


def sample_image(info: SourceInfo, folder: Path) -> Sample:
    """Return an image of at most `SAMPLE_PIXELS` px, made in `folder` of windows of `info`, or `info` itself.

    The windows lie evenly along the order of how busy they are, so that each stands for as much of the image. The
    image is read twice, as a stream.

    Raises
    ------
    ConfigError
        If no pixel has data.
    """
    if info.height * info.width <= SAMPLE_PIXELS:
        return Sample(path=Path(info.path), pixels=info.height * info.width, psnr_offset=0.0)
    height, width = min(_WINDOW, info.height), min(_WINDOW, info.width)
    busyness, low, high = _survey(info, height=height, width=width)
    order = np.flatnonzero(np.isfinite(busyness.ravel()))
    if not len(order):
        raise ConfigError(f"{info.path}: no pixel has data, so there is no PSNR to be reached")
    order = order[np.argsort(busyness.ravel()[order], kind="stable")]
    count = max(1, min(SAMPLE_PIXELS // (height * width), len(order)))
    chosen = order[(2 * np.arange(count) + 1) * len(order) // (2 * count)]
    rows, cols = np.unravel_index(chosen, busyness.shape)
    windows = _read_windows(info, list(zip(rows.tolist(), cols.tolist(), strict=True)), height=height, width=width)
    across = max(1, math.isqrt(count))
    down = count // across  # what does not fill a row is left out
    mosaic = [np.concatenate(windows[row * across : (row + 1) * across], axis=1) for row in range(down)]
    finite = np.concatenate([line[np.isfinite(line)] for line in mosaic])
    spans = [
        Normalization.of_range(float(least), float(most), dtype=np.dtype(info.dtype)).span
        for least, most in ((low, high), (finite.min(), finite.max()))
    ]
    path = folder / "sample.tif"
    shape: dict[str, Any] = {"height": down * height, "width": across * width, "bands": info.bands}
    write_image(path, mosaic, **shape, dtype=info.dtype)
    return Sample(path=path, pixels=down * height * across * width, psnr_offset=20 * math.log10(spans[0] / spans[1]))


def find_count(measure: Callable[[int], float], *, target: float, sample: Sample, pixels: int, bands: int) -> int:
    """Return how many Gaussians an image takes to reach a PSNR before quantisation.

    Parameters
    ----------
    measure
        Returns the PSNR of the sample, dB, fitted with so many Gaussians.
    target
        PSNR, dB.
    sample, pixels, bands
        The sample, and the size of the image.

    Raises
    ------
    BudgetError
        If one for every four pixels would not do.

    Examples
    --------
    >>> sample = Sample(path=Path("a.png"), pixels=10_000, psnr_offset=0.0)
    >>> find_count(lambda n: 10 + 2 * math.log2(n), target=26, sample=sample, pixels=20_000, bands=3)
    512
    """
    most = sample.pixels // _PIXELS_A_GAUSSIAN
    least = min(_LEAST_COUNT, most)
    count = round(sample.pixels * bands * 8 / _START_RATIO / usual_bits(bands))
    found: dict[int, float] = {}
    for _ in range(_TRIALS):
        count = min(max(count, least), most)
        if count in found:
            break
        found[count] = min(measure(count) + sample.psnr_offset, HIGHEST_PSNR)
        if abs(found[count] - target) <= _CLOSE_DB:
            break
        count = _count_at(found, target)
    wanted = _count_at(found, target)
    if wanted > most:
        raise BudgetError(
            f"{target:.1f} dB before quantisation would take more than one Gaussian for every {_PIXELS_A_GAUSSIAN} px "
            f"(a sample of the image has {max(found.values()):.1f} dB with {max(found)} for {sample.pixels} px); "
            "use a lower --psnr"
        )
    return max(1, round(max(wanted, 1) * pixels / sample.pixels))


def _count_at(found: dict[int, float], target: float) -> int:
    """Return the count at which PSNR, linear in its logarithm through the two nearest counts, is `target`."""
    counts = sorted(found, key=lambda count: abs(found[count] - target))
    nearest = counts[0]
    slope = DB_A_DOUBLING
    if len(counts) > 1:
        slope = (found[nearest] - found[counts[1]]) / math.log2(nearest / counts[1])
        slope = min(max(slope, _LEAST_DB_A_DOUBLING), _MOST_DB_A_DOUBLING)
    return round(nearest * 2 ** min((target - found[nearest]) / slope, 40.0))


def _survey(info: SourceInfo, *, height: int, width: int) -> tuple[NDArray[np.float64], float, float]:
    """Return how busy each whole window is, NaN where it has no data, and the image's lowest and highest value."""
    busyness: list[NDArray[np.float64]] = []
    low, high = math.inf, -math.inf
    for _, strip in read_strips(info, strip_height=height):
        values = strip[::_ROWS_APART].astype(np.float32)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if len(strip) < height:
            break
        whole = values[:, : values.shape[1] // width * width].reshape(len(values), -1, width * info.bands)
        steps = np.square(whole[:, :, info.bands :] - whole[:, :, : -info.bands])
        valid = np.isfinite(steps)
        number = valid.sum(axis=(0, 2))
        total = np.where(valid, steps, 0).sum(axis=(0, 2), dtype=np.float64)
        busyness.append(np.where(number > 0, total / np.maximum(number, 1), np.nan))
    return np.stack(busyness), low, high


def _read_windows(info: SourceInfo, places: list[tuple[int, int]], *, height: int, width: int) -> list[NDArray[Any]]:
    """Return the windows at those rows and columns of windows, in that order."""
    found: dict[tuple[int, int], NDArray[Any]] = {}
    wanted = sorted(places)
    last = wanted[-1][0]
    strips = read_strips(info, strip_height=height)
    for y0, strip in itertools.takewhile(lambda each: each[0] // height <= last, strips):
        for row, col in wanted:
            if row == y0 // height:
                found[row, col] = strip[:, col * width : (col + 1) * width].copy()
    return [found[place] for place in places]
