"""A whole archive compressed, scene by scene: what is done is skipped, what fails is recorded, the rest goes on."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.archive_report import failed_before, line_of, write_reports
from flows.listing import Image, list_images
from flows.scene_process import SceneProcess, SceneRequest, SceneResult
from flows.settings import DEFAULT_RATIO
from pipeline.compress import Preparation, execute, prepare, usable_cores
from pipeline.forecast import run_parts
from pipeline.jobs import DEFAULT_POLICY, FailurePolicy
from pipeline.plan import Resources, ScenePlan, plan_scene
from pipeline.progress import NoProgress, Progress
from smartsplat.budget import gaussian_count
from smartsplat.config import SceneConfig
from smartsplat.errors import ArchiveIncomplete, ConfigError, SmartsplatError, StorageFullError, StoreError
from storage.durable import METADATA
from storage.lock import only_writer
from storage.source import read_info

DONE, SKIPPED, FAILED, LEFT = "done", "skipped", "failed", "left"
"""How a scene of an archive ended: finished by this run, or by an earlier one; failed; not begun, or stopped."""

_PAIR_PIXELS_A_SECOND = 20e6
"""Work that a core does in a second (see `pipeline.forecast`), until a scene of the same run has shown it."""

_SECONDS_A_SCENE = 2.0  # to start its process and end it

_SECONDS_BETWEEN_RECORDS = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSettings:
    """How an archive is compressed.

    Parameters
    ----------
    config, resources, policy
        Of each scene; memory and workers of `resources` are shared by those that run at once.
    at_once
        Scenes.
    log_level, log_json
        See `flows.logs.set_up_logs`.
    flow
        Whether each scene is a Prefect flow run of its own.
    """

    config: SceneConfig
    resources: Resources = field(default_factory=Resources)
    policy: FailurePolicy = DEFAULT_POLICY
    at_once: int = 1
    log_level: str = "info"
    log_json: bool = False
    flow: bool = False

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ConfigError(f"{self.at_once} scenes at once: at least one is needed")

    @property
    def scene_resources(self) -> Resources:
        """What one scene may use."""
        workers = max(1, (self.resources.workers or usable_cores()) // self.at_once)
        memory = None if self.resources.memory is None else self.resources.memory // self.at_once
        return dataclasses.replace(self.resources, workers=workers, memory=memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveScene:
    """A scene of an archive.

    Parameters
    ----------
    name, source, path
        See `flows.listing.Image`; the scene's folder.
    state
        `DONE`, `SKIPPED`, `FAILED` or `LEFT`.
    wanted
        Whether this run is to do it, if it can be done.
    unfinished
        Whether it is there and to be resumed.
    shape
        ``(H, W, C)``; None if the image cannot be read.
    raw_bytes, work
        Of the image; pair-pixels that it takes (see `pipeline.forecast`).
    report
        See `SceneReport.to_dict`; None unless it is finished.
    error, message
        Name of the error's class and what it says; None unless it failed.
    seconds
        That this run spent on it.
    """

    name: str
    source: str
    path: Path
    state: str = LEFT
    wanted: bool = True
    unfinished: bool = False
    shape: tuple[int, int, int] | None = None
    raw_bytes: int = 0
    work: float = 0.0
    report: dict[str, Any] | None = None
    error: str | None = None
    message: str | None = None
    seconds: float = 0.0

    @property
    def is_to_do(self) -> bool:
        """Whether it is wanted, and neither finished nor known to fail."""
        return self.wanted and self.state == LEFT

    @property
    def plan(self) -> str:
        """What a run does about it: ``skip``, ``fail``, ``leave``, ``resume`` or ``compress``."""
        fixed = {SKIPPED: "skip", FAILED: "fail"}.get(self.state)
        if fixed is not None or not self.wanted:
            return fixed or "leave"
        return "resume" if self.unfinished else "compress"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON."""
        values = dataclasses.asdict(self) | {"path": str(self.path)}
        return values | {"shape": None if self.shape is None else list(self.shape)}


class Archive:
    """An archive at work. Scenes may be compressed by several threads; all else is for one.

    Parameters
    ----------
    destination
        Folder of the scenes.
    scenes
        As `examine` found them.
    settings
        How.
    progress
        Told how far it is.
    """

    def __init__(
        self, destination: Path, scenes: Iterable[ArchiveScene], settings: ArchiveSettings, *, progress: Progress
    ) -> None:
        self.destination, self.settings = destination, settings
        self._scenes = {scene.name: scene for scene in scenes}
        self._progress = progress
        self._lock = threading.Lock()
        self._running: dict[str, SceneProcess] = {}
        self._shares: dict[str, float] = {}
        self._stopped = False
        self._began = self._recorded = time.monotonic()

    @property
    def scenes(self) -> list[ArchiveScene]:
        """All of them, by name."""
        return list(self._scenes.values())

    @property
    def to_do(self) -> list[ArchiveScene]:
        """Those that are wanted, and neither finished nor known to fail."""
        return [scene for scene in self.scenes if scene.is_to_do]

    def run(self, do: Callable[[ArchiveScene], object] | None = None) -> None:
        """Compress what is to be done, several at once, and write the reports.

        Parameters
        ----------
        do
            Calls `compress` for a scene, in a thread with the context of this one; None = `compress` itself.

        Raises
        ------
        ArchiveIncomplete
            If scenes failed; all others are done.
        StorageFullError
            If the disk is full: at once, since every other scene would fail too.
        """
        with self.running(), ThreadPoolExecutor(self.settings.at_once) as threads:
            futures = [threads.submit(copy_context().run, do or self.compress, scene) for scene in self.to_do]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.stop()
                raise
        self.check()

    @contextmanager
    def running(self) -> Generator[None]:
        """Keep others off the destination, show how far it is, and write the reports at the end, however it ends."""
        self.destination.mkdir(parents=True, exist_ok=True)
        with only_writer(self.destination):
            to_do = self.to_do
            self._progress.start("scenes", total=len(self._scenes), done=len(self._scenes) - len(to_do))
            try:
                yield
            finally:
                self._progress.finish()
                write_reports(self.destination, self.scenes, self.settings, html=True)

    def compress(self, scene: ArchiveScene) -> ArchiveScene:
        """Compress a scene in a process of its own; return how it ended."""
        if self._stopped:
            return scene
        settings = self.settings
        request = SceneRequest(
            source=scene.source,
            scene=str(scene.path),
            root=str(self.destination),
            config=settings.config.to_dict(),
            resources=dataclasses.asdict(settings.scene_resources),
            policy=dataclasses.asdict(settings.policy),
            flow=settings.flow,
            log_level=settings.log_level,
            log_json=settings.log_json,
        )
        process = SceneProcess(request, share=lambda share: self._moved(scene, share))
        with self._lock:
            self._running[scene.name] = process
        began = time.monotonic()
        try:
            scene.path.parent.mkdir(parents=True, exist_ok=True)
            result = process.run()
        except OSError as error:
            result = SceneResult(error=type(error).__name__, message=str(error))
        return self._ended(_with_result(scene, result, seconds=time.monotonic() - began, stopped=self._stopped))

    def stop(self) -> None:
        """Begin no other scene, and have those that run stop."""
        with self._lock:
            self._stopped = True
            for process in self._running.values():
                process.stop()

    def check(self) -> None:
        """Raise `ArchiveIncomplete` if scenes failed."""
        failed = [scene for scene in self.scenes if scene.state == FAILED]
        if failed:
            raise ArchiveIncomplete(
                f"{self.destination}: {len(failed)} of {len(self._scenes)} scenes failed, the others are done; run the "
                f"same command again to retry only those. First: {failed[0].name}: {failed[0].message}"
            )

    def _moved(self, scene: ArchiveScene, share: float) -> None:
        with self._lock:
            self._shares[scene.name] = share
            self._tell()

    def _ended(self, scene: ArchiveScene) -> ArchiveScene:
        with self._lock:
            self._scenes[scene.name] = scene
            self._running.pop(scene.name, None)
            if scene.state == FAILED:
                logger.warning("%s", line_of(scene), extra={"scene": str(scene.path)})
            if scene.state != LEFT:
                self._progress.advance(line_of(scene))
            self._tell()
            if time.monotonic() - self._recorded >= _SECONDS_BETWEEN_RECORDS:
                write_reports(self.destination, self.scenes, self.settings, html=False)
                self._recorded = time.monotonic()
        if scene.error == StorageFullError.__name__:
            raise StorageFullError(scene.message or "")
        return scene

    def _tell(self) -> None:
        """Say how much of this run's work is done, and how long the rest takes at its pace."""
        mine = [scene for scene in self.scenes if scene.state != SKIPPED]
        total = sum(scene.work for scene in mine)
        done = sum(scene.work * (1.0 if scene.state != LEFT else self._shares.get(scene.name, 0.0)) for scene in mine)
        if total:
            seconds = time.monotonic() - self._began
            self._progress.overall(done / total, seconds_left=(total - done) * seconds / done if done else None)


def examine(images: Iterable[Image], destination: Path, settings: ArchiveSettings) -> list[ArchiveScene]:
    """Return the scenes of an archive, and what is known of them before any work; nothing is written.

    What cannot be read, or planned, has failed already; what is finished, with these settings, is skipped.
    """
    return [_examined(image, destination / f"{image.name}.zarr", settings) for image in images]


def scenes_of(
    archive: str, destination: Path, settings: ArchiveSettings, *, asset: str | None = None, retry_failed: bool = False
) -> list[ArchiveScene]:
    """Return the scenes of an archive as `examine` does, having checked that it and the destination make sense.

    Parameters
    ----------
    archive, asset
        See `flows.listing.list_images`.
    retry_failed
        Want only those that failed according to the destination's report.

    Raises
    ------
    SourceError, StoreError
        If the archive cannot be read, or the destination not be used.
    """
    _check_destination(destination)
    images = list_images(archive, leave_out=destination, asset=asset)
    wanted = failed_before(destination) if retry_failed else {image.name for image in images}
    found = examine(images, destination, settings)
    return [dataclasses.replace(scene, wanted=scene.name in wanted) for scene in found]


def outlook(scenes: Iterable[ArchiveScene], settings: ArchiveSettings) -> dict[str, Any]:
    """Return what a run would do: each scene's plan, and how long all takes, to within a factor of two or so."""
    found = list(scenes)
    to_do = [scene for scene in found if scene.is_to_do]
    cores = min(settings.resources.workers or usable_cores(), usable_cores())
    seconds = sum(scene.work for scene in to_do) / (_PAIR_PIXELS_A_SECOND * cores)
    seconds += len(to_do) * _SECONDS_A_SCENE / min(settings.at_once, cores)
    return {
        "scenes": [
            {
                "name": scene.name,
                "plan": {SKIPPED: "skip", FAILED: "fail"}.get(
                    scene.state, "resume" if scene.unfinished else "compress"
                ),
                "size": None if scene.shape is None else list(scene.shape),
                "raw_bytes": scene.raw_bytes,
                "message": scene.message,
            }
            for scene in found
        ],
        "totals": {"to_do": len(to_do), "raw_bytes": sum(s.raw_bytes for s in to_do), "seconds": round(seconds)},
    }


def _examined(image: Image, path: Path, settings: ArchiveSettings) -> ArchiveScene:
    scene = ArchiveScene(name=image.name, source=image.source, path=path)
    try:
        if path.exists():
            preparation = prepare(
                image.source, path, config=settings.config, resources=settings.scene_resources, policy=settings.policy
            )
            scene = _planned(scene, preparation.plan)
            if preparation.finished:
                return dataclasses.replace(scene, state=SKIPPED, report=_finished_report(preparation))
            return dataclasses.replace(scene, unfinished=True)
        info = read_info(image.source)
        # For a PSNR the number is found out when the scene's turn comes; until then, one as good as any.
        usual = gaussian_count(info.height, info.width, DEFAULT_RATIO) if settings.config.psnr is not None else None
        plan = plan_scene(info, settings.config, resources=settings.scene_resources, cores=usable_cores(), count=usual)
        return _planned(scene, plan)
    except SmartsplatError as error:
        return dataclasses.replace(scene, state=FAILED, error=type(error).__name__, message=_one_line(error))


def _planned(scene: ArchiveScene, plan: ScenePlan) -> ArchiveScene:
    parts = run_parts(plan.passes, plan.grid, count=plan.count, rated=plan.byte_budget is not None)
    source = plan.source
    return dataclasses.replace(
        scene, shape=source.shape, raw_bytes=source.raw_bytes, work=sum(part.work for part in parts)
    )


def _finished_report(preparation: Preparation) -> dict[str, Any]:
    return execute(preparation, keep_work=True, progress=NoProgress(), do=lambda _: None).to_dict()


def _with_result(scene: ArchiveScene, result: SceneResult, *, seconds: float, stopped: bool) -> ArchiveScene:
    if result.report is not None:
        return dataclasses.replace(scene, state=DONE, report=result.report, seconds=seconds)
    state = LEFT if stopped else FAILED
    return dataclasses.replace(scene, state=state, error=result.error, message=result.message, seconds=seconds)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_destination(destination: Path) -> None:
    """Raise `StoreError` if no folder of scenes can be at `destination`."""
    if destination.exists() and not destination.is_dir():
        raise StoreError(f"{destination}: exists and is not a folder")
    if not destination.absolute().parent.is_dir():
        raise StoreError(f"{destination}: the folder {destination.parent} does not exist")
    if (destination / METADATA).exists():
        raise StoreError(f"{destination}: is a scene itself; give a folder for scenes")
