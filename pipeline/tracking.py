"""How far a run is: told to whoever watches it here, and kept in a record that other processes read.

The record says what only the running process knows: that it lives, and its pace. What is done is in the ledgers.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import psutil

from pipeline.forecast import Part, run_parts, seconds_left
from pipeline.memory import resident_bytes
from pipeline.plan import ScenePlan
from pipeline.progress import Progress
from storage.record import delete_record, read_record, write_record

_SECONDS_BETWEEN_RECORDS = 1.0
_CLOCK_SECONDS = 10.0  # the system works out when a process started from a clock that may have been set since


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run says of itself.

    Parameters
    ----------
    host, pid, started
        Its process, and when that started, s since 1970: a number alone may be another process's by now.
    written
        When it said so, s since 1970.
    part, done, total
        What it is at, and how many of its jobs are done, by earlier runs too.
    work, seconds
        Pair-pixels this run has done, and in what time.
    stage_jobs, stage_pixels, stage_seconds
        What it has done of the present stage, in all its phases, and in what time.
    """

    host: str
    pid: int
    started: float
    written: float
    part: str = ""
    done: int = 0
    total: int = 0
    work: float = 0.0
    seconds: float = 0.0
    stage_jobs: int = 0
    stage_pixels: float = 0.0
    stage_seconds: float = 0.0

    @property
    def jobs_a_second(self) -> float | None:
        """Of the present stage; None as long as none is done."""
        return self.stage_jobs / self.stage_seconds if self.stage_jobs and self.stage_seconds else None

    @property
    def megapixels_a_minute(self) -> float | None:
        """Of the scene, that the present stage goes over; None as long as none of its jobs is done."""
        return 60e-6 * self.stage_pixels / self.stage_seconds if self.stage_jobs and self.stage_seconds else None

    @property
    def seconds_ago(self) -> float:
        """How long ago it was written, s; 0 where the clock of another host is ahead."""
        return max(0.0, time.time() - self.written)


class TrackedProgress:
    """Passes on what a display is told, adds how far the whole run is, and keeps the record.

    Parameters
    ----------
    display
        Shows it here.
    scene
        Its folder.
    parts
        Of the whole run.
    clock
        Seconds that only grow.
    """

    def __init__(
        self, display: Progress, *, scene: Path, parts: Sequence[Part], clock: Callable[[], float] = time.monotonic
    ) -> None:
        process = psutil.Process()
        self._display, self._scene, self._clock = display, scene, clock
        self._parts = {part.name: part for part in parts}
        ends = [0.0, *accumulate(part.work for part in parts)]
        self._work_before = dict(zip(self._parts, ends, strict=False))
        self._total_work = ends[-1]
        self._part: Part | None = None
        self._began = self._stage_began = self._written = clock()
        self._record = RunRecord(
            host=socket.gethostname(), pid=process.pid, started=process.create_time(), written=time.time()
        )
        write_record(scene, dataclasses.asdict(self._record))

    def start(self, stage: str, *, total: int, done: int) -> None:
        """Begin a part."""
        self._display.start(stage, total=total, done=done)
        now, part = self._clock(), self._parts.get(stage)
        if self._record.part == "":
            self._began = now  # what came before was no work of the plan: looking through what is there
        if part is None or self._part is None or part.stage != self._part.stage:
            self._stage_began = now
            self._record = dataclasses.replace(self._record, stage_jobs=0, stage_pixels=0.0)
        self._part = part
        self._record = dataclasses.replace(self._record, part=stage, done=done, total=total)
        self._tell(now)
        self._write(now)

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        """Count, and write the record now and then."""
        self._display.advance(note, jobs=jobs)
        now, record = self._clock(), self._record
        share = jobs / max(1, record.total)
        self._record = dataclasses.replace(
            record,
            done=record.done + jobs,
            stage_jobs=record.stage_jobs + jobs,
            stage_pixels=record.stage_pixels + (share * self._part.pixels if self._part else 0),
            work=record.work + (share * self._part.work if self._part else 0),
        )
        self._tell(now)
        if now - self._written >= _SECONDS_BETWEEN_RECORDS:
            self._write(now)

    def finish(self) -> None:
        """The part is over."""
        self._display.finish()

    def overall(self, share: float, *, seconds_left: float | None) -> None:
        """Do nothing: it is this that works it out."""

    def _tell(self, now: float) -> None:
        if self._part is None:
            return
        record = self._record
        done = self._work_before[record.part] + self._part.work * record.done / max(1, record.total)
        left = seconds_left(total=self._total_work, done=done, done_now=record.work, seconds=now - self._began)
        self._display.overall(done / self._total_work, seconds_left=left)

    def _write(self, now: float) -> None:
        self._written = now
        self._record = dataclasses.replace(
            self._record, written=time.time(), seconds=now - self._began, stage_seconds=now - self._stage_began
        )
        write_record(self._scene, dataclasses.asdict(self._record))


@contextmanager
def tracked(display: Progress, *, scene: Path, plan: ScenePlan) -> Generator[Progress]:
    """Yield a progress that keeps the record of a run; it is deleted when the run ends, well or with an error."""
    parts = run_parts(plan.passes, plan.grid, count=plan.count, rated=plan.config.is_rated)
    try:
        yield TrackedProgress(display, scene=scene, parts=parts)
    finally:
        delete_record(scene)


def read_run(scene: Path) -> RunRecord | None:
    """Return what the latest run of the scene at `scene` says of itself; None if nothing, or nothing that makes sense.

    A run that ended left nothing; one that was killed left its last word.
    """
    values = read_record(scene) or {}
    try:
        record = RunRecord(**values)
    except TypeError:
        return None
    kinds = {"str": str, "int": int, "float": (int, float)}
    fields = [(getattr(record, each.name), kinds[str(each.type)]) for each in dataclasses.fields(record)]
    sound = all(isinstance(value, kind) and not isinstance(value, bool) for value, kind in fields)
    numbers = [value for value, _ in fields if isinstance(value, int | float)]
    return record if sound and all(math.isfinite(number) and number >= 0 for number in numbers) else None


def is_running(record: RunRecord) -> bool | None:
    """Return whether the run's process lives; None if it is on another host, where that cannot be seen from here."""
    if record.host != socket.gethostname():
        return None
    return _process(record) is not None


def memory_of(record: RunRecord) -> int | None:
    """Return the bytes that the run's process and those it started hold (their RSS); None if it cannot be seen.

    Workers of a Dask scheduler that was there before belong to that, and do not count.
    """
    process = _process(record) if record.host == socket.gethostname() else None
    if process is None:
        return None
    try:
        return resident_bytes(process)
    except psutil.Error:
        return None


def _process(record: RunRecord) -> psutil.Process | None:
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.started) <= _CLOCK_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OverflowError):
        return None
