"""The status of an unfinished scene: every stage of its plan, what is done of each, and what failed."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import psutil
import pytest

from pipeline.compress import compress, prepare
from pipeline.optimize import stage_name
from pipeline.status import status
from smartsplat.config import SceneConfig
from smartsplat.errors import StageIncomplete, StoreError
from storage.record import write_record
from storage.scene import Scene


@pytest.fixture(scope="module")
def tiny(quick) -> SceneConfig:
    """2 x 3 tiles of `source`."""
    return quick(nominal_ratio=6.0, tile=48, halo=6)


@pytest.fixture
def source(tmp_path, photo, write_tiff) -> Path:
    return write_tiff(tmp_path / "a.tif", photo("china", 70, 100))


def stages_of(scene: Path) -> dict[str, tuple[int, int, int]]:
    return {each["stage"]: (each["done"], each["failed"], each["total"]) for each in status(scene)["stages"]}


def test_every_stage_is_named_from_the_start_and_what_is_done_of_it_never_grows_less(
    source, tmp_path, tiny, walk, serial
):
    scene = tmp_path / "a.zarr"
    passes = prepare(source, scene, config=tiny, resources=serial).plan.passes
    fits = [stage_name(number, passes) for number in range(1, len(passes) + 1)]
    before: dict[str, tuple[int, int, int]] = {}
    last = ""
    for step in walk(source, scene, tiny):
        now = stages_of(scene)
        last = step.name
        if before:
            assert list(now) == ["ingest", "survey", "sample", *fits, "rate", "settle", "rate of colors", "encode"]
            assert all(now[stage] >= before[stage] for stage in now), last
            # Stages come one after the other, though the state of an early one is deleted before the end.
            done = [now[stage][0] / now[stage][2] for stage in now]
            assert done == sorted(done, reverse=True), last
            assert sum(0 < share < 1 for share in done) <= 1, last
        before = now
        if step.name in ("evaluate", "finish"):
            assert all(done == total for done, _, total in now.values())
            assert status(scene)["tiles"] == {"done": 6, "failed": {}, "missing": []}
        else:
            assert status(scene)["tiles"]["missing"], "not encoded"
    assert last == "finish"
    assert status(scene)["complete"] is True


@pytest.mark.parametrize(
    ("function", "stage", "jobs"),
    [
        ("pipeline.sample.tile_stats", "survey", 6),
        ("pipeline.propose.find_candidates", "fit 3 of 6, 4 pairs at 1/2", 1),
        ("pipeline.insert.spread_evenly", "fit 4 of 6, insert", 6),
        ("pipeline.optimize.fit_tiles", "fit 1 of 6, colors", 1),
        ("pipeline.rate.encode_tile", "rate", 6),
    ],
)
def test_jobs_that_fail_are_counted_with_their_stage_and_named_until_they_succeed(
    function, stage, jobs, source, tmp_path, tiny, serial, files, monkeypatch
):
    def fails(*_: object, **__: object) -> None:
        raise StoreError("a cosmic ray")

    scene = tmp_path / "a.zarr"
    with monkeypatch.context() as patched:
        patched.setattr(function, fails)
        with pytest.raises(StageIncomplete, match="a cosmic ray"):
            compress(source, scene, config=tiny, resources=serial)
    failed = {name: failed for name, (_, failed, _) in stages_of(scene).items() if failed}
    assert len(failed) == 1, failed
    ((name, count),) = failed.items()
    assert name.startswith(stage)
    assert 1 <= count <= jobs
    found = status(scene)["tiles"]
    assert len(found["failed"]) == count
    assert set(found["failed"].values()) == {"a cosmic ray"}
    assert found["done"] == 0
    compress(source, scene, config=tiny, resources=serial)
    assert status(scene)["tiles"] == {"done": 6, "failed": {}, "missing": []}


def test_the_stage_and_phase_now_are_those_that_come_next_and_the_share_never_falls(source, tmp_path, tiny, walk):
    scene, shares = tmp_path / "a.zarr", []
    for step in walk(source, scene, tiny):
        if step.name == "finish":
            break
        found = status(scene)
        now = found["now"]
        shares.append(found["share"])
        phase = "" if now["phase"] is None else f", phase {now['phase']}"
        if step.name.startswith("sweep"):
            sweep, what = step.name.removeprefix("sweep ").split(": ")
            assert f"{now['stage']}{phase}" == f"fit {sweep} of 6, {what}"
        else:
            assert f"{now['stage']}{phase}" == step.name
        if now["stage"] != "evaluate":
            assert now["done"] + now["left"] == now["total"]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.9 < shares[-1] < 1, "all but its quality is known"


def test_the_psnr_is_that_of_the_latest_fit_and_ends_near_the_scenes_own(source, tmp_path, tiny, walk):
    scene, seen = tmp_path / "a.zarr", {}
    for step in walk(source, scene, tiny):
        if step.name != "finish":
            seen[step.name] = status(scene)["psnr"]
    assert seen["ingest"] is seen["survey"] is seen["sample"] is None
    fits = {each["stage"]: each["db"] for each in seen.values() if each is not None and each["tiles"] == 6}
    # An insertion reports nothing: what was known before it stays.
    assert [stage.split(" ")[1] for stage in fits if stage != "settle"] == ["1", "2", "3", "5", "6"]
    quality = status(scene)
    assert quality["psnr"] is None, "a finished scene says it itself"
    final = Scene.open(scene).manifest.quality["psnr"]
    # The fit does not see its colors quantised, nor pixels rounded.
    assert fits["settle"] == pytest.approx(final, abs=0.5)


def test_a_record_of_no_use_changes_nothing(source, tmp_path, tiny, run_until):
    scene = tmp_path / "a.zarr"
    run_until("encode", source, scene, tiny)
    expected = status(scene)
    assert expected["run"] is None
    for content in (b"", b"\xff\x00", b"{", b'{"pid": 3}', b"[]"):
        (scene / "work" / "progress.json").write_bytes(content)
        assert status(scene) == expected


def test_the_pace_of_a_run_is_known_as_long_as_it_may_live(source, tmp_path, tiny, run_until):
    scene = tmp_path / "a.zarr"
    run_until("encode", source, scene, tiny)
    process = psutil.Process()
    pace = {"work": 1e4, "seconds": 5.0, "stage_jobs": 4, "stage_pixels": 1e6, "stage_seconds": 2.0}
    record = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), "written": 0.0}
    unknown = {"running": False, "jobs_a_second": None, "megapixels_a_minute": None, "seconds_left": None}
    for changes, expected in (
        ({}, {"running": True, "jobs_a_second": 2.0, "megapixels_a_minute": 30.0}),
        ({"host": "elsewhere"}, {"running": None, "jobs_a_second": 2.0, "memory_bytes": None}),
        ({"started": 1.0}, unknown | {"memory_bytes": None}),
    ):
        write_record(scene, record | pace | changes)
        run = status(scene)["run"]
        assert {name: run[name] for name in expected} == expected
        assert (run["seconds_left"] or 0) > 0 or run["running"] is False
        assert run["heard_seconds_ago"] > 1e9


def test_how_far_the_last_stage_is_comes_from_the_record_of_a_run_that_lives(source, tmp_path, tiny, run_until):
    scene = tmp_path / "a.zarr"
    run_until("evaluate", source, scene, tiny)
    before = status(scene)
    assert (before["now"]["stage"], before["now"]["total"]) == ("evaluate", None)
    process = psutil.Process()
    record = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), "written": 0.0}
    write_record(scene, record | {"part": "evaluate", "done": 3, "total": 4})
    now = status(scene)
    assert (now["now"]["done"], now["now"]["left"]) == (3, 1)
    assert before["share"] < now["share"] < 1
    write_record(scene, record | {"part": "evaluate", "done": 3, "total": 4, "started": 1.0})
    dead = status(scene)
    assert (dead["now"], dead["share"]) == (before["now"], before["share"]), "it does all of it again"


def test_a_scene_that_is_finished_while_it_is_looked_at_is_complete(
    source, tmp_path, tiny, run_until, serial, monkeypatch
):
    scene = tmp_path / "a.zarr"
    run_until("evaluate", source, scene, tiny)
    looking = Scene.failures

    def finishes_meanwhile(self: Scene) -> dict[str, dict[str, str]]:
        monkeypatch.setattr(Scene, "failures", looking)
        compress(source, scene, config=tiny, resources=serial)
        return looking(self)

    monkeypatch.setattr(Scene, "failures", finishes_meanwhile)
    assert status(scene)["complete"] is True


def test_an_unfinished_scene_whose_working_data_is_gone_is_refused(source, tmp_path, tiny, run_until):
    run_until("sample", source, tmp_path / "a.zarr", tiny)
    shutil.rmtree(tmp_path / "a.zarr" / "work")
    with pytest.raises(StoreError, match="its working data is gone"):
        status(tmp_path / "a.zarr")
