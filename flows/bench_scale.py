"""``smartsplat bench tiling`` and ``pipeline``: what working tile by tile costs, in quality and in time."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flows.settings import scene_config
from pipeline.compress import prepare, steps
from pipeline.executors import Executor, Outcome
from pipeline.plan import Resources
from pipeline.progress import NoProgress, Progress
from pipeline.trial import run_trial
from smartsplat.codec import Steps, decode_tile, encode_tile
from smartsplat.config import SceneConfig
from smartsplat.geometry import TileId
from storage.pixels import STRIP_HEIGHT
from storage.scene import Scene
from storage.source import load_vips, read_info, read_strips

SEAM_PX = 16
"""Pixels this near to a seam between tiles are its band."""


# --- Tiling -----------------------------------------------------------------------------------------------------------


def tiling(
    source: Path,
    *,
    count: int,
    tiles: Sequence[int],
    halos: Sequence[int],
    preset: str = "standard",
    resources: Resources,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Return what each size of tile and halo comes to, beside one tile for the whole image with the same passes.

    Each row has ``tile``, ``halo``, ``psnr`` and ``seam_psnr`` (within `SEAM_PX` px of the seams of that tile), what
    both are above the single tile's (``gain``, and ``seam_gain`` in the same band), and ``seconds``. The images are
    held in memory whole. The single tile comes first, without a band.
    """
    info = read_info(source)
    pixels = np.concatenate([strip for _, strip in read_strips(info, strip_height=STRIP_HEIGHT)]).astype(np.float32)
    peak = 255.0 if info.dtype == "uint8" else float(np.ptp(pixels[np.isfinite(pixels).all(axis=2)]))

    def errors(tile: int, halo: int) -> tuple[NDArray[np.float32], float]:
        """Return the mean squared error of each pixel, and the seconds of the fit."""
        base = scene_config(preset, gaussians=count, tile=tile, halo=halo, seed=seed)
        trial = run_trial(source, base, resources=resources, rendered=True, progress=progress)
        assert trial.image is not None
        return np.square(pixels - trial.image).mean(axis=2), trial.seconds

    def psnr(error: NDArray[np.float32], where: NDArray[np.bool_] | None = None) -> float:
        mean = float(np.nanmean(error if where is None else error[where], dtype=np.float64))
        return math.inf if mean == 0 else 10 * math.log10(peak**2 / mean)

    whole, seconds = errors(max(info.height, info.width), max(halos))
    side = max(info.height, info.width)
    rows: list[dict[str, Any]] = [
        {"tile": side, "halo": max(halos), "psnr": psnr(whole), "seam_psnr": None, "gain": 0.0, "seam_gain": None}
        | {"seconds": seconds}
    ]
    for tile in tiles:
        band = seam_band(info.height, info.width, tile=tile)
        for halo in halos:
            error, seconds = errors(tile, halo)
            at_seams = psnr(error, band) if band.any() else None
            rows.append(
                {
                    "tile": tile,
                    "halo": halo,
                    "psnr": psnr(error),
                    "seam_psnr": at_seams,
                    "gain": psnr(error) - psnr(whole),
                    "seam_gain": None if at_seams is None else at_seams - psnr(whole, band),
                    "seconds": seconds,
                }
            )
    return rows


def seam_band(height: int, width: int, *, tile: int) -> NDArray[np.bool_]:
    """Return ``(height, width)``: which pixels lie within `SEAM_PX` px of a seam between tiles.

    Examples
    --------
    >>> seam_band(100, 10, tile=50).any(axis=1).nonzero()[0][[0, -1]].tolist()
    [34, 65]
    """

    def near(size: int) -> NDArray[np.bool_]:
        found = np.zeros(size, np.bool_)
        for seam in range(tile, size, tile):
            found[seam - SEAM_PX : seam + SEAM_PX] = True
        return found

    return near(height)[:, None] | near(width)


# --- The pipeline beside its tools ------------------------------------------------------------------------------------


class WatchedExecutor:
    """Another executor, with a note of when its jobs ran."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.spans: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        self._executor.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._executor.__exit__(*details)

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Generator[Outcome]:
        """Yield each job's outcome as it ends."""
        with contextlib.closing(self._executor.map(function, jobs)) as outcomes:
            for outcome in outcomes:
                self.spans.append((outcome.began, outcome.ended))
                yield outcome


def pipeline(
    source: Path,
    *,
    config: SceneConfig,
    resources: Resources,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Compress an image and return how fast each stage went, beside the tool it rests on where there is one.

    Each row has ``stage``; ``seconds``; ``rate`` and its ``unit``; ``raw``, the rate of the tool alone in the same
    run, on one thread of ours, and ``share``, the stage's rate over that; ``idle``, the share of the stage's time in
    which no job ran at all (planning, ledgers, commits); and ``workers``, jobs that ran at a time in the mean.
    """
    info = read_info(source)
    megabytes, megapixels = info.raw_bytes / 1e6, info.height * info.width / 1e6
    with tempfile.TemporaryDirectory(prefix="smartsplat-bench-", dir=scratch) as folder:
        preparation = prepare(source, Path(folder) / "scene.zarr", config=config, resources=resources)
        spans: dict[str, list[tuple[float, float]]] = {}
        seconds: dict[str, float] = {}
        raw_read = [_seconds(lambda: _read_by_vips(source))]
        with WatchedExecutor(preparation.executor()) as executor:
            list(executor.map(abs, [0]))  # workers start while the image is staged; here, each stage is to be alone
            for step in steps(preparation, executor, progress=progress or NoProgress()):
                stage = step.name if step.stage == "encode" else step.stage  # which includes the rate control
                executor.spans = spans.setdefault(stage, [])
                seconds[stage] = seconds.get(stage, 0.0) + _seconds(step.work)
                if step.stage == "ingest":
                    raw_read.append(_seconds(lambda: _read_by_vips(source)))
        encode_rate, decode_rate, scene_rate = _codec_rates(Scene.open(preparation.path))
        count = Scene.open(preparation.path).manifest.gaussians
    read_rate = megabytes / float(np.mean(raw_read))
    rates = {
        "ingest": (megabytes, "MB/s", read_rate),
        "sample": (megapixels, "MP/s", None),
        "fit": (megapixels, "MP/s", None),
        "encode": (count / 1e3, "kGaussians/s", encode_rate / 1e3),
        "evaluate": (megapixels, "MP/s", None),
    }
    rows = [
        _row(stage, seconds[stage], amount, unit, raw=raw, spans=spans[stage])
        for stage, (amount, unit, raw) in rates.items()
    ]
    rows.append(_row("decode", count / scene_rate, count / 1e3, "kGaussians/s", raw=decode_rate / 1e3, spans=[]))
    return rows


def _row(
    stage: str, seconds: float, amount: float, unit: str, *, raw: float | None, spans: list[tuple[float, float]]
) -> dict[str, Any]:
    covered, worked = covered_seconds(spans), sum(end - start for start, end in spans)
    return {
        "stage": stage,
        "seconds": seconds,
        "rate": amount / seconds,
        "unit": unit,
        "raw": raw,
        "share": None if raw is None else amount / seconds / raw,
        "idle": max(0.0, 1 - covered / seconds) if spans else None,
        "workers": worked / covered if covered else None,
    }


def covered_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of time that some spans cover together.

    Examples
    --------
    >>> covered_seconds([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0)])
    4.0
    """
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _read_by_vips(source: Path) -> None:
    """Decode an image with pyvips alone, in strips of the same height."""
    image = load_vips().Image.new_from_file(str(source), access="sequential")
    window = load_vips().Region.new(image)
    for y in range(0, image.height, STRIP_HEIGHT):
        window.fetch(0, y, image.width, min(STRIP_HEIGHT, image.height - y))


def _codec_rates(scene: Scene) -> tuple[float, float, float]:
    """Return Gaussians a second: coded and decoded in memory, and read from the scene, all on one thread."""
    table, grid = scene.tiles(), scene.grid
    counts = table[..., 0]

    def read() -> list[Any]:
        return [
            one for row in range(grid.rows) for one in scene.read_tiles(TileId(row, 0), counts=counts[row].tolist())
        ]

    tiles, total = read(), int(counts.sum())
    codec_steps: Steps = scene.steps
    streams = [encode_tile(one, codec_steps) for one in tiles]
    most = int(counts.max(initial=0))

    def decode() -> None:
        for stream in streams:
            decode_tile(stream, codec_steps, bands=scene.bands, max_count=most)

    encoding = _seconds(lambda: [encode_tile(one, codec_steps) for one in tiles])
    return total / encoding, total / _seconds(decode), total / _seconds(read)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
