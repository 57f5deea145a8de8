"""The status of an unfinished scene: every stage of its plan, what is done of each, and what failed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.compress import compress, prepare
from pipeline.optimize import stage_name
from pipeline.status import status
from smartsplat.config import SceneConfig
from smartsplat.errors import StageIncomplete, StoreError


@pytest.fixture(scope="module")
def tiny(quick) -> SceneConfig:
    """2 x 3 tiles of `source`."""
    return quick(nominal_ratio=5.25, tile=48, halo=6)


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


def test_an_unfinished_scene_whose_working_data_is_gone_is_refused(source, tmp_path, tiny, run_until):
    run_until("sample", source, tmp_path / "a.zarr", tiny)
    shutil.rmtree(tmp_path / "a.zarr" / "work")
    with pytest.raises(StoreError, match="its working data is gone"):
        status(tmp_path / "a.zarr")
