"""The quality of a tile is that of its own pixels, however the scene was cut into pieces."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tile_quality import extremes, tile_errors, tile_psnr
from smartsplat.geometry import TileGrid
from smartsplat.metrics import context_region, score

# Sums of the same float64 terms in another order.
ORDER = 1e-9

HEIGHT, WIDTH = 230, 310


@pytest.mark.parametrize("tile", [64, 100, 512])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("holes", [False, True])
def test_the_psnr_of_a_tile_is_that_of_its_pixels_alone(tile, bands, holes):
    rng = np.random.default_rng(tile)
    reference, rendered = rng.uniform(0, 255, (2, HEIGHT, WIDTH, bands)).astype(np.float32)
    weight = np.ones((HEIGHT, WIDTH), np.float32)
    if holes:
        weight[10:90, 50:170] = 0
        reference[weight == 0] = np.nan
    grid = TileGrid(height=HEIGHT, width=WIDTH, tile=tile, halo=0)
    pieces = TileGrid(height=HEIGHT, width=WIDTH, tile=96, halo=0)
    found = tile_psnr(piece_errors(reference, rendered, grid, pieces, weight if holes else None), grid, peak=255)
    for each in grid:
        part = grid.core(each).slices
        if weight[part].any():
            expected = score(reference[part], rendered[part], peak=255, weight=weight[part]).psnr
            assert found[each.row, each.col] == pytest.approx(expected, abs=ORDER)
        else:
            assert np.isnan(found[each.row, each.col])


def piece_errors(reference, rendered, grid, pieces, weight):
    for piece in pieces:
        core = pieces.core(piece)
        padded = context_region(core, (HEIGHT, WIDTH))
        parts = [None if image is None else image[padded.slices] for image in (reference, rendered, weight)]
        yield tile_errors(parts[0], parts[1], grid=grid, core=core, padded=padded, weight=parts[2])


def test_whole_numbers_of_any_type_do_not_wrap_around():
    grid = TileGrid(height=2, width=2, tile=2, halo=0)
    for dtype in ("uint8", "uint16"):
        low, high = np.zeros((2, 2, 3), dtype), np.full((2, 2, 3), np.iinfo(dtype).max, dtype)
        for reference, rendered in ((low, high), (high, low)):
            errors = tile_errors(reference, rendered, grid=grid, core=grid.bounds, padded=grid.bounds)
            assert tile_psnr([errors], grid, peak=float(high[0, 0, 0])).item() == pytest.approx(0)


def test_a_scene_without_data_has_neither_a_worst_tile_nor_a_best():
    assert extremes(np.full((2, 3), np.nan)) is None
