"""A run says how far it is: to its display, and to other processes by its record, which they never trust blindly."""

from __future__ import annotations

import dataclasses
import socket
import time
from pathlib import Path

import psutil
import pytest

from pipeline import tracking
from pipeline.compress import compress
from pipeline.forecast import Part
from pipeline.progress import NoProgress
from pipeline.tracking import RunRecord, TrackedProgress, is_running, memory_of, read_run
from smartsplat.config import SceneConfig
from smartsplat.errors import StageIncomplete, StoreError
from storage.record import read_record, write_record

PARTS = [
    Part(stage="ingest", pixels=1000, work=10),
    Part(stage="fit", color=0, pixels=600, work=60),
    Part(stage="fit", color=1, pixels=400, work=40),
    Part(stage="encode", pixels=1000, work=90),
]


class Display(NoProgress):
    """Remembers what it is told of the whole."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float | None]] = []

    def overall(self, share: float, *, seconds_left: float | None) -> None:
        self.told.append((share, seconds_left))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path


@pytest.fixture
def clock() -> Clock:
    return Clock()


def mine(**changes: object) -> RunRecord:
    started = psutil.Process().create_time()
    record = RunRecord(host=socket.gethostname(), pid=psutil.Process().pid, started=started, written=time.time())
    return dataclasses.replace(record, **changes)


# --- What a run tells -------------------------------------------------------------------------------------------------


def test_the_share_is_that_of_the_work_and_the_time_left_that_at_the_pace_of_this_run(scene, clock):
    display = Display()
    tracked = TrackedProgress(display, scene=scene, parts=PARTS, clock=clock)
    clock.now += 1000  # looking through what an earlier run left is no part of the work
    tracked.start("fit, phase 1", total=6, done=3)
    assert display.told == [((10 + 30) / 200, None)]
    for _ in range(3):
        clock.now += 2
        tracked.advance()
    tracked.finish()
    assert display.told[-1] == pytest.approx((70 / 200, 130 * 6 / 30))
    tracked.start("fit, phase 2", total=4, done=0)
    clock.now += 4
    tracked.advance(jobs=4)
    assert display.told[-1] == pytest.approx((110 / 200, 90 * 10 / 70))


def test_the_record_counts_the_jobs_and_pixels_of_the_stage_in_all_its_phases_since_this_run_began_it(scene, clock):
    tracked = TrackedProgress(NoProgress(), scene=scene, parts=PARTS, clock=clock)
    tracked.start("ingest", total=2, done=0)
    clock.now += 50
    tracked.advance(jobs=2)
    tracked.start("fit, phase 1", total=6, done=3)
    clock.now += 10
    tracked.advance(jobs=3)
    tracked.start("fit, phase 2", total=4, done=0)
    clock.now += 10
    tracked.advance()
    record = read_run(scene)
    assert record is not None
    assert (record.part, record.done, record.total) == ("fit, phase 2", 1, 4)
    assert record.jobs_a_second == pytest.approx(4 / 20)
    assert record.megapixels_a_minute == pytest.approx((300 + 100) / 1e6 * 3)
    assert (record.work, record.seconds) == pytest.approx((10 + 30 + 10, 70))


def test_a_stage_with_nothing_done_has_no_rate(scene, clock):
    tracked = TrackedProgress(NoProgress(), scene=scene, parts=PARTS, clock=clock)
    tracked.start("ingest", total=2, done=1)
    record = read_run(scene)
    assert record is not None
    assert record.jobs_a_second is record.megapixels_a_minute is None


def test_the_record_is_written_once_a_second_at_the_most_however_many_jobs_end(scene, clock, monkeypatch):
    written: list[float] = []
    monkeypatch.setattr(tracking, "write_record", lambda scene, values: written.append(clock.now))
    tracked = TrackedProgress(NoProgress(), scene=scene, parts=PARTS, clock=clock)
    tracked.start("encode", total=10_000, done=0)
    written.clear()
    for _ in range(10_000):
        clock.now += 0.001
        tracked.advance()
    assert 9 <= len(written) <= 10, "in ten seconds"


def test_stages_that_are_no_part_of_the_plan_are_passed_on_and_change_nothing(scene, clock):
    display = Display()
    tracked = TrackedProgress(display, scene=scene, parts=PARTS, clock=clock)
    tracked.start("something else", total=3, done=0)
    tracked.advance()
    tracked.finish()
    assert display.told == []


def test_a_run_without_a_place_for_its_record_goes_on(tmp_path, clock):
    tracked = TrackedProgress(NoProgress(), scene=tmp_path / "none", parts=PARTS, clock=clock)
    tracked.start("ingest", total=1, done=0)
    tracked.advance()
    assert read_run(tmp_path / "none") is None


# --- A real run -------------------------------------------------------------------------------------------------------


class Watching(Display):
    """Looks at the record of the scene whenever a job has ended."""

    def __init__(self, scene: Path) -> None:
        super().__init__()
        self.scene = scene
        self.seen: list[RunRecord | None] = []

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        self.seen.append(read_run(self.scene))


@pytest.fixture(scope="module")
def tiny(quick) -> SceneConfig:
    """2 x 3 tiles of `source`."""
    return quick(nominal_ratio=5.25, tile=48, halo=6)


@pytest.fixture
def source(tmp_path, photo, write_tiff) -> Path:
    return write_tiff(tmp_path / "a.tif", photo("china", 70, 100))


def test_a_run_keeps_a_record_and_leaves_none_and_its_share_grows_to_the_whole(source, tmp_path, tiny, serial):
    scene = tmp_path / "a.zarr"
    watching = Watching(scene)
    compress(source, scene, config=tiny, resources=serial, keep_work=True, progress=watching)
    assert all(record is not None and is_running(record) for record in watching.seen)
    shares = [share for share, _ in watching.told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert read_record(scene) is None


def test_a_run_that_fails_leaves_no_record_and_the_next_one_takes_up_its_share(
    source, tmp_path, tiny, serial, monkeypatch
):
    def fails(*_: object, **__: object) -> None:
        raise StoreError("a cosmic ray")

    scene = tmp_path / "a.zarr"
    before, after = Watching(scene), Watching(scene)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.encode.requantized", fails)
        with pytest.raises(StageIncomplete):
            compress(source, scene, config=tiny, resources=serial, progress=before)
    assert read_record(scene) is None
    compress(source, scene, config=tiny, resources=serial, progress=after)
    assert after.told[0][0] == pytest.approx(before.told[-1][0])
    assert after.told[0][1] is None, "this run has done nothing yet"


# --- What others make of it -------------------------------------------------------------------------------------------


def test_a_record_that_makes_no_sense_counts_as_none(scene):
    good = dataclasses.asdict(mine())
    write_record(scene, good)
    assert read_run(scene) == RunRecord(**good)
    for changes in (
        {"pid": "12"},
        {"pid": True},
        {"pid": 1.5},
        {"done": -1},
        {"seconds": float("nan")},
        {"work": float("inf")},
        {"host": None},
        {"more": 1},
    ):
        write_record(scene, good | changes)
        assert read_run(scene) is None, changes
    write_record(scene, {"pid": good["pid"]})
    assert read_run(scene) is None


def test_a_process_of_the_same_number_that_started_at_another_time_is_another(scene):
    assert is_running(mine()) is True
    assert memory_of(mine()) >= psutil.Process().memory_info().rss // 2
    for record in (mine(started=mine().started - 3600), mine(pid=2**22 + 1), mine(pid=2**70)):
        assert is_running(record) is False
        assert memory_of(record) is None


def test_of_a_run_on_another_host_nothing_is_claimed_but_when_it_was_heard_of(scene):
    record = mine(host="elsewhere", written=time.time() - 40)
    assert is_running(record) is None
    assert memory_of(record) is None
    assert record.seconds_ago >= 40
    assert mine(written=time.time() + 1000).seconds_ago == 0, "its clock is ahead"
