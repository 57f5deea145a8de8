"""How good a scene is: scored piece by piece against the image, in flat memory; and whether its bytes are sound."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import SceneView
from pipeline.progress import NoProgress, Progress
from pipeline.run import Run
from pipeline.tile_quality import TileErrors, extremes, tile_errors, tile_psnr
from smartsplat.errors import ConfigError, StoreError
from smartsplat.gaussians import Floats
from smartsplat.geometry import Region, TileGrid, TileId
from smartsplat.metrics import ErrorSums, Quality, bits_per_pixel, context_region, error_sums, quality
from smartsplat.normalization import pixel_weight
from smartsplat.render import render
from storage.pixels import PixelStore
from storage.remote_scene import ObjectFolder
from storage.scene import Manifest, Scene
from storage.source import SourceInfo, read_strips
from storage.state import SweepState

CORE = 512
"""Side of a scored piece, px: a multiple of `smartsplat.metrics.ALIGNMENT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """One piece of an unfinished scene to score against the staged image.

    Parameters
    ----------
    path
        Of the scene.
    core
        The piece.
    engine
        See `smartsplat.render.render`.
    sweep
        Whose working Gaussians to score, as they are; None = the encoded ones.
    """

    path: str
    core: Region
    engine: str
    sweep: int | None = None

    def __str__(self) -> str:
        return f"region {self.core}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceScore:
    """What a piece adds to the scene's quality, and to that of the tiles it meets."""

    sums: ErrorSums
    tiles: TileErrors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """How good a scene is, as a whole and by tile.

    Parameters
    ----------
    quality
        Of the whole.
    tile_psnr
        dB, ``(rows, cols)``: infinite where a tile is exact, NaN where it has no data.
    """

    quality: Quality
    tile_psnr: NDArray[np.float64]


def score_scene(run: Run) -> None:
    """Score the encoded scene against the staged image, and keep the result in it: of each tile, and of the whole."""
    pieces = _score_pieces(run, sweep=None)
    score = _score_of(pieces, run.scene.manifest, peak=run.normalization.span)
    run.scene.write_tile_psnr(score.tile_psnr)
    run.scene.update(quality=quality_dict(score.quality))


def score_sweep(run: Run, sweep: int) -> Quality:
    """Return the quality of the working Gaussians of a sweep, not quantised, against the staged image."""
    pieces = _score_pieces(run, sweep=sweep)
    return _score_of(pieces, run.scene.manifest, peak=run.normalization.span).quality


def _score_pieces(run: Run, *, sweep: int | None) -> list[PieceScore]:
    pieces = _pieces(run.scene.manifest.shape)
    jobs = [
        ScoreJob(path=str(run.scene.path), core=pieces.core(piece), engine=run.engine, sweep=sweep) for piece in pieces
    ]
    return run.run_stage("evaluate", score_one, jobs)


def score_one(job: ScoreJob) -> PieceScore:
    """Return the score of one piece; runs in a worker."""
    scene = Scene.open(Path(job.path))
    pixels = PixelStore.open(scene.work())
    padded = context_region(job.core, pixels.shape[:2])
    if job.sweep is None:
        rendered = _rendered(SceneView(scene, engine=job.engine).values(padded), scene.manifest)
    else:
        state = SweepState.open(scene.work(), job.sweep, grid=scene.grid)
        tiles = scene.grid.within(padded.expand(scene.grid.reach))
        rendered = _rendered(render(state.read_all(tiles), padded, engine=job.engine), scene.manifest)
    return _score(pixels.read(padded), rendered, image=scene.manifest, core=job.core, padded=padded)


def evaluate(
    view: SceneView, source: SourceInfo, *, threads: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Return the quality of a finished scene against an image file, and its size (see `measure` and `score_dict`)."""
    return score_dict(view, measure(view, source, threads=threads, progress=progress))


def measure(view: SceneView, source: SourceInfo, *, threads: int = 1, progress: Progress | None = None) -> Score:
    """Return how good a finished scene is against an image file; reads the file once, in strips.

    What is held at a time are a few strips, and one piece more than there are threads, whatever the image's height.
    Pieces are drawn one by one, on all the engine's threads, and scored `threads` at a time. The sums are the same for
    any number.

    Raises
    ------
    ConfigError
        If the image has another shape or type than the scene.
    """
    if source.shape != view.shape or source.dtype != view.dtype.name:
        raise ConfigError(
            f"{source.path}: {source.shape} {source.dtype} cannot be compared with a scene of {view.shape} "
            f"{view.dtype.name}"
        )
    progress = progress or NoProgress()
    progress.start("evaluate", total=len(_pieces(view.shape)), done=0)
    try:
        with ThreadPoolExecutor(threads) as pool:
            scored = _watched(_scored(pool, view, source, ahead=threads), progress)
            return _score_of(scored, view.manifest, peak=view.normalization.span)
    finally:
        progress.finish()


def _scored(pool: ThreadPoolExecutor, view: SceneView, source: SourceInfo, *, ahead: int) -> Iterator[PieceScore]:
    """Yield the score of each piece, in order, `ahead` of them being worked on while the next one is drawn."""
    pieces = _pieces(view.shape)
    waiting: deque[Future[PieceScore]] = deque()
    for row, (top, band) in enumerate(_bands(source)):
        for col in range(pieces.cols):
            core = pieces.core(TileId(row, col))
            padded = context_region(core, view.shape[:2])
            # A copy, as a piece that waits would keep the whole band.
            reference = band[padded.y0 - top : padded.y1 - top, padded.x0 : padded.x1].copy()
            rendered = _rendered(view.values(padded), view.manifest)
            waiting.append(pool.submit(_score, reference, rendered, image=view.manifest, core=core, padded=padded))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _watched(scored: Iterator[PieceScore], progress: Progress) -> Iterator[PieceScore]:
    for piece in scored:
        progress.advance()
        yield piece


def _score_of(pieces: Iterable[PieceScore], image: Manifest, *, peak: float) -> Score:
    """Return what the pieces come to, added up in their order, one at a time."""
    total = ErrorSums.zero(image.shape[2])

    def tiles() -> Iterator[TileErrors]:
        nonlocal total
        for piece in pieces:
            total += piece.sums
            yield piece.tiles

    psnr = tile_psnr(tiles(), image.grid, peak=peak)
    return Score(quality=quality(total, peak=peak), tile_psnr=psnr)


def score_dict(view: SceneView, score: Score) -> dict[str, Any]:
    """Return a score as JSON has it, with the scene's size.

    Returns
    -------
    ``psnr`` (dB; None if every pixel is exact), ``ssim``, ``ms_ssim`` (None if the image is smaller than their
    window), ``tiles`` (the ``worst`` and the ``best``: ``tile`` and ``psnr``), ``bytes``, ``bits_per_pixel``,
    ``measured_ratio``.
    """
    return quality_dict(score.quality) | {"tiles": extremes(score.tile_psnr)} | size_dict(view)


def size_dict(view: SceneView) -> dict[str, Any]:
    """Return what a scene takes on disk."""
    height, width, _ = view.shape
    nbytes = view.nbytes
    return {
        "bytes": nbytes,
        "bits_per_pixel": bits_per_pixel(nbytes, height, width),
        "measured_ratio": view.manifest.raw_bytes / nbytes,
    }


def quality_dict(scored: Quality) -> dict[str, float | None]:
    """Return a quality as JSON has it: None for what is undefined, and for the PSNR of an exact image."""
    return {
        "psnr": scored.psnr if math.isfinite(scored.psnr) else None,
        "ssim": scored.ssim,
        "ms_ssim": scored.ms_ssim,
    }


def verify(path: Path | ObjectFolder, *, progress: Progress | None = None) -> dict[str, Any]:
    """Return whether every checksum of a scene holds and every tile decodes: counts, and what is wrong where.

    Raises
    ------
    StoreError
        If the scene cannot be opened at all.
    """
    progress = progress or NoProgress()
    scene = Scene.open(path)
    if not scene.manifest.complete:
        raise StoreError(f"{path}: the scene is not finished; run smartsplat compress again to resume it")
    scene.check_arrays()
    table = scene.tiles()
    damaged: dict[str, str] = {}
    progress.start("verify", total=len(scene.grid), done=0)
    for tile in scene.grid:
        try:
            scene.read_tile(tile, count=int(table[tile.row, tile.col, 0]))
        except StoreError as error:
            damaged[str(tile)] = str(error)
        progress.advance()
    progress.finish()
    return {
        "tiles": len(scene.grid),
        "gaussians": int(table[..., 0].sum()),
        "bytes": scene.nbytes,
        "sound": not damaged,
        "damaged": damaged,
    }


def _rendered(values: Floats, image: Manifest) -> NDArray:
    """Return normalised pixels as the image has them."""
    assert image.normalization is not None
    return image.normalization.to_pixels(values, np.dtype(image.dtype))


def _score(reference: NDArray, rendered: NDArray, *, image: Manifest, core: Region, padded: Region) -> PieceScore:
    """Return the score of one piece of an image, its pixels given with those around."""
    assert image.normalization is not None
    weight = pixel_weight(reference)
    sums = error_sums(
        reference,
        rendered,
        core=core,
        padded=padded,
        shape=image.shape[:2],
        peak=image.normalization.span,
        weight=weight,
    )
    tiles = tile_errors(reference, rendered, grid=image.grid, core=core, padded=padded, weight=weight)
    return PieceScore(sums=sums, tiles=tiles)


def _pieces(shape: tuple[int, int, int]) -> TileGrid:
    return TileGrid(height=shape[0], width=shape[1], tile=CORE, halo=0)


def _bands(source: SourceInfo) -> Iterator[tuple[int, NDArray]]:
    """Yield, for each row of pieces, the first row and the pixels of the strips it needs: its own and those around."""
    kept: list[NDArray] = []
    top = 0
    for y0, strip in read_strips(source, strip_height=CORE):
        kept.append(strip)
        if y0 == 0:
            continue
        yield top, np.concatenate(kept)
        if len(kept) == 3:
            del kept[0]
            top += CORE
    yield top, np.concatenate(kept)
