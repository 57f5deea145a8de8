"""A fit moves what it is to move, within its tile; and reports how good the scene is at its level."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipeline.compress import compress
from pipeline.decode import open_scene
from pipeline.evaluate import verify
from pipeline.optimize import scene_psnr
from smartsplat.config import FitConfig, SceneConfig
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import TileId, block_grid
from smartsplat.normalization import pixel_weight
from smartsplat.optim.levels import coarsen, level_region
from smartsplat.render import render
from storage.scene import Scene
from storage.state import SweepState

# One of each kind of pass.
EACH = FitConfig(start_fraction=0.3, color_sweeps=1, stages=1, replacements=0)


def states_of(scene: Path, sweep: int) -> dict[TileId, Gaussians]:
    opened = Scene.open(scene)
    state = SweepState.open(opened.work(), sweep, grid=opened.grid)
    return {tile: state.read(tile) for tile in opened.grid}


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    value = np.sin(y / 13)[..., None] * np.cos(x / 17)[..., None] + 0.3 * np.sin((x + 2 * y) / 5)[..., None]
    return value.astype(np.float32)


# --- Levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "tile", "halo", "count", "width"), [(4, 32, 4, 700, 230), (4, 50, 5, 700, 230), (8, 40, 8, 140, 340)]
)
def test_a_coarse_fit_moves_large_gaussians_alone_and_none_out_of_its_tile(
    factor, tile, halo, count, width, tmp_path, photo, write_tiff, run_until
):
    source = write_tiff(tmp_path / "a.tif", photo("flower", 190, width))
    fit = FitConfig(
        color_sweeps=0,
        stages=0,
        replacements=0,
        coarse_factors=(factor,),
        coarse_pairs=12,
        final_pairs=(1,),
        ssim_pairs=0,
    )
    config = SceneConfig(count=count, tile=tile, halo=halo, fit=fit)
    run_until("sweep 2: 1 pairs, phase 1", source, tmp_path / "a.zarr", config)
    before, after = (states_of(tmp_path / "a.zarr", sweep) for sweep in (0, 1))
    grid = Scene.open(tmp_path / "a.zarr").grid
    assert len(grid) > len(block_grid(grid, factor)) > 1
    moved: list[np.ndarray] = []
    for tile_id, old in before.items():
        new, large = after[tile_id], old.scales.max(axis=1) >= factor
        assert (new.means >= 0).all()
        assert (new.means < grid.core(tile_id).shape).all()
        np.testing.assert_array_equal(new.to_rows()[~large], old.to_rows()[~large])
        moved.append(np.abs(new.means - old.means)[large].max(axis=1))
    moved_by = np.concatenate(moved)
    assert len(moved_by) > 30
    assert np.median(moved_by) > 0.1, "they do move"
    assert moved_by.max() > 2


# --- Reports ----------------------------------------------------------------------------------------------------------


def psnr_of(states: dict[TileId, Gaussians], pixels: np.ndarray, factor: int) -> float:
    """Return the PSNR of Gaussians, drawn all at once at a level, against averages of normalised pixels."""
    weight = pixel_weight(pixels)
    values, weight = coarsen(np.nan_to_num(pixels), weight, factor=factor)
    image = render(list(states.values()), level_region(whole(pixels), factor), scale=1 / factor)
    share = np.ones(values.shape[:2]) if weight is None else weight
    error = (share[:, :, None] * (image.astype(float) - values) ** 2).sum()
    return -10 * np.log10(error / (share.sum() * values.shape[2]))


def whole(pixels: np.ndarray):
    from smartsplat.geometry import Region

    return Region(y0=0, y1=pixels.shape[0], x0=0, x1=pixels.shape[1])


@pytest.fixture(scope="module", params=["all data", "holes"])
def fitted(request, tmp_path_factory, write_tiff, walk) -> dict[int, tuple[float, float]]:
    """By sweep of a scene of one tile: the PSNR that was reported, and that of the Gaussians drawn anew."""
    folder = tmp_path_factory.mktemp("fitted")
    pixels = waves(93, 110)
    pixels = (pixels - pixels.min()) / np.ptp(pixels)
    if request.param == "holes":
        pixels[20:50, 30:77] = np.nan
    source = write_tiff(folder / "a.tif", pixels)
    fit = dataclasses.replace(EACH, stage_pairs=3, coarse_factors=(4,), coarse_pairs=3, final_pairs=(3,))
    config = SceneConfig(count=120, tile=128, halo=16, fit=fit)
    found: dict[int, tuple[float, float]] = {}
    before = ""
    for step in walk(source, folder / "a.zarr", config):
        if before.startswith("sweep") and "insert" not in before:
            sweep, scene = int(before.split()[1].rstrip(":")), Scene.open(folder / "a.zarr")
            factor = int(before.split("1/")[1].split(",")[0]) if "1/" in before else 1
            reported = scene_psnr(scene.work(), sweep, grid=scene.grid)
            found[sweep] = reported, psnr_of(states_of(folder / "a.zarr", sweep), pixels, factor)
        before = step.name
    assert list(found) == [1, 2, 3, 5, 6]
    return found


def test_the_reported_psnr_is_that_of_the_gaussians_at_the_level_of_their_fit(fitted):
    for sweep, (reported, drawn) in fitted.items():
        # The same float32 image, but for Gaussians that went from the level's pixels to the scene's and back.
        assert reported == pytest.approx(drawn, abs=1e-5), sweep


def test_a_scene_of_many_tiles_reports_its_psnr_but_for_what_neighbors_did_later(tmp_path, photo, write_tiff, walk):
    pixels = photo("china", 150, 190)
    source = write_tiff(tmp_path / "a.tif", pixels)
    fit = dataclasses.replace(EACH, stage_pairs=10, coarse_factors=(), final_pairs=(10, 10))
    config = SceneConfig(count=1500, tile=50, halo=6, fit=fit)
    for step in walk(source, tmp_path / "a.zarr", config):
        if step.name == "rate":
            break
    scene = Scene.open(tmp_path / "a.zarr")
    reported = scene_psnr(scene.work(), 5, grid=scene.grid)
    # A tile reports its error before the phases after its own; by the second full sweep these change little.
    assert reported == pytest.approx(psnr_of(states_of(scene.path, 5), pixels / np.float32(255), 1), abs=0.1)


# --- Tiles of any size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "halo", "even"), [(50, 5, 48), (25, 4, 24)])
def test_tiles_of_any_size_do_as_well_as_multiples_of_8(tile, halo, even, tmp_path, write_tiff, serial):
    pixels = np.rint(60 * waves(83, 101) + 128).astype(np.uint8)
    source = write_tiff(tmp_path / "a.tif", pixels)
    fit = dataclasses.replace(EACH, stage_pairs=8, coarse_factors=(4,), coarse_pairs=4, final_pairs=(12,))
    psnrs: list[float] = []
    for side in (tile, even):
        scene = tmp_path / f"{side}.zarr"
        report = compress(source, scene, config=SceneConfig(count=300, tile=side, halo=halo, fit=fit), resources=serial)
        checked = verify(scene)
        tiles = -(-83 // side) * -(-101 // side)
        assert (checked["sound"], checked["tiles"], checked["gaussians"]) == (True, tiles, 300)
        drawn = open_scene(scene)[...].astype(float)
        assert report.quality["psnr"] == pytest.approx(10 * np.log10(255**2 / ((drawn - pixels) ** 2).mean()), abs=1e-9)
        psnrs.append(report.quality["psnr"])
    # Other tiles are sampled otherwise, for about a dB; one fitted to other pixels than its own would cost over 10.
    assert psnrs[0] == pytest.approx(psnrs[1], abs=3)
    assert min(psnrs) > 25
