"""A region is the crop of the whole, whatever way it is asked for, and needs only the tiles that touch it."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode import SceneView, open_scene
from pipeline.export import export
from smartsplat.errors import ConfigError, SinkError, StoreError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import Region, TileId
from storage.scene import tiles_reaching
from storage.source import read_info, read_strips


@pytest.fixture(scope="module")
def whole(photo_view: SceneView) -> np.ndarray:
    return photo_view.render()


def some_regions(height: int, width: int, count: int, *, seed: int = 0) -> list[Region]:
    rng = np.random.default_rng(seed)
    regions = []
    for _ in range(count):
        (y0, y1), (x0, x1) = (np.sort(rng.choice(size + 1, 2, replace=False)) for size in (height, width))
        regions.append(Region(y0=int(y0), y1=int(y1), x0=int(x0), x1=int(x1)))
    return regions


# --- Indexing ---------------------------------------------------------------------------------------------------------

SHAPE = (230, 290, 3)


def one_axis(size: int) -> st.SearchStrategy:
    ends = st.one_of(st.none(), st.integers(-size - 5, size + 5))
    return st.one_of(st.integers(-size, size - 1), st.builds(slice, ends, ends, st.sampled_from([None, 1])))


@st.composite
def indices(draw: st.DrawFn):
    parts = [draw(one_axis(size)) for size in SHAPE[: draw(st.integers(0, 3))]]
    if draw(st.booleans()):
        after = draw(st.integers(0, len(parts)))
        moved = [draw(one_axis(size)) for size in SHAPE[3 - after :]] if after else []
        return (*parts[: len(parts) - after], Ellipsis, *moved)
    return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)


@settings(deadline=None, max_examples=80)
@given(index=indices())
def test_indexing_is_that_of_numpy(photo_view, whole, index):
    expected = whole[index]
    found = photo_view[index]
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("index", [230, -231, (0, 290), (0, 0, 3), (0, 0, 0, 0), (..., ...), np.s_[::2], np.s_[::-1]])
def test_what_does_not_exist_or_is_not_supported_is_an_index_error(photo_view, index):
    with pytest.raises(IndexError):
        photo_view[index]


@pytest.mark.parametrize("index", ["a", None, 1.5, [1, 2], (0, None)])
def test_what_is_no_index_is_refused_as_such(photo_view, index):
    with pytest.raises(IndexError):
        photo_view[index]


def test_numpy_integers_are_indices(photo_view, whole):
    np.testing.assert_array_equal(photo_view[np.int64(7), np.uint8(3)], whole[7, 3])


# --- Regions ----------------------------------------------------------------------------------------------------------


def test_any_region_is_the_crop_of_the_whole(photo_view, photo_scene, whole):
    for region in some_regions(230, 290, 20):
        # Opened anew, so that no tile is there from before.
        np.testing.assert_array_equal(open_scene(photo_scene).render(region), whole[region.slices])


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 0.37, 1.7])
def test_any_region_is_the_crop_of_the_whole_at_any_zoom(photo_view, scale):
    whole = photo_view.render(scale=scale)
    regions = some_regions(230, 290, 20, seed=1)
    for region in regions:
        output = photo_view.output_region(region, scale=scale)
        np.testing.assert_array_equal(photo_view.render(region, scale=scale), whole[output.slices])


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 3.3])
def test_the_output_covers_the_region_and_less_than_a_pixel_more(photo_view, scale):
    for region in some_regions(230, 290, 50, seed=2):
        output = photo_view.output_region(region, scale=scale)
        assert 0 <= region.y0 * scale - output.y0 < 1
        assert 0 <= output.x1 - region.x1 * scale < 1
        assert photo_view.render(region, scale=scale).shape[:2] == output.shape


def test_strips_add_up_to_the_image(photo_view, monkeypatch):
    at_once = photo_view.render(scale=2.5)
    monkeypatch.setattr("pipeline.decode._STRIP_PIXELS", 1)
    strips = list(photo_view.strips(scale=2.5))
    assert len(strips) > 1
    np.testing.assert_array_equal(np.concatenate(strips), at_once)


def test_a_quarter_of_the_size_is_the_boxwise_mean_of_the_whole(photo_view):
    height, width = 228, 288  # multiples of 4
    whole = photo_view.render(Region(y0=0, y1=height, x0=0, x1=width)).astype(float)
    means = whole.reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3))
    small = photo_view.render(scale=0.25)[: height // 4, : width // 4].astype(float)
    psnr = 10 * np.log10(255**2 / ((small - means) ** 2).mean())
    assert psnr >= 35  # widened footprints cannot clip at 0 and 255 as the pixels of the whole do


def test_twice_the_size_averages_to_the_whole(photo_view, whole):
    large = photo_view.render(scale=2).astype(float)
    means = large.reshape(230, 2, 290, 2, 3).mean(axis=(1, 3))
    psnr = 10 * np.log10(255**2 / ((means - whole) ** 2).mean())
    assert psnr >= 35


@pytest.mark.parametrize("scale", [0, -1, 1 / 65, 65, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_refused(photo_view, scale):
    with pytest.raises(ConfigError, match="must lie between 1/64 and 64"):
        photo_view.render(scale=scale)


@pytest.mark.parametrize("scale", [1 / 64, 64])
def test_the_ends_of_the_range_of_scales_are_rendered(photo_view, scale):
    image = photo_view.render(Region(y0=0, y1=3, x0=5, x1=9), scale=scale)
    assert image.shape == ((1, 1, 3) if scale < 1 else (192, 256, 3))


@pytest.mark.parametrize(
    "region",
    [
        Region(y0=0, y1=231, x0=0, x1=5),
        Region(y0=-1, y1=5, x0=0, x1=5),
        Region(y0=0, y1=5, x0=289, x1=291),
        Region(y0=5, y1=5, x0=0, x1=5),
        Region(y0=9, y1=5, x0=0, x1=5),
    ],
)
def test_a_region_outside_or_empty_is_refused_with_the_size(photo_view, region):
    with pytest.raises(ConfigError, match=re.escape("within the scene, 0:230,0:290")):
        photo_view.render(region)


# --- Only the tiles that touch it -------------------------------------------------------------------------------------


def far_and_near(view: SceneView) -> tuple[Region, TileId, Region]:
    """Return a region, a tile that does not reach it, and a region that the tile reaches."""
    region, tile = Region(y0=0, y1=20, x0=0, x1=20), TileId(3, 4)
    table, grid = view._scene.tiles(), view.manifest.grid
    assert tile not in tiles_reaching(table, grid, region, slack=4)
    assert table[tile.row, tile.col, 0] > 0
    return region, tile, grid.core(tile)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_damaged_tile_spoils_only_the_regions_it_touches(scale, photo_scene, photo_view, tmp_path, flip_tile):
    region, tile, touched = far_and_near(photo_view)
    scene = tmp_path / "damaged.zarr"
    shutil.copytree(photo_scene, scene)
    flip_tile(scene, tile.row, tile.col)
    view = open_scene(scene)
    np.testing.assert_array_equal(view.render(region, scale=scale), photo_view.render(region, scale=scale))
    with pytest.raises(StoreError, match=re.escape(f"tile {tile} is damaged")):
        view.render(touched, scale=scale)
    with pytest.raises(StoreError, match=re.escape(f"{scene}: tile {tile}")):
        view.render(scale=scale)


def test_a_region_reads_no_tile_that_does_not_reach_it(photo_scene, photo_view, monkeypatch):
    view = open_scene(photo_scene)
    read: list[TileId] = []
    original = view._scene.read_tiles

    def spy(first: TileId, *, counts: list[int]) -> list[Gaussians]:
        read.extend(TileId(first.row, first.col + i) for i in range(len(counts)))
        return original(first, counts=counts)

    monkeypatch.setattr(view._scene, "read_tiles", spy)
    region, tile, _ = far_and_near(photo_view)
    view.render(region)
    assert 0 < len(read) == len(set(read)) < 20
    assert tile not in read
    view.render(region)
    assert len(read) == len(set(read)), "tiles are read once"


def test_an_export_of_a_damaged_region_leaves_nothing_behind(photo_scene, photo_view, tmp_path, flip_tile):
    _, tile, touched = far_and_near(photo_view)
    scene = tmp_path / "damaged.zarr"
    shutil.copytree(photo_scene, scene)
    flip_tile(scene, tile.row, tile.col)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StoreError):
        export(open_scene(scene), tmp_path / "out.png", region=touched)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["out.png", "out.tif"])
def test_an_export_holds_what_is_rendered(photo_view, tmp_path, name):
    region = Region(y0=10, y1=200, x0=33, x1=90)
    export(photo_view, tmp_path / name, region=region, scale=2)
    info = read_info(tmp_path / name)
    written = np.concatenate([strip for _, strip in read_strips(info, strip_height=100)])
    np.testing.assert_array_equal(written, photo_view.render(region, scale=2))


def test_an_export_of_too_many_bands_for_the_format_is_refused(tmp_path, write_tiff, quick, serial):
    from pipeline.compress import compress

    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 4), np.uint8)
    compress(write_tiff(tmp_path / "a.tif", pixels), tmp_path / "a.zarr", config=quick(count=20), resources=serial)
    with pytest.raises(SinkError, match=r"use \.tif"):
        export(open_scene(tmp_path / "a.zarr"), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


# --- What can be opened -----------------------------------------------------------------------------------------------


def test_what_is_no_finished_scene_is_refused(photo_scene, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("hello")
    for name, says in (("missing", "no such scene"), ("empty", "not a scene"), ("file", "not a scene")):
        with pytest.raises(StoreError, match=says):
            open_scene(tmp_path / name)


def test_an_unfinished_scene_is_refused(tmp_path, photo, write_tiff, quick, walk):
    source = write_tiff(tmp_path / "a.tif", photo("china", 70, 70))
    for _ in walk(source, tmp_path / "a.zarr", quick(count=50)):
        with pytest.raises(StoreError, match=r"a\.zarr: the scene is not finished"):
            open_scene(tmp_path / "a.zarr")
    assert open_scene(tmp_path / "a.zarr").shape == (70, 70, 3)


def test_the_view_says_what_the_scene_is(photo_view, photo_scene):
    assert (photo_view.shape, photo_view.dtype) == (SHAPE, np.uint8)
    assert photo_view.nbytes == sum(file.stat().st_size for file in photo_scene.rglob("*") if file.is_file())
    assert photo_view.measured_ratio == 230 * 290 * 3 / photo_view.nbytes


def test_a_scene_of_one_gaussian_renders(tmp_path, photo, write_tiff, quick, serial):
    from pipeline.compress import compress

    source = write_tiff(tmp_path / "a.tif", photo("flower", 150, 150))
    compress(source, tmp_path / "a.zarr", config=quick(count=1), resources=serial)
    view = open_scene(tmp_path / "a.zarr")
    whole = view.render()
    assert whole.shape == (150, 150, 3)
    np.testing.assert_array_equal(view[100:150, 0:30], whole[100:150, 0:30])
