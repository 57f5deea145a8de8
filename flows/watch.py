"""What `smartsplat status` shows: a table, a line or an object; once, or again and again until the run is over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from flows.console import duration_text, print_table, size_text, table_of
from pipeline.status import status
from smartsplat.errors import NotRunning

_NAMES_SHOWN = 8

Show = Callable[[dict[str, Any]], None]


def show_status(scene: Path, *, as_json: bool) -> None:
    """Print the state of a scene once.

    Raises
    ------
    StoreError
        If there is no scene, or it is damaged.
    """
    found = status(scene)
    if as_json:
        _print_object(found)
    else:
        print_table(_title(found), _rows(found))


def watch_status(scene: Path, *, every: float, as_json: bool) -> None:
    """Show the state of a scene every so many seconds until it is complete.

    On a terminal a table is drawn again and again; elsewhere each look prints a line, or with `as_json` an object.

    Raises
    ------
    StoreError
        If there is no scene, or it is damaged.
    NotRunning
        If it is unfinished and no run works on it, or the one that did has died.
    """
    with _display(as_json=as_json) as show:
        while True:
            found = status(scene)
            show(found)
            if found["complete"]:
                return
            if _running(found) is False:
                break
            time.sleep(every)
    raise NotRunning(f"{scene}: {_title(found)}")


@contextmanager
def _display(*, as_json: bool) -> Generator[Show]:
    console = Console()
    if as_json:
        yield _print_object
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda found: live.update(table_of(_title(found), _summary(found)), refresh=True)
    else:
        yield lambda found: print(_line(found), flush=True)


def _print_object(found: dict[str, Any]) -> None:
    print(json.dumps(found, allow_nan=False), flush=True)


def _running(found: dict[str, Any]) -> bool | None:
    return False if found["run"] is None else found["run"]["running"]


def _title(found: dict[str, Any]) -> str:
    if found["complete"]:
        return "complete"
    run, running = found["run"], _running(found)
    if running:
        return f"running: {_process(run)}"
    if running is None:
        return f"unfinished, worked on from another host: {_process(run)}, {_heard(run)}"
    gone = "" if run is None else f" ({_process(run)}, {_heard(run)}, is gone)"
    return f"unfinished: run compress again to resume{gone}"


def _process(run: dict[str, Any]) -> str:
    return f"process {run['pid']} on {run['host']}"


def _heard(run: dict[str, Any]) -> str:
    return f"last heard of {duration_text(run['heard_seconds_ago'])} ago"


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of all there is to say."""
    stages = [(stage["stage"], _stage_text(stage)) for stage in found["stages"]]
    failed = found["tiles"]["failed"].items()
    return [*stages, *_summary(found), *((f"failed: {tile}", reason) for tile, reason in failed)]


def _summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what fits on any screen."""
    tiles, now, psnr = found["tiles"], found["now"], found["psnr"]
    rows: list[tuple[str, str]] = []
    if now is not None:
        rows += [("now", _now_text(now)), ("all stages", f"{found['share']:.0%} of the work")]
    rows += _pace(found["run"] or {})
    if psnr is not None:
        rows.append(("PSNR so far", f"{_psnr_text(psnr)} ({psnr['stage']}, {psnr['tiles']} tiles)"))
    rows += [("tiles done", str(tiles["done"])), ("tiles failed", _some([*tiles["failed"]]))]
    return [*rows, ("tiles missing", _some(tiles["missing"]))]


def _line(found: dict[str, Any]) -> str:
    """Return the most important of it in one line.

    Examples
    --------
    >>> _line({"complete": True})
    'complete'
    """
    if found["complete"]:
        return "complete"
    psnr, pace = found["psnr"], dict(_pace(found["run"] or {}))
    parts = [_now_text(found["now"]), f"{found['share']:.0%} of all"]
    parts += [f"{pace.pop('time left')} left"] if "time left" in pace else []
    parts += [*pace.values(), *([] if psnr is None else [_psnr_text(psnr)])]
    return ", ".join(parts) + ("" if _running(found) else f" ({_title(found)})")


def _pace(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what is known of a run's speed and size."""

    def known(key: str, text: Callable[[float], str]) -> list[str]:
        return [text(run[key])] if run.get(key) is not None else []

    speed = known("jobs_a_second", lambda value: f"{value:.3g} jobs/s")
    speed += known("megapixels_a_minute", lambda value: f"{value:.3g} Mpx/min")
    rows = {
        "time left": known("seconds_left", duration_text),
        "speed": speed,
        "memory": known("memory_bytes", size_text),
    }
    return [(name, ", ".join(values)) for name, values in rows.items() if values]


def _now_text(now: dict[str, Any]) -> str:
    phase = "" if now["phase"] is None else f", phase {now['phase']}"
    total = "" if now["total"] is None else f": {_stage_text(now)}, {now['left']} left"
    return f"{now['stage']}{phase}{total}"


def _psnr_text(psnr: dict[str, Any]) -> str:
    return "exact" if psnr["db"] is None else f"{psnr['db']:.2f} dB"


def _stage_text(stage: dict[str, Any]) -> str:
    failed = f", {stage['failed']} failed" if stage["failed"] else ""
    return f"{stage['done']}/{stage['total']}{failed}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{len(names)}" + (f": {shown}" if names else "") + (", ..." if len(names) > _NAMES_SHOWN else "")
