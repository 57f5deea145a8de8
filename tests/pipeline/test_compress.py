"""The whole journey: the bytes promised, the same bytes wherever and however often interrupted, and nothing left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.compress import compress, prepare, steps
from pipeline.decode import open_scene
from pipeline.evaluate import verify
from pipeline.executors import SerialExecutor
from pipeline.plan import Resources
from pipeline.progress import NoProgress
from smartsplat.config import FitConfig, SceneConfig
from smartsplat.errors import ConfigError, SmartsplatError, StorageFullError, StoreError

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
CLOSE = FitConfig(sweeps=1, steps=15)
TINY = SceneConfig(nominal_ratio=4, tile=64, halo=8, fit=FitConfig(sweeps=1, steps=1, color_iterations=2))
DASK = Resources(executor="dask", workers=2)


def size_of(scene: Path) -> int:
    return sum(file.stat().st_size for file in scene.rglob("*") if file.is_file())


def run_until(step: str, source: Path, scene: Path, config: SceneConfig, resources: Resources) -> None:
    """Do the steps before `step`, and stop as if killed there."""
    preparation = prepare(source, scene, config=config, resources=resources)
    with SerialExecutor(threads=1) as executor:
        for each in steps(preparation, executor, progress=NoProgress()):
            if each.name == step:
                return
            each.work()
    raise AssertionError(f"there is no step {step!r}")


# --- What comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scenes_made_here_and_on_workers_are_the_same_bytes(tmp_path, photo, write_tiff, quick, serial, files):
    source = write_tiff(tmp_path / "a.tif", photo("flower", 150, 200))
    config = quick(fit=FitConfig(sweeps=2, steps=4))
    here = compress(source, tmp_path / "serial.zarr", config=config, resources=serial)
    there = compress(source, tmp_path / "dask.zarr", config=config, resources=DASK)
    assert files(tmp_path / "serial.zarr") == files(tmp_path / "dask.zarr")
    assert here.quality == there.quality


def test_scenes_made_on_one_thread_and_on_two_are_the_same_bytes(tmp_path, photo, write_tiff, quick, serial, files):
    source, config = write_tiff(tmp_path / "a.tif", photo("china", 100, 130)), quick()
    compress(source, tmp_path / "serial.zarr", config=config, resources=serial)
    two_threads = Resources(executor="serial", workers=2)
    compress(source, tmp_path / "threads.zarr", config=config, resources=two_threads)
    assert files(tmp_path / "serial.zarr") == files(tmp_path / "threads.zarr")


@pytest.mark.parametrize("name", ["china", "flower"])
@pytest.mark.parametrize(("ratio", "height", "width"), [(4, 150, 200), (7.5, 200, 250), (12, 240, 320), (40, 427, 640)])
def test_the_ratio_is_kept_and_its_bytes_are_used(
    name, ratio, height, width, tmp_path, photo, write_tiff, quick, serial
):
    pixels = photo(name, height, width)
    source = write_tiff(tmp_path / "a.tif", pixels)
    config = quick(nominal_ratio=ratio, tile=128, fit=FitConfig(sweeps=1, steps=1))
    report = compress(source, tmp_path / "a.zarr", config=config, resources=serial)
    size = size_of(tmp_path / "a.zarr")
    assert 0.9 * pixels.nbytes / ratio <= size <= pixels.nbytes / ratio
    assert (report.nbytes, report.nominal_ratio) == (size, ratio)
    assert report.measured_ratio == pixels.nbytes / size


def test_more_bytes_give_a_better_image(tmp_path, photo, write_tiff, quick, serial):
    source = write_tiff(tmp_path / "a.tif", photo("flower", 200, 200))
    psnrs = [
        compress(source, tmp_path / f"{ratio}.zarr", config=quick(nominal_ratio=ratio), resources=serial).quality[
            "psnr"
        ]
        for ratio in (5, 10, 20)
    ]
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
    assert report.gaussians == count
    mean_square = float(((image.astype(float) - pixels) ** 2).mean())
    expected = None if mean_square == 0 else 10 * np.log10(255**2 / mean_square)
    assert report.quality["psnr"] == (expected if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize("level", [0, 100, 255])
def test_a_flat_image_comes_back_flat(level, tmp_path, write_tiff, quick, serial):
    pixels = np.full((130, 140, 3), level, np.uint8)
    source = write_tiff(tmp_path / "a.tif", pixels)
    compress(source, tmp_path / "a.zarr", config=quick(count=1000, fit=FitConfig(sweeps=2)), resources=serial)
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
def test_other_settings_are_refused_by_name(finished, small, tmp_path, quick, serial, files):
    scene = tmp_path / "a.zarr"
    if finished:
        compress(small, scene, config=quick(), resources=serial)
    else:
        run_until("sample", small, scene, quick(), serial)
    before = files(scene)
    with pytest.raises(ConfigError) as caught:
        compress(small, scene, config=quick(nominal_ratio=9, seed=4, fit=FitConfig(steps=7)), resources=serial)
    message = str(caught.value)
    assert str(scene) in message
    for difference in ("nominal_ratio: 8.0 or 9.0", "seed: 0 or 4", "fit.steps: 3 or 7"):
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


# --- Killed and taken up again ----------------------------------------------------------------------------------------


def command(source: Path, scene: Path, *options: str) -> list[str]:
    settings = ["--ratio", "5", "--preset", "draft", "--tile", "64", "--workers", "1"]
    return [*COMMAND, "compress", str(source), str(scene), *settings, *options]


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def all_gone(processes: list[psutil.Process], *, seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def killed(arguments: list[str], *, lines: int, seconds: float) -> bool:
    """Run a command, and kill it some `seconds` after it has written so many `lines`; return whether it got there."""
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for _ in range(lines):
            if not process.stderr.readline():
                assert process.wait() == 0
                return False
        time.sleep(seconds)
        processes = family(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert all_gone(processes, seconds=5), "workers outlive a killed run"
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "lines"), [("serial", 3), ("dask", 5)])
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(executor, lines, tmp_path, photo, write_tiff, files):
    source = write_tiff(tmp_path / "a.tif", photo("china", 100, 130))
    subprocess.run(command(source, tmp_path / "whole.zarr"), check=True, capture_output=True)
    random.seed(lines)
    scene, kills = tmp_path / "killed.zarr", 0
    # The first kill falls while libraries are imported or the scene is made, the others into one stage after the other.
    arguments = command(source, scene, "--executor", executor)
    while killed(arguments, lines=lines if kills else 0, seconds=random.uniform(0, 0.15) + (0 if kills else 0.7)):
        kills += 1
    assert kills >= 4
    subprocess.run(arguments, check=True, capture_output=True)
    assert files(scene) == files(tmp_path / "whole.zarr")
    assert not list(tmp_path.rglob("*.partial"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "killed.zarr", "whole.zarr"]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path, photo, write_tiff, files):
    source = write_tiff(tmp_path / "a.tif", photo("flower", 100, 130))
    started = time.monotonic()
    subprocess.run(command(source, tmp_path / "whole.zarr", "--executor", "serial"), check=True, capture_output=True)
    whole = time.monotonic() - started
    random.seed(1)
    for part in range(3):
        scene = tmp_path / f"{part}.zarr"
        arguments = command(source, scene, "--executor", "serial")
        killed(arguments, lines=0, seconds=whole * random.uniform(part, part + 1) / 3)
        subprocess.run(arguments, check=True, capture_output=True)
        assert files(scene) == files(tmp_path / "whole.zarr")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture(scope="module")
def halfway(tmp_path_factory, photo, write_tiff, serial, files) -> tuple[Path, Path, dict[str, str]]:
    """An image, a scene of it that stopped before it was scored, and the bytes it should end with."""
    folder = tmp_path_factory.mktemp("halfway")
    source = write_tiff(folder / "a.tif", photo("china", 70, 100))
    run_until("evaluate", source, folder / "half.zarr", TINY, serial)
    compress(source, folder / "whole.zarr", config=TINY, resources=serial)
    return source, folder / "half.zarr", files(folder / "whole.zarr")


def all_steps(source: Path, scene: Path, config: SceneConfig, resources: Resources) -> list[str]:
    preparation = prepare(source, scene, config=config, resources=resources)
    names = [step.name for step in steps(preparation, SerialExecutor(threads=1), progress=NoProgress())]
    shutil.rmtree(scene)
    return names


@pytest.mark.slow
def test_a_run_that_stops_before_any_step_resumes_to_the_same_bytes(halfway, tmp_path, serial, files):
    source, _, expected = halfway
    names = all_steps(source, tmp_path / "names.zarr", TINY, serial)
    assert len(names) == len(set(names)) >= 10
    for number, name in enumerate(names):
        scene = tmp_path / f"{number}.zarr"
        run_until(name, source, scene, TINY, serial)
        compress(source, scene, config=TINY, resources=serial)
        assert files(scene) == expected, name


def test_a_scene_halfway_is_no_scene_to_look_at(halfway):
    for look in (open_scene, verify):
        with pytest.raises(StoreError, match="not finished"):
            look(halfway[1])


def damaged_copies(half: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield copies of an unfinished scene, in each of which one file is changed, cut or gone; says which and how."""
    random.seed(5)

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        file.write_bytes(bytes(data))

    def cut(file: Path) -> None:
        os.truncate(file, file.stat().st_size // 2)

    for array in sorted({file.parent for file in half.rglob("*") if file.is_file()}):
        chunks = sorted(array.glob("c.*"))
        for file in [array / "zarr.json", *random.sample(chunks, min(1, len(chunks)))]:
            name = str(file.relative_to(half))
            for harm in (flip, cut, Path.unlink):
                scene = folder / "damaged.zarr"
                shutil.copytree(half, scene)
                harm(scene / name)
                yield f"{harm.__name__} {name}", scene
                shutil.rmtree(scene)


@pytest.mark.slow
def test_damage_to_an_unfinished_scene_is_repaired_or_refused_never_passed_on(halfway, tmp_path, serial, files):
    source, half, expected = halfway
    repaired: list[str] = []
    refused: dict[str, str] = {}
    wrong: list[str] = []
    for harm, scene in damaged_copies(half, tmp_path):
        try:
            compress(source, scene, config=TINY, resources=serial)
        except SmartsplatError as error:
            refused[harm] = str(error)
            continue
        except Exception as error:
            wrong.append(f"{harm}: {error!r}")
            continue
        (repaired if files(scene) == expected else wrong).append(harm)
    assert wrong == [], "\n".join(wrong)
    assert all("damaged.zarr" in message for message in refused.values())
    # Only metadata cannot be made again; every chunk can.
    assert [harm for harm in refused if not harm.endswith("zarr.json")] == []
    assert len(repaired) >= 30


@pytest.mark.slow
def test_damage_in_chunks_at_the_edge_of_the_image_is_repaired(tmp_path, photo, write_tiff, quick, serial, files):
    """Chunks that the edge cuts are written in part, which must not read what was there."""
    source = write_tiff(tmp_path / "a.tif", photo("flower", 300, 290))
    config = quick(tile=32, halo=4, count=400, fit=FitConfig(sweeps=1, steps=0))
    run_until("evaluate", source, tmp_path / "half.zarr", config, serial)
    shutil.copytree(tmp_path / "half.zarr", tmp_path / "damaged.zarr")
    compress(source, tmp_path / "half.zarr", config=config, resources=serial)
    work = tmp_path / "damaged.zarr" / "work"
    harmed = [max((work / "pixels").glob("c.*")), work / "encoded" / "c.1.1.0", work / "encoded" / "c.0.1.0"]
    harmed += [tmp_path / "damaged.zarr" / "gaussians" / "c.1.1.0.0"]
    for file in harmed:
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 8
        file.write_bytes(bytes(data))
    compress(source, tmp_path / "damaged.zarr", config=config, resources=serial)
    assert files(tmp_path / "damaged.zarr") == files(tmp_path / "half.zarr")


def test_a_source_changed_halfway_is_refused(halfway, tmp_path, serial, photo, write_tiff):
    _, half, _ = halfway
    scene = tmp_path / "half.zarr"
    shutil.copytree(half, scene)
    other = write_tiff(tmp_path / "a.tif", 255 - photo("china", 70, 100))
    with pytest.raises(ConfigError, match="another image now"):
        compress(other, scene, config=TINY, resources=serial)


# --- A disk that runs full --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kibibytes)``: a folder on a disk of that size, which may be called again to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def resize(kibibytes: int) -> Path:
        nonlocal mounted
        options = f"size={kibibytes}k" + (",remount" if mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a small disk: {done.stderr.decode().strip()}")
        mounted = True
        return folder

    yield resize
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_full_at_any_moment_is_said_to_be_and_the_scene_resumes(small_disk, halfway, serial, files):
    source, _, expected = halfway
    full = 0
    for kibibytes in range(12, 4000, 12):
        scene = small_disk(kibibytes) / "a.zarr"
        try:
            compress(source, scene, config=TINY, resources=serial)
        except StorageFullError:  # and nothing else: a bare OSError would fail the test
            full += 1
        else:
            break
    assert full >= 10
    assert files(scene) == expected
    assert not list(scene.parent.rglob("*.partial"))
