"""The whole journey: an image becomes a scene. Each stage can be killed, and is taken up again where it was."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import encode, evaluate, ingest, insert, optimize, pilot, rate, sample
from pipeline.executors import DaskExecutor, Executor, SerialExecutor
from pipeline.jobs import DEFAULT_POLICY, FailurePolicy
from pipeline.memory import MemoryWatch
from pipeline.plan import Resources, ScenePlan, plan_scene
from pipeline.progress import NoProgress, Progress
from pipeline.recheck import recheck
from pipeline.run import Run
from pipeline.tracking import tracked
from smartsplat.config import SceneConfig
from smartsplat.errors import ConfigError, SourceError, SourceUnavailable, StoreError
from smartsplat.geometry import block_grid, colors_of
from smartsplat.render import resolve_engine
from smartsplat.schedule import InsertPass
from storage.groups import disk_errors
from storage.lock import forget_dead_writer, only_writer
from storage.scene import Manifest, Scene
from storage.source import SourceInfo, read_info

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneReport:
    """What came of a run.

    Parameters
    ----------
    scene, source
        Paths.
    shape, dtype
        Of the image.
    tiles, gaussians
        How many.
    quality
        ``psnr`` dB, ``ssim``, ``ms_ssim``.
    nbytes, bits_per_pixel, nominal_ratio, measured_ratio
        Size on disk; asked for and real.
    degraded
        Tiles, or blocks of them, of which a fit failed and a simpler one took its place, as was asked for.
    seconds
        Time of each stage in this run; empty if there was nothing left to do.
    memory, projected_memory
        Highest resident memory of this process and its workers together in each stage of this run, and what the plan
        says of it, bytes.
    """

    scene: str
    source: str
    shape: tuple[int, int, int]
    dtype: str
    tiles: int
    gaussians: int
    quality: dict[str, float | None]
    nbytes: int
    bits_per_pixel: float
    nominal_ratio: float | None
    measured_ratio: float
    degraded: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    projected_memory: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return {
            "scene": self.scene,
            "source": self.source,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "tiles": self.tiles,
            "gaussians": self.gaussians,
            **self.quality,
            "bytes": self.nbytes,
            "bits_per_pixel": self.bits_per_pixel,
            "nominal_ratio": self.nominal_ratio,
            "measured_ratio": self.measured_ratio,
            "degraded": list(self.degraded),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "memory": self.memory,
            "projected_memory": self.projected_memory,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A named part of the journey, to be done after those before it.

    Parameters
    ----------
    name
        For people.
    stage
        What its time is booked under.
    work
        Does it; what is done already it leaves alone.
    """

    name: str
    stage: str
    work: Callable[[], None]


def compress(
    source: str | Path,
    scene: str | Path,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    bits_per_pixel: float | None = None,
    psnr: float | None = None,
    gaussians: int | None = None,
    config: SceneConfig | None = None,
    resources: Resources | None = None,
    policy: FailurePolicy | None = None,
    keep_work: bool = False,
    progress: Progress | None = None,
) -> SceneReport:
    """Compress the image `source` into the scene `scene`; resume it if it is unfinished.

    Parameters
    ----------
    source
        TIFF, PNG, JPEG, WebP, ... of any size; a path, or the URL of an object in a store (``s3://``, ``gs://``, ...).
    scene
        Folder to make.
    ratio
        Raw bytes over bytes of the scene: a promise. 100 if none of this and the next five is given.
    max_bytes, bits_per_pixel
        The promise in bytes of the scene, or in bits for each pixel of the image, instead.
    psnr
        dB to reach instead, in as few bytes as it takes; first a sample of the image is fitted a few times.
    gaussians
        Number of Gaussians instead.
    config
        All settings, instead of those above.
    resources
        What the run may use.
    policy
        What becomes of it when jobs fail.
    keep_work
        Keep the staged pixels and working state inside the scene.
    progress
        Told how far it is.

    Raises
    ------
    SourceError
        If the image cannot be read faithfully; nothing is left behind.
    ConfigError
        If settings make no sense, or contradict an unfinished or finished scene at the same place.
    StoreError
        If the place cannot be used, or another run works on it.
    StageIncomplete, StorageFullError
        If work failed; call again to go on where it stopped.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    ...     Image.fromarray(noise).save(f"{folder}/noise.png")
    ...     report = compress(f"{folder}/noise.png", f"{folder}/noise.zarr", ratio=4)
    >>> 4 <= report.measured_ratio <= 4.5
    True
    """
    nothing = ratio is max_bytes is bits_per_pixel is psnr is gaussians is None
    if config is None:
        config = SceneConfig(
            nominal_ratio=100 if nothing else ratio,
            max_bytes=max_bytes,
            bits_per_pixel=bits_per_pixel,
            psnr=psnr,
            count=gaussians,
        )
    elif not nothing:
        raise ConfigError("give either a config, or a ratio, bytes, bits per pixel, a PSNR or a number of Gaussians")
    progress = progress or NoProgress()
    preparation = prepare(
        source,
        Path(scene),
        config=config,
        resources=resources or Resources(),
        policy=policy or DEFAULT_POLICY,
        progress=progress,
    )
    return execute(preparation, keep_work=keep_work, progress=progress, do=lambda step: step.work())


def execute(
    preparation: Preparation, *, keep_work: bool, progress: Progress, do: Callable[[Step], None]
) -> SceneReport:
    """Do what is left of a prepared request, each step by `do`; return the report of the finished scene."""
    seconds: dict[str, float] = {}
    watch = MemoryWatch()
    if preparation.finished:
        forget_dead_writer(preparation.path)
        return _report(preparation, keep_work=keep_work, seconds=seconds, memory=watch.peaks)
    with only_writer(preparation.path):
        _check_unchanged(preparation)
        with (
            tracked(progress, scene=preparation.path, plan=preparation.plan) as watched,
            preparation.executor() as executor,
            watch,
        ):
            for step in steps(preparation, executor, progress=watched):
                watch.begin(step.stage)
                started = time.perf_counter()
                do(step)
                seconds[step.stage] = seconds.get(step.stage, 0.0) + time.perf_counter() - started
        return _report(preparation, keep_work=keep_work, seconds=seconds, memory=watch.peaks)


def _check_unchanged(preparation: Preparation) -> None:
    """Raise `StoreError` if another run has made or finished the scene since the preparation."""
    path = preparation.path
    if path.exists() != preparation.exists or (preparation.exists and Scene.open(path).manifest.complete):
        raise StoreError(f"{path}: another run has worked on it meanwhile; run the same command again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """A checked request, before any work.

    Parameters
    ----------
    path
        Of the scene.
    plan
        What to do.
    resources
        What to do it with.
    policy
        What becomes of it when jobs fail.
    exists, finished
        Whether the scene is there already, and whether nothing is left to do.
    """

    path: Path
    plan: ScenePlan
    resources: Resources
    policy: FailurePolicy
    exists: bool
    finished: bool

    def executor(self) -> Executor:
        """Return the executor of the plan, not started."""
        if self.plan.executor == "serial":
            return SerialExecutor(threads=self.plan.workers)
        return DaskExecutor(workers=self.plan.workers, scheduler=self.resources.scheduler)


def prepare(
    source: str | Path,
    path: Path,
    *,
    config: SceneConfig,
    resources: Resources,
    policy: FailurePolicy = DEFAULT_POLICY,
    progress: Progress | None = None,
) -> Preparation:
    """Return the plan and the state of its scene, having checked everything that can be before work starts.

    For a PSNR that includes the number of Gaussians it takes, found out with a sample unless the scene is there.
    """
    if resources.engine != resolve_engine(resources.engine) == "cuda":
        logger.info("%s: worked out on the CUDA device (--engine cpu does without)", path)
    info = read_info(source)
    manifest = Scene.open(path).manifest if path.exists() else None
    if manifest is None:
        _check_place(path)
    count = None
    if config.psnr is not None:
        count = manifest.count if manifest else count_for_psnr(info, config, resources=resources, progress=progress)
    plan = plan_scene(info, config, resources=resources, cores=usable_cores(), count=count)
    if manifest is None:
        return Preparation(path=path, plan=plan, resources=resources, policy=policy, exists=False, finished=False)
    plan = dataclasses.replace(plan, rounds=manifest.rounds)
    if manifest.digest != plan.digest:
        raise ConfigError(_differences(path, manifest, plan))
    if not manifest.complete:
        _check_writable(path)
    return Preparation(
        path=path, plan=plan, resources=resources, policy=policy, exists=True, finished=manifest.complete
    )


def count_for_psnr(
    info: SourceInfo, config: SceneConfig, *, resources: Resources, progress: Progress | None = None
) -> int:
    """Return how many Gaussians an image takes to reach the PSNR of `config`, as far as a sample of it tells.

    Raises
    ------
    BudgetError
        If there is no such number.
    """
    assert config.psnr is not None
    progress = progress or NoProgress()
    alone = Resources(executor="serial", workers=resources.workers, memory=resources.memory, engine=resources.engine)
    with tempfile.TemporaryDirectory(prefix="smartsplat-pilot-") as folder:
        sampled = pilot.sample_image(info, Path(folder))

        def measure(count: int) -> float:
            progress.start(f"trial with {count} Gaussians for {sampled.pixels / 1e6:.2f} MP", total=1, done=0)
            trial = dataclasses.replace(config, psnr=None, count=count)
            prepared = prepare(sampled.path, Path(folder) / f"{count}.zarr", config=trial, resources=alone)
            with prepared.executor() as executor:
                run = begin(prepared, executor, progress=NoProgress())
                for step in fit_steps(run, new=True):
                    step.work()
                psnr = evaluate.score_sweep(run, run.plan.last_sweep).psnr
            if math.isnan(psnr):
                raise ConfigError(f"{info.path}: no pixel has data, so there is no PSNR to be reached")
            progress.advance(f"{psnr:.2f} dB")
            progress.finish()
            return psnr

        return pilot.find_count(
            measure,
            target=config.psnr + rate.PSNR_LOSS,
            sample=sampled,
            pixels=info.height * info.width,
            bands=info.bands,
        )


def begin(preparation: Preparation, executor: Executor, *, progress: Progress) -> Run:
    """Return the run, having made the scene, or swept up after a killed run."""
    if preparation.exists:
        scene = recheck(Scene.open(preparation.path, writable=True))
    else:
        scene = Scene.create(preparation.path, _manifest(preparation.plan))
    return Run(
        scene=scene,
        first_plan=preparation.plan,
        executor=executor,
        progress=progress,
        engine=preparation.resources.engine,
        policy=preparation.policy,
    )


def steps(preparation: Preparation, executor: Executor, *, progress: Progress) -> list[Step]:
    """Return what there is to do, in order, having begun the run."""
    run = begin(preparation, executor, progress=progress)
    plan, scene = run.plan, run.scene
    settling = [
        Step(name=f"settle, phase {color + 1}", stage="fit", work=lambda color=color: optimize.settle_phase(run, color))
        for color in colors_of(plan.grid)
    ]
    return [
        *fit_steps(run, new=not preparation.exists),
        *(
            []
            if plan.config.psnr is None
            else [Step(name="further rounds", stage="fit", work=lambda: _further_rounds(run))]
        ),
        Step(name="rate", stage="encode", work=lambda: rate.measure_shapes(run)),
        *settling,
        Step(name="rate of colors", stage="encode", work=lambda: rate.measure_colors(run)),
        Step(name="encode", stage="encode", work=lambda: encode.encode(run)),
        Step(name="evaluate", stage="evaluate", work=lambda: evaluate.score_scene(run)),
        Step(name="finish", stage="evaluate", work=scene.finish),
    ]


def fit_steps(run: Run, *, new: bool) -> list[Step]:
    """Return the steps to finished Gaussians, not yet quantised; `new` if the scene was made for this run."""
    found = [
        Step(name="ingest", stage="ingest", work=lambda: _ingest(run, new=new)),
        Step(name="survey", stage="sample", work=lambda: sample.survey(run)),
        Step(name="sample", stage="sample", work=lambda: sample.sample(run)),
    ]
    return [*found, *_sweep_steps(run)]


def _sweep_steps(run: Run) -> list[Step]:
    """Return the steps of the sweeps of the fit; those that are over do nothing."""
    found: list[Step] = []
    for sweep, each in enumerate(run.plan.passes, start=1):
        if isinstance(each, InsertPass):
            work = partial(insert.insert, run, sweep, each)
            found.append(Step(name=f"sweep {sweep}: {each}", stage="fit", work=work))
            continue
        for color in colors_of(block_grid(run.plan.grid, each.factor)):
            work = partial(optimize.fit_phase, run, sweep, each, color)
            found.append(Step(name=f"sweep {sweep}: {each}, phase {color + 1}", stage="fit", work=work))
    return found


def _further_rounds(run: Run) -> None:
    """Fit with more Gaussians, or with fewer, as long as it is too far from the PSNR asked for."""
    while (count := rate.next_count(run)) is not None:
        run.scene.update(rounds=(*run.plan.rounds, count))
        for step in _sweep_steps(run):
            step.work()


def _report(
    preparation: Preparation, *, keep_work: bool, seconds: dict[str, float], memory: dict[str, int]
) -> SceneReport:
    """Return the report of a finished scene, having discarded its working data unless that is kept."""
    scene = Scene.open(preparation.path)
    if not keep_work:
        scene.discard_work()
    manifest = scene.manifest
    nbytes = scene.nbytes
    height, width, _ = manifest.shape
    return SceneReport(
        scene=str(preparation.path),
        source=preparation.plan.source.path,
        shape=manifest.shape,
        dtype=manifest.dtype,
        tiles=len(manifest.grid),
        gaussians=manifest.gaussians,
        quality=manifest.quality or {},
        nbytes=nbytes,
        bits_per_pixel=8 * nbytes / (height * width),
        nominal_ratio=manifest.config.nominal_ratio,
        measured_ratio=manifest.raw_bytes / nbytes,
        degraded=manifest.degraded,
        seconds=seconds,
        memory=memory,
        projected_memory=preparation.plan.memory,
    )


def _ingest(run: Run, *, new: bool) -> None:
    try:
        ingest.ingest(run)
    except SourceUnavailable:
        raise
    except SourceError:
        # The file is damaged further down. Of a scene that was made for it a moment ago, nothing shall be left.
        if new:
            shutil.rmtree(run.scene.folder, ignore_errors=True)
        raise


def _manifest(plan: ScenePlan) -> Manifest:
    source = plan.source
    return Manifest(
        shape=source.shape,
        dtype=source.dtype,
        source_name=Path(source.path).name,
        source_fingerprint=source.fingerprint,
        config=plan.config,
        digest=plan.digest,
        count=plan.count,
    )


def _differences(path: Path, manifest: Manifest, plan: ScenePlan) -> str:
    differing = [f"{difference} now" for difference in manifest.config.differences(plan.config)]
    if not _same_image(manifest, plan.source):
        differing.insert(0, f"source: {manifest.source_name}, and another image now")
    if not differing:
        differing.append("defaults of another version of smartsplat")
    state = "finished" if manifest.complete else "unfinished"
    return (
        f"{path}: holds a scene ({state}) made with other settings: {'; '.join(differing)}. "
        "Use those settings, or another destination"
    )


def _same_image(manifest: Manifest, source: SourceInfo) -> bool:
    mine = (manifest.source_fingerprint, manifest.shape, manifest.dtype)
    return mine == (source.fingerprint, source.shape, source.dtype)


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreError(f"{path}: the folder {path.parent} does not exist")
    _check_writable(path.parent)


def _check_writable(folder: Path) -> None:
    """Raise `StoreError` if files cannot be made in `folder`; trying is the only test that tells."""
    # A file without a name, where there are such: a kill leaves nothing.
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
