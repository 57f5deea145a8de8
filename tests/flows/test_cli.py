"""What a person meets: one line where something is wrong, the right exit code, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

FAILED, BAD_INPUT = 1, 2


def only_json(done: subprocess.CompletedProcess[str]) -> dict:
    """Return what a run with ``--json`` printed: one object on one line, and nothing else."""
    assert done.stdout.count("\n") == 1, done.stdout
    values = json.loads(done.stdout)
    assert isinstance(values, dict)
    return values


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(folder)), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def flip_tile(scene: Path, row: int, col: int) -> None:
    """Flip one bit in the stream of a tile of a scene of one shard."""
    (shard,) = (scene / "gaussians").glob("c.*")
    data = bytearray(shard.read_bytes())
    rows, cols = json.loads((scene / "gaussians" / "zarr.json").read_bytes())["shape"][:2]
    # The shard ends with its index: offset and length of each tile, and a CRC-32C.
    index = data[-(16 * rows * cols + 4) : -4]
    offset, length = struct.unpack_from("<QQ", index, 16 * (row * cols + col))
    data[offset + length // 2] ^= 1
    shard.write_bytes(bytes(data))


@pytest.fixture
def scene(compressed, tmp_path) -> Path:
    """A copy of the scene, 3 x 4 tiles, to be changed."""
    return Path(shutil.copytree(compressed[0], tmp_path / "scene.zarr"))


# --- Every command does what it says ----------------------------------------------------------------------------------


def test_compress_reports_what_came_of_it(compressed, photo_file):
    path, done = compressed
    assert done.returncode == 0, done.stderr
    values = only_json(done)
    size = sum(len(data) for data in contents(path).values())
    assert (values["scene"], values["source"]) == (str(path), str(photo_file))
    assert (values["shape"], values["dtype"], values["tiles"]) == ([150, 200, 3], "uint8", 12)
    assert (values["bytes"], values["nominal_ratio"]) == (size, 8)
    assert 8 <= values["measured_ratio"] == 150 * 200 * 3 / size
    assert values["psnr"] > 18
    assert values["seconds"]


def test_compress_again_says_it_is_finished_and_does_nothing(compressed, smartsplat, photo_file, quick):
    before = contents(compressed[0])
    done = smartsplat("compress", photo_file, compressed[0], *quick)
    assert done.returncode == 0
    assert "finished before: nothing to do" in done.stdout
    assert done.stderr == ""
    assert contents(compressed[0]) == before
    assert only_json(smartsplat("compress", photo_file, compressed[0], *quick, "--json"))["seconds"] == {}


def test_compress_shows_its_stages_and_a_table(smartsplat, photo_file, tmp_path, quick):
    done = smartsplat("compress", photo_file, tmp_path / "a.zarr", *quick, "--keep-work")
    assert done.returncode == 0
    stages = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert stages[0] == "ingest"
    assert stages[-2:] == ["encode", "evaluate"]
    assert "PSNR" in done.stdout
    assert (tmp_path / "a.zarr" / "work").is_dir()


def test_plan_says_what_would_be_done_and_writes_nothing(smartsplat, photo_file, tmp_path, quick, compressed):
    before = listing(photo_file.parent)
    done = smartsplat("plan", photo_file, *quick, "--json", cwd=tmp_path)
    assert done.returncode == 0
    values = only_json(done)
    assert (values["tiles"], values["byte_budget"]) == ([3, 4], 150 * 200 * 3 // 8)
    assert values["gaussians"] == only_json(compressed[1])["gaussians"]
    assert "insert" in values["passes"][-2]
    assert f"insert, {values['gaussians']} Gaussians" in values["passes"]
    assert values["phases"] >= len([each for each in values["passes"] if "insert" not in each])
    text = smartsplat("plan", photo_file, *quick, cwd=tmp_path)
    assert text.returncode == 0
    assert str(values["gaussians"]) in text.stdout
    assert listing(photo_file.parent) == before
    assert list(tmp_path.iterdir()) == []


def test_a_psnr_is_planned_for_reached_and_refused_where_it_cannot_be(smartsplat, photo_file, tmp_path):
    given = ("--psnr", "26", "--preset", "draft", "--tile", "128")
    planned = only_json(smartsplat("plan", photo_file, *given, "--json"))
    done = smartsplat("compress", photo_file, tmp_path / "a.zarr", *given, "--json")
    assert done.returncode == 0
    values = only_json(done)
    assert values["psnr"] == pytest.approx(26, abs=0.2)
    assert (planned["psnr"], planned["byte_budget"], planned["gaussians"]) == (26, None, values["gaussians"])
    trials = [line for line in done.stderr.splitlines() if line.startswith("trial with ")]
    assert 2 <= len(trials) <= 4
    again = smartsplat("compress", photo_file, tmp_path / "a.zarr", *given)
    assert (again.returncode, again.stderr) == (0, "")
    too_high = smartsplat("compress", photo_file, tmp_path / "b.zarr", "--psnr", "55", "--preset", "draft")
    assert too_high.returncode == BAD_INPUT
    assert "use a lower --psnr" in too_high.stderr
    assert not (tmp_path / "b.zarr").exists()


def test_info_says_what_a_scene_is(smartsplat, compressed):
    path, done = compressed
    values = only_json(smartsplat("info", path, "--json"))
    report = only_json(done)
    assert values["complete"] is True
    assert (values["bytes"], values["measured_ratio"]) == (report["bytes"], report["measured_ratio"])
    assert values["quality"]["psnr"] == report["psnr"]
    text = smartsplat("info", path)
    assert text.returncode == 0
    assert "china.png" in text.stdout


def test_info_names_the_worst_and_the_best_tile(smartsplat, compressed, photo_file):
    tiles = only_json(smartsplat("info", compressed[0], "--json"))["tile_quality"]
    measured = only_json(smartsplat("evaluate", compressed[0], photo_file, "--json"))["tiles"]
    for which in ("worst", "best"):
        assert re.fullmatch(r"\([012], [0123]\)", tiles[which]["tile"])
        assert tiles[which]["psnr"] == pytest.approx(measured[which]["psnr"], abs=0.051)  # stored to 0.1 dB
    assert tiles["worst"]["psnr"] < tiles["best"]["psnr"]


def test_evaluate_draws_a_map_and_refuses_one_that_cannot_be_written_before_any_work(
    smartsplat, compressed, photo_file, tmp_path
):
    done = smartsplat("evaluate", compressed[0], photo_file, "--map", tmp_path / "map.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == "RGB"
    refused(smartsplat("evaluate", compressed[0], photo_file, "--map", tmp_path / "map.bmp"), "extension '.bmp'")
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_status_of_a_finished_scene(smartsplat, compressed):
    values = only_json(smartsplat("status", compressed[0], "--json"))
    assert values["complete"] is True
    assert values["tiles"] == {"done": 12, "failed": {}, "missing": []}
    assert "complete" in smartsplat("status", compressed[0]).stdout


def test_status_of_an_unfinished_scene_names_what_is_missing(smartsplat, photo_file, tmp_path):
    from pipeline.compress import prepare, steps
    from pipeline.executors import SerialExecutor
    from pipeline.plan import Resources
    from pipeline.progress import NoProgress
    from smartsplat.config import SceneConfig

    config = SceneConfig(count=100, tile=64, halo=8)
    preparation = prepare(photo_file, tmp_path / "a.zarr", config=config, resources=Resources(executor="serial"))
    with SerialExecutor(threads=1) as executor:
        for step in steps(preparation, executor, progress=NoProgress())[:3]:
            step.work()
    values = only_json(smartsplat("status", tmp_path / "a.zarr", "--json"))
    assert values["complete"] is False
    stages = {stage["stage"]: (stage["done"], stage["total"]) for stage in values["stages"]}
    assert (stages["ingest"], stages["sample"], stages["encode"]) == ((1, 1), (12, 12), (0, 12))
    assert values["tiles"]["done"] == 0
    assert len(values["tiles"]["missing"]) == 12
    text = smartsplat("status", tmp_path / "a.zarr")
    assert text.returncode == 0
    assert "unfinished: run compress again" in text.stdout
    assert "(2, 3)" in text.stdout or "12: " in text.stdout


def test_render_writes_the_image_the_region_and_the_overview(smartsplat, compressed, tmp_path):
    for name, options in (("a.png", ()), ("b.tif", ("--region", "10:60,20:120")), ("c.jpg", ("--scale", "0.5"))):
        done = smartsplat("render", compressed[0], tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "c.jpg") as overview:
        whole = np.asarray(image)
        assert overview.size == (100, 75)
    assert whole.shape == (150, 200, 3)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), whole[10:60, 20:120])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.tif", "c.jpg"]


def test_evaluate_agrees_with_what_compress_reported(smartsplat, compressed, photo_file):
    path, done = compressed
    values, report = only_json(smartsplat("evaluate", path, photo_file, "--json")), only_json(done)
    assert values["bytes"] == report["bytes"]
    for name in ("psnr", "ssim", "ms_ssim"):
        assert values[name] == pytest.approx(report[name], abs=1e-9)  # the same float64 terms
    assert "psnr" in smartsplat("evaluate", path, photo_file).stdout


def test_verify_of_a_sound_scene(smartsplat, compressed):
    values = only_json(smartsplat("verify", compressed[0], "--json"))
    assert (values["sound"], values["damaged"], values["tiles"]) == (True, {}, 12)
    assert "sound" in smartsplat("verify", compressed[0]).stdout


# --- What is loaded ---------------------------------------------------------------------------------------------------

HEAVY = {"numba", "zarr", "prefect", "dask", "distributed", "torch", "sklearn", "scipy", "pyvips", "tifffile"}


@pytest.mark.parametrize(
    "code",
    [
        "import smartsplat; dir(smartsplat)",
        "from flows.cli import main\nsys.argv = ['smartsplat', '--help']\ntry: main()\nexcept SystemExit: pass",
        "from flows.cli import main\nsys.argv = ['smartsplat', 'compress', '-h']\ntry: main()\nexcept SystemExit: pass",
    ],
    ids=["import", "help", "help of a command"],
)
def test_help_and_import_load_nothing_heavy(code):
    code = f"import sys\n{code}\nprint(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_public_names_are_there():
    import smartsplat

    assert len(smartsplat.__all__) <= 20
    for name in smartsplat.__all__:
        assert getattr(smartsplat, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = smartsplat.no_such_name


# --- Images that cannot be read ---------------------------------------------------------------------------------------


def tiff_bytes(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb", **options)
    return buffer.getvalue()


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Return a little-endian TIFF with another value of a tag of the first page."""
    changed = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            kind = struct.unpack_from("<H", data, entry + 2)[0]
            struct.pack_into("<H" if kind == 3 else "<I", changed, entry + 8, value)
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


def jpeg_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def png_bytes(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
WIDTH, COMPRESSION = 256, 259

BAD_IMAGES = {
    "empty.tif": (b"", "the file is empty"),
    "text.tif": (b"hello, this is no image\n" * 100, "not an image of a known format"),
    "cut.jpg": (jpeg_bytes(NOISE)[:20_000], "truncated or damaged"),
    "cut.tif": (tiff_bytes(NOISE, rowsperstrip=10)[:100_000], "truncated or damaged"),
    "cut-deflate.tif": (tiff_bytes(NOISE, rowsperstrip=10, compression="zlib")[:100_000], "truncated or damaged"),
    "compression.tif": (with_tag(tiff_bytes(NOISE, compression="zlib"), COMPRESSION, 34712), "compressed in a way"),
    "unknown.tif": (with_tag(tiff_bytes(NOISE, compression="zlib"), COMPRESSION, 12345), "compress"),
    "one.png": (jpeg_bytes(NOISE[:1, :1]), "1 x 1 px is too small"),
    "zero.tif": (with_tag(tiff_bytes(NOISE), WIDTH, 0), "no pixels|damaged"),
    "zero.png": (png_bytes(0, 5), ""),
    "zero.ppm": (b"P6 0 5 255\n", ""),
    "double.tif": (tiff_bytes(NOISE.astype(float)), "float64 samples"),
}


def refused(done: subprocess.CompletedProcess[str], *says: object, code: int = BAD_INPUT) -> None:
    """Check that a run ended with its exit code and one line that says so much, and no more."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("smartsplat: ")
    for text in says:
        assert re.search(str(text), done.stderr), done.stderr


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_cannot_be_read_is_refused_in_one_line(name, smartsplat, tmp_path, quick):
    data, cause = BAD_IMAGES[name]
    source = tmp_path / name
    source.write_bytes(data)
    done = smartsplat("compress", source, tmp_path / "a.zarr", *quick[:-6], "--gaussians", 1, *quick[-4:])
    refused(done, re.escape(str(source)), cause)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_image_is_refused_in_one_line(smartsplat, tmp_path, quick):
    for command in (("compress", tmp_path / "no.tif", tmp_path / "a.zarr", *quick), ("plan", tmp_path / "no.tif")):
        refused(smartsplat(*command), re.escape(str(tmp_path / "no.tif")), "no such file")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_image(smartsplat, tmp_path, quick):
    refused(smartsplat("compress", tmp_path, tmp_path / "a.zarr", *quick), re.escape(str(tmp_path)), "not a file")
    assert list(tmp_path.iterdir()) == []


# --- Settings that make no sense --------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "no Gaussian left": (("--ratio", "50000"), r"china\.png.*allows 1 bytes.*use --ratio"),
    "ratio that cannot be met": (("--ratio", "60"), r"china\.png.*use --ratio"),
    "ratio of one": (("--ratio", "1"), "ratio 1.0 must lie between 1 and"),
    "ratio of zero": (("--ratio", "0"), "ratio 0.0 must lie between 1 and"),
    "no number": (("--ratio", "nan"), "ratio nan must lie between 1 and"),
    "ratio and number": (
        ("--ratio", "9", "--gaussians", "100"),
        "either a ratio, bytes, bits per pixel, a PSNR or a number of Gaussians",
    ),
    "too many Gaussians": (("--gaussians", "1000000"), "more than one a pixel; use --gaussians"),
    "no Gaussians": (("--gaussians", "0"), "at least one is needed"),
    "halo beyond the tile": (("--tile", "64", "--halo", "65"), "halo 65 is larger than tile 64; use --halo 12"),
    "reach beyond the tile": (("--tile", "64", "--halo", "16"), "exceeds tile 64; use --halo 12 or less, or --tile 80"),
    "no tile": (("--tile", "0"), "tile must be positive"),
    "negative halo": (("--halo", "-1"), "halo not negative"),
    "negative seed": (("--seed", "-1"), "seed -1 must not be negative"),
    "memory without unit": (("--memory", "lots"), "'lots' is not a size; write it like 4GiB"),
    "memory too small": (("--gaussians", "100", "--memory", "10MiB"), "10 MiB allowed; raise --memory to"),
    "unknown preset": (("--preset", "finest"), "preset 'finest' is unknown; use best, draft, paper, standard"),
    "no GPU engine": (("--engine", "cuda"), "engine 'cuda' cannot be used here: .*; use --engine cpu"),
    "unknown engine": (("--engine", "abacus"), "engine 'abacus' is unknown"),
    "unknown executor": (("--executor", "threads"), "executor 'threads' is unknown; use serial or dask"),
    "no workers": (("--workers", "0"), "at least one is needed"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_that_makes_no_sense_is_refused_in_one_line(name, smartsplat, photo_file, tmp_path):
    options, says = BAD_SETTINGS[name]
    refused(smartsplat("compress", photo_file, tmp_path / "a.zarr", *options), says)
    assert list(tmp_path.iterdir()) == []


def test_plan_refuses_what_compress_refuses(smartsplat, photo_file):
    for options, says in (BAD_SETTINGS["ratio that cannot be met"], BAD_SETTINGS["no GPU engine"]):
        refused(smartsplat("plan", photo_file, *options), says)


def test_unknown_options_and_commands_are_usage_errors(smartsplat, photo_file, tmp_path):
    for arguments in (("compress", photo_file, tmp_path / "a.zarr", "--colour", "3"), ("squeeze",), ("render",)):
        done = smartsplat(*arguments)
        assert done.returncode == BAD_INPUT
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- Places that cannot be used ---------------------------------------------------------------------------------------


def test_a_destination_that_is_something_else_is_refused_and_left_alone(smartsplat, photo_file, tmp_path, quick):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    zarr.create_group(str(tmp_path / "group"), attributes={"mine": 1})
    before = listing(tmp_path)
    for name in ("folder", "empty", "file", "group"):
        done = smartsplat("compress", photo_file, tmp_path / name, *quick)
        refused(done, re.escape(str(tmp_path / name)), "exists and is not a scene")
    assert listing(tmp_path) == before


def test_a_destination_without_parent_is_refused(smartsplat, photo_file, tmp_path, quick):
    done = smartsplat("compress", photo_file, tmp_path / "no" / "a.zarr", *quick)
    refused(done, re.escape(str(tmp_path / "no" / "a.zarr")), "does not exist")
    assert list(tmp_path.iterdir()) == []


def test_other_settings_for_the_same_scene_are_refused_by_name(smartsplat, photo_file, compressed, quick):
    before = listing(compressed[0])
    done = smartsplat("compress", photo_file, compressed[0], *quick, "--seed", "7")
    refused(done, re.escape(str(compressed[0])), "seed: 0 or 7")
    assert listing(compressed[0]) == before


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """``disk(options)``: a folder on a disk of its own, mounted with options; again, to change them."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        options += ",remount" if mounted else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a disk: {done.stderr.strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_destination_that_cannot_be_written_is_refused(smartsplat, photo_file, disk, quick):
    done = smartsplat("compress", photo_file, disk("ro") / "a.zarr", *quick)
    refused(done, "disk.*cannot be written: Read-only file system")


def test_a_scene_on_a_disk_that_cannot_be_written_is_still_read(smartsplat, compressed, photo_file, disk, tmp_path):
    scene = disk("size=2m") / "a.zarr"
    shutil.copytree(compressed[0], scene)
    disk("ro")
    for command in (("info", scene), ("verify", scene), ("evaluate", scene, photo_file)):
        assert smartsplat(*command).returncode == 0
    assert smartsplat("render", scene, tmp_path / "a.png").returncode == 0
    refused(smartsplat("render", scene, scene.parent / "a.png"), "a.png", "Read-only|not writable|cannot be written")


def test_a_full_disk_is_said_to_be_and_the_scene_resumes_once_there_is_room(
    smartsplat, compressed, photo_file, disk, quick
):
    scene = disk("size=400k") / "a.zarr"
    done = smartsplat("compress", photo_file, scene, *quick)
    assert done.returncode == FAILED
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("smartsplat: ")]
    assert errors == done.stderr.splitlines()[-1:]
    assert re.search("disk is full; free some space and run the same command again", errors[0])
    disk("size=8m")
    done = smartsplat("compress", photo_file, scene, *quick)
    assert done.returncode == 0, done.stderr
    assert contents(scene) == contents(compressed[0])
    assert [path.name for path in scene.parent.iterdir()] == ["a.zarr"]


# --- Scenes that are damaged or unknown -------------------------------------------------------------------------------


def test_a_damaged_tile_is_named_and_the_others_still_render(smartsplat, scene, compressed, tmp_path):
    flip_tile(scene, 0, 0)
    done = smartsplat("verify", scene)
    refused_last(done, r"1 of 12 tiles are damaged; first: .*scene\.zarr: tile \(0, 0\) is damaged")
    done = smartsplat("verify", scene, "--json")
    assert done.returncode == BAD_INPUT
    assert list(only_json(done)["damaged"]) == ["(0, 0)"]
    done = smartsplat("render", scene, tmp_path / "a.png", "--region", "0:20,0:20")
    refused_last(done, r"scene\.zarr: tile \(0, 0\) is damaged")
    assert not (tmp_path / "a.png").exists()
    for where, place in (("sound", compressed[0]), ("damaged", scene)):
        done = smartsplat("render", place, tmp_path / f"{where}.png", "--region", "130:150,180:200")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "sound.png").read_bytes() == (tmp_path / "damaged.png").read_bytes()


def refused_last(done: subprocess.CompletedProcess[str], says: str) -> None:
    """Check that a run that had shown progress ended with one line that says so much."""
    assert done.returncode == BAD_INPUT
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("smartsplat: ")] == lines[-1:]
    assert re.search(says, lines[-1]), lines[-1]


COMMANDS_ON_SCENES = ("info", "status", "verify", "evaluate", "render", "compress")


def on_scene(smartsplat, command: str, scene: Path, photo_file: Path, quick) -> subprocess.CompletedProcess[str]:
    more = {"evaluate": (photo_file,), "render": (scene.with_name("out.png"),)}.get(command, ())
    return (
        smartsplat("compress", photo_file, scene, *quick)
        if command == "compress"
        else smartsplat(command, scene, *more)
    )


@pytest.mark.parametrize("command", COMMANDS_ON_SCENES)
def test_a_scene_of_an_unknown_format_is_refused_with_the_way_out(command, smartsplat, scene, photo_file, quick):
    metadata = json.loads((scene / "zarr.json").read_bytes())
    metadata["attributes"]["smartsplat"]["format"] = 99
    (scene / "zarr.json").write_text(json.dumps(metadata))
    before = listing(scene.parent)
    done = on_scene(smartsplat, command, scene, photo_file, quick)
    refused(done, r"scene\.zarr: scene format 99 is unknown to this version, which reads format 1; upgrade smartsplat")
    assert listing(scene.parent) == before


@pytest.mark.parametrize("command", COMMANDS_ON_SCENES)
def test_a_scene_with_changed_attributes_is_refused(command, smartsplat, scene, photo_file, quick):
    metadata = json.loads((scene / "zarr.json").read_bytes())
    metadata["attributes"]["smartsplat"]["config"]["halo"] += 1
    (scene / "zarr.json").write_text(json.dumps(metadata))
    refused(on_scene(smartsplat, command, scene, photo_file, quick), r"scene\.zarr", "damaged")


@pytest.mark.parametrize("command", ["info", "status", "verify", "evaluate", "render"])
def test_what_is_no_scene_is_refused(command, smartsplat, tmp_path, photo_file, quick):
    done = on_scene(smartsplat, command, tmp_path / "no.zarr", photo_file, quick)
    refused(done, re.escape(str(tmp_path / "no.zarr")), "no such scene")
    assert list(tmp_path.iterdir()) == []


def test_a_scene_whose_bytes_are_gone_names_what_is_missing(smartsplat, scene):
    (scene / "tiles" / "zarr.json").unlink()
    refused(smartsplat("verify", scene), r"scene\.zarr", "'tiles' is missing or damaged")


# --- Renders that make no sense ---------------------------------------------------------------------------------------

BAD_RENDERS = {
    "unknown extension": (("out.bmp",), r"out\.bmp: extension '\.bmp' is unknown; use one of \.tif"),
    "no extension": (("out",), "extension '' is unknown"),
    "region outside": (("out.png", "--region", "0:151,0:10"), "0:151,0:10 does not lie within the scene, 0:150,0:200"),
    "malformed region": (("out.png", "--region", "1,2,3,4"), "'1,2,3,4' is not of the form Y0:Y1,X0:X1"),
    "negative region": (("out.png", "--region", "-5:3,0:4"), "is not of the form"),
    "empty region": (("out.png", "--region", "5:5,0:4"), "is empty"),
    "scale zero": (("out.png", "--scale", "0"), "scale 0.0 is out of range"),
    "scale too large": (("out.png", "--scale", "100"), "between 1/64 and 64"),
    "no folder": (("no/out.png",), "folder .* does not exist"),
    "engine": (("out.png", "--engine", "cuda"), "use --engine cpu"),
}


@pytest.mark.parametrize("name", BAD_RENDERS)
def test_a_render_that_makes_no_sense_is_refused_in_one_line(name, smartsplat, compressed, tmp_path):
    (output, *options), says = BAD_RENDERS[name]
    refused(smartsplat("render", compressed[0], tmp_path / output, *options), says)
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_another_size_cannot_be_scored(smartsplat, compressed, tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "other.png")
    done = smartsplat("evaluate", compressed[0], tmp_path / "other.png")
    refused(done, r"other\.png: \(300, 200, 3\) uint8 cannot be compared with a scene of \(150, 200, 3\) uint8")
