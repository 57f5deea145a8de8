"""Write a scene, or a region of it at any zoom, as an ordinary image file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from numpy.typing import NDArray

from pipeline.decode import SceneView
from pipeline.progress import NoProgress, Progress
from smartsplat.geometry import Region
from storage.sink import check_output, write_image


def export(
    view: SceneView,
    output: Path,
    *,
    region: Region | None = None,
    scale: float = 1.0,
    progress: Progress | None = None,
) -> Region:
    """Write `view.render(region, scale=scale)` to `output`, strip by strip; return where it lies on the output's grid.

    Raises
    ------
    ConfigError
        If region or scale are out of range.
    SinkError
        If the format, by the file's extension, cannot hold the image; before any work.
    StoreError
        Naming the tile, if one that touches the region is damaged; nothing is left behind.
    """
    grid = view.output_region(region, scale=scale)
    bands, dtype = view.shape[2], view.dtype.name
    check_output(output, height=grid.height, width=grid.width, bands=bands, dtype=dtype)
    strips = _watched(view.strips(region, scale=scale), height=grid.height, progress=progress or NoProgress())
    write_image(output, strips, height=grid.height, width=grid.width, bands=bands, dtype=dtype)
    return grid


def _watched(strips: Iterator[NDArray], *, height: int, progress: Progress) -> Iterator[NDArray]:
    progress.start("render", total=height, done=0)
    for strip in strips:
        yield strip
        progress.advance(jobs=len(strip))
    progress.finish()
