"""What the command shows on a terminal, or writes as plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars
from rich.table import Table

from pipeline.progress import Progress

_SECONDS_BETWEEN_LINES = 10.0


class BarProgress:
    """A bar for the stage and one for the whole run, on a terminal; stages that are over leave a line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._whole: TaskID | None = None
        self._task: TaskID | None = None
        self._stage = self._note = ""
        self._done = self._total = 0
        self._started = 0.0

    def start(self, stage: str, *, total: int, done: int) -> None:
        """Show a new bar."""
        self._bars.start()
        self._stage, self._note, self._done, self._total = stage, "", done, total
        self._started = time.monotonic()
        self._task = self._bars.add_task(stage, total=total, completed=done, count=self._count, note="")

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._note = note or self._note
            self._done += jobs
            self._bars.update(self._task, advance=jobs, count=self._count, note=self._note)

    def finish(self) -> None:
        """Leave a line in place of the bar."""
        self._bars.stop()
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
            seconds = time.monotonic() - self._started
            self._console.print(
                f"{self._stage}  {self._count}  {seconds:.1f} s  {self._note}".rstrip(), highlight=False
            )

    def overall(self, share: float, *, seconds_left: float | None) -> None:
        """Move the bar of the whole run."""
        if self._whole is None:
            self._whole = self._bars.add_task("all stages", total=1.0, count="", note="")
        note = "" if seconds_left is None else f"{duration_text(seconds_left)} left"
        self._bars.update(self._whole, completed=share, count=f"{share:.0%}", note=note)

    @property
    def _count(self) -> str:
        return f"{self._done}/{self._total}"


class LineProgress:
    """A plain line when a stage begins, every few seconds, and when it ends."""

    def __init__(self) -> None:
        self._stage = self._note = ""
        self._total = self._done = 0
        self._started = self._printed = 0.0
        self._outlook = ""

    def start(self, stage: str, *, total: int, done: int) -> None:
        """Begin a stage."""
        self._stage, self._note, self._total, self._done = stage, "", total, done
        self._started = self._printed = time.monotonic()

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        """Count, and say so now and then."""
        self._note = note or self._note
        self._done += jobs
        if time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self._say(self._note)

    def finish(self) -> None:
        """Say how it ended, unless it failed: the error says that."""
        if self._done >= self._total:
            self._say(f"{time.monotonic() - self._started:.1f} s  {self._note}".rstrip())

    def overall(self, share: float, *, seconds_left: float | None) -> None:
        """Remember it for the next line."""
        left = "" if seconds_left is None else f", {duration_text(seconds_left)} left"
        self._outlook = f"({share:.0%} of all{left})"

    def _say(self, note: str) -> None:
        text = f"{self._stage}: {self._done}/{self._total}  {note}  {self._outlook}".rstrip()
        print(text, file=sys.stderr, flush=True)


def progress_for(stream: Any) -> Progress:
    """Return the progress display that suits `stream`."""
    console = Console(file=stream)
    return BarProgress(console) if console.is_terminal else LineProgress()


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values side by side on standard output."""
    Console().print(table_of(title, rows))


def table_of(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Return names and values side by side."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def print_columns(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with named columns."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def size_text(nbytes: float) -> str:
    """Return bytes as people read them.

    Examples
    --------
    >>> size_text(1_500_000)
    '1.50 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} bytes"


def duration_text(seconds: float) -> str:
    """Return a time as people read it.

    Examples
    --------
    >>> duration_text(41.6), duration_text(700), duration_text(2 * 3600 + 600)
    ('42 s', '12 min', '2 h 10 min')
    """
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def print_report(report: dict[str, Any]) -> None:
    """Print what came of a run, as `pipeline.compress.SceneReport.to_dict` gives it."""
    height, width, bands = report["shape"]
    raw = report["bytes"] * report["measured_ratio"]
    nominal = "-" if report["nominal_ratio"] is None else f"{report['nominal_ratio']:g}"
    rows = [
        ("image", f"{height} x {width} x {bands} {report['dtype']}, {size_text(raw)}"),
        ("scene", f"{report['scene']}, {size_text(report['bytes'])} in {report['tiles']} tiles"),
        ("ratio asked / real", f"{nominal} / {report['measured_ratio']:.1f}"),
        ("bits per pixel", f"{report['bits_per_pixel']:.3f}"),
        ("Gaussians", f"{report['gaussians']} ({8 * report['bytes'] / report['gaussians']:.1f} bits each)"),
        ("PSNR", quality_text(report["psnr"], decimals=2, unit=" dB")),
        ("SSIM / MS-SSIM", f"{quality_text(report['ssim'])} / {quality_text(report['ms_ssim'])}"),
    ]
    rows += [("degraded", ", ".join(report["degraded"]))] if report["degraded"] else []
    rows += [(f"time, {stage}", f"{seconds:.1f} s") for stage, seconds in report["seconds"].items()]
    rows += [
        (f"memory, {stage}", f"{size_text(peak)} ({size_text(report['projected_memory'][stage])} projected)")
        for stage, peak in report["memory"].items()
    ]
    print_table("done" if report["seconds"] else "finished before: nothing to do", rows)


def quality_text(value: float | None, *, decimals: int = 4, unit: str = "") -> str:
    """Return a quality as people read it; None is the PSNR of an exact image, or an SSIM without a window."""
    return "-" if value is None else f"{value:.{decimals}f}{unit}"
