"""The same journey as a Prefect flow: a task for each stage and phase, so that a server shows and retries them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.logging import get_run_logger

from flows.console import LineProgress
from pipeline.compress import Step, execute, prepare
from pipeline.jobs import FailurePolicy
from pipeline.plan import Resources
from smartsplat.config import SceneConfig


@flow(name="compress-scene", validate_parameters=False)
def compress_scene(
    source: str,
    scene: str,
    config: dict[str, Any],
    resources: dict[str, Any],
    policy: dict[str, Any] | None = None,
    keep_work: bool = False,
) -> dict[str, Any]:
    """Compress the image `source` into the scene `scene`; resume it if it is unfinished.

    Parameters
    ----------
    source, scene
        Paths.
    config
        See `SceneConfig.to_dict`.
    resources
        Fields of `Resources`.
    policy
        Fields of `FailurePolicy`.
    keep_work
        Keep the working data.

    Returns
    -------
    See `SceneReport.to_dict`.
    """
    progress = LineProgress()
    preparation = prepare(
        source,
        Path(scene),
        config=SceneConfig.from_dict(config),
        resources=Resources(**resources),
        policy=FailurePolicy(**(policy or {})),
        progress=progress,
    )
    report = execute(preparation, keep_work=keep_work, progress=progress, do=_as_task)
    get_run_logger().info("%s: ratio %.1f, PSNR %s dB", scene, report.measured_ratio, report.quality.get("psnr"))
    return report.to_dict()


def run_flow(
    source: str, scene: Path, *, config: SceneConfig, resources: Resources, policy: FailurePolicy, keep_work: bool
) -> dict[str, Any]:
    """Run `compress_scene` here and now; Prefect starts a temporary server of its own if none is configured."""
    given = [dataclasses.asdict(each) for each in (resources, policy)]
    return compress_scene(source, str(scene), config.to_dict(), *given, keep_work=keep_work)


def _as_task(step: Step) -> None:
    # What a step needs is in the store: its task takes no parameter, and returns nothing to keep.
    task(name=step.name, persist_result=False)(step.work)()
