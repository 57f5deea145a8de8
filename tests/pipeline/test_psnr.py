"""A PSNR is reached, with a number of Gaussians found out on a sample, and whatever interrupts it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import pilot
from pipeline.compress import compress
from pipeline.pilot import SAMPLE_PIXELS, Sample, find_count, sample_image
from pipeline.plan import Resources
from smartsplat.config import FitConfig, SceneConfig
from smartsplat.errors import BudgetError, ConfigError
from storage.scene import Scene
from storage.source import read_info, read_strips

SERIAL = Resources(executor="serial", workers=1)
SHORT = FitConfig(stages=3, stage_pairs=6, replacements=0, final_pairs=(10,), ssim_pairs=0)


def config(psnr: float, **changes) -> SceneConfig:
    return SceneConfig(psnr=psnr, tile=128, halo=16, fit=SHORT, **changes)


# --- How many Gaussians -----------------------------------------------------------------------------------------------


@given(
    slope=st.floats(0.8, 4),
    at_start=st.floats(15, 45),
    target=st.floats(15, 45),
    pixels=st.integers(10_000, 10**9),
)
def test_the_count_found_reaches_the_target_or_is_refused(slope, at_start, target, pixels):
    sample = Sample(path=Path("a.png"), pixels=min(pixels, SAMPLE_PIXELS), psnr_offset=0.0)
    start = sample.pixels * 3 * 8 / 100 / 36.5

    def measure(count: int) -> float:
        return at_start + slope * math.log2(count / start)

    most, least = sample.pixels // 4, 16
    try:
        count = find_count(measure, target=target, sample=sample, pixels=pixels, bands=3)
    except BudgetError:
        assert measure(most) < target + 0.3
        return
    reached = measure(max(1, round(count * sample.pixels / pixels)))
    assert reached == pytest.approx(target, abs=0.2) or measure(least) > target


def test_a_sample_of_a_smaller_range_is_measured_in_that_of_the_image():
    sample = Sample(path=Path("a.png"), pixels=10_000, psnr_offset=6.0)
    asked: list[int] = []

    def measure(count: int) -> float:
        asked.append(count)
        return 20 + 2 * math.log2(count)

    assert find_count(measure, target=42, sample=sample, pixels=10_000, bands=1) == 256
    assert len(asked) <= 4


# --- The sample -------------------------------------------------------------------------------------------------------


def test_a_small_image_is_its_own_sample(tmp_path, write_tiff, photo):
    path = write_tiff(tmp_path / "a.tif", photo("china", 100, 120))
    assert sample_image(read_info(path), tmp_path) == Sample(path=path, pixels=12_000, psnr_offset=0.0)


@pytest.mark.parametrize(("height", "width"), [(2100, 1100), (300, 9000), (12000, 200)], ids=str)
def test_half_of_a_sample_is_as_busy_as_half_of_the_image(tmp_path, write_tiff, height, width):
    rng = np.random.default_rng(0)
    image = np.full((max(height, width), min(height, width), 1), 90, np.uint8)
    half = len(image) // 2
    image[:half] = rng.integers(0, 255, (half, *image.shape[1:]), np.uint8)
    path = write_tiff(tmp_path / "a.tif", image if height > width else image.transpose(1, 0, 2))
    sample = sample_image(read_info(path), tmp_path)
    info = read_info(sample.path)
    assert sample.pixels == info.height * info.width <= SAMPLE_PIXELS
    assert sample.psnr_offset == 0
    pixels = np.concatenate([strip for _, strip in read_strips(info, strip_height=256)])
    assert (pixels != 90).mean() == pytest.approx(0.5, abs=0.13)


def test_pixels_without_data_are_left_out_of_account(tmp_path, write_tiff):
    image = np.full((1500, 1500, 1), np.nan, np.float32)
    image[:400, :700] = np.linspace(0, 4, 700, dtype=np.float32)[None, :, None]
    path = write_tiff(tmp_path / "a.tif", image)
    sample = sample_image(read_info(path), tmp_path)
    assert sample.pixels < SAMPLE_PIXELS  # windows without any data are no part of it
    assert 0 <= sample.psnr_offset < 6


def test_an_image_without_data_has_no_psnr(tmp_path, write_tiff):
    path = write_tiff(tmp_path / "a.tif", np.full((1500, 1500, 1), np.nan, np.float32))
    with pytest.raises(ConfigError, match="no pixel has data"):
        sample_image(read_info(path), tmp_path)


# --- The scene --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory, photo, write_tiff) -> Path:
    return write_tiff(tmp_path_factory.mktemp("psnr") / "flower.tif", photo("flower", 160, 200))


@pytest.mark.parametrize("psnr", [25.0, 30.0])
def test_the_psnr_asked_for_is_reached_within_two_tenths(image, tmp_path, psnr):
    report = compress(image, tmp_path / "s.zarr", config=config(psnr), resources=SERIAL)
    assert report.quality["psnr"] == pytest.approx(psnr, abs=0.2)
    assert report.gaussians == Scene.open(tmp_path / "s.zarr").manifest.gaussians


def test_a_higher_psnr_takes_more_bytes(image, tmp_path):
    low, high = (
        compress(image, tmp_path / f"{psnr}.zarr", config=config(psnr), resources=SERIAL) for psnr in (26.0, 31.0)
    )
    assert high.nbytes > 1.5 * low.nbytes


@pytest.fixture
def misled(monkeypatch) -> Callable[[float], None]:
    """``misled(factor)``: let the sample tell so many times the Gaussians it takes."""
    found = pilot.find_count

    def mislead(factor: float) -> None:
        monkeypatch.setattr("pipeline.pilot.find_count", lambda *args, **more: round(factor * found(*args, **more)))

    return mislead


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_fit_that_is_far_from_it_goes_on_with_another_number(image, tmp_path, misled, factor):
    misled(factor)
    report = compress(image, tmp_path / "s.zarr", config=config(30.0), resources=SERIAL)
    scene = Scene.open(tmp_path / "s.zarr")
    manifest = scene.manifest
    assert report.quality["psnr"] == pytest.approx(30, abs=0.2)
    assert manifest.rounds
    assert (manifest.rounds[0] > manifest.count) == (factor < 1)
    assert report.gaussians == manifest.rounds[-1] == scene.tiles()[..., 0].sum()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_killed_anywhere_it_ends_with_the_same_bytes(image, tmp_path, walk, files, misled, factor):
    misled(factor)
    settings = config(30.0)
    jobs: list[str] = []
    for _ in walk(image, tmp_path / "whole.zarr", settings, before_job=lambda name, job: jobs.append(name)):
        pass
    compress(image, tmp_path / "whole.zarr", config=settings, resources=SERIAL)
    whole = files(tmp_path / "whole.zarr")
    for stop in range(5, len(jobs), len(jobs) // 4):
        scene = tmp_path / f"{stop}.zarr"
        left = iter(range(stop))

        def die(name: str, job: object, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            for _ in walk(image, scene, settings, before_job=die):
                pass
        compress(image, scene, config=settings, resources=SERIAL)
        assert files(scene) == whole, stop


def test_what_cannot_be_reached_is_refused_and_leaves_nothing(tmp_path, write_tiff):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = write_tiff(tmp_path / "noise.tif", noise)
    with pytest.raises(BudgetError, match="use a lower --psnr"):
        compress(path, tmp_path / "s.zarr", config=config(50.0), resources=SERIAL)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["noise.tif"]


def test_a_scene_for_another_psnr_is_another_scene(image, tmp_path):
    compress(image, tmp_path / "s.zarr", config=config(26.0), resources=SERIAL)
    with pytest.raises(ConfigError, match=r"psnr: 26.0 or 27.0 now"):
        compress(image, tmp_path / "s.zarr", config=config(27.0), resources=SERIAL)


@pytest.mark.parametrize("psnr", [0, -3, 56, math.nan, math.inf])
def test_a_psnr_that_makes_no_sense_is_refused(psnr):
    with pytest.raises(ConfigError, match="PSNR"):
        SceneConfig(psnr=psnr)
    with pytest.raises(ConfigError, match="a PSNR or a number"):
        dataclasses.replace(SceneConfig(psnr=30), count=3)
