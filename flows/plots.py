"""Pictures for people, drawn by matplotlib, which is installed on request only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartsplat.errors import ConfigError
from smartsplat.geometry import TileGrid
from storage.sink import check_output, write_image

_INCHES, _DPI = (8.0, 6.0), 120
_MAP_SHAPE = (round(_INCHES[1] * _DPI), round(_INCHES[0] * _DPI))


def new_figure(**size: Any) -> Any:
    """Return an empty matplotlib figure.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "plots need matplotlib: pip install 'smartsplat[bench]', or leave out --plot or --map"
        raise ConfigError(message) from error
    return Figure(layout="constrained", **size)


def check_map(path: Path) -> None:
    """Refuse a map that could not be drawn or written, before the work that it is to show.

    Raises
    ------
    ConfigError, SinkError
        As `plot_tile_psnr` does.
    """
    new_figure()
    check_output(path, height=_MAP_SHAPE[0], width=_MAP_SHAPE[1], bands=3, dtype="uint8")


def plot_tile_psnr(psnr: NDArray[np.float64], path: Path, *, grid: TileGrid, title: str) -> None:
    """Write a picture of each tile's PSNR, as colors, with the range of their values beside it.

    Parameters
    ----------
    psnr
        dB, ``(rows, cols)``; tiles without data (NaN) are gray, exact ones (infinite) as light as the best.
    path
        Image to write.
    grid
        Of the scene.
    title
        Above the picture.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    SinkError, StorageFullError
        If the image cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(tile_psnr_figure(psnr, grid=grid, title=title))
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    height, width, bands = pixels.shape
    write_image(path, [pixels], height=height, width=width, bands=bands, dtype="uint8")


def tile_psnr_figure(psnr: NDArray[np.float64], *, grid: TileGrid, title: str) -> Any:
    """Return the matplotlib figure that `plot_tile_psnr` writes, its first axes in px of the scene."""
    figure = new_figure(figsize=_INCHES, dpi=_DPI)
    axes = figure.add_subplot(title=title, xlabel="x, px", ylabel="y, px", facecolor="0.75")
    finite = psnr[np.isfinite(psnr)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    # Tiles at the edge may be smaller: they are drawn whole, and the picture is cut where the scene ends.
    extent = (0, grid.cols * grid.tile, grid.rows * grid.tile, 0)
    shown = np.minimum(psnr, high)
    image = axes.imshow(shown, extent=extent, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    axes.set(xlim=(0, grid.width), ylim=(grid.height, 0))
    bar = figure.colorbar(image, ax=axes, label="PSNR of the tile, dB")
    bar.set_ticks(np.linspace(low, high, 5), labels=[f"{value:.1f}" for value in np.linspace(low, high, 5)])
    return figure
