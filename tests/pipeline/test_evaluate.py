"""Scored piece by piece is scored as a whole; and every damaged tile is found, by name."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import evaluate as evaluating
from pipeline.compress import compress
from pipeline.decode import SceneView, open_scene
from pipeline.evaluate import CORE, evaluate, measure, verify
from smartsplat.config import FitConfig, SceneConfig
from smartsplat.errors import ConfigError, StoreError
from smartsplat.metrics import score
from smartsplat.normalization import pixel_weight
from storage.source import read_info

# Sums of the same float64 terms in another order.
ORDER = 1e-9

SAMPLED = FitConfig(color_sweeps=0, stages=0, replacements=0, coarse_factors=(), final_pairs=())
AS_SAMPLED = SceneConfig(count=300, tile=512, halo=64, fit=SAMPLED)


def waves(height: int, width: int, bands: int, dtype: str) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(scale=0.1, size=(height, width, bands))
    values = np.sin(y / 37)[..., None] * np.cos(x / 23)[..., None] + noise
    return (values * 60 + 120).clip(0, 255).astype(dtype)


@pytest.fixture(scope="module", params=["tall", "wide", "holes"])
def scored(request, tmp_path_factory, write_tiff, serial) -> tuple[SceneView, Path, np.ndarray]:
    """A scene of several pieces, the image it was made of, and its pixels."""
    folder = tmp_path_factory.mktemp("scored")
    if request.param == "tall":
        pixels = waves(2 * CORE + 90, CORE + 13, 1, "uint8")
    elif request.param == "wide":
        pixels = waves(61, 2 * CORE + 300, 3, "uint16")
    else:
        pixels = waves(CORE + 70, 90, 2, "float32")
        pixels[480:530, 20:50] = np.nan
        pixels[0, :, 1] = np.inf
    source = write_tiff(folder / "a.tif", pixels)
    compress(source, folder / "a.zarr", config=AS_SAMPLED, resources=serial)
    return open_scene(folder / "a.zarr"), source, pixels


def test_quality_is_that_of_the_whole_image_in_memory(scored):
    view, source, pixels = scored
    found = evaluate(view, read_info(source))
    expected = score(pixels, view.render(), peak=view.normalization.span, weight=pixel_weight(pixels))
    assert found["psnr"] == pytest.approx(expected.psnr, abs=ORDER)
    assert found["ssim"] == pytest.approx(expected.ssim, abs=ORDER)
    assert found["ms_ssim"] == pytest.approx(expected.ms_ssim, abs=ORDER)


def test_quality_is_that_stored_in_the_scene(scored):
    view, source, _ = scored
    found = evaluate(view, read_info(source))
    assert view.manifest.quality is not None
    for name, value in view.manifest.quality.items():
        assert found[name] == pytest.approx(value, abs=ORDER)


def test_size_is_that_of_the_files(scored):
    view, source, pixels = scored
    found = evaluate(view, read_info(source))
    size = sum(file.stat().st_size for file in view._scene.path.rglob("*") if file.is_file())
    assert found["bytes"] == size
    assert found["bits_per_pixel"] == 8 * size / (pixels.shape[0] * pixels.shape[1])
    assert found["measured_ratio"] == pixels.nbytes / size


def test_an_image_smaller_than_the_window_has_no_ssim(tmp_path, write_tiff, quick, serial):
    source = write_tiff(tmp_path / "a.tif", waves(10, 80, 3, "uint8"))
    compress(source, tmp_path / "a.zarr", config=quick(count=20), resources=serial)
    found = evaluate(open_scene(tmp_path / "a.zarr"), read_info(source))
    assert found["ssim"] is found["ms_ssim"] is None
    assert found["psnr"] > 5


def test_an_exact_scene_has_no_psnr(tmp_path, write_tiff, quick, serial):
    source = write_tiff(tmp_path / "a.tif", np.zeros((30, 30, 3), np.uint8))
    compress(source, tmp_path / "a.zarr", config=quick(count=5), resources=serial)
    found = evaluate(open_scene(tmp_path / "a.zarr"), read_info(source))
    assert found["psnr"] is None
    assert found["ssim"] == 1


@pytest.mark.parametrize(
    ("shape", "dtype"), [((230, 291, 3), "uint8"), ((230, 290, 1), "uint8"), ((230, 290, 3), "uint16")]
)
def test_an_image_of_another_shape_or_type_is_refused(shape, dtype, photo_view, tmp_path, write_tiff):
    source = write_tiff(tmp_path / "other.tif", np.zeros(shape, dtype))
    with pytest.raises(ConfigError, match=r"other\.tif: .* cannot be compared with a scene of \(230, 290, 3\) uint8"):
        evaluate(photo_view, read_info(source))


# --- By tile, on many cores, in flat memory ---------------------------------------------------------------------------


def test_the_quality_of_each_tile_is_that_of_its_pixels_and_is_stored_in_the_scene(scored):
    view, source, pixels = scored
    found = measure(view, read_info(source)).tile_psnr
    grid, stored = view.manifest.grid, view._scene.tile_psnr()
    for tile in grid:
        part = grid.core(tile).slices
        expected = score(
            pixels[part], view.render()[part], peak=view.normalization.span, weight=pixel_weight(pixels[part])
        ).psnr
        assert found[tile.row, tile.col] == pytest.approx(expected, abs=ORDER)
        assert stored[tile.row, tile.col] == pytest.approx(expected, abs=0.05 + ORDER), "rounded to 0.1 dB"


def test_the_worst_tile_and_the_best_are_named(scored):
    view, source, _ = scored
    psnr = measure(view, read_info(source)).tile_psnr
    tiles = evaluate(view, read_info(source))["tiles"]
    assert (tiles["worst"]["psnr"], tiles["best"]["psnr"]) == (psnr.min(), psnr.max())
    places = {f"({row}, {col})": value for (row, col), value in np.ndenumerate(psnr)}
    assert all(places[each["tile"]] == each["psnr"] for each in tiles.values())


def test_an_exact_tile_is_stored_as_a_hundred_decibels(tmp_path, write_tiff, quick, serial):
    source = write_tiff(tmp_path / "a.tif", np.zeros((30, 30, 3), np.uint8))
    compress(source, tmp_path / "a.zarr", config=quick(count=5), resources=serial)
    view = open_scene(tmp_path / "a.zarr")
    assert np.isinf(measure(view, read_info(source)).tile_psnr).all()
    assert (view._scene.tile_psnr() == 100).all()


def test_any_number_of_threads_gives_the_same_score(scored):
    view, source, _ = scored
    one, four = (measure(view, read_info(source), threads=threads) for threads in (1, 4))
    assert one.quality == four.quality
    np.testing.assert_array_equal(one.tile_psnr, four.tile_psnr)


class Held:
    """Counts the arrays that it was shown and that someone still holds."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def show(self, array: np.ndarray) -> np.ndarray:
        shown = array[:]  # an object of its own, as the array's may be held by what made it
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(shown, self.forget)
        return shown

    def forget(self) -> None:
        self.now -= 1


def most_held(view: SceneView, source: Path, *, threads: int) -> tuple[int, int]:
    """Return how many strips, and how many drawn pieces, are held at a time while a scene is scored."""
    strips, drawn = Held(), Held()
    read, rendered = evaluating.read_strips, evaluating._rendered
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            evaluating, "read_strips", lambda *a, **k: ((y0, strips.show(strip)) for y0, strip in read(*a, **k))
        )
        patched.setattr(evaluating, "_rendered", lambda *a: drawn.show(rendered(*a)))
        measure(view, read_info(source), threads=threads)
    return strips.most, drawn.most


@pytest.mark.parametrize("threads", [1, 3])
def test_what_evaluate_holds_does_not_grow_with_the_height_of_the_image(threads, tmp_path, write_tiff, serial):
    for pieces in (5, 9):
        source = write_tiff(tmp_path / f"{pieces}.tif", waves(pieces * CORE, 40, 1, "uint8"))
        compress(source, tmp_path / f"{pieces}.zarr", config=AS_SAMPLED, resources=serial)
        strips, drawn = most_held(open_scene(tmp_path / f"{pieces}.zarr"), source, threads=threads)
        assert strips <= 4, "those around a row of pieces, and the one that is read"
        assert drawn <= threads + 2, "those that are scored, the one that is drawn, and the one that was scored last"


# --- Soundness --------------------------------------------------------------------------------------------------------


def test_a_sound_scene_is_said_to_be(photo_scene, photo_view):
    found = verify(photo_scene)
    assert (found["sound"], found["damaged"], found["tiles"]) == (True, {}, 20)
    assert found["gaussians"] == photo_view.manifest.count
    assert found["bytes"] == photo_view.nbytes


def test_every_damaged_tile_is_found_by_name(photo_scene, tmp_path, flip_tile):
    for tiles in ([(0, 0)], [(3, 4)], [(1, 2), (2, 3), (0, 4)]):
        scene = tmp_path / "damaged.zarr"
        shutil.copytree(photo_scene, scene)
        for row, col in tiles:
            flip_tile(scene, row, col)
        found = verify(scene)
        assert not found["sound"]
        assert set(found["damaged"]) == {f"({row}, {col})" for row, col in tiles}
        assert all(str(scene) in reason and tile in reason for tile, reason in found["damaged"].items())
        shutil.rmtree(scene)


def test_a_missing_shard_is_found(photo_scene, tmp_path):
    scene = tmp_path / "damaged.zarr"
    shutil.copytree(photo_scene, scene)
    for shard in (scene / "gaussians").glob("c.*"):
        shard.unlink()
    assert len(verify(scene)["damaged"]) == 20


def says_sound(scene: Path) -> bool:
    try:
        return verify(scene)["sound"]
    except StoreError:
        return False


def test_one_flipped_bit_anywhere_in_a_scene_is_found(photo_scene, tmp_path, flip: Callable[[Path, int], None]):
    """Damage is refused or found, unless it changes nothing: a byte that no tile owns."""
    rng = np.random.default_rng(3)
    whole = open_scene(photo_scene).render()
    for file in sorted(path for path in photo_scene.rglob("*") if path.is_file()):
        for at in rng.integers(0, file.stat().st_size, 12).tolist():
            scene = tmp_path / "damaged.zarr"
            shutil.copytree(photo_scene, scene)
            flip(scene / file.relative_to(photo_scene), at)
            if says_sound(scene):
                np.testing.assert_array_equal(open_scene(scene).render(), whole, err_msg=f"{file.name}, byte {at}")
            shutil.rmtree(scene)
