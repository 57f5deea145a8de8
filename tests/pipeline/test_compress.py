"""The whole journey: the bytes promised, the same bytes wherever they are made, and what was there is respected."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.compress import compress, prepare, steps
from pipeline.decode import open_scene
from pipeline.evaluate import verify
from pipeline.executors import Outcome, SerialExecutor
from pipeline.plan import Resources
from pipeline.progress import NoProgress
from smartsplat.config import FitConfig, SceneConfig
from smartsplat.errors import ConfigError, SmartsplatError
from smartsplat.geometry import block_grid
from smartsplat.schedule import FitPass, InsertPass

# Enough for a likeness, and no more.
CLOSE = FitConfig(
    start_fraction=0.3, color_sweeps=1, stages=1, stage_pairs=4, replacements=0, coarse_factors=(), final_pairs=(8,)
)


def size_of(scene: Path) -> int:
    return sum(file.stat().st_size for file in scene.rglob("*") if file.is_file())


# --- What comes out ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_here(tmp_path_factory, photo, write_tiff, quick, serial, files) -> tuple[Path, SceneConfig, dict[str, str]]:
    """An image, settings for a scene of it, and the bytes that it is in this process, on one thread."""
    folder = tmp_path_factory.mktemp("here")
    source = write_tiff(folder / "a.tif", photo("flower", 60, 150))
    config = quick(nominal_ratio=7.25, tile=32, halo=4)
    compress(source, folder / "a.zarr", config=config, resources=serial)
    return source, config, files(folder / "a.zarr")


def test_the_scene_made_in_many_ways_has_an_insertion_and_some_blocks_at_every_level(made_here, tmp_path, serial):
    plan = prepare(made_here[0], tmp_path / "a.zarr", config=made_here[1], resources=serial).plan
    assert [each for each in plan.passes if isinstance(each, InsertPass)]
    blocks = {each.factor: len(block_grid(plan.grid, each.factor)) for each in plan.passes if isinstance(each, FitPass)}
    assert blocks == {1: 10, 2: 3, 4: 2}


@pytest.mark.parametrize(("asked", "taken", "lines"), [("auto", "cuda", 1), ("auto", "cpu", 0), ("cuda", "cuda", 0)])
def test_a_device_that_was_not_asked_for_is_named(made_here, tmp_path, monkeypatch, caplog, asked, taken, lines):
    monkeypatch.setattr("pipeline.compress.resolve_engine", lambda _: taken)
    with caplog.at_level("INFO", logger="pipeline"):
        prepare(made_here[0], tmp_path / "a.zarr", config=made_here[1], resources=Resources(engine=asked))
    assert [("CUDA device" in line) for line in caplog.messages] == lines * [True]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_scenes_made_on_any_number_of_workers_are_the_same_bytes(workers, made_here, tmp_path, files):
    source, config, expected = made_here
    compress(source, tmp_path / "a.zarr", config=config, resources=Resources(executor="dask", workers=workers))
    assert files(tmp_path / "a.zarr") == expected


def test_scenes_made_on_two_threads_are_the_same_bytes(made_here, tmp_path, files):
    source, config, expected = made_here
    compress(source, tmp_path / "a.zarr", config=config, resources=Resources(executor="serial", workers=2))
    assert files(tmp_path / "a.zarr") == expected


class Backwards(SerialExecutor):
    """Runs the jobs of a stage in the opposite order."""

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Outcome]:
        for outcome in super().map(function, jobs[::-1]):
            yield dataclasses.replace(outcome, index=len(jobs) - 1 - outcome.index)


def test_jobs_of_a_stage_done_in_another_order_make_the_same_bytes(made_here, tmp_path, serial, files):
    source, config, expected = made_here
    preparation = prepare(source, tmp_path / "a.zarr", config=config, resources=serial)
    with Backwards(threads=1) as executor:
        for step in steps(preparation, executor, progress=NoProgress()):
            step.work()
    shutil.rmtree(tmp_path / "a.zarr" / "work")
    assert files(tmp_path / "a.zarr") == expected


@pytest.mark.parametrize("name", ["china", "flower"])
@pytest.mark.parametrize(("ratio", "height", "width"), [(4, 150, 200), (7.5, 200, 250), (12, 240, 320), (40, 427, 640)])
def test_the_ratio_is_kept_and_its_bytes_are_used(
    name, ratio, height, width, tmp_path, photo, write_tiff, quick, serial
):
    pixels = photo(name, height, width)
    source = write_tiff(tmp_path / "a.tif", pixels)
    config = quick(nominal_ratio=ratio, tile=128, halo=16, fit=dataclasses.replace(CLOSE, final_pairs=(1,)))
    report = compress(source, tmp_path / "a.zarr", config=config, resources=serial)
    size = size_of(tmp_path / "a.zarr")
    assert 0.9 * pixels.nbytes / ratio <= size <= pixels.nbytes / ratio
    assert (report.nbytes, report.nominal_ratio) == (size, ratio)
    assert report.measured_ratio == pixels.nbytes / size


def test_bytes_and_bits_per_pixel_are_promises_too(tmp_path, photo, write_tiff, serial):
    source = write_tiff(tmp_path / "a.tif", photo("china", 160, 200))
    for size in ({"max_bytes": 6000}, {"bits_per_pixel": 1.5}):
        scene = tmp_path / f"{next(iter(size))}.zarr"
        report = compress(source, scene, resources=serial, **size)
        assert 0.95 * 6000 <= report.nbytes == size_of(scene) <= 6000
    with pytest.raises(ConfigError, match="not several"):
        compress(source, tmp_path / "c.zarr", ratio=4, max_bytes=6000)
    with pytest.raises(ConfigError, match="config, or"):
        compress(source, tmp_path / "c.zarr", bits_per_pixel=1, config=SceneConfig(count=9))


def test_more_bytes_give_a_better_image(tmp_path, photo, write_tiff, quick, serial):
    source = write_tiff(tmp_path / "a.tif", photo("flower", 160, 160))
    psnrs: list[float] = []
    for ratio in (5, 10, 20):
        config = quick(nominal_ratio=ratio, tile=128, halo=16)
        psnrs.append(compress(source, tmp_path / f"{ratio}.zarr", config=config, resources=serial).quality["psnr"])
    assert psnrs == sorted(psnrs, reverse=True)


def textured(height: int, width: int, bands: int, dtype: str) -> np.ndarray:
    """Return waves of another length in each band, over most of what the type holds."""
    y, x = np.mgrid[:height, :width]
    values = np.stack([np.sin(x / (5 + band)) * np.cos(y / (7 + band)) for band in range(bands)], axis=2)
    if dtype == "float32":
        return (values * 1e4 - 3e4).astype(dtype)
    limits = np.iinfo(dtype)
    return ((values + 1) / 2 * 0.8 * (limits.max - limits.min) + limits.min).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 4, 5])
def test_any_type_and_number_of_bands_comes_back_close(bands, dtype, tmp_path, write_tiff, quick, serial):
    pixels = textured(67, 101, bands, dtype)
    source = write_tiff(tmp_path / "a.tif", pixels)
    report = compress(source, tmp_path / "a.zarr", config=quick(count=1000, fit=CLOSE), resources=serial)
    view = open_scene(tmp_path / "a.zarr")
    assert (view.shape, view.dtype) == (pixels.shape, pixels.dtype)
    # One Gaussian to 7 px of smooth waves; a flat image has 13 dB, a wrong band, offset or row order less.
    assert report.quality["psnr"] > 20
    error = (view[...].astype(float) - pixels) / float(np.ptp(pixels.astype(float)))
    assert np.sqrt((error**2).mean()) < 0.1
    assert verify(tmp_path / "a.zarr")["sound"]


def test_pixels_without_data_neither_count_nor_spoil_the_others(tmp_path, write_tiff, quick, serial):
    pixels = textured(80, 120, 1, "float32")
    holes = pixels.copy()
    holes[20:40, 30:70] = np.nan
    holes[70:, 100:] = np.inf
    source = write_tiff(tmp_path / "a.tif", holes)
    report = compress(source, tmp_path / "a.zarr", config=quick(count=1000, fit=CLOSE), resources=serial)
    image = open_scene(tmp_path / "a.zarr")[...]
    assert np.isfinite(image).all()
    valid = np.isfinite(holes)
    span = float(holes[valid].max() - holes[valid].min())
    mean_square = float(((image.astype(float) - pixels)[valid] ** 2).mean())
    # float32 pixels of either side, differently summed.
    assert report.quality["psnr"] == pytest.approx(10 * np.log10(span**2 / mean_square), abs=1e-6)
    assert report.quality["psnr"] > 20


def test_an_image_without_any_data_is_refused_or_blank_but_no_crash(tmp_path, write_tiff, quick, serial):
    source = write_tiff(tmp_path / "a.tif", np.full((40, 40, 1), np.nan, np.float32))
    with pytest.raises(SmartsplatError):
        compress(source, tmp_path / "a.zarr", config=quick(count=10), resources=serial)


@pytest.mark.parametrize(("height", "width"), [(67, 101), (2, 2), (2, 300), (300, 2), (64, 65), (129, 63)])
def test_odd_sizes_come_back_in_their_size(height, width, tmp_path, write_tiff, quick, serial):
    pixels = textured(height, width, 3, "uint8")
    source = write_tiff(tmp_path / "a.tif", pixels)
    count = max(1, height * width // 12)
    report = compress(source, tmp_path / "a.zarr", config=quick(count=count), resources=serial)
    image = open_scene(tmp_path / "a.zarr")[...]
    assert image.shape == pixels.shape
    assert report.gaussians == verify(tmp_path / "a.zarr")["gaussians"] == count
    mean_square = float(((image.astype(float) - pixels) ** 2).mean())
    expected = None if mean_square == 0 else 10 * np.log10(255**2 / mean_square)
    assert report.quality["psnr"] == (expected if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize("level", [0, 100, 255])
def test_a_flat_image_comes_back_flat(level, tmp_path, write_tiff, quick, serial):
    pixels = np.full((130, 140, 3), level, np.uint8)
    source = write_tiff(tmp_path / "a.tif", pixels)
    compress(source, tmp_path / "a.zarr", config=quick(count=1000, fit=CLOSE), resources=serial)
    image = open_scene(tmp_path / "a.zarr")[...].astype(int)
    assert np.abs(image - level).mean() <= 0.03 * level  # the ripple between Gaussians; black has none at all


# --- Settings at one place --------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, photo, write_tiff) -> Path:
    return write_tiff(tmp_path / "a.tif", photo("china", 100, 130))


def times(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in [folder, *folder.rglob("*")]}


def test_a_finished_scene_is_left_alone(small, tmp_path, quick, serial):
    scene = tmp_path / "a.zarr"
    first = compress(small, scene, config=quick(), resources=serial)
    before = times(scene)
    again = compress(small, scene, config=quick(), resources=serial)
    assert {name: time for name, time in times(scene).items() if name != str(scene)} == {
        name: time for name, time in before.items() if name != str(scene)
    }
    assert first.seconds
    assert not again.seconds
    assert (again.quality, again.nbytes) == (first.quality, first.nbytes)


def test_a_renamed_or_moved_image_is_the_same_image(small, tmp_path, quick, serial):
    scene = tmp_path / "a.zarr"
    compress(small, scene, config=quick(), resources=serial)
    (tmp_path / "elsewhere").mkdir()
    moved = small.rename(tmp_path / "elsewhere" / "b.tif")
    assert not compress(moved, scene, config=quick(), resources=serial).seconds


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(finished, small, tmp_path, quick, serial, files, run_until):
    scene = tmp_path / "a.zarr"
    if finished:
        compress(small, scene, config=quick(), resources=serial)
    else:
        run_until("sample", small, scene, quick())
    before = files(scene)
    with pytest.raises(ConfigError) as caught:
        compress(small, scene, config=quick(nominal_ratio=9, seed=4, fit=FitConfig(stage_pairs=7)), resources=serial)
    message = str(caught.value)
    assert str(scene) in message
    for difference in ("nominal_ratio: 8.0 or 9.0", "seed: 0 or 4", "fit.stage_pairs: 4 or 7"):
        assert difference in message
    assert "tile" not in message
    assert ("(finished)" if finished else "(unfinished)") in message
    assert files(scene) == before


def test_another_image_of_the_same_name_is_refused(small, tmp_path, quick, serial, files, photo, write_tiff):
    scene = tmp_path / "a.zarr"
    compress(small, scene, config=quick(), resources=serial)
    before = files(scene)
    write_tiff(small, photo("flower", 100, 130))
    with pytest.raises(ConfigError, match=r"source: a\.tif, and another image now"):
        compress(small, scene, config=quick(), resources=serial)
    assert files(scene) == before


def test_working_data_is_kept_on_request_and_discarded_by_a_later_run(small, tmp_path, quick, serial, files):
    kept, plain = tmp_path / "kept.zarr", tmp_path / "plain.zarr"
    report = compress(small, kept, config=quick(), resources=serial, keep_work=True)
    assert (kept / "work").is_dir()
    compress(small, plain, config=quick(), resources=serial)
    assert not (plain / "work").exists()
    assert report.nbytes == size_of(plain), "working data is not counted"
    compress(small, kept, config=quick(), resources=serial)
    assert files(kept) == files(plain)


def test_ratio_and_number_of_gaussians_exclude_each_other(small, tmp_path, quick):
    for arguments in (
        {"ratio": 8, "gaussians": 10},
        {"config": quick(), "ratio": 8},
        {"config": quick(), "gaussians": 1},
    ):
        with pytest.raises(ConfigError):
            compress(small, tmp_path / "a.zarr", **arguments)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("arguments", [{"ratio": 0}, {"gaussians": 0}, {"ratio": -3}, {"gaussians": -3}, {"ratio": 1}])
def test_a_ratio_or_number_that_makes_no_sense_is_refused(arguments, small, tmp_path):
    with pytest.raises(ConfigError, match=r"must lie between 1|at least one is needed"):
        compress(small, tmp_path / "a.zarr", **arguments)
    assert not (tmp_path / "a.zarr").exists()
