"""How good a scene is: scored piece by piece against the image, in flat memory; and whether its bytes are sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import SceneView
from pipeline.progress import NoProgress, Progress
from pipeline.run import Run
from smartsplat.errors import ConfigError, StoreError
from smartsplat.gaussians import Floats
from smartsplat.geometry import Region, TileGrid, TileId
from smartsplat.metrics import ErrorSums, Quality, bits_per_pixel, context_region, error_sums, quality
from smartsplat.normalization import pixel_weight
from smartsplat.render import render
from storage.pixels import PixelStore
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


def score_scene(run: Run) -> None:
    """Score the encoded scene against the staged image, and keep the result in its manifest."""
    run.scene.update(quality=quality_dict(_score_pieces(run, sweep=None)))


def score_sweep(run: Run, sweep: int) -> Quality:
    """Return the quality of the working Gaussians of a sweep, not quantised, against the staged image."""
    return _score_pieces(run, sweep=sweep)


def _score_pieces(run: Run, *, sweep: int | None) -> Quality:
    pieces = _pieces(run.scene.manifest.shape)
    jobs = [
        ScoreJob(path=str(run.scene.path), core=pieces.core(piece), engine=run.engine, sweep=sweep) for piece in pieces
    ]
    sums = run.run_stage("evaluate", score_one, jobs)
    return quality(sum(sums, ErrorSums.zero(run.scene.bands)), peak=run.normalization.span)


def score_one(job: ScoreJob) -> ErrorSums:
    """Return the sums of one piece; runs in a worker."""
    scene = Scene.open(Path(job.path))
    pixels = PixelStore.open(scene.work())
    padded = context_region(job.core, pixels.shape[:2])
    if job.sweep is None:
        view = SceneView(scene, engine=job.engine)
        return _score(view.values, view, pixels.read(padded), core=job.core, padded=padded)
    state = SweepState.open(scene.work(), job.sweep, grid=scene.grid)

    def values(region: Region) -> Floats:
        tiles = scene.grid.within(region.expand(scene.grid.reach))
        return render(state.read_all(tiles), region, engine=job.engine)

    return _score(values, scene.manifest, pixels.read(padded), core=job.core, padded=padded)


def evaluate(view: SceneView, source: SourceInfo, *, progress: Progress | None = None) -> dict[str, Any]:
    """Return the quality of a finished scene against an image file, and its size; reads the file once, in strips.

    Returns
    -------
    ``psnr`` (dB; None if every pixel is exact), ``ssim``, ``ms_ssim`` (None if the image is smaller than their
    window), ``bytes``, ``bits_per_pixel``, ``measured_ratio``.

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
    total = ErrorSums.zero(source.bands)
    pieces = _pieces(view.shape)
    progress.start("evaluate", total=pieces.rows, done=0)
    for row, (top, band) in enumerate(_bands(source)):
        for col in range(pieces.cols):
            core = pieces.core(TileId(row, col))
            padded = context_region(core, view.shape[:2])
            reference = band[padded.y0 - top : padded.y1 - top, padded.x0 : padded.x1]
            total += _score(view.values, view, reference, core=core, padded=padded)
        progress.advance()
    progress.finish()
    return quality_dict(quality(total, peak=view.normalization.span)) | size_dict(view)


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


def verify(path: Path, *, progress: Progress | None = None) -> dict[str, Any]:
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


def _score(
    values: Callable[[Region], Floats], image: SceneView | Manifest, reference: NDArray, *, core: Region, padded: Region
) -> ErrorSums:
    """Return the sums of one piece, `values` giving its normalised pixels and `image` its shape, type and range."""
    assert image.normalization is not None
    rendered = image.normalization.to_pixels(values(padded), np.dtype(image.dtype))
    return error_sums(
        reference,
        rendered,
        core=core,
        padded=padded,
        shape=image.shape[:2],
        peak=image.normalization.span,
        weight=pixel_weight(reference),
    )


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
