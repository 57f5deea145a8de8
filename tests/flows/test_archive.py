"""An archive goes on whatever becomes of one scene, does nothing twice, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import psutil
import pytest
from obstore.store import from_url
from PIL import Image
from sklearn.datasets import load_sample_images

from flows.archive import LEFT, ArchiveScene, ArchiveSettings, outlook
from flows.archive_report import page_of, write_reports
from flows.settings import scene_config
from pipeline.plan import Resources
from tests.storage.stores import BUCKET, s3_server

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos, one of them in a folder of its own, and half a PNG."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for index, name in enumerate(("china.png", "flower.png", "sub/roof.png")):
        pixels = load_sample_images().images[index % 2][100 + 40 * index : 200 + 40 * index, 200:330]
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name)
    data = (folder / "china.png").read_bytes()
    (folder / "broken.png").write_bytes(data[: len(data) // 2])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states(destination: Path) -> dict[str, str]:
    report = json.loads((destination / "report.json").read_text())
    return {scene["name"]: scene["state"] for scene in report["scenes"]}


@pytest.fixture(scope="session")
def compressed_archive(smartsplat, images: Path, quick, tmp_path_factory) -> tuple[Path, Any]:
    """The archive's scenes, and the run of the command that made them; not to be changed."""
    destination = tmp_path_factory.mktemp("archive") / "scenes"
    return destination, smartsplat("--log-json", "archive", images, destination, *quick, "--json", "--scenes", "2")


def test_one_image_that_cannot_be_read_does_not_keep_the_others_from_being_done(compressed_archive):
    destination, done = compressed_archive
    assert done.returncode == 1
    ended = {"broken.png": "failed", "china.png": "done", "flower.png": "done", "sub/roof.png": "done"}
    assert states(destination) == ended
    found = json.loads(done.stdout)
    assert {scene["name"]: scene["state"] for scene in found["scenes"]} == ended
    assert found["totals"]["states"] == {"done": 3, "failed": 1}
    assert "truncated or damaged" in found["scenes"][0]["message"]
    assert "1 of 4 scenes failed, the others are done; run the same command again" in done.stderr
    assert not (destination / "broken.png.zarr").exists()


def test_what_is_logged_as_json_says_which_scene(compressed_archive):
    _, done = compressed_archive
    records = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    failed = [record for record in records if "broken.png" in record["message"]]
    assert failed
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert failed[0]["level"] == "warning"
    assert failed[0]["scene"].endswith("broken.png.zarr")


def test_the_scenes_of_an_archive_are_those_of_compress(compressed_archive, smartsplat, images, quick, tmp_path):
    destination, _ = compressed_archive
    smartsplat("compress", images / "sub" / "roof.png", tmp_path / "roof.zarr", *quick)
    assert contents(destination / "sub" / "roof.png.zarr") == contents(tmp_path / "roof.zarr")


def test_the_report_shows_each_scene_and_both_pictures(compressed_archive):
    destination, _ = compressed_archive
    page = (destination / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * 3
    assert page.count("<circle") == 3
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "the page needs no other file"
    assert "truncated or damaged" in page
    sizes = {}
    for kind in ("before", "after"):
        with Image.open(destination / "thumbnails" / "sub" / f"roof.png.{kind}.jpg") as image:
            sizes[kind] = np.asarray(image.convert("RGB"), float)
    assert sizes["before"].shape == sizes["after"].shape == (100, 130, 3)
    differs = np.abs(sizes["before"] - sizes["after"]).mean()
    assert differs < np.abs(sizes["before"] - sizes["after"][::-1]).mean() / 3, "the same picture, the same way up"


def test_a_second_run_does_only_what_failed(compressed_archive, smartsplat, images, quick, tmp_path):
    destination, archive = tmp_path / "scenes", tmp_path / "images"
    shutil.copytree(compressed_archive[0], destination)
    shutil.copytree(images, archive)
    before = contents(destination / "china.png.zarr")
    again = smartsplat("archive", archive, destination, *quick)
    assert again.returncode == 1
    assert states(destination) == {
        "broken.png": "failed",
        "china.png": "skipped",
        "flower.png": "skipped",
        "sub/roof.png": "skipped",
    }
    shutil.copy(archive / "flower.png", archive / "broken.png")
    shutil.copy(archive / "flower.png", archive / "new.png")
    assert smartsplat("archive", archive, destination, *quick, "--retry-failed").returncode == 0
    assert states(destination)["broken.png"] == "done"
    assert states(destination)["new.png"] == "left"
    assert smartsplat("archive", archive, destination, *quick).returncode == 0
    assert states(destination)["new.png"] == "done"
    assert contents(destination / "china.png.zarr") == before
    page = (destination / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * 5


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(smartsplat, images, quick, tmp_path):
    destination = tmp_path / "scenes"
    done = smartsplat("archive", images, destination, *quick, "--dry-run", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    plans = {scene["name"]: scene["plan"] for scene in found["scenes"]}
    assert plans["china.png"] == plans["sub/roof.png"] == "compress"
    assert found["totals"]["to_do"] >= 3
    assert found["totals"]["seconds"] is not None
    assert not destination.exists()
    assert "china.png" in smartsplat("archive", images, destination, *quick, "--dry-run").stdout


def test_scenes_made_with_other_settings_are_not_touched(compressed_archive, smartsplat, images, quick, tmp_path):
    destination = tmp_path / "scenes"
    shutil.copytree(compressed_archive[0], destination)
    before = contents(destination / "china.png.zarr")
    done = smartsplat("archive", images / "*.png", destination, *quick, "--seed", "5", "--json")
    assert done.returncode == 1
    found = {scene["name"]: scene for scene in json.loads(done.stdout)["scenes"]}
    assert "made with other settings" in found["china.png"]["message"]
    assert contents(destination / "china.png.zarr") == before


@pytest.mark.parametrize(
    ("archive", "destination", "options", "message"),
    [
        ("none", "scenes", [], "no such folder or list"),
        ("images", "none/scenes", [], "the folder .*none does not exist"),
        ("images", "images/china.png", [], "exists and is not a folder"),
        ("images", "scenes", ["--retry-failed"], "no report of an earlier run"),
        ("images", "scenes", ["--scenes", "0"], "at least one is needed"),
        ("images", "scenes", ["--ratio", "0.5"], "ratio"),
    ],
)
def test_bad_requests_are_refused_before_any_work(smartsplat, images, tmp_path, archive, destination, options, message):
    shutil.copytree(images, tmp_path / "images")
    done = smartsplat("archive", tmp_path / archive, tmp_path / destination, *options)
    assert done.returncode == 2, done.stderr
    assert re.search(message, " ".join(done.stderr.split()))
    assert not (tmp_path / "scenes").exists()


# --- Kills ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_archive(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """An archive of two images that take some seconds each, a destination, and the command."""
    archive, destination = tmp_path / "images", tmp_path / "scenes"
    archive.mkdir()
    for index, pixels in enumerate(load_sample_images().images):
        Image.fromarray(pixels).save(archive / f"{index}.png")
    options = ["--preset", "draft", "--tile", "64", "--ratio", "8", "--executor", "serial", "--workers", "1"]
    return archive, destination, [*COMMAND, "archive", str(archive), str(destination), *options]


def scene_processes(of: psutil.Process) -> list[psutil.Process]:
    return [child for child in of.children(recursive=True) if "flows.scene_process" in child.cmdline()]


def wait_for_fit(process: subprocess.Popen[str], scene: Path) -> psutil.Process:
    """Return the process that works on a scene, once it does."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        children = scene_processes(psutil.Process(process.pid))
        if children and (scene / "work" / "progress.json").exists():
            return children[0]
        time.sleep(0.05)
    raise AssertionError("it never began")


def ended(process: psutil.Process) -> bool:
    try:
        process.wait(30)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def start(command: list[str], log: Path) -> subprocess.Popen[str]:
    with log.open("w") as stderr:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, text=True)


def test_a_scene_whose_process_is_killed_fails_alone_and_is_resumed(slow_archive, tmp_path):
    _, destination, command = slow_archive
    with start(command, tmp_path / "log") as process:
        wait_for_fit(process, destination / "0.png.zarr").kill()
        assert process.wait(120) == 1
    assert states(destination) == {"0.png": "failed", "1.png": "done"}
    assert "killed by SIGKILL" in (destination / "report.json").read_text()
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert states(destination) == {"0.png": "done", "1.png": "skipped"}
    assert not list(destination.rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_archive_stops_its_scenes_and_can_be_resumed(slow_archive, tmp_path, number):
    _, destination, command = slow_archive
    with start(command, tmp_path / "log") as process:
        child = wait_for_fit(process, destination / "0.png.zarr")
        process.send_signal(number)
        assert process.wait(60) == 1
        assert ended(child)
    assert "interrupted; run the same command again to resume" in (tmp_path / "log").read_text()
    assert states(destination) == {"0.png": LEFT, "1.png": LEFT}
    assert not list(destination.parent.glob(".*.lock"))


def test_nothing_goes_on_once_the_archives_process_is_killed(slow_archive, tmp_path):
    _, destination, command = slow_archive
    with start(command, tmp_path / "log") as process:
        child = wait_for_fit(process, destination / "0.png.zarr")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        assert ended(child)


def test_a_second_archive_into_the_same_place_is_told_who_works_there(slow_archive, tmp_path):
    _, destination, command = slow_archive
    with start(command, tmp_path / "log") as process:
        wait_for_fit(process, destination / "0.png.zarr")
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert f"another run works on it, process {process.pid}" in " ".join(second.stderr.split())
        process.terminate()


# --- Reports of any size ----------------------------------------------------------------------------------------------


def report_of(index: int) -> dict[str, Any]:
    quality = {"psnr": 30.0 + index % 9, "ssim": 0.9, "ms_ssim": 0.95}
    size = {"bytes": 1000 + index, "bits_per_pixel": 0.1 + 0.01 * index, "measured_ratio": 100.0}
    return {**quality, **size, "degraded": []}


def test_a_report_escapes_names_and_knows_scenes_without_quality(tmp_path: Path):
    settings = ArchiveSettings(config=scene_config("draft"), resources=Resources())
    named = ArchiveScene(name="<b>&.png", source="x", path=tmp_path / "a.zarr", state="failed", message="<script>")
    exact = ArchiveScene(
        name="exact", source="x", path=tmp_path / "e.zarr", state="done", report=report_of(1) | {"psnr": None}
    )
    write_reports(tmp_path, [named, exact], settings, html=True)
    page = (tmp_path / "report.html").read_text()
    assert "<b>&.png" not in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<circle" not in page


def test_a_page_of_many_scenes_has_a_point_for_each(tmp_path: Path):
    scenes = [
        ArchiveScene(name=f"{n}", source="x", path=tmp_path / f"{n}.zarr", state="done", report=report_of(n))
        for n in range(1000)
    ]
    assert page_of(tmp_path, scenes).count("<circle") == 1000


def test_the_outlook_grows_with_the_work_and_shrinks_with_the_cores(tmp_path: Path):
    def seconds(work: float, workers: int) -> float:
        scene = ArchiveScene(name="a", source="x", path=tmp_path / "a.zarr", work=work)
        settings = ArchiveSettings(config=scene_config("draft"), resources=Resources(workers=workers))
        return outlook([scene], settings)["totals"]["seconds"]

    assert seconds(2e10, 1) > seconds(1e10, 1) > 0
    assert seconds(1e10, 1) >= seconds(1e10, 2)


# --- Object stores ----------------------------------------------------------------------------------------------------


def test_images_in_a_store_are_compressed_as_files_are_and_taken_up_again_when_it_comes_back(
    smartsplat, images, quick, compressed_archive, tmp_path
):
    destination = tmp_path / "scenes"
    with s3_server() as store:
        environment = os.environ | store.environment | {"SMARTSPLAT_RETRY_SECONDS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in store.environment.items():
                patch.setenv(name, value)
            bucket = from_url(f"s3://{BUCKET}")
            for name in ("china.png", "sub/roof.png"):
                obstore.put(bucket, f"photos/{name}", (images / name).read_bytes())
        store.fails = lambda number, method, path: "500" if "roof.png" in path else None
        command = ("archive", f"s3://{BUCKET}/photos/", destination, *quick)
        first = smartsplat(*command, env=environment)
        assert first.returncode == 1, first.stderr
        assert states(destination) == {"china.png": "done", "sub/roof.png": "failed"}
        assert "the store does not answer" in first.stderr
        store.fails = lambda number, method, path: "500" if number % 3 == 0 else None
        environment["SMARTSPLAT_RETRY_SECONDS"] = "60"
        again = smartsplat(*command, env=environment)
        assert again.returncode == 0, again.stderr
        assert states(destination) == {"china.png": "skipped", "sub/roof.png": "done"}
    for name in ("china.png.zarr", "sub/roof.png.zarr"):
        assert contents(destination / name) == contents(compressed_archive[0] / name)
