"""Fit an image without coding it, to see what the fit alone can do and what it costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compress import begin, fit_steps, prepare
from pipeline.evaluate import quality_dict, score_sweep
from pipeline.plan import Resources
from pipeline.progress import NoProgress, Progress
from pipeline.run import Run
from smartsplat.config import SceneConfig
from smartsplat.geometry import Region
from smartsplat.render import render
from storage.state import SweepState, latest_sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a fit came to, its Gaussians as they are, not quantised.

    Parameters
    ----------
    gaussians
        How many.
    megapixels
        Of the image.
    quality
        ``psnr`` dB, ``ssim``, ``ms_ssim``; the image rounded to the source's type.
    seconds
        Time of sampling and fitting together; staging the image and scoring are left out.
    trace
        Seconds and PSNR after each sweep, if asked for.
    image
        ``(H, W, C)`` as rendered, in the source's type, if asked for: held in memory whole.
    """

    gaussians: int
    megapixels: float
    quality: dict[str, float | None]
    seconds: float
    trace: tuple[tuple[float, float], ...] = ()
    image: NDArray[Any] | None = None


def run_trial(
    source: Path,
    config: SceneConfig,
    *,
    resources: Resources,
    scratch: Path | None = None,
    traced: bool = False,
    rendered: bool = False,
    progress: Progress | None = None,
) -> Trial:
    """Return what fitting `source` comes to; its working data is made below `scratch` and deleted.

    Raises
    ------
    SourceError, ConfigError, BudgetError
        As `pipeline.compress.compress` does.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ramp = np.linspace(0, 255, 64 * 64, dtype=np.uint8).reshape(64, 64)
    ...     Image.fromarray(ramp).save(f"{folder}/ramp.png")
    ...     trial = run_trial(Path(folder, "ramp.png"), SceneConfig(count=20), resources=Resources(executor="serial"))
    >>> trial.gaussians, trial.quality["psnr"] > 30
    (20, True)
    """
    with tempfile.TemporaryDirectory(prefix="smartsplat-trial-", dir=scratch) as folder:
        preparation = prepare(source, Path(folder) / "trial.zarr", config=config, resources=resources)
        seconds, trace = 0.0, list[tuple[float, float]]()
        with preparation.executor() as executor:
            run = begin(preparation, executor, progress=progress or NoProgress())
            for step in fit_steps(run, new=True):
                seconds += _timed(step.work) * (step.stage != "ingest")
                if traced and (psnr := _psnr(run)) is not None:
                    trace.append((seconds, psnr))
            height, width, _ = run.scene.manifest.shape
            return Trial(
                gaussians=run.plan.count,
                megapixels=height * width / 1e6,
                quality=quality_dict(score_sweep(run, run.plan.last_sweep)),
                seconds=seconds,
                trace=tuple(trace),
                image=_image(run) if rendered else None,
            )


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _image(run: Run) -> NDArray[Any]:
    """Return the image of the finished fit, in the source's type."""
    scene, (height, width, _) = run.scene, run.scene.manifest.shape
    state = SweepState.open(scene.work(), run.plan.last_sweep, grid=scene.grid)
    values = render(state.read_all(list(scene.grid)), Region(y0=0, y1=height, x0=0, x1=width), engine=run.engine)
    return run.normalization.to_pixels(values, np.dtype(scene.manifest.dtype))


def _psnr(run: Run) -> float | None:
    """Return the PSNR of the latest sweep; None if it is not complete."""
    latest = latest_sweep(run.scene.work())
    if latest is None or not SweepState.open(run.scene.work(), latest, grid=run.scene.grid).reports.done().all():
        return None
    return score_sweep(run, latest).psnr
