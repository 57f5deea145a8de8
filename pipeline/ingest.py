"""Stage the image: its pixels, strip by strip, into the scene's working data."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.executors import keep_freed_memory, release_memory
from pipeline.plan import STRIPS_AT_ONCE
from pipeline.run import Run
from smartsplat.normalization import Normalization
from storage.groups import disk_errors, has_array
from storage.pixels import STRIP_HEIGHT, PixelStore
from storage.source import read_strips


def ingest(run: Run) -> None:
    """Write every strip that is not there yet, then note the range of the pixels.

    Raises
    ------
    SourceError
        If the file turns out to be damaged.
    """
    source, work = run.plan.source, run.scene.work(writable=True)
    with disk_errors(run.scene.path):
        if has_array(work, "strips"):
            pixels = PixelStore.open(work)
        else:
            pixels = PixelStore.create(work, shape=source.shape, dtype=source.dtype)
        done = pixels.strips_done()
        if not done.all():
            keep_freed_memory()
            _write_missing(run, pixels, first=int(np.argmin(done)), done=done)
            release_memory()  # libvips' and our own strips, before the workers ask for theirs
    low, high = pixels.value_range()
    run.scene.update(normalization=Normalization.of_range(low, high, dtype=pixels.dtype))


def _write_missing(run: Run, pixels: PixelStore, *, first: int, done: np.ndarray) -> None:
    """Write strips on threads of their own while the next ones are decoded; no more at a time than memory is for."""
    run.progress.start("ingest", total=len(done), done=int(done.sum()))
    writing: deque[Future[None]] = deque()
    try:
        with ThreadPoolExecutor(STRIPS_AT_ONCE) as threads:
            for y0, strip in read_strips(run.plan.source, strip_height=STRIP_HEIGHT, start=first * STRIP_HEIGHT):
                index = y0 // STRIP_HEIGHT
                if not done[index]:
                    if len(writing) == STRIPS_AT_ONCE:
                        writing.popleft().result()
                        run.progress.advance()
                    writing.append(threads.submit(pixels.write_strip, index, strip))
            while writing:
                writing.popleft().result()
                run.progress.advance()
    finally:
        run.progress.finish()
