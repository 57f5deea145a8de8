"""What came of an archive: ``report.json`` for programs, ``report.html`` for people, in the destination."""

from __future__ import annotations

import base64
import collections
import functools
import json
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import duration_text, quality_text, size_text
from flows.thumbnails import thumbnail_files
from smartsplat.errors import StoreError
from storage.groups import disk_errors

if TYPE_CHECKING:
    from flows.archive import ArchiveScene, ArchiveSettings

JSON_NAME, HTML_NAME = "report.json", "report.html"

_MOST_THUMBNAILS = 500
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_MARGIN = 640, 320, 46


def totals(scenes: Sequence[ArchiveScene]) -> dict[str, Any]:
    """Return what holds for all scenes together: how many of each state; bytes; the mean quality of finished ones."""
    finished = [scene for scene in scenes if scene.report is not None]
    reports = [scene.report for scene in finished if scene.report is not None]
    nbytes = sum(report["bytes"] for report in reports)
    raw = sum(scene.raw_bytes for scene in finished)
    return {
        "scenes": len(scenes),
        "states": dict(sorted(collections.Counter(scene.state for scene in scenes).items())),
        "raw_bytes": raw,
        "bytes": nbytes,
        "measured_ratio": raw / nbytes if nbytes else None,
        "psnr": _mean([report["psnr"] for report in reports]),
        "ms_ssim": _mean([report["ms_ssim"] for report in reports]),
        "seconds": sum(scene.seconds for scene in scenes),
    }


def totals_rows(scenes: Sequence[ArchiveScene]) -> list[tuple[str, str]]:
    """Return names and values of `totals`, as people read them."""
    found = totals(scenes)
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    ratio = "-" if found["measured_ratio"] is None else f"{found['measured_ratio']:.1f}"
    return [
        ("scenes", f"{found['scenes']} ({states})"),
        ("images", size_text(found["raw_bytes"])),
        ("scenes on disk", f"{size_text(found['bytes'])}, ratio {ratio}"),
        ("mean PSNR", quality_text(found["psnr"], decimals=2, unit=" dB")),
        ("mean MS-SSIM", quality_text(found["ms_ssim"])),
        ("time", duration_text(found["seconds"])),
    ]


def write_reports(destination: Path, scenes: Sequence[ArchiveScene], settings: ArchiveSettings, *, html: bool) -> None:
    """Write ``report.json``, and the page if wanted, each in one step."""
    values = {
        "totals": totals(scenes),
        "config": settings.config.to_dict(),
        "scenes": [scene.to_dict() for scene in scenes],
    }
    with disk_errors(destination):
        _replace(destination / JSON_NAME, json.dumps(values, indent=1, allow_nan=False))
        if html:
            _replace(destination / HTML_NAME, page_of(destination, scenes))


def failed_before(destination: Path) -> set[str]:
    """Return the names of the scenes that failed according to ``report.json``.

    Raises
    ------
    StoreError
        If there is no report.
    """
    file = destination / JSON_NAME
    try:
        return {scene["name"] for scene in json.loads(file.read_bytes())["scenes"] if scene["state"] == "failed"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file}: no report of an earlier run can be read; run without --retry-failed") from error


def line_of(scene: ArchiveScene) -> str:
    """Return in one line how a scene ended."""
    if scene.report is None:
        return f"{scene.name}: {scene.state}" + (f", {scene.message}" if scene.message else "")
    report = scene.report
    quality = quality_text(report["psnr"], decimals=2, unit=" dB")
    return f"{scene.name}: {quality}, {size_text(report['bytes'])}, ratio {report['measured_ratio']:.1f}"


def rows_of(scenes: Sequence[ArchiveScene]) -> list[dict[str, str]]:
    """Return what a table shows of each scene."""
    return [_row(scene) for scene in scenes]


def page_of(destination: Path, scenes: Sequence[ArchiveScene]) -> str:
    """Return the page: totals, a plot, a table with thumbnails; it needs no other file."""
    images = 0
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        before, after = thumbnail_files(scene.path, root=destination)
        shown = scene.report is not None and images < _MOST_THUMBNAILS and before.exists() and after.exists()
        images += shown
        thumbnails = [_embedded(before), _embedded(after)] if shown else []
        rows.append({**_row(scene), "thumbnails": thumbnails})
    return _template().render(
        totals=totals_rows(scenes),
        rows=rows,
        left_out=sum(scene.report is not None for scene in scenes) - images,
        plot=_plot(scenes),
    )


def _row(scene: ArchiveScene) -> dict[str, str]:
    report = scene.report or {}
    size = "-" if scene.shape is None else f"{scene.shape[0]} x {scene.shape[1]} x {scene.shape[2]}"
    return {
        "scene": scene.name,
        "state": scene.state,
        "size": size,
        "bytes": size_text(report["bytes"]) if report else "-",
        "ratio": f"{report['measured_ratio']:.1f}" if report else "-",
        "PSNR": quality_text(report["psnr"], decimals=2, unit=" dB") if report else "-",
        "MS-SSIM": quality_text(report["ms_ssim"]) if report else "-",
        "time": duration_text(scene.seconds) if scene.seconds else "-",
        "message": scene.message or ("degraded: " + ", ".join(report["degraded"]) if report.get("degraded") else ""),
    }


def _plot(scenes: Sequence[ArchiveScene]) -> dict[str, Any] | None:
    """Return where each scene lies in a plot of PSNR over bits per pixel (logarithmic), and the labels of the axes."""
    points = [
        (scene.name, math.log2(scene.report["bits_per_pixel"]), scene.report["psnr"])
        for scene in scenes
        if scene.report is not None and scene.report["psnr"] is not None
    ]
    if not points:
        return None
    left, right = _limits([x for _, x, _ in points], step=0.5)
    bottom, top = _limits([y for _, _, y in points], step=1.0)
    width, height = _PLOT_WIDTH - 2 * _PLOT_MARGIN, _PLOT_HEIGHT - 2 * _PLOT_MARGIN

    def place(x: float, y: float) -> dict[str, str]:
        across, up = (x - left) / (right - left), (y - bottom) / (top - bottom)
        return {"x": f"{_PLOT_MARGIN + width * across:.1f}", "y": f"{_PLOT_HEIGHT - _PLOT_MARGIN - height * up:.1f}"}

    ticks_x = [left + (right - left) * index / 4 for index in range(5)]
    ticks_y = [bottom + (top - bottom) * index / 4 for index in range(5)]
    return {
        "width": _PLOT_WIDTH,
        "height": _PLOT_HEIGHT,
        "margin": _PLOT_MARGIN,
        "points": [place(x, y) | {"title": f"{name}: {2**x:.3f} bpp, {y:.2f} dB"} for name, x, y in points],
        "x_ticks": [place(x, bottom) | {"text": f"{2**x:.3g}"} for x in ticks_x],
        "y_ticks": [place(left, y) | {"text": f"{y:.1f}"} for y in ticks_y],
    }


def _limits(values: Sequence[float], *, step: float) -> tuple[float, float]:
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    return (low, high) if high > low else (low - step, high + step)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _embedded(file: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = (resources.files("flows") / "report.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
