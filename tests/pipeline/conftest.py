"""Small images, the scenes made of them step by step, and ways to look into a scene's files and to damage them."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from sklearn.datasets import load_sample_images

from pipeline.compress import Step, compress, prepare, steps
from pipeline.decode import SceneView, open_scene
from pipeline.executors import Outcome, SerialExecutor
from pipeline.plan import Resources
from pipeline.progress import NoProgress
from smartsplat.config import FitConfig, SceneConfig

SERIAL = Resources(executor="serial", workers=1)  # threads that spin for each other are slow on a busy machine

# All kinds of passes, each as short as it can be: colors, coarse levels, an insertion, full resolution.
EVERY_PASS = FitConfig(
    start_fraction=0.3,
    color_sweeps=1,
    color_iterations=2,
    stages=1,
    stage_pairs=4,
    stage_factor=2,
    replacements=0,
    coarse_factors=(4,),
    coarse_pairs=2,
    final_pairs=(2,),
    ssim_pairs=2,
)


class _Watched(SerialExecutor):
    """A serial executor that calls `before` with the function's name and the job before each runs."""

    def __init__(self, before: Callable[[str, Any], None]) -> None:
        super().__init__(threads=1)
        self._before = before

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Outcome]:
        for index, job in enumerate(jobs):
            self._before(function.__name__, job)
            (outcome,) = super().map(function, [job])
            yield dataclasses.replace(outcome, index=index)


def _walk(
    source: Path, scene: Path, config: SceneConfig, *, before_job: Callable[[str, Any], None] = lambda name, job: None
) -> Iterator[Step]:
    preparation = prepare(source, scene, config=config, resources=SERIAL)
    with _Watched(before_job) as executor:
        for step in steps(preparation, executor, progress=NoProgress()):
            yield step
            step.work()


def _run_until(step: str, source: Path, scene: Path, config: SceneConfig) -> None:
    for each in _walk(source, scene, config):
        if each.name == step:
            return
    raise AssertionError(f"there is no step {step!r}")


def _photo(name: str, height: int, width: int) -> np.ndarray:
    china, flower = load_sample_images().images
    pixels = {"china": china, "flower": flower}[name]
    y0, x0 = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[y0 : y0 + height, x0 : x0 + width])


def _write_tiff(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W, bands) pixels; bands beyond gray and RGB are declared to be no alpha."""
    if pixels.shape[2] == 1:
        tifffile.imwrite(path, pixels[..., 0], photometric="minisblack")
    else:
        photometric = "rgb" if pixels.shape[2] == 3 else "minisblack"
        tifffile.imwrite(path, pixels, photometric=photometric, planarconfig="contig")
    return path


def _files(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(bytes(data))


def _flip_tile(scene: Path, row: int, col: int) -> None:
    view = open_scene(scene)
    rows, cols = view.manifest.grid.shape
    height, width = min(8, rows), min(8, cols)
    (shard,) = (scene / "gaussians").glob(f"c.{row // height}.{col // width}.0.0")
    data = shard.read_bytes()
    # The shard ends with its index: offset and length of each tile, and a CRC-32C.
    index = data[-(16 * height * width + 4) : -4]
    offset, length = struct.unpack_from("<QQ", index, 16 * ((row % height) * width + col % width))
    _flip(shard, offset + length // 2)


@pytest.fixture(scope="session")
def photo() -> Callable[[str, int, int], np.ndarray]:
    """``photo(name, height, width)``: the middle of the photo ``china`` or ``flower``, uint8 RGB."""
    return _photo


@pytest.fixture(scope="session")
def write_tiff() -> Callable[[Path, np.ndarray], Path]:
    """``write_tiff(path, pixels)``: write (H, W, bands) pixels, none of the bands alpha."""
    return _write_tiff


@pytest.fixture(scope="session")
def files() -> Callable[[Path], dict[str, str]]:
    """``files(folder)``: the digest of every file below it."""
    return _files


@pytest.fixture(scope="session")
def flip() -> Callable[[Path, int], None]:
    """``flip(file, at)``: flip one bit of the byte at a place of a file."""
    return _flip


@pytest.fixture(scope="session")
def flip_tile() -> Callable[[Path, int, int], None]:
    """``flip_tile(scene, row, col)``: flip one bit in the stream of a tile."""
    return _flip_tile


@pytest.fixture(scope="session")
def quick() -> Callable[..., SceneConfig]:
    """``quick(...)``: settings for a scene in a fraction of a second; any of `SceneConfig` can be given."""

    def config(**changes: object) -> SceneConfig:
        given = {"tile": 64, "halo": 8, "fit": EVERY_PASS} | changes
        if "count" not in given:
            given.setdefault("nominal_ratio", 8.0)
        return SceneConfig(**given)

    return config


@pytest.fixture(scope="session")
def walk() -> Callable[..., Iterator[Step]]:
    """``walk(source, scene, config, before_job=...)``: yield each step before it is done; to stop is to be killed."""
    return _walk


@pytest.fixture(scope="session")
def run_until() -> Callable[..., None]:
    """``run_until(step, source, scene, config)``: do the steps before `step`, and stop as if killed there."""
    return _run_until


@pytest.fixture(scope="session")
def serial() -> Resources:
    """Everything in this process."""
    return SERIAL


@pytest.fixture(scope="session")
def photo_scene(tmp_path_factory: pytest.TempPathFactory, quick: Callable[..., SceneConfig]) -> Path:
    """A scene of 4 x 5 tiles of a photo, 230 x 290 px; not to be changed."""
    folder = tmp_path_factory.mktemp("photo")
    _write_tiff(folder / "china.tif", _photo("china", 230, 290))
    compress(folder / "china.tif", folder / "china.zarr", config=quick(), resources=SERIAL)
    return folder / "china.zarr"


@pytest.fixture(scope="session")
def photo_view(photo_scene: Path) -> SceneView:
    """`photo_scene`, opened."""
    return open_scene(photo_scene)
