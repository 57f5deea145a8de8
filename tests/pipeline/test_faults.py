"""Faults at random, one after another: whatever happens, a scene ends with the same bytes, or it is said what to do."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pyvips
import zarr
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from zarr.core.sync import sync
from zarrs import ZarrsCodecPipeline

from pipeline import rate
from pipeline.compress import compress
from pipeline.executors import Outcome, SerialExecutor
from pipeline.plan import Resources
from smartsplat.config import SceneConfig
from smartsplat.errors import SmartsplatError, SourceError, StageIncomplete, StorageFullError, StoreError
from storage.scene import Scene

STEPS_AN_EXAMPLE = 20

STRIP = 32  # rows, px: so that so small an image has three strips


class Killed(BaseException):
    """What a kill is to this process: nothing catches it."""


# --- Every change to the disk -----------------------------------------------------------------------------------------

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PATHS_OF = {"open": 1, "os.mkdir": 1, "os.rename": 2, "os.link": 2, "os.remove": 1, "os.rmdir": 1}
"""Python's audit events before a file is opened, or the disk changed, and how many of their arguments are paths."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """A file that is about to be opened, or a change to the disk that is about to be made."""

    event: str
    paths: tuple[Path, ...]
    reads: bool = False

    @property
    def takes_room(self) -> bool:
        """Whether a full disk is in its way."""
        return not self.reads and self.event not in ("os.remove", "os.rmdir")

    @property
    def ends_a_write(self) -> bool:
        """Whether a file, written under another name, takes its place."""
        return self.event == "os.rename" and self.paths[0].is_file()


class Disk:
    """Tells of every access in a folder, whoever makes it; an audit hook sees them all, and can't be taken back."""

    def __init__(self) -> None:
        self._before: Callable[[Access], None] | None = None
        self._folder = Path()
        self._lock = threading.Lock()
        self._busy = threading.local()
        sys.addaudithook(self._hook)

    @contextmanager
    def watched(self, folder: Path, before: Callable[[Access], None]) -> Iterator[None]:
        self._folder, self._before = folder, before
        try:
            yield
        finally:
            self._before = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        before = self._before
        if before is None or event not in PATHS_OF or isinstance(arguments[0], int):
            return
        if getattr(self._busy, "here", False):  # what is done in `before` is not seen
            return
        self._busy.here = True
        try:
            access = _access(event, arguments)
            if access is not None and self._folder in access.paths[0].parents:
                with self._lock:
                    before(access)
        finally:
            self._busy.here = False


def _access(event: str, arguments: tuple[Any, ...]) -> Access | None:
    """Return what an audit event tells of; none if it changes nothing."""
    paths = [Path(os.fsdecode(path)) for path in arguments[: PATHS_OF[event]]]
    if event in ("os.remove", "os.rmdir") and arguments[1] != -1:  # relative to an open folder
        paths[0] = Path(f"/proc/self/fd/{arguments[1]}").readlink() / paths[0]
    if event == "os.mkdir" and paths[0].is_dir():
        return None
    reads = event == "open" and not (arguments[2] or 0) & WRITING
    return Access(event=event, paths=tuple(paths), reads=reads)


DISK = Disk()


class Cache:
    """What a power cut would lose: files that were written and not synced.

    Of each it is kept what the disk has for sure: its bytes before, or that there was none.
    """

    def __init__(self) -> None:
        self._safe: dict[Path, bytes | None] = {}
        self._synced: set[Path] = set()  # files whose bytes are safe, wherever they are named
        self._fsync = os.fsync

    def before(self, access: Access) -> None:
        if access.event == "os.rename":
            old, new = access.paths
            if old.is_dir():
                self._moved(old, new)
                return
            self._safe.setdefault(new, new.read_bytes() if new.exists() else None)
            self._safe.pop(old, None)
            (self._synced.add if old in self._synced else self._synced.discard)(new)
            self._synced.discard(old)
        elif access.event == "os.mkdir":
            self._safe[access.paths[0]] = None
        elif access.event == "open" and not access.reads and access.paths[0].suffix != ".partial":
            (file,) = access.paths
            if file.is_dir():  # for a file without a name in it
                return
            self._safe.setdefault(file, file.read_bytes() if file.exists() else None)
            self._synced.discard(file)
        elif access.event in ("os.remove", "os.rmdir"):
            self._safe.pop(access.paths[0], None)
            self._synced.discard(access.paths[0])

    def _moved(self, old: Path, new: Path) -> None:
        for kept in list(self._safe):
            if old in kept.parents:
                self._safe[new / kept.relative_to(old)] = self._safe.pop(kept)
        self._synced = {new / path.relative_to(old) if old in path.parents else path for path in self._synced}
        self._safe.setdefault(new, None)

    def fsync(self, file: int) -> None:
        """Stand in for `os.fsync`."""
        path = Path(f"/proc/self/fd/{file}").readlink()
        if not path.is_dir():
            self._synced.add(path)
            return
        for kept in [kept for kept in self._safe if kept.parent == path]:
            if kept.is_dir() or kept in self._synced:
                del self._safe[kept]

    def lose(self, rng: random.Random) -> int:
        """Cut the power: each file that is not safe has its bytes of before, or none, or is lucky; return how many."""
        lost = 0
        for path, before in self._safe.items():
            fates = [None, before] if path.is_dir() or path in self._synced else [None, before, b""]
            index = rng.randrange(len(fates))
            if index == 0 or not path.exists():
                continue
            lost += 1
            if path.is_dir():
                shutil.rmtree(path)
            elif fates[index] is None:
                path.unlink()
            else:
                path.write_bytes(fates[index])
        self._safe.clear()
        self._synced.clear()
        return lost


# --- Faults -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An image, the settings its scene is made with, what its files end as; and counts of what was done to it."""

    folder: Path
    source: Path
    config: SceneConfig
    resources: Resources
    files: Callable[[Path], dict[str, str]]
    expected: dict[str, str]
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class Harm:
    """Damage to one of the scene's files: which of them, and which of its bytes, is given by a share and a number."""

    kind: str
    at: float
    number: int

    def strike(self, file: Path) -> None:
        size = file.stat().st_size
        if self.kind == "delete":
            file.unlink()
        elif self.kind == "cut":
            os.truncate(file, self.number % size if size else 0)
        elif size:
            data = bytearray(file.read_bytes())
            data[self.number % size] ^= 1 << self.number // size % 8
            file.write_bytes(bytes(data))


@dataclass(kw_only=True)
class Fault:
    """Something that happens at an access to the disk: the one, of those that `counts`, after `left` others."""

    left: int
    passed: int = field(default=0, repr=False)
    struck: bool = field(default=False, repr=False)
    executor: SerialExecutor | None = field(default=None, repr=False)
    machine: Faults = field(init=False, repr=False)

    def __str__(self) -> str:
        return type(self).__name__

    def begin(self, machine: Faults) -> None:
        self.machine = machine

    def lay(self, patch: pytest.MonkeyPatch) -> None:
        """Do what is to be done before the run."""

    def before(self, access: Access) -> None:
        if self.counts(access) and self.is_time():
            first, self.struck = not self.struck, True
            self.strike(access, first=first)

    def is_time(self) -> bool:
        self.passed += 1
        return self.passed > self.left

    def counts(self, access: Access) -> bool:
        return not access.reads

    def strike(self, access: Access, *, first: bool) -> None:
        raise NotImplementedError

    def check(self, error: BaseException | None, machine: Faults) -> None:
        """Raise `AssertionError` if a run that this struck must not end with this error."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Kill(Fault):
    """Before a change, which is after the one before it; of a file that is being written a part may be there."""

    torn: float

    def strike(self, access: Access, *, first: bool) -> None:
        if access.ends_a_write and first:
            os.truncate(access.paths[0], int(self.torn * access.paths[0].stat().st_size))
            self.machine.bench.counts["files torn"] += 1
        raise Killed

    def check(self, error: BaseException | None, machine: Faults) -> None:
        assert isinstance(error, Killed)


@dataclass(kw_only=True)
class PowerCut(Kill):
    """A kill that takes along what is not synced."""

    seed: int

    def check(self, error: BaseException | None, machine: Faults) -> None:
        super().check(error, machine)
        machine.bench.counts["files lost"] += machine.cache.lose(random.Random(self.seed))


@dataclass(kw_only=True)
class FullDisk(Fault):
    """From a write on."""

    def counts(self, access: Access) -> bool:
        return access.takes_room

    def strike(self, access: Access, *, first: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(access.paths[-1]))

    def check(self, error: BaseException | None, machine: Faults) -> None:
        assert isinstance(error, StorageFullError), "a write that failed went unnoticed"
        assert str(machine.folder) in str(error)
        assert "run the same command again" in str(error)


@dataclass(kw_only=True)
class SourceLost(Fault):
    """The image cannot be opened any more."""

    def counts(self, access: Access) -> bool:
        return access.paths[0] == self.machine.bench.source

    def strike(self, access: Access, *, first: bool) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(access.paths[0]))

    def check(self, error: BaseException | None, machine: Faults) -> None:
        assert isinstance(error, SourceError), "what was not read went unnoticed"
        assert str(machine.bench.source) in str(error)


@dataclass(kw_only=True)
class SourceUnreadable(SourceLost):
    """From a strip on."""

    def lay(self, patch: pytest.MonkeyPatch) -> None:
        fetch = pyvips.Region.fetch

        def failing(*arguments: Any) -> Any:
            if self.is_time():
                self.struck = True
                raise pyvips.Error("unable to call fetch\n  tiff2vips: read error")
            return fetch(*arguments)

        patch.setattr("pyvips.Region.fetch", failing)

    def counts(self, access: Access) -> bool:
        return False


@dataclass(kw_only=True)
class Poison(Fault):
    """A job that fails, some times."""

    times: int
    error: Exception
    job: str = field(default="", repr=False)
    failed: int = field(default=0, repr=False)

    def begin(self, machine: Faults) -> None:
        super().begin(machine)
        self.executor = _Poisoned(self)

    def counts(self, access: Access) -> bool:
        return False

    def before_job(self, name: str) -> None:
        if not self.job and self.is_time():
            self.job = name
        if name == self.job and self.failed < self.times:
            self.failed += 1
            self.struck = True
            raise self.error

    def check(self, error: BaseException | None, machine: Faults) -> None:
        if error is None:
            assert self.failed == self.times == 1
            machine.bench.counts["jobs that came right"] += 1
            return
        assert isinstance(error, StageIncomplete)
        assert self.job.partition(" ")[2] in str(error)
        assert "run the same command again" in str(error)


class _Poisoned(SerialExecutor):
    def __init__(self, poison: Poison) -> None:
        super().__init__(threads=1)
        self._poison = poison

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Outcome]:
        def run(job: Any) -> Any:
            self._poison.before_job(f"{function.__name__} {job}")
            return function(job)

        return super().map(run, jobs)


@dataclass(kw_only=True)
class Decay(Fault):
    """Damage to working data while the run goes on."""

    harm: Harm
    harmed: str = field(default="", repr=False)

    def strike(self, access: Access, *, first: bool) -> None:
        files = sorted(file for file in (self.machine.scene / "work").rglob("*") if file.is_file())
        if first and files:
            file = files[int(self.harm.at * len(files))]
            self.harm.strike(file)
            self.harmed = str(file)

    def check(self, error: BaseException | None, machine: Faults) -> None:
        if error is not None:
            machine.bench.counts["runs that met it"] += 1
            assert self.harmed
            assert isinstance(error, StoreError | StageIncomplete), f"{self.harmed}: {error}"
            named = re.search(r"(tile|block|region) \(?\d", str(error)) or str(machine.scene) in str(error)
            assert named, f"{self.harmed}: {error}"


async def _others_ended() -> None:
    """Wait for writes that Zarr began together with one that failed: here too, a killed run must not write any more."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


async def _seen_write(pipeline: Any, batch: Any, value: Any, drop_axes: tuple[int, ...] = ()) -> None:
    """Write shards by zarrs, which no audit hook sees, with two accesses before that it does: a kill may tear them."""
    shards = list(batch)
    for shard in shards:
        file = shard[0].store.root / shard[0].path
        file.write_bytes(b"torn")
        with file.open("ab"):
            pass
    await ZARRS_WRITE(pipeline, shards, value, drop_axes)


ZARRS_WRITE = ZarrsCodecPipeline.write

HARMS = st.builds(
    Harm,
    kind=st.sampled_from(["flip", "cut", "delete"]),
    at=st.floats(0, 1, exclude_max=True),
    number=st.integers(0, 2**16),
)
FAULTS = st.one_of(
    st.builds(Kill, left=st.integers(0, 150), torn=st.floats(0, 1)),
    st.builds(PowerCut, left=st.integers(0, 300), torn=st.floats(0, 1), seed=st.integers(0, 2**32)),
    st.builds(FullDisk, left=st.integers(0, 150)),
    st.builds(SourceLost, left=st.integers(0, 8)),
    st.builds(SourceUnreadable, left=st.integers(0, 2)),
    st.builds(
        Poison,
        left=st.integers(0, 40),
        times=st.sampled_from([1, 2]),
        error=st.sampled_from([RuntimeError("poisoned"), MemoryError("poisoned"), StoreError("poisoned")]),
    ),
    st.builds(Decay, left=st.integers(0, 300), harm=HARMS),
)


class Faults(RuleBasedStateMachine):
    """One scene, made again and again, with a fault in each run, and damage between two."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.folder = bench.folder / "scenes"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.scene = self.folder / "a.zarr"
        self.cache = Cache()
        self.manifest_is_harmed = False

    def run(self, *watchers: Callable[[Access], None], executor: SerialExecutor | None = None) -> BaseException | None:
        """Run until it is done or fails; return how it failed."""

        def before(access: Access) -> None:
            for watcher in watchers:
                watcher(access)
            self.cache.before(access)

        bench = self.bench
        bench.counts["runs"] += 1
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr("os.fsync", self.cache.fsync)
            patch.setattr(ZarrsCodecPipeline, "write", _seen_write)
            pid = next(PIDS)
            patch.setattr("storage.scene.os", SimpleNamespace(getpid=lambda: pid))  # each run is another process
            if executor is not None:
                patch.setattr("pipeline.compress.SerialExecutor", lambda threads: executor)
            stack.enter_context(DISK.watched(bench.folder, before))
            try:
                compress(bench.source, self.scene, config=bench.config, resources=bench.resources)
            except (Killed, SmartsplatError) as error:  # any other fails the test
                return error
            finally:
                sync(_others_ended())
        bench.counts["finished"] += 1
        assert bench.files(self.folder) == bench.expected, "the finished scene is another"
        self.forget()
        return None

    def forget(self) -> None:
        shutil.rmtree(self.scene)
        self.cache = Cache()
        self.manifest_is_harmed = False

    @rule(harms=st.lists(HARMS, max_size=2), fault=FAULTS)
    def resume(self, harms: list[Harm], fault: Fault) -> None:
        """Damage what an earlier run left, and run again, with another fault."""
        self.bench.counts["steps"] += 1
        for harm in harms if self.scene.exists() else []:
            self.harm(harm)
        error = self.run_with(fault)
        if self.manifest_is_harmed and type(error) is StoreError:
            # Of nothing else it depends whether this is a scene, or another's data.
            assert str(self.scene) in str(error)
            assert re.search("delete it|upgrade", str(error))
            self.bench.counts["refused"] += 1
            self.forget()
        elif fault.struck:
            self.bench.counts[str(fault)] += 1
            fault.check(error, self)
        else:
            assert error is None, "it failed for no reason"

    def run_with(self, fault: Fault) -> BaseException | None:
        fault.begin(self)
        with pytest.MonkeyPatch.context() as patch:
            fault.lay(patch)
            return self.run(fault.before, executor=fault.executor)

    def is_finished(self) -> bool:
        try:
            return Scene.open(self.scene).manifest.complete
        except StoreError:
            return False

    def harm(self, harm: Harm) -> None:
        # A finished scene is left alone: what is damaged there readers notice, and no run makes it again.
        folder = self.scene / "work" if self.is_finished() else self.scene
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if not files:
            return
        file = files[int(harm.at * len(files))]
        self.manifest_is_harmed |= file == self.scene / "zarr.json"
        harm.strike(file)
        self.bench.counts[f"{harm.kind} {'metadata' if file.name == 'zarr.json' else 'chunk'}"] += 1


PIDS = itertools.count(10_000_000)


@pytest.fixture(scope="module")
def bench(tmp_path_factory, photo, write_tiff, quick, serial, files) -> Iterator[Bench]:
    """An image of three strips, its scene of 2 x 3 tiles in two shards, with every kind of pass."""
    folder = tmp_path_factory.mktemp("faults")
    source = write_tiff(folder / "a.tif", photo("china", 70, 100))
    config = quick(nominal_ratio=6.0, tile=48, halo=6)
    with pytest.MonkeyPatch.context() as patch, zarr.config.set({"async.concurrency": 1}):
        for module in ("pipeline.ingest", "storage.pixels"):
            patch.setattr(f"{module}.STRIP_HEIGHT", STRIP)
        patch.setattr("storage.scene.SHARD_TILES", 2)
        patch.setattr("pipeline.insert._TILES_A_SIDE", 1)
        patch.setattr("pipeline.memory.resident_bytes", lambda process: 0)  # to look at all processes is slow, too
        for ladder in ("FACTORS", "COLOR_FACTORS"):  # much of the time of so small a scene
            patch.setattr(rate, ladder, getattr(rate, ladder)[::-2][::-1])
        (folder / "whole").mkdir()
        compress(source, folder / "whole" / "a.zarr", config=config, resources=serial)
        yield Bench(
            folder=folder,
            source=source,
            config=config,
            resources=serial,
            files=files,
            expected=files(folder / "whole"),
        )


@pytest.mark.parametrize("left", range(5))
def test_a_source_that_is_lost_at_any_moment_is_said_to_be(left, bench):
    machine, fault = Faults(bench), SourceLost(left=left)
    error = machine.run_with(fault)
    assert fault.struck
    fault.check(error, machine)
    assert not machine.scene.exists(), "of a scene that was made for it nothing is left"


@pytest.mark.parametrize(
    ("array", "digit"),
    [
        ("work/pixels-4", r'"shape": \[(\d)'),
        ("work/strips", r'"chunk_shape": \[(\d)'),
        ("work/survey", r'"shape": \[(\d)'),
        ("work/state-1", r'"level": (\d)'),
        ("work/state-1-reports", r'"shape": \[(\d)'),
        ("gaussians", r'"color": 0\.0*(\d)'),
    ],
)
def test_a_digit_that_is_wrong_in_metadata_before_anything_is_written_is_noticed_and_done_again(array, digit, bench):
    """Nothing that was written tells of it: what is written from then on is, or is taken for, something else."""
    machine = Faults(bench)
    folder = machine.scene / array

    def kill(access: Access) -> None:
        if not access.reads and access.paths[-1].parent == folder and access.paths[-1].name.startswith("c."):
            raise Killed

    assert isinstance(machine.run(kill), Killed)
    metadata = (folder / "zarr.json").read_text()
    found = re.search(digit, metadata)
    assert found, metadata
    at = found.start(1)
    (folder / "zarr.json").write_text(f"{metadata[:at]}{(int(metadata[at]) + 1) % 10}{metadata[at + 1 :]}")
    assert machine.run() is None


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_right_after_a_scene_is_finished_takes_nothing_of_it(seed, bench, monkeypatch):
    machine = Faults(bench)

    def power_cut(scene: Scene) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Scene, "discard_work", power_cut)
        assert isinstance(machine.run(), Killed)
    lost = machine.cache.lose(random.Random(seed))
    assert lost > 20, "of the working data"
    assert Scene.open(machine.scene).manifest.complete
    assert machine.run() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("examples", "steps"),
    [(10, 200), pytest.param(270, 5000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],  # some end early
)
def test_after_any_faults_a_scene_ends_with_the_same_bytes_or_it_is_said_what_to_do(examples, steps, bench):
    bench.counts.clear()
    run_state_machine_as_test(
        lambda: Faults(bench),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS_AN_EXAMPLE,
            derandomize=True,
            deadline=None,
            phases=[Phase.generate],  # to make an example smaller takes many minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    counts = bench.counts
    print(dict(sorted(counts.items())))
    assert counts["steps"] >= steps
    assert counts["finished"] >= examples, "to and fro without end would be no resuming"
    for fault in (Kill, PowerCut, FullDisk, SourceLost, SourceUnreadable, Poison, Decay):
        assert counts[fault.__name__] >= examples / 2, f"too little of {fault}"
    for what in ("flip", "cut", "delete"):
        assert counts[f"{what} chunk"] >= examples / 2
        assert counts[f"{what} metadata"] >= examples / 5
    assert counts["files torn"] >= examples / 2
    assert counts["files lost"] >= examples
