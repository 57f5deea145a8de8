"""Killed at any moment, damaged anywhere, on a full disk: a scene ends with the same bytes, or it is said why not."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline import insert
from pipeline.compress import compress, prepare
from pipeline.decode import open_scene
from pipeline.evaluate import verify
from smartsplat.config import FitConfig, SceneConfig
from smartsplat.errors import ConfigError, SmartsplatError, StorageFullError, StoreError
from smartsplat.geometry import block_grid
from smartsplat.schedule import FitPass, InsertPass
from storage.state import forget_sweeps

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]


class Killed(BaseException):
    """What a kill is to this process: nothing catches it."""


@pytest.fixture(scope="module")
def tiny(quick) -> SceneConfig:
    """2 x 3 tiles of the image of `whole`, so few Gaussians that there are blocks of tiles."""
    return quick(nominal_ratio=6.0, tile=48, halo=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photo, write_tiff, tiny, serial, files) -> tuple[Path, dict[str, str]]:
    """An image, and the bytes that its scene ends with."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_tiff(folder / "a.tif", photo("china", 70, 100))
    compress(source, folder / "whole.zarr", config=tiny, resources=serial)
    return source, files(folder / "whole.zarr")


def test_the_tiny_scene_has_every_kind_of_pass(whole, tiny, tmp_path, serial):
    plan = prepare(whole[0], tmp_path / "a.zarr", config=tiny, resources=serial).plan
    kinds = [each.factor for each in plan.passes if isinstance(each, FitPass)]
    assert kinds == [2, 4, 2, 4, 1]
    assert [len(block_grid(plan.grid, factor)) for factor in (1, 2, 4)] == [6, 2, 1]
    assert [each.count for each in plan.passes if isinstance(each, InsertPass)] == [plan.count]
    assert plan.byte_budget is not None, "rates are measured"


# --- Killed and taken up again ----------------------------------------------------------------------------------------


def command(source: Path, scene: Path, *options: str) -> list[str]:
    settings = ["--ratio", "5.25", "--preset", "draft", "--tile", "48", "--workers", "1"]
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
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, photo, write_tiff, files):
    source = write_tiff(tmp_path / "a.tif", photo("china", 70, 100))
    subprocess.run(command(source, tmp_path / "whole.zarr"), check=True, capture_output=True)
    random.seed(3)
    scene, kills = tmp_path / "killed.zarr", 0
    # The first kill falls while libraries are imported or the scene is made, the others into one stage after the other.
    arguments = command(source, scene, "--executor", "serial")
    while kills < 4 and killed(
        arguments,
        lines=random.randint(5, 8) if kills else 0,
        seconds=random.uniform(0, 0.15) + (0 if kills else 0.7),
    ):
        kills += 1
    assert kills == 4
    subprocess.run(arguments, check=True, capture_output=True)
    assert files(scene) == files(tmp_path / "whole.zarr")
    assert not list(tmp_path.rglob("*.partial"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "killed.zarr", "whole.zarr"]


@pytest.mark.slow
def test_a_run_on_two_workers_of_which_any_process_is_killed_ends_with_the_same_bytes_and_no_process_left():
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kills", "3", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 kills"), done.stdout


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path, photo, write_tiff, files):
    source = write_tiff(tmp_path / "a.tif", photo("flower", 70, 100))
    started = time.monotonic()
    subprocess.run(command(source, tmp_path / "whole.zarr", "--executor", "serial"), check=True, capture_output=True)
    duration = time.monotonic() - started
    random.seed(1)
    for part in range(3):
        scene = tmp_path / f"{part}.zarr"
        arguments = command(source, scene, "--executor", "serial")
        killed(arguments, lines=0, seconds=duration * random.uniform(part, part + 1) / 3)
        subprocess.run(arguments, check=True, capture_output=True)
        assert files(scene) == files(tmp_path / "whole.zarr")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_run_that_stops_before_any_step_or_amid_its_jobs_resumes_to_the_same_bytes(
    whole, tiny, tmp_path, walk, serial, files
):
    source, expected = whole
    scene, begun = tmp_path / "steps.zarr", []

    def check(moment: str) -> None:
        shutil.copytree(scene, tmp_path / "killed.zarr")
        compress(source, tmp_path / "killed.zarr", config=tiny, resources=serial)
        assert files(tmp_path / "killed.zarr") == expected, moment
        shutil.rmtree(tmp_path / "killed.zarr")

    def before_job(function: str, job: object) -> None:
        begun.append(function)
        if begun.count(function) == 2:  # one is done
            check(f"within {names[-1]}, before {function} of {job}")

    names: list[str] = []
    for step in walk(source, scene, tiny, before_job=before_job):
        names.append(step.name)
        check(f"before {step.name}")
        begun.clear()
    assert len(names) == len(set(names)) >= 20
    plan = prepare(source, tmp_path / "a.zarr", config=tiny, resources=serial).plan
    assert sum("phase" in name for name in names) == plan.phases


# --- Working data of two sweeps ---------------------------------------------------------------------------------------


def sweeps_kept(scene: Path, kind: str) -> list[int]:
    """Return the sweeps of which anything is kept."""
    matches = [re.match(rf"{kind}-(\d+)", folder.name) for folder in (scene / "work").iterdir()]
    return sorted({int(match[1]) for match in matches if match})


def test_a_run_keeps_no_more_sweeps_than_it_may_need_again(whole, tiny, tmp_path, walk, files):
    source, expected = whole
    scene, seen = tmp_path / "a.zarr", set()

    def before_job(function: str, job: object) -> None:
        states, candidates = sweeps_kept(scene, "state"), sweeps_kept(scene, "candidates")
        # To begin an insertion anew, what its candidates were made from is needed.
        kept = 3 if function == "insert_one" else 2
        assert states == list(range(max(states, default=-1) + 1))[-kept:]
        # Those of an insertion are there before its state is.
        assert all(states[0] <= sweep <= states[-1] + 1 for sweep in candidates)
        seen.update(states)

    for step in walk(source, scene, tiny, before_job=before_job):
        assert len(sweeps_kept(scene, "state")) <= 3, step.name
    assert seen == set(range(8)), "as sampled, six passes, settled"
    shutil.rmtree(scene / "work")
    assert files(scene) == expected


@pytest.mark.parametrize("deleted", ["nothing", "the metadata", "all but the metadata"])
def test_a_run_killed_before_or_while_it_deletes_old_sweeps_resumes_to_the_same_bytes(
    deleted, whole, tiny, tmp_path, walk, files, monkeypatch
):
    source, expected = whole
    scene, kills, most = tmp_path / "a.zarr", set(), 0

    def killed_before(group: object, *, before: int) -> None:
        if before not in kills:
            kills.add(before)
            raise Killed
        forget_sweeps(group, before=before)

    def killed_while(folder: Path, *, ignore_errors: bool) -> None:
        if folder.is_dir() and folder.name not in kills:
            kills.add(folder.name)
            for file in folder.iterdir():
                if (file.name == "zarr.json") == (deleted == "the metadata"):
                    file.unlink()
            raise Killed
        shutil.rmtree(folder, ignore_errors=ignore_errors)

    if deleted == "nothing":
        monkeypatch.setattr("pipeline.optimize.forget_sweeps", killed_before)
    else:
        monkeypatch.setattr("storage.state.shutil", SimpleNamespace(rmtree=killed_while))

    for _ in range(30):
        most = max(most, len(sweeps_kept(scene, "state")) if scene.is_dir() else 0)
        try:
            for _ in walk(source, scene, tiny):
                pass
        except Killed:
            continue
        break
    # An insertion deletes only what the sweep before it has: it needs one more.
    assert len(kills) >= 6, "once each other sweep at least"
    assert most >= 3, "there was something to delete"
    assert len(sweeps_kept(scene, "state")) == 2, "what a kill left is deleted later"
    shutil.rmtree(scene / "work")
    assert files(scene) == expected


# --- Damage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """Scenes that stopped at some moments, by the moment; and what they are to end with."""

    source: Path
    scenes: dict[str, Path]
    expected: dict[str, str]


@pytest.fixture(scope="module")
def unfinished(whole, tiny, tmp_path_factory, walk) -> Unfinished:
    source, expected = whole
    folder = tmp_path_factory.mktemp("unfinished")
    scenes: dict[str, Path] = {}
    name, begun = "", []

    def keep(moment: str) -> None:
        scenes[moment] = Path(shutil.copytree(folder / "a.zarr", folder / f"{len(scenes)}.zarr"))

    def before_job(function: str, job: object) -> None:
        begun.append(function)
        moment = {
            ("sweep 3: 4 pairs at 1/2, phase 2", "fit_one", 1): "half of the candidates found",
            ("sweep 4: insert", "insert_one", 4): "half of the tiles inserted",
            ("sweep 5: 2 pairs at 1/4, phase 1", "fit_one", 1): "the sweep after an insertion begun",
            ("sweep 6: 4 pairs, phase 3", "fit_one", 2): "a sweep half done",
            ("settle, phase 3", "settle_one", 2): "half settled",
        }.get((name.split(",")[0] if "insert" in name else name, function, begun.count(function)))
        if moment:
            keep(moment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(insert, "_TILES_A_SIDE", 1)  # all tiles would be one block
        for step in walk(source, folder / "a.zarr", tiny, before_job=before_job):
            name = step.name
            begun.clear()
            if name == "sweep 5: 2 pairs at 1/4, phase 1":
                keep("all inserted")
            if name == "evaluate":
                keep("encoded")
    assert len(scenes) == 7
    return Unfinished(source=source, scenes=scenes, expected=expected)


def test_an_unfinished_scene_is_no_scene_to_look_at(unfinished):
    for scene in unfinished.scenes.values():
        for look in (open_scene, verify):
            with pytest.raises(StoreError, match="not finished"):
                look(scene)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(bytes(data))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


HARMS = (flip, cut, Path.unlink)


def arrays_of(scene: Path) -> list[Path]:
    return sorted({file.parent for file in scene.rglob("*") if file.is_file()})


def a_chunk(array: Path) -> Path | None:
    """Return a chunk of an array, or none if it has none."""
    chunks = sorted(array.glob("c.*"))
    return random.choice(chunks) if chunks else None


class Verdicts:
    """What came of resuming damaged scenes."""

    def __init__(self, unfinished: Unfinished, config: SceneConfig, resources: object, files: Callable) -> None:
        self.repaired: list[str] = []
        self.refused: list[str] = []
        self.wrong: list[str] = []
        self._arguments = unfinished, config, resources, files

    def resume(self, scene: Path, damage: str) -> None:
        """Resume a scene and note what came of it: the same bytes, a refusal that names the scene, or neither."""
        unfinished, config, resources, files = self._arguments
        try:
            compress(unfinished.source, scene, config=config, resources=resources)
        except SmartsplatError as error:
            (self.refused if str(scene) in str(error) else self.wrong).append(f"{damage}: {error}")
        except Exception as error:
            self.wrong.append(f"{damage}: {error!r}")
        else:
            (self.repaired if files(scene) == unfinished.expected else self.wrong).append(damage)


@pytest.mark.slow
def test_damage_to_a_chunk_of_an_unfinished_scene_is_repaired_whenever_and_wherever_it_is(
    unfinished, tiny, tmp_path, serial, files
):
    random.seed(5)
    verdicts, harms, harmed = Verdicts(unfinished, tiny, serial, files), itertools.cycle(HARMS), set()
    like_others = ("the sweep after an insertion begun", "half settled")  # in what they keep of sweeps
    for moment, half in unfinished.scenes.items():
        for array in arrays_of(half) if moment not in like_others else []:
            chunk = a_chunk(array)
            if chunk is None or (array.name in harmed and not array.match("[sc]*-[0-9]*")):
                continue  # what does not change from sweep to sweep is damaged once
            harmed.add(array.name)
            scene = Path(shutil.copytree(half, tmp_path / "damaged.zarr"))
            harm = next(harms)
            harm(scene / chunk.relative_to(half))
            verdicts.resume(scene, f"{moment}: {harm.__name__} {chunk.relative_to(half)}")
            shutil.rmtree(scene)
    assert not verdicts.wrong + verdicts.refused, "\n".join(verdicts.wrong + verdicts.refused)
    candidates = {"candidates-4", "candidates-4-reports", "candidates-4-scores"}
    states = {f"state-{sweep}{part}" for sweep in range(2, 8) for part in ("", "-reports")}
    rates = {"shape-rates", "color-rates"}
    pixels = {"pixels", "pixels-4", "strips"}
    assert harmed == pixels | {"survey", "error"} | states | candidates | rates | {"encoded", "gaussians", "tiles"}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "arrays"), [("half of the tiles inserted", "[sc]*-[0-9]*"), ("encoded", "*")])
def test_damage_to_metadata_of_an_unfinished_scene_is_repaired_and_refused_if_it_is_the_scenes_own(
    moment, arrays, unfinished, tiny, tmp_path, serial, files
):
    random.seed(6)
    verdicts, half = Verdicts(unfinished, tiny, serial, files), unfinished.scenes[moment]
    for array in (each for each in arrays_of(half) if each.match(arrays)):
        for harm in HARMS:
            scene = Path(shutil.copytree(half, tmp_path / "damaged.zarr"))
            harm(scene / array.relative_to(half) / "zarr.json")
            verdicts.resume(scene, f"{harm.__name__} {array.relative_to(half)}")
            shutil.rmtree(scene)
    assert not verdicts.wrong, "\n".join(verdicts.wrong)
    own = [f"{harm.__name__} ." for harm in HARMS] if arrays == "*" else []
    assert [damage.partition(":")[0] for damage in verdicts.refused] == own
    assert all("delete it" in damage for damage in verdicts.refused)
    assert len(verdicts.repaired) > 20


@pytest.mark.parametrize("spared", ["none", "the latest state"])
def test_damage_to_every_array_at_once_is_repaired(spared, unfinished, tiny, tmp_path, serial, files):
    random.seed(7)
    verdicts = Verdicts(unfinished, tiny, serial, files)
    moments = (
        list(unfinished.scenes) if spared == "the latest state" else ["half of the tiles inserted", "half settled"]
    )
    for moment in moments:
        scene = Path(shutil.copytree(unfinished.scenes[moment], tmp_path / "damaged.zarr"))
        latest = f"state-{sweeps_kept(scene, 'state')[-1]}"
        for array in arrays_of(scene):
            chunk = a_chunk(array)
            if chunk is not None and not (spared == "the latest state" and array.name.startswith(latest)):
                flip(chunk)
        verdicts.resume(scene, moment)
        shutil.rmtree(scene)
    assert verdicts.repaired == moments, "\n".join(verdicts.wrong + verdicts.refused)


def test_a_size_that_is_lost_with_the_state_it_was_taken_of_is_found_again(unfinished, tiny, tmp_path, serial, files):
    """Though all tiles have settled since, in a later state."""
    scene = Path(shutil.copytree(unfinished.scenes["encoded"], tmp_path / "damaged.zarr"))
    measured, _ = sweeps_kept(scene, "state")
    (scene / "work" / "shape-rates" / "c.1.0.0").unlink()
    flip(scene / "work" / f"state-{measured}" / "c.1.0.0.0")
    compress(unfinished.source, scene, config=tiny, resources=serial)
    assert files(scene) == unfinished.expected


@pytest.mark.parametrize("deleted", ["the metadata", "all but the metadata"])
def test_a_fit_that_begins_anew_may_be_killed_while_it_deletes_the_old_one(
    deleted, unfinished, tiny, tmp_path, serial, files, monkeypatch
):
    scene = Path(shutil.copytree(unfinished.scenes["half settled"], tmp_path / "damaged.zarr"))
    before = scene / "work" / f"state-{sweeps_kept(scene, 'state')[0]}"
    flip(sorted(before.glob("c.*"))[0])
    kills = 0

    def killed_while(folder: Path, *, ignore_errors: bool) -> None:
        nonlocal kills
        for file in folder.glob("*"):
            if (file.name == "zarr.json") == (deleted == "the metadata"):
                file.unlink()
        kills += 1
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("storage.state.shutil", SimpleNamespace(rmtree=killed_while))
        with pytest.raises(Killed):
            compress(unfinished.source, scene, config=tiny, resources=serial)
    assert kills == 1
    compress(unfinished.source, scene, config=tiny, resources=serial)
    assert files(scene) == unfinished.expected


@pytest.mark.slow
def test_damage_in_chunks_at_the_edge_of_the_image_is_repaired(
    tmp_path, photo, write_tiff, quick, run_until, serial, files
):
    """Chunks that the edge cuts are written in part, which must not read what was there."""
    source = write_tiff(tmp_path / "a.tif", photo("flower", 300, 290))
    nothing = FitConfig(color_sweeps=0, stages=0, replacements=0, coarse_factors=(), final_pairs=())
    config = quick(tile=35, halo=5, count=300, fit=nothing)  # 9 x 9 tiles: four shards
    run_until("evaluate", source, tmp_path / "half.zarr", config)
    shutil.copytree(tmp_path / "half.zarr", tmp_path / "damaged.zarr")
    compress(source, tmp_path / "half.zarr", config=config, resources=serial)
    work = tmp_path / "damaged.zarr" / "work"
    harmed = [max((work / name).glob("c.*")) for name in ("pixels", "pixels-4")]
    harmed += [work / "encoded" / "c.1.1.0", work / "encoded" / "c.0.1.0"]
    harmed += [tmp_path / "damaged.zarr" / "gaussians" / "c.1.1.0.0"]
    for file in harmed:
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 8
        file.write_bytes(bytes(data))
    compress(source, tmp_path / "damaged.zarr", config=config, resources=serial)
    assert files(tmp_path / "damaged.zarr") == files(tmp_path / "half.zarr")


def test_a_source_changed_halfway_is_refused(unfinished, tiny, tmp_path, serial, photo, write_tiff):
    scene = Path(shutil.copytree(unfinished.scenes["encoded"], tmp_path / "half.zarr"))
    other = write_tiff(tmp_path / "a.tif", 255 - photo("china", 70, 100))
    with pytest.raises(ConfigError, match="another image now"):
        compress(other, scene, config=tiny, resources=serial)


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
def test_a_disk_that_is_full_at_any_moment_is_said_to_be_and_the_scene_resumes(small_disk, whole, tiny, serial, files):
    source, expected = whole
    full = 0
    for kibibytes in range(12, 4000, 12):
        scene = small_disk(kibibytes) / "a.zarr"
        try:
            compress(source, scene, config=tiny, resources=serial)
        except StorageFullError:  # and nothing else: a bare OSError would fail the test
            full += 1
        else:
            break
    assert full >= 10
    assert files(scene) == expected
    assert not list(scene.parent.rglob("*.partial"))
