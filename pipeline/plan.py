"""What a run will do, worked out before it starts: counts, phases, memory. Pure: nothing is read or written."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartsplat.budget import base_scale
from smartsplat.config import SceneConfig, digest_of
from smartsplat.errors import BudgetError, ConfigError
from smartsplat.gaussians import GEOMETRY_PARAMETERS
from smartsplat.geometry import PHASES_PER_SWEEP, TileGrid, block_grid, colors_of
from smartsplat.schedule import FitPass, InsertPass, schedule, start_count
from storage.pixels import COARSE, STRIP_HEIGHT
from storage.scene import SHARD_TILES
from storage.source import SourceInfo

_LEAST_AIM, _MOST_AIM = 0.975, 0.985
_FOLDER_BYTES = 1 << 14
"""What a file system takes for the folders of a scene."""

METADATA_BYTES = 1800
"""Usual bytes of a scene's own JSON: three small files."""

TILE_OVERHEAD_BYTES = 40
"""Bytes of a tile apart from its Gaussians: the stream's header, and what it costs to learn what they are like."""

STRIPS_AT_ONCE = 2
"""Strips that are written while another is decoded."""

SMALLEST_SIDE = 2
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a run may use; decides how fast it is, never what comes out.

    Parameters
    ----------
    executor
        ``auto``, ``serial`` (this process, all its threads) or ``dask`` (one process a worker).
    workers
        Parallel jobs; None = one per core.
    scheduler
        Address of a running Dask scheduler, e.g. ``tcp://127.0.0.1:8786``; None = a cluster of our own.
    memory
        Most bytes that this process and its workers may take together; None = no limit.
    engine
        See `smartsplat.render.render`.
    """

    executor: str = "auto"
    workers: int | None = None
    scheduler: str | None = None
    memory: int | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        if self.executor not in ("auto", "serial", "dask"):
            raise ConfigError(f"executor {self.executor!r} is unknown; use serial or dask")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"{self.workers} workers: at least one is needed")
        if self.scheduler is not None and self.executor == "serial":
            raise ConfigError("a scheduler address needs --executor dask")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenePlan:
    """All that is decided before the first pixel is read.

    Parameters
    ----------
    source, config
        The image, and what it is compressed with.
    count
        Gaussians; for a ratio, as many as fill the byte budget at the codec's usual size.
    base_scale
        Px, see `smartsplat.budget.base_scale`.
    byte_budget
        Most bytes of the finished scene; None if none are promised.
    rounds
        Gaussians after each further round of the fit, for a PSNR that it was too far from.
    executor, workers
        How it will run.
    memory
        Projected peak of this process and its workers together in each stage, bytes.
    """

    source: SourceInfo
    config: SceneConfig
    count: int
    base_scale: float
    byte_budget: int | None
    executor: str
    workers: int
    memory: dict[str, int]
    rounds: tuple[int, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """Projected peak of this process and its workers together, bytes."""
        return max(self.memory.values())

    @property
    def grid(self) -> TileGrid:
        """The scene's tiles."""
        return grid_of(self.source, self.config)

    @property
    def passes(self) -> list[FitPass | InsertPass]:
        """What the fit does, in order; the first writes sweep 1."""
        return schedule(self.config.fit, count=self.count, base_scale=self.base_scale, rounds=self.rounds)

    def insertion_after(self, sweep: int) -> InsertPass | None:
        """Return the pass after `sweep`, if it is an insertion."""
        following = self.passes[sweep : sweep + 1]
        return next((each for each in following if isinstance(each, InsertPass)), None)

    @property
    def last_sweep(self) -> int:
        """Number of the sweep that the fit ends with; in the one after it shapes are quantised."""
        return len(self.passes)

    @property
    def start_count(self) -> int:
        """Gaussians that are sampled; the others are inserted."""
        return start_count(self.config.fit, self.count)

    @property
    def phases(self) -> int:
        """Phases of the fit, those in which it settles on quantised shapes included."""
        grids = [block_grid(self.grid, each.factor) for each in self.passes if isinstance(each, FitPass)]
        return sum(len(colors_of(grid)) for grid in [*grids, self.grid])

    @property
    def digest(self) -> str:
        """Identity of what will come out: the config's and the image's together."""
        return scene_digest(self.source, self.config)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, ready for JSON."""
        rows, cols = self.grid.shape
        return {
            "source": self.source.path,
            "shape": list(self.source.shape),
            "dtype": self.source.dtype,
            "raw_bytes": self.source.raw_bytes,
            "nominal_ratio": self.config.nominal_ratio,
            "psnr": self.config.psnr,
            "byte_budget": self.byte_budget,
            "gaussians": self.count,
            "base_scale_px": round(self.base_scale, 3),
            "tile": self.config.tile,
            "halo": self.config.halo,
            "tiles": [rows, cols],
            "passes": [str(each) for each in self.passes],
            "phases": self.phases,
            "executor": self.executor,
            "workers": self.workers,
            "memory_bytes": self.memory_bytes,
            "memory": self.memory,
            "digest": self.digest,
        }


def plan_scene(
    source: SourceInfo, config: SceneConfig, *, resources: Resources, cores: int, count: int | None = None
) -> ScenePlan:
    """Return the plan, or refuse what cannot work.

    Parameters
    ----------
    source
        The image.
    config
        What it is compressed with.
    resources
        What the run may use.
    cores
        Of this machine.
    count
        Gaussians, where a PSNR is asked for (see `pipeline.pilot`).

    Raises
    ------
    ConfigError
        If the image or a setting makes no sense.
    BudgetError
        If the bytes, Gaussians or memory allowed are too few; the message says how many would do.
    """
    if min(source.height, source.width) < SMALLEST_SIDE:
        raise ConfigError(
            f"{source.path}: {source.height} x {source.width} px is too small to compress; "
            f"both sides must be at least {SMALLEST_SIDE} px"
        )
    grid = grid_of(source, config)
    byte_budget = config.byte_budget(pixels=source.height * source.width, raw_bytes=source.raw_bytes)
    if byte_budget is not None:
        count = count_for_budget(source, grid, byte_budget=byte_budget)
    elif config.count is not None:
        count = config.count
    assert count is not None
    if count > source.height * source.width:
        raise BudgetError(
            f"{count} Gaussians for {source.height} x {source.width} px: more than one a pixel; use --gaussians "
            f"{max(1, source.height * source.width // 10)} or fewer, or a higher --ratio"
        )
    executor, workers = _choose_workers(source, config, grid, count, resources=resources, cores=cores)
    return ScenePlan(
        source=source,
        config=config,
        count=count,
        base_scale=base_scale(source.height, source.width, count),
        byte_budget=byte_budget,
        executor=executor,
        workers=workers,
        memory=projected_memory(source, config, count=count, executor=executor, workers=workers),
    )


def grid_of(source: SourceInfo, config: SceneConfig) -> TileGrid:
    """Return the tiles of the scene."""
    return TileGrid(height=source.height, width=source.width, tile=config.tile, halo=config.halo)


def scene_digest(source: SourceInfo, config: SceneConfig) -> str:
    """Return the identity of an image compressed with a config; where the file lies does not matter."""
    image = {name: value for name, value in source.to_dict().items() if name != "path"}
    return digest_of({"config": config.to_dict(), "source": image})


def fixed_bytes(grid: TileGrid) -> int:
    """Return the bytes of a scene apart from its Gaussians, at most: metadata, shard indexes, stream headers."""
    rows, cols = grid.shape
    shards = math.ceil(rows / SHARD_TILES) * math.ceil(cols / SHARD_TILES)
    slots = shards * min(rows, SHARD_TILES) * min(cols, SHARD_TILES)
    return METADATA_BYTES + shards * 4 + slots * 21 + len(grid) * TILE_OVERHEAD_BYTES


def usual_bits(bands: int) -> float:
    """Return the bits a Gaussian takes at the codec's own steps, measured over photos: geometry, then the colors.

    Of three bands, two are chroma and take less.
    """
    return 27.5 + (9.0 if bands == 3 else 4.5 * bands)


def byte_aim(byte_budget: int) -> float:
    """Return the bytes that rate control aims at: a little below the budget, so that folders have room in it too.

    Examples
    --------
    >>> byte_aim(100_000), round(byte_aim(10_000_000))
    (97500.0, 9833616)
    """
    return max(_LEAST_AIM * byte_budget, _MOST_AIM * byte_budget - _FOLDER_BYTES)


def count_for_budget(source: SourceInfo, grid: TileGrid, *, byte_budget: int) -> int:
    """Return how many Gaussians fill the byte budget.

    Raises
    ------
    BudgetError
        If the budget holds no Gaussian beside what any scene of this grid takes.
    """
    room = byte_aim(byte_budget) - fixed_bytes(grid)
    count = math.floor(room * 8 / usual_bits(source.bands))
    if count < 1:
        least = math.ceil((fixed_bytes(grid) + usual_bits(source.bands) / 8) / _LEAST_AIM) + 1
        highest = _rounded_down(source.raw_bytes / least)
        way_out = f"use --ratio {highest:g} or lower" if highest > 1 else "the image is too small for any ratio"
        raise BudgetError(
            f"{source.path}: ratio {source.raw_bytes / max(byte_budget, 1):.6g} allows {byte_budget} bytes, and a "
            f"scene of {len(grid)} tiles takes {fixed_bytes(grid)} before its first Gaussian; {way_out}"
        )
    return min(count, source.height * source.width)


def _rounded_down(value: float) -> float:
    """Return `value` to three digits, never above it: what is named as possible must be."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.floor(value / step) * step


def projected_memory(
    source: SourceInfo, config: SceneConfig, *, count: int, executor: str, workers: int
) -> dict[str, int]:
    """Return the projected peak of this process and its workers together in each stage, bytes.

    In every stage each process holds the interpreter and its libraries. Ingest works here, tile jobs here (serial) or
    in the workers.
    """
    strip = STRIP_HEIGHT * source.width * source.bands * np.dtype(source.dtype).itemsize
    averages = STRIP_HEIGHT // COARSE * (source.width // COARSE) * (source.bands + 1) * 4
    # Of each strip there is also a copy filled up to whole chunks, and its compressed shard; libvips keeps two windows.
    ingest = (3 + 3 * STRIPS_AT_ONCE) * strip + 3 * STRIPS_AT_ONCE * averages + INGEST_BYTES
    places = 1 if executor == "serial" else workers
    processes = CLIENT_BYTES + (0 if executor == "serial" else workers * WORKER_BYTES)
    jobs = {
        "sample": sample_bytes(source, config),
        "fit": job_bytes(source, config, count=count),
        "encode": shard_bytes(source, config, count=count),
        "evaluate": SCORE_BYTES,
    }
    # A worker keeps much of what it frees for its next jobs, so that no stage takes less than one before it.
    kept = itertools.accumulate(jobs.values(), max)
    return {"ingest": processes + ingest} | {
        stage: processes + places * job for stage, job in zip(jobs, kept, strict=True)
    }


def sample_bytes(source: SourceInfo, config: SceneConfig) -> int:
    """Return the projected peak of placing one tile's first Gaussians, bytes: images over the padded tile."""
    return _window_pixels(source, config) * (40 + 24 * source.bands)


def job_bytes(source: SourceInfo, config: SceneConfig, *, count: int) -> int:
    """Return the projected peak of one visit of the fit, bytes: images over the padded tile, and its Gaussians."""
    pixels = _window_pixels(source, config)
    seen = min(pixels * config.fit.stage_factor**2, source.height * source.width)
    share = count * seen / (source.height * source.width)
    busiest = min(4 * share, pixels)
    images = pixels * (40 + 56 * source.bands)
    return round(images + busiest * 100 * (GEOMETRY_PARAMETERS + source.bands)) + SCORE_BYTES


def shard_bytes(source: SourceInfo, config: SceneConfig, *, count: int) -> int:
    """Return the projected peak of writing one shard, bytes: its tiles, each filled up to the fullest one's count."""
    pixels = min(config.tile, source.height) * min(config.tile, source.width)
    fullest = min(8 * count * pixels / (source.height * source.width), pixels)
    return round(3 * SHARD_TILES**2 * fullest * 4 * (GEOMETRY_PARAMETERS + source.bands)) + SCORE_BYTES


def _window_pixels(source: SourceInfo, config: SceneConfig) -> int:
    side = config.tile + 2 * config.halo
    return min(side, source.height) * min(side, source.width)


CLIENT_BYTES = 400 * MIB
"""Measured: this process with its libraries, the scheduler among them, in a run of 4096 tiles."""

WORKER_BYTES = 400 * MIB
"""Measured: a worker process with its libraries, compiled kernels and what it keeps of freed memory, late in such a
run. Pages that processes share, 160 MiB each, count for every one of them."""

INGEST_BYTES = 64 * MIB
"""libvips' own buffers while an image is decoded."""

SCORE_BYTES = 60 * MIB
"""Scoring and encoding: fixed-size pieces, whatever the tile."""


def _choose_workers(
    source: SourceInfo,
    config: SceneConfig,
    grid: TileGrid,
    count: int,
    *,
    resources: Resources,
    cores: int,
) -> tuple[str, int]:
    """Return executor and workers: as asked, or what fits the scene; fewer workers where memory is short."""
    wanted = resources.workers or cores
    executor = resources.executor
    if executor == "auto":
        parallel_tiles = -(-len(grid) // PHASES_PER_SWEEP)
        executor = "dask" if resources.scheduler or (wanted > 1 and parallel_tiles >= 2 * wanted) else "serial"
    if resources.memory is None:
        return executor, wanted
    lowest = 1 if resources.workers is None else wanted
    ways = [(executor, workers) for workers in range(wanted, lowest - 1, -1)]
    if resources.executor == "auto" and resources.workers is None and resources.scheduler is None:
        ways.append(("serial", 1))
    needs = [projected_memory(source, config, count=count, executor=way, workers=number) for way, number in ways]
    for chosen, needed in zip(ways, needs, strict=True):
        if max(needed.values()) <= resources.memory:
            return chosen
    (way, workers), (stage, most) = ways[-1], max(needs[-1].items(), key=lambda each: each[1])
    raise BudgetError(
        f"tile {config.tile} + halo {config.halo} on {workers} {way} worker(s) needs {most / MIB:.0f} MiB ({stage}), "
        f"{resources.memory / MIB:.0f} MiB allowed; raise --memory to {math.ceil(most / MIB)}MiB, or use a smaller "
        "--tile or fewer --workers"
    )
