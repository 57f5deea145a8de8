"""An archive as a Prefect flow: a task for each scene, tables of what came of them, and a clock that starts it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.client.schemas.schedules import CronSchedule
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.archive import FAILED, Archive, ArchiveScene, ArchiveSettings, scenes_of
from flows.archive_report import HTML_NAME, line_of, rows_of, totals_rows
from flows.console import LineProgress
from flows.settings import parse_bytes, scene_config
from flows.thumbnails import thumbnail_files
from pipeline.jobs import FailurePolicy
from pipeline.plan import Resources
from smartsplat.errors import ConfigError, FitError

TABLE, SUMMARY = "archive-scenes", "archive-summary"
"""Keys of the artifacts."""

_MOST_LINKS = 100

logger = logging.getLogger(__name__)


@flow(name="compress-archive")
def compress_archive(
    archive: str,
    destination: str,
    preset: Literal["draft", "standard", "best", "paper"] = "standard",
    ratio: float | None = None,
    psnr: float | None = None,
    scenes_at_once: int = 1,
    workers: int | None = None,
    memory: str | None = None,
    on_failure: Literal["stop", "fallback"] = "stop",
    asset: str | None = None,
    retry_failed: bool = False,
) -> dict[str, str]:
    """Compress every image of an archive. Finished scenes are skipped, unfinished and failed ones taken up again.

    Args:
        archive: Folder, pattern, list (.txt, .csv, .jsonl) or STAC item collection (.json).
        destination: Folder of the scenes.
        preset: How much work is put into a scene.
        ratio: Raw bytes over bytes on disk: a promise. 100 if neither this nor a PSNR is given.
        psnr: dB to reach in as few bytes as it takes, instead of a ratio.
        scenes_at_once: They share workers and memory.
        workers: Parallel jobs; one per core if not given.
        memory: Most memory to take in all, e.g. 4GiB.
        on_failure: Of a tile: stop its scene, to be resumed, or solve for its colors only.
        asset: Which asset of each STAC item is its image.
        retry_failed: Take only those scenes that failed, according to the destination's report.

    Returns:
        Names and values of the totals (see `flows.archive_report.totals_rows`).

    Raises:
        ArchiveIncomplete: If scenes failed; all others are done.
    """
    # In this style Prefect reads the docstring, and shows it in the form for the parameters.
    settings = ArchiveSettings(
        config=scene_config(preset, ratio=ratio, psnr=psnr),
        resources=Resources(workers=workers, memory=None if memory is None else parse_bytes(memory)),
        policy=FailurePolicy(fallback=on_failure == "fallback"),
        at_once=scenes_at_once,
        flow=bool(PREFECT_API_URL.value()),  # a server of this flow's own is gone with it
    )
    folder = Path(destination).absolute()
    found = scenes_of(archive, folder, settings, asset=asset, retry_failed=retry_failed)
    work = Archive(folder, found, settings, progress=LineProgress())
    try:
        work.run(_as_task(work))
    finally:
        _publish(work)
    return dict(totals_rows(work.scenes))


def serve_archive(archive: str, destination: Path, *, cron: str, timezone: str, parameters: dict[str, Any]) -> None:
    """Compress an archive whenever the clock says so, and whenever a person asks for it, until interrupted.

    Parameters
    ----------
    archive, destination
        See `compress_archive`.
    cron, timezone
        When, e.g. ``0 3 * * *``, and by whose clock, e.g. ``Europe/Berlin``.
    parameters
        Others of `compress_archive`.

    Raises
    ------
    ConfigError
        If the schedule makes no sense, or there is no Prefect server.
    """
    if not PREFECT_API_URL.value():
        raise ConfigError(
            "no Prefect server is configured: start one with 'prefect server start', and say where it is with "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise ConfigError(f"{cron!r} ({timezone}) is no schedule: {error.errors()[0]['msg']}") from error
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise ConfigError(f"the Prefect server at {PREFECT_API_URL.value()} does not answer: {problem}")
    compress_archive.serve(
        name=destination.absolute().name,
        schedule=Cron(cron, timezone=timezone),
        parameters={"archive": archive, "destination": str(destination.absolute()), **parameters},
        description=f"{archive} -> {destination.absolute()}",
        entrypoint_type=EntrypointType.MODULE_PATH,
        limit=1,  # the destination has room for one run
    )


def _as_task(archive: Archive) -> Callable[[ArchiveScene], State[Any]]:
    """Return what compresses a scene as a task, which fails if the scene does."""

    def compress(scene: ArchiveScene) -> str:
        ended = archive.compress(scene)
        if ended.state == FAILED:
            raise FitError(line_of(ended)) from None
        return line_of(ended)

    def run(scene: ArchiveScene) -> State[Any]:
        return task(name=scene.name, persist_result=False)(compress)(scene, return_state=True)

    return run


def _publish(archive: Archive) -> None:
    """Show what came of the scenes beside the flow's run."""
    scenes = archive.scenes
    create_table_artifact(table=rows_of(scenes), key=TABLE, description="What came of each scene.")
    lines = [f"- {name}: {value}" for name, value in totals_rows(scenes)]
    failed = [f"- {line_of(scene)}" for scene in scenes if scene.state == FAILED]
    links: list[str] = []
    for scene in scenes[:_MOST_LINKS]:
        before, after = thumbnail_files(scene.path, root=archive.destination)
        if after.exists():
            links.append(f"- {scene.name}: [image]({before.as_uri()}), [scene]({after.as_uri()})")
    parts = [("", [*lines, "", f"[All of it]({(archive.destination / HTML_NAME).as_uri()})"])]
    parts += [("## Failed", failed)] * bool(failed) + [("## Thumbnails", links)] * bool(links)
    create_markdown_artifact("\n\n".join("\n".join((title, "", *part)).strip() for title, part in parts), key=SUMMARY)
