"""Insertion brings a scene to exactly the number of Gaussians asked for, and puts them where they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.compress import prepare
from pipeline.insert import shared_by_area
from smartsplat.budget import base_scale
from smartsplat.config import FitConfig, SamplingConfig, SceneConfig
from smartsplat.geometry import TileGrid
from smartsplat.schedule import InsertPass
from storage.scene import Scene
from storage.state import SweepState

# Two stages that end with an insertion, and one replacement.
INSERTIONS = FitConfig(
    start_fraction=0.3,
    color_sweeps=1,
    color_iterations=2,
    stages=2,
    stage_pairs=1,
    coarse_factors=(),
    replacements=1,
    replaced_share=0.2,
    final_pairs=(),
)


def counts_of(scene: Path, sweep: int) -> np.ndarray:
    """Return how many Gaussians each tile really holds after a sweep."""
    opened = Scene.open(scene)
    state = SweepState.open(opened.work(), sweep, grid=opened.grid)
    counts = np.array([len(state.read(tile)) for tile in opened.grid]).reshape(opened.grid.shape)
    np.testing.assert_array_equal(counts, state.reports.read_all()[..., 0])
    return counts


def noise(bands: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 100, bands), np.uint8)


def squares(side: int) -> np.ndarray:
    y, x = np.mgrid[:70, :100]
    return (255 * ((y // side + x // side) % 2)).astype(np.uint8)[:, :, None]


def holes() -> np.ndarray:
    pixels = noise(1).astype(np.float32)
    pixels[10:40, 5:30] = np.nan
    pixels[:, 64:] = np.inf  # two tiles have no data at all
    return pixels


def flat(level: int, dtype: str = "uint8") -> np.ndarray:
    return np.full((70, 100, 1), level, dtype)


@pytest.mark.parametrize(
    ("pixels", "count", "tile"),
    [
        pytest.param(flat(255), 300, 64, id="flat"),
        # Most of it out of reach of any Gaussian: what is left over is flat too, and has no peak.
        pytest.param(flat(255), 4, 32, id="flat, few"),
        pytest.param(flat(7, "uint16"), 100, 64, id="flat, its own range"),
        pytest.param(flat(0), 300, 64, id="black"),  # and with nothing left over anywhere
        pytest.param(noise(3), 300, 64, id="noise"),
        pytest.param(noise(1)[:40, :60], 80, 16, id="tiny tiles"),
        pytest.param(noise(1), 7000, 64, id="as many as pixels"),  # far more than there are peaks
        pytest.param(noise(3), 1, 64, id="one"),
        pytest.param(holes(), 150, 64, id="holes"),
        pytest.param(squares(25), 6, 32, id="squares"),  # flat within, again
        pytest.param(squares(1), 40, 64, id="checks"),
    ],
)
def test_every_insertion_ends_with_exactly_its_number_of_gaussians(
    pixels, count, tile, tmp_path, write_tiff, walk, serial
):
    source, scene = write_tiff(tmp_path / "a.tif", pixels), tmp_path / "a.zarr"
    config = SceneConfig(count=count, tile=tile, halo=tile // 8, fit=INSERTIONS)
    passes = prepare(source, scene, config=config, resources=serial).plan.passes
    insertions = {number: each.count for number, each in enumerate(passes, start=1) if isinstance(each, InsertPass)}
    large = base_scale(*pixels.shape[:2], count) > 3  # then they are replaced twice
    assert (len(insertions), max(insertions.values())) == (4 if large else 3, count)
    found, before = {}, ""
    for step in walk(source, scene, config):
        if "insert" in before:
            sweep = int(before.split()[1].rstrip(":"))
            found[sweep] = counts_of(scene, sweep).sum()
        before = step.name
        if step.name == "rate":
            break
    assert found == insertions


# Errors are seen better in the blank tiles: what leaks over their edges costs them some.
@pytest.mark.parametrize(("visibility", "times"), [(0.0, 3), (FitConfig().insert_visibility, 2)])
def test_a_busy_tile_ends_with_more_gaussians_than_blank_ones(visibility, times, tmp_path, write_tiff, walk):
    y, x = np.mgrid[:64, :64]
    pixels = np.full((64, 192, 3), 100, np.uint8)
    pixels[:, 64:128] = (255 * ((y // 5 + x // 5) % 2)).astype(np.uint8)[:, :, None]
    source, scene = write_tiff(tmp_path / "a.tif", pixels), tmp_path / "a.zarr"
    fit = FitConfig(
        start_fraction=0.1,
        stages=4,
        stage_pairs=4,
        insert_visibility=visibility,
        replacements=0,
        coarse_factors=(),
        final_pairs=(),
    )
    # Sampled evenly, so that insertion makes the difference.
    sampling = SamplingConfig(variational_fraction=0)
    config = SceneConfig(count=240, tile=64, halo=8, sampling=sampling, fit=fit)
    for step in walk(source, scene, config):
        if step.name.startswith("sweep 1:"):
            assert counts_of(scene, 0).tolist() == [[8, 8, 8]]
        if step.name == "rate":
            break
    ((left, busy, right),) = counts_of(scene, 10)
    assert left + busy + right == 240
    assert busy > times * (left + right)


@pytest.mark.parametrize(("side", "count"), [(10, 7), (10**9, 10**9), (10**9, 0)])
def test_what_has_no_candidate_is_shared_by_area_exactly_however_large_the_scene(side, count):
    grid = TileGrid(height=side, width=2 * side, tile=-(-3 * side // 4), halo=1)
    shares = shared_by_area(grid, count=count)
    assert sum(shares) == count
    for share, tile in zip(shares, grid, strict=True):
        core = grid.core(tile)
        assert abs(share - count * core.height * core.width / (2 * side * side)) < 1
