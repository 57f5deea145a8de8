"""The map of a scene's quality: a color for each tile, in their order, and the range beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from flows.plots import check_map, plot_tile_psnr, tile_psnr_figure
from smartsplat.errors import ConfigError, SinkError
from smartsplat.geometry import TileGrid

GRID = TileGrid(height=250, width=380, tile=100, halo=0)


def drawn(psnr: np.ndarray, path: Path) -> np.ndarray:
    plot_tile_psnr(psnr, path, grid=GRID, title="a scene")
    with Image.open(path) as image:
        return np.asarray(image)


def tile_colors(psnr: np.ndarray, path: Path) -> np.ndarray:
    """Return the color in the middle of each tile of a map."""
    picture = drawn(psnr, path)
    figure = tile_psnr_figure(psnr, grid=GRID, title="a scene")
    FigureCanvasAgg(figure).draw()  # where the axes are is known then
    colors = np.empty((*GRID.shape, 3), np.uint8)
    for tile in GRID:
        core = GRID.core(tile)
        x, y = figure.axes[0].transData.transform(((core.x0 + core.x1) / 2, (core.y0 + core.y1) / 2))
        colors[tile.row, tile.col] = picture[len(picture) - round(y), round(x)]
    return colors


def lightness(colors: np.ndarray) -> np.ndarray:
    return colors.astype(float) @ (0.2126, 0.7152, 0.0722)


def test_better_tiles_are_lighter_each_in_its_place_those_at_the_edge_too(tmp_path):
    psnr = np.random.default_rng(0).permutation(np.linspace(20, 40, 12)).reshape(3, 4)
    light = lightness(tile_colors(psnr, tmp_path / "map.png"))
    assert np.argsort(light, axis=None).tolist() == np.argsort(psnr, axis=None).tolist()


def test_tiles_without_data_are_gray_and_exact_ones_as_light_as_the_best(tmp_path):
    psnr = np.linspace(20, 40, 12).reshape(3, 4)
    psnr[0, 0], psnr[1, 1] = np.nan, np.inf
    colors = tile_colors(psnr, tmp_path / "map.png")
    assert np.ptp(colors[0, 0]) == 0
    assert colors[1, 1].tolist() == colors[2, 3].tolist()


@pytest.mark.parametrize("value", [30.0, np.nan, np.inf])
def test_a_scene_whose_tiles_are_all_alike_is_drawn(value, tmp_path):
    assert drawn(np.full(GRID.shape, value), tmp_path / "map.png").ndim == 3
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_a_map_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    for name, says in (("map.bmp", "extension '.bmp' is unknown"), ("no/map.png", "does not exist")):
        with pytest.raises(SinkError, match=says):
            check_map(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'smartsplat\[bench\]', or leave out --plot or --map"):
        check_map(tmp_path / "map.png")
